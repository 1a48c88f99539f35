"""AffineExplorer: bits, symmetry, sign and clip range of the affine map, on any tensor."""

import math
from dataclasses import dataclass
from typing import Any

from qtutor.affine import (
    EPS,
    QParams,
    QuantizationError,
    choose_qparams,
    dequantize,
    grid,
    measure_error,
    quantize,
)
from qtutor.affine.checks import check_finite, check_floats
from qtutor.explorers.explorer import EXACT_UP_TO, Explorer, Stops, button, slider_range
from qtutor.plots import look
from qtutor.words import counted, in_digits, in_percent

import ipywidgets
import plotly.graph_objects as go
import torch
from torch import Tensor

_BARS = 128  # of the histogram that is drawn
_CELLS = 256  # the most cells drawn: finer grids are drawn several codes to a cell


@dataclass(frozen=True, eq=False)
class AffineResult:
    """What a state does to a tensor.

    Attributes:
        qparams: scale, zero point and grid.
        error: rounding and clipping error of the whole tensor.
        shares: `(cells,)` share of all values in each cell of the grid.
        cell_edges: `(cells + 1,)` edges of the cells on the real axis.
        code: the code of the followed value.
        restored: the real value that this code stands for.
    """

    qparams: QParams
    error: QuantizationError
    shares: Tensor
    cell_edges: Tensor
    code: int
    restored: float


class AffineExplorer(Explorer):
    """Explore the affine map on a tensor of your own.

    Args:
        x: any finite floating-point tensor, of any shape, that holds a value. Of more than 1,000,000 values, evenly
            spread ones and the two extremes are explored.
        start: where controls start, by name, such as `bits=4`.

    Controls:
        bits: 2 to 16.
        clip: the range to represent, `(low, high)`, in the unit of `x`: at first all of `x` and zero; either end may go
            an eighth of that range further out.
        value: one real value to follow through the map, in the unit of `x` and as far as `clip` may go.
        symmetric: True or False: whether zero sits in the middle of the grid.
        signed: True or False: whether codes may be negative.

    Attributes:
        values: `(n,)` float32, what is explored of `x`.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: `x` is empty or holds NaN or infinity, or a control cannot start there.
    """

    def __init__(self, x: Tensor, **start: Any):
        check_floats(x, "AffineExplorer")
        x = x.detach().to(torch.float32, copy=True)
        check_finite(x, "AffineExplorer")
        self._given, self.values = x.numel(), x.flatten()
        if self._given > EXACT_UP_TO:
            spread = self.values[:: math.ceil(self._given / EXACT_UP_TO)]
            self.values = torch.cat([spread, *(end[None] for end in self.values.aminmax())])
        low, high = min(float(self.values.min()), 0.0), max(float(self.values.max()), 0.0)
        if low == high:
            low, high = -1.0, 1.0
        low, high, step = slider_range(low, high)
        span = high - low
        self._axis = slider_range(low - span / 8, high + span / 8, round(span * 1.25 / step))[:2]
        followed = low + round(0.7 * span / step) * step
        slider = {
            "min": self._axis[0],
            "max": self._axis[1],
            "step": step,
            "readout_format": ".3r" if 1e-3 <= span < 1e9 else ".3g",
        }
        controls = {
            "bits": ipywidgets.IntSlider(4, 2, 16, description="Bits"),
            "clip": ipywidgets.FloatRangeSlider(value=(low, high), description="Clip range", **slider),
            "value": ipywidgets.FloatSlider(followed, description="Follow x", **slider),
            "symmetric": ipywidgets.Checkbox(False, description="Symmetric", indent=False),
            "signed": ipywidgets.Checkbox(True, description="Signed", indent=False),
        }
        fit = button("Fit to data", lambda: self.set(clip=(low, high)))
        controls["clip"].add_class("slider-wide")
        super().__init__(controls, _figure(self.values, self._axis), start, (fit,))

    def compute(self, state: Any) -> AffineResult:
        quant_min, quant_max = grid(state.bits, signed=state.signed)
        qparams = choose_qparams(*state.clip, quant_min=quant_min, quant_max=quant_max, symmetric=state.symmetric)
        scale, zero_point = float(qparams.scale), int(qparams.zero_point)
        codes = quant_max - quant_min + 1
        group = max(1, codes // _CELLS)
        counts = torch.bincount(quantize(self.values, qparams).int() - quant_min, minlength=codes).double()
        shares = counts.reshape(-1, group).sum(1) / len(self.values)
        first = (quant_min - zero_point - 0.5) * scale
        cell_edges = first + torch.arange(codes // group + 1, dtype=torch.float64) * (group * scale)

        code = quantize(torch.tensor(state.value), qparams)
        restored = float(dequantize(code, qparams))
        error = measure_error(self.values, qparams)
        return AffineResult(qparams, error, shares, cell_edges, int(code), restored)

    def say(self, state: Any, result: AffineResult) -> str:
        error, qparams = result.error, result.qparams
        if error.signal == 0:
            quality = "All values are zero in float32, and zero is exact."
        elif error.total == 0:
            quality = "Every value lands on the grid, so nothing is lost."
        else:
            share = error.clipping / error.total
            clipped = f"{in_percent(error.clipped / error.count)} of the values" if error.clipped else "nothing"
            quality = (
                f"SQNR {error.sqnr:.1f} dB; rounding makes {in_percent(1 - share)} of the error and clipping "
                f"{in_percent(share)} ({clipped} clipped)."
            )
        scale = float(qparams.scale)
        floor = ", the smallest there is" if scale == EPS else ""
        measured = counted(self._given, "value")
        if error.count < self._given:
            measured = f"{error.count:,} of {measured}"
        return (
            f"{state.bits} bits, codes {qparams.quant_min} to {qparams.quant_max}: scale {in_digits(scale, 4)}{floor}, "
            f"zero point {int(qparams.zero_point)}. {quality} The value {in_digits(state.value, 4)} gets code "
            f"{result.code}, which stands for {in_digits(result.restored, 4)}. Error measured on {measured}."
        )

    def stops(self) -> Stops:
        slider = self.controls["clip"]
        low, high = slider.value

        def sevenths(end: float, outer: float) -> list[float]:
            found = [end * part / 7 for part in range(1, 8)] + [outer]
            return [round(value / slider.step) * slider.step for value in found]

        ends = sevenths(low, slider.min), sevenths(high, slider.max)
        return {"bits": range(2, 9), "clip": ends, "symmetric": (False, True)}

    def draw(self, result: AffineResult) -> None:
        staircase, follow, quantized, parts = (self.figure.data[i] for i in (1, 2, 4, 5))
        edges, left, right = result.cell_edges, *self._axis
        centres = (edges[:-1] + edges[1:]) / 2
        staircase.x = torch.cat(
            [edges.new_tensor([min(left, edges[0])]), edges[1:-1], edges.new_tensor([max(right, edges[-1])])]
        ).numpy()
        staircase.y = torch.cat([centres, centres[-1:]]).numpy()
        value = self.state.value
        follow.x, follow.y = [value, value, left], [left, result.restored, result.restored]
        follow.text = ["", f"q = {result.code} ", ""]
        heights = result.shares / edges.diff()
        quantized.x, quantized.y = edges.numpy(), torch.cat([heights, heights[-1:]]).numpy()
        signal = result.error.signal or 1.0
        shares = [part / signal for part in (result.error.rounding, result.error.clipping)]
        parts.y, parts.text = [100 * share for share in shares], [in_percent(share) for share in shares]


def _figure(values: Tensor, axis: tuple[float, float]) -> go.Figure:
    """Draw what no control changes, and leave empty traces for what does."""
    titles = ("x̂ against x", "Values before and after", "Error by cause")
    figure = look.panels(1, 3, titles, column_widths=[0.36, 0.42, 0.22], horizontal_spacing=0.085)
    low, high = float(values.min()), float(values.max())
    edges = torch.linspace(low, high, _BARS + 1, dtype=torch.float64)
    counts = torch.histc(values[values != 0].double(), _BARS, low, high)  # zeros after a ReLU would dwarf the others
    heights = (counts / len(values) / edges.diff()).nan_to_num(posinf=0.0)
    before = torch.cat([heights, heights[-1:]])

    def lines(column: int, name: str, colour: str, x=(), y=(), **more) -> None:
        figure.add_scatter(x=x, y=y, name=name, line_color=colour, row=1, col=column, **{"mode": "lines", **more})

    lines(1, "no error", look.GREY, axis, axis, line_dash="dot", line_width=1)
    lines(1, "quantized", look.VERMILLION, line_shape="hv")
    points = {"mode": "lines+markers+text", "textposition": "top left", "marker_size": [0, 10, 0]}
    lines(1, "followed value", look.INK, line_dash="dash", line_width=1, **points)
    lines(2, "before", look.BLUE, edges.numpy(), before.numpy(), line_shape="hv", line_width=1, fill="tozeroy")
    lines(2, "after", look.VERMILLION, line_shape="hv", line_width=2)
    bars = {"marker_color": [look.GREEN, look.PURPLE], "marker_pattern_shape": ["", "/"], "textposition": "outside"}
    figure.add_bar(x=[0, 1], name="error", cliponaxis=False, row=1, col=3, **bars)
    figure.update_layout(showlegend=False, bargap=0.35, margin_t=48)
    figure.update_xaxes(range=axis, title="x", row=1, col=1)
    figure.update_yaxes(range=axis, title="x̂", row=1, col=1)
    figure.update_xaxes(range=axis, title="value (filled: before, line: after)", row=1, col=2)
    figure.update_yaxes(rangemode="tozero", title="density", row=1, col=2)
    figure.update_xaxes(tickvals=[0, 1], ticktext=["rounding", "clipping"], row=1, col=3)
    return figure.update_yaxes(rangemode="tozero", title="% of the signal's power", row=1, col=3)
