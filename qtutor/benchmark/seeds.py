"""What several trainings that differ in the seed alone let one say.

The ends of an interval are those of `intervals`: of five trainings the lowest and the highest span the median with
94 percent confidence, of fewer they do not with 90.
"""

from collections.abc import Sequence

from qtutor.benchmark import intervals


def spread(values: Sequence[float]) -> str:
    """Return the median of some results, and the ends of its interval.

    Raises:
        ValueError: there is none.

    Example:
        >>> spread([28.0, 31.0, 25.0, 34.5, 29.5])
        '29.5 (25.0 to 34.5)'
    """
    value, low, high = _interval(values)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def seed_by_seed(name: str, ours: Sequence[float], against: str, theirs: Sequence[float]) -> str:
    """Say in a sentence how two ways to train compare, seed by seed, and no more than the interval tells.

    Args:
        name: the one.
        ours: its accuracies in percent, by seed.
        against: the other.
        theirs: its accuracies, of the same seeds in the same order.

    Raises:
        ValueError: there is no seed, or the two have not the same number of them.

    Example:
        >>> seed_by_seed("LSQ", [84.5, 89.5, 78.5, 88.0, 85.0], "min-max", [31.0, 25.0, 34.5, 29.5, 28.0])
        'LSQ minus min-max: +57.0 points (+44.0 to +64.5, 5 seeds): a gain.'
    """
    if len(ours) != len(theirs):
        raise ValueError(f"seeds are compared in pairs, got {len(ours)} of {name} and {len(theirs)} of {against}")
    value, low, high = _interval([a - b for a, b in zip(ours, theirs, strict=True)])
    said = f"{name} minus {against}: {value:+.1f} points ({low:+.1f} to {high:+.1f}, {len(ours)} seeds)"
    if len(ours) < intervals.enough(intervals.LEAST_CONFIDENCE):
        return f"{said}: too few seeds to tell."
    return f"{said}: {intervals.side(low, high, 0) or 'no difference that these seeds can tell'}."


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    import pandas as pd

    if not len(values):
        raise ValueError("there is no result of any seed")
    return intervals.of_median(pd.Series(values), intervals.LEAST_CONFIDENCE)
