"""Choose the fewest layers to leave in floating point for a wanted quality, by trying sets of them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

from qtutor.simulation import Configuration

if TYPE_CHECKING:
    from qtutor.diagnosis import Diagnosis

Kept = tuple[str, ...]


def choose_float_layers(
    diagnosis: "Diagnosis",
    *,
    metric: float | None = None,
    sqnr: float | None = None,
    configuration: Configuration | None = None,
    tries: int = 64,
) -> Kept:
    """Choose the fewest layers to keep in floating point so that the rest may be quantized.

    Args:
        diagnosis: of the model, on the data that judge.
        metric: the accuracy, or what the diagnosis measured, that is to be reached.
        sqnr: the SQNR of the output in dB that is to be reached; either will do.
        configuration: of what is quantized; by default that of the diagnosis.
        tries: how many sets to measure, each a pass over the data; `fewest` says how they are spent.

    Returns:
        Names of layers, the most harmful first.

    Raises:
        ValueError: no goal is given, or it is not reached with all layers in floating point.
    """
    if metric is None and sqnr is None:
        raise ValueError("choose_float_layers needs a goal: metric=, such as an accuracy, or sqnr= in dB")
    configuration = configuration or diagnosis.configuration

    def reached(kept: Kept) -> bool:
        measured = diagnosis.measure(replace(configuration, keep_float=kept))
        enough = metric is None or measured.metric >= metric - 1e-9
        return enough and (sqnr is None or measured.sqnr >= sqnr)

    kept = fewest(dict(zip(diagnosis.table["layer"], diagnosis.table["harm"], strict=True)), reached, tries)
    if kept is None:
        goals = (("metric", metric), ("sqnr", sqnr))
        wanted = " and ".join(f"{name} {value:g}" for name, value in goals if value is not None)
        raise ValueError(f"choose_float_layers: even in floating point the model does not reach {wanted}")
    return kept


def fewest(harm: Mapping[str, float], reached: Callable[[Kept], bool], tries: int) -> Kept | None:
    """Return the smallest set of names that `reached` accepts; None if it refuses even all of them.

    The smallest sets are tried first, and among equals those of which the sum of harm promises most. All are
    tried, and the answer is the smallest there is, where `tries` allows it. Else the most harmful names are
    kept, as few of them as do, and what tries are left look for a smaller set.

    Args:
        harm: what each name promises, in the order of which it decreases.
        reached: whether a set will do; it is called at most `tries` times, and at least twice.
        tries: see above.

    Example:
        >>> fewest({"a": 3.0, "b": 2.0, "c": 1.0}, lambda kept: "c" in kept, tries=8)
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
