"""FourBitExplorer: a layer in four bits and fewer: its grid, the error that GPTQ hands on, and what a bit buys."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qtutor.affine import decibels, sqnr
from qtutor.explorers.explorer import Explorer, Stops, toggles
from qtutor.explorers.low_bits import (
    INTEGERS,
    METHODS,
    WINDOW,
    Choice,
    Cost,
    FourBitData,
    FourBitResult,
    random_layer,
)
from qtutor.lowbit import hessian
from qtutor.lowbit.checks import finite
from qtutor.plots import look
from qtutor.plots.comparison import beaten
from qtutor.words import in_decibels

import ipywidgets
import plotly.graph_objects as go
import torch
from torch import Tensor

MOST_ROWS, MOST_INPUTS = 32, 256
"""What is explored of a larger layer: its first rows, and their first inputs."""


class FourBitExplorer(Explorer):
    """Explore a linear layer in four bits and fewer, your own or a random one.

    Args:
        weight: `(out, in)`; of a larger one the first 32 rows and 256 inputs are explored.
        inputs: `(..., in)` what the layer reads.
        kl: what ways to round cost the whole model, by `Choice`; without it the frontier shows this layer's outputs.
        start: where controls start, by name, such as `format="NF4"`.

    Controls:
        format: "INT2", "INT3", "INT4", "NF4", "E2M1", "MXFP4", "NVFP4" or "Q4_0", where its blocks divide the inputs.
        group: of integers, how many neighbouring inputs share a scale: 128, 64, 32 or 16, where that divides the inputs
            and is less; 0 for the whole row.
        method: "rounding" or "GPTQ".
        symmetric: True or False: of integers, whether zero sits in the middle of each grid.
        column: how many columns are rounded, from 0 to all: where the picture of the row stands.

    Attributes:
        data: what is explored of the layer, and what was tried on it.

    Raises:
        TypeError: a tensor is not a dense floating-point one.
        ValueError: shapes do not fit, a value is not finite, or a control cannot start there.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        inputs: Tensor | None = None,
        *,
        kl: Mapping[Choice, Cost] | None = None,
        **start: Any,
    ):
        if (weight is None) != (inputs is None):
            raise ValueError("FourBitExplorer needs both a weight and what its layer reads, or neither")
        if weight is None or inputs is None:
            weight, inputs = random_layer()
        for name, given in (("weight", weight), ("inputs", inputs)):
            finite(given, name, "FourBitExplorer")
        if weight.dim() != 2 or weight.shape[1] != inputs.shape[-1]:
            raise ValueError(
                f"FourBitExplorer needs a weight (out, in) and inputs (..., in), got shapes {tuple(weight.shape)} and "
                f"{tuple(inputs.shape)}"
            )
        part = weight.detach()[:MOST_ROWS, :MOST_INPUTS].to(torch.float32, copy=True)
        curvature = hessian(inputs.detach()[..., :MOST_INPUTS])
        self.data = FourBitData(part, tuple(weight.shape), curvature, dict(kl or {}))
        groups = [("row" if size == 0 else str(size), size) for size in self.data.groups]
        controls = {
            "format": toggles("Format", self.data.formats, "5.8em"),
            "group": ipywidgets.SelectionSlider(options=groups, description="Group"),
            "method": toggles("By", METHODS, "6.5em"),
            "symmetric": ipywidgets.Checkbox(False, description="Symmetric", indent=False),
            "column": ipywidgets.IntSlider(min(WINDOW, self.data.inputs), 0, self.data.inputs, description="Columns"),
        }
        super().__init__(controls, _figure(self.data), {"format": "INT4", "group": 0} | start)

    def compute(self, state: Any) -> FourBitResult:
        data, choice, count = self.data, _choice(state), state.column
        tried = data.attempt(choice)
        steps = tried.steps
        first = min(max(count - 1, 0) // WINDOW * WINDOW, max(0, data.inputs - WINDOW))
        window = range(first, min(first + WINDOW, data.inputs))
        moved, last = torch.zeros(data.inputs), torch.zeros(data.inputs)
        if count and choice.method == "GPTQ":
            moved[count:] = -(steps.error[0, :count] @ steps.factor[:count, count:]).float()
            last[count:] = -(steps.error[0, count - 1] * steps.factor[count - 1, count:]).float()
        done = torch.arange(data.inputs) < count
        return FourBitResult(
            bits_per_weight=tried.form.bits_per_weight,
            loss=tried.loss,
            weight_sqnr=sqnr(data.weight, steps.rounded),
            kl=data.kl.get(choice),
            window=window,
            levels=data.levels(choice, window),
            exact=data.weight[0, window.start : window.stop],
            become=torch.where(done, steps.met[0], data.weight[0] + moved)[window.start : window.stop],
            rounded=torch.where(done, steps.rounded[0], math.nan)[window.start : window.stop],
            moved=moved,
            last=last,
        )

    def say(self, state: Any, result: FourBitResult) -> str:
        data, choice, count = self.data, _choice(state), state.column
        kept = f"keep {in_decibels(result.output_sqnr)}, its weights {in_decibels(result.weight_sqnr)}"
        if choice.method == "GPTQ":
            plain = data.attempt(replace(choice, method="rounding"))
            outputs, weights = decibels(1.0, plain.loss), sqnr(data.weight, plain.steps.rounded)
            kept += f"; rounded, {in_decibels(outputs)} and {in_decibels(weights)}"
        whole = ""
        if result.kl is not None:
            mean, low, high = result.kl
            whole = f" KL of the whole model: {mean:.3g} bits ({low:.3g} to {high:.3g})."
        elif data.kl:
            whole = " The KL of the whole model was not measured for this."
        fed = f" {count} of {data.inputs} columns are rounded"
        if not count:
            fed = " No column is rounded yet."
        elif choice.method == "rounding":
            fed += "; no error is handed on."
        elif count == data.inputs:
            fed += "; no column is left to mend an error."
        else:
            most = int(result.last.abs().argmax())
            steps = data.attempt(choice).steps
            error = float((steps.met - steps.rounded)[0, count - 1])
            by = float(result.last[most])
            fed += f"; the last lost {error:+.3g}, and most of it moves column {most}, by {by:+.2g}."
        (rows, inputs), given = data.weight.shape, data.given
        part = f" Figures of the layer are of {rows} of its {given[0]} rows" if (rows, inputs) != given else ""
        part += f" and {inputs} of its {given[1]} inputs" if inputs != given[1] else ""
        return (
            f"{choice}: {result.bits_per_weight:.2f} bits a weight. The layer's outputs {kept}.{whole}{fed}{part}"
            f"{'.' if part else ''}"
        )

    def stops(self) -> Stops:
        inputs = self.data.inputs
        return {
            "format": self.data.formats,
            "group": self.data.groups,
            "method": METHODS,
            "symmetric": (False, True),
            "column": sorted({0, 1, 8, min(WINDOW, inputs), inputs // 2, inputs}),
        }

    def draw(self, result: FourBitResult) -> None:
        state, choice = self.state, _choice(self.state)
        floats = state.format not in INTEGERS
        self.controls["group"].disabled = self.controls["symmetric"].disabled = floats
        grid, exact, become, rounded, moved, last, here = (self.figure.data[i] for i in range(7))
        columns = list(result.window)
        grid.x, grid.y = _segments(columns, result.levels)
        exact.x = become.x = rounded.x = columns
        exact.y, rounded.y = result.exact.numpy(), result.rounded.numpy()
        become.y = result.become.numpy() if choice.method == "GPTQ" else [None] * len(columns)
        moved.y, last.y = result.moved.numpy(), result.last.numpy()
        cost = result.kl[0] if result.kl else None if self.data.kl else result.loss
        here.x, here.y = [result.bits_per_weight], [cost]
        self.figure.layout.xaxis.range = [columns[0] - 1, columns[-1] + 1]


def _choice(state: Any) -> Choice:
    """What is chosen, without what a format of floating-point numbers has no say in."""
    if state.format in INTEGERS:
        return Choice(state.format, state.group, state.method, state.symmetric)
    return Choice(state.format, 0, state.method, False)


def _segments(columns: list[int], levels: Tensor) -> tuple[list, list]:
    """A short line for each value of each run of columns with the same values."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    first = 0
    for last in range(1, len(columns) + 1):
        if last < len(columns) and torch.equal(levels[last], levels[first]):
            continue
        for value in levels[first].unique().tolist():
            xs += [columns[first] - 0.5, columns[last - 1] + 0.5, None]
            ys += [value, value, None]
        first = last
    return xs, ys


def _figure(data: FourBitData) -> go.Figure:
    """Draw what no control changes: the frontier; and leave the other traces open."""
    costs = data.frontier()
    what = "KL of the model" if data.kl else "Noise of the outputs"
    titles = ("A row and its grid", "Moved by errors so far", f"{what} (log scale)")
    figure = look.panels(1, 3, titles, horizontal_spacing=0.09, column_widths=[0.4, 0.3, 0.3])
    figure.add_scatter(mode="lines", line={"color": look.PALE, "width": 1}, name="grid", row=1, col=1)
    for name, colour, symbol, size in (
        ("weight", look.INK, "circle-open", 8),
        ("what it has become", look.VERMILLION, "x-thin-open", 7),
        ("rounded", look.BLUE, "square", 6),
    ):
        marker = {"color": colour, "symbol": symbol, "size": size}
        figure.add_scatter(mode="markers", name=name, marker=marker, row=1, col=1)
    columns = list(range(data.inputs))
    figure.add_bar(x=columns, name="by all errors", marker_color=look.SKY, marker_line_width=0, row=1, col=2)
    line = {"color": look.VERMILLION, "width": 1.5}
    figure.add_scatter(x=columns, mode="lines", line=line, name="by the last error", row=1, col=2)
    marker = {"color": look.VERMILLION, "symbol": "circle-open", "size": 15, "line": {"width": 3}}
    figure.add_scatter(mode="markers", name="here", marker=marker, cliponaxis=False, row=1, col=3)
    for method, series in zip(METHODS, (look.LOOKS[1], look.LOOKS[2]), strict=True):
        chosen = {choice: cost for choice, cost in costs.items() if choice.method == method}
        place = {"x": [bits for bits, _ in chosen.values()], "y": [cost for _, cost in chosen.values()]}
        drawn = {"text": [str(choice) for choice in chosen], "mode": "markers", "marker": series.marker(6)}
        figure.add_scatter(name=method, **place, **drawn, row=1, col=3)
    points = list(costs.values())
    worse = beaten((bits for bits, _ in points), (-cost for _, cost in points))
    best = sorted({point for point, left_out in zip(points, worse, strict=True) if not left_out})
    place = {"x": [bits for bits, _ in best], "y": [cost for _, cost in best]}
    line = {"color": look.GREY, "dash": "dot", "width": 1.5}
    figure.add_scatter(mode="lines", line=line, name="frontier", **place, row=1, col=3)
    figure.update_layout(height=440, margin={"t": 104, "r": 40}, legend={"y": 1.16}, bargap=0)
    figure.update_xaxes(title="column", row=1, col=1)
    figure.update_yaxes(title="weight", row=1, col=1)
    figure.update_xaxes(title="column", row=1, col=2)
    figure.update_xaxes(title="bits a weight, scales included", row=1, col=3)
    unit = "bits" if data.kl else "noise over signal"
    return figure.update_yaxes(type="log", title=unit, **look.ticks(look.ONE_TWO_FIVE), row=1, col=3)
