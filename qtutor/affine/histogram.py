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

from qtutor.affine.checks import check_finite, check_floats
from qtutor.affine.error import QuantizationError, measure_error
from qtutor.affine.qparams import QParams

import torch
from torch import Tensor


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
        """Bin a tensor in one pass, as float32.

        Args:
            x: `(*shape)` finite real values, at least one.
            bins: number of bins.

        Raises:
            TypeError: `x` is not a floating-point tensor.
            ValueError: `x` is empty or holds NaN or infinity, or there is not one bin.
        """
        check_floats(x, "Histogram")
        if bins < 1:
            raise ValueError(f"Histogram needs at least one bin, got {bins}")
        x = x.detach().flatten().to(torch.float32)
        check_finite(x, "Histogram")
        low, high = (float(v) for v in x.aminmax())
        nonzero = x[x != 0].to(torch.float64)  # the dtype that histc counts in: float32 stops at 2**24 a bin
        if low < high:
            counts = torch.histc(nonzero, bins, low, high)
        else:
            counts = torch.zeros(bins, dtype=torch.float64)
            counts[0] = len(nonzero)
        return cls(counts, low, high, x.numel() - len(nonzero), float(nonzero.dot(nonzero)))

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
        if self.low == self.high:  # no bins to spread the values over
            one, count = measure_error(torch.full_like(qparams.scale, self.low), qparams), float(self.counts[0])
            spent = count * one.rounding, count * one.clipping, count * one.clipped
            return QuantizationError(self.count, self.signal, *spent)
        scale = float(qparams.scale)
        lowest, highest = qparams.quant_min - int(qparams.zero_point), qparams.quant_max - int(qparams.zero_point)
        u = self.edges / scale  # (bins + 1,)
        inside = u.clamp(lowest - 0.5, highest + 0.5)
        nearest = inside.round()
        rounding = nearest / 12 + (inside - nearest) ** 3 / 3  # R(u), and C(u) below
        above, below = (u - highest).clamp(min=0.5), (u - lowest).clamp(max=-0.5)
        clipping = (above**3 + below**3) / 3
        density = self.counts / u.diff()  # values a step
        within, beyond = (max(float(density @ area.diff()) * scale**2, 0.0) for area in (rounding, clipping))
        return QuantizationError(self.count, self.signal, within, beyond, float(density @ (u - inside).diff()))
