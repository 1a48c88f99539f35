"""Round what a language model keeps of each token: the keys and values of its attention.

Keys have a few channels that are loud at every token, so they want a scale for each channel; values have none, and
a scale for each token lets a new one be rounded as it comes.

Source: Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", section 3.
"""

import math

from qtutor.affine import fake_quantize
from qtutor.lowbit.checks import finite, group_size
from qtutor.lowbit.integers import run_qparams

import torch
from torch import Tensor


def round_cache(cache: Tensor, bits: int, per: str = "token", group: int | None = None) -> Tensor:
    """Round keys or values to integers with scales per tensor, per token or per channel.

    Args:
        cache: `(..., tokens, channels)`: each head has scales of its own.
        bits: width of the codes.
        per: "tensor", "token" or "channel".
        group: how many neighbouring channels (per token) or tokens (per channel) share a scale; None for all of
            them. Per channel, tokens that do not fill a group stay as they are until it is full.

    Returns:
        `(..., tokens, channels)` in the dtype of `cache`.

    Raises:
        TypeError: `cache` is not a dense floating-point tensor.
        ValueError: it has less than two dimensions, or NaN or infinity, `per` is none of these, or groups do not
            divide the channels.

    Example:
        >>> keys = torch.tensor([[1.0, 80.0], [2.0, 70.0], [3.0, 100.0]])
        >>> round_cache(keys, 4, "channel")[:, 0].round(decimals=2).tolist()
        [1.0, 2.0, 3.0]
        >>> round_cache(keys, 4, "token")[:, 0].tolist()
        [0.0, 0.0, 0.0]
    """
    cache = finite(cache, "cache", "round_cache")
    if cache.dim() < 2:
        raise ValueError(f"round_cache: a cache is (..., tokens, channels), got shape {tuple(cache.shape)}")
    if per not in ("tensor", "token", "channel"):
        raise ValueError(f"round_cache: per must be 'tensor', 'token' or 'channel', got {per!r}")
    if per == "tensor":
        return _round(cache.reshape(1, -1), bits).view(cache.shape)
    if per == "token":
        size = group_size(group, cache.shape[-1], "round_cache")
        return _round(cache.unflatten(-1, (-1, size)), bits).flatten(-2)
    size = cache.shape[-2] if group is None else group
    if type(size) is not int or size < 1:
        raise ValueError(f"round_cache: group must be a whole number from 1, or None, got {group!r}")
    full = cache.shape[-2] // size * size
    runs = cache[..., :full, :].transpose(-1, -2).unflatten(-1, (full // size, size))  # (..., channels, groups, size)
    done = _round(runs, bits).flatten(-2).transpose(-1, -2) if full else cache[..., :0, :]
    return torch.cat([done, cache[..., full:, :]], dim=-2)


def cache_bytes(tokens: int, layers: int, heads: int, channels: int, bits: int = 16, group: int | None = None) -> int:
    """Return what keys and values of a context take.

    Args:
        tokens: how many are kept.
        layers: of the model.
        heads: key and value heads of a layer, which grouped attention has fewer of than query heads.
        channels: of a head.
        bits: of each number.
        group: how many numbers share a scale of 16 bits, whose zero point is not counted; None for no scales, as of
            floating-point numbers.

    Example:
        >>> cache_bytes(1, 30, 3, 64), cache_bytes(1, 30, 3, 64, bits=4, group=64)
        (23040, 6120)
    """
    numbers = 2 * tokens * layers * heads * channels
    scales = 0 if group is None else math.ceil(numbers / group)
    return math.ceil((numbers * bits + scales * 16) / 8)


def _round(rows: Tensor, bits: int) -> Tensor:
    """Round with one scale for each run along the last dimension."""
    real = rows.float()
    return fake_quantize(real, run_qparams(real, bits)).to(rows.dtype)
