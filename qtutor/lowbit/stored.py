"""Formats whose blocks have a layout in bytes, as GGUF files hold them.

Source of the layouts: ggml, `ggml-common.h` and `ggml-quants.c`; the package `gguf` reads the same.
"""

from abc import abstractmethod
from dataclasses import dataclass

from qtutor.lowbit.formats import Codes, Format, Scales

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StoredFormat(Format):
    """A format with a layout in bytes.

    Attributes:
        block_bytes: how many bytes a block of `stored_block` weights takes.
    """

    block_bytes: int

    @property
    def stored_block(self) -> int:
        """How many weights `block_bytes` hold."""
        assert self.block
        return self.block

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.stored_block

    def from_bytes(self, data: Tensor) -> Codes:
        """Take blocks apart.

        Args:
            data: `(*rows, bytes)` uint8, whole blocks one after the other.

        Returns:
            `(*rows, n)` codes.

        Raises:
            ValueError: not rows of whole blocks of bytes.
        """
        if data.dtype != torch.uint8 or data.dim() == 0 or data.shape[-1] % self.block_bytes:
            raise ValueError(
                f"a block of {self.name} has {self.block_bytes} bytes, got {data.dtype} of shape {tuple(data.shape)}: "
                "give rows of whole blocks as uint8"
            )
        blocks = data.unflatten(-1, (-1, self.block_bytes))
        values, scales = self.parse(blocks)
        return Codes(values.flatten(-2), scales)

    def read(self, data: Tensor) -> Tensor:
        """Return the real values of `(*rows, bytes)` uint8, float32, bit for bit as `gguf` does."""
        return self.decode(self.from_bytes(data))

    @abstractmethod
    def parse(self, blocks: Tensor) -> tuple[Tensor, Scales]:
        """Take `(*rows, blocks, block_bytes)` apart: codes `(*rows, blocks, stored_block)`, and what scales them."""


def halves(data: Tensor) -> Tensor:
    """Return the codes of bytes that hold the first half of a block in their low four bits, the second in their high.

    `(..., k)` uint8 to `(..., 2 k)`.
    """
    return torch.cat([data & 15, data >> 4], dim=-1)


def as_numbers(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `(..., k)` bytes as numbers."""
    return data.clone(memory_format=torch.contiguous_format).view(dtype)  # which begins where numbers may


def over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with 0 where that has no finite answer: a block of zeros has a scale of 0."""
    ratio = numerator / denominator
    return torch.where(ratio.isfinite(), ratio, 0.0)


def extreme(blocks: Tensor) -> Tensor:
    """Return the number that is farthest from 0, with its sign; `(..., k)` to `(..., 1)`."""
    return blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
