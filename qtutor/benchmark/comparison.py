"""What a comparison found, as a table, in Jupyter and in a file."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtutor.benchmark import intervals
from qtutor.machine import Machine
from qtutor.words import in_digits, in_interval

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
        recorded: where and when, for the end of a sentence, if it was not measured by this process; else "".
    """

    table: "pd.DataFrame"
    times: "pd.DataFrame"
    confidence: float
    machine: Machine
    versions: Mapping[str, str]
    recorded: str = ""

    @property
    def setting(self) -> str:
        """Where it ran, in a sentence."""
        return self.machine.setting(self.versions)

    @property
    def _baseline(self) -> str:
        return str(self.table.index[0])

    def ratio(self, name: str, against: str | None = None) -> tuple[float, float, float]:
        """How many times as fast one entry is as another, and the interval of that: medians of paired ratios.

        Args:
            name: the entry.
            against: the one that it is held against; None for the first.

        Raises:
            ValueError: one of the two is no entry, or failed.
        """
        against = self._baseline if against is None else against
        for entry in (name, against):
            if entry not in self.times:
                why = self.table["error"].get(entry, f"the entries are {', '.join(self.table.index)}")
                raise ValueError(f"there is no time of {entry!r}: {why}")
        return intervals.of_median(self.times[against] / self.times[name], self.confidence)

    def finding(self, name: str, against: str | None = None) -> str:
        """Say in a sentence how one entry does beside another, and no more than the interval tells.

        Such as "INT8 is 1.70 times as fast as FP32 (1.62 to 1.81): a gain."; or "a loss", or "no difference that this
        measurement can tell", or "disturbed", where the interval spans a factor of two or there were too few rounds.

        Args and errors are those of `ratio`.
        """
        against = self._baseline if against is None else against
        value, low, high = self.ratio(name, against)
        said = f"{name} is {value:.2f} times as fast as {against} ({low:.2f} to {high:.2f})"
        return f"{said}: {_outcome(low, high, self.confidence)}{', as recorded' if self.recorded else ''}."

    def fastest(self, among: Iterable[str] | None = None) -> str:
        """Name the entry of the best median, and those that this measurement cannot tell from it.

        Args:
            among: the entries; None for all. Those that failed are passed over.

        Raises:
            ValueError: none of them has a time.
        """
        names = [name for name in self.times if among is None or name in set(among)]
        if not names:
            raise ValueError("none of these entries has a time")
        best = min(names, key=lambda name: self.times[name].median())
        rivals = [name for name in names if name != best and self.ratio(name, best)[2] >= 1]
        return f"{best}{', or ' if rivals else ''}{' or '.join(rivals)}"

    def __str__(self) -> str:
        return "\n".join((*self._warning(), self._view().to_string(), *self._sentences()))

    def _repr_html_(self) -> str:
        from html import escape

        above, below = (
            "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
            for sentences in (self._warning(), self._sentences())
        )
        return above + self._view().to_html() + below

    def _view(self) -> "pd.DataFrame":
        """The table, rounded to what a reader takes in."""
        import pandas as pd

        table = self.table.rename_axis(None)
        view = pd.DataFrame(index=table.index)
        for title, name, value in (("latency, ms", "latency", "latency_ms"), ("speed-up", "speedup", "speedup")):
            columns = zip(table[value], table[f"{name}_low"], table[f"{name}_high"], strict=True)
            view[title] = ["–" if math.isnan(x) else in_interval(x, low, high) for x, low, high in columns]
        titles = {"size_mb": "size, MB", "peak_mb": "peak, MB", "accuracy": "accuracy"}
        for column in table.columns.intersection(list(titles)):
            said = "{:.1%}".format if column == "accuracy" else in_digits
            view[titles[column]] = ["–" if math.isnan(x) else said(x) for x in table[column]]
        return view

    def _warning(self) -> Iterator[str]:
        if self.recorded:
            yield f"RECORDED {self.recorded}, and not measured here:"

    def _sentences(self) -> Iterator[str]:
        first = self._baseline
        against = f"the speed-up is against {first}" if first in self.times else f"no speed-up, because {first} failed"
        yield f"Medians of {len(self.times)} rounds, with {self.confidence:.3g} confidence intervals; {against}."
        yield self.setting
        for name, error in self.table["error"].items():
            if error:
                yield f"{name} failed: {' '.join(error.split())}"


def summarize(
    times: "pd.DataFrame", names: Iterable[str], confidence: float, extras: Mapping[str, Mapping[str, float]]
) -> tuple["pd.DataFrame", float]:
    """Return the `table` of a comparison, but for its errors, and the confidence that its intervals have.

    Args:
        times: of the entries that ran to the end: ms for a run, one row a round.
        names: of all entries; the first is what the others are held against.
        confidence: asked for.
        extras: more columns, by their names: a number for each entry that has one.
    """
    import pandas as pd

    names = list(names)
    ratios = times.rdiv(times[names[0]], axis=0) if names[0] in times else times * math.nan
    columns: dict[str, pd.Series] = {}
    for samples, *titles in (
        (times, "latency_ms", "latency_low", "latency_high"),
        (ratios, "speedup", "speedup_low", "speedup_high"),
    ):
        found = samples.apply(lambda column: intervals.of_median(column, confidence), result_type="expand")
        columns |= {title: row for title, (_, row) in zip(titles, found.iterrows(), strict=True)}
    table = pd.DataFrame(columns | {name: pd.Series(found, dtype=float) for name, found in extras.items()})
    covered = intervals.coverage(len(times), intervals.left_out(len(times), confidence))
    return table.reindex(pd.Index(names, name="name")), min(confidence, covered)


def _outcome(low: float, high: float, confidence: float) -> str:
    """What an interval of a ratio lets one say: its confidence is low where there were too few rounds."""
    told = confidence >= intervals.LEAST_CONFIDENCE
    if told and (side := intervals.side(low, high, 1)):
        return side
    if told and not intervals.disturbed(low, high):
        return "no difference that this measurement can tell"
    return "disturbed, run it again when the computer is quiet"
