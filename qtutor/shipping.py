"""From a diagnosis to a model that is shipped: the ways to integers, what each gives, and what came out, in sentences.

Every number in a sentence is computed when it is said. What cannot be done is said too, by the flow that refuses it.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qtutor import workflows
from qtutor.affine import noise_over_signal
from qtutor.benchmark import flips, size_bytes
from qtutor.diagnosis import Diagnosis
from qtutor.diagnosis.experiment import Measured
from qtutor.diagnosis.recommendation import Goal
from qtutor.models.batches import Batch, by_place, read
from qtutor.models.running import agreement, outputs
from qtutor.models.tensors import tensors_in
from qtutor.words import in_decibels, in_digits
from qtutor.workflows.telling import QuantizationWarning

from torch import Tensor, nn

if TYPE_CHECKING:
    import pandas as pd

_WAYS: dict[str, Callable[[Diagnosis], nn.Module]] = {
    "static (FX)": lambda diagnosis: diagnosis.apply("fx"),
    "dynamic": lambda diagnosis: workflows.quantize_dynamic(diagnosis.experiment.model),
    "static (PT2E)": lambda diagnosis: diagnosis.apply("pt2e"),
}
_LAST = "static (PT2E)"  # without a compiler it simulates integers, so it is tried where no other way is good enough
_WORTH = 0.9  # of the bytes of the float model: what takes more saves nothing that anybody would notice


class Stopped(Exception):
    """What the owner of a model has to know before it can go on; a notebook shows the sentence and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped here. {self}"]


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """Say in a sentence what goes wrong with a model, and stop the notebook there.

    Raises:
        Stopped: something in the block raised a TypeError, a ValueError, an OSError or `workflows.Unavailable`.
    """
    try:
        yield
    except (TypeError, ValueError, workflows.Unavailable, OSError) as error:
        raise Stopped(_sentence(error)) from error


@dataclass(frozen=True, eq=False, repr=False)
class Ways:
    """The ways to integers that were tried; shows as a table.

    Attributes:
        models: the INT8 model of each way that takes the model.
        measured: what each gives on the data of the diagnosis, and the bytes of its file.
        said: what each said: what stays in floating point, or why it refuses.
        goal: of the diagnosis.
        metric_name: "accuracy", "metric" for one of the caller's own, or "" if there is none.
        float_bytes: of the file of the float model.
    """

    models: dict[str, nn.Module]
    measured: dict[str, Measured]
    said: dict[str, str]
    goal: Goal
    metric_name: str
    float_bytes: int

    @property
    def good(self) -> tuple[str, ...]:
        """The ways that save bytes and reach the goal."""
        return tuple(name for name in self._smaller if self.goal.reached(self.measured[name]))

    @property
    def chosen(self) -> str:
        """The smallest of the good ones; else the closest to the float model, of those that save bytes if any does.

        Raises:
            ValueError: no way takes the model; the message gives the reason of each.
        """
        if not self.measured:
            refusals = " ".join(
                f"({number}) {name}: {said}" for number, (name, said) in enumerate(self.said.items(), 1)
            )
            raise ValueError(
                f"no way to integers takes this model. {refusals} Mend what the first names and run all cells again; "
                "until then, diagnosis.simulate() rounds it in floating point"
            )
        if self.good:
            return min(self.good, key=lambda name: self.measured[name].bytes)
        return max(self._smaller or self.measured, key=lambda name: self.measured[name].sqnr)

    @property
    def best(self) -> nn.Module:
        """The INT8 model of the way that is chosen; raises as `chosen`."""
        return self.models[self.chosen]

    @property
    def sentence(self) -> str:
        """Which way is chosen, why, and what it saves; raises as `chosen`."""
        got, before = self.measured[self.chosen], self.float_bytes
        why = "the smallest that reaches the goal" if self.good else "the closest to the float model"
        said = f"Chosen: {self.chosen}, {why}. {got.bytes:,} bytes in a file instead of {before:,}"
        if self.chosen not in self._smaller:
            return f"{said}: that saves little or nothing, so keep the float model."
        said = f"{said}, {before / got.bytes:.1f} times smaller."
        return said if self.good else f"{said} It misses the goal ({self.goal}): train through the rounding, lesson 06."

    @property
    def _smaller(self) -> tuple[str, ...]:
        return tuple(name for name, got in self.measured.items() if got.bytes < _WORTH * self.float_bytes)

    def table(self) -> "pd.DataFrame":
        """Return a row for each way: bytes, quality, and what it said."""
        import pandas as pd

        columns: dict[str, Callable[[Measured], str]] = {
            "bytes": lambda got: f"{got.bytes:,}",
            "SQNR of the output": lambda got: in_decibels(got.sqnr),
        }
        if self.metric_name:
            form = ".1%" if self.metric_name == "accuracy" else ".4g"
            columns[self.metric_name] = lambda got: f"{got.metric:{form}}"
        rows = {}
        for name, said in self.said.items():
            got = self.measured.get(name)
            rows[name] = {column: say(got) if got else "" for column, say in columns.items()}
            rows[name]["what it says"] = said
        return pd.DataFrame.from_dict(rows, orient="index")

    def __repr__(self) -> str:
        return self.table().to_string()

    def _repr_html_(self) -> str:
        return self.table().to_html(border=0)


def ways(diagnosis: Diagnosis) -> Ways:
    """Try the ways to integers, and measure each: a static flow, dynamic, and PT2E where neither is good enough."""
    experiment = diagnosis.experiment
    found = Ways({}, {}, {}, diagnosis.goal, diagnosis.metric_name, size_bytes(experiment.model))
    for name, convert in _WAYS.items():
        if name == _LAST and found.good:
            break
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                model = convert(diagnosis)
                score = experiment.score(model, experiment.metric)
                found.measured[name] = Measured(score.sqnr, score.metric, size_bytes(model), score.offset_hides)
            except (TypeError, ValueError, workflows.Unavailable) as error:
                found.said[name] = _sentence(str(error).partition(". Diagnosis.apply")[0])
                continue
        found.models[name] = model
        told = [_sentence(w.message) for w in caught if issubclass(w.category, QuantizationWarning)]
        found.said[name] = " ".join(told) or "It takes the model."
    return found


def brought(diagnosis: Diagnosis) -> str:
    """Say what was read of a model and its data, so that its owner sees whether that was meant."""
    batches, kinds = diagnosis.experiment.batches, diagnosis.table["kind"].value_counts()
    shapes = " and ".join(str(tuple(x.shape)) for x in tensors_in([batches[0].args, batches[0].kwargs]))
    judged = "There are no labels that are classes, so the SQNR of the output judges."
    if diagnosis.metric_name == "accuracy":
        judged = f"Labels are classes, so accuracy judges: {diagnosis.float_metric:.1%} in float."
    elif diagnosis.metric_name:
        judged = f"The metric that was given judges: {diagnosis.float_metric:.4g} in float."
    return (
        f"Model: {size_bytes(diagnosis.experiment.model):,} bytes in a file. Layers that can be rounded: "
        f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())}.\n"
        f"Data: {sum(batch.size for batch in batches)} samples, the first batch of shape {shapes}.\n{judged}"
    )


def example(diagnosis: Diagnosis) -> tuple[Tensor, ...]:
    """Return the inputs of the first batch, in the order in which `forward` takes them."""
    return _placed(diagnosis, diagnosis.experiment.batches[:1])[0][0]


def judge(diagnosis: Diagnosis, quantized: nn.Module, unseen: Iterable | None = None) -> str:
    """Say how a quantized model does beside the float one: the SQNR of its output, and predictions that changed.

    Args:
        diagnosis: of the float model.
        quantized: what was made of it.
        unseen: batches that no choice has seen; None takes those of the diagnosis, and says so.

    Raises:
        TypeError, ValueError: `unseen` are not batches, or the model does not take them.
    """
    batches = diagnosis.experiment.batches if unseen is None else [*read(unseen, "unseen", keep=True)]
    got = diagnosis.experiment.agreement(quantized, batches)
    times = in_digits(math.sqrt(noise_over_signal(got)), 2)
    size = f", an error {times} times as large as the signal" if got < math.inf else ""
    said = [f"{'On the data of the diagnosis' if unseen is None else 'On unseen data'}: {in_decibels(got)}{size}."]
    if diagnosis.metric_name == "accuracy" and all(batch.labels is not None for batch in batches):
        said.append(str(flips(diagnosis.experiment.model, quantized, _placed(diagnosis, batches))))
    if unseen is None:
        said.append("All choices were made on these data, which flatters the model: keep some back as `unseen`.")
    return "\n".join(said)


def same(first: nn.Module, second: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Say whether two models give the same."""
    got = agreement(outputs(first, inputs), outputs(second, inputs))
    return "the same to the last bit" if got == math.inf else f"something else: the two agree to {got:.1f} dB"


def _sentence(said: object) -> str:
    text = str(said).rstrip(".")
    begins = text.partition(" ")[0]
    return f"{begins.capitalize() if begins.islower() and begins.isalpha() else begins}{text[len(begins) :]}."


def _placed(diagnosis: Diagnosis, batches: list[Batch]) -> list[tuple[tuple[Tensor, ...], Any]]:
    """Batches as pairs of inputs by place and labels: flows know no names."""
    return [(by_place(batch, diagnosis.experiment.model, "a batch"), batch.labels) for batch in batches]
