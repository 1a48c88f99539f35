"""GGUF's first formats: 32 weights share a float16 scale, and with Q4_1 a float16 minimum.

Of equal length on both sides of 0 is only the grid of Q8_0. The other symmetric ones let the weight that is farthest
from 0 be the lowest code, -8 or -16, whatever its sign: the scale is negative where that weight is positive.
"""

from dataclasses import dataclass

from qtutor.lowbit.formats import Scales
from qtutor.lowbit.stored import StoredFormat, as_numbers, extreme, halves, over

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SmallBlock(StoredFormat):
    """32 weights with one scale. Codes come from the scale before it is rounded to float16, as ggml takes them."""

    def choose(self, blocks: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scale and minimum as float32; `(*rows, blocks, 32)` to `(*rows, blocks, 1)`."""
        return extreme(blocks) / -(2 ** (self.bits - 1)), None

    def fit(self, blocks: Tensor) -> Scales:
        scale, minimum = self.choose(blocks)
        return Scales(scale.half().squeeze(-1), None if minimum is None else minimum.half().squeeze(-1))

    def nearest(self, blocks: Tensor, scales: Scales) -> Tensor:
        scale, minimum = self.choose(blocks)
        above = blocks if minimum is None else blocks - minimum
        steps = above * over(torch.ones(()), scale) - self.levels[0] + 0.5
        return steps.trunc().clamp(0, 2**self.bits - 1).to(torch.uint8)

    def reals(self, codes: Tensor, scales: Scales) -> Tensor:
        stretched = scales.scale.float()[..., None] * (codes.float() + self.levels[0])
        return stretched if scales.shift is None else stretched + scales.shift.float()[..., None]

    def parse(self, blocks: Tensor) -> tuple[Tensor, Scales]:
        return halves(blocks[..., 2:]), Scales(as_numbers(blocks[..., :2], torch.float16).squeeze(-1))


@dataclass(frozen=True, eq=False)
class WithMinimum(SmallBlock):
    """Q4_1: from the smallest weight of a block to the largest in 15 steps."""

    def choose(self, blocks: Tensor) -> tuple[Tensor, Tensor | None]:
        low, high = blocks.amin(dim=-1, keepdim=True), blocks.amax(dim=-1, keepdim=True)
        return (high - low) / 15, low

    def parse(self, blocks: Tensor) -> tuple[Tensor, Scales]:
        scale, minimum = as_numbers(blocks[..., :4], torch.float16).unbind(-1)
        return halves(blocks[..., 4:]), Scales(scale, minimum)


@dataclass(frozen=True, eq=False)
class FiveBits(SmallBlock):
    """Q5_0: the fifth bits of the 32 codes stand together in four bytes."""

    def parse(self, blocks: Tensor) -> tuple[Tensor, Scales]:
        fifth = (blocks[..., 2:6, None] >> torch.arange(8)) & 1
        values = halves(blocks[..., 6:]) | (fifth.flatten(-2) << 4)
        return values.to(torch.uint8), Scales(as_numbers(blocks[..., :2], torch.float16).squeeze(-1))


@dataclass(frozen=True, eq=False)
class EightBits(SmallBlock):
    """Q8_0: from -127 to 127 steps; halves are rounded away from 0. Codes here are the steps + 128."""

    def choose(self, blocks: Tensor) -> tuple[Tensor, Tensor | None]:
        return blocks.abs().amax(dim=-1, keepdim=True) / 127, None

    def nearest(self, blocks: Tensor, scales: Scales) -> Tensor:
        steps = blocks * over(torch.ones(()), self.choose(blocks)[0])
        return (steps.sign() * (steps.abs() + 0.5).floor() + 128).clamp(0, 255).to(torch.uint8)

    def parse(self, blocks: Tensor) -> tuple[Tensor, Scales]:
        return blocks[..., 2:] ^ 128, Scales(as_numbers(blocks[..., :2], torch.float16).squeeze(-1))


Q4_0 = SmallBlock("Q4_0", 4, 32, torch.arange(-8.0, 8.0), 18)
Q4_1 = WithMinimum("Q4_1", 4, 32, torch.arange(16.0), 20)
Q5_0 = FiveBits("Q5_0", 5, 32, torch.arange(-16.0, 16.0), 22)
Q8_0 = EightBits("Q8_0", 8, 32, torch.arange(-128.0, 128.0), 34)
