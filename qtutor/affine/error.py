"""What quantizing costs: the squared error, split by cause, and the ratio of the signal to it in decibels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from qtutor.affine.checks import check_finite, kind
from qtutor.affine.mapping import check_input, nearest_codes, on_grid, real_values_
from qtutor.affine.qparams import QParams

import torch
from torch import Tensor

_PART = 1 << 15  # values in cache, and few enough that PyTorch waits for no other thread


@dataclass(frozen=True)
class QuantizationError:
    """The squared error of quantizing n values, split by cause.

    A value is clipped when its rounded code falls off the grid; else its error is rounding. The two
    sets do not overlap, so the parts add up to the whole.

    Attributes:
        signal: sum of x**2.
        rounding: sum of (x - x_hat)**2 over the values inside the grid.
        clipping: sum of (x - x_hat)**2 over the clipped values.
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
    check_input(x, qparams, "measure_error")
    x = x.detach()
    check_finite(x, "measure_error")
    codes = nearest_codes(x, qparams)
    inside = on_grid(codes, qparams)
    x_hat = real_values_(codes.clamp_(qparams.quant_min, qparams.quant_max), qparams).to(x.dtype)
    signal = rounding = clipping = 0.0
    for value, approximation, kept in _in_parts(x, x_hat, inside):
        noise = value - approximation
        signal += _power(value)
        rounding += _power(noise * kept)
        clipping += _power(noise * ~kept)
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
            raise TypeError(f"sqnr: {name} must be a tensor of real numbers, got {kind(x)}")
        check_finite(x, f"sqnr: {name}")
    if reference.shape != approximation.shape:
        raise ValueError(
            f"sqnr compares tensors of one shape, got {tuple(reference.shape)} and {tuple(approximation.shape)}"
        )
    if axis is None:
        return decibels(*_powers(reference.reshape(1, -1), approximation.reshape(1, -1))[0])
    if not -reference.dim() <= axis < reference.dim():
        raise ValueError(f"sqnr: axis={axis} is not an axis of a tensor of shape {tuple(reference.shape)}")
    channels = reference.shape[axis]
    powers = _powers(*(x.movedim(axis, 0).reshape(channels, -1) for x in (reference, approximation)))
    return torch.tensor([decibels(*pair) for pair in powers], dtype=torch.float64)


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


def _powers(rows: Tensor, approximations: Tensor) -> list[tuple[float, float]]:
    """Return of each row its sum of squares and that of its errors, in float64: a part at a time, as `_in_parts`."""
    found: list[tuple[float, float]] = []
    together = max(1, _PART // rows.shape[1])
    for some in zip(rows.detach().split(together), approximations.detach().split(together), strict=True):
        signal = noise = torch.zeros((), dtype=torch.float64)
        for part in zip(*(x.split(_PART, dim=1) for x in some), strict=True):
            values, others = (x.to(torch.float64) for x in part)
            signal, noise = signal + values.square().sum(dim=1), noise + (values - others).square().sum(dim=1)
        found += zip(signal.tolist(), noise.tolist(), strict=True)
    return found


def noise_over_signal(sqnr: float) -> float:
    """Return the ratio of powers that so many `decibels` mean.

    Example:
        >>> noise_over_signal(20.0), noise_over_signal(math.inf)
        (0.01, 0.0)
    """
    return 10 ** (-sqnr / 10)


def _power(x: Tensor) -> float:
    """The sum of squares of `(n,)` values."""
    return float(x.dot(x))


def _in_parts(x: Tensor, x_hat: Tensor, inside: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For speed, half the time and less: the three a part at a time, the values in float64."""
    for values, approximations, kept in zip(*(t.flatten().split(_PART) for t in (x, x_hat, inside)), strict=True):
        yield values.to(torch.float64), approximations, kept
