"""The scale and the zero point of a range: s = (max - min) / (q_max - q_min), z = q_min - round(min / s)."""

import math
import operator
from dataclasses import dataclass

from qtutor.affine.checks import as_tensor, brief, check_grid, check_values

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps
"""The smallest scale that `choose_qparams` returns, as in PyTorch's observers."""


@dataclass(frozen=True, eq=False)
class QParams:
    """What it takes to map reals to codes and back.

    Numbers are accepted and stored as tensors. `scale` and `zero_point` broadcast against the
    tensor they quantize: `()` per tensor, `(C, 1, 1, 1)` per output channel of a convolution,
    `(out, groups, 1)` per group of a weight viewed as `(out, groups, group_size)`.

    Attributes:
        scale: float32, positive; the width of one step in the unit of x.
        zero_point: int32 on the grid; the code of exactly 0.0. Same shape as `scale`.

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
        scale = as_tensor(self.scale, "scale").to(torch.float32, copy=True)
        check_values(scale, (scale > 0) & (scale < math.inf), "scale", "must be positive and finite")
        check_values(scale, 1 / scale < math.inf, "scale", "is so small that 1 / scale overflows float32")
        zero_point = as_tensor(self.zero_point, "zero_point")
        if zero_point.is_floating_point() and not torch.equal(zero_point, zero_point.round()):
            raise TypeError(f"zero_point must be a whole number, got {brief(zero_point)}: round it first")
        code = zero_point.to(torch.float64)  # a narrow dtype cannot hold the ends of every grid
        inside = (code >= quant_min) & (code <= quant_max)
        check_values(code, inside, "zero_point", f"must lie on the grid [{quant_min}, {quant_max}]")
        try:
            scale, zero_point = torch.broadcast_tensors(scale, zero_point.to(torch.int32, copy=True))
        except RuntimeError:
            raise ValueError(
                f"scale has shape {tuple(scale.shape)} and zero_point {tuple(zero_point.shape)}, "
                "which do not broadcast: give one zero point for each scale"
            ) from None

        object.__setattr__(self, "scale", scale.contiguous())
        object.__setattr__(self, "zero_point", zero_point.contiguous())
        object.__setattr__(self, "quant_min", quant_min)
        object.__setattr__(self, "quant_max", quant_max)

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
        return self._real_value(self.quant_min)

    @property
    def high(self) -> Tensor:
        """The largest real value that has a code of its own; shape of `scale`."""
        return self._real_value(self.quant_max)

    @property
    def code_dtype(self) -> torch.dtype:
        """The smallest of uint8, int8, int16 and int32 that holds every code of the grid."""
        for dtype in (torch.uint8, torch.int8, torch.int16):
            info = torch.iinfo(dtype)
            if info.min <= self.quant_min and self.quant_max <= info.max:
                return dtype
        return torch.int32

    def _real_value(self, code: int) -> Tensor:
        """(q - z) * s, rounded once: float64 holds the difference exactly."""
        return ((code - self.zero_point.to(torch.float64)) * self.scale).to(torch.float32)


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
    low = as_tensor(min_val, "min_val").to(torch.float32)
    high = as_tensor(max_val, "max_val").to(torch.float32)
    if low.shape != high.shape:
        raise ValueError(f"min_val has shape {tuple(low.shape)} and max_val {tuple(high.shape)}: give as many of each")
    check_values(low, low.isfinite(), "min_val", "must be finite")
    check_values(high, high.isfinite(), "max_val", "must be finite")
    if (low > high).any():
        raise ValueError(f"min_val must not exceed max_val, got {brief(low)} and {brief(high)}: swap them?")

    low, high = low.clamp(max=0), high.clamp(min=0)
    scale, zero_point = scale_and_zero_point(low, high, quant_min, quant_max, symmetric)
    if (scale == math.inf).any():
        raise ValueError(f"the range {brief(low)} to {brief(high)} is wider than float32 can hold")
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
