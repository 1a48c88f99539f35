"""What an answer is compared with, and how to say where it differs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def same(given: Any, expected: Any, tolerance: float) -> bool:
    """Whether an answer is what was expected; numbers may differ by `tolerance`, absolute or relative."""
    if isinstance(expected, tuple):
        return (
            isinstance(given, (tuple, list))
            and len(given) == len(expected)
            and all(same(g, e, tolerance) for g, e in zip(given, expected, strict=True))
        )
    if isinstance(expected, str):
        return isinstance(given, str) and given.strip(" ().").lower() == expected.lower()
    if isinstance(given, (str, bool)) or given is None or given is ...:
        return False
    if isinstance(expected, Tensor) and expected.dim() and not isinstance(given, Tensor):
        return False
    return _same_values(given, expected, tolerance)


def _same_values(given: Any, expected: Any, tolerance: float) -> bool:
    try:
        given, expected = _as_float64(given), _as_float64(expected)
    except (TypeError, ValueError, RuntimeError):
        return False
    if given.shape != expected.shape:
        return given.numel() == expected.numel() == 1 and _same_values(given.item(), expected.item(), tolerance)
    return bool(_agree(given, expected, tolerance).all())


def _as_float64(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(torch.float64)
    return torch.as_tensor(value, dtype=torch.float64)


def _agree(given: Tensor, expected: Tensor, tolerance: float) -> Tensor:
    return torch.isclose(given, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def other_kind(given: Any, expected: Any, tolerance: float) -> str | None:
    """What to say where the values may be right but come in another kind than asked for."""
    if isinstance(expected, tuple) and not isinstance(given, (tuple, list)):
        return f"Return {len(expected)} values, separated by a comma; yours returns {type(given).__name__}."
    if not isinstance(expected, Tensor):
        return None
    if not isinstance(given, Tensor):
        you = "The values are right, but you" if _same_values(given, expected, tolerance) else "You"
        return f"{you} return {type(given).__name__}: return a torch tensor."
    if given.shape != expected.shape:
        return f"You return a tensor of shape {tuple(given.shape)}; expected {tuple(expected.shape)}."
    return None


def difference(names: Iterable[str], arguments: tuple, given: Any, expected: Any, tolerance: float) -> str:
    """Show one call, at the first element that is wrong."""
    share = ""
    if isinstance(expected, Tensor) and expected.dim():
        wrong = (~_agree(_as_float64(given), _as_float64(expected), tolerance)).flatten()
        first, count = int(wrong.nonzero()[0]), int(wrong.sum())
        one = [v.flatten()[first] if isinstance(v, Tensor) and v.shape == expected.shape else v for v in arguments]
        arguments, share = tuple(one), f" {count} of {wrong.numel()} values differ."
        given, expected = given.flatten()[first], expected.flatten()[first]
    call = ", ".join(f"{name} = {show(value)}" for name, value in zip(names, arguments, strict=True))
    return f"For {call} it returns {show(given)}; expected {show(expected)}.{share}"


def show(value: Any) -> str:
    """A value as a learner would write it, cut where it is long."""
    if hasattr(value, "tolist"):  # a tensor, or NumPy's
        value = value.tolist()
    if isinstance(value, bool) or not isinstance(value, (int, float, tuple, list)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        return opening + ", ".join(map(show, value)) + closing
    shown = f"{value:.9g}" if isinstance(value, float) else str(value)
    return shown if len(shown) < 40 else f"{shown[:36]}..."
