"""Size, latency, peak memory and accuracy of models, compared fairly.

A stop-watch around a loop measures the neighbours, the first call and the processor's mood as much as
the model. Here every entry first runs until it gets no faster; then all take turns, in rounds:
forwards, backwards, forwards ... What slows the machine down for a while slows all of them down, so
the ratio of two times of one round hardly moves. A speed-up is the median of those ratios.

Intervals are the exact ones of order statistics, which assume nothing about how times are
distributed. Of n rounds, as many fall below the true median as n fair coins show heads; leave out the
k smallest and the k largest, and the rest spans the median with probability 1 - 2 P(heads <= k).

Source: Conover 1999, "Practical Nonparametric Statistics", 3.2 (the interval); McNemar 1947, "Note on
the sampling error of the difference between correlated proportions" (the test; here its exact form).
"""

import ctypes
import dataclasses
import json
import math
import re
import sys
import timeit
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qtutor.machine import Machine, describe

import torch
from torch import Tensor, nn
from torch.utils.benchmark import set_torch_threads, timer

if TYPE_CHECKING:
    import pandas as pd

Model = Callable[..., Any]
Batches = Iterable[Sequence[Tensor]]

_TURN = 0.01  # seconds of one entry's turn, if it is fast: short beside what disturbs a machine
_LONG = 0.02  # seconds of a run that needs no other before it to fill the caches again
_PATIENCE = 3  # how many times its budget a comparison may take until there are rounds enough for its intervals
_NO_CLASS = torch.iinfo(torch.int64).min  # no label is that


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

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """Write the table to `path`, or return it as text."""
        return self.table.to_csv(path)

    def to_json(self, path: str | Path | None = None) -> str | None:
        """Write the table, the times of all rounds and the machine to `path`, or return them as text."""
        content = {
            "entries": json.loads(self.table.reset_index().to_json(orient="records")),
            "times_ms": self.times.to_dict(orient="list"),
            "confidence": self.confidence,
            "machine": dataclasses.asdict(self.machine),
            "versions": dict(self.versions),
        }
        text = json.dumps(content, indent=2)
        if path is None:
            return text
        Path(path).write_text(text, encoding="utf-8")
        return None

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


def compare(
    entries: Mapping[str, Model] | Iterable[tuple[str, Model]],
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
        entries: models or functions by name, or pairs of a name and one of these; the first is what the
            others are compared with. One with an attribute `size_bytes` says itself how large it is.
        inputs: what each entry is called with.
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
        ValueError: there is no entry, a name comes twice, or an argument is out of range.
        RuntimeError: every entry failed; the message says how.

    Example:
        >>> comparison = compare({"linear": nn.Linear(8, 8), "absolute": torch.abs}, torch.rand(2, 8), repeats=9)
        >>> comparison.table["speedup"].index.tolist(), len(comparison.times)
        (['linear', 'absolute'], 9)
    """
    import pandas as pd

    entries = check_entries(entries)
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not (isinstance(inputs, tuple) and inputs and all(isinstance(tensor, Tensor) for tensor in inputs)):
        raise TypeError(f"inputs must be a tensor or a tuple of tensors, got {inputs!r:.60}")
    _check_range("seconds", seconds, Real, "a positive number of seconds", lambda x: 0 < x < math.inf)
    _check_range("confidence", confidence, Real, "between 0 and 1", lambda x: 0 < x < 1)
    for name, count in (("repeats", repeats), ("threads", threads)):
        if count is not None:
            _check_range(name, count, Integral, "a whole number from 1 on", lambda x: x >= 1)
    if isinstance(loader, Iterator):
        loader = list(loader)  # each entry reads it

    enough = 1 + math.ceil(-math.log2(1 - confidence))  # rounds: their whole range is then that confident
    failed: dict[str, Exception] = {}
    runs = {name: partial(entry, *inputs) for name, entry in entries.items()}

    def each(measure: Callable[[str], Any], *, backwards: bool = False) -> dict[str, Any]:
        """Measure every entry that has not failed."""
        found = {}
        for name in reversed(runs) if backwards else runs:
            if name not in failed:
                try:
                    found[name] = measure(name)
                except Exception as error:
                    failed[name] = error
        if len(failed) == len(runs):
            errors = "; ".join(f"{name}: {_describe(error)}" for name, error in failed.items())
            raise RuntimeError(f"every entry failed: {errors}") from next(iter(failed.values()))
        return found

    with torch.inference_mode(), set_torch_threads(threads or torch.get_num_threads()):
        machine = describe()
        shapes = each(lambda name: _first_run(entries[name], inputs))
        model, expected = next(iter(shapes.items()))
        for name, shape in shapes.items():
            if shape != expected:
                failed[name] = ValueError(f"returns {shape}, but {model} returns {expected}: these are different tasks")

        start, budget = timer(), seconds * (len(runs) - len(failed))
        turns = each(lambda name: _warm_up(runs[name], seconds / 4))
        rounds: list[dict[str, float]] = []
        done = 0.0
        while done < 1:
            before = timer()
            rounds.append(each(lambda name: _time(runs[name], turns[name]), backwards=len(rounds) % 2 == 1))
            spent, next_round = timer() - start, timer() - before
            if repeats is not None:
                done = len(rounds) / repeats
            else:
                limit = budget if len(rounds) >= enough else _PATIENCE * budget
                done = 1.0 if spent + next_round > limit else min(spent / limit, 1.0)
            progress(done)
        times = 1e3 * pd.DataFrame(rounds, columns=[name for name in runs if name not in failed]).rename_axis("round")

        extras = {"size_mb": each(lambda name: _megabytes(entries[name]))}
        if memory:
            extras["peak_mb"] = each(lambda name: _peak_bytes(runs[name]) / 1e6)
        if loader is not None:
            extras["accuracy"] = each(lambda name: accuracy(entries[name], loader))

    first = next(iter(runs))
    ratios = times.rdiv(times[first], axis=0) if first in times else times * math.nan
    left_out = _left_out(len(times), confidence)
    columns: dict[str, Any] = {}
    for samples, value, prefix in ((times, "latency_ms", "latency"), (ratios, "speedup", "speedup")):
        ordered = samples.apply(lambda column: column.sort_values(ignore_index=True))
        columns |= {
            value: samples.median(),
            f"{prefix}_low": ordered.iloc[left_out],
            f"{prefix}_high": ordered.iloc[-1 - left_out],
        }
    table = pd.DataFrame(columns | {name: pd.Series(found, dtype=float) for name, found in extras.items()})
    table = table.reindex(pd.Index(runs, name="name"))
    table["error"] = [_describe(failed[name]) if name in failed else "" for name in runs]
    return Comparison(table, times, min(confidence, 1 - 2 * _heads(len(times), left_out)), machine, _versions())


def check_entries(entries: Mapping[str, Model] | Iterable[tuple[str, Model]]) -> dict[str, Model]:
    """Return the entries that `compare` is given, as a dict, or raise its errors about them."""
    if isinstance(entries, (str, nn.Module)) or not isinstance(entries, Iterable):
        raise TypeError(f"entries must be a dict of names and models, got {type(entries).__name__}")
    checked: dict[str, Model] = {}
    for pair in entries.items() if isinstance(entries, Mapping) else entries:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(
                f"entries must be a dict, or pairs of a name and a model, got a {type(pair).__name__} in it"
            )
        name, entry = pair
        if not isinstance(name, str):
            raise TypeError(f"the name of an entry must be text, got {name!r}")
        if name in checked:
            raise ValueError(f"two entries are called {name!r}: give each a name of its own")
        if not callable(entry):
            raise TypeError(f"entry {name!r} must be a model or a function, got {type(entry).__name__}")
        checked[name] = entry
    if not checked:
        raise ValueError("entries is empty: give at least one model by name")
    return checked


def size_bytes(model: nn.Module) -> int:
    """Return how many bytes the model takes when its state dict is saved: what quantization shrinks.

    Packed INT8 weights, scales and zero points count, and so does what the file format adds; a layer with several
    names counts once.

    Raises:
        TypeError: `model` is not an `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"size_bytes needs an nn.Module, got {type(model).__name__}: only a model has a state to save")
    counter, names = _Counter(), dict(model.named_modules())
    again = tuple(f"{name}." for name, _ in model.named_modules(remove_duplicate=False) if name not in names)
    with torch.inference_mode(False):  # torchao's tensors cannot be detached in it
        state = model.state_dict()
        for name in [name for name in state if name.startswith(again)]:
            del state[name]  # packed weights would be saved under every name of their layer
        torch.save(state, counter)  # type: ignore[arg-type]  # of a file it needs no more
    return counter.bytes


def accuracy(model: Model, loader: Batches) -> float:
    """Return the fraction of images whose highest score is at their label.

    An image with a NaN among its scores counts as wrong.

    Args:
        model: `(N, ...)` images -> `(N, classes)` scores.
        loader: `(images, labels)` batches, labels `(N,)` integers.

    Raises:
        TypeError, ValueError: the loader is empty, a batch or a score has the wrong type or shape, or
            the model is in training mode.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
        >>> accuracy(lambda images: images, [(scores, torch.tensor([1, 0, 0]))])
        0.6666666666666666
    """
    (predicted,), labels = _predict((model,), loader)
    return (predicted == labels).sum().item() / len(labels)


@dataclass(frozen=True)
class Flips:
    """How the predictions of two models differ, image by image; `str` of it is two sentences.

    Attributes:
        images: how many there were.
        changed: the second model predicts another class, right or wrong.
        lost: right with the first model, wrong with the second.
        gained: wrong with the first model, right with the second.
    """

    images: int
    changed: int
    lost: int
    gained: int

    @property
    def difference(self) -> float:
        """The second model's accuracy minus the first's."""
        return (self.gained - self.lost) / self.images

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how probable a difference this large is if both models are equally good.

        Only images that one model gets right and the other wrong tell them apart; between equally
        good models each of those falls to either side like a fair coin.
        """
        return min(1.0, 2 * _heads(self.lost + self.gained, min(self.lost, self.gained)))

    def __str__(self) -> str:
        verdict = "may well be chance" if self.p_value > 0.05 else "is unlikely to be chance"
        return (
            f"Of {self.images} predictions {self.changed} changed: {self.lost} became wrong, {self.gained} right. "
            f"The difference of {100 * self.difference:+.2g} points {verdict} "
            f"(McNemar's exact test, p = {self.p_value:.2g})."
        )


def flips(first: Model, second: Model, loader: Batches) -> Flips:
    """Compare two models' predictions on the same images, which tells far more than their two accuracies.

    Args and errors are those of `accuracy`.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
        >>> flips(lambda x: x, lambda x: -x, [(scores, torch.tensor([1, 0, 0]))])
        Flips(images=3, changed=3, lost=2, gained=1)
    """
    (a, b), labels = _predict((first, second), loader)
    right_a, right_b = a == labels, b == labels
    counts = (a != b, right_a & ~right_b, ~right_a & right_b)
    return Flips(len(labels), *(int(count.sum()) for count in counts))


class _Counter:
    """A file that keeps only its length, so that measuring a large model takes no memory."""

    bytes = 0

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.bytes += length
        return length

    def flush(self) -> None:
        """Called by `torch.save`."""


def _predict(models: Sequence[Model], loader: Batches) -> tuple[list[Tensor], Tensor]:
    """The class that each model predicts for each image, and the labels; one pass over the loader."""
    for model in models:
        _check_eval(model)
    predicted, labels = [], []
    with torch.inference_mode():
        for number, batch in enumerate(loader):
            if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)):
                raise TypeError(f"batch {number} of the loader must be (images, labels), got {type(batch).__name__}")
            if batch[1].ndim != 1 or batch[1].is_floating_point():
                raise ValueError(
                    f"labels must be (N,) integers, got {tuple(batch[1].shape)} {batch[1].dtype} in batch {number}"
                )
            predicted.append([_classes(model(batch[0]), len(batch[1])) for model in models])
            labels.append(batch[1].cpu())
    if not sum(map(len, labels)):
        raise ValueError("the loader has no images: a generator that was read before is empty, give a list of batches")
    return [torch.cat(parts) for parts in zip(*predicted, strict=True)], torch.cat(labels)


def _classes(scores: Any, images: int) -> Tensor:
    """`(N, classes)` scores -> `(N,)` classes."""
    scores = torch.as_tensor(scores).cpu()
    if scores.ndim != 2 or len(scores) != images:
        raise ValueError(f"a model must return ({images}, classes) scores for {images} labels, got {_shape(scores)}")
    return scores.argmax(1).masked_fill(scores.isnan().any(1), _NO_CLASS)


def _first_run(entry: Model, inputs: tuple[Tensor, ...]) -> Any:
    """Run the entry once, where compilers compile and a misfit shows; return the shape of what it returns."""
    _check_eval(entry)
    if isinstance(entry, nn.Module):
        homes = {str(tensor.device) for tensor in chain(entry.parameters(), entry.buffers())}
        for tensor in inputs:
            if homes and str(tensor.device) not in homes:
                home = ", ".join(sorted(homes))
                raise ValueError(f"the model is on {home}, an input on {tensor.device}: move one with .to(device)")
    return _shape(entry(*inputs))


def _warm_up(run: Callable[[], Any], seconds: float) -> int:
    """Run until five runs in a row bring no gain, or time is up; return how many runs make a turn."""
    start, fastest, stale = timer(), math.inf, 0
    while stale < 5 and timer() - start < seconds:
        (time,) = timeit.Timer(run, timer=timer).repeat(1, number=1)
        stale = 0 if time < 0.95 * fastest else stale + 1
        fastest = min(fastest, time)
    return 1 if fastest > _LONG else min(max(2, round(_TURN / max(fastest, 1e-9))), 1000)


def _time(run: Callable[[], Any], runs: int) -> float:
    """Seconds for a run: the median of one turn, without the run that refills the caches, if there are more."""
    start = timer()
    times: list[float] = []
    # A neighbour that stops a run for long would stop a full turn for many times as long: cut the turn short.
    while len(times) < min(runs, 2) or (len(times) < runs and timer() - start < 4 * _TURN):
        times += timeit.Timer(run, timer=timer).repeat(1, number=1)
    return median(times[1:] or times)


def _peak_bytes(run: Callable[[], Any]) -> float:
    """How much the resident memory of this process grows during a run, at its highest."""
    process = Path("/proc/self")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else the run would get memory that an earlier one gave back
        (process / "clear_refs").write_text("5")  # forgets the highest value so far
    except (AttributeError, OSError, TypeError):
        return math.nan
    before = _status_bytes(process, "VmRSS")
    run()
    return max(0, _status_bytes(process, "VmHWM") - before)


def _status_bytes(process: Path, name: str) -> int:
    (kilobytes,) = re.findall(rf"^{name}:\s+(\d+) kB$", (process / "status").read_text(), re.MULTILINE)
    return 1024 * int(kilobytes)


def _heads(coins: int, most: int) -> float:
    """The probability of at most `most` heads from fair coins."""
    return sum(math.comb(coins, heads) for heads in range(most + 1)) / 2**coins


def _left_out(rounds: int, confidence: float) -> int:
    """How many rounds an interval may leave out at either end."""
    most = (1 - confidence) / 2
    return max(0, bisect_right(range((rounds + 1) // 2), most, key=lambda k: _heads(rounds, k)) - 1)


def _megabytes(entry: Model) -> float:
    size = size_bytes(entry) if isinstance(entry, nn.Module) else getattr(entry, "size_bytes", None)
    return size / 1e6 if isinstance(size, int) else math.nan


def _versions() -> dict[str, str]:
    """The runtimes that this process has loaded, each with its version."""
    names = {
        "torch": "PyTorch",
        "torchao": "torchao",
        "onnxruntime": "ONNX Runtime",
        "openvino": "OpenVINO",
        "nncf": "NNCF",
    }
    loaded = {title: getattr(sys.modules.get(name), "__version__", None) for name, title in names.items()}
    return {title: str(version).partition("-")[0] for title, version in loaded.items() if version}


def _shape(output: Any) -> Any:
    if hasattr(output, "shape"):
        return tuple(output.shape)
    if isinstance(output, Mapping):
        return {key: _shape(value) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return [_shape(value) for value in output]
    return type(output).__name__


def _check_eval(entry: Model) -> None:
    """Refuse what changes in training mode: a run would be random, or would spoil the batch norms' statistics."""
    if isinstance(entry, nn.Module):
        for layer in entry.modules():
            if getattr(layer, "training", False) and isinstance(
                layer, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
            ):
                raise ValueError(f"the model is in training mode ({type(layer).__name__}): call .eval() on it first")


def _check_range(name: str, value: Any, kind: type, need: str, fits: Callable[[Any], bool]) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} must be {need}, got {value!r}")
    if not fits(value):
        raise ValueError(f"{name} must be {need}, got {value!r}")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ")
