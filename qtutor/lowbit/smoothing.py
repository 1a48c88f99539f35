"""SmoothQuant: move the outliers of activations into the weights, where one scale a row bears them.

    W x = (W diag(s)) (x / s),    s_j = max|x_j|^a / max|w_j|^(1 - a)

The strength a says how much: 0 leaves all of the trouble with the activations, 1 all with the weights, and at
1/2 both have the same largest value at each input: sqrt(max|x_j| * max|w_j|).

Source: Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", eq. 4.
"""

from collections.abc import Sequence

from qtutor.lowbit.checks import finite, matrix

import torch
from torch import Tensor


def smooth(weights: Tensor | Sequence[Tensor], activations_maximum: Tensor, strength: float = 0.5) -> Tensor:
    """Choose what to divide activations by, and to multiply the columns of the weights that read them by.

    Args:
        weights: `(out, in)`, or all the weights that read the same activations, such as those of q, k and v.
        activations_maximum: `(in,)` the largest magnitude of each channel on calibration data.
        strength: a, from 0 to 1.

    Returns:
        `(in,)` float32, positive. An input that is silent, or that no weight reads, keeps 1.

    Raises:
        TypeError: a tensor is not a dense floating-point one.
        ValueError: shapes do not fit, a value is not finite, or the strength is not from 0 to 1.

    Example:
        >>> smooth(torch.tensor([[0.5, -1.0]]), torch.tensor([8.0, 1.0])).tolist()
        [4.0, 1.0]
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"smooth: strength must be from 0 to 1, got {strength}")
    weights = [weights] if isinstance(weights, Tensor) else list(weights)
    if not weights:
        raise ValueError("smooth: there is no weight that reads the activations")
    loud = finite(activations_maximum, "activations_maximum", "smooth").float().abs()
    checked = [matrix(weight, "weights", "smooth").float() for weight in weights]
    if any(loud.shape != (weight.shape[1],) for weight in checked):
        shapes = ", ".join(str(tuple(weight.shape)) for weight in checked)
        raise ValueError(f"smooth: weights {shapes} do not read activations of shape {tuple(loud.shape)}")
    large = torch.stack([weight.abs().amax(dim=0) for weight in checked]).amax(dim=0)
    scales = loud**strength / large ** (1 - strength)
    usable = (loud > 0) & (large > 0) & (scales > 0) & scales.isfinite()
    return torch.where(usable, scales, torch.ones_like(scales))
