"""Choose the fewest layers to leave in floating point for a wanted quality, by trying sets of them."""

from collections.abc import Callable, Mapping
from itertools import combinations
from math import comb

Kept = tuple[str, ...]


def smallest_set(harm: Mapping[str, float], reached: Callable[[Kept], bool], tries: int) -> Kept | None:
    """Return the smallest set of names that `reached` accepts; None if it refuses even all of them.

    The smallest sets are tried first, and among equals those of which the sum of harm promises most. All are
    tried, and the answer is the smallest there is, where `tries` allows it. Else the most harmful names are
    kept, as few of them as do, and what tries are left look for a smaller set.

    Args:
        harm: what each name promises, in the order of which it decreases.
        reached: whether a set will do.
        tries: how often that is asked at most, but for what it takes to find how many of the most harmful do: no more
            than 2 + log2 of how many names there are, rounded up.

    Example:
        >>> smallest_set({"a": 3.0, "b": 2.0, "c": 1.0}, lambda kept: "c" in kept, tries=8)
        ('c',)
    """
    names, left = tuple(harm), tries

    def do(kept: Kept) -> bool:
        nonlocal left
        left -= 1
        return reached(kept)

    if do(()):
        return ()
    if not do(names):
        return None
    best, most = names, len(names) - 1
    if sum(comb(len(names), k) for k in range(1, len(names))) > left:
        low, high = 0, len(names)  # the most harmful `low` do not do, `high` do
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if do(names[:middle]) else (middle, high)
        best, most = names[:high], high - 1
    for size in range(1, most + 1):
        share = max(1, left // (most + 1 - size)) if left < comb(len(names), size) else left
        for kept in _promising(harm, size, max(4 * tries, len(names)))[:share]:
            if left <= 0:
                return best
            if do(kept):
                return kept
    return best


def _promising(harm: Mapping[str, float], size: int, most: int) -> list[Kept]:
    """Sets of a size, those first that promise most; of the most harmful names only, where there are over `most`."""
    pool = list(harm)
    while comb(len(pool), size) > most and len(pool) > size:
        pool.pop()
    # Stable: among equals, the order of harm stands.
    return sorted(combinations(pool, size), key=lambda kept: -sum(harm[name] for name in kept))
