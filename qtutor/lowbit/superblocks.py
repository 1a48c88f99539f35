"""GGUF's K-quants: 256 weights in small blocks, whose scales are themselves codes of a few bits with a float16 scale.

Q4_K   8 small blocks of 32:   w = d * scale * code - d_min * minimum,  scale and minimum of 6 bits
Q6_K  16 small blocks of 16:   w = d * scale * (code - 32),             scale of 8 bits, signed
"""

from dataclasses import dataclass

from qtutor.lowbit.formats import Scales
from qtutor.lowbit.stored import StoredFormat, as_numbers, extreme, over

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SuperBlock(StoredFormat):
    """256 weights that share a float16.

    Attributes:
        parts: how many small blocks they are.
    """

    parts: int

    def nearest(self, blocks: Tensor, scales: Scales) -> Tensor:
        scale, minimum = self.effective(scales)
        steps = over(blocks.unflatten(-1, (self.parts, -1)) + minimum, scale).round() - self.levels[0]
        return steps.clamp(0, 2**self.bits - 1).to(torch.uint8).flatten(-2)

    def reals(self, codes: Tensor, scales: Scales) -> Tensor:
        scale, minimum = self.effective(scales)
        steps = codes.unflatten(-1, (self.parts, -1)).float() + self.levels[0]
        stretched = scale * steps
        return (stretched if scales.shift is None else stretched - minimum).flatten(-2)

    def effective(self, scales: Scales) -> tuple[Tensor, Tensor]:
        """Return scale and minimum of each small block, float32; `(*rows, blocks, parts, 1)`."""
        assert scales.outer is not None
        scale = scales.outer.float()[..., None] * scales.scale.unflatten(-1, (-1, self.parts)).float()
        if scales.shift is None or scales.outer_shift is None:
            return scale[..., None], torch.zeros(())
        minimum = scales.outer_shift.float()[..., None] * scales.shift.unflatten(-1, (-1, self.parts)).float()
        return scale[..., None], minimum[..., None]


@dataclass(frozen=True, eq=False)
class FourBitsK(SuperBlock):
    """Q4_K. Scales are chosen here by least squares over a few ranges, in the spirit of ggml's search."""

    def fit(self, blocks: Tensor) -> Scales:
        scale, minimum = _fitted_ranges(blocks.unflatten(-1, (self.parts, -1)))
        outer, outer_shift = (part.amax(dim=-1, keepdim=True).div(63).half() for part in (scale, minimum))
        codes = [
            over(part, by.float()).round().clamp(0, 63).to(torch.uint8).flatten(-2)
            for part, by in ((scale, outer), (minimum, outer_shift))
        ]
        return Scales(codes[0], codes[1], outer.squeeze(-1), outer_shift.squeeze(-1))

    def parse(self, blocks: Tensor) -> tuple[Tensor, Scales]:
        outer, outer_shift = as_numbers(blocks[..., :4], torch.float16).unbind(-1)
        first, second, third = blocks[..., 4:16].chunk(3, dim=-1)
        scale = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=-1)
        shift = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=-1)
        quarters = blocks[..., 16:].unflatten(-1, (4, 32))  # of each: low bits are one small block, high bits the next
        values = torch.stack([quarters & 15, quarters >> 4], dim=-2).flatten(-3)
        return values, Scales(scale.flatten(-2), shift.flatten(-2), outer, outer_shift)


@dataclass(frozen=True, eq=False)
class SixBitsK(SuperBlock):
    """Q6_K: of each small block, and then of its scales, the number that is farthest from 0 is the lowest code."""

    def fit(self, blocks: Tensor) -> Scales:
        scale = extreme(blocks.unflatten(-1, (self.parts, -1))).squeeze(-1) / -32
        outer = (extreme(scale) / -128).half()
        codes = over(scale, outer.float()).round().clamp(-128, 127).to(torch.int8)
        return Scales(codes.flatten(-2), outer=outer.squeeze(-1))

    def parse(self, blocks: Tensor) -> tuple[Tensor, Scales]:
        low = blocks[..., :128].unflatten(-1, (2, 1, 64)) >> torch.tensor([[0], [4]], dtype=torch.uint8) & 15
        high = blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> (2 * torch.arange(4, dtype=torch.uint8))[:, None] & 3
        values = low.flatten(-3) | (high.flatten(-3) << 4)
        scale = as_numbers(blocks[..., 192:208], torch.int8)
        return values, Scales(scale.flatten(-2), outer=as_numbers(blocks[..., 208:], torch.float16).squeeze(-1))


def _fitted_ranges(small: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and minimum, both at least 0, that leave small blocks least squared error; `(..., k)` to `(...)`.

    Each trial stretches the range a little, takes the codes, and solves w = scale * code - minimum for them.
    """
    low, high = small.amin(dim=-1, keepdim=True).clamp(max=0), small.amax(dim=-1, keepdim=True)
    best_scale, best_minimum = (high - low).clamp(min=0) / 15, -low
    least = torch.full_like(low, torch.inf)
    for steps in torch.arange(14.0, 16.51, 0.25):
        codes = ((small - low) * over(steps, high - low)).round().clamp(0, 15)
        mean, mean_code = small.mean(dim=-1, keepdim=True), codes.mean(dim=-1, keepdim=True)
        spread = (codes - mean_code).square().sum(dim=-1, keepdim=True)
        slope = over(((codes - mean_code) * (small - mean)).sum(dim=-1, keepdim=True), spread)
        minimum = slope * mean_code - mean
        through_zero = over((codes * small).sum(dim=-1, keepdim=True), codes.square().sum(dim=-1, keepdim=True))
        slope = torch.where(minimum < 0, through_zero, slope).clamp(min=0)
        minimum = minimum.clamp(min=0)
        error = (slope * codes - minimum - small).square().sum(dim=-1, keepdim=True)
        better = error < least
        best_scale, best_minimum = torch.where(better, slope, best_scale), torch.where(better, minimum, best_minimum)
        least = torch.where(better, error, least)
    return best_scale.squeeze(-1), best_minimum.squeeze(-1)


Q4_K = FourBitsK("Q4_K", 4, 256, torch.arange(16.0), 144, 8)
Q6_K = SixBitsK("Q6_K", 6, 256, torch.arange(-32.0, 32.0), 210, 16)
