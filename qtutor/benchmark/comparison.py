"""What a comparison found, as a table, in Jupyter and in a file."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtutor.machine import Machine

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found; shows as a table, here and in Jupyter.

    Attributes:
        table: one row an entry, in the order given, indexed by `name`. `latency_ms` is the median,
            `latency_low` to `latency_high` its interval, in ms; `speedup`, `speedup_low`,
            `speedup_high` say how many times as fast as the first entry it is; `size_mb` is the saved
            model in 10^6 bytes, NaN where the entry is not an `nn.Module`; `peak_mb` and `accuracy`
            are there if asked for; `error` is what went wrong, or empty.
        times: one row a round, one column an entry that ran to the end: ms for a run.
        confidence: of the intervals; lower than asked for where there were too few rounds.
        machine: where it ran, and with how many threads.
        versions: of the runtimes that were loaded.
    """

    table: "pd.DataFrame"
    times: "pd.DataFrame"
    confidence: float
    machine: Machine
    versions: Mapping[str, str]

    @property
    def setting(self) -> str:
        """Where it ran: versions, threads, the processor and what it has for INT8, in a sentence."""
        cpu = self.machine.cpu or "an unknown processor"
        threads = f"{self.machine.threads} threads that wait {self.machine.waiting}"
        threads = "1 thread" if self.machine.threads == 1 else threads
        features = f" ({', '.join(self.machine.features)})" if self.machine.features else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{versions}, with {threads} on {cpu}{features}."

    def __str__(self) -> str:
        return "\n".join((self._view().to_string(), *self._sentences()))

    def _repr_html_(self) -> str:
        from html import escape

        return self._view().to_html() + "".join(f"<p>{escape(sentence)}</p>" for sentence in self._sentences())

    def _view(self) -> "pd.DataFrame":
        """The table, rounded to what a reader takes in."""
        import pandas as pd

        table = self.table.rename_axis(None)
        view = pd.DataFrame(index=table.index)
        for title, name, value in (("latency, ms", "latency", "latency_ms"), ("speed-up", "speedup", "speedup")):
            columns = zip(table[value], table[f"{name}_low"], table[f"{name}_high"], strict=True)
            view[title] = ["–" if math.isnan(x) else f"{x:.3g} ({low:.3g} to {high:.3g})" for x, low, high in columns]
        titles = {"size_mb": "size, MB", "peak_mb": "peak, MB", "accuracy": "accuracy"}
        for column in table.columns.intersection(list(titles)):
            form = "{:.1%}" if column == "accuracy" else "{:.3g}"
            view[titles[column]] = ["–" if math.isnan(x) else form.format(x) for x in table[column]]
        return view

    def _sentences(self) -> Iterator[str]:
        first = self.table.index[0]
        against = f"the speed-up is against {first}" if first in self.times else f"no speed-up, because {first} failed"
        yield f"Medians of {len(self.times)} rounds, with {self.confidence:.3g} confidence intervals; {against}."
        yield self.setting
        for name, error in self.table["error"].items():
            if error:
                yield f"{name} failed: {' '.join(error.split())}"
