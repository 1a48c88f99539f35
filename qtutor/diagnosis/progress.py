"""A bar of forward passes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(total: int, shown: bool) -> "tqdm":
    """Return a bar of so many forward passes, to be used in a `with`; hidden, it takes the same calls."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="Diagnosing", unit="pass", disable=not shown)
