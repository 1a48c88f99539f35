"""A result in, a plotly figure out: pure functions, one look.

Colours are Okabe and Ito's, which colour-blind readers tell apart; every series also differs in
dash, marker or position. Backgrounds are opaque, so a figure reads alike in light and dark themes.
"""

import plotly.graph_objects as go

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#00795A", "#9A4F7E", "#5A6270"
"""Okabe-Ito hues, the lighter ones darkened until text in them has contrast 4.5 on white."""

INK = "#1F2933"

_AXIS = {
    "showline": True,
    "linecolor": "#9AA5B1",
    "ticks": "outside",
    "tickcolor": "#9AA5B1",
    "gridcolor": "#E8ECF0",
    "zerolinecolor": "#C3CBD4",
    "title": {"standoff": 8},
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif", "size": 13, "color": INK},
        "title": {"x": 0.01, "xanchor": "left", "font": {"size": 16}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": [BLUE, VERMILLION, GREEN, PURPLE, GREY],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 64, "r": 24, "t": 64, "b": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "height": 380,
        "hoverlabel": {"font": {"size": 13}},
    }
)
