"""The squared error of quantizing what a histogram has counted, and the range where it is least.

With c the value of the highest code and t the thresholds between neighbouring codes,

    sum of (x - x_hat)**2 = sum of (x - c)**2 - 2 s * sum over t of E(t),  E(t) = sum of max(t - x, 0)

for each threshold above a value takes it one step, s, further down from c. So one table of E, the counts
summed twice, serves every scale and zero point. Values are taken to be spread evenly within a bin, and
exact zeros cost nothing.
"""

from collections.abc import Callable

from qtutor.affine import scale_and_zero_point
from qtutor.observers.streaming import StreamingHistogram

import torch
from torch import Tensor

Estimate = Callable[[Tensor, Tensor, int, int], Tensor]
_CLIPS = torch.logspace(0, -12, 25, base=2)  # of the largest magnitude, at which both ends are clipped


def _near(octaves: float, count: int) -> Tensor:
    return torch.logspace(-octaves, octaves, count, base=2)


_FADE, _STAY = torch.cat([torch.logspace(0, -12, 24, base=2)[:-1], torch.zeros(1)]), torch.ones(24)
_ONE_END: list[tuple[Tensor, ...]] = [(near, near) for near in (_near(1 / 4, 25), _near(1 / 96, 25))]
_BOTH_ENDS: list[tuple[Tensor, ...]] = [
    (torch.cat([_FADE, _STAY]), torch.cat([_STAY, _FADE])),  # one of two ends may be worth giving up
    *(torch.cartesian_prod(near, near).unbind(dim=1) for near in (_near(1 / 4, 7), _near(1 / 24, 5), _near(1 / 96, 5))),
]
"""What to multiply the ends of the best range by, closer and closer: to half the distance of its neighbours."""


def squared_error(stream: StreamingHistogram) -> Estimate:
    """Return what estimates the sum of squared errors of each row under many qparams.

    It takes `(rows, k)` scales and zero points, quant_min and quant_max, and returns `(rows, k)` sums.
    """
    used = (torch.stack([stream.low, stream.high], dim=1) / stream.width).floor() - stream.first[:, None]
    start, stop = max(int(used.min()) - 1, 0), int(used.max()) + 1  # of all rows, what lies outside is empty
    counts = stream.counts_in(start, stop + 1).to(torch.float64)  # whatever lies beyond finds an empty bin
    bins, width, first = stop - start, stream.width, stream.first[:, None] + start
    # All in widths of a bin: at its left edge, how many values lie below and E; a fraction f further right,
    # E(edge + f) = E(edge) + f * below + f**2 * half. In place, which halves the time of many rows.
    below, half = counts.cumsum(dim=1).sub_(counts), counts / 2
    area = below + half
    shortfall = area.cumsum(dim=1).sub_(area)
    # Of the distances to the last edge, how many, their sum, and the sum of their squares: twice E's integral.
    count, distance = below[:, -1:], shortfall[:, -1:]
    square = 2 * (below / 2).add_(half, alpha=1 / 3).add_(shortfall)[:, :-1].sum(dim=1, keepdim=True)

    def sum_of_shortfalls(thresholds: Tensor) -> Tensor:
        inside = thresholds.flatten(1).clamp_(min=0)  # (rows, k * t)
        edge = inside.floor().clamp_(max=bins)
        fraction, index = inside.sub_(edge), edge.to(torch.int64)
        slope = half.gather(1, index).mul_(fraction).add_(below.gather(1, index))
        return slope.mul_(fraction).add_(shortfall.gather(1, index)).view(thresholds.shape).sum(dim=-1)

    def estimate(scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
        step = scale / width  # (rows, k)
        lowest, steps = (quant_min - zero_point) * step - first, quant_max - quant_min
        thresholds = (torch.arange(steps, dtype=torch.float64) + 0.5) * step[..., None] + lowest[..., None]
        beyond = lowest + steps * step - bins  # how far c lies beyond the last edge
        from_highest = square + 2 * beyond * distance + beyond**2 * count
        return (from_highest - 2 * step * sum_of_shortfalls(thresholds)).clamp(min=0) * width**2

    return estimate


def least_error(stream: StreamingHistogram, quant_min: int, quant_max: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return the `(rows,)` ends of the range of least squared error; all, for more than 65536 codes."""
    if quant_max - quant_min >= 1 << 16:
        return stream.low, stream.high
    bottom, top = stream.low.clamp(max=0), stream.high.clamp(min=0)
    if symmetric:
        top = torch.maximum(-bottom, top)
        bottom = -top
    elif (top - bottom).max() == torch.inf:
        return bottom, top  # no scale: `choose_qparams` says so
    one_end = torch.ones_like(top, dtype=torch.bool) if symmetric else (bottom == 0) | (top == 0)
    for rows, factors in ((one_end, _ONE_END), (~one_end, _BOTH_ENDS)):  # each row is searched as it would be alone
        if rows.any():
            estimate = squared_error(stream if rows.all() else stream.select(rows))
            widest = bottom[rows, None], top[rows, None]
            bottom[rows], top[rows] = _search(estimate, *widest, factors, (quant_min, quant_max), symmetric)
    return bottom, top


def _search(
    estimate: Estimate, bottom: Tensor, top: Tensor, factors: list, grid: tuple[int, int], symmetric: bool
) -> tuple[Tensor, Tensor]:
    """The `(rows,)` ends of the best range within `(rows, 1)` ends, found closer and closer."""

    def best(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        error = estimate(*scale_and_zero_point(low, high, *grid, symmetric), *grid)
        least = error.argmin(dim=1, keepdim=True)
        return low.gather(1, least), high.gather(1, least)

    clip = torch.maximum(-bottom, top) * _CLIPS  # (rows, k)
    low, high = best(torch.maximum(bottom, -clip), torch.minimum(top, clip))
    for low_factors, high_factors in factors:
        low, high = best(torch.maximum(low * low_factors, bottom), torch.minimum(high * high_factors, top))
    return low[:, 0], high[:, 0]
