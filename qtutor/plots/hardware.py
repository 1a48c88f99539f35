"""What a machine does with a model: the bytes that its operators pass on, and how fast a layer could be at most."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtutor.plots.look import BLUE, GREEN, INK, PURPLE, VERMILLION, figure

import plotly.graph_objects as go

if TYPE_CHECKING:
    from qtutor.roofline import Peaks

    import pandas as pd


def datapath(paths: dict[str, Sequence[tuple[str, str, int]]], title: str) -> go.Figure:
    """Draw what operators pass on, one row a datapath, with ribbons as wide as bytes.

    Args:
        paths: by name, in order, `(operator, what it writes, bytes)`; the first is the input, its operator "".
    """
    drawn = figure(title, "", "", height=110 + 170 * len(paths))
    widest = max(size for path in paths.values() for _, _, size in path)

    def write(x: float, y: float, text: str, **look) -> None:
        drawn.add_annotation(x=x, y=y, text=text, showarrow=False, **{"font": {"size": 12}, **look})

    def block(left: float, right: float, middle: float, half: float, **look) -> None:
        drawn.add_shape(type="rect", x0=left, x1=right, y0=middle - half, y1=middle + half, **look)

    for row, (name, path) in enumerate(paths.items()):
        write(-0.35, -row + 0.4, f"<b>{name}</b>", xanchor="left", font={"size": 14})
        for i, (operator, numbers, size) in enumerate(path):
            colour = PURPLE if numbers == "INT32" else VERMILLION if numbers.startswith("FP") else BLUE
            ribbon = {"fillcolor": colour, "opacity": 0.5, "line_width": 0, "layer": "below"}
            block(i - 0.34, i + 0.66, -row, 0.24 * size / widest, **ribbon)
            write(i + 0.33, -row - 0.4, f"{numbers}<br>{size:,} B")
            if operator:
                block(i - 0.34, i + 0.02, -row, 0.27, fillcolor="white", line={"color": INK, "width": 1.5})
                write(i - 0.16, -row, operator)
    drawn.update_xaxes(visible=False, range=[-0.4, max(map(len, paths.values())) - 0.25])
    drawn.update_yaxes(visible=False, range=[-len(paths) + 0.3, 0.6])
    return drawn.update_layout(margin={"l": 12, "r": 12, "t": 52, "b": 8})


def roofline(peaks: "Peaks", layers: "pd.DataFrame", title: str) -> go.Figure:
    """Draw what each layer attains below the roofs of FP32 and INT8.

    Args:
        peaks: of this machine.
        layers: from `roofline.layers`, timed in FP32.
    """
    drawn = figure(title, "operations for each byte moved (log scale)", "billion operations a second (log scale)")
    left, right = layers["intensity"].min() / 3, layers["intensity"].max() * 10
    for numbers, name, colour, dash in (("int8", "INT8 roof", GREEN, "dash"), ("float", "FP32 roof", INK, "solid")):
        rate, bandwidth = peaks.roofs[numbers]
        knee = rate / bandwidth
        x = [left, knee, right] if left < knee < right else [left, right]
        y = [min(rate, place * bandwidth) / 1e9 for place in x]
        drawn.add_scatter(x=x, y=y, mode="lines", name=name, line={"color": colour, "dash": dash, "width": 2.5})
    drawn.add_scatter(
        x=layers["intensity"].tolist(),
        y=(layers["operations"] / layers["latency_ms"] / 1e6).tolist(),
        mode="markers",
        text=[*layers.index],
        name="a layer in FP32",
        marker={"color": BLUE, "size": 10},
        hovertemplate="%{text}: %{x:.3g}, %{y:.3g}<extra></extra>",
    )
    drawn.update_xaxes(type="log", dtick=1)
    return drawn.update_yaxes(type="log", dtick=1)
