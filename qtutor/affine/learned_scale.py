"""Fake-quantization with a learned scale: the step size is trained together with the weights.

    x_hat = clamp(round(x / s), q_min, q_max) * s

    d x_hat / d x = 1                     inside the grid, else 0
    d x_hat / d s = round(x / s) - x / s  inside the grid, else q_min or q_max

The gradient of s is scaled by 1 / sqrt(N q_max), with N values to a scale, so that scales and weights
move at the same relative pace.

Source: Esser et al. 2020, "Learned Step Size Quantization", eqs. 1 to 3 and section 2.2.
"""

import math

from qtutor.affine.checks import broadcasts, check_floats, check_grid, check_values
from qtutor.affine.qparams import EPS

import torch
from torch import Tensor, nn


def learned_fake_quantize(
    x: Tensor,
    scale: Tensor,
    *,
    quant_min: int = -128,
    quant_max: int = 127,
    gradient_scale: float | None = None,
) -> Tensor:
    """Quantize and dequantize with a scale that gets a gradient of its own.

    Equals PyTorch's `_fake_quantize_learnable_per_tensor_affine`, in the gradients too: a value is inside
    where its rounded code is on the grid.

    Args:
        x: `(*shape)` real values.
        scale: floating point, positive; broadcasts against `x`: `()` per tensor, `(C, 1, 1, 1)` per channel.
        gradient_scale: what the gradient of `scale` is multiplied by; by default 1 / sqrt(N quant_max), where N
            values share a scale.

    Raises:
        TypeError: `x` or `scale` is not a floating-point tensor, or an end of the grid not a whole number.
        ValueError: a scale is not positive and finite, the grid is empty, or the shapes do not broadcast.

    Example:
        >>> scale = torch.tensor(0.5, requires_grad=True)
        >>> x = torch.tensor([0.6, 9.0])
        >>> x_hat = learned_fake_quantize(x, scale, quant_min=-4, quant_max=3, gradient_scale=1.0)
        >>> x_hat.tolist()
        [0.5, 1.5]
        >>> x_hat.sum().backward()
        >>> round(scale.grad.item(), 4)  # 1 - 0.6 / 0.5 for the one inside, 3 for the clipped one
        2.8
    """
    for name, tensor in (("x", x), ("scale", scale)):
        check_floats(tensor, f"learned_fake_quantize: {name}")
    quant_min, quant_max = check_grid(quant_min, quant_max)
    values, rule = scale.detach(), "must be positive and finite: clamp it after each step of the optimizer"
    check_values(values, (values > 0) & values.isfinite(), "scale", rule)
    if not broadcasts(scale.shape, x.shape):
        raise ValueError(f"a scale of shape {tuple(scale.shape)} does not broadcast against {tuple(x.shape)}")
    if gradient_scale is None:
        gradient_scale = 1 / math.sqrt(max(1, x.numel() / max(1, scale.numel())) * max(1, quant_max))
    return _LearnedFakeQuantize.apply(x, scale, quant_min, quant_max, gradient_scale)


class _LearnedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, low: int, high: int, gradient_scale: float) -> Tensor:
        steps = torch.round(x * (1 / scale))
        clamped = steps.clamp(low, high)
        ctx.save_for_backward(x, scale, clamped, steps == clamped)
        ctx.gradient_scale = gradient_scale
        return ((clamped + 0.0) * scale).to(x.dtype)  # never -0.0, which no integer code gives

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, scale, clamped, inside = ctx.saved_tensors
        slope = torch.where(inside, clamped - x / scale, clamped)
        return grad * inside, (grad * slope).sum_to_size(scale.shape) * ctx.gradient_scale, None, None, None


class LearnedFakeQuantizer(nn.Module):
    """Fake-quantize with a scale that is a parameter; the first batch sets where it starts.

    It starts at 2 mean(|x|) / sqrt(quant_max), as the paper does. Behind a layer it quantizes activations;
    with `torch.nn.utils.parametrize` on a layer's `weight` it quantizes weights.

    Args:
        quant_min: lowest code; 0 after a ReLU.
        axis: the axis of the channels, for one scale each; None for one scale.
        channels: how many there are along `axis`.

    Raises:
        ValueError: the grid is empty or does not hold zero, or only one of `axis` and `channels` is given.
    """

    started: Tensor

    def __init__(self, quant_min: int, quant_max: int, *, axis: int | None = None, channels: int | None = None):
        super().__init__()
        if not quant_min <= 0 < quant_max:
            raise ValueError(f"the grid [{quant_min}, {quant_max}] must hold zero and a code above it")
        if (axis is None) != (channels is None):
            raise ValueError("give axis and channels together, or neither for one scale per tensor")
        self.quant_min, self.quant_max, self.axis = quant_min, quant_max, axis
        self.scale = nn.Parameter(torch.ones(() if channels is None else channels))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        with torch.no_grad():
            if not self.started:
                others = [i for i in range(x.dim()) if self.axis is None or i != self.axis % x.dim()]
                self.scale.copy_(2 * x.abs().mean(others) / math.sqrt(self.quant_max))
                self.started.fill_(True)
            self.scale.clamp_(min=EPS)
        scale = self.scale if self.axis is None else self.scale.view(shape)
        return learned_fake_quantize(x, scale, quant_min=self.quant_min, quant_max=self.quant_max)
