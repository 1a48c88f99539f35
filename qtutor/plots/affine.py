"""The map between real numbers and codes: where values land, what that costs, what training makes of it."""

import math
from collections.abc import Sequence

from qtutor.affine import QParams, QuantizationError, dequantize, fake_quantize
from qtutor.plots.look import BLUE, GREEN, GREY, INK, LOOKS, PURPLE, VERMILLION, figure, panels

import plotly.graph_objects as go
import torch
from torch import Tensor


def number_line(values: Tensor, qparams: QParams) -> go.Figure:
    """Draw where real values land: the values above, the grid with its codes below, a line from each to its code.

    Args:
        values: `(n,)` a few real values.
        qparams: per tensor, with few codes.
    """
    codes = torch.arange(qparams.quant_min, qparams.quant_max + 1)
    grid, landed = dequantize(codes, qparams), fake_quantize(values, qparams)
    drawn = figure("Each value moves to the nearest step; beyond the ends it is clipped", "real value", "", height=300)
    for value, end in zip(values.tolist(), landed.tolist(), strict=True):
        drawn.add_scatter(x=[value, end], y=[1, 0], mode="lines", line={"color": GREY, "dash": "dot"}, hoverinfo="skip")
    marker = {"color": BLUE, "size": 11}
    drawn.add_scatter(x=values.tolist(), y=[1] * len(values), mode="markers", marker=marker, name="x")
    marker = {"color": VERMILLION, "size": 13, "symbol": "line-ns-open", "line": {"width": 3}}
    text = {"mode": "markers+text", "text": [str(code) for code in codes.tolist()], "textposition": "bottom center"}
    drawn.add_scatter(x=grid.tolist(), y=[0] * len(codes), marker=marker, name="code", **text)
    rows = {"tickvals": [1, 0], "ticktext": ["values x", "codes q"], "range": [-0.45, 1.3], "showgrid": False}
    return drawn.update_layout(showlegend=False, yaxis=rows)


def clip_sweep(clips: Tensor, errors: Sequence[QuantizationError], title: str) -> go.Figure:
    """Draw rounding, clipping and total error against the clip range.

    Args:
        clips: `(n,)` the clip ranges tried, in standard deviations.
        errors: what each costs.
    """
    drawn = figure(title, "clip range, in standard deviations", "error, % of the signal's power")
    percent = {}
    for cause, colour, dash in (("rounding", GREEN, "dash"), ("clipping", PURPLE, "dot"), ("total", INK, "solid")):
        percent[cause] = [100 * getattr(error, cause) / error.signal for error in errors]
        line = {"color": colour, "dash": dash, "width": 2.5}
        drawn.add_scatter(x=clips.tolist(), y=percent[cause], name=cause, line=line)
    best = min(range(len(errors)), key=lambda i: errors[i].total)
    lowest = percent["total"][best]
    marker = {"color": INK, "size": 11, "symbol": "diamond"}
    drawn.add_scatter(x=[float(clips[best])], y=[lowest], mode="markers", name="best", marker=marker)
    return drawn.update_yaxes(rangemode="tozero", range=[0, 6 * lowest])


def bits_rule(bits: Sequence[int], measured: dict[str, Sequence[float]]) -> go.Figure:
    """Draw SQNR against bit width beside the rule of 6.02 dB per bit.

    Args:
        measured: SQNR in dB at each width, by the name of the data; the rule ends where the first does.
    """
    drawn = figure("SQNR climbs by 6 dB for each bit", "bits", "SQNR, dB")
    last = next(iter(measured.values()))[-1]
    rule = [last + 20 * math.log10(2) * (b - bits[-1]) for b in bits]
    drawn.add_scatter(x=list(bits), y=rule, mode="lines", name="6.02 dB per bit", line={"color": GREY, "dash": "dash"})
    for (name, decibels), look in zip(measured.items(), LOOKS, strict=False):
        drawn.add_scatter(x=list(bits), y=decibels, mode="markers", name=name, marker=look.marker())
    return drawn


def straight_through(x: Tensor, rounded: Tensor, slope: Tensor) -> go.Figure:
    """Draw a rounded value and, below it, its true slope and the one that training uses instead.

    Args:
        x: `(n,)` real values in order.
        rounded: `(n,)` what they become.
        slope: `(n,)` the gradient that training uses.
    """
    titles = ("Forward: a staircase, flat nearly everywhere", "Backward: the slope that training uses instead")
    drawn = panels(2, 1, titles, shared_xaxes=True, vertical_spacing=0.14)
    for row, name, y, colour, dash, width in (
        (1, "x", x, GREY, "dot", 2),
        (1, "x̂", rounded, BLUE, "solid", 2.5),
        (2, "true slope", torch.zeros_like(x), VERMILLION, "dash", 2.5),
        (2, "straight-through", slope, GREEN, "solid", 2.5),
    ):
        line = {"color": colour, "dash": dash, "width": width}
        drawn.add_scatter(x=x.numpy(), y=y.numpy(), name=name, line=line, row=row, col=1)
    drawn.update_yaxes(title="x̂", row=1, col=1)
    drawn.update_yaxes(title="slope", range=[-0.15, 1.25], row=2, col=1)
    drawn.update_xaxes(title="x", row=2, col=1)
    return drawn.update_layout(height=460, margin_t=84, legend={"y": 1.09})
