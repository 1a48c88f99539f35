"""What range to represent.

Observing is collecting statistics of a stream of batches; only then is a range chosen, and
`affine.choose_qparams` makes the scale and the zero point of it. The observers differ in the range:

    MinMaxObserver                 all that was seen: one outlier wrecks it
    MovingAverageMinMaxObserver    the extremes of a typical batch
    PercentileObserver             all but a fixed share of the values
    HistogramObserver              the range that costs least, by squared error or by entropy

Each works per tensor, per channel (`axis`) or per group of a weight (`group_size`), in memory that
does not grow with the stream, in any module through `observing`.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qtutor.affine import QParams, choose_qparams
from qtutor.histogram import StreamingHistogram

_CANDIDATES = 49  # ranges tried at once
_WORK = 1 << 22  # numbers per pass of a search over ranges


@dataclass(kw_only=True, eq=False)
class Observer(ABC):
    """Statistics of the tensors that `observe` was given, as one row per scale.

    Attributes:
        quant_min: lowest code.
        quant_max: highest code.
        symmetric: as in `choose_qparams`.
        axis: the axis of the channels, one scale each; None for one scale per tensor.
        group_size: one scale for so many neighbouring inputs of a weight `(out, in)`; `in` must be a
            multiple of it. The qparams, `(out, groups, 1)`, fit the weight viewed as `(out, groups, group_size)`.

    Raises:
        TypeError: an attribute is not of its type.
        ValueError: an attribute is out of range, or both `axis` and `group_size` are given.
    """

    quant_min: int = -128
    quant_max: int = 127
    symmetric: bool = False
    axis: int | None = None
    group_size: int | None = None
    _shape: tuple[int, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        choose_qparams(0.0, 0.0, quant_min=self.quant_min, quant_max=self.quant_max)
        for name in ("axis", "group_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise TypeError(f"{self._name}: {name} must be a whole number or None, got {value!r}")
        if self.axis is not None and self.group_size is not None:
            raise ValueError(f"{self._name}: give axis (per channel) or group_size (per group), not both")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"{self._name}: group_size must be at least 1, got {self.group_size}")

    def observe(self, x: Tensor) -> Tensor:
        """Add a batch to the statistics and return it; a batch that raises leaves no trace.

        Args:
            x: `(*shape)` finite values, at least one. Per channel and per group, the shape of the
                qparams must be the same for every batch.

        Raises:
            TypeError: `x` is not a floating-point tensor.
            ValueError: `x` is empty, holds NaN, infinity or what float32 cannot hold, or its shape does
                not fit `axis`, `group_size` or the batches before.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = f"a tensor of {x.dtype} and shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{self._name} needs a floating-point tensor, got {kind}")
        if x.numel() == 0:
            raise ValueError(f"{self._name}: a tensor of shape {tuple(x.shape)} is empty, there is nothing to observe")
        rows, shape = self._rows(x.detach())
        if self._shape not in (None, shape):
            raise ValueError(
                f"{self._name} has seen tensors with qparams of shape {self._shape}, but one of shape "
                f"{tuple(x.shape)} needs {shape}: use one observer for each tensor"
            )
        rows = rows.to(torch.float32)
        low, high = rows.amin(dim=1), rows.amax(dim=1)
        if not torch.stack([low, high]).isfinite().all():
            bad = int((~rows.isfinite()).sum())
            raise ValueError(
                f"{self._name}: {bad} of the {x.numel()} values of a tensor of shape {tuple(x.shape)} are NaN, "
                "infinite or beyond float32"
            )
        self._collect(rows, low, high)
        self._shape = shape
        return x

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value to represent, each of the shape of the qparams.

        Raises:
            RuntimeError: nothing was observed.
        """
        if self._shape is None:
            raise RuntimeError(f"{self._name} has observed nothing: call observe with a tensor of any shape first")
        low, high = self._choose()
        return low.reshape(self._shape), high.reshape(self._shape)

    def qparams(self) -> QParams:
        """Return qparams for the range: `()` per tensor, `(1, C, 1, 1)`-like per channel, `(out, groups, 1)` per group.

        Raises:
            RuntimeError: nothing was observed.
        """
        return self._qparams(*self.range())

    @abstractmethod
    def _collect(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Add `(rows, n)` float32 values, of which `low` and `high` are the `(rows,)` extremes."""

    @abstractmethod
    def _choose(self) -> tuple[Tensor, Tensor]:
        """The `(rows,)` ends of the range."""

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _qparams(self, low: Tensor, high: Tensor) -> QParams:
        # Averages of a minimum and of a maximum may cross by a rounding error: on one side of zero only.
        grid = {"quant_min": self.quant_min, "quant_max": self.quant_max, "symmetric": self.symmetric}
        return choose_qparams(low.clamp(max=0), high.clamp(min=0), **grid)

    def _rows(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The values of each scale as a row, and the shape of the qparams."""
        if self.group_size is not None:
            if x.dim() != 2 or x.shape[1] % self.group_size:
                raise ValueError(
                    f"{self._name}: group_size={self.group_size} needs a weight of shape (out, in) with `in` "
                    f"a multiple of it, got {tuple(x.shape)}"
                )
            return x.reshape(-1, self.group_size), (x.shape[0], x.shape[1] // self.group_size, 1)
        if self.axis is None:
            return x.reshape(1, -1), ()
        if not -x.dim() <= self.axis < x.dim():
            raise ValueError(f"{self._name}: axis={self.axis} is not an axis of a tensor of shape {tuple(x.shape)}")
        rows = x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1)
        shape = [1] * x.dim()
        shape[self.axis] = len(rows)
        return rows, tuple(shape)


@dataclass(kw_only=True, eq=False)
class MinMaxObserver(Observer):
    """Represent all that was observed.

    Source: PyTorch's `MinMaxObserver` and `PerChannelMinMaxObserver`, which choose the same qparams.

    Example:
        >>> observer = MinMaxObserver(quant_min=0, quant_max=15)
        >>> for batch in torch.tensor([[-1.0, 2.0], [0.5, 2.75]]):
        ...     _ = observer.observe(batch)
        >>> qparams = observer.qparams()
        >>> qparams.scale.item(), qparams.zero_point.item()
        (0.25, 4)
    """

    _low: Tensor = field(init=False, repr=False)
    _high: Tensor = field(init=False, repr=False)

    def _collect(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        if self._shape is not None:
            low, high = self._combine(low, high)
        self._low, self._high = low, high

    def _combine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return torch.minimum(self._low, low), torch.maximum(self._high, high)

    def _choose(self) -> tuple[Tensor, Tensor]:
        return self._low, self._high


@dataclass(kw_only=True, eq=False)
class MovingAverageMinMaxObserver(MinMaxObserver):
    """Represent the exponential moving average of the extremes of the batches.

    The first batch starts it, each later one moves it by `averaging_constant` of the way. Half of a
    start's weight is left after 0.69 / averaging_constant batches.

    Source: PyTorch's `MovingAverageMinMaxObserver` and `MovingAveragePerChannelMinMaxObserver`, which
    choose the same qparams; Jacob et al. 2018, section 3.1.
    """

    averaging_constant: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.averaging_constant <= 1:
            raise ValueError(f"{self._name}: averaging_constant must be in (0, 1], got {self.averaging_constant!r}")

    def _combine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        share = self.averaging_constant
        return self._low + share * (low - self._low), self._high + share * (high - self._high)


@dataclass(kw_only=True, eq=False)
class _StreamObserver(Observer):
    _stream: StreamingHistogram | None = field(default=None, init=False, repr=False)

    def _collect(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        if self._stream is None:
            # About 16 MiB in all, yet enough bins to place the 16 codes of a small group.
            bins = min(max((1 << 20) // len(rows), 1 << 7), 1 << 13)
            self._stream = StreamingHistogram(len(rows), 1 << (bins.bit_length() - 1))
        self._stream.add(rows, low, high)


@dataclass(kw_only=True, eq=False)
class PercentileObserver(_StreamObserver):
    """Represent `percentile` percent of the values and clip the rest.

    With p the percentile, the range is from the (100 - p) / 2 to the 100 - (100 - p) / 2 percentile of
    all values; where that leaves out zero it is widened to zero, so after a ReLU only the upper tail
    is clipped. Symmetric, it is the p percentile of |x| to either side.

    The percentiles are those of `torch.quantile` to within one bin, at most 1/4096 of the whole range
    of a tensor; with more than 256 channels or groups, bins are up to 64 times as wide.

    Source: the percentile calibrator of ONNX Runtime (onnxruntime.quantization.calibrate); symmetric, also that of
    Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 3.2.
    """

    percentile: float = 99.99

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.percentile <= 100:
            raise ValueError(f"{self._name}: percentile must be in (0, 100], got {self.percentile!r}")

    def _choose(self) -> tuple[Tensor, Tensor]:
        kept = self.percentile / 100
        if self.symmetric:
            largest = self._stream.magnitudes(self._stream.bins).quantile(kept)
            return -largest, largest
        return self._stream.quantile((1 - kept) / 2), self._stream.quantile((1 + kept) / 2)


@dataclass(kw_only=True, eq=False)
class HistogramObserver(_StreamObserver):
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
    and neither criterion sees them.

    A grid of more than 16 bits gets the whole range, as does entropy with more codes than bins.

    Source: for squared error, Sung et al. 2015, "Resiliency of Deep Neural Networks under
    Quantization", and PyTorch's `HistogramObserver`; for entropy, Migacz 2017, "8-bit Inference with TensorRT".
    """

    criterion: str = "mse"

    def __post_init__(self):
        super().__post_init__()
        if self.criterion not in ("mse", "entropy"):
            raise ValueError(f"{self._name}: criterion must be 'mse' or 'entropy', got {self.criterion!r}")

    def _choose(self) -> tuple[Tensor, Tensor]:
        stream, codes = self._stream, self.quant_max - self.quant_min + 1
        if codes > (1 << 16 if self.criterion == "mse" else min(stream.bins, 2048)):
            return stream.low, stream.high
        search = self._least_error if self.criterion == "mse" else self._least_divergence
        size = max(1, _WORK // (_CANDIDATES * (codes if self.criterion == "mse" else min(stream.bins, 2048))))
        parts = [search(stream.select(slice(i, i + size))) for i in range(0, len(stream.zeros), size)]
        low, high = (torch.cat(ends)[:, 0] for ends in zip(*parts, strict=True))
        return low, high

    def _least_error(self, stream: StreamingHistogram) -> tuple[Tensor, Tensor]:
        """The `(rows, 1)` ends of the range of least squared error."""
        bottom, top = stream.low[:, None].clamp(max=0), stream.high[:, None].clamp(min=0)
        if self.symmetric:
            top = torch.maximum(-bottom, top)
            bottom = -top
        clip = torch.maximum(-bottom, top) * torch.logspace(0, -12, _CANDIDATES, base=2)
        low, high = torch.maximum(bottom, -clip), torch.minimum(top, clip)
        estimate = stream.squared_error()
        for below, above in (*_closer_and_closer(self.symmetric), (None, None)):
            best = estimate(self._qparams(low, high)).argmin(dim=1, keepdim=True)
            low, high = low.gather(1, best), high.gather(1, best)
            if below is not None:
                low, high = torch.maximum(low * below, bottom), torch.minimum(high * above, top)
        return low, high

    def _least_divergence(self, stream: StreamingHistogram) -> tuple[Tensor, Tensor]:
        """The `(rows, 1)` ends of the range of least divergence."""
        folded = stream.magnitudes(2048)
        largest = (folded.high[:, None] / folded.width).floor() + 1
        used = max(int((largest[:, 0] - folded.first).max()), self.quant_max - self.quant_min + 1)
        counts, edges = folded.nonzero()[:, :used], folded.edges()[:, :used]  # (rows, bins)
        fewest = torch.full_like(largest, self.quant_max - self.quant_min + 1).minimum(largest)
        clip = (fewest * (largest / fewest) ** torch.linspace(0, 1, _CANDIDATES, dtype=torch.float64)).round()
        value = torch.minimum((clip * folded.width).to(torch.float32), folded.high[:, None])
        low, high = torch.maximum(stream.low[:, None], -value), torch.minimum(stream.high[:, None], value)
        scale = self._qparams(low, high).scale / folded.width  # (rows, k) in widths

        inside = edges[:, None] < clip[:, :, None]  # (rows, k, bins)
        kept = torch.where(inside, counts[:, None], 0)
        code = ((edges[:, None] + 0.5) / scale[..., None]).round_().to(torch.int64)
        code.clamp_(max=self.quant_max - self.quant_min)
        occupied = (kept > 0).to(torch.float64)
        mass, share = (torch.zeros_like(kept).scatter_add_(2, code, n).gather(2, code) for n in (kept, occupied))
        even = torch.where(occupied > 0, mass / share, 0)
        last = (torch.arange(counts.shape[1]) * occupied).argmax(dim=2, keepdim=True)
        total, left = counts.sum(dim=1)[:, None, None], kept.sum(dim=2, keepdim=True)
        reference = kept.scatter_add_(2, last, total - left)
        terms = torch.where(occupied > 0, reference * (reference * left / (even * total)).log(), 0)
        divergence = terms.sum(dim=2).where((left > 0)[:, :, 0] | (total == 0)[:, :, 0], torch.inf)
        best = divergence.argmin(dim=1, keepdim=True)
        return low.gather(1, best), high.gather(1, best)


def _closer_and_closer(symmetric: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """What to multiply the ends of the best range by, from a coarse search to a fine one."""
    if not symmetric:  # one end may be worth giving up
        fade, stay = torch.logspace(0, -12, _CANDIDATES // 2, base=2), torch.ones(_CANDIDATES // 2)
        fade[-1] = 0
        yield torch.cat([fade, stay]), torch.cat([stay, fade])
    for octaves in (1 / 4, 1 / 12, 1 / 36, 1 / 108):
        near = torch.logspace(-octaves, octaves, 7, base=2)
        yield (near, near) if symmetric else torch.cartesian_prod(near, near).unbind(dim=1)


@contextmanager
def observing(
    model: nn.Module, observers: Mapping[str, Observer], *, inputs: bool = False
) -> Iterator[Mapping[str, Observer]]:
    """Let observers watch layers of any model while the block runs.

    The hooks are gone when the block ends, however it ends. A layer that runs twice is observed twice.

    Args:
        model: any module.
        observers: the qualified name of a layer, as in `model.named_modules()`, to the observer of its output.
        inputs: observe the first positional argument of each layer instead.

    Yields:
        `observers`.

    Raises:
        ValueError: the model has no layer of that name.
        TypeError: in the block, where a layer gives (or takes) something else than a tensor, such as the
            tuple of an LSTM: observe the inputs of the layer that takes it apart.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with observing(model, {"0": MinMaxObserver(), "1": HistogramObserver()}) as observers:
        ...     _ = model(torch.rand(8, 4))
        >>> observers["1"].qparams().scale.shape
        torch.Size([])
    """
    layers = dict(model.named_modules(remove_duplicate=False))
    for name in observers:
        if name not in layers:
            near = difflib.get_close_matches(name, layers, n=3, cutoff=0.4) or [n for n in layers if n][:3]
            raise ValueError(f"observing: the model has no layer {name!r}; near it are {', '.join(map(repr, near))}")

    def hook(name: str, observer: Observer):
        def see(layer: nn.Module, args: tuple, output: object = None) -> None:
            value = (args[0] if args else None) if inputs else output
            if not isinstance(value, Tensor):
                what = "first positional argument" if inputs else "output"
                raise TypeError(
                    f"observing: the {what} of layer {name!r} ({type(layer).__name__}) is a {type(value).__name__}, "
                    "not a tensor: observe a layer before or after it"
                )
            try:
                observer.observe(value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"observing layer {name!r}: {error}") from error

        return see

    handles = []
    try:
        for name, observer in observers.items():
            register = layers[name].register_forward_pre_hook if inputs else layers[name].register_forward_hook
            handles.append(register(hook(name, observer)))
        yield observers
    finally:
        for handle in handles:
            handle.remove()
