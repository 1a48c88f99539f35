"""Formats of few bits: their values on a line, and what they cost against what they lose."""

from collections.abc import Sequence

from qtutor.plots.look import GREY, INK, LOOKS, figure

import plotly.graph_objects as go
from torch import Tensor


def levels(formats: dict[str, Tensor], title: str) -> go.Figure:
    """Draw the values that each format has, one line a format, each stretched so that its farthest value is 1 away.

    Args:
        formats: by name, top to bottom, values before the scale.
        title: what the picture shows.
    """
    drawn = figure(title, "value, where the farthest is 1 away from zero", "", height=150 + 42 * len(formats))
    for name, values in formats.items():
        x = (values / values.abs().max()).tolist()
        marker = {"symbol": "line-ns", "size": 20, "line": {"color": INK, "width": 2}}
        drawn.add_scatter(x=x, y=[name] * len(x), mode="lines+markers", marker=marker, line={"color": GREY, "width": 1})
    drawn.update_yaxes(autorange="reversed", automargin=True)
    return drawn.update_layout(showlegend=False)


def frontier(series: dict[str, Sequence[tuple[float, float]]], title: str) -> go.Figure:
    """Draw what a weight takes against what the model loses; down and to the left is better.

    Args:
        series: by name, bits per weight and KL in bits per token.
        title: what the picture shows.
    """
    drawn = figure(title, "bits per weight, scales included", "KL, bits per token (log scale)")
    for (name, points), look in zip(series.items(), LOOKS, strict=False):
        x, y = zip(*sorted(points), strict=True)
        drawn.add_scatter(x=x, y=y, mode="lines+markers", name=name, line=look.line(1.5), marker=look.marker())
    return drawn.update_yaxes(type="log", dtick=1, exponentformat="power")
