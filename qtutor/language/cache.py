"""What attention keeps of earlier tokens: their keys and their values, rounded if you like."""

from collections.abc import Callable

import torch
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]
"""From a tensor to what rounding leaves of it, of the same shape."""


class KeyValueCache:
    """The keys and values of all tokens so far, layer by layer.

    What is put in is rounded once, and what attention then reads, that of the newest tokens too, is what was kept.

    Args:
        round_keys: takes the new keys `(N, key_value_heads, T, d)`, which are already turned by position, and returns
            what the cache is to hold of them; None keeps them as they are.
        round_values: the same for values.
    """

    def __init__(self, round_keys: Rounding | None = None, round_values: Rounding | None = None):
        self._round_keys, self._round_values = round_keys, round_values
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """How many tokens it holds of every layer."""
        return min((keys.shape[2] for keys, _ in self._kept.values()), default=0)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new tokens, and return those of all tokens of this layer: `(N, key_value_heads, all, d)`.

        Raises:
            ValueError: a rounding changed the shape.
        """
        keys, values = _rounded(self._round_keys, keys), _rounded(self._round_values, values)
        if layer in self._kept:
            old_keys, old_values = self._kept[layer]
            keys, values = torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)
        self._kept[layer] = keys, values
        return keys, values

    def kept(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer, `(N, key_value_heads, T, d)` each.

        Raises:
            ValueError: nothing was put in for that layer.
        """
        if layer not in self._kept:
            raise ValueError(f"the cache holds nothing of layer {layer!r}: it holds layers {sorted(self._kept)}")
        return self._kept[layer]


def _rounded(rounding: Rounding | None, new: Tensor) -> Tensor:
    if rounding is None:
        return new
    kept = rounding(new)
    if kept.shape != new.shape:
        raise ValueError(f"the rounding made {tuple(kept.shape)} of {tuple(new.shape)}: it must keep the shape")
    return kept
