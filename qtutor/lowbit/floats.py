"""Floating-point numbers of four bits, and the table NF4: E2M1 with three kinds of scales.

E2M1 has a sign, two bits of exponent and one of mantissa. Its eight magnitudes are 0, 0.5, 1, 1.5, 2, 3, 4, 6: close
together near 0 and far apart away from it. MXFP4 scales 32 of them by a power of two (E8M0, a byte that holds nothing
but an exponent), NVFP4 16 of them by an E4M3 number, with one float32 for the tensor.

Sources: OCP Microscaling Formats (MX) Specification v1.0, 2023, sections 5.3 and 6.3; NVIDIA, "Pretraining Large
Language Models with NVFP4", arXiv 2509.25149, section 2; Dettmers et al. 2023, "QLoRA", arXiv 2305.14314, section 3 and
appendix E.
"""

from dataclasses import dataclass, replace

from qtutor.lowbit.formats import Codes, Format, Scales
from qtutor.lowbit.stored import StoredFormat, halves, over

import torch
from torch import Tensor

MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1_LEVELS = torch.cat([MAGNITUDES, -MAGNITUDES])
"""The values of the codes 0 to 15: the fourth bit is the sign, so 8 is a second zero."""

_BELOW = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004]
_ABOVE = [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
NF4_LEVELS = torch.tensor([*_BELOW, 0.0, *_ABOVE])
"""Quantiles of a normal distribution, so that each code is used about as often as the others."""

_E4M3 = torch.finfo(torch.float8_e4m3fn)


def _nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    """Return the number of the nearest of rising levels as uint8; halfway between two, the even one."""
    halfway = (levels[1:] + levels[:-1]) / 2
    below = torch.bucketize(x, halfway, out_int32=True)
    tie = (below < len(halfway)) & (x == halfway[below.clamp(max=len(halfway) - 1)])
    return (below + (tie & (below % 2 == 1))).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class TableFormat(Format):
    """A table of 16 levels that a scale for each block stretches; the largest level meets the largest weight."""

    def nearest(self, blocks: Tensor, scales: Scales) -> Tensor:
        scale = self.scale(scales)
        return self.snap(torch.where(scale > 0, blocks / scale, 0.0))

    def snap(self, x: Tensor) -> Tensor:
        """Return the code of the level nearest to each number; of two as near, the one with an even code."""
        if self.levels is E2M1_LEVELS:
            return _nearest_level(x.abs(), MAGNITUDES) + 8 * (x < 0).to(torch.uint8)
        return _nearest_level(x, self.levels)

    def scale(self, scales: Scales) -> Tensor:
        """Return what multiplies a level, float32; `(*rows, blocks, 1)`."""
        return scales.scale.float()[..., None]

    def reals(self, codes: Tensor, scales: Scales) -> Tensor:
        return self.levels[codes.int()] * self.scale(scales)


@dataclass(frozen=True, eq=False)
class HalfScale(TableFormat):
    """A table with a float16 scale for each block."""

    @property
    def bits_per_weight(self) -> float:
        assert self.block
        return self.bits + 16 / self.block

    def fit(self, blocks: Tensor) -> Scales:
        return Scales((blocks.abs().amax(dim=-1) / self.levels.max()).to(torch.float16))


@dataclass(frozen=True, eq=False)
class Microscaling(TableFormat, StoredFormat):
    """MXFP4: 32 of E2M1 share a power of two, two below that of the largest; what is beyond 6 of those becomes 6."""

    def fit(self, blocks: Tensor) -> Scales:
        largest = blocks.abs().amax(dim=-1)
        exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 3, -127)  # m * 2^e has m from 0.5 to 1
        biased = (exponent + 127).clamp(0, 254).to(torch.uint8)
        return Scales(biased.view(torch.float8_e8m0fnu))

    def parse(self, blocks: Tensor) -> tuple[Tensor, Scales]:
        return halves(blocks[..., 1:]), Scales(blocks[..., 0].contiguous().view(torch.float8_e8m0fnu))

    def read(self, data: Tensor) -> Tensor:
        """Return the real values of bytes as `gguf` does: the scale of 255, NaN in the standard, is 2^128 there."""
        scale = torch.ldexp(torch.ones(256), torch.arange(256) - 128)  # of half a level's unit
        return _gguf_values(self.from_bytes(data), scale, self)


@dataclass(frozen=True, eq=False)
class TwoScales(TableFormat, StoredFormat):
    """NVFP4: 16 of E2M1 share an E4M3 number, and the tensor a float32 that brings those into E4M3's range.

    A GGUF file keeps 64 weights in 36 bytes, and the float32 of the tensor elsewhere: `from_bytes` leaves it out.

    Attributes:
        outer: the float32 of the tensor; None takes it from the largest weight.
    """

    outer: float | None = None

    @property
    def stored_block(self) -> int:
        return 64

    def fit(self, blocks: Tensor) -> Scales:
        outer = self._outer(blocks)
        small = blocks.abs().amax(dim=-1) / 6 / outer
        return Scales(small.clamp(_E4M3.tiny, _E4M3.max).to(torch.float8_e4m3fn), outer=outer)

    def nearest(self, blocks: Tensor, scales: Scales) -> Tensor:
        assert scales.outer is not None
        factor = ((1 / scales.outer) / scales.scale.float())[..., None]  # torchao rounds in this order
        return self.snap(torch.where(factor.isfinite(), blocks * factor, over(blocks, self.scale(scales))))

    def scale(self, scales: Scales) -> Tensor:
        small = scales.scale.float()
        return (small if scales.outer is None else scales.outer * small)[..., None]

    def for_tensor(self, weight: Tensor) -> "TwoScales":
        return replace(self, outer=float(self._outer(weight.detach().float())))

    def parse(self, blocks: Tensor) -> tuple[Tensor, Scales]:
        values = halves(blocks[..., 4:].unflatten(-1, (4, 8))).flatten(-2)
        return values, Scales(blocks[..., :4].contiguous().view(torch.float8_e4m3fn).flatten(-2))

    def read(self, data: Tensor) -> Tensor:
        """Return the real values of bytes as `gguf` does: E4M3's sign is passed over there, and its NaN is 0 or 480."""
        every = torch.arange(128, dtype=torch.uint8).view(torch.float8_e4m3fn).float() / 2
        scale = torch.cat([every.nan_to_num(0.0), every.nan_to_num(240.0)])  # of half a level's unit
        return _gguf_values(self.from_bytes(data), scale, self)

    def _outer(self, weight: Tensor) -> Tensor:
        if self.outer is not None:
            return torch.tensor(self.outer, dtype=torch.float32)
        outer = weight.abs().max() / (6 * _E4M3.max)
        return torch.where(outer > 0, outer, torch.ones(()))


def _gguf_values(codes: Codes, half_scale: Tensor, form: Format) -> Tensor:
    """Return twice a level times half a scale: whole numbers, of which none is a negative zero."""
    doubled = (form.levels * 2).int().float()[codes.values.int()].unflatten(-1, (-1, form.block))
    return (half_scale[codes.scales.scale.view(torch.uint8).int()][..., None] * doubled).flatten(-2)


E2M1 = HalfScale("E2M1", 4, 32, E2M1_LEVELS)
NF4 = HalfScale("NF4", 4, 64, NF4_LEVELS)
MXFP4 = Microscaling("MXFP4", 4, 32, E2M1_LEVELS, 17)
NVFP4 = TwoScales("NVFP4", 4, 16, E2M1_LEVELS, 36)
