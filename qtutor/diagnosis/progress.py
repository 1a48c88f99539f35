"""A bar of forward passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _NoBar:
    def update(self, count: int) -> None: ...

    def set_description(self, text: str) -> None: ...


@contextmanager
def bar(total: int, shown: bool) -> Iterator[Any]:
    """Show a bar of so many forward passes, or take the same calls and show none."""
    if not shown:
        yield _NoBar()
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="Diagnosing", unit="pass") as shown_bar:
        yield shown_bar
