"""QATExplorer: one weight in training, with the true gradient, with straight-through, and with a learned scale."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from qtutor.affine import grid
from qtutor.explorers.explorer import Explorer, Stops
from qtutor.plots import look
from qtutor.words import counted

import ipywidgets
import plotly.graph_objects as go
import torch
from torch import Tensor

LANES = ("true gradient", "STE", "LSQ")
"""The three ways to train the weight, in the order of every tensor of a result."""

STEPS = 60
RATES = (0.02, 0.05, 0.1, 0.2, 0.3)
SMALLEST_SCALE = 0.02


@dataclass(frozen=True, eq=False)
class QATResult:
    """What training does to the weight, in the order of `LANES`.

    Attributes:
        weights: `(3, STEPS + 1)` the weight that the optimizer moves.
        quantized: `(3, STEPS + 1)` what the network computes with.
        scales: `(3, STEPS + 1)` the width of one step of the grid.
    """

    weights: Tensor
    quantized: Tensor
    scales: Tensor

    def hops_between(self, lane: str, first: int, last: int) -> int:
        """Count how often the code changes from step `first` to step `last`."""
        codes = (self.quantized / self.scales).round()[LANES.index(lane), first : last + 1]
        return int((codes.diff() != 0).sum())


def train_one_weight(weight: float, scale: float, target: float, rate: float, bits: int) -> tuple[Tensor, ...]:
    """Train by gradient descent on (x_hat - target)**2 / 2 in each lane.

    Returns:
        Weights, quantized weights and scales, `(3, STEPS + 1)` float64 each.
    """
    low, high = grid(bits)
    lanes = []
    for lane in LANES:
        w, s, rows = weight, scale, []
        for _ in range(STEPS + 1):
            steps = round(w / s)
            code = min(max(steps, low), high)
            rows.append((w, code * s, s))
            error, inside = code * s - target, code == steps
            slope = (code - w / s if inside else code) / math.sqrt(high)
            if lane != "true gradient" and inside:  # rounding has slope 0: with the true gradient nothing moves
                w -= rate * error
            if lane == "LSQ":
                s = max(s - rate * error * slope, SMALLEST_SCALE)
        lanes.append(rows)
    return torch.tensor(lanes, dtype=torch.float64).unbind(dim=2)


class QATExplorer(Explorer):
    """Explore how one weight of your own trains through rounding.

    Args:
        weight: where the weight starts: a number, or a tensor of one value.
        scale: the width of one step of the grid at the start, above 0.02 and at most 10.
        start: where controls start, by name, such as `rate=0.1`; a target is moved to the nearest twentieth of
            `scale`, up to two scales from zero.

    Controls:
        step: how many steps of training are shown, 0 to 60.
        target: the value that the loss pulls the quantized weight to, in the unit of `weight`: -2 to 2 times `scale`,
            in twentieths of it.
        rate: of the gradient descent: 0.02, 0.05, 0.1, 0.2 or 0.3.
        bits: 2 to 4, of a signed grid.

    Raises:
        TypeError: `weight` or `scale` is neither a number nor a tensor.
        ValueError: it is a tensor of none or several values; `scale` is not above 0.02 and at most 10; `weight` is more
            than 8 scales from zero; or a control cannot start there.
    """

    def __init__(self, weight: float | Tensor = 0.3, scale: float | Tensor = 0.5, **start: Any):
        self.weight, self.scale = _number(weight, "weight"), _number(scale, "scale")
        if not SMALLEST_SCALE < self.scale <= 10:
            raise ValueError(f"QATExplorer: scale must be above {SMALLEST_SCALE} and at most 10, got {self.scale:g}")
        if not abs(self.weight) <= 8 * self.scale:  # holds for NaN too
            raise ValueError(f"QATExplorer: weight must lie on a 4-bit grid, within 8 scales, got {self.weight:g}")
        targets = [round(i * self.scale / 20, 9) for i in range(-40, 41)]  # the page would move other numbers a little
        wanted = start.pop("target", 1.3 * self.scale)
        target = min(targets, key=lambda value: abs(value - wanted))
        written = {"target": [(f"{t:g}", t) for t in targets], "rate": [(f"{r:g}", r) for r in RATES]}
        controls = {
            "step": ipywidgets.IntSlider(0, 0, STEPS, description="Step"),
            "target": ipywidgets.SelectionSlider(options=written["target"], value=target, description="Target"),
            "rate": ipywidgets.SelectionSlider(options=written["rate"], value=0.2, description="Rate"),
            "bits": ipywidgets.IntSlider(3, 2, 4, description="Bits"),
        }
        controls["step"].add_class("slider-wide")
        super().__init__(controls, _figure(self.weight, self.scale), start)

    def compute(self, state: Any) -> QATResult:
        return QATResult(*train_one_weight(self.weight, self.scale, state.target, state.rate, state.bits))

    def say(self, state: Any, result: QATResult) -> str:
        parts = []
        for i, lane in enumerate(LANES):
            now = float(result.quantized[i, state.step])
            off, times = abs(now - state.target), counted(result.hops_between(lane, 0, state.step), "hop")
            parts.append(f"{lane}: the network sees {now:.3f}, {off:.3f} from the target, after {times}")
        return (
            f"After {counted(state.step, 'step')} towards {state.target:.2f} at {state.bits} bits. {'; '.join(parts)}, "
            f"with its scale at {float(result.scales[2, state.step]):.3f}."
        )

    def stops(self) -> Stops:
        targets = [value for _, value in self.controls["target"].options]
        return {"step": range(0, STEPS + 1, 4), "target": targets[::8], "rate": RATES, "bits": (2, 3, 4)}

    def draw(self, result: QATResult) -> None:
        (low, high), step = grid(self.state.bits), self.state.step
        for i in range(len(LANES)):
            lines, target, weight, quantized, now = self.figure.data[5 * i : 5 * i + 5]
            shown = slice(0, step + 1)
            lines.x, lines.y = _grid_lines(result.scales[i], low, high)
            target.x, target.y = torch.tensor([0, STEPS]).numpy(), torch.full((2,), self.state.target).numpy()
            weight.x = quantized.x = torch.arange(step + 1).numpy()
            weight.y, quantized.y = result.weights[i, shown].numpy(), result.quantized[i, shown].numpy()
            now.x, now.y = [step], [float(result.quantized[i, step])]


def _number(given: float | Tensor, name: str) -> float:
    """What an argument holds, if that is one number."""
    if not isinstance(given, (Real, Tensor)):
        raise TypeError(f"QATExplorer: {name} must be a number or a tensor of one, got {type(given).__name__}")
    if isinstance(given, Tensor) and given.numel() != 1:
        raise ValueError(f"QATExplorer: {name} must be one value, got a tensor of shape {tuple(given.shape)}")
    return float(torch.as_tensor(given).detach())


def _grid_lines(scales: Tensor, low: int, high: int) -> tuple:
    """One broken line for each code: straight where the scale stays, else bent with it."""
    places = torch.arange(0, STEPS + 1, 6 if scales[0] != scales[-1] else STEPS)
    codes = torch.arange(low, high + 1)[:, None]
    gap = torch.full((len(codes), 1), torch.nan, dtype=torch.float64)
    x = torch.cat([places.expand(len(codes), -1), gap], dim=1)
    y = torch.cat([codes * scales[places], gap], dim=1)
    return x.flatten().numpy(), y.flatten().numpy()


def _figure(weight: float, scale: float) -> go.Figure:
    """Draw what no control changes, and leave empty traces for what does."""
    titles = ("True gradient: never moves", "STE: hops", "LSQ: the grid moves too")
    figure = look.panels(1, 3, titles, shared_yaxes=True, horizontal_spacing=0.03)
    for column, own in enumerate(look.LOOKS[:3], start=1):
        for name, line in (
            ("grid", {"color": look.SILVER, "width": 1}),
            ("target", {"color": look.INK, "dash": "dot", "width": 2}),
            ("weight, as the optimizer holds it", {"color": look.PURPLE, "dash": "dash", "width": 2}),
            ("weight, as the network sees it", {"color": own.colour, "width": 2.5, "shape": "hv"}),
        ):
            hover = "skip" if name == "grid" else None
            place = {"row": 1, "col": column, "showlegend": column == 2}
            figure.add_scatter(mode="lines", name=name, line=line, hoverinfo=hover, **place)
        figure.add_scatter(mode="markers", name="now", marker=own.marker(12), showlegend=False, row=1, col=column)
    figure.update_layout(height=430, margin_t=100, legend={"y": 1.13})
    figure.update_xaxes(range=[-1, STEPS + 2], title="step of training", showgrid=False, zeroline=False)
    ends = [min(-2.3 * scale, weight - 0.3 * scale), max(2.3 * scale, weight + 0.3 * scale)]
    figure.update_yaxes(range=ends, showgrid=False, zeroline=False)
    return figure.update_yaxes(title="value of the weight", row=1, col=1)
