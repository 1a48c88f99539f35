"""DynamicRangeExplorer: one row of a batch, and what a static, a per-tensor and a per-row range make of it."""

import math
from dataclasses import dataclass
from typing import Any

from qtutor.affine import QParams, choose_qparams, fake_quantize, grid, sqnr
from qtutor.affine.checks import check_finite, check_floats
from qtutor.explorers.explorer import Explorer, Stops
from qtutor.plots import look
from qtutor.words import in_decibels, in_digits

import ipywidgets
import plotly.graph_objects as go
import torch
from torch import Tensor

SCHEMES = ("static", "per tensor", "per row")
"""Where a range may come from: calibration, the whole batch as it comes, or each row of it."""

FACTORS = (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
MOST_ROWS = 64

_DRAWN = 128  # the most values of the row that are drawn: of more, every second, third, ... by size
_LOOKS = (
    look.Look(look.GREEN, "dot", "square-open"),
    look.Look(look.VERMILLION, "solid", "x"),
    look.Look(look.BLUE, "dash", "circle-open"),
)


@dataclass(frozen=True, eq=False)
class DynamicRangeResult:
    """What a state does to your row.

    Attributes:
        values: `(features,)` your row, shifted.
        rows: `(2, N)` lowest and highest value of each row of the batch.
        stored: `(3, features)` what each of `SCHEMES` keeps of your row.
        ranges: lowest and highest value with a code, by scheme.
        clipped: how many values of your row lie outside, by scheme.
        sqnr: of your row in dB, by scheme.
        history: SQNR of your row in dB, per tensor, with the neighbour times each of `FACTORS`.
        moved: by how much the neighbour's factor alone moves a value of your row at most, by scheme.
    """

    values: Tensor
    rows: Tensor
    stored: Tensor
    ranges: dict[str, tuple[float, float]]
    clipped: dict[str, int]
    sqnr: dict[str, float]
    history: Tensor
    moved: dict[str, float]


class DynamicRangeExplorer(Explorer):
    """Explore who else is in the batch: your row of it under a static, a per-tensor and a per-row range.

    Args:
        x: finite, `(..., features)`, such as what a linear layer receives; each place before the last axis is a
            row, 2 to 64 in all. By default rows of random values. The static range is theirs as they are given.
        start: where controls start, by name, such as `factor=3`.

    Controls:
        factor: what the neighbour is multiplied by: 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70 or 100.
        shift: what is added to the whole batch, -2 to 2, in units of the largest magnitude in `x`.
        bits: 2 to 8.
        row: your row of the batch, from 0; its neighbour is the next one, of the last row the first.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: it is empty, holds NaN or infinity, or has too few or too many rows; or a control cannot start
            there.
    """

    def __init__(self, x: Tensor | None = None, **start: Any):
        x = random_rows() if x is None else x
        check_floats(x, "DynamicRangeExplorer")
        check_finite(x.to(torch.float32), "DynamicRangeExplorer")
        rows = x.detach().to(torch.float32, copy=True).reshape(-1, x.shape[-1] if x.dim() else 1)
        if not (4 * FACTORS[-1] * rows).isfinite().all():
            raise ValueError("DynamicRangeExplorer: values are too large to turn up or to shift")
        if not 2 <= len(rows) <= MOST_ROWS:
            raise ValueError(
                f"DynamicRangeExplorer needs 2 to {MOST_ROWS} rows, got {len(rows)} of shape {tuple(x.shape)}"
            )
        self._rows = rows  # (N, features)
        self._ends = torch.stack(rows.aminmax(dim=1))  # (2, N) lowest and highest value of each row
        self._calibrated = torch.stack(rows.aminmax())  # (2,) the ends of the static range
        self._unit = float(self._calibrated.abs().max())  # what a shift of 1 adds
        factors = [(f"x {f:g}", f) for f in FACTORS]
        controls = {
            "factor": ipywidgets.SelectionSlider(options=factors, description="Neighbour"),
            "shift": ipywidgets.FloatSlider(0, min=-2, max=2, step=0.05, description="Shift"),
            "bits": ipywidgets.IntSlider(8, 2, 8, description="Bits"),
            "row": ipywidgets.IntSlider(0, 0, len(rows) - 1, description="Your row"),
        }
        super().__init__(controls, _figure(len(rows)), start)

    def _qparams(self, state: Any) -> tuple[Tensor, QParams]:
        """Choose ranges with the neighbour times each of `FACTORS`.

        Returns:
            The ends of all rows, `(2, N, factors)`, and `(3, factors, 1)` qparams, for each of `SCHEMES`.
        """
        factors = torch.tensor(FACTORS)
        ends = self._ends[:, :, None].expand(-1, -1, len(factors)).clone()
        ends[:, _neighbour(state.row, len(self._rows))] *= factors
        ends += state.shift * self._unit
        static = self._calibrated[:, None].expand(-1, len(factors))
        batch = torch.stack([ends[0].amin(dim=0), ends[1].amax(dim=0)])
        low, high = torch.stack([static, batch, ends[:, state.row]], dim=1)  # (3, factors) each
        quant_min, quant_max = grid(state.bits)
        chosen = choose_qparams(low.clamp(max=0), high.clamp(min=0), quant_min=quant_min, quant_max=quant_max)
        return ends, QParams(chosen.scale[..., None], chosen.zero_point[..., None], quant_min, quant_max)

    def compute(self, state: Any) -> DynamicRangeResult:
        values = self._rows[state.row] + state.shift * self._unit
        ends, qparams = self._qparams(state)
        every = fake_quantize(values.expand(len(SCHEMES), len(FACTORS), -1), qparams)  # (3, factors, features)
        now = FACTORS.index(state.factor)
        stored, low, high = every[:, now], qparams.low[:, now, 0], qparams.high[:, now, 0]
        half = qparams.scale[:, now] / 2 * (1 + 1e-6)  # what rounds to the last code is not clipped
        outside = (values < low[:, None] - half) | (values > high[:, None] + half)
        quality = sqnr(values.expand(len(FACTORS), -1), every[1], axis=0)

        def name(numbers: Tensor) -> dict:
            return dict(zip(SCHEMES, numbers.tolist(), strict=True))

        return DynamicRangeResult(
            values=values,
            rows=ends[:, :, now],
            stored=stored,
            ranges=dict(zip(SCHEMES, zip(low.tolist(), high.tolist(), strict=True), strict=True)),
            clipped=name(outside.sum(dim=1)),
            sqnr={scheme: sqnr(values, kept) for scheme, kept in zip(SCHEMES, stored, strict=True)},
            history=quality,
            moved=name((stored - every[:, 0]).abs().amax(dim=1)),
        )

    def say(self, state: Any, result: DynamicRangeResult) -> str:
        count, rows = len(result.values), len(self._rows)
        shifted = f"the batch shifted by {in_digits(state.shift * self._unit)}" if state.shift else "nothing shifted"
        parts = []
        for scheme in SCHEMES:
            low, high = result.ranges[scheme]
            quality = f"SQNR {in_decibels(result.sqnr[scheme])}, {result.clipped[scheme]} of {count} values clipped"
            parts.append(f"{scheme} {in_digits(low)} to {in_digits(high)}, {quality}")
        moved = ", ".join(f"{scheme} {in_digits(result.moved[scheme], 2)}" for scheme in SCHEMES)
        return (
            f"Row {state.row} of {rows}, its neighbour times {state.factor:g}, {shifted}, {state.bits} bits. "
            f"Ranges, and what your row keeps in them: {'; '.join(parts)}. "
            f"The neighbour's factor alone moves a value of your row by up to: {moved}."
        )

    def stops(self) -> Stops:
        rows = range(0, len(self._rows), math.ceil(len(self._rows) / 3))
        return {"factor": FACTORS, "shift": (-1.5, -0.5, 0.0, 0.5, 1.5), "bits": (2, 4, 6, 8), "row": rows}

    def draw(self, result: DynamicRangeResult) -> None:
        state, count = self.state, len(self._rows)
        others, neighbour, own, *rest = self.figure.data
        bars, points, lines, marks = rest[:3], rest[3:6], rest[6:9], rest[9:]
        places = torch.arange(count)
        next_row = _neighbour(state.row, count)
        for trace, shown in (
            (others, (places != state.row) & (places != next_row)),
            (neighbour, places == next_row),
            (own, places == state.row),
        ):
            trace.x, trace.y = _bars(result.rows[:, shown], places[shown])
        order = result.values.argsort()
        order = order[:: math.ceil(len(order) / _DRAWN)]
        # Both axes of every trace, even those that stay: a page loses an axis that the first update leaves out.
        for i, scheme in enumerate(SCHEMES):
            qualities = result.history.tolist() if scheme == "per tensor" else [result.sqnr[scheme]] * len(FACTORS)
            level = [None if math.isinf(quality) else quality for quality in qualities]
            bars[i].x, bars[i].y = list(result.ranges[scheme]), [count + 2.5 - i] * 2
            points[i].x, points[i].y = result.values[order].numpy(), result.stored[i, order].numpy()
            lines[i].x, lines[i].y = list(FACTORS), level
            marks[i].x, marks[i].y = [state.factor], [level[FACTORS.index(state.factor)]]


def _neighbour(row: int, rows: int) -> int:
    return (row + 1) % rows


def _bars(ends: Tensor, places: Tensor) -> tuple[list, list]:
    """Line segments from low to high, with gaps between them."""
    x = [v for low, high in ends.T.tolist() for v in (low, high, None)]
    return x, [v for place in places.tolist() for v in (place, place, None)]


def _figure(rows: int) -> go.Figure:
    """Draw what no control changes, and leave empty traces for what does."""
    titles = ("Who is in the batch", "Your row: value and what is stored", "SQNR of your row")
    figure = look.panels(1, 3, titles, horizontal_spacing=0.085, column_widths=[0.36, 0.32, 0.32])
    width = max(3, min(9, 90 // rows))
    for name, colour in (("other rows", look.SILVER), ("neighbour", look.PURPLE), ("your row", look.INK)):
        line = {"color": colour, "width": width}
        figure.add_scatter(name=name, mode="lines", line=line, hoverinfo="skip", row=1, col=1)
    looks = dict(zip(SCHEMES, _LOOKS, strict=True))
    for scheme, own in looks.items():
        marker = {"symbol": "line-ns-open", "size": 14, "color": own.colour, "line": {"width": 3}}
        drawn = {"mode": "lines+markers", "line": {"color": own.colour, "width": 3}, "marker": marker}
        figure.add_scatter(name=f"range, {scheme}", showlegend=False, **drawn, row=1, col=1)
    for scheme, own in looks.items():
        figure.add_scatter(name=scheme, legendgroup=scheme, mode="markers", marker=own.marker(7), row=1, col=2)
    for scheme, own in looks.items():
        place = {"legendgroup": scheme, "showlegend": False, "row": 1, "col": 3}
        figure.add_scatter(name=scheme, mode="lines", line=own.line(), **place)
    for scheme, own in looks.items():
        place = {"legendgroup": scheme, "showlegend": False, "row": 1, "col": 3}
        marker = {**own.marker(12), "line": {"width": 2}}
        figure.add_scatter(name=f"{scheme}, now", mode="markers", marker=marker, **place)
    figure.update_layout(height=430, margin={"t": 92, "l": 84}, legend={"y": 1.14})
    numbers, above = range(0, rows, math.ceil(rows / 16)), [rows + 2.5, rows + 1.5, rows + 0.5]
    ticks = {"tickvals": [*numbers, *above], "ticktext": [*(f"row {i}" for i in numbers), *SCHEMES]}
    figure.update_yaxes(range=[-0.7, rows + 3.2], showgrid=False, zeroline=False, **ticks, row=1, col=1)
    figure.update_xaxes(title="values: rows below, ranges above", row=1, col=1)
    figure.update_xaxes(title="true value", row=1, col=2)
    figure.update_yaxes(title="stored value", row=1, col=2)
    axis = {"type": "log", "range": [-0.1, 2.1], **look.ticks([1, 3, 10, 30, 100], "x {}")}
    figure.update_xaxes(title="neighbour (log scale)", **axis, row=1, col=3)
    return figure.update_yaxes(title="dB", row=1, col=3)


def random_rows(rows: int = 8, features: int = 64) -> Tensor:
    """Return rows of normal values, each with a spread of its own; always the same."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(rows, 1, generator=generator) + 0.5
    return torch.randn(rows, features, generator=generator) * spread
