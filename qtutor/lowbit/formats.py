"""A number format of few bits: which real values a block of weights may take, and the code of each.

All of them share one idea. A block of weights that stand beside each other in a row shares a scale, and a weight is
kept as the number of the nearest of a few values:

    real = scale * (level[code] - zero)     integers with a zero point, and tables of levels, whose zero is 0
    real = scale * level[code] + minimum    GGUF's formats with a minimum

A format says how scales are chosen, and how many bits all of that takes for each weight.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from qtutor.affine.checks import check_finite, kind

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scales:
    """What the blocks of a tensor share, in the type in which it is stored.

    Attributes:
        scale: `(*rows, blocks)`; in a format whose scales have a scale, one number for each small block.
        shift: of the shape of `scale`: the zero point or the minimum; None where there is none.
        outer: the scale of the scales; `(*rows, large blocks)`, or `()` where it is the tensor's.
        outer_shift: the scale of `shift`, where that has one; the shape of `outer`.
    """

    scale: Tensor
    shift: Tensor | None = None
    outer: Tensor | None = None
    outer_shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight in few bits.

    Attributes:
        values: `(*rows, n)` whole numbers, one byte each: `pack` puts them closer.
        scales: what turns them into real values.
    """

    values: Tensor
    scales: Scales


@dataclass(frozen=True, eq=False)
class Format(ABC):
    """How weights are kept in few bits.

    Attributes:
        name: as people write it.
        bits: of one code.
        block: how many weights share a scale; None is a whole row. Where scales have scales of their own,
            the weights that share all of it.
        levels: the values of the codes 0, 1, 2 and so on before the scale.
    """

    name: str
    bits: int
    block: int | None
    levels: Tensor

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """Of the code and its share of the scales; a whole row's scale is counted as nothing."""

    @abstractmethod
    def fit(self, blocks: Tensor) -> Scales:
        """Choose the scales of `(*rows, blocks, block)` float32 values."""

    @abstractmethod
    def nearest(self, blocks: Tensor, scales: Scales) -> Tensor:
        """Return the codes of `(*rows, blocks, block)` float32 values."""

    @abstractmethod
    def reals(self, codes: Tensor, scales: Scales) -> Tensor:
        """Return the float32 values of `(*rows, blocks, block)` codes."""

    def encode(self, weight: Tensor) -> Codes:
        """Choose scales along the last dimension, and the code of each weight.

        Args:
            weight: `(*rows, n)` real numbers; n is a multiple of `block`.

        Raises:
            TypeError: not a tensor of real numbers.
            ValueError: NaN or infinite values, none at all, a length that blocks do not fill, or values
                whose scale is beyond the type that stores it.
        """
        blocks = self._in_blocks(weight)
        scales = self.fit(blocks)
        for part in (scales.scale, scales.shift, scales.outer, scales.outer_shift):
            if part is not None and not part.float().isfinite().all():
                raise ValueError(f"{self.name} stores a scale as {part.dtype}, and a block of this tensor needs more")
        return Codes(self.nearest(blocks, scales).reshape(weight.shape), scales)

    def decode(self, codes: Codes) -> Tensor:
        """Return the real values of codes; `(*rows, n)` float32.

        Raises:
            ValueError: the codes do not fill blocks.
        """
        shape = codes.values.shape
        return self.reals(codes.values.reshape(self._shape(shape)), codes.scales).reshape(shape)

    def round(self, weight: Tensor) -> Tensor:
        """Return what is left of a weight: `decode(encode(weight))`, in the dtype of `weight`."""
        left = self.decode(self.encode(weight))
        most = min(torch.finfo(dtype).max for dtype in (weight.dtype, left.dtype))
        return left.clamp(-most, most).to(weight.dtype)  # a grid may reach a little farther than the weights

    def for_tensor(self, weight: Tensor) -> "Format":
        """Return the format with what all of a tensor shares already chosen; most share nothing."""
        return self

    def values(self, block: Tensor) -> Tensor:
        """Return every real value that a weight of a block may take; `(rows, block)` to `(rows, levels)`.

        A method that chooses codes one column at a time picks from these.

        Raises:
            ValueError: also where the scales of a block differ within it.
        """
        scales = self.fit(self._in_blocks(block))
        if scales.scale.shape[-1] != 1:
            raise ValueError(f"{self.name} has several scales in {tuple(block.shape)}: give it one block of each row")
        every = torch.arange(2**self.bits, dtype=torch.uint8)
        return self.reals(every.expand(*block.shape[:-1], 1, -1), scales).flatten(-2)

    def _in_blocks(self, weight: Tensor) -> Tensor:
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise TypeError(f"{self.name} rounds a tensor of real numbers, got {kind(weight)}: use .float()")
        if weight.dim() == 0:
            raise ValueError(f"{self.name} rounds blocks of a row, got a single number: give it a dimension")
        check_finite(single := weight.detach().float(), self.name)
        return single.reshape(self._shape(weight.shape))

    def _shape(self, shape: torch.Size) -> tuple[int, ...]:
        block = self.block or shape[-1]
        if shape[-1] % block:
            raise ValueError(
                f"{self.name} has blocks of {block} weights, and {shape[-1]} of a tensor of shape {tuple(shape)} are "
                "no multiple of that: choose another format, or pad the rows"
            )
        return (*shape[:-1], shape[-1] // block, block)
