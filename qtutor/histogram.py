"""Many numbers as a few bins, and the quantization error of a histogram.

Within a bin of width w, values are taken to be spread evenly. The squared error of quantizing an
even spread has a closed form, so no value is visited again, whatever scale, grid or clip range is
tried. With u = x / s, and L and H the codes at the ends of the grid less the zero point,

    rounding    R(u) = integral of (u - round(u))**2 = round(u) / 12 + (u - round(u))**3 / 3
    clipping    C(u) = integral of (u - H)**2 above H + 1/2, of (u - L)**2 below L - 1/2

and a bin from a to b holding n values costs n * s**2 * (R(b/s) - R(a/s)) / (b/s - a/s), R taken
inside the grid, plus the same with C outside it.

Exact zeros stand apart: after a ReLU they are a large share of the values, and they have a code of
their own, so they cost nothing; spread over a bin they would seem to.
"""

import copy
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from qtutor.affine import QParams, QuantizationError

import torch
from torch import Tensor

_LANE = 1 << 16  # values for which a table of their own pays
_BLOCK = 1 << 17  # values per pass: in cache, and enough that threads pay
_ROWS = ("_slots", "low", "high", "exponent", "first")  # what a StreamingHistogram holds for each row


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values in even bins between `low` and `high`; exact zeros are counted apart.

    Attributes:
        counts: `(bins,)` float64, the non-zero values in each bin.
        low: the left edge of the first bin, in the unit of the values.
        high: the right edge of the last bin. Equal to `low` where all values are the same.
        zeros: how many values are exactly 0.0.
        signal: sum of the squared values, exact.
    """

    counts: Tensor
    low: float
    high: float
    zeros: int
    signal: float

    @classmethod
    def of(cls, x: Tensor, bins: int = 1 << 16) -> "Histogram":
        """Bin a tensor in one pass, as float32.

        Args:
            x: `(*shape)` finite real values, at least one.
            bins: number of bins.

        Raises:
            TypeError: `x` is not a floating-point tensor.
            ValueError: `x` is empty or holds NaN or infinity, or there is not one bin.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"Histogram needs a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if bins < 1:
            raise ValueError(f"Histogram needs at least one bin, got {bins}")
        if x.numel() == 0:
            raise ValueError(f"Histogram needs at least one value, got a tensor of shape {tuple(x.shape)}")
        x = x.detach().flatten().to(torch.float32)
        low, high = (float(v) for v in x.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"Histogram needs finite float32 values, got a range from {low} to {high}")
        zeros = x.numel() - int(x.count_nonzero())
        counts = torch.zeros(bins, dtype=torch.float64)
        if low == high:
            counts[0] = x.numel() - zeros
        else:
            # histc counts in the dtype of its input: float32 stops at 2**24 a bin, and cannot hold every range.
            for part in x.split(1 << 18):
                counts += torch.histc(part.to(torch.float64), bins, low, high)
            if zeros:
                counts -= zeros * torch.histc(counts.new_zeros(1), bins, low, high)
        signal = float(torch.linalg.vector_norm(x, dtype=torch.float64) ** 2)
        return cls(counts, low, high, zeros, signal)

    @property
    def count(self) -> int:
        """How many values there are, zeros included."""
        return round(float(self.counts.sum())) + self.zeros

    @property
    def edges(self) -> Tensor:
        """`(bins + 1,)` float64 edges of the bins."""
        return torch.linspace(self.low, self.high, len(self.counts) + 1, dtype=torch.float64)

    @property
    def centres(self) -> Tensor:
        """`(bins,)` float64 middles of the bins."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    def error(self, qparams: QParams) -> QuantizationError:
        """Estimate what quantizing the binned values with per-tensor `qparams` costs.

        Exact for values spread evenly within each bin; the module docstring has the integrals.

        Raises:
            ValueError: `qparams` are not per tensor.
        """
        if qparams.scale.numel() != 1:
            raise ValueError(f"Histogram.error needs qparams per tensor, got a scale of {tuple(qparams.scale.shape)}")
        scale = float(qparams.scale)
        lowest = qparams.quant_min - int(qparams.zero_point)
        highest = qparams.quant_max - int(qparams.zero_point)
        u = self.edges / scale  # (bins + 1,) in steps
        if self.low == self.high:
            steps = u[:1].round().clamp(lowest, highest)
            squared = float((u[:1] - steps).square()) * scale**2 * float(self.counts[0])
            clipped = bool((u[:1].round() != steps).any())
            rounding, clipping, outside = (0.0, squared, float(self.counts[0])) if clipped else (squared, 0.0, 0.0)
        else:
            inside = u.clamp(lowest - 0.5, highest + 0.5)
            nearest = inside.round()
            within = nearest / 12 + (inside - nearest) ** 3 / 3
            above, below = (u - highest).clamp(min=0.5), (u - lowest).clamp(max=-0.5)
            beyond = ((above**3 - 0.125) + (below**3 + 0.125)) / 3
            weights = self.counts / u.diff()
            outside = float(weights @ (u - inside).diff())
            rounding, clipping = (float(weights @ area.diff()) * scale**2 for area in (within, beyond))
        return QuantizationError(self.count, self.signal, max(rounding, 0.0), max(clipping, 0.0), outside)


class StreamingHistogram:
    """Histograms of a stream, one a row, whose ranges grow with it.

    The bins of a row are 2**exponent wide with edges on the multiples of that, so where the range
    outgrows them whole bins merge: the counts equal those of one pass over all the values, whatever
    batches they came in. The range of a row spans a quarter to all of `bins` bins, unless it is too
    narrow for float32. A value on an edge lies in the bin further from zero.

    Args:
        rows: how many histograms.
        bins: a power of two; twice as many are stored, and memory does not grow with the stream.

    Attributes:
        low: `(rows,)` float32, the smallest value so far, exact.
        high: `(rows,)` float32, the largest value so far, exact.
        exponent: `(rows,)` int64, log2 of the width of a bin.
        first: `(rows,)` int64, the left edge of the first bin, in widths of a bin.
    """

    def __init__(self, rows: int, bins: int):
        if bins < 4 or bins & (bins - 1):
            raise ValueError(f"StreamingHistogram needs a power of two of at least 4 bins, got {bins}")
        self.bins = bins
        # Zeros have a slot of their own, between the bins below zero and those above.
        self._slots = torch.zeros(rows, 2 * bins + 1, dtype=torch.int64)
        self.low = torch.full((rows,), torch.inf)
        self.high = torch.full((rows,), -torch.inf)
        self.exponent = torch.full((rows,), -60)  # a scale is at least 2**-23: nothing finer matters
        self.first = torch.zeros(rows, dtype=torch.int64)

    @property
    def counts(self) -> Tensor:
        """`(rows, 2 * bins)` int64, the values in each bin that are not exactly 0.0."""
        return self._count(0, 2 * self.bins)

    @property
    def zeros(self) -> Tensor:
        """`(rows,)` int64, how many values are exactly 0.0."""
        return self._slots.gather(1, self._zero)[:, 0]

    @property
    def width(self) -> Tensor:
        """`(rows, 1)` float64, the width of a bin in the unit of the values."""
        return _power_of_two(self.exponent)[:, None]

    @torch.inference_mode()
    def add(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Count `(rows, n)` finite float32 values, of which `low` and `high` are the `(rows,)` extremes."""
        low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        if not (torch.equal(low, self.low) and torch.equal(high, self.high)):
            self._fit(low, high)
        # Threads share the rows of a table; a single row is cut into lanes, with a table each.
        lanes = min(torch.get_num_threads(), values.shape[1] // _LANE) if len(values) == 1 else 1
        if lanes > 1:
            tables = self._slots.new_zeros(lanes, self._slots.shape[1], dtype=torch.int32)
            cut = values.shape[1] // lanes * lanes
            self._tally(values[:, :cut].reshape(lanes, -1), tables)
            for table in tables:
                self._slots += table
            values = values[:, cut:]
        if values.numel():
            self._tally(values, self._slots)

    def _tally(self, values: Tensor, tables: Tensor) -> None:
        """Count the values of each row into the row of a table of slots."""
        start = (-self.first)[:, None].to(torch.int32)
        per_width = _power_of_two(-self.exponent)[:, None].to(torch.float32)
        height = max(_BLOCK // values.shape[1], torch.get_num_threads())
        parts = (each.split(height) for each in (values, tables, start, per_width))
        for rows, table, origin, scale in zip(*parts, strict=True):
            blocks = rows.chunk(-(-rows.numel() // _BLOCK), dim=1)
            buffers = _scratch(max(_BLOCK, blocks[0].numel()), tables.dtype, threading.get_ident())
            for block in blocks:
                one, slot, step = (buffer[: block.numel()].view(block.shape) for buffer in buffers)
                slot.copy_(torch.mul(block, scale, out=step))
                sign = torch.add(block, 0.0, out=step).view(torch.int32).clamp_(-1, 1)  # + 0.0: never -0.0
                table.scatter_add_(1, slot.add_(sign).add_(origin), one)

    def select(self, rows: slice | Tensor) -> "StreamingHistogram":
        """Return some of the rows."""
        selected = copy.copy(self)
        for name in _ROWS:
            setattr(selected, name, getattr(self, name)[rows].clone())
        return selected

    @classmethod
    def cat(cls, histograms: "Sequence[StreamingHistogram]") -> "StreamingHistogram":
        """Return the rows of several histograms of as many bins."""
        joined = copy.copy(histograms[0])
        for name in _ROWS:
            setattr(joined, name, torch.cat([getattr(histogram, name) for histogram in histograms]))
        return joined

    def magnitudes(self, bins: int) -> "StreamingHistogram":
        """Return the histograms of the absolute values, in at most `bins` bins."""
        folded = StreamingHistogram(len(self.first), min(bins, self.bins))
        folded.exponent = self.exponent
        smallest = torch.where(self.low > 0, self.low, (-self.high).clamp(min=0))
        folded._fit(smallest, torch.maximum(-self.low, self.high))
        index = self._edges_in(folded.exponent)
        folded._put(torch.where(index < 0, -1 - index, index), self.counts, self.zeros)
        return folded

    def quantile(self, q: float) -> Tensor:
        """Estimate the `q`-quantile of each row, off by at most the width of a bin.

        As in `torch.quantile`, it lies between two of the sorted values; the counts tell the bin of each.
        """
        home = (-self.first).clamp(0, 2 * self.bins - 1)[:, None]  # the bin to the right of zero
        counts = self.counts.scatter_add(1, home, self.zeros[:, None])
        cumulative = counts.cumsum(dim=1)
        rank = q * (cumulative[:, -1:] - 1).to(torch.float64)  # (rows, 1)
        ranks = torch.cat([rank.floor(), rank.ceil()], dim=1)
        index = torch.searchsorted(cumulative, ranks.to(torch.int64), right=True)
        count = counts.gather(1, index)
        within = (ranks + 0.5 - (cumulative.gather(1, index) - count)) / count
        values = (self.first[:, None] + index + within) * self.width
        values = values.clamp(self.low[:, None], self.high[:, None])
        return torch.lerp(values[:, 0], values[:, 1], (rank - ranks[:, :1])[:, 0]).to(torch.float32)

    def squared_error(self) -> Callable[[Tensor, Tensor, int, int], Tensor]:
        """Return what estimates the sum of squared errors of each row under many qparams.

        It takes `(rows, k)` scales and zero points, quant_min and quant_max, and returns `(rows, k)` sums.

        With c the value of the highest code and t the thresholds between neighbouring codes,

            sum of (x - x_hat)**2 = sum of (x - c)**2 - 2 s * sum over t of E(t),  E(t) = sum of max(t - x, 0)

        so one table of E, the counts summed twice, serves every scale and zero point. As in
        `Histogram.error`, exact for values spread evenly within each bin, and zeros cost nothing.
        """
        width, origin = self.width, self.first[:, None]
        ends = ((torch.stack([self.low, self.high], dim=1) / width).floor_() - origin).aminmax()
        start, stop = max(int(ends.min) - 1, 0), int(ends.max) + 1  # of all rows, what lies outside is empty
        counts = self._count(start, stop + 1).to(torch.float64)  # whatever lies beyond finds an empty bin
        below, half = counts.cumsum(dim=1).sub_(counts), counts / 2
        table = below + half
        table = table.cumsum(dim=1).sub_(table)  # E at the left edges, in widths
        # Of the distances to the last edge: how many, twice their sum, the sum of their squares (twice E's integral).
        areas = torch.add(below / 2, half, alpha=1 / 3).add_(table)[:, :-1]
        zeroth, once, twice = below[:, -1:], 2 * table[:, -1:], 2 * areas.sum(dim=1, keepdim=True)
        widths, first, bins = 1 / width, (origin + start).to(torch.float64), stop - start

        def estimate(scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
            scale = scale * widths  # (rows, k) in widths
            steps = torch.arange(quant_max - quant_min, dtype=torch.float64)
            lowest = (quant_min + 0.5 - zero_point.to(torch.float64)).mul_(scale).sub_(first)
            thresholds = (steps * scale[..., None]).add_(lowest[..., None])
            thresholds = thresholds.flatten(1).clamp_(min=0)  # (rows, k * t)
            edges = thresholds.clamp(max=bins).floor_()
            index, into = edges.to(torch.int64), thresholds.sub_(edges)
            slope = below.gather(1, index).addcmul_(half.gather(1, index), into)
            shortfall = table.gather(1, index).addcmul_(slope, into).view(*scale.shape, -1).sum(dim=-1)
            highest = torch.add(lowest, scale, alpha=quant_max - quant_min - 0.5).sub_(bins)
            squared = (highest * zeroth).add_(once).mul_(highest).add_(twice).sub_(shortfall.mul_(scale), alpha=2)
            return squared.clamp_(min=0).mul_(width.square())

        return estimate

    def edges(self) -> Tensor:
        """`(rows, 2 * bins)` int64 left edges in widths of a bin."""
        return self.first[:, None] + torch.arange(2 * self.bins)

    def _fit(self, low: Tensor, high: Tensor) -> None:
        """Widen and move the bins to hold a wider range."""
        # Bins narrower than 2**-22 of the largest value would be finer than float32.
        low64, high64, width = low.to(torch.float64), high.to(torch.float64), self.width[:, 0]
        finest = torch.maximum((high64 - low64) / (self.bins - 2), torch.maximum(-low64, high64) * 2**-22)
        lowest = low64 * (1 + 2**-40)  # a hair further from zero, for values on an edge
        self.low, self.high = low, high
        if ((finest < width) & (lowest >= self.first * width)).all():
            return
        exponent = torch.maximum(torch.frexp(finest.clamp_(min=2**-61)).exponent, self.exponent)
        # At a multiple of `bins`, so that most growth moves nothing.
        first = (lowest * _power_of_two(-exponent)).floor_().to(torch.int64) & -self.bins
        counted = (self._edges_in(exponent), self.counts, self.zeros) if self._slots.any() else ()
        self.exponent, self.first = exponent, first
        if counted:
            self._put(*counted)

    def _edges_in(self, exponent: Tensor) -> Tensor:
        """`(rows, 2 * bins)` int64, in which bin of width 2**exponent, which is no finer, each bin lies."""
        return self.edges() >> (exponent - self.exponent).clamp(max=63)[:, None]

    @property
    def _zero(self) -> Tensor:
        """`(rows, 1)` slots of the zeros; an end, and empty, where zero lies beyond the bins."""
        return (-self.first).clamp(0, 2 * self.bins)[:, None]

    def _count(self, start: int, stop: int) -> Tensor:
        """`(rows, stop - start)` of the counts."""
        bins = torch.arange(start, stop).expand(len(self.first), -1)
        return self._slots.gather(1, bins + (bins >= self._zero))

    def _put(self, index: Tensor, counts: Tensor, zeros: Tensor) -> None:
        """Replace all that is counted by `counts` in the bins `index`, in widths, and `zeros`.

        Counts in bins beyond an end are 0.
        """
        slots = (index + (index >= 0) - self.first[:, None]).clamp(0, 2 * self.bins)
        self._slots = counts.new_zeros(len(index), 2 * self.bins + 1).scatter_add_(1, slots, counts)
        self._slots.scatter_add_(1, self._zero, zeros[:, None])


@lru_cache(maxsize=2)
def _scratch(size: int, dtype: torch.dtype, thread: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ones and two buffers, kept for the next pass: large memory that is freed comes back page by page, slowly."""
    return torch.ones(size, dtype=dtype), torch.empty(size, dtype=torch.int32), torch.empty(size)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2.0**exponent as float64, by its bits: `torch.exp2` and `torch.ldexp` may round."""
    return ((exponent + 1023) << 52).view(torch.float64)
