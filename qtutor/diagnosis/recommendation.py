"""Which repairs are worth it: they are tried in turn, the cheapest first, and each is measured."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qtutor.diagnosis.experiment import Experiment, Measured
from qtutor.diagnosis.search import Kept, smallest_set
from qtutor.simulation import Configuration
from qtutor.words import said_by
from qtutor.workflows.limits import BETTER, CLEAR, USUAL

if TYPE_CHECKING:
    import pandas as pd

_TRIES = 24  # sets of layers to keep in floating point
_REPAIRS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("a scale for each channel", {"weights": "channel"}),
    ("ranges of least squared error", {"activations": "mse"}),
    ("equalization", {"equalized": True}),
    ("bias correction", {"bias_corrected": True}),
)


@dataclass(frozen=True)
class Goal:
    """What a configuration has to reach, without losing what varies in the output beside a constant in it.

    Attributes:
        metric: the least that the metric may be; None where there is none.
        sqnr: the least SQNR of the output in dB; where None, `CLEAR` beside a metric and `USUAL` without one, as far as
            outputs can be compared.
    """

    metric: float | None = None
    sqnr: float | None = None

    def reached(self, got: Measured) -> bool:
        """Whether this is good enough."""
        enough = self.metric is None or got.metric >= self.metric - 1e-9
        close = got.sqnr >= self._decibels or (self.sqnr is None and math.isnan(got.sqnr))
        return enough and close and not got.offset_hides

    @property
    def _decibels(self) -> float:
        usual = USUAL if self.metric is None else CLEAR
        return usual if self.sqnr is None else self.sqnr

    def __str__(self) -> str:
        metric = "" if self.metric is None else f"a metric of {self.metric:.4g} and "
        return f"{metric}{self._decibels:.4g} dB"


def fewest_in_float(
    experiment: Experiment, configuration: Configuration, goal: Goal, table: "pd.DataFrame", tries: int
) -> Kept | None:
    """Return the fewest layers to keep in floating point so that a goal is reached; None where all are not enough.

    Args:
        experiment: measures the sets.
        configuration: of the layers that are rounded.
        goal: what is to be reached.
        table: of a diagnosis; a layer that was not measured promises nothing, and stands behind all others.
        tries: how many sets to measure; `smallest_set` says how they are spent.
    """
    harm = dict(zip(table["layer"], table["harm"], strict=True))
    least = min([0.0, *harm.values()])
    for name in experiment.layers:
        harm.setdefault(name, least)

    def reached(kept: Kept) -> bool:
        with suppress(ValueError):  # a model may fail where all but some layers are rounded
            return goal.reached(experiment.measure(replace(configuration, keep_float=kept)))
        return False

    return smallest_set(harm, reached, tries)


@dataclass
class Search:
    """The search for the cheapest configuration that reaches a goal; what is here when it is interrupted was measured.

    Attributes:
        best: the cheapest configuration that reaches the goal, or the best so far.
        steps: a row for each step: what it was, whether it was kept, and what it gave.
    """

    experiment: Experiment
    best: Configuration
    goal: Goal
    steps: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self):
        self._note("as diagnosed", True, self.best)

    def run(self, table: "pd.DataFrame", say: Callable[[str], Any]) -> None:
        """Try the repairs, then layers in floating point by their harm in `table`; `say` hears what is tried next.

        Where nothing has to be repaired, one bit less is tried instead, to show how much room there is.
        """
        if self.goal.reached(self.experiment.measure(self.best)):
            if self.best.bits > 2:
                fewer = self.best.bits - 1
                say(f"Trying {fewer} bits")
                with suppress(ValueError):  # a model that raises now and then
                    self._note(f"with {fewer} bits, for comparison", False, replace(self.best, bits=fewer))
            return
        for step, change in _REPAIRS:
            if self.goal.reached(self.experiment.measure(self.best)):
                return
            candidate = replace(self.best, **change)
            if candidate != self.best:
                say(f"Trying {step}")
                self._try(step, candidate)
        if not self.goal.reached(self.experiment.measure(self.best)):
            say("Trying layers in float")
            self._keep_some_in_float(table)

    def table(self, metric_name: str) -> "pd.DataFrame":
        """Return the steps as a table; its column of the metric has the metric's name."""
        import pandas as pd

        columns = ["step", "kept", "sqnr", "metric", "bytes", "configuration"]
        table = pd.DataFrame(self.steps, columns=columns)
        return table.rename(columns={"metric": metric_name}) if metric_name else table.drop(columns="metric")

    def _try(self, step: str, candidate: Configuration) -> None:
        try:
            better = _is_better(self.experiment.measure(candidate), self.experiment.measure(self.best))
        except (TypeError, ValueError) as error:  # the repair does not fit the model
            self.steps.append({"step": f"{step}: {said_by(error)}", "kept": False})
            return
        self._note(step, better, candidate)
        self.best = candidate if better else self.best

    def _keep_some_in_float(self, table: "pd.DataFrame") -> None:
        kept = fewest_in_float(self.experiment, self.best, self.goal, table, _TRIES)
        if kept is None:
            self.steps.append({"step": "layers in float: even with all of them the goal is not reached", "kept": False})
            return
        self.best = replace(self.best, keep_float=kept)
        self._note(f"{len(kept)} of {len(self.experiment.layers)} layers in float", True, self.best)

    def _note(self, step: str, kept: bool, configuration: Configuration) -> None:
        measured = asdict(self.experiment.measure(configuration))
        self.steps.append({"step": step, "kept": kept, **measured, "configuration": configuration})


def _is_better(new: Measured, old: Measured) -> bool:
    if math.isnan(new.sqnr) or new.sqnr == old.sqnr:
        return new.metric > old.metric
    return new.sqnr > old.sqnr + BETTER
