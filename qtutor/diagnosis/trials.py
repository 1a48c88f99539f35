"""Measure what rounding some layers of a model does to its output, in one process or many.

The outer loop runs over batches and the inner one over trials, so one reference output serves all
trials and nothing but sums outlives a batch. Within a batch, up to 256 MB of what layers gave are kept
in each of two runs: up to the layer whose turn it is, a trial repeats one of them.

Trials are independent: joblib spreads them over what `joblib.parallel_config` names, each worker with a
copy of the model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from qtutor.affine import decibels
from qtutor.models.batches import Batch
from qtutor.models.running import agreement, check_outputs, noise_of_the_worst, power, unsteady
from qtutor.models.tensors import floats_in
from qtutor.simulation import Rounding, Simulation
from qtutor.words import named
from qtutor.workflows.checks import offset_hides
from qtutor.workflows.limits import SAME

import joblib
import torch
from torch import Tensor

try:  # Dask brings it, with what the user told it to pickle by value
    import cloudpickle
except ImportError:
    from joblib.externals import cloudpickle

Metric = Callable[[Any, Any], float]
Trial = frozenset[str]
"""The names of the layers that are rounded."""


def check_float(simulation: Simulation, batch: Batch, output: Any, where: str = "", *, again: bool = True) -> None:
    """Refuse a model whose output is not finite, or another when it runs `again`: ValueError, which says `where`."""
    check_outputs(simulation.model, partial(simulation.run, batch), output, where)
    if again and agreement(floats_in(output), floats_in(simulation.run(batch))) < SAME:
        raise unsteady(simulation.model, *(floats_in(simulation.copy().run(batch)) for _ in range(2)))


@dataclass
class Score:
    """What a trial did to the outputs, summed up over batches.

    Attributes:
        signal: for each tensor of the output, the sum of its squares.
        noise: the sum of its squared errors.
        sums: the sum of its values, of which there are `counts`.
        total: the metric, times the samples that it was taken on.
        error: what the model raised, or "".
    """

    signal: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    samples: int = 0
    batches: int = 0
    error: str = ""

    @property
    def ratio(self) -> float:
        """Noise over signal, by `noise_of_the_worst` tensor of the output; NaN where outputs cannot be compared."""
        return noise_of_the_worst([*zip(self.signal, self.noise, strict=True)]) if self.signal else math.nan

    @property
    def sqnr(self) -> float:
        """SQNR of the output in dB."""
        return decibels(1.0, self.ratio)

    @property
    def offset_hides(self) -> bool:
        """Whether an output has so large a constant in it that what varies is lost."""
        spreads = (s - t * t / n for s, t, n in zip(self.signal, self.sums, self.counts, strict=True))
        return any(map(offset_hides, self.signal, spreads, self.noise))

    @property
    def metric(self) -> float:
        """The metric, the mean over samples; NaN where there is none."""
        return self.total / self.samples if self.samples else math.nan

    def add(self, reference: list[Tensor], output: Any, labels: Any, metric: Metric | None, samples: int) -> None:
        """Add a batch; nothing of it where the metric raises."""
        value = math.nan if metric is None else float(metric(output, labels))
        outputs = floats_in(output)
        if not self.signal:
            self.signal, self.noise, self.sums = ([0.0] * len(reference) for _ in range(3))
            self.counts = [0] * len(reference)
        same = [a.shape for a in reference] == [b.shape for b in outputs]
        for i, exact in enumerate(reference):
            exact = exact.double()
            error = power(exact - outputs[i].double()) if same else math.nan
            self.signal[i] += power(exact)
            self.sums[i] += float(exact.sum())
            self.counts[i] += exact.numel()
            self.noise[i] += math.inf if same and not math.isfinite(error) else error
        if metric is not None:
            self.total += samples * (value if math.isfinite(value) else 0.0)
            self.samples += samples
        self.batches += 1


def sweep(
    simulation: Simulation,
    rounding: Rounding,
    batches: list[Batch],
    trials: list[Trial],
    metric: Metric | None,
    scores: dict[Trial, Score] | None = None,
    step: Callable[[], Any] = lambda: None,
    unrepaired: Simulation | None = None,
) -> dict[Trial, Score]:
    """Score trials; what is in `scores` when this is interrupted was measured.

    Outputs are compared with those of `unrepaired` where `simulation` is of a model that was repaired.
    """
    scores = {} if scores is None else scores
    everything = frozenset(simulation.layers)
    only = {frozenset({name}): name for name in everything}
    all_but = {everything - {name}: name for name in everything}
    for batch in batches:
        try:
            with simulation.recorded() as exact:
                output = simulation.run(batch)
            reference = floats_in(unrepaired.run(batch) if unrepaired else output)
        except Exception:  # what the batches before gave is kept
            continue
        done: dict[Trial, Any] = {frozenset(): output}
        rounded: dict[str, list[Tensor]] = {}
        if any(trial in all_but or trial == everything for trial in trials):
            try:
                with simulation.rounded(rounding, everything), simulation.recorded() as rounded:
                    done[everything] = simulation.run(batch)
            except Exception:
                rounded = {}  # the trial will raise again, and say so
        for trial in trials:
            score = scores.get(trial, Score())
            name, given = (only[trial], exact) if trial in only else (all_but.get(trial), rounded)
            try:
                if not score.error:
                    known = simulation.known(name, given)
                    output = done[trial] if trial in done else _output(simulation, rounding, batch, trial, known)
                    score.add(reference, output, batch.labels, metric, batch.size)
            except Exception as error:
                if not score.batches:  # else what the batches before gave is kept
                    score.error = named(error)
            scores[trial] = score
            step()
    return scores


def _output(
    simulation: Simulation, rounding: Rounding, batch: Batch, trial: Trial, known: dict[str, list[Tensor]]
) -> Any:
    with simulation.rounded(rounding, trial, known):
        return simulation.run(batch)


def sweep_by_workers(
    simulation: Simulation,
    rounding: Rounding,
    batches: list[Batch],
    trials: list[Trial],
    metric: Metric | None,
    progress: Callable[[int], Any],
    scores: dict[Trial, Score],
) -> None:
    """As `sweep`, into `scores`, by as many workers as `joblib.parallel_config` gives; serial unless it says so."""
    parallel = joblib.Parallel(n_jobs=None, return_as="generator_unordered")
    workers = joblib.effective_n_jobs(parallel.n_jobs)
    if workers == 1 or len(trials) < 2:
        sweep(simulation, rounding, batches, trials, metric, scores, lambda: progress(1))
        return
    parts = [trials[i :: 2 * workers] for i in range(2 * workers) if trials[i :: 2 * workers]]  # uneven ends even out
    share = _Share(simulation.copy(), rounding, batches, metric, torch.get_num_threads())
    for result in parallel(joblib.delayed(_work)(share, part) for part in parts):
        scores.update(result)
        progress(len(result) * len(batches))


@dataclass(eq=False)
class _Share:
    """What all workers need: one object, so that Dask sends it once to each worker and not with each task.

    It travels as bytes that the task opens, because joblib waits for ever where Dask cannot open what it scatters.
    """

    simulation: Simulation
    rounding: Rounding
    batches: list[Batch]
    metric: Metric | None
    threads: int

    def __sizeof__(self) -> int:  # joblib lets Dask scatter what says that it is large
        return 1 << 20

    def __reduce__(self) -> tuple:
        return _Packed, (cloudpickle.dumps(vars(self)),)

    def opened(self) -> "_Share":
        return replace(self, simulation=self.simulation.copy())


@dataclass(eq=False)
class _Packed:
    content: bytes

    def opened(self) -> _Share:
        return _Share(**cloudpickle.loads(self.content))


def _work(share: _Share | _Packed, trials: list[Trial]) -> dict[Trial, Score]:
    """One worker's share, on a model of its own and with as many threads as the caller: sums come out the same."""
    from torch.utils.benchmark import set_torch_threads

    share = share.opened()
    with set_torch_threads(share.threads):
        return sweep(share.simulation, share.rounding, share.batches, trials, share.metric)
