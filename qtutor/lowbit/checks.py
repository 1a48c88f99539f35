"""What the functions of this room refuse, each with a reason."""

import operator

from qtutor.affine.checks import check_finite, check_floats

from torch import Tensor


def matrix(value: Tensor, name: str, caller: str) -> Tensor:
    """Return a finite floating-point matrix without its history.

    Raises:
        TypeError: it is not a dense floating-point tensor.
        ValueError: it has not two dimensions, is empty, or holds NaN or infinity.
    """
    value = finite(value, name, caller)
    if value.dim() != 2:
        raise ValueError(f"{caller}: {name} must be a matrix, got shape {tuple(value.shape)}")
    return value


def finite(value: Tensor, name: str, caller: str) -> Tensor:
    """Return a finite floating-point tensor without its history; raises as `matrix` does."""
    check_floats(value, f"{caller}: {name}")
    check_finite(value.detach().float(), f"{caller}: {name}")  # in which all is computed
    return value.detach()


def group_size(group: int | None, inputs: int, caller: str) -> int:
    """Return the size of a group: all inputs for None.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it does not divide the inputs.
    """
    if group is None:
        return inputs
    try:
        group = operator.index(group)
    except TypeError:
        raise TypeError(f"{caller}: group must be a whole number or None, got {group!r}") from None
    if group < 1 or inputs % group:
        raise ValueError(f"{caller}: groups of {group} do not divide {inputs} inputs: choose a divisor of {inputs}")
    return group
