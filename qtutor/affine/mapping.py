"""q = clamp(round(x / s) + z, q_min, q_max), x_hat = (q - z) * s, and d x_hat / d x = 1 inside the grid, else 0."""

from qtutor.affine.checks import broadcasts, check_floats, check_values, kind
from qtutor.affine.qparams import QParams

import torch
from torch import Tensor

_CODE_DTYPES = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.int64)
_NARROW = 1 << 23  # codes up to here, either sign: float32 holds every one of them and every difference of two


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
    check_input(x, qparams, "quantize")
    codes = nearest_codes(x.detach(), qparams)
    if codes.isnan().any():
        raise ValueError(
            f"quantize: {int(codes.isnan().sum())} of {x.numel()} values are NaN, which has no code: "
            "replace them first, for example with torch.nan_to_num"
        )
    return codes.clamp_(qparams.quant_min, qparams.quant_max).to(qparams.code_dtype)


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
        raise TypeError(f"dequantize needs a tensor of integer codes, got {kind(codes)}: call quantize first")
    _check_shapes(codes, qparams, "dequantize")
    wide = codes.to(torch.float64)
    rule = f"must lie on the grid [{qparams.quant_min}, {qparams.quant_max}]"
    check_values(wide, on_grid(wide, qparams), "codes", rule)
    return real_values_(wide, qparams).to(torch.float32)


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
    check_input(x, qparams, "fake_quantize")
    return _FakeQuantize.apply(x, qparams)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, qparams: QParams) -> Tensor:
        codes = nearest_codes(x, qparams)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(on_grid(codes, qparams))
        return real_values_(codes.clamp_(qparams.quant_min, qparams.quant_max), qparams).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (inside,) = ctx.saved_tensors
        return grad * inside, None


def nearest_codes(x: Tensor, qparams: QParams) -> Tensor:
    """round(x / s) + z, not yet clamped, as a new tensor of floating-point numbers.

    They are float64 for float64 values, and where float32 cannot tell the codes of the grid apart.
    """
    real = x if x.dtype == torch.float64 else x.to(torch.float32)
    steps = torch.mul(real, 1 / qparams.scale).round_()
    wide = qparams.quant_min < -_NARROW or qparams.quant_max > _NARROW
    return (steps.to(torch.float64) if wide else steps).add_(qparams.zero_point)


def on_grid(codes: Tensor, qparams: QParams) -> Tensor:
    """Whether q_min <= q <= q_max, of each code."""
    return (codes >= qparams.quant_min) & (codes <= qparams.quant_max)


def real_values_(codes: Tensor, qparams: QParams) -> Tensor:
    """(q - z) * s in place, as PyTorch's underscore says: a large tensor takes longer to allocate than to compute."""
    return codes.sub_(qparams.zero_point).mul_(qparams.scale)


def check_input(x: Tensor, qparams: QParams, caller: str) -> None:
    """Refuse what `caller` cannot quantize, with a TypeError or a ValueError."""
    check_floats(x, caller)
    if not isinstance(qparams, QParams):
        raise TypeError(f"{caller} needs QParams, got {kind(qparams)}: choose_qparams makes them from a range")
    _check_shapes(x, qparams, caller)


def _check_shapes(x: Tensor, qparams: QParams, caller: str) -> None:
    shape = qparams.scale.shape
    if not broadcasts(shape, x.shape):
        raise ValueError(
            f"{caller}: qparams of shape {tuple(shape)} do not broadcast against a tensor of shape {tuple(x.shape)}: "
            "per tensor they have shape (), per channel 1 on every axis but the channel's"
        )
