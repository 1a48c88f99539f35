"""Codes of few bits, close together in bytes."""

import math

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Put codes side by side, the first into the lowest bits: two of 4 bits a byte, eight of 3 bits in three.

    Each row is filled up with zeros to whole bytes.

    Args:
        codes: `(*rows, n)` whole numbers from 0 to 2^bits - 1.
        bits: of one code, from 1 to 8.

    Returns:
        `(*rows, ceil(n * bits / 8))` uint8.

    Raises:
        ValueError: a code does not fit, or bits are not from 1 to 8.

    Example:
        >>> [f"{byte:08b}" for byte in pack(torch.tensor([1, 15, 2]), bits=4).tolist()]
        ['11110001', '00000010']
        >>> pack(torch.tensor([1, 2, 3, 0, 3]), bits=2).tolist()
        [57, 3]
    """
    together, in_bytes = _chunk(bits)
    if codes.is_floating_point() or codes.dim() == 0:
        raise ValueError(f"pack takes rows of whole numbers, got {codes.dtype} of shape {tuple(codes.shape)}")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        low, high = int(codes.min()), int(codes.max())
        raise ValueError(f"codes of {bits} bits are from 0 to {2**bits - 1}, got {low} to {high}: add the lowest first")
    count = codes.shape[-1]
    filled = torch.nn.functional.pad(codes.to(torch.int64), (0, -count % together))
    chunks = filled.unflatten(-1, (-1, together)) << (bits * torch.arange(together))
    words = chunks.sum(dim=-1, keepdim=True)  # the bits do not overlap, so a sum is an "or"
    packed = ((words >> (8 * torch.arange(in_bytes))) & 0xFF).to(torch.uint8)
    return packed.flatten(-2)[..., : math.ceil(count * bits / 8)]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Take codes out of bytes: the inverse of `pack`.

    Args:
        packed: `(*rows, bytes)` uint8.
        bits: of one code, from 1 to 8.
        count: how many codes a row holds.

    Returns:
        `(*rows, count)` uint8.

    Raises:
        ValueError: the bytes are not those of so many codes, or bits are not from 1 to 8.

    Example:
        >>> unpack(torch.tensor([0b11110001, 0b00000010], dtype=torch.uint8), bits=4, count=3).tolist()
        [1, 15, 2]
    """
    together, in_bytes = _chunk(bits)
    if packed.dtype != torch.uint8 or packed.dim() == 0:
        raise ValueError(f"unpack takes rows of bytes (uint8), got {packed.dtype} of shape {tuple(packed.shape)}")
    if count < 0 or packed.shape[-1] != math.ceil(count * bits / 8):
        needed = math.ceil(count * bits / 8)
        raise ValueError(f"{count} codes of {bits} bits take {needed} bytes, got {packed.shape[-1]}")
    filled = torch.nn.functional.pad(packed.to(torch.int64), (0, -packed.shape[-1] % in_bytes))
    words = (filled.unflatten(-1, (-1, in_bytes)) << (8 * torch.arange(in_bytes))).sum(dim=-1, keepdim=True)
    codes = (words >> (bits * torch.arange(together))) & (2**bits - 1)
    return codes.flatten(-2)[..., :count].to(torch.uint8)


def _chunk(bits: int) -> tuple[int, int]:
    """How many codes fill how many bytes to the last bit."""
    if bits not in range(1, 9):
        raise ValueError(f"a code has from 1 to 8 bits, got {bits!r}")
    shared = math.gcd(bits, 8)
    return 8 // shared, bits // shared
