"""What attention keeps of earlier tokens: their keys and their values, rounded if you like."""

from collections.abc import Callable
from dataclasses import dataclass

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
        together: how many tokens are rounded at once, as where they share a scale for each channel; those that are not
            yet so many wait unrounded. With 1, those that come together are rounded together.
    """

    def __init__(self, round_keys: Rounding | None = None, round_values: Rounding | None = None, together: int = 1):
        self._roundings, self._together = (round_keys, round_values), together
        self._kept: dict[int, list[_Kept]] = {}

    @property
    def length(self) -> int:
        """How many tokens it holds of every layer."""
        return min((keys.all.shape[2] for keys, _ in self._kept.values()), default=0)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new tokens, and return those of all tokens of this layer: `(N, key_value_heads, all, d)`.

        Raises:
            ValueError: a rounding changed the shape.
        """
        if layer not in self._kept:
            self._kept[layer] = [_Kept(new[:, :, :0], new[:, :, :0]) for new in (keys, values)]
        for part, rounding, new in zip(self._kept[layer], self._roundings, (keys, values), strict=True):
            part.append(new, rounding, self._together)
        return self.kept(layer)

    def kept(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer, `(N, key_value_heads, T, d)` each.

        Raises:
            ValueError: nothing was put in for that layer.
        """
        if layer not in self._kept:
            raise ValueError(f"the cache holds nothing of layer {layer!r}: it holds layers {sorted(self._kept)}")
        keys, values = self._kept[layer]
        return keys.all, values.all


@dataclass
class _Kept:
    """Keys or values of a layer: those that are rounded, and those that wait for others to be rounded with."""

    rounded: Tensor
    waiting: Tensor

    @property
    def all(self) -> Tensor:
        return torch.cat([self.rounded, self.waiting], dim=2) if self.waiting.shape[2] else self.rounded

    def append(self, new: Tensor, rounding: Rounding | None, together: int) -> None:
        waiting = torch.cat([self.waiting, new], dim=2)
        full = waiting.shape[2] // together * together
        ready = _rounded(rounding, waiting[:, :, :full]) if full else waiting[:, :, :0]
        self.rounded, self.waiting = torch.cat([self.rounded, ready], dim=2), waiting[:, :, full:]


def _rounded(rounding: Rounding | None, new: Tensor) -> Tensor:
    if rounding is None:
        return new
    kept = rounding(new)
    if kept.shape != new.shape:
        raise ValueError(f"the rounding made {tuple(kept.shape)} of {tuple(new.shape)}: it must keep the shape")
    return kept
