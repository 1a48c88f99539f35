"""Ranges that clip, chosen on a histogram of all that was observed."""

from abc import abstractmethod
from dataclasses import dataclass, field

from qtutor.observers.counting import MANY, Waiting
from qtutor.observers.divergence import least_divergence
from qtutor.observers.observer import Observer
from qtutor.observers.squared_error import least_error
from qtutor.observers.streaming import StreamingHistogram

import torch
from torch import Tensor

BINS = 1 << 13
"""Of the histogram of a tensor; with many channels or groups each has fewer."""

_CODES = 1 << 12  # of all rows that are searched at once: 50 ranges for each stay in cache


@dataclass(kw_only=True, eq=False)
class _HistogramOfStream(Observer):
    """Counts all that is observed, for a choice of the range when it is asked for."""

    _stream: StreamingHistogram | None = field(default=None, init=False, repr=False)
    _waiting: Waiting = field(default_factory=Waiting, init=False, repr=False)

    @property
    def histogram(self) -> StreamingHistogram:
        """The histograms of all that was observed, one a row."""
        self._check_seen()
        assert self._stream is not None
        if self._waiting:
            self._stream.add(*self._waiting.take())
        return self._stream

    @abstractmethod
    def choose(self, stream: StreamingHistogram) -> tuple[Tensor, Tensor]:
        """Choose a range for each row of histograms that someone else has collected; this observer stays as it is.

        Returns:
            The `(rows,)` lowest and highest values to represent.
        """

    def _collect(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        if self._stream is None:
            # 16 MiB of counts at most, until there are so many rows that each only just places the 16 codes of a group.
            bins = min(max((1 << 20) // len(rows), 1 << 7), BINS)
            self._stream = StreamingHistogram(len(rows), 1 << (bins.bit_length() - 1))
        if rows.numel() >= MANY:
            self._stream.add(rows, low, high)
            return
        self._waiting.add(rows, low, high)
        if len(self._waiting) >= MANY:
            self._stream.add(*self._waiting.take())

    def _choose(self) -> tuple[Tensor, Tensor]:
        return self.choose(self.histogram)


@dataclass(kw_only=True, eq=False)
class PercentileObserver(_HistogramOfStream):
    """Represent `percentile` percent of the values and clip the rest.

    With p the percentile, the range is from the (100 - p) / 2 to the 100 - (100 - p) / 2 percentile of
    all values; where that leaves out zero it is widened to zero, so after a ReLU only the upper tail
    is clipped. Symmetric, it is the p percentile of |x| to either side.

    The percentiles are those of `torch.quantile` to within one bin, at most 1/4096 of the whole range. With more
    than 128 channels or groups bins are wider, so that memory stays bounded: 64 times with more than 4096.

    Source: the percentile calibrator of ONNX Runtime (onnxruntime.quantization.calibrate); symmetric, also that of
    Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 3.2.
    """

    percentile: float = 99.99

    def __post_init__(self):
        super().__post_init__()
        self._check_share("percentile", 100)

    def choose(self, stream: StreamingHistogram) -> tuple[Tensor, Tensor]:
        kept = self.percentile / 100
        if self.symmetric:
            largest = stream.magnitudes(stream.bins).quantile(kept)
            return -largest, largest
        return stream.quantile((1 - kept) / 2), stream.quantile((1 + kept) / 2)


@dataclass(kw_only=True, eq=False)
class HistogramObserver(_HistogramOfStream):
    """Represent the range that costs least, judged on a histogram of all that was observed.

    criterion="mse" minimises the squared error of quantization: first over ranges that clip both
    sides at one magnitude, from all down to 1/4096 of the largest, then closer and closer around the
    best, each end on its own.

    criterion="entropy" minimises the information lost: the Kullback-Leibler divergence from the
    histogram of |x|, with all that is clipped put into its last bin, to the same histogram evened out
    within each code. It ignores how far off a clipped value is, so it clips more than squared error.
    Its known trap are exact zeros: after a ReLU the bin of the zeros towers over its neighbours, to
    even it out within a code looks like the greatest loss of all, and the range shrinks until that
    code holds little else. But zeros have a code of their own and lose nothing, so they stand apart
    and neither criterion sees them. At least as many bins stay as there are codes: with fewer, nothing
    would be evened out, however much is clipped.

    Bins are at most 1/4096 of the whole range, wider with more than 128 channels or groups (see
    `PercentileObserver`); entropy looks at 2048 at most. The whole range is kept on a grid of more than 65536
    codes by squared error, and of more codes than the bins that it looks at by entropy.

    Source: for squared error, Sung et al. 2015, "Resiliency of Deep Neural Networks under
    Quantization", and PyTorch's `HistogramObserver`; for entropy, Migacz 2017, "8-bit Inference with TensorRT".
    """

    criterion: str = "mse"

    def __post_init__(self):
        super().__post_init__()
        if self.criterion not in ("mse", "entropy"):
            raise ValueError(f"{self._name}: criterion must be 'mse' or 'entropy', got {self.criterion!r}")

    def choose(self, stream: StreamingHistogram) -> tuple[Tensor, Tensor]:
        search = {"mse": least_error, "entropy": least_divergence}[self.criterion]
        at_once = max(1, _CODES // (self.quant_max - self.quant_min + 1))
        parts = [slice(top, top + at_once) for top in range(0, len(stream.low), at_once)]
        with torch.inference_mode():  # many small steps, each a tenth faster
            found = [search(stream.select(rows), self.quant_min, self.quant_max, self.symmetric) for rows in parts]
        low, high = (torch.cat(ends) for ends in zip(*found, strict=True))
        return low, high
