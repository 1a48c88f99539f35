"""Which layer hurts: quantize any model layer by layer, and measure what that does to its output.

Each layer is rounded alone, and kept in floating point alone while all others are rounded. With N the
noise power of the output over its signal power, of the tensor that fares worst where it has several,

    harm = N(only this layer rounded) + N(all rounded) - N(all but this layer rounded)

in the order of which the table stands. Where well rounded weights hurt only because another layer gives
them extreme values, their harm is counted with that layer's too: the cause stands before its effect.

What a layer does to its own tensors (SQNR overall, of the median and of the worst channel, ranges, shifted
means) explains the harm, and does not rank it: a large error that later layers ignore is harmless, and an
overall SQNR hides a channel that is lost.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qtutor.diagnosis.experiment import Experiment, Stored
from qtutor.diagnosis.recommendation import Goal, Search
from qtutor.diagnosis.result import COLUMNS, Diagnosis, verdict
from qtutor.diagnosis.statistics import LayerStatistics, explain, local_statistics
from qtutor.diagnosis.trials import Metric, Score, Trial, check_float, sweep_by_workers
from qtutor.diagnosis.writing import skipped_table
from qtutor.models.batches import Batch, check_fits, read_some
from qtutor.models.copying import plain_copy
from qtutor.models.operators import kind_of
from qtutor.models.tensors import accuracy, class_axis, floats_in, scores_of
from qtutor.models.tracing import where
from qtutor.simulation import Configuration, Simulation
from qtutor.words import named
from qtutor.workflows.telling import OFFSET

from torch import nn

if TYPE_CHECKING:
    import pandas as pd

_NOTHING: Trial = frozenset()


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

    Where weights alone are rounded, in groups, as those of language models are, `diagnose_weights` tells the same.

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
            NaN, it raises on every batch, or the metric raises on one.
    """
    from tqdm.auto import tqdm

    if weights == "group":
        raise ValueError("weights must be 'tensor' or 'channel'; for groups: diagnose_weights(model, data, group=64)")
    configuration = Configuration(bits, weights, activations)
    batches, notes = read_some(data, samples)
    simulation, batches, classes = _first_runs(model, batches, notes, metric)
    if metric is None and classes:
        metric = accuracy
    elif metric is None and any(batch.labels is not None for batch in batches):
        notes.append("The labels are not one class for each row of scores, so only the SQNR of the output is measured.")
    metric_name = "" if metric is None else "accuracy" if metric is accuracy else "metric"

    rounding = simulation.round(configuration)
    statistics = local_statistics(simulation, rounding, batches)
    prepared = {configuration: (simulation, rounding)}
    experiment = Experiment(simulation.model, batches, metric, Stored.of(simulation), prepared)
    everything = frozenset(simulation.layers)
    suspects = sorted(everything, key=lambda name: -statistics[name].noise)
    alone_and_all_but = [t for name in suspects for t in (frozenset({name}), everything - {name})]
    trials = list(dict.fromkeys([_NOTHING, everything, *alone_and_all_but]))
    with tqdm(total=len(trials) * len(batches), desc="Diagnosing", unit="pass", disable=not progress) as shown:
        scores, stopped = _scored(experiment, configuration, trials, shown.update)
        _check(scores, everything, len(batches), stopped, notes)
        if scores[everything].offset_hides:
            notes.append(f"{OFFSET.capitalize()}.")
        table, skipped = _tables(_rows(simulation, statistics, scores), simulation, scores, metric_name)
        goal = Goal(scores[_NOTHING].metric - tolerance if metric else None)
        search = Search(experiment, configuration, goal)
        if not stopped:
            try:
                search.run(table, shown.set_description)
            except KeyboardInterrupt:
                stopped = "Interrupted"
    if stopped:
        notes.append(f"{stopped}: the tables hold what was measured until then.")
    float_metric = scores[_NOTHING].metric
    return Diagnosis(
        table=table,
        skipped=skipped,
        metric_name=metric_name,
        float_metric=float_metric,
        all_rounded=experiment.measure(configuration),
        configuration=configuration,
        notes=tuple(notes),
        interrupted=stopped == "Interrupted",
        statistics=statistics,
        steps=search.table(metric_name),
        recommended=search.best,
        verdict=verdict(experiment, configuration, search.best, goal, metric_name, float_metric),
        goal=goal,
        experiment=experiment,
    )


def _scored(
    experiment: Experiment, configuration: Configuration, trials: list[Trial], step: Callable[[int], Any]
) -> tuple[dict[Trial, Score], str]:
    """Score trials, and note what configurations give; also return what stopped that, "" where nothing did."""
    simulation, rounding = experiment.prepare(configuration)
    scores: dict[Trial, Score] = {}
    stopped = ""
    try:
        sweep_by_workers(simulation, rounding, experiment.batches, trials, experiment.metric, step, scores)
    except KeyboardInterrupt:
        stopped = "Interrupted"
    except Exception as error:
        stopped = f"Stopped by {named(error)}"
    for trial, score in scores.items():
        if len(trial) >= len(simulation.layers) - 1 and not score.error:
            kept = tuple(sorted(simulation.layers.keys() - trial))
            experiment.note(replace(configuration, keep_float=kept), score)
    return scores, stopped


def _check(scores: dict[Trial, Score], everything: Trial, batches: int, stopped: str, notes: list[str]) -> None:
    """Raise where too little was measured to speak of; note where some is missing."""
    if _NOTHING not in scores or everything not in scores:
        if stopped == "Interrupted":
            raise KeyboardInterrupt("interrupted before the first layer was measured")
        why = " ".join([*notes, stopped]).strip() or "The model raised on every batch."
        raise ValueError(f"nothing could be measured. {why}")
    if scores[everything].error:
        raise ValueError(f"with its layers rounded the model raises {scores[everything].error}")
    fewest = min(score.batches for score in scores.values() if not score.error)
    if fewest < batches and not stopped:
        notes.append(f"The model raised later on: on {batches - fewest} batches some layers are left out.")


def _tables(
    rows: list[dict], simulation: Simulation, scores: dict[Trial, Score], metric_name: str
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The layers that were measured, the most harmful first; and what was not, with the reason."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=[*COLUMNS])
    table = table.sort_values("harm", ascending=False, kind="stable", ignore_index=True)
    both = ["alone_metric", "all_but_metric"]
    if metric_name:
        table = table.rename(columns={column: column.replace("metric", metric_name) for column in both})
    else:
        table = table.drop(columns=both)
    everything, skipped = frozenset(simulation.layers), dict(simulation.skipped)
    measured = {row["layer"] for row in rows}
    for name, layer in simulation.layers.items():
        if name in measured:
            continue
        score = scores.get(frozenset({name})) or scores.get(everything - {name})
        reason = f"rounded, it makes the model raise {score.error}" if score and score.error else "not measured"
        skipped[name] = layer.kind, reason
    return table, skipped_table(skipped)


def _first_runs(
    model: nn.Module, batches: list[Batch], notes: list[str], metric: Metric | None
) -> tuple[Simulation, list[Batch], bool]:
    """Find the layers and observe the float model; batches on which it raises are left out, with a note.

    Also return whether the labels of all batches are classes of its outputs.
    """
    good: list[Batch] = []
    simulation, classes, problem = None, True, None
    for number, batch in enumerate(batches):
        try:
            if simulation is None:
                simulation = Simulation.of(model, batch)
            output = simulation.observe(batch)
        except Exception as error:
            if not isinstance(model, nn.Module):
                raise
            problem = problem or error
            notes.append(f"Batch {number} is left out, the model raised {named(error)}")
            continue
        check_float(simulation, batch, output, f" on batch {number}", again=not good)
        if metric is not None:
            _try(metric, output, batch.labels, number)
        elif not floats_in(output):
            raise ValueError("the output of the model holds no floating-point tensor to compare: pass metric=")
        good.append(batch)
        classes = classes and class_axis(scores_of(output), batch.labels) is not None
    if simulation is None or not good:
        assert problem
        raise _nothing_ran(model, batches[0], problem) from problem
    if not simulation.layers:
        why = "; ".join(f"{name or 'the model'}: {reason}" for name, (_, reason) in simulation.skipped.items())
        raise ValueError(f"the model has no layer to quantize ({why or 'no linear layer, convolution or the like'})")
    return simulation, good, classes


def _try(metric: Metric, output: Any, labels: Any, number: int) -> None:
    try:
        float(metric(output, labels))
    except Exception as error:
        raise ValueError(
            f"metric(output, labels) raised {named(error)} on batch {number}, where the output is of type "
            f"{kind_of(output)} and the labels are of type {kind_of(labels)}"
        ) from error


def _nothing_ran(model: nn.Module, batch: Batch, problem: Exception) -> ValueError:
    said = named(problem)
    check_fits(batch, model, "a batch")
    try:
        Simulation(plain_copy(model)).run(batch)
    except Exception:
        return ValueError(f"the model raised on every batch: {said}")
    return ValueError(
        f"the model runs, and raises where its layers are watched{where(problem)}: {said}. A layer inside torch.vmap "
        "or another transform of torch.func gets no values to look at: call it on the whole batch"
    )


def _rows(
    simulation: Simulation, statistics: dict[str, LayerStatistics], scores: dict[Trial, Score]
) -> list[dict[str, Any]]:
    rows, everything = [], frozenset(simulation.layers)
    for name, layer in simulation.layers.items():
        alone, all_but = scores.get(frozenset({name})), scores.get(everything - {name})
        if alone is None or all_but is None or alone.error or all_but.error:
            continue
        harm = alone.ratio + max(0.0, scores[everything].ratio - all_but.ratio)
        if math.isnan(harm):
            loss = scores[_NOTHING].metric - alone.metric + all_but.metric - scores[everything].metric
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
