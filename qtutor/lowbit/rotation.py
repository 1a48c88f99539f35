"""Rotate what a layer reads: W x = (W R) (R^T x) for any orthogonal R, and no channel stays an outlier.

A Hadamard matrix has entries +1 and -1 only and orthogonal rows, so divided by sqrt(n) it is a rotation (or a
reflection) in which each new channel hears all old ones equally loudly. Orders are made from two rules:

    Sylvester   H_ab = H_a (x) H_b, the Kronecker product; H_2 = [[1, 1], [1, -1]]
    Paley       from squares modulo a prime p: order p + 1 for p = 3 mod 4, order 2 (p + 1) for p = 1 mod 4

Sources: Sylvester 1867; Paley 1933, "On orthogonal matrices"; Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit
Inference in Rotated LLMs", section 3.
"""

import functools
import math

import torch
from torch import Tensor


def hadamard(n: int) -> Tensor:
    """Return an orthogonal `(n, n)` matrix whose entries are all 1 / sqrt(n) or -1 / sqrt(n), float32.

    Raises:
        ValueError: none is known here: n is 1, 2 or a multiple of 4, and not all of those can be made.

    Example:
        >>> hadamard(4).mul(2).int().tolist()
        [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    signs = _signs(n) if type(n) is int and n > 0 else None
    if signs is None:
        raise ValueError(f"hadamard: no matrix of order {n!r} can be made here: try a multiple of 4, such as 12 or 64")
    return signs.float() / math.sqrt(n)


@functools.lru_cache(maxsize=16)
def _signs(n: int) -> Tensor | None:
    """The matrix of +1 and -1, int8, or None; of all ways the one of most doublings."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.int8)
    if n % 2 == 0 and (half := _signs(n // 2)) is not None and (n == 2 or n % 4 == 0):
        return torch.kron(torch.tensor([[1, 1], [1, -1]], dtype=torch.int8), half)
    if n % 4:
        return None
    if _is_prime(n - 1):
        return _paley(n - 1)
    if _is_prime(n // 2 - 1):
        return _paley(n // 2 - 1)
    for a in range(4, math.isqrt(n) + 1, 4):
        if n % a == 0 and (left := _signs(a)) is not None and (right := _signs(n // a)) is not None:
            return torch.kron(left, right)
    return None


def _paley(p: int) -> Tensor:
    """Paley's matrix: its core says which differences are squares modulo p."""
    squares = {i * i % p for i in range(1, p)}
    character = torch.tensor([0] + [1 if i in squares else -1 for i in range(1, p)], dtype=torch.int8)
    steps = torch.arange(p)
    core = character[(steps[None] - steps[:, None]) % p]  # (p, p)
    bordered = torch.zeros(p + 1, p + 1, dtype=torch.int8)
    bordered[0, 1:], bordered[1:, 1:] = 1, core
    if p % 4 == 3:
        bordered[1:, 0] = -1
        return bordered + torch.eye(p + 1, dtype=torch.int8)
    bordered[1:, 0] = 1
    off = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    on = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(bordered, off) + torch.kron(torch.eye(p + 1, dtype=torch.int8), on)


def _is_prime(p: int) -> bool:
    return p > 1 and all(p % i for i in range(2, math.isqrt(p) + 1))
