"""OutlierExplorer: one channel at one position takes the codes of all others, and how they get them back."""

import functools
import math
from dataclasses import dataclass
from typing import Any

from qtutor.affine import dequantize, quantize, sqnr
from qtutor.explorers.explorer import Explorer, Stops, toggles
from qtutor.lowbit import hadamard, integers, smooth
from qtutor.lowbit.checks import matrix
from qtutor.lowbit.integers import run_qparams
from qtutor.plots import look
from qtutor.words import in_decibels, in_digits

import ipywidgets
import plotly.graph_objects as go
import torch
from torch import Tensor

PREPARED = ("as it is", "smoothed", "rotated")
STRENGTHS = (0.0, 0.25, 0.5, 0.65, 0.75, 0.85, 1.0)
MOST_POSITIONS, MOST_DRAWN = 32, 64
"""Positions that are explored, from the first; and channels that are drawn: the loudest, and some of the others."""

MOST_OUTPUTS = 128
WEIGHT_BITS = 8


@dataclass(frozen=True, eq=False)
class OutlierResult:
    """What a state does to activations; a step is a code's distance from that of zero.

    Attributes:
        prepared: `(positions, channels)` what is rounded.
        steps: `(positions, channels)` int32, how many steps from zero each value is rounded to; 0 keeps no code.
        kept: `(positions,)` the share of values that keep a code.
        overall: SQNR in dB of the layer's outputs at all positions together.
        each: `(positions,)` SQNR of the outputs at each position; of a spared one, what the rounded weight leaves.
        value: the value that is looked at, and what is left of it.
    """

    prepared: Tensor
    steps: Tensor
    kept: Tensor
    overall: float
    each: Tensor
    value: tuple[float, float]

    @property
    def median(self) -> float:
        """SQNR of the outputs at the median position, in dB; of two in the middle, the lower."""
        return float(self.each.median())


def _spares(state: Any, x: Tensor) -> bool:
    """Whether the first position stays in floating point: not where there is no other."""
    return state.spare and len(x) > 1


class OutlierExplorer(Explorer):
    """Explore what outliers do to the codes of activations, your own or made-up ones.

    Args:
        activations: `(positions, channels)` what a linear layer reads; the first 32 positions are explored.
        weight: `(out, channels)` of that layer; its first 128 outputs are explored.
        start: where controls start, by name, such as `bits=4`.

    Controls:
        prepared: "as it is", "smoothed" or "rotated".
        strength: how much of the trouble the weights take, only where "smoothed": 0, 0.25, 0.5, 0.65, 0.75, 0.85 or 1.
        per: "tensor" or "token": which activations share a scale.
        bits: of activations, 3 to 8; weights have 8, a scale a row.
        spare: True or False: whether the first position stays in floating point.
        position: the position that is looked at, from 0, at most 31.
        channel: the number of the channel that is looked at, one of `drawn`: up to 64 channels all, of more the loudest
            and some of the others.

    Attributes:
        activations: `(positions, channels)` float32, what is explored of them.
        weight: `(out, channels)` float32, what is explored of it.
        drawn: the numbers of the channels that are drawn, ascending.

    Raises:
        TypeError: a tensor is not a floating-point one.
        ValueError: shapes do not fit, a value is not finite, or a control cannot start there.
    """

    def __init__(
        self,
        activations: Tensor | None = None,
        weight: Tensor | None = None,
        **start: Any,
    ):
        if (activations is None) != (weight is None):
            raise ValueError("OutlierExplorer needs both activations and the weight that reads them, or neither")
        if activations is None or weight is None:
            activations, weight = activations_with_outliers()
        for name, given in (("activations", activations), ("weight", weight)):
            matrix(given, name, "OutlierExplorer")
        if activations.shape[1] != weight.shape[1]:
            raise ValueError(
                f"the weight reads {weight.shape[1]} channels, and the activations have {activations.shape[1]}"
            )
        self.activations = activations.detach()[:MOST_POSITIONS].to(torch.float32, copy=True)
        self.weight = weight.detach()[:MOST_OUTPUTS].to(torch.float32, copy=True)
        self.drawn = _loud_and_others(self.activations)
        self._rotation = _rotation(weight.shape[1])
        self.prepare = functools.cache(self.prepare)
        loudest = int(self.activations.abs().amax(dim=0)[self.drawn].argmax())
        positions, channels = len(self.activations), len(self.drawn)
        controls = {
            "prepared": toggles("Activations", PREPARED, "7.5em"),
            "strength": ipywidgets.SelectionSlider(options=STRENGTHS, value=0.5, description="Strength"),
            "per": toggles("A scale per", ["tensor", "token"], "5.5em"),
            "bits": ipywidgets.IntSlider(8, 3, 8, description="Bits"),
            "spare": ipywidgets.Checkbox(
                False, description="Spare the first position", indent=False, layout={"width": "max-content"}
            ),
            "position": ipywidgets.IntSlider(min(1, positions - 1), 0, positions - 1, description="Position"),
            "channel": ipywidgets.SelectionSlider(
                options=self.drawn.tolist(),
                index=loudest - 1 if loudest else min(1, channels - 1),
                description="Channel",
            ),
        }
        super().__init__(controls, _figure(self.activations, self.drawn), start)

    def prepare(self, prepared: str, strength: float) -> tuple[Tensor, Tensor]:
        """Return activations and the 8-bit weight, changed so that in floating point their product stays."""
        x, weight = self.activations, self.weight
        if prepared == "smoothed":
            scales = smooth(weight, x.abs().amax(dim=0), strength)
            x, weight = x / scales, weight * scales
        elif prepared == "rotated":
            x, weight = ((each.double() @ self._rotation.double()).float() for each in (x, weight))
        return x, integers(WEIGHT_BITS, symmetric=True).round(weight)

    def compute(self, state: Any) -> OutlierResult:
        x, weight = self.prepare(state.prepared, state.strength if state.prepared == "smoothed" else 0.0)
        rounded_from = int(_spares(state, x))
        rounded = x[rounded_from:]
        qparams = run_qparams(rounded if state.per == "token" else rounded.flatten(), state.bits)
        codes = quantize(rounded, qparams)
        steps = torch.full(x.shape, 2**state.bits - 1, dtype=torch.int32)
        steps[rounded_from:] = (codes.int() - qparams.zero_point).abs()
        left = torch.cat([x[:rounded_from], dequantize(codes, qparams)])
        exact, got = self.activations.double() @ self.weight.T.double(), left.double() @ weight.T.double()
        each = torch.as_tensor(sqnr(exact, got, axis=0))
        position, channel = state.position, state.channel
        return OutlierResult(
            prepared=x,
            steps=steps,
            kept=((steps > 0) | (x == 0)).double().mean(dim=1),
            overall=sqnr(exact, got),
            each=each,
            value=(float(x[position, channel]), float(left[position, channel])),
        )

    def say(self, state: Any, result: OutlierResult) -> str:
        how = f"smoothed at {state.strength:g}" if state.prepared == "smoothed" else state.prepared
        spares = _spares(state, result.prepared)
        spared = ", the first position in floating point" if spares else ""
        position, channel = state.position, state.channel
        size = result.prepared.abs()
        here = divmod(int(size.argmax()), size.shape[1])
        value, left = result.value
        steps = int(result.steps[position, channel])
        fate = "is not rounded" if spares and position == 0 else f"becomes {in_digits(left)}, {steps} steps from zero"
        return (
            f"Activations {how}, {state.bits} bits, one scale per {state.per}{spared}: "
            f"{100 * float(result.kept.mean()):.0f}% of the values keep a code, {100 * float(result.kept.min()):.0f}% "
            f"at the worst position. Outputs: overall {in_decibels(result.overall)}, median position "
            f"{in_decibels(result.median)}. Largest: {in_digits(float(size.max()))}, at position {here[0]}, "
            f"channel {here[1]}; the median is {in_digits(float(size.median()), 2)}. At position {position}, "
            f"channel {channel}: {in_digits(value)} {fate}."
        )

    def stops(self) -> Stops:
        positions, channels = len(self.activations), len(self.drawn)
        here = self.controls["channel"].index
        return {
            "prepared": PREPARED,
            "strength": (0.25, 0.5, 0.75, 1.0),
            "per": ("tensor", "token"),
            "bits": (4, 6, 8),
            "spare": (False, True),
            "position": sorted({0, min(1, positions - 1), positions - 1}),
            "channel": self.drawn[sorted({here, min(here + 1, channels - 1), channels // 4})].tolist(),
        }

    def draw(self, result: OutlierResult) -> None:
        state, drawn = self.state, self.drawn
        self.controls["strength"].disabled = state.prepared != "smoothed"
        sizes, steps, kept, mean, one, two = self.figure.data
        sizes.z = result.prepared[:, drawn].abs().clamp(min=1e-4).log10().double().mul(20).round().div(20).numpy()
        steps.z = (1 + result.steps[:, drawn].double()).log2().mul(4).round().div(4).numpy()
        kept.x = result.kept.numpy()
        mean.x = [float(result.kept.mean())] * 2
        for mark in (one, two):
            mark.x, mark.y = [self.controls["channel"].options.index(state.channel)], [state.position]


def activations_with_outliers(positions: int = 24, channels: int = 48, outputs: int = 64) -> tuple[Tensor, Tensor]:
    """Return made-up activations as language models have them, and a weight that reads them.

    Two channels are 20 times as loud as the others at every position, and one of these is 1,500 times as loud at the
    first.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(positions, channels, generator=generator)
    x[:, [11, 30]] = 20 + 4 * torch.randn(positions, 2, generator=generator)
    x[0, 11] = 1500
    return x, torch.randn(outputs, channels, generator=generator) / math.sqrt(channels)


def _rotation(channels: int) -> Tensor:
    """A Hadamard matrix, or where none is known another rotation that mixes all channels."""
    try:
        return hadamard(channels)
    except ValueError:
        generator = torch.Generator().manual_seed(0)
        return torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))[0].float()


def _loud_and_others(x: Tensor) -> Tensor:
    """The channels that are drawn: all, or the eight loudest and others evenly spread."""
    channels = x.shape[1]
    if channels <= MOST_DRAWN:
        return torch.arange(channels)
    loud = x.abs().amax(dim=0).topk(8).indices
    spread = torch.linspace(0, channels - 1, MOST_DRAWN - 8).long()
    return torch.cat([loud, spread]).unique()


def _figure(activations: Tensor, drawn: Tensor) -> go.Figure:
    """Draw what no control changes, and leave the colours, bars and marks open."""
    titles = ("Size of the values (colours: log scale)", "Steps from zero (white: no code)", "Values that keep a code")
    figure = look.panels(1, 3, titles, horizontal_spacing=0.1, column_widths=[0.4, 0.4, 0.2])
    white_to = [[0, "white"], [0.02, "#D6E6F2"], [0.5, look.BLUE], [1, look.INK]]
    largest = float(activations.abs().max().clamp(min=1e-3).log10())
    bar = {"thickness": 10, "len": 1.0, "y": 0.5}
    sizes = {"tickvals": list(range(-2, 6)), "ticktext": [f"{10.0**power:g}" for power in range(-2, 6)]}
    colours = {"colorscale": white_to, "colorbar": {**bar, "x": 0.325, **sizes}}
    figure.add_heatmap(zmin=-2, zmax=max(largest, -1.0), **colours, row=1, col=1)
    steps = {"tickvals": [0, 1, 3, 5, 8], "ticktext": ["0", "1", "7", "31", "255"]}
    figure.add_heatmap(zmin=0, zmax=8, colorscale=white_to, colorbar={**bar, "x": 0.745, **steps}, row=1, col=2)
    positions = list(range(len(activations)))
    figure.add_bar(y=positions, orientation="h", marker_color=look.GREEN, marker_line_width=0, row=1, col=3)
    line = {"color": look.INK, "width": 2, "dash": "dash"}
    figure.add_scatter(y=[-0.5, len(positions) - 0.5], mode="lines", line=line, name="mean", row=1, col=3)
    mark = {"symbol": "square-open", "size": 12, "color": look.VERMILLION, "line": {"width": 3}}
    for column in (1, 2):
        figure.add_scatter(mode="markers", marker=mark, cliponaxis=False, row=1, col=column)
    numbers = [str(int(number)) for number in drawn]
    every = max(1, math.ceil(len(numbers) / 8))
    ticks = {"tickvals": list(range(0, len(numbers), every)), "ticktext": numbers[::every]}
    figure.update_layout(showlegend=False, height=440, margin={"t": 64, "r": 24}, bargap=0.15)
    for column in (1, 2):
        figure.update_xaxes(title="channel", range=[-0.5, len(numbers) - 0.5], **ticks, row=1, col=column)
    figure.update_xaxes(title="share", range=[0, 1.02], row=1, col=3)
    figure.update_yaxes(range=[len(positions) - 0.5, -0.5], showgrid=False)
    for column in (2, 3):
        figure.update_yaxes(showticklabels=False, row=1, col=column)
    return figure.update_yaxes(title="position", row=1, col=1)
