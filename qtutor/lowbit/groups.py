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
    return run_qparams(weight.unflatten(1, (-1, group_size(group, weight.shape[1], "group_qparams"))), bits, symmetric)


def run_qparams(runs: Tensor, bits: int, symmetric: bool, signed: bool = True) -> QParams:
    """Choose a scale by min-max for each run along the last dimension, which is then 1."""
    quant_min, quant_max = grid(bits, signed=signed)
    low, high = runs.amin(dim=-1, keepdim=True), runs.amax(dim=-1, keepdim=True)  # faster than aminmax
    return choose_qparams(low, high, quant_min=quant_min, quant_max=quant_max, symmetric=symmetric)


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
