"""AWQ: before rounding, make the weights of loud inputs larger, and the inputs as much smaller.

    W x = (W diag(s)) (x / s),    s_j = (mean |x_j|)^a

A larger weight is rounded by the same step, so its error counts less: 1 / s_j times. The power a is searched
from 0, plain rounding, to 1; each is judged by the outputs of the layer.

Source: Lin et al. 2024, "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and
Acceleration", eq. 2 to 5.
"""

from qtutor.lowbit.checks import finite, matrix
from qtutor.lowbit.formats import Format
from qtutor.lowbit.gptq import hessian, layer_loss

import torch
from torch import Tensor

_POWERS = 20  # above 0, that are tried


def awq_scales(weight: Tensor, inputs: Tensor, *, format: Format) -> Tensor:
    """Choose what to multiply the columns of a weight by before it is rounded, and to divide its inputs by.

    Args:
        weight: `(out, in)`.
        inputs: `(..., in)` what the layer reads.
        format: to which the weight is rounded, such as `integers(4, group=64)`.

    Returns:
        `(in,)` float32, positive; all 1 where plain rounding is best. Its largest and smallest have product 1.

    Raises:
        TypeError: a tensor is not a dense floating-point one.
        ValueError: shapes do not fit, a value is not finite, or blocks do not divide the inputs.
    """
    weight = matrix(weight, "weight", "awq_scales").float()
    rows = finite(inputs, "inputs", "awq_scales")
    if rows.shape[-1] != weight.shape[1]:
        raise ValueError(f"awq_scales: the weight has {weight.shape[1]} inputs, and what it reads {rows.shape[-1]}")
    rows = rows.reshape(-1, weight.shape[1]).float()
    loudness, curvature = rows.abs().mean(dim=0), hessian(rows)
    # A silent input must not shrink its weights to nothing.
    loudness = (loudness / (loudness.max() or 1)).clamp(min=1e-4)
    best, least = torch.ones_like(loudness), float("inf")
    for step in range(_POWERS + 1):
        scales = loudness ** (step / _POWERS)
        scales = scales / (scales.max() * scales.min()).sqrt()
        loss = layer_loss(weight, format.round(weight * scales) / scales, curvature)
        if loss < least:
            best, least = scales, loss
    return best


def awq(weight: Tensor, inputs: Tensor, *, format: Format) -> Tensor:
    """Return the `(out, in)` weight that the scaled and rounded layer amounts to: round(W diag(s)) diag(1 / s).

    Arguments and errors are those of `awq_scales`.
    """
    scales = awq_scales(weight, inputs, format=format)
    return format.round(weight.detach().float() * scales) / scales
