"""Many numbers as a few bins, and the quantization error of a histogram.

Within a bin of width w, values are taken to be spread evenly. The squared error of quantizing an
even spread has a closed form, so no value is visited again, whatever scale, grid or clip range is
tried. With u = x / s, and L and H the codes at the ends of the grid less the zero point,

    rounding    R(u) = integral of (u - round(u))**2 = round(u) / 12 + (u - round(u))**3 / 3
    clipping    C(u) = integral of (u - H)**2 above H + 1/2, of (u - L)**2 below L - 1/2

and a bin from a to b holding n values costs n * s**2 * (R(b/s) - R(a/s)) / (b/s - a/s), R taken
inside the grid, plus the same with C outside it.

Exact zeros stand apart: after a ReLU they are a large share of the values, and they have a code of
their own, so they cost nothing; spread over a bin they would seem to.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qtutor.affine import QParams, QuantizationError


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values in even bins between `low` and `high`; exact zeros are counted apart.

    Attributes:
        counts: `(bins,)` float64, the non-zero values in each bin.
        low: the left edge of the first bin, in the unit of the values.
        high: the right edge of the last bin. Equal to `low` where all values are the same.
        zeros: how many values are exactly 0.0.
        signal: sum of the squared values, exact.
    """

    counts: Tensor
    low: float
    high: float
    zeros: int
    signal: float

    @classmethod
    def of(cls, x: Tensor, bins: int = 1 << 16) -> "Histogram":
        """Bin a tensor in one pass.

        Args:
            x: `(*shape)` finite real values, at least one.
            bins: number of bins.

        Raises:
            TypeError: `x` is not a floating-point tensor.
            ValueError: `x` is empty or holds NaN or infinity, or there is not one bin.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"Histogram needs a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if bins < 1:
            raise ValueError(f"Histogram needs at least one bin, got {bins}")
        if x.numel() == 0:
            raise ValueError(f"Histogram needs at least one value, got a tensor of shape {tuple(x.shape)}")
        x = x.detach().flatten()
        x = x if x.dtype == torch.float64 else x.to(torch.float32)
        low, high = (float(v) for v in x.aminmax())
        if not (torch.isfinite(torch.tensor([low, high])).all()):
            raise ValueError(f"Histogram needs finite values, got a range from {low} to {high}")
        zeros = x.numel() - int(x.count_nonzero())
        if low == high:
            counts = torch.zeros(bins, dtype=torch.float64)
            counts[0] = x.numel() - zeros
        else:
            counts = torch.histc(x, bins, low, high).to(torch.float64)
            if zeros:
                counts -= zeros * torch.histc(torch.zeros(1), bins, low, high)
        signal = float(torch.linalg.vector_norm(x, dtype=torch.float64) ** 2)
        return cls(counts, low, high, zeros, signal)

    @property
    def count(self) -> int:
        """How many values there are, zeros included."""
        return round(float(self.counts.sum())) + self.zeros

    @property
    def edges(self) -> Tensor:
        """`(bins + 1,)` float64 edges of the bins."""
        return torch.linspace(self.low, self.high, len(self.counts) + 1, dtype=torch.float64)

    @property
    def centres(self) -> Tensor:
        """`(bins,)` float64 middles of the bins."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    def error(self, qparams: QParams) -> QuantizationError:
        """Estimate what quantizing the binned values with per-tensor `qparams` costs.

        Exact for values spread evenly within each bin; the module docstring has the integrals.

        Raises:
            ValueError: `qparams` are not per tensor.
        """
        if qparams.scale.numel() != 1:
            raise ValueError(f"Histogram.error needs qparams per tensor, got a scale of {tuple(qparams.scale.shape)}")
        scale = float(qparams.scale)
        lowest = qparams.quant_min - int(qparams.zero_point)
        highest = qparams.quant_max - int(qparams.zero_point)
        u = self.edges / scale  # (bins + 1,) in steps
        if self.low == self.high:
            steps = u[:1].round().clamp(lowest, highest)
            squared = float((u[:1] - steps).square()) * scale**2 * float(self.counts[0])
            clipped = bool((u[:1].round() != steps).any())
            rounding, clipping, outside = (0.0, squared, float(self.counts[0])) if clipped else (squared, 0.0, 0.0)
        else:
            inside = u.clamp(lowest - 0.5, highest + 0.5)
            nearest = inside.round()
            rounding = nearest / 12 + (inside - nearest) ** 3 / 3
            above, below = (u - highest).clamp(min=0.5), (u - lowest).clamp(max=-0.5)
            clipping = ((above**3 - 0.125) + (below**3 + 0.125)) / 3
            weights = self.counts / u.diff()
            outside = float(weights @ (u - inside).diff())
            rounding, clipping = (float(weights @ area.diff()) * scale**2 for area in (rounding, clipping))
        return QuantizationError(self.count, self.signal, max(rounding, 0.0), max(clipping, 0.0), outside)
