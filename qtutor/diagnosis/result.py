"""What a diagnosis says: tables, a recommendation, and what can be done with it."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtutor import workflows
from qtutor.diagnosis.experiment import Experiment, Measured
from qtutor.diagnosis.recommendation import Goal
from qtutor.diagnosis.statistics import LayerStatistics
from qtutor.diagnosis.writing import as_text, rows, skipped_lines, written
from qtutor.simulation import Configuration
from qtutor.words import in_bytes, in_decibels, in_digits
from qtutor.workflows.floats import left_in_floats
from qtutor.workflows.limits import TWICE
from qtutor.workflows.recipe import recipe_of
from qtutor.workflows.telling import OFFSET, tell

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

if TYPE_CHECKING:
    import pandas as pd

_NOTEBOOK, _TEXT, _TABLE = "notebook and text", "text", ""
COLUMNS = {
    **dict.fromkeys(("layer", "kind", "harm", "alone_sqnr", "all_but_sqnr", "alone_metric"), _NOTEBOOK),
    **dict.fromkeys(("all_but_metric", "weight_sqnr"), _TEXT),
    "weight_median": _TABLE,
    **dict.fromkeys(("weight_worst", "activation_sqnr"), _TEXT),
    **dict.fromkeys(("activation_median", "activation_worst", "weight_spread", "activation_spread"), _TABLE),
    **dict.fromkeys(("bias_shift", "parameters"), _TABLE),
    **dict.fromkeys(("finding", "suggestion"), _NOTEBOOK),
}
"""The columns of a diagnosis, in order, each with where it is shown beside the table itself."""


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Which layers hurt, why, and what to do.

    Attributes:
        table: a pandas DataFrame, one row a layer, the most harmful first. `layer` is its qualified name;
            `alone_...` were measured with only this layer rounded, `all_but_...` with all others; SQNRs are in dB.
        skipped: a DataFrame of what is not simulated: layer, kind, reason.
        metric_name: "accuracy", "metric" for one of the caller's own, or "" if there is none.
        float_metric: the metric of the model as it was given.
        all_rounded: what the configuration gives with all layers rounded.
        configuration: how layers were rounded.
        notes: sentences on what was left out, interrupted or unusual.
        interrupted: an interrupt ended the measuring, and the tables hold what was measured until then.
        statistics: what each layer does to its own tensors, for pictures.
        steps: a DataFrame of the repairs in turn, cheapest first, each measured; a repair that does not help is left
            out of the next.
        recommended: the cheapest configuration found that reaches the goal, or the best where none does.
        verdict: the recommendation in a sentence or two.
        goal: what a configuration had to reach.
        experiment: what measures further configurations.
    """

    table: "pd.DataFrame"
    skipped: "pd.DataFrame"
    metric_name: str
    float_metric: float
    all_rounded: Measured
    configuration: Configuration
    notes: tuple[str, ...]
    interrupted: bool
    statistics: dict[str, LayerStatistics]
    steps: "pd.DataFrame"
    recommended: Configuration
    verdict: str
    goal: Goal
    experiment: Experiment = field(repr=False)

    def measure(self, configuration: Configuration) -> Measured:
        """Measure what a configuration gives, once, on the data of the diagnosis.

        Raises:
            ValueError: `keep_float` names no layer that was simulated, or a repair does not fit the model.
        """
        return self.experiment.measure(configuration)

    def shortened(self, seconds: float) -> "Diagnosis":
        """Return one that measures on as many batches, at least one, as take about so long."""
        return replace(self, experiment=self.experiment.shortened(self.configuration, seconds))

    def simulate(self, configuration: Configuration | None = None) -> nn.Module:
        """Return a copy of the model that rounds as a configuration says, by default the recommended one.

        It stays in floating point, works for any model and any number of bits, and is no faster or smaller.
        """
        return self.experiment.simulate(configuration or self.recommended)

    def apply(self, flow: str = "fx", configuration: Configuration | None = None) -> nn.Module:
        """Return a real INT8 model by the recommended configuration, calibrated on the data of the diagnosis.

        Equalization and bias correction are done first; what is to stay in floating point does. PyTorch's
        flow chooses the scales, per channel where its engine can.

        Args:
            flow: "fx" or "pt2e", or "simulate" for a model that no flow can take.
            configuration: another than the recommended one.

        Raises:
            ValueError: the flow cannot take the model or its inputs (the message says which could), or `bits` is
                not 8; `flow="simulate"` takes all of these.
        """
        configuration = configuration or self.recommended
        if flow == "simulate":
            return self.simulate(configuration)
        if configuration.bits != 8:
            raise ValueError(f"INT8 has 8 bits, not {configuration.bits}: use flow='simulate'")
        model, data = self.experiment.repaired(configuration), self.experiment.batches
        try:
            quantized = workflows.quantize_static(model, data, flow, keep_float=configuration.keep_float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{error}. Diagnosis.apply(flow='simulate') rounds any model in floating point") from error
        promised, got = self.measure(configuration), self.experiment.agreement(quantized)
        if got < promised.sqnr - TWICE:
            tell(
                f"the INT8 model reaches {got:.1f} dB where the simulation of its layers promised {promised.sqnr:.1f}: "
                f"flow={flow!r} also rounds what stands between them, such as sums and products; measure "
                "it on labelled data before you use it"
            )
        if (size := self.experiment.bytes(_as_made(quantized, configuration, model))) > promised.bytes:
            tell(
                f"the weights of the INT8 model take {in_bytes(size)} where the simulation of its layers promised "
                f"{in_bytes(promised.bytes)}, for flow={flow!r} leaves some of these layers in floating point"
            )
        return quantized

    def histograms(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the values of a layer's weights and of what it reads or gives, as left edges and counts of bins."""
        simulation, _ = self.experiment.prepare(self.configuration)
        weights = torch.cat([w.flatten() for w in simulation.weights(name).values()]).float()
        counts, edges = torch.histogram(weights, 60)
        found = {"weights": (edges[:-1], counts)}
        for side in self.statistics[name].sides:
            found[side] = simulation.histogram(name, side)
        return found

    @property
    def finding(self) -> str:
        """What the table says, in a sentence."""
        if not len(self.table):
            return "Nothing was measured."
        first, finding = self.table["layer"][0], self.table["finding"][0]
        return f"No layer hurts; {first} comes first." if finding == "healthy" else f"{first} hurts most: {finding}."

    def to_json(self, path: Path | str | None = None) -> str | None:
        """Return the whole diagnosis as JSON, or write it; NaN and infinity become null."""
        return written(
            {
                "configuration": asdict(self.configuration),
                "metric_name": self.metric_name,
                "float_metric": self.float_metric,
                "float_bytes": self.experiment.float_bytes,
                "all_rounded": asdict(self.all_rounded),
                "layers": rows(self.table),
                "skipped": rows(self.skipped),
                "notes": self.notes,
                "steps": rows(self.steps),
                "recommended": asdict(self.recommended),
                "verdict": self.verdict,
            },
            path,
        )

    def __str__(self) -> str:
        return as_text(self.notes, self._shown("text"), self.skipped)

    def _repr_html_(self) -> str:
        import html

        notes = [*self.notes, *(f"Skipped: {line}" for line in skipped_lines(self.skipped))]
        words = "<style>.qtutor-diagnosis :is(td, th):nth-last-child(-n+2) {text-align: left; min-width: 16em}</style>"
        table = self._shown("notebook").to_html(index=False, float_format=in_digits, border=0)
        said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
        return f"<div class='qtutor-diagnosis'>{words}{table}{said}</div>"

    def _shown(self, where: str) -> "pd.DataFrame":
        columns = {name.replace("metric", self.metric_name): shown for name, shown in COLUMNS.items()}
        table = self.table[[name for name in self.table if where in columns.get(name, "")]]
        return table.rename(columns=lambda name: name.replace("_", " "))


def _as_made(quantized: nn.Module, configuration: Configuration, model: nn.Module) -> Configuration:
    """The configuration with what a flow left in floats beside it, with the layers inside."""
    recipe = recipe_of(quantized)
    if recipe is None or not isinstance(quantized, GraphModule):
        return configuration
    left = tuple(f"{name}." for name in left_in_floats(model, quantized, recipe.left_float))
    kept = (name for name, _ in model.named_modules() if f"{name}.".startswith(left))
    return replace(configuration, keep_float=(*configuration.keep_float, *kept))


def verdict(
    experiment: Experiment,
    diagnosed: Configuration,
    recommended: Configuration,
    goal: Goal,
    metric_name: str,
    float_metric: float,
) -> str:
    """Say a recommendation in a sentence or two."""
    got, before = experiment.measure(recommended), experiment.float_bytes
    metric = f", {metric_name} {got.metric:.4g} against {float_metric:.4g} in float" if metric_name else ""
    size = f"{in_bytes(got.bytes)} instead of {in_bytes(before)}"
    healthy = "No layer needs a repair. " if goal.reached(got) and recommended == diagnosed else ""
    text = f"{healthy}Recommended: {recommended}. Output SQNR {in_decibels(got.sqnr)}{metric}, {size}."
    if goal.reached(got):
        return text
    if got.offset_hides:
        return f"{text} The goal is not reached: {OFFSET}."
    return f"{text} The goal is not reached: train through the rounding (QAT), take more bits, or round weights only."
