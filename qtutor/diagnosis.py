"""Which layer hurts: quantize any model layer by layer, and measure what that does to its output.

Each layer is rounded alone, and kept in floating point alone while all others are rounded. With N the
noise power of the output over its signal power,

    harm = N(only this layer rounded) + N(all rounded) - N(all but this layer rounded)

in the order of which the table stands. Where well rounded weights hurt only because another layer gives
them extreme values, their harm is counted with that layer's too: the cause stands before its effect.

What a layer does to its own tensors (SQNR overall, of the median and of the worst channel, ranges, shifted
means) explains the harm, and does not rank it: a large error that later layers ignore is harmless, and an
overall SQNR hides a channel that is lost.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtutor import repair
from qtutor.batches import Batch, read
from qtutor.local import LayerStatistics, explain, local_statistics
from qtutor.measuring import Metric, Score, accuracy, can_be_classes, scores_of, spread, sweep, tensors_of
from qtutor.simulation import Configuration, Rounding, Simulation

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import pandas as pd

GOOD_ENOUGH = 20.0
"""SQNR of the output in dB that is aimed for where there are no labels: an error of a tenth of the signal."""

_LEAST = 10.0  # dB: labels or not, an output with more noise than this is another function


@dataclass(frozen=True)
class Measured:
    """What a configuration gives.

    Attributes:
        sqnr: of the output, in dB; NaN where outputs cannot be compared.
        metric: the accuracy, or what else was asked for; NaN without labels.
        bytes: of all weights, scales included.
    """

    sqnr: float
    metric: float
    bytes: int


@dataclass(eq=False)
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
        interrupted: an interrupt ended the measuring, and the table holds what was measured until then.
        statistics: what each layer does to its own tensors, for pictures.
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
    tolerance: float
    _model: nn.Module = field(repr=False)
    _batches: list[Batch] = field(repr=False)
    _metric: Metric | None = field(repr=False)
    _prepared: dict[Configuration, tuple[Simulation, Rounding]] = field(repr=False)
    _measured: dict[Configuration, Measured] = field(default_factory=dict, repr=False)

    def measure(self, configuration: Configuration) -> Measured:
        """Measure what a configuration gives, once, on the data of the diagnosis.

        Raises:
            ValueError: `keep_float` names no layer that was simulated, or a repair does not fit the model.
        """
        configuration = replace(configuration, keep_float=tuple(sorted(configuration.keep_float)))
        if configuration not in self._measured:
            simulation, rounding = self._prepare(configuration)
            trial = self._rounded_in(configuration, simulation)
            score = sweep(simulation, rounding, self._batches, [trial], self._metric)[trial]
            if score.error:
                raise ValueError(f"the model raised when it was rounded ({configuration}): {score.error}")
            self._measured[configuration] = Measured(score.sqnr, score.metric, self.bytes(configuration))
        return self._measured[configuration]

    def quick(self, seconds: float) -> "Diagnosis":
        """Return one that measures on as many batches, at least one, as take about so long."""
        started = time.perf_counter()
        self._prepared[self.configuration][0].run(self._batches[0])
        taken = 2 * (time.perf_counter() - started)
        count = max(1, int(seconds / max(taken, 1e-6)))
        return self if count >= len(self._batches) else replace(self, _batches=self._batches[:count], _measured={})

    def bytes(self, configuration: Configuration) -> int:
        """Return what the parameters take: codes and scales where rounded, else as in the model."""
        total = sum(p.numel() * p.element_size() for p in self._model.parameters())
        for name, row in self._weights.items():
            if name not in configuration.keep_float:
                elements, width, channels = row
                scales = 4 * (channels if configuration.weights == "channel" else 1)
                total -= elements * width - math.ceil(elements * configuration.bits / 8) - scales
        return total

    @cached_property
    def steps(self) -> "pd.DataFrame":
        """The repairs in turn, cheapest first, each measured; a repair that does not help is left out of the next."""
        import pandas as pd

        rows, _ = self._repairs
        columns = ["step", "kept", "sqnr", "metric", "bytes", "configuration"]
        table = pd.DataFrame(rows, columns=columns)
        return table.rename(columns={"metric": self.metric_name}) if self.metric_name else table.drop(columns="metric")

    @property
    def recommended(self) -> Configuration:
        """The cheapest configuration found that reaches the goal, or the best where none does; measured."""
        return self._repairs[1]

    @property
    def verdict(self) -> str:
        """The recommendation in a sentence or two."""
        configuration = self.recommended
        got = self.measure(configuration)
        metric = f", {self.metric_name} {got.metric:.4g} against {self.float_metric:.4g} in float" * bool(
            self.metric_name
        )
        unit, name = (1e6, "MB") if self._float_bytes >= 1e6 else (1e3, "kB")
        size = f"{got.bytes / unit:.3g} {name} instead of {self._float_bytes / unit:.3g}"
        text = f"Recommended: {configuration}. Output SQNR {got.sqnr:.1f} dB{metric}, {size}."
        if not self.reaches(got):
            text += " The goal is not reached: train through the rounding (QAT), take more bits, or round weights only."
        return text

    def simulate(self, configuration: Configuration | None = None) -> nn.Module:
        """Return a copy of the model that rounds as a configuration says, by default the recommended one.

        It stays in floating point, works for any model and any number of bits, and is no faster or smaller.
        """
        configuration = configuration or self.recommended
        simulation, rounding = self._prepare(configuration)
        simulation = simulation.copy()
        return _Rounded(simulation, rounding, self._rounded_in(configuration, simulation))

    def apply(self, flow: str = "fx", configuration: Configuration | None = None) -> nn.Module:
        """Return a real INT8 model by the recommended configuration, calibrated on the data of the diagnosis.

        Equalization and bias correction are done first; what is to stay in floating point does. PyTorch's
        flow chooses the scales, per channel where its engine can.

        Args:
            flow: "fx" or "pt2e", or "simulate" for a model that no flow can take.
            configuration: another than the recommended one.

        Raises:
            ValueError: the flow cannot take the model (the message says which could), the inputs have
                names, or `bits` is not 8; `flow="simulate"` takes all of these.
        """
        from qtutor import workflows

        configuration = configuration or self.recommended
        if flow == "simulate":
            return self.simulate(configuration)
        if configuration.bits != 8:
            raise ValueError(f"INT8 has 8 bits, not {configuration.bits}: use flow='simulate'")
        if any(batch.kwargs for batch in self._batches):
            raise ValueError("PyTorch's flows take inputs by place, and these have names: use flow='simulate'")
        model = self._repaired(configuration)
        data = [(batch.args, None) for batch in self._batches]
        try:
            return workflows.quantize_static(model, data, flow, keep_float=configuration.keep_float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{error}. Diagnosis.apply(flow='simulate') rounds any model in floating point") from error

    def histograms(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the values of a layer's weights and of what it reads or gives, as left edges and counts of bins."""
        simulation = self._prepared[self.configuration][0]
        weights = torch.cat([w.flatten() for w in simulation.weights(name).values()]).float()
        low, high = float(weights.min()), float(weights.max())
        edges = torch.linspace(low, high if high > low else low + 1, 61)[:-1]
        found = {"weights": (edges, weights.histc(60, low, high if high > low else low + 1))}
        for side in self.statistics[name].sides:
            found[side] = simulation.histogram(name, side)
        return found

    def to_json(self, path: Path | str | None = None) -> str | None:
        """Return the whole diagnosis as JSON, or write it; NaN and infinity become null."""
        import pandas as pd

        def clean(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: clean(each) for key, each in value.items()}
            if isinstance(value, (list, tuple)):
                return [clean(each) for each in value]
            if isinstance(value, float) and not math.isfinite(value):
                return None
            return value

        def rows(table: pd.DataFrame) -> list[dict]:
            return json.loads(table.drop(columns="configuration", errors="ignore").to_json(orient="records"))

        text = json.dumps(
            clean(
                {
                    "configuration": asdict(self.configuration),
                    "metric_name": self.metric_name,
                    "float_metric": self.float_metric,
                    "float_bytes": self._float_bytes,
                    "all_rounded": asdict(self.all_rounded),
                    "layers": rows(self.table),
                    "skipped": rows(self.skipped),
                    "notes": self.notes,
                    "steps": rows(self.steps),
                    "recommended": asdict(self.recommended),
                    "verdict": self.verdict,
                }
            ),
            indent=2,
        )
        if path is None:
            return text
        Path(path).write_text(text + "\n", encoding="utf-8")
        return None

    def __str__(self) -> str:
        columns = [c for c in _SHOWN if c in self.table.columns]
        table = self.table[columns].rename(columns=lambda name: name.replace("_", " "))
        parts = [*self.notes, table.to_string(index=False, float_format=lambda v: f"{v:.3g}")]
        if len(self.skipped):
            parts += ["Skipped:", *(f"  {r.layer} ({r.kind}): {r.reason}" for r in self.skipped.itertuples())]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        import html

        columns = ("layer", "kind", "harm", "alone_sqnr", "all_but_sqnr", "alone_accuracy", "alone_metric")
        shown = self.table[[c for c in (*columns, "finding", "suggestion") if c in self.table.columns]]
        shown = shown.rename(columns=lambda name: name.replace("_", " "))
        notes = [*self.notes, *(f"Skipped: {r.layer} ({r.kind}): {r.reason}" for r in self.skipped.itertuples())]
        words = "<style>.qtutor-diagnosis td:nth-last-child(-n+2) {text-align: left; min-width: 16em}</style>"
        table = shown.to_html(index=False, float_format=lambda value: f"{value:.3g}", border=0)
        said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
        return f"<div class='qtutor-diagnosis'>{words}{table}{said}</div>"

    @cached_property
    def _weights(self) -> dict[str, tuple[int, int, int]]:
        """Elements, bytes of each and channels of the weights of each layer."""
        return {name: s.size for name, s in self.statistics.items()}

    @property
    def _float_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self._model.parameters())

    def _repaired(self, configuration: Configuration) -> nn.Module:
        model = self._model
        if configuration.equalized:
            model = repair.equalize(model)
        if configuration.bias_corrected:
            model = repair.correct_bias(model, self._batches, configuration)
        return model

    def _prepare(self, configuration: Configuration) -> tuple[Simulation, Rounding]:
        """The simulation of a configuration, whatever it keeps in floating point."""
        if unknown := set(configuration.keep_float) - set(self.statistics):
            raise ValueError(f"keep_float names no layer that is quantized: {', '.join(sorted(unknown))}")
        key = replace(configuration, keep_float=())
        if key not in self._prepared:
            alike = (s for c, (s, _) in self._prepared.items() if c.equalized == key.equalized and not c.bias_corrected)
            simulation = None if key.bias_corrected else next(alike, None)
            if simulation is None:
                simulation = Simulation.of(self._repaired(key), self._batches[0])
                for batch in self._batches:
                    simulation.observe(batch)
            self._prepared[key] = simulation, simulation.round(key)
        return self._prepared[key]

    def _rounded_in(self, configuration: Configuration, simulation: Simulation) -> frozenset[str]:
        return frozenset(simulation.layers) - frozenset(configuration.keep_float)

    def reaches(self, got: Measured) -> bool:
        """Whether this is good enough: the metric within `tolerance`, or without labels an SQNR of `GOOD_ENOUGH`."""
        if not self.metric_name:
            return not got.sqnr < GOOD_ENOUGH
        return got.metric >= self.float_metric - self.tolerance - 1e-9 and not got.sqnr < _LEAST

    @cached_property
    def _repairs(self) -> tuple[list[dict], Configuration]:
        best = self.configuration
        rows = [self._row("as diagnosed", True, best)]
        tries = [
            ("a scale for each channel", {"weights": "channel"}),
            ("ranges of least squared error", {"activations": "mse"}),
            ("equalization", {"equalized": True}),
            ("bias correction", {"bias_corrected": True}),
        ]
        for step, change in tries:
            if self.reaches(self.measure(best)):
                return rows, best
            candidate = replace(best, **change)
            if candidate == best:
                continue
            try:
                better = self._is_better(self.measure(candidate), self.measure(best))
            except ValueError as error:
                rows.append({"step": f"{step}: {str(error).splitlines()[0]}", "kept": False})
                continue
            rows.append(self._row(step, better, candidate))
            best = candidate if better else best
        if not self.reaches(self.measure(best)) and len(self.table):
            goal = (
                {"metric": self.float_metric - self.tolerance, "sqnr": None if math.isnan(rows[0]["sqnr"]) else _LEAST}
                if self.metric_name
                else {"sqnr": GOOD_ENOUGH}
            )
            try:
                kept = repair.choose_float_layers(self, configuration=best, tries=24, **goal)
            except ValueError as error:
                rows.append({"step": f"layers in float: {error}", "kept": False})
            else:
                best = replace(best, keep_float=kept)
                rows.append(self._row(f"{len(kept)} of {len(self.table)} layers in float", True, best))
        return rows, best

    def _row(self, step: str, kept: bool, configuration: Configuration) -> dict:
        return {"step": step, "kept": kept, **asdict(self.measure(configuration)), "configuration": configuration}

    def _is_better(self, new: Measured, old: Measured) -> bool:
        if math.isnan(new.sqnr) or new.sqnr == old.sqnr:
            return new.metric > old.metric
        return new.sqnr > old.sqnr + 0.2


_SHOWN = (
    *("layer", "kind", "harm", "alone_sqnr", "all_but_sqnr", "alone_accuracy", "all_but_accuracy"),
    *("alone_metric", "all_but_metric", "weight_sqnr", "weight_worst", "activation_sqnr", "finding", "suggestion"),
)


class _Rounded(nn.Module):
    """A model that rounds; its parameters are those of the copy inside."""

    def __init__(self, simulation: Simulation, rounding: Rounding, names: frozenset[str]):
        super().__init__()
        self.model = simulation.model
        self._simulation, self._rounding, self._names = simulation, rounding, names
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._simulation.rounded(self._rounding, self._names):
            return self._simulation.run(Batch(args, kwargs))


def diagnose(
    model: nn.Module,
    data: Iterable,
    *,
    metric: Metric | None = None,
    bits: int = 8,
    weights: str = "tensor",
    activations: str = "minmax",
    samples: int = 1024,
    tolerance: float = 0.01,
    progress: bool = True,
) -> Diagnosis:
    """Find out which layers quantization hurts most, on any model.

    The model is copied, the copy runs in eval mode, and nothing happens to the given one. Weights and
    activations of a layer are rounded by hooks, as `simulation` describes; nothing needs to be traced.
    The default is the plainest of INT8: one scale for each tensor. After four passes over the data, two
    more are made for each layer.

    An interrupt ends the measuring: what was measured until then is returned, with a note.

    With `joblib.parallel_config` the layers are spread over processes or a cluster, and the table is the
    same to the last bit where processors and thread counts are:

        client = dask.distributed.Client("scheduler:8786")  # or Client(n_workers=2) for processes here
        with joblib.parallel_config(backend="dask"):
            diagnosis = diagnose(model, data)

    Each worker imports PyTorch and qtutor, and gets the model and the data once. Classes and functions
    of a notebook travel with the model; those of a module do if the workers can import it, or after
    `cloudpickle.register_pickle_by_value(module)`. A script that starts processes does so below
    `if __name__ == "__main__":`.

    Args:
        model: any module.
        data: batches: a tensor; `(inputs, labels)`; `((a, b), labels)` for several inputs, where the labels
            may be None; or a mapping of named inputs, alone or in place of the inputs.
        metric: `metric(output, labels)` of a batch, a number of which more is better. By default the
            accuracy where there are labels that are classes, else only the SQNR of the output.
        bits: width of weights and activations.
        weights: "tensor" or "channel": what shares a scale.
        activations: "minmax" or "mse": the range that is represented.
        samples: read no more data once so many samples are there; they are kept in memory.
        tolerance: what the recommended configuration may lose of the metric.
        progress: whether to show a bar.

    Raises:
        TypeError: `model` is not a module, or `data` are not batches.
        ValueError: there is no batch, no layer to quantize, the model gives no floating-point tensor or
            NaN, or it raises on every batch.
    """
    import pandas as pd

    configuration = Configuration(bits, weights, activations)
    batches, more = read(data, samples)
    notes = [f"The first {sum(b.size for b in batches)} samples were used: samples={samples}."] if more else []
    simulation, batches, outputs = _first_runs(model, batches, notes, metric is None)
    if metric is None and all(can_be_classes(output, b.labels) for b, output in zip(batches, outputs, strict=True)):
        metric = accuracy
    elif metric is None and any(batch.labels is not None for batch in batches):
        notes.append("The labels are not one class for each row of scores, so only the SQNR of the output is measured.")
    del outputs

    rounding = simulation.round(configuration)
    statistics = local_statistics(simulation, rounding, batches)
    layers = frozenset(simulation.layers)
    first, everything = frozenset(), layers
    suspects = sorted(layers, key=lambda name: -statistics[name].noise)
    trials = [first, everything, *(t for name in suspects for t in (frozenset({name}), layers - {name}))]
    trials = list(dict.fromkeys(trials))
    scores: dict[frozenset[str], Score] = {}
    interrupted = False
    with _bar(len(trials) * len(batches), progress) as advance:
        try:
            spread(simulation, rounding, batches, trials, metric, advance, scores)
        except KeyboardInterrupt:
            interrupted = True
            notes.append("Interrupted: the table holds what was measured until then.")
        except Exception as error:
            notes.append(f"Stopped by {type(error).__name__}: {error}: the table holds what was measured until then.")
    if first not in scores or everything not in scores:
        if interrupted:
            raise KeyboardInterrupt("interrupted before the first layer was measured")
        raise ValueError(f"nothing could be measured. {' '.join(notes) or 'The model raised on every batch.'}")
    if scores[everything].error:
        raise ValueError(f"with its layers rounded the model raises {scores[everything].error}")
    fewest = min(score.batches for score in scores.values() if not score.error)
    if fewest < len(batches) and not interrupted:
        notes.append(f"The model raised later on: on {len(batches) - fewest} batches some layers are left out.")
    rows = _rows(simulation, statistics, scores, first, everything)
    for name in layers - {row["layer"] for row in rows}:
        score = scores.get(frozenset({name})) or scores.get(layers - {name})
        reason = f"rounded, it makes the model raise {score.error}" if score and score.error else "not measured"
        simulation.skipped[name] = simulation.layers[name].kind, reason
    table = pd.DataFrame(rows, columns=[*_COLUMNS]).sort_values("harm", ascending=False, kind="stable")
    table = table.reset_index(drop=True)
    metric_name = "" if metric is None else "accuracy" if metric is accuracy else "metric"
    both = ["alone_metric", "all_but_metric"]
    table = (
        table.rename(columns={c: c.replace("metric", metric_name) for c in both})
        if metric
        else table.drop(columns=both)
    )
    skipped = pd.DataFrame(
        [(name, *rest) for name, rest in simulation.skipped.items()], columns=["layer", "kind", "reason"]
    )
    everywhere = scores[everything]
    diagnosis = Diagnosis(
        table,
        skipped,
        metric_name,
        scores[first].metric,
        Measured(everywhere.sqnr, everywhere.metric, 0),
        configuration,
        tuple(notes),
        interrupted,
        statistics,
        tolerance,
        simulation.model,
        batches,
        metric,
        {configuration: (simulation, rounding)},
    )
    for trial in (t for t in (everything, *(layers - {name} for name in suspects)) if t in scores):
        if not scores[trial].error:
            kept = replace(configuration, keep_float=tuple(sorted(layers - trial)))
            score = scores[trial]
            diagnosis._measured[kept] = Measured(score.sqnr, score.metric, diagnosis.bytes(kept))
    diagnosis.all_rounded = diagnosis._measured.get(configuration, diagnosis.all_rounded)
    return diagnosis


_COLUMNS = (
    *("layer", "kind", "harm", "alone_sqnr", "all_but_sqnr", "alone_metric", "all_but_metric"),
    *("weight_sqnr", "weight_median", "weight_worst", "activation_sqnr", "activation_median", "activation_worst"),
    *("weight_spread", "activation_spread", "bias_shift", "parameters", "finding", "suggestion"),
)


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], Any]]:
    """A bar of so many forward passes, as the function that moves it on."""
    if not shown:
        yield lambda count: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="Diagnosing", unit="pass") as bar:
        yield bar.update


def _first_runs(
    model: nn.Module, batches: list[Batch], notes: list[str], comparing: bool
) -> tuple[Simulation, list[Batch], list]:
    """Find the layers and observe the float model; batches on which it raises are left out, with a note."""
    simulation, good, outputs, problem = None, [], [], None
    for number, batch in enumerate(batches):
        try:
            if simulation is None:
                simulation = Simulation.of(model, batch)
            output = simulation.observe(batch)
        except Exception as error:
            if not isinstance(model, nn.Module):
                raise
            problem = problem or error
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            notes.append(f"Batch {number} is left out, the model raised {said}")
            continue
        if any(not x.isfinite().all() for x in tensors_of(output)):
            raise ValueError(
                f"the model itself gives NaN or infinity on batch {number}{simulation.first_not_finite(batch)}: "
                "there is nothing to compare with"
            )
        if comparing and next(tensors_of(output), None) is None:
            raise ValueError("the output of the model holds no floating-point tensor to compare: pass metric=")
        good.append(batch)
        outputs.append(_shapes_only(output))
    if simulation is None or not good:
        raise ValueError(f"the model raised on every batch: {type(problem).__name__}: {problem}") from problem
    if not simulation.layers:
        why = "; ".join(f"{name or 'the model'}: {reason}" for name, (_, reason) in simulation.skipped.items())
        raise ValueError(f"the model has no layer to quantize ({why or 'no linear layer, convolution or the like'})")
    return simulation, good, outputs


def _shapes_only(output: Any) -> Any:
    """The class scores of an output without memory behind them."""
    scores = scores_of(output)
    return None if scores is None else scores.to("meta")


def _rows(
    simulation: Simulation,
    statistics: dict[str, LayerStatistics],
    scores: dict[frozenset[str], Score],
    first: frozenset[str],
    everything: frozenset[str],
) -> list[dict]:
    rows, layers = [], frozenset(simulation.layers)
    for name, layer in simulation.layers.items():
        alone, all_but = scores.get(frozenset({name})), scores.get(layers - {name})
        if alone is None or all_but is None or alone.error or all_but.error:
            continue
        harm = alone.ratio + max(0.0, scores[everything].ratio - all_but.ratio)
        if math.isnan(harm):
            loss = scores[first].metric - alone.metric + all_but.metric - scores[everything].metric
            harm = math.inf if alone.ratio == math.inf else math.nan
        else:
            loss = 0.0
        finding, suggestion = explain(statistics[name])
        rows.append(
            {
                "layer": name,
                "kind": layer.kind,
                "harm": loss if math.isnan(harm) else harm,
                "alone_sqnr": alone.sqnr,
                "all_but_sqnr": all_but.sqnr,
                "alone_metric": alone.metric,
                "all_but_metric": all_but.metric,
                **statistics[name].columns(),
                "finding": finding,
                "suggestion": suggestion,
            }
        )
    by_name = {row["layer"]: row for row in rows}
    for row in sorted(rows, key=lambda row: -row["harm"]):  # the cause before its effect
        source = by_name.get(simulation.layers[row["layer"]].source)
        if source and statistics[row["layer"]].amplified:
            source["harm"] += row["harm"]
    return rows
