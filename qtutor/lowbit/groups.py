"""One scale for each run of `group` neighbouring inputs of a weight `(out, in)`; its view is `(out, groups, group)`."""

from qtutor.affine import QParams, choose_qparams, fake_quantize, grid
from qtutor.lowbit.checks import group_size, matrix

from torch import Tensor


def group_qparams(weight: Tensor, bits: int, group: int | None = None, symmetric: bool = False) -> QParams:
    """Choose the scales of groups by min-max.

    Args:
        weight: `(out, in)`.
        bits: 2 to 8 are usual.
        group: a divisor of `in`; None for one scale a row.
        symmetric: whether zero sits in the middle of each grid.

    Returns:
        QParams of shape `(out, groups, 1)`.

    Raises:
        TypeError: `weight` is not a dense floating-point tensor, or `bits` or `group` not a whole number.
        ValueError: `weight` is no finite matrix, or the group does not divide its inputs.
    """
    weight = matrix(weight, "weight", "group_qparams").float()
    grouped = weight.unflatten(1, (-1, group_size(group, weight.shape[1], "group_qparams")))
    low, high = grid(bits)
    return choose_qparams(
        grouped.amin(dim=2, keepdim=True),
        grouped.amax(dim=2, keepdim=True),
        quant_min=low,
        quant_max=high,
        symmetric=symmetric,
    )


def round_groups(weight: Tensor, bits: int, group: int | None = None, symmetric: bool = False) -> Tensor:
    """Round a weight to the nearest value of its groups' grids; arguments and errors as of `group_qparams`.

    Returns:
        `(out, in)` float32.

    Example:
        >>> import torch
        >>> round_groups(torch.tensor([[0.0, 0.9, 3.0, 0.0, 9.0, 30.0]]), bits=2, group=3).tolist()
        [[0.0, 1.0, 3.0, 0.0, 10.0, 30.0]]
    """
    qparams = group_qparams(weight, bits, group, symmetric)
    grouped = weight.detach().float().unflatten(1, (qparams.scale.shape[1], -1))
    return fake_quantize(grouped, qparams).flatten(1)
