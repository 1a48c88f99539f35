"""ObserverExplorer: a stream of batches with one hot value, and what five observers make of it."""

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qtutor.affine import QParams, choose_qparams, decibels, grid
from qtutor.explorers.dynamic_range import FACTORS, random_rows
from qtutor.explorers.explorer import Explorer, Stops
from qtutor.observers import (
    BINS,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PercentileObserver,
    StreamingHistogram,
    squared_error,
)
from qtutor.plots import look
from qtutor.words import in_decibels, in_digits

import ipywidgets
import plotly.graph_objects as go
import torch
from torch import Tensor

OBSERVERS = ("min-max", "moving average", "percentile", "squared error", "entropy")
"""The observers that run side by side, in the order of every tensor of a result."""

MOST_BATCHES = 32


@dataclass(frozen=True, eq=False)
class ObserverResult:
    """What the observers make of a stream.

    Attributes:
        qparams: of `(5, N)` ranges, for each of `OBSERVERS` after 1, 2, ... N batches.
        history: `(5, N)` SQNR in dB of the whole clean stream under each of them.
        ranges: lowest and highest value with a code, by observer, after the batches seen.
        sqnr: SQNR in dB, by observer, after the batches seen.
    """

    qparams: QParams
    history: Tensor
    ranges: dict[str, tuple[float, float]]
    sqnr: dict[str, float]


class Stream:
    """A stream made ready for many hot values: one histogram for the first batch, the first two, ... all of them.

    Args:
        batches: at least one floating-point tensor.
    """

    def __init__(self, batches: Sequence[Tensor]):
        stream, after = StreamingHistogram(1, BINS), []
        ends, self.signal = [], 0.0
        for number, batch in enumerate(batches, start=1):
            observer = MinMaxObserver()
            try:
                observer.observe(batch)
            except (TypeError, ValueError) as error:
                raise type(error)(f"ObserverExplorer, batch {number}: {error}") from None
            ends.append(torch.stack(observer.range()))
            row = batch.detach().to(torch.float32).reshape(1, -1)
            stream.add(row, *ends[-1][:, None])
            after.append(copy.deepcopy(stream))
            self.signal += float(torch.linalg.vector_norm(row, dtype=torch.float64) ** 2)
        self.ends = torch.stack(ends, dim=1)  # (2, N)
        self.largest = float(self.ends.view(-1)[self.ends.abs().argmax()])  # with its sign
        self.squared_error = squared_error(stream)
        self.after = StreamingHistogram.cat(after)  # one row for each number of batches
        self._searched = functools.cache(functools.partial(_search, self.after))  # in the clean stream, by bits
        self.judge = functools.cache(self.judge)

    def __len__(self) -> int:
        return self.ends.shape[1]

    def judge(self, strength: float, hot_batch: int, bits: int) -> tuple[QParams, Tensor]:
        """Judge each observer after 1, 2, ... N batches; asked again, from memory.

        Returns:
            `(5, N)` qparams, and the `(5, N)` SQNR in dB of the whole clean stream under them.
        """
        quant_min, quant_max = grid(bits)
        low, high = self._ranges(strength, hot_batch, bits)
        qparams = choose_qparams(low.clamp(max=0), high.clamp(min=0), quant_min=quant_min, quant_max=quant_max)
        flat = qparams.scale.view(1, -1), qparams.zero_point.view(1, -1)
        error = self.squared_error(*flat, quant_min, quant_max).view_as(low)
        judged = [[decibels(self.signal, each) for each in row] for row in error.tolist()]
        return qparams, torch.tensor(judged, dtype=torch.float64)

    def _ranges(self, strength: float, hot_batch: int, bits: int) -> Tensor:
        """The `(2, 5, N)` lowest and highest values that each observer represents after 1, 2, ... N batches."""
        searched, (low, high), hot = self._searched(bits), self.ends, strength * self.largest
        if strength > 1 and hot:
            value = torch.full((len(self) - hot_batch + 1, 1), hot)
            touched = self.after.select(slice(hot_batch - 1, None))
            touched.add(value, value[:, 0], value[:, 0])
            searched = torch.cat([searched[..., : hot_batch - 1], _search(touched, bits)], dim=2)
            here = torch.arange(len(self)) == hot_batch - 1
            low = torch.where(here, low.clamp(max=hot), low)
            high = torch.where(here, high.clamp(min=hot), high)
        every = torch.stack([low.cummin(0).values, high.cummax(0).values])
        return torch.cat([every[:, None], _moving_average(torch.stack([low, high]))[:, None], searched], dim=1)


def _search(histograms: StreamingHistogram, bits: int) -> Tensor:
    """`(2, 3, N)` ends of the ranges that percentile, squared error and entropy choose in N histograms."""
    quant_min, quant_max = grid(bits)
    shared = {"quant_min": quant_min, "quant_max": quant_max}
    chosen = PercentileObserver(**shared), HistogramObserver(**shared), HistogramObserver(**shared, criterion="entropy")
    return torch.stack([torch.stack(observer.choose(histograms)) for observer in chosen], dim=1)


def _moving_average(ends: Tensor) -> Tensor:
    """`(2, N)` averages of the extremes after 1, 2, ... N batches."""
    average, share = [ends[:, 0]], MovingAverageMinMaxObserver.averaging_constant
    for new in ends.unbind(dim=1)[1:]:
        average.append(average[-1] + share * (new - average[-1]))
    return torch.stack(average, dim=1)


class ObserverExplorer(Explorer):
    """Explore what five observers make of a stream of batches of your own, and of one hot value in it.

    Args:
        batches: 1 to 32 finite floating-point tensors, such as what one layer gives for batches of images; by
            default batches of random values after a ReLU.
        start: where controls start, by name, such as `bits=4`.

    Controls:
        seen: how many batches the observers have seen, from 1 to all.
        strength: the hot value, in multiples of the largest magnitude of the clean stream: 1, which is none, 1.5, 2, 3,
            5, 7, 10, 15, 20, 30, 50, 70 or 100.
        hot_batch: the batch that holds the hot value, from 1 to the last.
        bits: 2 to 8.

    Attributes:
        stream: the batches, made ready for many hot values.

    Raises:
        TypeError: `batches` is not a sequence of floating-point tensors.
        ValueError: a batch is empty or holds NaN, infinity or values too large for a hot one, or there is none or too
            many; or a control cannot start there.
    """

    def __init__(self, batches: Sequence[Tensor] | None = None, **start: Any):
        batches = [*random_rows(16, 4096).relu()] if batches is None else batches
        if not isinstance(batches, Sequence):
            kind = "one tensor: cut it with x.split(64)" if isinstance(batches, Tensor) else type(batches).__name__
            raise TypeError(f"ObserverExplorer needs a sequence of batches, got {kind}")
        if not 1 <= len(batches) <= MOST_BATCHES:
            raise ValueError(f"ObserverExplorer takes 1 to {MOST_BATCHES} batches, got {len(batches)}: pass some")
        self.stream = Stream(batches)
        hottest = FACTORS[-1] * abs(self.stream.largest)
        if 2 * hottest > torch.finfo(torch.float32).max:
            raise ValueError(
                f"ObserverExplorer: {FACTORS[-1]} times the largest magnitude, {abs(self.stream.largest):.3g}, is "
                "beyond float32: scale the batches down"
            )
        last = len(self.stream)
        controls = {
            "seen": ipywidgets.IntSlider(last, 1, last, description="Batches"),
            "strength": ipywidgets.SelectionSlider(options=[(f"x {s:g}", s) for s in FACTORS], description="Hot value"),
            "hot_batch": ipywidgets.IntSlider((last + 2) // 3, 1, last, description="Hot batch"),
            "bits": ipywidgets.IntSlider(8, 2, 8, description="Bits"),
        }
        super().__init__(controls, _figure(last), start)

    def compute(self, state: Any) -> ObserverResult:
        qparams, history = self.stream.judge(state.strength, state.hot_batch, state.bits)
        last = state.seen - 1
        ends = zip(qparams.low[:, last].tolist(), qparams.high[:, last].tolist(), strict=True)
        ranges = dict(zip(OBSERVERS, ends, strict=True))
        sqnr = dict(zip(OBSERVERS, history[:, last].tolist(), strict=True))
        return ObserverResult(qparams, history, ranges, sqnr)

    def say(self, state: Any, result: ObserverResult) -> str:
        if state.strength == 1:
            hot = "the stream is clean"
        else:
            tense = "is still to come" if state.hot_batch > state.seen else "was among them"
            hot = f"a value {state.strength:g} times the largest, in batch {state.hot_batch}, {tense}"
        parts = [
            f"{name} {in_digits(low)} to {in_digits(high)} ({in_decibels(result.sqnr[name])})"
            for name, (low, high) in result.ranges.items()
        ]
        best = max(result.sqnr, key=result.sqnr.get)
        return (
            f"{state.seen} of {len(self.stream)} batches seen; {hot}. Ranges at {state.bits} bits, and the SQNR of the "
            f"whole clean stream in them: {', '.join(parts)}. Best: {best}."
        )

    def stops(self) -> Stops:
        last = len(self.stream)
        return {
            "seen": range(1, last + 1, math.ceil(last / 16)),
            "strength": FACTORS,
            "hot_batch": (1, self.controls["hot_batch"].value, last),
            "bits": (3, 4, 6, 8),
        }

    def draw(self, result: ObserverResult) -> None:
        seen, last = torch.arange(1, self.state.seen + 1).numpy(), self.state.seen
        width, history = (result.qparams.high - result.qparams.low).numpy(), result.history.numpy()
        for line, values in zip(self.figure.data, (*width, *history), strict=True):
            line.x, line.y = seen, values[:last]
        # Plotly's own ticks are good within a factor of two; across more it labels 30 as "3".
        shown = width[:, :last]
        self.figure.layout.yaxis.tickmode = "array" if shown.max() > 2 * shown.min() else "auto"
        for mark in self.figure.layout.shapes:
            mark.x0 = mark.x1 = self.state.hot_batch
            mark.visible = self.state.strength > 1


def _figure(batches: int) -> go.Figure:
    """Draw what no control changes, and leave empty traces for what does."""
    titles = ("Width of the range (log scale)", "SQNR of the whole clean stream")
    figure = look.panels(1, 2, titles, horizontal_spacing=0.1)
    size = 7 if batches <= 16 else 5
    for column, axis in ((1, ""), (2, "2")):
        for name, series in zip(OBSERVERS, look.LOOKS, strict=True):
            place = {"legendgroup": name, "showlegend": column == 1, "row": 1, "col": column}
            drawn = {"mode": "lines+markers", "line": series.line(2), "marker": series.marker(size)}
            figure.add_scatter(name=name, **drawn, **place)
        place = {"xref": f"x{axis}", "yref": f"y{axis} domain", "x0": 1, "x1": 1, "y0": 0, "y1": 1}
        figure.add_shape(type="line", line={"color": look.GREY, "dash": "dot", "width": 1.5}, **place)
    figure.update_layout(height=420, margin_t=84, legend={"y": 1.12})
    figure.update_xaxes(range=[0.5, batches + 0.5], title="batches seen (dotted: the hot one)")
    figure.update_yaxes(type="log", title="unit of the values", **look.ticks(look.ONE_TWO_FIVE), row=1, col=1)
    return figure.update_yaxes(title="dB", row=1, col=2)
