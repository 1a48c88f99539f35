"""What every observer does: read batches as one row per scale, and make qparams of the range that it chooses."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from numbers import Real

from qtutor.affine import QParams, check_grid, choose_qparams
from qtutor.affine.checks import check_floats

import torch
from torch import Tensor


@dataclass(kw_only=True, eq=False)
class Observer(ABC):
    """Statistics of the tensors that `observe` was given, as one row per scale.

    Attributes:
        symmetric: as in `choose_qparams`.
        axis: the axis of the channels, one scale each; None for one scale per tensor.
        group_size: one scale for so many neighbouring inputs of a weight `(out, in)`; `in` must be a
            multiple of it. The qparams, `(out, groups, 1)`, fit the weight viewed as `(out, groups, group_size)`.

    Raises:
        TypeError: an attribute is not of its type.
        ValueError: an attribute is out of range, or both `axis` and `group_size` are given.
    """

    quant_min: int = -128
    quant_max: int = 127
    symmetric: bool = False
    axis: int | None = None
    group_size: int | None = None
    _shape: tuple[int, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        check_grid(self.quant_min, self.quant_max)
        for name, value in (("axis", self.axis), ("group_size", self.group_size)):
            if value is not None and type(value) is not int:
                raise TypeError(f"{self._name}: {name} must be a whole number or None, got {value!r}")
        if self.axis is not None and self.group_size is not None:
            raise ValueError(f"{self._name}: give axis (per channel) or group_size (per group), not both")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"{self._name}: group_size must be at least 1, got {self.group_size}")

    @torch.inference_mode()
    def observe(self, x: Tensor) -> Tensor:
        """Add a batch to the statistics and return it; a batch that raises leaves no trace.

        Args:
            x: `(*shape)` finite values, at least one. Per channel and per group, the shape of the
                qparams must be the same for every batch.

        Raises:
            TypeError: `x` is not a dense floating-point tensor.
            ValueError: `x` is empty, holds NaN, infinity or what float32 cannot hold, or its shape does
                not fit `axis`, `group_size` or the batches before.
        """
        check_floats(x, self._name)
        if x.numel() == 0:
            raise ValueError(f"{self._name}: a tensor of shape {tuple(x.shape)} is empty, there is nothing to observe")
        rows, shape = self._rows(x.detach())
        if self._shape not in (None, shape):
            raise ValueError(
                f"{self._name} has seen tensors with qparams of shape {self._shape}, but one of shape "
                f"{tuple(x.shape)} needs {shape}: use one observer for each tensor"
            )
        rows = rows.to(torch.float32)
        low, high = _extremes(rows)
        if not all(map(math.isfinite, (*low.tolist(), *high.tolist()))):
            raise ValueError(
                f"{self._name}: {int((~rows.isfinite()).sum())} of the {x.numel()} values of a tensor of shape "
                f"{tuple(x.shape)} are NaN, infinite or beyond float32"
            )
        self._collect(rows, low, high)
        self._shape = shape
        return x

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value to represent, each of the shape of the qparams.

        Raises:
            RuntimeError: nothing was observed.
        """
        shape = self._check_seen()
        low, high = self._choose()
        return low.reshape(shape).clone(), high.reshape(shape).clone()  # what was observed stays ours

    def qparams(self) -> QParams:
        """Return qparams for the range: `()` per tensor, `(1, C, 1, 1)`-like per channel, `(out, groups, 1)` per group.

        Raises:
            RuntimeError: nothing was observed.
        """
        low, high = self.range()
        # Averages of a minimum and of a maximum may cross by a rounding error: on one side of zero only.
        low, high = low.clamp(max=0), high.clamp(min=0)
        return choose_qparams(low, high, quant_min=self.quant_min, quant_max=self.quant_max, symmetric=self.symmetric)

    @abstractmethod
    def _collect(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Add `(rows, n)` float32 values, of which `low` and `high` are the `(rows,)` extremes."""

    @abstractmethod
    def _choose(self) -> tuple[Tensor, Tensor]:
        """The `(rows,)` ends of the range."""

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_seen(self) -> tuple[int, ...]:
        """The shape of the qparams, which the first batch decides."""
        if self._shape is None:
            raise RuntimeError(f"{self._name} has observed nothing: call observe with a tensor of any shape first")
        return self._shape

    def _check_share(self, name: str, whole: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, Real):
            raise TypeError(f"{self._name}: {name} must be a number, got {value!r}")
        if not 0 < float(value) <= whole:
            raise ValueError(f"{self._name}: {name} must be in (0, {whole}], got {value!r}")

    def _rows(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The values of each scale as a row, and the shape of the qparams."""
        if self.group_size is not None:
            if x.dim() != 2 or x.shape[1] % self.group_size:
                raise ValueError(
                    f"{self._name}: group_size={self.group_size} needs a weight of shape (out, in) with `in` "
                    f"a multiple of it, got {tuple(x.shape)}"
                )
            return x.reshape(-1, self.group_size), (len(x), x.shape[1] // self.group_size, 1)
        if self.axis is None:
            return x.reshape(1, -1), ()
        if not -x.dim() <= self.axis < x.dim():
            raise ValueError(f"{self._name}: axis={self.axis} is not an axis of a tensor of shape {tuple(x.shape)}")
        channels = x.movedim(self.axis, 0)
        shape = tuple(len(channels) if i == self.axis % x.dim() else 1 for i in range(x.dim()))
        return channels.reshape(len(channels), -1), shape


def _extremes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The `(rows,)` smallest and largest values; for speed, those of a single row in one pass."""
    if len(rows) > 1:
        return rows.amin(dim=1), rows.amax(dim=1)  # `aminmax` along a dimension takes five times as long
    low, high = rows.aminmax()
    return low.view(1), high.view(1)
