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
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from numbers import Real

from qtutor.affine import QParams, check_grid, choose_qparams, scale_and_zero_point
from qtutor.histogram import StreamingHistogram

import torch
from torch import Tensor, nn

BINS = 1 << 13
"""Of the histogram of a tensor; with many channels or groups each has fewer."""

_ENTROPY_BINS = 1 << 11
_CANDIDATES = 49  # ranges tried at once
_CLIPS = torch.logspace(0, -12, 25, base=2)
_BATCH = 1 << 19  # values that are counted at once, where batches are smaller
_ROOMS: list[Tensor] = []  # memory that an observer no longer needs: the system hands out new pages slowly
_WORK = 1 << 18  # numbers per pass of a search over ranges, in cache


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
        check_grid(self.quant_min, self.quant_max)
        for name, value in (("axis", self.axis), ("group_size", self.group_size)):
            if value is not None and type(value) is not int:
                raise TypeError(f"{self._name}: {name} must be a whole number or None, got {value!r}")
        if self.axis is not None and self.group_size is not None:
            raise ValueError(f"{self._name}: give axis (per channel) or group_size (per group), not both")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"{self._name}: group_size must be at least 1, got {self.group_size}")

    @torch.inference_mode()
    def observe(self, x: Tensor) -> Tensor:
        """Add a batch to the statistics and return it; a batch that raises leaves no trace.

        Args:
            x: `(*shape)` finite values, at least one. Per channel and per group, the shape of the
                qparams must be the same for every batch.

        Raises:
            TypeError: `x` is not a dense floating-point tensor.
            ValueError: `x` is empty, holds NaN, infinity or what float32 cannot hold, or its shape does
                not fit `axis`, `group_size` or the batches before.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = f"a tensor of {x.dtype} and shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{self._name} needs a floating-point tensor, got {kind}")
        if x.layout != torch.strided:
            raise TypeError(f"{self._name} needs a dense tensor, got {x.layout}: convert it with .to_dense()")
        if x.numel() == 0:
            raise ValueError(f"{self._name}: a tensor of shape {tuple(x.shape)} is empty, there is nothing to observe")
        rows, shape = self._rows(x.detach())
        if self._shape not in (None, shape):
            raise ValueError(
                f"{self._name} has seen tensors with qparams of shape {self._shape}, but one of shape "
                f"{tuple(x.shape)} needs {shape}: use one observer for each tensor"
            )
        rows = rows.to(torch.float32)
        if len(rows) == 1:  # one pass; along a dimension, aminmax is slower than two
            low, high = (end.view(1) for end in rows.aminmax())
        else:
            low, high = rows.amin(dim=1), rows.amax(dim=1)
        if not all(map(math.isfinite, (*low.tolist(), *high.tolist()))):
            raise ValueError(
                f"{self._name}: {int((~rows.isfinite()).sum())} of the {x.numel()} values of a tensor of shape "
                f"{tuple(x.shape)} are NaN, infinite or beyond float32"
            )
        self._collect(rows, low, high)
        self._shape = shape
        return x

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value to represent, each of the shape of the qparams.

        Raises:
            RuntimeError: nothing was observed.
        """
        shape = self._check_seen()
        low, high = self._choose()
        return low.reshape(shape).clone(), high.reshape(shape).clone()  # what was observed stays ours

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

    def _check_seen(self) -> tuple[int, ...]:
        """The shape of the qparams, which the first batch decides."""
        if self._shape is None:
            raise RuntimeError(f"{self._name} has observed nothing: call observe with a tensor of any shape first")
        return self._shape

    def _check_share(self, name: str, whole: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, Real):
            raise TypeError(f"{self._name}: {name} must be a number, got {value!r}")
        if not 0 < float(value) <= whole:
            raise ValueError(f"{self._name}: {name} must be in (0, {whole}], got {value!r}")

    def _qparams(self, low: Tensor, high: Tensor) -> QParams:
        # Averages of a minimum and of a maximum may cross by a rounding error: on one side of zero only.
        low, high = low.clamp(max=0), high.clamp(min=0)
        return choose_qparams(low, high, quant_min=self.quant_min, quant_max=self.quant_max, symmetric=self.symmetric)

    def _rows(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The values of each scale as a row, and the shape of the qparams."""
        if self.group_size is not None:
            if x.dim() != 2 or x.shape[1] % self.group_size:
                raise ValueError(
                    f"{self._name}: group_size={self.group_size} needs a weight of shape (out, in) with `in` "
                    f"a multiple of it, got {tuple(x.shape)}"
                )
            return x.reshape(-1, self.group_size), (len(x), x.shape[1] // self.group_size, 1)
        if self.axis is None:
            return x.reshape(1, -1), ()
        if not -x.dim() <= self.axis < x.dim():
            raise ValueError(f"{self._name}: axis={self.axis} is not an axis of a tensor of shape {tuple(x.shape)}")
        channels = x.movedim(self.axis, 0)
        shape = tuple(len(channels) if i == self.axis % x.dim() else 1 for i in range(x.dim()))
        return channels.reshape(len(channels), -1), shape


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

    _ends: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def _collect(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        if self._ends is not None:
            low, high = torch.minimum(self._ends[0], low), torch.maximum(self._ends[1], high)
        self._ends = low, high

    def _choose(self) -> tuple[Tensor, Tensor]:
        assert self._ends is not None
        return self._ends


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
        self._check_share("averaging_constant", 1)

    def _collect(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        if self._ends is not None:
            ends = zip(self._ends, (low, high), strict=True)
            low, high = (old + self.averaging_constant * (new - old) for old, new in ends)
        self._ends = low, high


@dataclass(kw_only=True, eq=False)
class _StreamObserver(Observer):
    _stream: StreamingHistogram | None = field(default=None, init=False, repr=False)
    _room: Tensor | None = field(default=None, init=False, repr=False)  # where small batches wait, side by side
    _held: int = field(default=0, init=False, repr=False)
    _ends: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)

    def _collect(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        if rows.numel() > _BATCH:
            self._add(rows, low, high)
            return
        # To count several small batches at once costs a fraction of counting each.
        width, size = _BATCH // len(rows), rows.shape[1]
        if self._held + size > width:
            self._count()
        if self._room is None:
            try:
                self._room = _ROOMS.pop()
            except IndexError:  # not asked before: another thread may take the last
                self._room = torch.empty(_BATCH)
        self._batches(len(rows))[:, self._held : self._held + size] = rows
        self._held += size
        self._ends.append((low, high))

    def _choose(self) -> tuple[Tensor, Tensor]:
        return self.choose(self.histogram)

    @property
    def histogram(self) -> StreamingHistogram:
        """The histograms of all that was observed, one a row."""
        self._check_seen()
        self._count()
        if self._room is not None and not _ROOMS:
            _ROOMS.append(self._room)
        self._room = None
        assert self._stream is not None
        return self._stream

    def _batches(self, rows: int) -> Tensor:
        """The room as `(rows, n)`."""
        width = _BATCH // rows
        assert self._room is not None
        return self._room[: rows * width].view(rows, width)

    def _count(self) -> None:
        if self._ends:
            low, high = (torch.stack(ends) for ends in zip(*self._ends, strict=True))
            self._add(self._batches(low.shape[1])[:, : self._held], low.amin(dim=0), high.amax(dim=0))
            self._ends.clear()
            self._held = 0

    def _add(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        if self._stream is None:
            # 16 MiB of counts at most, until there are so many rows that each only just places the 16 codes of a group.
            bins = min(max((1 << 20) // len(rows), 1 << 7), BINS)
            self._stream = StreamingHistogram(len(rows), 1 << (bins.bit_length() - 1))
        self._stream.add(rows, low, high)

    @abstractmethod
    def choose(self, stream: StreamingHistogram) -> tuple[Tensor, Tensor]:
        """Choose a range for each row of histograms that someone else has collected; this observer stays as it is.

        Returns:
            The `(rows,)` lowest and highest values to represent.
        """


@dataclass(kw_only=True, eq=False)
class PercentileObserver(_StreamObserver):
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
        codes, bins = self.quant_max - self.quant_min + 1, min(stream.bins, _ENTROPY_BINS)
        search, most, work = {
            "mse": (self._least_error, 1 << 16, codes),
            "entropy": (self._least_divergence, bins, codes),
        }[self.criterion]
        if codes > most:
            return stream.low, stream.high
        size = max(1, _WORK // (_CANDIDATES * work))
        parts = [slice(i, i + size) for i in range(0, len(stream.first), size)]
        with torch.inference_mode():  # many small steps, each a tenth faster
            found = [search(stream.select(part) if len(parts) > 1 else stream) for part in parts]
        low, high = (torch.cat(ends)[:, 0] for ends in zip(*found, strict=True))
        return low, high

    def _least_error(self, stream: StreamingHistogram) -> tuple[Tensor, Tensor]:
        """The `(rows, 1)` ends of the range of least squared error."""
        bottom, top = stream.low[:, None].clamp(max=0), stream.high[:, None].clamp(min=0)
        if self.symmetric:
            top = torch.maximum(-bottom, top)
            bottom = -top
        elif (top - bottom).max() == torch.inf:
            return bottom, top  # no scale: `choose_qparams` says so
        one_sided = ((bottom == 0) | (top == 0))[:, 0]
        one_end = self.symmetric or bool(one_sided.all())
        if not one_end and len(one_sided) > 1 and one_sided.any():  # each row is searched as it would be alone
            for rows in (one_sided, ~one_sided):
                bottom[rows], top[rows] = self._least_error(stream.select(rows))
            return bottom, top
        clip = torch.maximum(-bottom, top) * _CLIPS
        low, high = torch.maximum(bottom, -clip), torch.minimum(top, clip)
        estimate = stream.squared_error()
        for factors in (*_closer_and_closer(one_end), None):
            grid = self.quant_min, self.quant_max
            error = estimate(*scale_and_zero_point(low, high, *grid, self.symmetric), *grid)
            best = error.argmin(dim=1, keepdim=True)
            low, high = low.gather(1, best), high.gather(1, best)
            if factors is not None:
                low, high = torch.maximum(low * factors[0], bottom), torch.minimum(high * factors[1], top)
        return low, high

    def _least_divergence(self, stream: StreamingHistogram) -> tuple[Tensor, Tensor]:
        """The `(rows, 1)` ends of the range of least divergence.

        With c the counts, m the sum of those that share a code and e the same evened out,

            sum of c * log(c / e) = sum over bins of c * log(c) - sum over codes of m * log(e)

        so two differences of running sums serve each code, whatever the range.
        """
        folded, codes = stream.magnitudes(_ENTROPY_BINS), self.quant_max - self.quant_min + 1
        largest = (folded.high[:, None] / folded.width).floor() + 1
        fewest = largest.clamp(max=codes)
        clip = (fewest * (largest / fewest) ** torch.linspace(0, 1, _CANDIDATES, dtype=torch.float64)).round()
        value = torch.minimum((clip * folded.width).to(torch.float32), folded.high[:, None])
        low, high = torch.maximum(stream.low[:, None], -value), torch.minimum(stream.high[:, None], value)
        scale = self._qparams(low, high).scale / folded.width  # (rows, k) in widths

        counts, first = folded.counts.to(torch.float64), folded.first[:, None, None]
        last = torch.where(counts > 0, torch.arange(counts.shape[1]), 0).cummax(dim=1).values  # not empty, up to a bin
        summands = (counts, (counts > 0).to(torch.float64), torch.xlogy(counts, counts))
        sums = [nn.functional.pad(each.cumsum(dim=1), (1, 0)) for each in summands]  # (rows, 1 + bins)
        inside = (clip[..., None] - first).clamp(0, counts.shape[1])  # (rows, k, 1) bins that are not clipped
        ends = (torch.arange(codes - 1) + 0.5) * scale[..., None] - 0.5 - first
        ends = torch.cat([ends.ceil().clamp(min=0).minimum(inside), inside], dim=2).to(torch.int64)  # of each code
        mass, share = (each.gather(1, ends.flatten(1)).view(ends.shape) for each in sums[:2])
        total, left = counts.sum(dim=1, keepdim=True), mass[..., -1]
        mass, share = (each.diff(dim=2, prepend=torch.zeros_like(inside)) for each in (mass, share))
        even = mass / share.clamp(min=1)
        inside = inside[..., 0].to(torch.int64)
        clipped, edge = total - left, counts.gather(1, last.gather(1, (inside - 1).clamp(min=0)))
        edge_code = (torch.arange(codes) * (share > 0)).argmax(dim=2, keepdim=True)
        # The last bin that is not empty gets what is clipped.
        divergence = sums[2].gather(1, inside) - torch.xlogy(edge, edge) + torch.xlogy(edge + clipped, edge + clipped)
        divergence -= torch.xlogy(mass, even).sum(dim=2) + torch.xlogy(clipped, even.gather(2, edge_code)[..., 0])
        divergence += torch.xlogy(total, left / total)
        divergence = torch.where(left > 0, divergence, torch.where(total > 0, torch.inf, 0.0))
        least = divergence.amin(dim=1, keepdim=True) + 1e-9 * total  # among equals, the widest range
        best = (torch.arange(_CANDIDATES) * (divergence <= least)).argmax(dim=1, keepdim=True)
        return low.gather(1, best), high.gather(1, best)


@cache
def _closer_and_closer(one_end: bool) -> list[tuple[Tensor, Tensor]]:
    """What to multiply the ends of the best range by, from a coarse search to a fine one."""
    factors = []
    if not one_end:  # one of two ends may be worth giving up
        fade, stay = torch.logspace(0, -12, _CANDIDATES // 2, base=2), torch.ones(_CANDIDATES // 2)
        fade[-1] = 0
        factors.append((torch.cat([fade, stay]), torch.cat([stay, fade])))
    # Around the best, to half the distance of its neighbours.
    for octaves, count in ((1 / 4, 25), (1 / 96, 25)) if one_end else ((1 / 4, 7), (1 / 24, 5), (1 / 96, 5)):
        near = torch.logspace(-octaves, octaves, count, base=2)
        low, high = (near, near) if one_end else torch.cartesian_prod(near, near).unbind(dim=1)
        factors.append((low, high))
    return factors


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
        TypeError: `model` is not a module, or `observers` not a mapping to observers; in the block, where a
            layer gives (or takes) something else than a tensor, such as the tuple of an LSTM: observe the
            inputs of the layer that takes it apart.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with observing(model, {"0": MinMaxObserver(), "1": HistogramObserver()}) as observers:
        ...     _ = model(torch.rand(8, 4))
        >>> observers["1"].qparams().scale.shape
        torch.Size([])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"observing needs a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(observers, Mapping):
        given = type(observers).__name__
        raise TypeError(f"observing needs a dict from names of layers to observers, got {given}")
    layers = dict(model.named_modules(remove_duplicate=False))
    for name, observer in observers.items():
        if isinstance(observer, type) or not hasattr(observer, "observe"):
            made = f"the class {observer.__name__}" if isinstance(observer, type) else type(observer).__name__
            raise TypeError(f"observing: layer {name!r} needs an observer such as MinMaxObserver(), got {made}")
        if name not in layers:
            near = difflib.get_close_matches(str(name), layers, n=3, cutoff=0.4) or [n for n in layers if n][:3]
            raise ValueError(f"observing: the model has no layer {name!r}; near it are {', '.join(map(repr, near))}")

    def see(name: str, layer: nn.Module, args: tuple, output: object = None) -> None:
        value = (args[0] if args else None) if inputs else output
        if not isinstance(value, Tensor):
            what = "first positional argument" if inputs else "output"
            raise TypeError(
                f"observing: the {what} of layer {name!r} ({type(layer).__name__}) is a {type(value).__name__}, "
                "not a tensor: observe a layer before or after it"
            )
        try:
            observers[name].observe(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"observing layer {name!r}: {error}") from error

    with ExitStack() as hooks:
        for name in observers:
            register = layers[name].register_forward_pre_hook if inputs else layers[name].register_forward_hook
            hooks.callback(register(partial(see, name)).remove)
        yield observers
