"""A histogram of a stream: nobody knows the range before the last batch, and memory does not grow with it."""

import copy
from collections.abc import Sequence

from qtutor.observers.counting import count

import torch
from torch import Tensor

_ROWS = ("_slots", "low", "high", "width", "first")  # what a StreamingHistogram holds for each row


class StreamingHistogram:
    """Histograms of a stream, one a row, whose ranges grow with it.

    The bins of a row are a power of two wide with edges on the multiples of that, so where the range
    outgrows them whole bins merge: the counts equal those of one pass over all the values, whatever
    batches they came in. The range of a row spans a quarter to all of `bins` bins, unless it is too
    narrow for float32. A value on an edge lies in the bin further from zero, and exact zeros lie in none:

        slot(x) = trunc(x / width) + sign(x) - first

    numbers the bins below zero, then the zeros, then the bins above.

    Args:
        rows: how many histograms.
        bins: a power of two; twice as many are stored, and memory does not grow with the stream.

    Attributes:
        low: `(rows,)` float32, the smallest value so far, exact.
        high: `(rows,)` float32, the largest value so far, exact.
        width: `(rows, 1)` float64, the width of a bin in the unit of the values.
        first: `(rows,)` int64, the left edge of the first bin, in widths of a bin.
    """

    def __init__(self, rows: int, bins: int):
        if bins < 4 or bins & (bins - 1):
            raise ValueError(f"StreamingHistogram needs a power of two of at least 4 bins, got {bins}")
        self.bins = bins
        self._slots = torch.zeros(rows, 2 * bins + 1, dtype=torch.int64)
        self.low = torch.full((rows,), torch.inf)
        self.high = torch.full((rows,), -torch.inf)
        self.width = torch.full((rows, 1), 2.0**-60, dtype=torch.float64)  # scales are at least 2**-23: fine enough
        self.first = torch.zeros(rows, dtype=torch.int64)

    @property
    def counts(self) -> Tensor:
        """`(rows, 2 * bins)` int64, the values in each bin that are not exactly 0.0."""
        return self.counts_in(0, 2 * self.bins)

    @property
    def zeros(self) -> Tensor:
        """`(rows,)` int64, how many values are exactly 0.0."""
        return self._slots.gather(1, self._zero)[:, 0]

    def counts_in(self, start: int, stop: int) -> Tensor:
        """`(rows, stop - start)` of the counts."""
        bins = torch.arange(start, stop)
        return self._slots.gather(1, bins + (bins >= self._zero))

    def edges(self) -> Tensor:
        """`(rows, 2 * bins)` int64 left edges in widths of a bin."""
        return self.first[:, None] + torch.arange(2 * self.bins)

    @torch.inference_mode()
    def add(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Count `(rows, n)` finite float32 values, of which `low` and `high` are the `(rows,)` extremes."""
        low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        if not (torch.equal(low, self.low) and torch.equal(high, self.high)):
            self._fit(low, high)
        count(self._slots, values, (1 / self.width).to(torch.float32), self.first[:, None].to(torch.int32))

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
        folded.width = self.width
        smallest = torch.where(self.low > 0, self.low, (-self.high).clamp(min=0))
        folded._fit(smallest, torch.maximum(-self.low, self.high))
        index = self._edges_in(folded.width)
        folded._put(torch.where(index < 0, -1 - index, index), self.counts, self.zeros)
        return folded

    def quantile(self, q: float) -> Tensor:
        """Estimate the `q`-quantile of each row, off by at most the width of a bin.

        As in `torch.quantile`, it lies between two of the sorted values; the counts tell the bin of each.
        """
        right_of_zero = (-self.first).clamp(0, 2 * self.bins - 1)[:, None]
        counts = self.counts.scatter_add(1, right_of_zero, self.zeros[:, None])
        cumulative = counts.cumsum(dim=1)
        rank = q * (cumulative[:, -1:] - 1).to(torch.float64)  # (rows, 1)
        ranks = torch.cat([rank.floor(), rank.ceil()], dim=1)
        index = torch.searchsorted(cumulative, ranks.to(torch.int64), right=True)
        held = counts.gather(1, index)
        within = (ranks + 0.5 - (cumulative.gather(1, index) - held)) / held
        values = (self.first[:, None] + index + within) * self.width
        values = values.clamp(self.low[:, None], self.high[:, None])
        return torch.lerp(values[:, 0], values[:, 1], (rank - ranks[:, :1])[:, 0]).to(torch.float32)

    def _fit(self, low: Tensor, high: Tensor) -> None:
        """Widen and move the bins to hold a range that holds the one before."""
        self.low, self.high = low, high
        low, high, width = low.to(torch.float64), high.to(torch.float64), self.width[:, 0]
        # Bins narrower than 2**-22 of the largest value would be finer than float32.
        finest = torch.maximum((high - low) / (self.bins - 2), torch.maximum(-low, high) * 2**-22)
        lowest = low * (1 + 2**-40)  # a hair further from zero, for values on an edge
        if ((finest < width) & (lowest >= self.first * width)).all():
            return
        finest = finest.clamp(min=2**-61)
        wider = torch.maximum(finest / torch.frexp(finest).mantissa, width)  # the power of two above it
        counted = (self._edges_in(wider[:, None]), self.counts, self.zeros) if self._slots.any() else ()
        self.width = wider[:, None]
        # At a multiple of `bins`, so that most growth moves nothing.
        self.first = (lowest / wider).floor().to(torch.int64) & -self.bins
        if counted:
            self._put(*counted)

    def _edges_in(self, width: Tensor) -> Tensor:
        """`(rows, 2 * bins)` int64, in which bin of a width that is no finer each bin lies."""
        return (self.edges() / (width / self.width)).floor().to(torch.int64)

    def _put(self, index: Tensor, counts: Tensor, zeros: Tensor) -> None:
        """Replace all that is counted by `counts` in the bins `index`, in widths, and `zeros`.

        Counts in bins beyond an end are 0.
        """
        slots = (index + (index >= 0) - self.first[:, None]).clamp(0, 2 * self.bins)
        self._slots = torch.zeros_like(self._slots).scatter_add_(1, slots, counts)
        self._slots.scatter_add_(1, self._zero, zeros[:, None])

    @property
    def _zero(self) -> Tensor:
        """`(rows, 1)` slots of the zeros; an end, and empty, where zero lies beyond the bins."""
        return (-self.first).clamp(0, 2 * self.bins)[:, None]
