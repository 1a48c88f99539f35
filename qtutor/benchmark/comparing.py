"""One comparison: entries warmed up, timed in turns, and judged by the ratios of the rounds.

A stop-watch around a loop measures the neighbours, the first call and the processor's mood as much as
the model. Here every entry first runs until it gets no faster; then all take turns, in rounds:
forwards, backwards, forwards ... What slows the machine down for a while slows all of them down, so
the ratio of two times of one round hardly moves. A speed-up is the median of those ratios.

Intervals are those of `benchmark.intervals`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from numbers import Integral, Real
from typing import Any

from qtutor.benchmark import intervals, timing
from qtutor.benchmark.comparison import Comparison, summarize
from qtutor.benchmark.predictions import Batches, Model, accuracy
from qtutor.machine import describe
from qtutor.models.batches import read
from qtutor.models.operators import kind_of
from qtutor.models.tensors import as_tuple, copies
from qtutor.words import named

import torch
from torch import Tensor
from torch.utils.benchmark import set_torch_threads

_PATIENCE = 3  # how many times its budget a comparison may take until there are rounds enough for its intervals


def compare(
    entries: Mapping[str, Model],
    inputs: Tensor | tuple[Tensor, ...],
    *,
    seconds: float = 2.0,
    repeats: int | None = None,
    threads: int | None = None,
    confidence: float = 0.99,
    loader: Batches | None = None,
    memory: bool = False,
    progress: Callable[[float], object] = lambda fraction: None,
) -> Comparison:
    """Run the entries on the same inputs, under `torch.inference_mode`, in interleaved rounds.

    An entry that fails keeps a row that says why, and the others keep their results.

    Args:
        entries: models or functions by name; the first is what the others are compared with. One with an
            attribute `size_bytes` says itself how large it is.
        inputs: what each entry is called with, None for what a call leaves out.
        seconds: for each entry, on average; up to three times as many where runs are so long that the
            intervals need it. The first run of each comes on top, because compilers compile then, and
            so do memory and accuracy.
        repeats: this many rounds, however long they take; None for as many as fit in `seconds`, at least one.
        threads: of PyTorch; None for as many as it has. Afterwards it has what it had, whatever happens.
        confidence: the least probability that an interval spans the true median.
        loader: `(images, labels)` batches: measure `accuracy` too.
        memory: measure `peak_mb` too: how much the memory of this process grows during a run, at its
            highest, in 10^6 bytes; NaN where the system does not tell (only Linux does).
        progress: called after each round with the fraction done, in [0, 1]; what it raises ends the comparison.

    Raises:
        TypeError: an entry's name is not text, or it cannot be called; an argument has the wrong type.
        ValueError: there is no entry, or an argument is out of range.
        RuntimeError: every entry failed; the message says how.

    Example:
        >>> comparison = compare({"linear": torch.nn.Linear(8, 8), "absolute": torch.abs}, torch.rand(2, 8), repeats=9)
        >>> comparison.table["speedup"].index.tolist(), len(comparison.times)
        (['linear', 'absolute'], 9)
    """
    import pandas as pd

    entries = check_entries(entries)
    inputs = as_tuple(inputs)
    several = any(isinstance(tensor, Tensor) for tensor in inputs)
    if not (several and all(tensor is None or isinstance(tensor, Tensor) for tensor in inputs)):
        given = inputs if len(inputs) != 1 else inputs[0]
        raise TypeError(f"inputs must be a tensor or a tuple of tensors, got {given!r:.60}")
    _check_range("seconds", seconds, Real, "a positive number of seconds", lambda x: 0 < x < math.inf)
    _check_range("confidence", confidence, Real, "between 0 and 1", lambda x: 0 < x < 1)
    for name, count in (("repeats", repeats), ("threads", threads)):
        if count is not None:
            _check_range(name, count, Integral, "a whole number from 1 on", lambda x: x >= 1)
    if isinstance(loader, Iterator):
        loader = [*read(loader, "the loader", keep=True)]  # each entry reads it

    contest = _Contest(entries, copies(inputs))
    with torch.inference_mode(), set_torch_threads(threads or torch.get_num_threads()):
        machine = describe()
        contest.check()
        rounds = contest.rounds(seconds * timing.share(), repeats, intervals.enough(confidence), progress)
        times = 1e3 * pd.DataFrame(rounds).rename_axis("round")
        extras = {"size_mb": contest.each(lambda name: timing.megabytes(entries[name]))}
        if memory:
            extras["peak_mb"] = contest.each(lambda name: timing.peak_bytes(contest.runs[name]) / 1e6)
        if loader is not None:
            extras["accuracy"] = contest.each(lambda name: accuracy(entries[name], loader))
    times = times[[name for name in entries if name not in contest.failed]]

    table, found = summarize(times, entries, confidence, extras)
    table["error"] = [named(contest.failed[name]) if name in contest.failed else "" for name in entries]
    return Comparison(table, times, found, machine, timing.versions())


class _Contest:
    """Entries that take turns; `failed` says which no longer do, and why."""

    def __init__(self, entries: dict[str, Model], inputs: tuple[Tensor, ...]):
        self.entries, self.inputs = entries, inputs
        self.runs = {name: partial(entry, *inputs) for name, entry in entries.items()}
        self.failed: dict[str, Exception] = {}

    def each(self, measure: Callable[[str], Any], *, backwards: bool = False) -> dict[str, Any]:
        """Measure every entry that has not failed."""
        found = {}
        for name in reversed(self.runs) if backwards else self.runs:
            if name not in self.failed:
                try:
                    found[name] = measure(name)
                except Exception as error:
                    self.failed[name] = error
        if len(self.failed) == len(self.runs):
            errors = "; ".join(f"{name}: {named(error)}" for name, error in self.failed.items())
            raise RuntimeError(f"every entry failed: {errors}") from next(iter(self.failed.values()))
        return found

    def check(self) -> None:
        """Run each once, and leave out what does not do the same as the first that runs."""
        shapes = self.each(lambda name: timing.first_run(self.entries[name], self.inputs))
        model, expected = next(iter(shapes.items()))
        for name, shape in shapes.items():
            if shape != expected:
                said = f"returns {shape}, but {model} returns {expected}: these are different tasks"
                self.failed[name] = ValueError(said)

    def rounds(
        self, seconds: float, repeats: int | None, enough: int, progress: Callable[[float], object]
    ) -> list[dict[str, float]]:
        """Take turns, forwards and backwards, until time is up; return the seconds for a run, round by round."""
        start, budget = timing.timer(), seconds * (len(self.runs) - len(self.failed))
        turns = self.each(lambda name: timing.warm_up(self.runs[name], seconds / 4))
        rounds: list[dict[str, float]] = []
        done = 0.0
        while done < 1:
            before, backwards = timing.timer(), len(rounds) % 2 == 1
            rounds.append(self.each(lambda name: timing.turn(self.runs[name], turns[name]), backwards=backwards))
            now = timing.timer()
            if repeats is not None:
                done = len(rounds) / repeats
            else:
                limit = budget if len(rounds) >= enough else _PATIENCE * budget
                done = 1.0 if 2 * now - before - start > limit else min((now - start) / limit, 1.0)
            progress(done)
        return rounds


def check_entries(entries: Mapping[str, Model]) -> dict[str, Model]:
    """Return the entries that `compare` is given, as a dict, or raise its errors about them."""
    if not isinstance(entries, Mapping):
        raise TypeError(f"entries must be a dict of names and models, got {kind_of(entries)}")
    if not entries:
        raise ValueError("entries is empty: give at least one model by name")
    for name, entry in entries.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of an entry must be text, got {name!r}")
        if not callable(entry):
            raise TypeError(f"entry {name!r} must be a model or a function, got {kind_of(entry)}")
    return dict(entries)


def _check_range(name: str, value: Any, kind: type, need: str, fits: Callable[[Any], bool]) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} must be {need}, got {value!r}")
    if not fits(value):
        raise ValueError(f"{name} must be {need}, got {value!r}")
