"""Size, latency, peak memory and accuracy of models, compared fairly.

A stop-watch around a loop measures the neighbours, the first call and the processor's mood as much as
the model. Here every entry is warmed up until it gets no faster, and then all entries take turns, in
rounds: forwards, backwards, forwards ... What slows the machine down for a while slows all of them
down, so the ratio within a round hardly moves. A speed-up is the median of those ratios.

Intervals are the exact ones of order statistics, which assume nothing about how times are
distributed: the median of n rounds' distribution lies between the (k+1)-th smallest and the (k+1)-th
largest round unless at most k of n fair coins fall on one side.
"""

import dataclasses
import io
import json
import math
import timeit
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import set_torch_threads, timer

from qtutor.machine import Machine, describe

if TYPE_CHECKING:
    import pandas as pd

Batches = Iterable[tuple[Tensor, Tensor]]

_BLOCK = 0.01  # seconds that a fast entry runs before the next has its turn: short beside what disturbs it
_NO_CLASS = torch.iinfo(torch.int64).min


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found; shows as a table.

    Attributes:
        table: one row an entry, in the order given, indexed by `name`.
            `latency_ms` is the median, `latency_low` and `latency_high` its interval, in ms;
            `speedup`, `speedup_low`, `speedup_high`: how many times as fast as the first entry;
            `size_mb`: the saved model, in 10^6 bytes, NaN where the entry is not an `nn.Module`;
            `peak_mb` and `accuracy`: only where asked for; `error`: what went wrong, else empty.
        times: one row a round, one column an entry that ran: ms a run.
        confidence: of the intervals. Lower than asked for where too few rounds fitted in the time.
        machine: where it ran, and with how many threads.
    """

    table: "pd.DataFrame"
    times: "pd.DataFrame"
    confidence: float
    machine: Machine

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """Write the table to `path`, or return it as text."""
        return self.table.to_csv(path)

    def to_json(self, path: str | Path | None = None) -> str | None:
        """Write the table, the times of each round and the machine to `path`, or return them as text."""
        content = {
            "entries": json.loads(self.table.reset_index().to_json(orient="records")),
            "times_ms": json.loads(self.times.to_json(orient="split"))["data"],
            "confidence": self.confidence,
            "machine": dataclasses.asdict(self.machine),
        }
        text = json.dumps(content, indent=2)
        if path is None:
            return text
        Path(path).write_text(text, encoding="utf-8")
        return None

    def __str__(self) -> str:
        return f"{self._view().to_string()}\n{self._conditions()}"

    def _repr_html_(self) -> str:
        from html import escape

        return f"{self._view().to_html()}<p>{escape(self._conditions())}</p>"

    def _view(self) -> "pd.DataFrame":
        """The table in words that a reader takes in at a glance."""
        import pandas as pd

        def interval(row: "pd.Series", value: str, name: str) -> str:
            if math.isnan(row[value]):
                return "–"
            return f"{row[value]:.3g} ({row[f'{name}_low']:.3g} to {row[f'{name}_high']:.3g})"

        table = self.table
        view = pd.DataFrame(index=table.index.rename(None))
        view["latency, ms"] = table.apply(interval, axis=1, args=("latency_ms", "latency"))
        view["speed-up"] = table.apply(interval, axis=1, args=("speedup", "speedup"))
        for column, title, form in (("size_mb", "size, MB", "{:.3g}"), ("peak_mb", "peak memory, MB", "{:.3g}"),
                                    ("accuracy", "accuracy", "{:.1%}")):
            if column in table and table[column].notna().any():
                view[title] = ["–" if math.isnan(value) else form.format(value) for value in table[column]]
        if table["error"].any():
            view["error"] = table["error"]
        return view

    def _conditions(self) -> str:
        first = self.table.index[0]
        against = f"speed-up against {first}" if first in self.times else f"no speed-up, because {first} failed"
        return (
            f"Medians of {len(self.times)} interleaved rounds with {self.confidence:.3g} confidence intervals; {against}. "
            f"{self.machine.threads} threads, {self.machine.cpu or 'an unknown processor'}, "
            f"PyTorch {self.machine.torch}."
        )


def compare(
    entries: Mapping[str, nn.Module | Callable],
    inputs: Tensor | tuple[Tensor, ...],
    *,
    seconds: float = 2.0,
    repeats: int | None = None,
    threads: int | None = None,
    confidence: float = 0.99,
    loader: Batches | None = None,
    memory: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Comparison:
    """Compare the entries on the same inputs, under `torch.inference_mode`, in interleaved rounds.

    An entry that raises, in its first run or later, keeps a row that says so, and the others keep
    their results. Models are run as they are: call `.eval()` first.

    Args:
        entries: by name; the first is the one that the others are compared with.
        inputs: what each entry is called with.
        seconds: for each entry, on average. The first run of each, where compilers compile, comes on
            top, and so do memory and accuracy.
        repeats: this many rounds, however long they take; None for as many as fit in `seconds`.
        threads: for PyTorch; None leaves them as they are. The caller's number is always put back.
        confidence: that an interval holds the true median.
        loader: `(images, labels)` batches to measure accuracy on.
        memory: also measure `peak_mb`, the most that the tensors of a run take at one time beyond
            weights and inputs, in 10^6 bytes. It sees PyTorch's own allocations, no other runtime's.
        progress: called with the fraction done, in [0, 1]; raise in it to stop.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
        RuntimeError: every entry failed.

    Example:
        >>> comparison = compare({"slow": torch.linalg.svd, "fast": torch.abs}, torch.rand(64, 64), seconds=0.05)
        Traceback (most recent call last):
    """
