"""Exact intervals for a median, which assume nothing about how the samples are distributed.

Of n samples, as many fall below the true median as n fair coins show heads; leave out the k smallest and the k
largest, and the rest spans the median with probability 1 - 2 P(heads <= k).

Source: Conover 1999, "Practical Nonparametric Statistics", 3.2.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


LEAST_CONFIDENCE = 0.9
"""The confidence without which nothing is said: there were too few samples."""


def enough(confidence: float) -> int:
    """How many samples it takes until their whole range spans the median with this confidence."""
    return 1 + math.ceil(-math.log2(1 - confidence))


def left_out(samples: int, confidence: float) -> int:
    """How many samples an interval may leave out at either end."""
    from scipy.special import bdtr  # scipy.stats takes a second and 48 MB to import

    at_most = bdtr(range(samples), samples, 0.5)  # heads
    return max(0, int((at_most <= (1 - confidence) / 2).sum()) - 1)


def coverage(samples: int, left: int) -> float:
    """The probability that an interval which leaves out so many samples at either end spans the median."""
    from scipy.special import bdtr

    return float(1 - 2 * bdtr(left, samples, 0.5))


def of_median(samples: "pd.Series", confidence: float) -> tuple[float, float, float]:
    """The median of samples, and the ends of its interval: all of them where there are too few."""
    ordered, left = samples.sort_values(), left_out(len(samples), confidence)
    return float(ordered.median()), float(ordered.iloc[left]), float(ordered.iloc[-1 - left])


def side(low: float, high: float, nothing: float) -> str:
    """Say on which side of what would be no difference an interval lies, "a gain" or "a loss"; "" where it holds it."""
    return "a gain" if low > nothing else "a loss" if high < nothing else ""


def disturbed(low: float, high: float) -> bool:
    """Whether the interval of a ratio is noise: it spans a factor of two."""
    return high > 2 * low
