"""The affine map between real numbers and integer codes.

    quantize      q = clamp(round(x / s) + z, q_min, q_max)
    dequantize    x_hat = (q - z) * s

`s` is the scale (the width of one step, in the unit of x) and `z` the zero point (the code that
means exactly 0.0). Rounding is half to even, division is by multiplication with the float32
reciprocal, and rounding comes before the zero point is added: the three choices that make every
function here equal PyTorch's own fake-quantize kernels bit for bit.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", eq. 1.
"""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

from qtutor.lsq import LearnedFakeQuantizer, learned_fake_quantize  # noqa: F401  the map with a learned scale

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps
"""The smallest scale that `choose_qparams` returns, as in PyTorch's observers."""

_BLOCK = 1 << 21  # elements per pass: small temporaries, and few hand-overs between threads on a busy machine
_CODE_DTYPES = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.int64)
_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NARROW = 1 << 23  # codes up to here, either sign: float32 holds every one of them and every difference of two


@dataclass(frozen=True, eq=False)
class QParams:
    """What it takes to map reals to codes and back.

    Numbers are accepted and stored as tensors. `scale` and `zero_point` broadcast against the
    tensor they quantize: `()` per tensor, `(C, 1, 1, 1)` per output channel of a convolution,
    `(out, groups, 1)` per group of a weight viewed as `(out, groups, group_size)`.

    Attributes:
        scale: float32, positive; the width of one step in the unit of x.
        zero_point: int32 on the grid; the code of exactly 0.0. Same shape as `scale`.
        quant_min: the lowest code.
        quant_max: the highest code.

    Raises:
        TypeError: an end of the grid or a zero point is not a whole number, or a scale not a real one.
        ValueError: the grid is empty or beyond int32, a scale is not positive and finite or so small
            that its reciprocal overflows float32, or a zero point is off the grid.

    Example:
        >>> qparams = QParams(scale=0.25, zero_point=4, quant_min=0, quant_max=15)
        >>> qparams.low.item(), qparams.high.item()
        (-1.0, 2.75)
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int

    def __post_init__(self):
        quant_min, quant_max = check_grid(self.quant_min, self.quant_max)
        # Copies: what a caller later does to their own tensors, as an optimizer does, must not reach in here.
        scale = _as_tensor(self.scale, "scale").to(torch.float32, copy=True)
        reciprocal = 1 / scale
        if not ((reciprocal > 0) & (reciprocal < math.inf)).all():
            _check_values(scale, (scale > 0) & scale.isfinite(), "scale", "must be positive and finite")
            _check_values(scale, reciprocal.isfinite(), "scale", "is so small that 1 / scale overflows float32")

        zero_point = _as_tensor(self.zero_point, "zero_point")
        if zero_point.is_floating_point() and not torch.equal(zero_point, zero_point.round()):
            raise TypeError(f"zero_point must be a whole number, got {_brief(zero_point)}: round it first")
        inside = (zero_point >= quant_min) & (zero_point <= quant_max)
        _check_values(zero_point, inside, "zero_point", f"must lie on the grid [{quant_min}, {quant_max}]")
        try:
            scale, zero_point = torch.broadcast_tensors(scale, zero_point.to(torch.int32, copy=True))
        except RuntimeError:
            raise ValueError(
                f"scale has shape {tuple(scale.shape)} and zero_point {tuple(zero_point.shape)}, "
                "which do not broadcast: give one zero point for each scale"
            ) from None

        for name, value in (
            ("scale", scale.contiguous()),
            ("zero_point", zero_point.contiguous()),
            ("quant_min", quant_min),
            ("quant_max", quant_max),
        ):
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QParams):
            return NotImplemented
        return (
            (self.quant_min, self.quant_max) == (other.quant_min, other.quant_max)
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.zero_point, other.zero_point)
        )

    __hash__ = None  # type: ignore[assignment]  # as Python itself writes it

    @property
    def low(self) -> Tensor:
        """The smallest real value that has a code of its own; shape of `scale`."""
        return self._value(self.quant_min)

    @property
    def high(self) -> Tensor:
        """The largest real value that has a code of its own; shape of `scale`."""
        return self._value(self.quant_max)

    @property
    def code_dtype(self) -> torch.dtype:
        """The smallest of uint8, int8, int16 and int32 that holds every code of the grid."""
        for dtype in (torch.uint8, torch.int8, torch.int16):
            info = torch.iinfo(dtype)
            if info.min <= self.quant_min and self.quant_max <= info.max:
                return dtype
        return torch.int32

    def _value(self, codes: Tensor | int) -> Tensor:
        """The float32 reals that codes mean. One rounding, in the product: float64 holds the difference exactly."""
        return ((codes - self.zero_point.to(torch.float64)) * self.scale).to(torch.float32)


def grid(bits: int, *, signed: bool = True) -> tuple[int, int]:
    """Return the lowest and the highest code of a `bits`-bit integer.

    Raises:
        TypeError: `bits` is not a whole number.
        ValueError: fewer than 2 or more than 32 bits (31 unsigned: codes are stored as int32).

    Example:
        >>> grid(8), grid(4, signed=False)
        ((-128, 127), (0, 15))
    """
    try:
        bits = operator.index(bits)
    except TypeError:
        raise TypeError(f"bits must be a whole number, got {bits!r}") from None
    most = 32 if signed else 31
    if not 2 <= bits <= most:
        raise ValueError(f"bits must be from 2 to {most}, got {bits}")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def choose_qparams(
    min_val: Tensor | float,
    max_val: Tensor | float,
    *,
    quant_min: int = -128,
    quant_max: int = 127,
    symmetric: bool = False,
) -> QParams:
    """Choose the scale and zero point that make a range fit a grid.

    The range is first widened to hold zero, so that zero has a code of its own and padding, ReLU
    and absent values cost no error. No scale falls below float32's machine epsilon, so a constant
    zero range works.

    Args:
        min_val: the smallest real value to represent; any shape.
        max_val: the largest; same shape.
        quant_min: lowest code.
        quant_max: highest code.
        symmetric: spend the grid evenly on both sides of zero: the zero point is 0 on a grid with
            negative codes, else the middle of the grid.

    Returns:
        QParams of the shape of the range. PyTorch's `MinMaxObserver` chooses the same, but for symmetric
        ranges on unsigned grids of its caller's own, whose middle it rounds down.

    Raises:
        TypeError: a bound is not a real number or a tensor of them.
        ValueError: a bound is NaN or infinite, `min_val > max_val`, the range is wider than float32
            can hold, or `quant_min >= quant_max`.

    Source: Jacob et al. 2018, section 3; `torch.ao.quantization.observer`.

    Example:
        >>> qparams = choose_qparams(-1.0, 2.75, quant_min=0, quant_max=15)
        >>> qparams.scale.item(), qparams.zero_point.item()
        (0.25, 4)
    """
    quant_min, quant_max = check_grid(quant_min, quant_max)
    low = _as_tensor(min_val, "min_val").to(torch.float32)
    high = _as_tensor(max_val, "max_val").to(torch.float32)
    if low.shape != high.shape:
        raise ValueError(f"min_val has shape {tuple(low.shape)} and max_val {tuple(high.shape)}: give as many of each")
    if not torch.equal(low - low, high - high):  # NaN where an end is not finite
        _check_values(low, low.isfinite(), "min_val", "must be finite")
        _check_values(high, high.isfinite(), "max_val", "must be finite")
    if (low > high).any():
        raise ValueError(f"min_val must not exceed max_val, got {_brief(low)} and {_brief(high)}: swap them?")

    low, high = low.clamp(max=0), high.clamp(min=0)
    scale, zero_point = scale_and_zero_point(low, high, quant_min, quant_max, symmetric)
    if (scale == math.inf).any():
        raise ValueError(f"the range {_brief(low)} to {_brief(high)} is wider than float32 can hold")
    return QParams(scale, zero_point, quant_min, quant_max)


def scale_and_zero_point(
    low: Tensor, high: Tensor, quant_min: int, quant_max: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Return the arithmetic of `choose_qparams` without its checks, for searches over many ranges.

    Args:
        low: float32, at most zero; any shape.
        high: float32, at least zero; same shape.

    Returns:
        The scales, float32, and the zero points, int64, of that shape.
    """
    steps = float(quant_max - quant_min)
    if symmetric:
        middle = 0 if quant_min < 0 <= quant_max else (quant_min + quant_max + 1) // 2
        scale = (torch.maximum(-low, high) / (steps / 2)).clamp(min=EPS)
        return scale, torch.full_like(scale, middle, dtype=torch.int64)
    scale = ((high - low) / steps).clamp(min=EPS)
    return scale, (quant_min - (low / scale).round().to(torch.int64)).clamp(quant_min, quant_max)


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Map real values to integer codes.

    Rounds half to even, then adds the zero point, then clamps. Infinities clip to the ends of the grid.

    Args:
        x: `(*shape)` real values.
        qparams: `scale` and `zero_point` broadcast against `x`.

    Returns:
        `(*shape)` codes: uint8, int8 or int16 where the grid fits, else int32. Arithmetic on them
        wraps around as that type does: widen them before you compute.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: `x` holds NaN, which has no code, or the shapes do not broadcast.

    Source: Jacob et al. 2018, eq. 1, solved for q.

    Example:
        >>> quantize(torch.tensor([-9.0, 0.0, 0.30, 9.0]), QParams(0.25, 4, 0, 15)).tolist()
        [0, 4, 5, 15]
    """
    _check_input(x, qparams, "quantize")
    steps = _steps(x.detach(), 1 / qparams.scale, _is_wide(qparams))
    if steps.isnan().any():
        raise ValueError(
            f"quantize: {int(steps.isnan().sum())} of {x.numel()} values are NaN, which has no code: "
            "replace them first, for example with torch.nan_to_num"
        )
    return steps.add_(qparams.zero_point).clamp_(qparams.quant_min, qparams.quant_max).to(qparams.code_dtype)


def dequantize(codes: Tensor, qparams: QParams) -> Tensor:
    """Map integer codes back to real values.

    The inverse only on the grid: what rounding and clipping lost stays lost.

    Args:
        codes: `(*shape)` integers in `[quant_min, quant_max]`.
        qparams: `scale` and `zero_point` broadcast against `codes`.

    Returns:
        `(*shape)` float32, in the unit of `scale`.

    Raises:
        TypeError: `codes` is not an integer tensor.
        ValueError: a code is off the grid, or the shapes do not broadcast.

    Source: Jacob et al. 2018, eq. 1.

    Example:
        >>> dequantize(torch.tensor([0, 4, 15]), QParams(0.25, 4, 0, 15)).tolist()
        [-1.0, 0.0, 2.75]
    """
    if not isinstance(codes, Tensor) or codes.dtype not in _CODE_DTYPES:
        raise TypeError(f"dequantize needs a tensor of integer codes, got {_kind(codes)}: call quantize first")
    _check_shapes(codes, qparams, "dequantize")
    wide = codes.to(torch.int64)
    _check_values(
        codes,
        (wide >= qparams.quant_min) & (wide <= qparams.quant_max),
        "codes",
        f"must lie on the grid [{qparams.quant_min}, {qparams.quant_max}]",
    )
    return qparams._value(wide)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Quantize and dequantize in one step, staying in floating point.

    Equals PyTorch's fake-quantize kernels bit for bit, on grids within 2**23 of zero, wherever
    |x / scale| < 2**63. Beyond that those kernels disagree with each other; here such values,
    infinities included, clip to the ends of the grid, and NaN stays NaN. They disagree on float64 too:
    per tensor the result is rounded to float32, per channel, and here, it is not.

    The gradient passes straight through where the rounded code is on the grid and is zero where it
    was clipped.

    Args:
        x: `(*shape)` real values, float16 or bfloat16 to float64.
        qparams: `scale` and `zero_point` broadcast against `x`.

    Returns:
        `(*shape)` in the dtype of `x`: multiples of `scale`.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: the shapes do not broadcast.

    Source: Jacob et al. 2018, section 3; straight-through estimator: Bengio et al. 2013.

    Example:
        >>> fake_quantize(torch.tensor([-9.0, 0.0, 0.30, 9.0]), QParams(0.25, 4, 0, 15)).tolist()
        [-1.0, 0.0, 0.25, 2.75]
    """
    _check_input(x, qparams, "fake_quantize")
    return _FakeQuantize.apply(x, qparams)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, qparams: QParams) -> Tensor:
        out, inside = _fake_quantize(x, qparams, track=ctx.needs_input_grad[0])
        ctx.save_for_backward(inside)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        (inside,) = ctx.saved_tensors
        return grad * inside, None


def _fake_quantize(x: Tensor, qparams: QParams, track: bool) -> tuple[Tensor, Tensor | None]:
    """`x` quantized and dequantized and, if tracked, where its rounded code is on the grid."""
    wide = _is_wide(qparams)
    zero_point = qparams.zero_point.to(torch.float64 if wide else torch.float32)
    per_element = (qparams.scale, 1 / qparams.scale, qparams.quant_min - zero_point, qparams.quant_max - zero_point)
    out = torch.empty_like(x)
    inside = torch.empty_like(x, dtype=torch.bool) if track else None
    zero = torch.zeros((), dtype=torch.float64 if wide else torch.float32)
    for block, (scale, reciprocal, low, high) in _blocks(x.shape, per_element):
        steps = _steps(x[block], reciprocal, wide)
        # The zero point cancels: clamping between shifted ends equals adding it, clamping and
        # subtracting it. Adding 0.0 turns -0.0 into the 0.0 that an integer code would give.
        clamped = steps.clamp(low, high)
        if inside is not None:
            torch.eq(steps, clamped, out=inside[block])
        torch.addcmul(zero, clamped, scale.to(clamped.dtype), out=out[block])
    return out, inside


@dataclass(frozen=True)
class QuantizationError:
    """The squared error of quantizing n values, split by cause.

    A value is clipped when its rounded code falls off the grid; else its error is rounding. The two
    sets do not overlap, so the parts add up to the whole.

    Attributes:
        count: number of values, n.
        signal: sum of x**2.
        rounding: sum of (x - x_hat)**2 over the values inside the grid.
        clipping: sum of (x - x_hat)**2 over the clipped values.
        clipped: number of clipped values.
    """

    count: int
    signal: float
    rounding: float
    clipping: float
    clipped: float

    @property
    def total(self) -> float:
        """Sum of (x - x_hat)**2 over all values."""
        return self.rounding + self.clipping

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio in dB."""
        return decibels(self.signal, self.total)


def measure_error(x: Tensor, qparams: QParams) -> QuantizationError:
    """Measure what quantizing `x` costs, split into rounding and clipping.

    Args:
        x: `(*shape)` finite real values, at least one.
        qparams: `scale` and `zero_point` broadcast against `x`.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: `x` is empty or holds NaN or infinity, or the shapes do not broadcast.

    Example:
        >>> error = measure_error(torch.tensor([0.25, 0.30, 3.75]), QParams(0.25, 4, 0, 15))
        >>> error.clipped, round(error.rounding, 4), error.clipping
        (1, 0.0025, 1.0)
    """
    _check_input(x, qparams, "measure_error")
    x = x.detach()
    _check_finite(x, "measure_error")
    approximation, inside = _fake_quantize(x, qparams, track=True)
    assert inside is not None
    signal = rounding = clipping = 0.0
    blocks = zip(*(t.flatten().split(_BLOCK) for t in (x, approximation, inside)), strict=True)
    for values, approximations, kept in blocks:
        values = values.to(torch.float64)
        noise = values - approximations
        lost = noise * ~kept
        noise -= lost
        signal, rounding, clipping = (
            total + float(part.dot(part)) for total, part in ((signal, values), (rounding, noise), (clipping, lost))
        )
    return QuantizationError(x.numel(), signal, rounding, clipping, x.numel() - int(inside.count_nonzero()))


def sqnr(reference: Tensor, approximation: Tensor, *, axis: int | None = None) -> float | Tensor:
    """Measure the signal-to-quantization-noise ratio in decibels.

        SQNR = 10 log10( sum(reference**2) / sum((reference - approximation)**2) )

    Each halving of the error adds 6.02 dB, as does each bit where rounding is the only error. An
    approximation without error has infinite SQNR.

    Args:
        reference: `(*shape)` the exact values, at least one.
        approximation: `(*shape)` the values to judge.
        axis: the axis of the channels, to judge each on its own: a loud channel drowns the error of the others.

    Returns:
        A number; `(channels,)` float64 if `axis` is given.

    Raises:
        TypeError: an argument is not a tensor of real numbers.
        ValueError: the shapes differ, a tensor is empty or holds NaN or infinity, or it has no such axis.

    Example:
        >>> sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
        20.0
        >>> sqnr(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.5], [0.0, 0.0]]), axis=0).tolist()
        [20.0, 0.0]
    """
    for name, x in (("reference", reference), ("approximation", approximation)):
        if not isinstance(x, Tensor) or x.is_complex():
            raise TypeError(f"sqnr: {name} must be a tensor of real numbers, got {_kind(x)}")
        _check_finite(x, f"sqnr: {name}")
    if reference.shape != approximation.shape:
        raise ValueError(
            f"sqnr compares tensors of one shape, got {tuple(reference.shape)} and {tuple(approximation.shape)}"
        )
    reference = reference.detach().to(torch.float64)
    noise = reference - approximation.detach().to(torch.float64)
    if axis is None:
        return decibels(float(reference.square().sum()), float(noise.square().sum()))
    if not -reference.dim() <= axis < reference.dim():
        raise ValueError(f"sqnr: axis={axis} is not an axis of a tensor of shape {tuple(reference.shape)}")
    channels = reference.shape[axis]
    powers = (x.movedim(axis, 0).reshape(channels, -1).square().sum(dim=1).tolist() for x in (reference, noise))
    return torch.tensor([decibels(*pair) for pair in zip(*powers, strict=True)], dtype=torch.float64)


def decibels(signal: float, noise: float) -> float:
    """Return a ratio of powers in dB: infinite without noise, minus infinity without signal, NaN where either is.

    Example:
        >>> decibels(100.0, 1.0), decibels(0.0, 0.0), decibels(1.0, math.inf)
        (20.0, inf, -inf)
    """
    if math.isnan(signal + noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and noise < math.inf else -math.inf


def _steps(x: Tensor, reciprocal: Tensor, wide: bool) -> Tensor:
    """round(x / scale) as a new floating-point tensor: float64 for float64 input or a wide grid, else float32."""
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    steps = torch.mul(x, reciprocal).round_()
    return steps.to(torch.float64) if wide else steps


def _is_wide(qparams: QParams) -> bool:
    """Whether the grid holds codes that float32 cannot tell apart."""
    return qparams.quant_min < -_NARROW or qparams.quant_max > _NARROW


def _blocks(shape: torch.Size, others: tuple[Tensor, ...]) -> Iterator[tuple[tuple[slice, ...], tuple[Tensor, ...]]]:
    """Cut `shape` into index blocks of at most `_BLOCK` elements, with what of `others` broadcasts against each."""
    others = tuple(t.reshape((1,) * (len(shape) - t.dim()) + t.shape) if t.dim() else t for t in others)
    size = math.prod(shape)
    todo = [tuple(slice(0, n) for n in shape)] if size else []
    while todo:
        block = todo.pop()
        lengths = [s.stop - s.start for s in block]
        if math.prod(lengths) > _BLOCK:
            axis = next(i for i, n in enumerate(lengths) if n > 1)
            start, stop = block[axis].start, block[axis].stop
            middle = (start + stop) // 2
            for half in (slice(middle, stop), slice(start, middle)):
                todo.append((*block[:axis], half, *block[axis + 1 :]))
            continue
        yield (
            block,
            tuple(
                t[tuple(s if n > 1 else slice(None) for s, n in zip(block, t.shape, strict=True))] if t.dim() else t
                for t in others
            ),
        )


def _as_tensor(value: object, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or a tensor, got {_kind(value)}: {error}") from None
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {_kind(tensor)}")
    return tensor


def check_grid(quant_min: int, quant_max: int) -> tuple[int, int]:
    """Return the ends of a grid of codes as ints.

    Raises:
        TypeError: an end is not a whole number.
        ValueError: the grid is empty or beyond int32.
    """
    try:
        quant_min, quant_max = operator.index(quant_min), operator.index(quant_max)
    except TypeError:
        raise TypeError(f"quant_min and quant_max must be whole numbers, got {quant_min!r} and {quant_max!r}") from None
    if quant_min >= quant_max:
        raise ValueError(f"quant_min must be below quant_max, got {quant_min} and {quant_max}")
    int32 = torch.iinfo(torch.int32)
    if quant_min < int32.min or quant_max > int32.max:
        raise ValueError(f"codes are at most 32-bit signed integers, got the grid [{quant_min}, {quant_max}]")
    return quant_min, quant_max


def _check_input(x: Tensor, qparams: QParams, caller: str) -> None:
    if not isinstance(x, Tensor) or x.dtype not in _FLOAT_DTYPES:
        raise TypeError(
            f"{caller} needs a floating-point tensor, got {_kind(x)}: convert it, for example with .float()"
        )
    if not isinstance(qparams, QParams):
        raise TypeError(f"{caller} needs QParams, got {_kind(qparams)}: choose_qparams makes them from a range")
    _check_shapes(x, qparams, caller)


def _check_shapes(x: Tensor, qparams: QParams, caller: str) -> None:
    shape = qparams.scale.shape
    try:
        fits = torch.broadcast_shapes(x.shape, shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{caller}: qparams of shape {tuple(shape)} do not broadcast against a tensor of shape {tuple(x.shape)}: "
            "per tensor they have shape (), per channel 1 on every axis but the channel's"
        )


def _check_finite(x: Tensor, caller: str) -> None:
    if x.numel() == 0:
        raise ValueError(f"{caller}: the tensor of shape {tuple(x.shape)} is empty, there is nothing to measure")
    low, high = x.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"{caller}: {int((~x.isfinite()).sum())} of {x.numel()} values are NaN or infinite")


def _check_values(values: Tensor, ok: Tensor, name: str, rule: str) -> None:
    if not ok.all():
        raise ValueError(f"{name} {rule}, got {_brief(values[~ok] if values.dim() else values)}")


def _brief(values: Tensor) -> str:
    shown = ", ".join(f"{v:g}" for v in values.flatten()[:3].tolist())
    return shown if values.numel() <= 3 else f"{shown}, ... ({values.numel()} values)"


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{type(value).__name__}"
