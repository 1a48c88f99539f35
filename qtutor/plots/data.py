"""What goes in: images, the values of tensors, how far they reach, and how many it takes to know."""

import math
from collections.abc import Sequence

from qtutor.plots.look import BLUE, GREEN, GREY, INK, LOOKS, SKY, VERMILLION, figure, panels, ticks

import plotly.graph_objects as go
import torch
from torch import Tensor


def images(pictures: Tensor, titles: Sequence[str], columns: int = 10) -> go.Figure:
    """Draw small pictures in rows.

    Args:
        pictures: `(N, 1 or 3, height, width)` in [0, 1].
        titles: N short titles.
    """
    rows = -(-len(pictures) // columns)
    drawn = panels(rows, columns, titles, horizontal_spacing=0.01, vertical_spacing=0.16 / rows)
    pixels = (pictures.expand(-1, 3, -1, -1).permute(0, 2, 3, 1) * 255).to(torch.uint8).numpy()  # (N, H, W, 3)
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        drawn.add_trace(go.Image(z=picture, hoverinfo="skip"), row=row + 1, col=column + 1)
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False)
    return drawn.update_layout(height=130 * rows + 20, margin={"l": 8, "r": 8, "t": 32, "b": 8})


def distributions(tensors: dict[str, Tensor], title: str) -> go.Figure:
    """Draw histograms side by side, each on its own axis; exact zeros are left out.

    Args:
        tensors: by name, finite values of any shape.
    """
    drawn = panels(1, len(tensors), list(tensors), horizontal_spacing=0.08)
    for column, (tensor, colour) in enumerate(zip(tensors.values(), (BLUE, VERMILLION, GREEN), strict=False), start=1):
        edges, counts = _histogram(tensor, 100)
        line = {"shape": "hv", "color": colour, "width": 1.5}
        place = {"x": edges[:-1].numpy(), "y": (counts / tensor.numel()).numpy(), "row": 1, "col": column}
        drawn.add_scatter(fill="tozeroy", mode="lines", line=line, **place)
        drawn.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
    drawn.update_xaxes(title="value")
    drawn.update_yaxes(title="share of all values", rangemode="tozero", col=1)
    return drawn.update_layout(title=title, showlegend=False, margin_t=96)


def channel_ranges(ranges: dict[str, Tensor], title: str, *, lost_below: float | None = None) -> go.Figure:
    """Draw the largest magnitude in each channel, on a log axis.

    Args:
        ranges: by name, `(channels,)` magnitudes.
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
    """
    drawn = figure(title, "value", "number of values (log scale)", yaxis={"type": "log", "dtick": 1}, height=420)
    edges, counts = _histogram(values, 120)
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
        claimed: from how many to how many images the source asks for.
    """
    drawn = figure(title, "calibration images (log scale)", "SQNR of the output, dB")
    drawn.add_vrect(x0=claimed[0], x1=claimed[1], fillcolor=GREY, opacity=0.12, line_width=0)
    text = {"text": "claimed", "x": math.log10(math.sqrt(claimed[0] * claimed[1])), "y": 0.04, "yref": "y domain"}
    drawn.add_annotation(showarrow=False, font={"color": INK}, **text)
    middle, (low, high) = decibels.median(dim=1).values, decibels.aminmax(dim=1)
    error = {"array": (high - middle).numpy(), "arrayminus": (middle - low).numpy(), "symmetric": False, "width": 5}
    look = {"mode": "lines+markers", "line": {"color": BLUE, "width": 2}, "marker": {"size": 9}}
    drawn.add_scatter(x=list(sizes), y=middle.numpy(), error_y=error, **look)
    return drawn.update_xaxes(type="log", **ticks(sizes, "{}"))


def _histogram(tensor: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """`(bins + 1,)` edges of even bins from the lowest to the highest value but 0, and their counts."""
    counts, edges = torch.histogram(tensor[tensor != 0].detach(), bins)
    return edges, counts
