"""What range to represent: of channels, of a tensor, and from how much data."""

import math
from collections.abc import Sequence

from qtutor.plots.data import histogram
from qtutor.plots.look import BLUE, GREY, INK, LOOKS, SKY, figure, interval, ticks

import plotly.graph_objects as go
import torch
from torch import Tensor


def channel_ranges(ranges: dict[str, Tensor], title: str, *, lost_below: float | None = None) -> go.Figure:
    """Draw the largest magnitude in each channel, on a log axis.

    Args:
        ranges: by name, `(channels,)` magnitudes.
        title: what the picture shows.
        lost_below: half a step of one scale for all: a channel below this line rounds to zero as a whole.
    """
    axes = {"xaxis": {"zeroline": False}, "yaxis": {"type": "log", "dtick": 1}}
    drawn = figure(title, "channel", "largest |weight| (log scale)", **axes)
    for (name, values), look in zip(ranges.items(), LOOKS, strict=False):
        y = values.tolist()
        drawn.add_scatter(x=list(range(len(y))), y=y, mode="markers", name=name, marker=look.marker())
    if lost_below is not None:
        ends = [-0.5, max(map(len, ranges.values())) - 0.5]
        line = {"color": INK, "dash": "dash", "width": 1.5}
        name = "half a step: what lies below becomes zero"
        drawn.add_scatter(x=ends, y=[lost_below] * 2, mode="lines", name=name, line=line)
    return drawn


def chosen_ranges(values: Tensor, ends: dict[str, float], title: str) -> go.Figure:
    """Draw a histogram with a line where each range ends; exact zeros are left out.

    Args:
        values: finite values of any shape.
        ends: by name, the upper end of a range.
        title: what the picture shows.
    """
    drawn = figure(title, "value", "number of values (log scale)", yaxis={"type": "log", "dtick": 1}, height=420)
    edges, counts = histogram(values, 120)
    middles = (edges[:-1] + edges[1:]) / 2
    shown = counts.where(counts > 0, torch.nan)
    drawn.add_bar(x=middles.numpy(), y=shown.numpy(), marker_color=SKY, hoverinfo="skip")
    top = math.log10(float(counts.max()))
    for i, ((name, end), look) in enumerate(zip(ends.items(), LOOKS, strict=False)):
        drawn.add_scatter(x=[end, end], y=[0.5, 10**top], mode="lines", line=look.line(2))
        place = {"x": end, "y": top * (0.98 - 0.11 * i), "xanchor": "right", "xshift": -4, "showarrow": False}
        drawn.add_annotation(text=name, bgcolor="white", font={"color": look.colour}, **place)
    return drawn.update_layout(showlegend=False, bargap=0, yaxis_range=[-0.3, top + 0.2])


def calibration_size(sizes: Sequence[int], decibels: Tensor, title: str, *, claimed: tuple[int, int]) -> go.Figure:
    """Draw SQNR against the number of calibration images, with the numbers that a source asks for shaded.

    Args:
        sizes: `n` numbers of images.
        decibels: `(n, draws)` SQNR of each draw of so many images.
        title: what the picture shows.
        claimed: from how many to how many images the source asks for.
    """
    drawn = figure(title, "calibration images (log scale)", "SQNR of the output, dB")
    drawn.add_vrect(x0=claimed[0], x1=claimed[1], fillcolor=GREY, opacity=0.12, line_width=0)
    text = {"text": "claimed", "x": math.log10(math.sqrt(claimed[0] * claimed[1])), "y": 0.04, "yref": "y domain"}
    drawn.add_annotation(showarrow=False, font={"color": INK}, **text)
    low, middle, high = (
        t.tolist() for t in (decibels.amin(dim=1), decibels.median(dim=1).values, decibels.amax(dim=1))
    )
    look = {"mode": "lines+markers", "line": {"color": BLUE, "width": 2}, "marker": {"size": 9}}
    drawn.add_scatter(x=list(sizes), y=middle, error_y={**interval(middle, low, high), "width": 5}, **look)
    return drawn.update_xaxes(type="log", **ticks(sizes, "{}"))
