"""The look of every figure: colours, series, panels and ticks.

Colours are Okabe and Ito's, which colour-blind readers tell apart; every series also differs in
dash, marker or position. Backgrounds are opaque, so a figure reads alike in light and dark themes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#00795A", "#9A4F7E", "#5A6270"
"""Okabe-Ito hues, the lighter ones darkened until text in them has contrast 4.5 on white."""

INK = "#1F2933"

SKY, SILVER, PALE, PALEST = "#9CC9E3", "#9AA5B1", "#C3CBD4", "#E8ECF0"
"""For what carries no text: areas, axes, and the grid behind."""


@dataclass(frozen=True)
class Look:
    """What tells one series from the others."""

    colour: str
    dash: str
    symbol: str

    def line(self, width: float = 2.5) -> dict[str, Any]:
        """Return its line, as plotly takes it."""
        return {"color": self.colour, "dash": self.dash, "width": width}

    def marker(self, size: float = 9) -> dict[str, Any]:
        """Return its marker, as plotly takes it."""
        return {"color": self.colour, "symbol": self.symbol, "size": size}


LOOKS = (
    Look(VERMILLION, "solid", "x"),
    Look(BLUE, "dash", "circle"),
    Look(GREEN, "dot", "diamond"),
    Look(PURPLE, "dashdot", "square"),
    Look(INK, "longdash", "triangle-up"),
)
"""Of a first series, a second, and so on."""

_AXIS = {
    "showline": True,
    "linecolor": SILVER,
    "ticks": "outside",
    "tickcolor": SILVER,
    "gridcolor": PALEST,
    "zerolinecolor": PALE,
    "title": {"standoff": 8},
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif", "size": 13, "color": INK},
        "title": {"x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 16}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": [BLUE, VERMILLION, GREEN, PURPLE, GREY],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 64, "r": 24, "t": 76, "b": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "height": 380,
        "hoverlabel": {"font": {"size": 13}},
        "modebar": {"remove": ["sendChartToCloud"]},  # plotly.js 4 offers an upload
    }
)


def figure(title: str, x: str, y: str, **layout: Any) -> go.Figure:
    """Return an empty figure in the course's look: what it shows, and what its axes are in which unit."""
    return go.Figure(layout={"template": TEMPLATE, "title": title, "xaxis_title": x, "yaxis_title": y, **layout})


def panels(rows: int, columns: int, titles: Sequence[str] = (), **options: Any) -> go.Figure:
    """Return empty panels in the course's look; `options` are those of plotly's `make_subplots`."""
    drawn = make_subplots(rows, columns, subplot_titles=titles or None, **options)
    return drawn.update_layout(template=TEMPLATE).update_annotations(font_size=15)


ONE_TWO_FIVE = [digit * 10.0**power for power in range(-8, 9) for digit in (1, 2, 5)]
"""Ticks of a logarithmic axis that stay readable wherever it begins and ends."""


def ticks(values: Iterable[float], text: str = "{:g}") -> dict[str, list]:
    """Return ticks at these values, as plotly's axes take them; `text` is how each is written."""
    values = list(values)
    return {"tickvals": values, "ticktext": [text.format(value) for value in values]}
