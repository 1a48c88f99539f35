"""For speed: what a `StreamingHistogram` counts, many values at once, and those a part at a time."""

import torch
from torch import Tensor

MANY = 1 << 17
"""Values that are worth counting alone."""

_PART = 1 << 15  # values in cache, and few enough that PyTorch waits for no other thread


def count(slots: Tensor, values: Tensor, per_width: Tensor, first: Tensor) -> None:
    """Add 1 to `(rows, slots)` at trunc(x / width) + sign(x) - first of each of `(rows, n)` float32 values.

    `per_width` is 1 / width, `(rows, 1)` float32, and `first` `(rows, 1)` int32.
    """
    height = max(1, _PART // values.shape[1])
    for top in range(0, len(values), height):
        rows = slice(top, top + height)
        for part in values[rows].split(_PART // min(height, len(values)), dim=1):
            index = (part * per_width[rows]).to(torch.int32)
            sign = (part + 0.0).view(torch.int32).clamp_(-1, 1)  # by its bits, a third of the time; + 0.0: never -0.0
            index.add_(sign).sub_(first[rows])
            slots[rows].scatter_add_(1, index, torch.ones_like(index, dtype=slots.dtype))


class Waiting:
    """Batches that wait until they are `MANY` values: to count them at once takes half the time, or less."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def __len__(self) -> int:
        return sum(rows.numel() for rows, _, _ in self._batches)

    def add(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Copy `(rows, n)` values, which the caller may change, and keep their `(rows,)` extremes."""
        self._batches.append((rows.clone(), low[:, None], high[:, None]))

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all that waits, as one batch."""
        rows, low, high = (torch.cat(each, dim=1) for each in zip(*self._batches, strict=True))
        self._batches.clear()
        return rows, low.amin(dim=1), high.amax(dim=1)
