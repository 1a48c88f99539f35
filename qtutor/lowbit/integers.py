"""Integers with a scale for each group, as lesson 02 has them."""

from dataclasses import dataclass

from qtutor.affine import QParams, choose_qparams, dequantize, grid, quantize
from qtutor.lowbit.formats import Format, Scales

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class IntegerFormat(Format):
    """Integers with a scale, and a zero point or none, for each group.

    Attributes:
        symmetric: no zero point is stored: it is the middle of the grid.
        scale_dtype: in which a scale is stored.
    """

    symmetric: bool
    scale_dtype: torch.dtype

    @property
    def bits_per_weight(self) -> float:
        shared = torch.finfo(self.scale_dtype).bits + (0 if self.symmetric else self.bits)
        return self.bits + (shared / self.block if self.block else 0)

    def fit(self, blocks: Tensor) -> Scales:
        qparams = run_qparams(blocks, self.bits, self.symmetric)
        return Scales(qparams.scale[..., 0].to(self.scale_dtype), qparams.zero_point[..., 0].to(torch.uint8))

    def nearest(self, blocks: Tensor, scales: Scales) -> Tensor:
        return quantize(blocks, self._qparams(scales))

    def reals(self, codes: Tensor, scales: Scales) -> Tensor:
        return dequantize(codes, self._qparams(scales))

    def _qparams(self, scales: Scales) -> QParams:
        assert scales.shift is not None
        return QParams(scales.scale[..., None], scales.shift[..., None], *grid(self.bits, signed=False))


def integers(
    bits: int, group: int | None = None, symmetric: bool = False, scale_dtype: torch.dtype = torch.float32
) -> IntegerFormat:
    """Return the format of `bits`-bit integers with a scale for each `group` weights of a row.

    Codes are unsigned, so that they can be packed. Rounding is that of `affine.fake_quantize` with
    `affine.choose_qparams` on each group; with `scale_dtype=torch.float16` on the scales rounded to that, as most
    files keep them.

    Args:
        bits: from 2 to 8.
        group: weights that share a scale; None is one scale for each row.
        symmetric: without a zero point.
        scale_dtype: torch.float32, torch.float16 or torch.bfloat16.

    Raises:
        ValueError: other bits, another type of scale, or a group below 1.

    Example:
        >>> integers(4, group=64, scale_dtype=torch.float16).bits_per_weight  # 4 + (16 + 4) / 64
        4.3125
        >>> integers(2, group=4).round(torch.tensor([[-1.0, 0.2, 1.1, 2.0]])).tolist()
        [[-1.0, 0.0, 1.0, 2.0]]
    """
    if bits not in range(2, 9):
        raise ValueError(f"integers have from 2 to 8 bits here, got {bits!r}")
    if group is not None and group not in range(1, 2**31):
        raise ValueError(f"a group is a number of weights, or None for a row, got {group!r}")
    if scale_dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"a scale is stored as float32, float16 or bfloat16, got {scale_dtype}")
    name = f"INT{bits}" + (f" group {group}" if group else " row") + (" symmetric" if symmetric else "")
    return IntegerFormat(name, bits, group, torch.arange(2.0**bits), symmetric, scale_dtype)


def run_qparams(runs: Tensor, bits: int, symmetric: bool = False) -> QParams:
    """Choose a scale by min-max for each run along the last dimension, which is then 1; codes are unsigned."""
    quant_min, quant_max = grid(bits, signed=False)
    low, high = runs.amin(dim=-1, keepdim=True), runs.amax(dim=-1, keepdim=True)  # faster than aminmax
    return choose_qparams(low, high, quant_min=quant_min, quant_max=quant_max, symmetric=symmetric)
