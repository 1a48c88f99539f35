"""The range that loses least information, as the Kullback-Leibler divergence of two histograms measures it.

P is the histogram of |x| with all that is clipped put into the last bin that is kept and not empty; Q is what is kept,
evened out within each code over its bins that are not empty. With p and q their counts, n values of which k are kept,

    n * divergence = sum of p * log((p / n) / (q / k)) = sum of p * log(p) - sum of p * log(q) + n * log(k / n)

and but for what is clipped, the sum of p * log(q) is that of m * log(q) over codes, m the values that share a code:
so differences of running sums serve each code, whatever the range.

Source: Migacz 2017, "8-bit Inference with TensorRT".
"""

from qtutor.affine import choose_qparams
from qtutor.observers.streaming import StreamingHistogram

import torch
from torch import Tensor, nn

_BINS = 1 << 11  # of the histogram of |x|, at most
_CANDIDATES = 49


def least_divergence(
    stream: StreamingHistogram, quant_min: int, quant_max: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Return the `(rows,)` ends of the range of least divergence; all, for more codes than bins."""
    folded, codes = stream.magnitudes(_BINS), quant_max - quant_min + 1
    if codes > folded.bins:
        return stream.low, stream.high
    kept = _candidates(folded, codes)  # (rows, k)
    largest = torch.minimum((kept * folded.width).to(torch.float32), folded.high[:, None])
    low, high = torch.maximum(stream.low[:, None], -largest), torch.minimum(stream.high[:, None], largest)
    ends = low.clamp(max=0), high.clamp(min=0)
    qparams = choose_qparams(*ends, quant_min=quant_min, quant_max=quant_max, symmetric=symmetric)
    divergence = _divergence(folded.counts, _ends_of_codes(folded, kept, qparams.scale, codes))
    # Among equals, the widest range.
    least = divergence.amin(dim=1, keepdim=True) + 1e-9 * folded.counts.sum(dim=1, keepdim=True)
    best = _last(divergence <= least)
    return low.gather(1, best)[:, 0], high.gather(1, best)[:, 0]


def _candidates(folded: StreamingHistogram, codes: int) -> Tensor:
    """`(rows, k)` whole numbers of bins from zero on, evenly in octaves, from one a code to all."""
    most = (folded.high[:, None] / folded.width).floor() + 1
    fewest = most.clamp(max=codes)
    return (fewest * (most / fewest) ** torch.linspace(0, 1, _CANDIDATES, dtype=torch.float64)).round()


def _ends_of_codes(folded: StreamingHistogram, kept: Tensor, scale: Tensor, codes: int) -> Tensor:
    """`(rows, k, codes)` the bin where each code ends; a bin belongs to the code that its middle is rounded to."""
    first, step = folded.first[:, None, None], scale / folded.width
    inside = (kept[..., None] - first).clamp(0, 2 * folded.bins)
    thresholds = (torch.arange(codes - 1) + 0.5) * step[..., None] - 0.5 - first
    return torch.cat([thresholds.ceil().clamp(min=0).minimum(inside), inside], dim=2).to(torch.int64)


def _divergence(counts: Tensor, ends: Tensor) -> Tensor:
    """n times the divergence, `(rows, k)`, of `(rows, bins)` counts whose codes end at `(rows, k, codes)`."""
    counts = counts.to(torch.float64)
    total, inside = counts.sum(dim=1, keepdim=True), ends[..., -1]
    start = ends.new_zeros(*inside.shape, 1)
    mass = _running_sum(counts, ends).diff(dim=2, prepend=start)  # m, (rows, k, codes)
    share = _running_sum(counts > 0, ends).diff(dim=2, prepend=start)  # bins of a code that are not empty
    even = mass / share.clamp(min=1)
    kept = mass.sum(dim=2)
    clipped = total - kept

    last = torch.where(counts > 0, torch.arange(counts.shape[1]), 0).cummax(dim=1).values  # up to each bin
    last_bin = counts.gather(1, last.gather(1, (inside - 1).clamp(min=0)))

    p_log_p = _running_sum(torch.xlogy(counts, counts), inside)
    p_log_p += torch.xlogy(last_bin + clipped, last_bin + clipped) - torch.xlogy(last_bin, last_bin)
    p_log_q = torch.xlogy(mass, even).sum(dim=2) + torch.xlogy(clipped, even.gather(2, _last(share > 0))[..., 0])
    divergence = p_log_p - p_log_q + torch.xlogy(total, kept / total)
    return torch.where(kept > 0, divergence, torch.where(total > 0, torch.inf, 0.0))


def _last(holds: Tensor) -> Tensor:
    """The index along the last dimension, which is kept, of the last that holds."""
    return (torch.arange(holds.shape[-1]) * holds).argmax(dim=-1, keepdim=True)


def _running_sum(each: Tensor, ends: Tensor) -> Tensor:
    """Of `(rows, bins)`, the sums of all bins before the `(rows, ...)` ends."""
    before = nn.functional.pad(each.cumsum(dim=1), (1, 0))
    return before.gather(1, ends.flatten(1)).view(ends.shape)
