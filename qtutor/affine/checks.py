"""What may be handed in: each check refuses the rest with a reason that names the cure."""

import operator

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_tensor(value: object, name: str) -> Tensor:
    """Return a number or a tensor as a tensor without gradient; refuse all else with a TypeError."""
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or a tensor, got {kind(value)}: {error}") from None
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {kind(tensor)}")
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


def broadcasts(shape: torch.Size, onto: torch.Size) -> bool:
    """Return whether a tensor of one shape broadcasts against one of another without widening it."""
    fits = all(size in (1, other) for size, other in zip(shape[::-1], onto[::-1], strict=False))
    return fits and len(shape) <= len(onto)


def check_floats(x: object, caller: str, cure: str = "") -> None:
    """Refuse with a TypeError what is not a dense tensor of 16-bit to 64-bit floating-point numbers."""
    if not isinstance(x, Tensor) or x.dtype not in _FLOATS:
        cure = cure or f"convert it, for example with {'.float()' if isinstance(x, Tensor) else 'torch.tensor(...)'}"
        raise TypeError(f"{caller} needs a floating-point tensor, got {kind(x)}: {cure}")
    if x.layout != torch.strided:
        raise TypeError(f"{caller} needs a dense tensor, got {x.layout}: convert it with .to_dense()")


def check_finite(x: Tensor, caller: str) -> None:
    """Refuse an empty tensor, NaN and infinity with a ValueError."""
    if x.numel() == 0:
        raise ValueError(f"{caller}: the tensor of shape {tuple(x.shape)} is empty, there is nothing to measure")
    low, high = x.aminmax()
    if not (low.isfinite() and high.isfinite()):
        bad = int((~x.isfinite()).sum())
        raise ValueError(
            f"{caller}: {bad} of {x.numel()} values are NaN or infinite: replace them first, for example with "
            "torch.nan_to_num"
        )


def check_values(values: Tensor, ok: Tensor, name: str, rule: str) -> None:
    """Refuse values that are not `ok` with a ValueError that shows them."""
    if not ok.all():
        raise ValueError(f"{name} {rule}, got {brief(values[~ok] if values.dim() else values)}")


def brief(values: Tensor) -> str:
    """Return the first three values in words."""
    shown = ", ".join(f"{v:g}" for v in values.flatten()[:3].tolist())
    return shown if values.numel() <= 3 else f"{shown}, ... ({values.numel()} values)"


def kind(value: object) -> str:
    """Return what something is in words: its type, and of a tensor its dtype."""
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
