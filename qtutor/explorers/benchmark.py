"""BenchmarkExplorer: a model that duels itself on recorded timings, and your own models timed here."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Event
from typing import Any

from qtutor.benchmark import Comparison, Model, check_entries, compare
from qtutor.explorers.explorer import Explorer, Stops, button, toggles
from qtutor.models.tensors import as_tuple
from qtutor.plots import look
from qtutor.words import counted, in_digits

import ipywidgets
import plotly.graph_objects as go
import torch
from torch import Tensor

ORDERS = ("one after the other", "taking turns")
SUMMARIES = ("mean", "median", "fastest")
RUNS = (1, 2, 3, 5, 8, 12, 20, 30, 40, 60, 75)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

TOLERANCE = 0.05
"""How far from 1 a ratio may lie that should be 1."""

WARM_UP = 10
"""How many runs the control leaves out."""

_DRAWN = (0.4, 2.5)  # the ratios of the axis; one beyond is drawn at its end


@dataclass(frozen=True, eq=False)
class BenchmarkResult:
    """What a state makes of the recording, and what was measured here.

    Attributes:
        ratios: `(duels,)` the time of A over the time of B, which are the same model.
        comparison: of your models, or None where nothing has been measured.
    """

    ratios: Tensor
    comparison: Comparison | None

    @property
    def far_off(self) -> Tensor:
        """`(duels,)` whether a ratio is more than `TOLERANCE` from 1."""
        return (self.ratios - 1).abs() > TOLERANCE

    @property
    def share_far_off(self) -> float:
        """The share of duels in which the same model seems faster or slower than itself."""
        return float(self.far_off.double().mean())


@cache
def recorded_timings() -> Tensor:
    """Return `(60, 160)` microseconds: runs of one model from the first on, in each of 60 fresh processes.

    The digits network of the lessons on 64 images, one thread, on a cloud machine of two cores whose
    other users were busy. Recorded once and shipped, so that everyone sees the same duels.
    """
    lines = Path(__file__).with_name("timings.csv").read_text(encoding="utf-8").split()
    return torch.tensor([[int(time) for time in line.split(",")] for line in lines], dtype=torch.float64)


def duel(timings: Tensor, order: str, runs: int, summary: str, warm_up: bool) -> Tensor:
    """Let a model duel itself on each row of recorded timings; return the `(rows,)` ratios of A's time to B's.

    Args:
        timings: `(rows, n)`, in the order in which they were measured; n at least `2 * runs`, and `WARM_UP` more.
        order: and the others are controls of a `BenchmarkExplorer`.
    """
    used = timings[:, WARM_UP if warm_up else 0 :][:, : 2 * runs]
    if order == ORDERS[0]:
        first, second = used[:, :runs], used[:, runs:]
    else:
        place = torch.arange(2 * runs)
        mine = (place % 4 == 0) | (place % 4 == 3)
        if runs % 2:  # the last two of an odd number of pairs
            mine[-2:] = torch.tensor([True, False])
        first, second = used[:, mine], used[:, ~mine]
    summarize = {"mean": Tensor.mean, "median": partial(Tensor.quantile, q=0.5), "fastest": Tensor.amin}[summary]
    return summarize(first, dim=1) / summarize(second, dim=1)


class Cancelled(Exception):
    """The learner pressed Cancel."""


class BenchmarkExplorer(Explorer):
    """Explore how a benchmark lies, on recorded timings; then time models of your own.

    Args:
        models: models or functions by name, as `benchmark.compare` takes them; by default a small network
            twice, and its INT8 version.
        inputs: what they are called with, a batch: a tensor, or a tuple of several. Other batch sizes are
            made of it by repeating or cutting.
        seconds: how long each model is timed, on average.
        start: where controls start, by name, such as `runs=12`.

    Controls:
        order: "one after the other", all runs of the first, then all of the second; or "taking turns", A B B A ...
        runs: how many runs each of the two gets: 1, 2, 3, 5, 8, 12, 20, 30, 40, 60 or 75.
        summary: "mean", "median" or "fastest": what is made of the runs.
        warm_up: True or False: whether the first 10 runs of all are left out.
        models: the names of your models to compare with the first of them, such as `("FP32", "INT8")`; at first all.
        batch_size: what your models are timed on: the size of your batch, or 1, 2, 4, 8 ... 256, up to that size or 64.
        threads: how many your models may use, from 1 to what PyTorch uses here.

    The first four show recorded timings at once; the last three say what the next press of Run times.

    Attributes:
        comparison: the newest one, None before the first.

    Raises:
        TypeError: `models` are not models by name, or `inputs` are not tensors.
        ValueError: one of `models` and `inputs` is missing, or a batch is empty; or a control cannot start there.
    """

    def __init__(
        self,
        models: Mapping[str, Model] | None = None,
        inputs: Tensor | tuple[Tensor, ...] | None = None,
        *,
        seconds: float = 1.0,
        **start: Any,
    ):
        if (models is None) != (inputs is None):
            raise ValueError("BenchmarkExplorer needs models together with the inputs to call them with, or neither")
        models, inputs = _default_models() if models is None else (models, inputs)
        self._entries = check_entries(models)
        self._inputs = _checked_inputs(inputs)
        self._seconds = seconds
        self.comparison: Comparison | None = None
        self._measured = "Nothing measured here yet: press Run."
        self._cancelled, self._running = Event(), False
        names, given = [*self._entries], len(self._inputs[0])
        sizes = sorted({*(n for n in BATCHES if n <= max(given, 64)), given})
        threads = max(torch.get_num_threads(), 1)
        controls = {
            "order": toggles("Runs go", ORDERS, "auto"),
            "runs": ipywidgets.SelectionSlider(options=RUNS, value=30, description="Runs each"),
            "summary": toggles("Summary", SUMMARIES, "auto"),
            "warm_up": ipywidgets.Checkbox(
                False, description=f"Leave out the first {WARM_UP}", indent=False, layout={"width": "max-content"}
            ),
            "models": ipywidgets.SelectMultiple(
                options=names, value=names, rows=min(len(names), 5), description="Models"
            ),
            "batch_size": ipywidgets.SelectionSlider(options=sizes, value=given, description="Batch size"),
            "threads": ipywidgets.IntSlider(threads, 1, threads, description="Threads"),
        }
        self.run_button = button("Run", self._start, icon="play", button_style="primary")
        self.cancel_button = button("Cancel", self._cancelled.set, icon="stop", disabled=True)
        self.progress = ipywidgets.FloatProgress(value=0, min=0, max=1, description="Progress")
        buttons = (self.run_button, self.cancel_button, self.progress)
        super().__init__(controls, _figure(len(recorded_timings()), names), start, buttons)

    def compute(self, state: Any) -> BenchmarkResult:
        ratios = duel(recorded_timings(), state.order, state.runs, state.summary, state.warm_up)
        return BenchmarkResult(ratios, self.comparison)

    def say(self, state: Any, result: BenchmarkResult) -> str:
        ratios, off = result.ratios, int(result.far_off.sum())
        warm_up = f"after {WARM_UP} warm-up runs" if state.warm_up else "from the very first run"
        chosen = ", ".join(state.models) or "no model"
        return (
            f"Recorded: {state.order}, {counted(state.runs, 'run')} each, {state.summary}, {warm_up}: "
            f"in {off} of {len(ratios)} duels ({off / len(ratios):.0%}) the model is more than {TOLERANCE:.0%} faster "
            f"or slower than itself; the ratios span {float(ratios.min()):.2f} to {float(ratios.max()):.2f}. "
            f"{self._measured} Run compares {chosen} at batch {state.batch_size} on "
            f"{counted(state.threads, 'thread')}."
        )

    def stops(self) -> Stops:
        runs = list(self.controls["runs"].options)
        return {"order": ORDERS, "runs": runs, "summary": SUMMARIES, "warm_up": (False, True)}

    def draw(self, result: BenchmarkResult) -> None:
        fair, unfair, *bars = self.figure.data
        places = torch.arange(1, len(result.ratios) + 1)
        drawn = result.ratios.clamp(*_DRAWN)
        for trace, chosen in ((fair, ~result.far_off), (unfair, result.far_off)):
            trace.x, trace.y = drawn[chosen].numpy(), places[chosen].numpy()
        share, following = self.figure.layout.annotations[:2]
        share.text = f"A model against itself: {result.share_far_off:.0%} of the duels are off by more than 5%"
        following.text = f"Yours, at batch {self.state.batch_size} on {self.state.threads} of your threads"
        table = None if result.comparison is None else result.comparison.table
        for bar, name in zip(bars, self._entries, strict=True):
            row = None if table is None or name not in table.index else table.loc[name]
            if row is None or math.isnan(row["speedup"]):
                bar.x, bar.y = [], []
                continue
            bar.x, bar.y = [row["speedup"]], [name]
            bar.error_x.array = [row["speedup_high"] - row["speedup"]]
            bar.error_x.arrayminus = [row["speedup"] - row["speedup_low"]]
            bar.text = [f"{row['speedup']:.2f}"]
        self.run_button.disabled = self._running or not self.state.models

    def run(self) -> Comparison | None:
        """Time the chosen models as the controls stand, wait for it, and return the comparison; None if it failed."""
        if self._begin():
            self._end(*self._measure(self.state, self._show_progress))
        return self.comparison

    def _start(self) -> None:
        """Time the chosen models while the page stays alive; without an event loop, at once."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.run()
            return
        if self._begin():
            show = partial(loop.call_soon_threadsafe, self._show_progress)
            measuring = loop.run_in_executor(None, self._measure, self.state, show)
            measuring.add_done_callback(lambda done: self._end(*done.result()))

    def _begin(self) -> bool:
        """Whether nothing was running, and a run may go on."""
        with self._lock:
            if self._running:
                return False
            self._running = self.run_button.disabled = True
            self.cancel_button.disabled = False
            self._cancelled.clear()
            self.progress.value = 0
            return True

    def _measure(self, state: Any, show: Callable[[float], object]) -> tuple[Comparison | None, str]:
        """What came of it, and in words; runs in a thread of its own, and touches no widget."""
        shown = time.monotonic()

        def progress(fraction: float) -> None:
            nonlocal shown
            if self._cancelled.is_set():
                raise Cancelled
            if time.monotonic() - shown > 0.1:
                shown = time.monotonic()
                show(fraction)

        entries = {name: self._entries[name] for name in state.models}
        inputs = tuple(tensor[torch.arange(state.batch_size) % len(tensor)] for tensor in self._inputs)
        try:
            comparison = compare(
                entries, inputs, seconds=self._seconds, threads=state.threads, confidence=0.95, progress=progress
            )
        except Cancelled:
            return self.comparison, "You cancelled the run."
        except Exception as error:
            return self.comparison, f"The run failed: {error}."
        return comparison, _describe(comparison, state)

    def _end(self, comparison: Comparison | None, measured: str) -> None:
        with self._lock:
            self.comparison, self._measured = comparison, measured
            self._running = False
            self.cancel_button.disabled = True
            self._show_progress(1.0)
            self.state = None  # what it showed is out of date, though no control has moved
            self._redraw()

    def _show_progress(self, fraction: float) -> None:
        self.progress.value = fraction


def _describe(comparison: Comparison, state: Any) -> str:
    parts = []
    for name, row in comparison.table.iterrows():
        if row["error"]:
            parts.append(f"{name} failed ({row['error']})")
        elif math.isnan(row["speedup"]):
            parts.append(f"{name} takes {in_digits(row['latency_ms'])} ms")
        else:
            interval = f"{row['speedup_low']:.2f} to {row['speedup_high']:.2f}"
            parts.append(f"{name} {row['speedup']:.2f} times as fast ({interval}), {in_digits(row['latency_ms'])} ms")
    where = f"batch {state.batch_size} on {counted(state.threads, 'thread')}"
    confidence = f"{comparison.confidence:.0%} intervals"
    return f"Measured here at {where}, against {comparison.table.index[0]}, {confidence}: {'; '.join(parts)}."


def _default_models() -> tuple[dict[str, Model], Tensor]:
    from qtutor.samples import digits, trained
    from qtutor.workflows import quantize_static

    model, data = trained("digits_cnn"), digits()
    int8 = quantize_static(model, data.train.batches(100)[:2])
    return {"FP32": model, "FP32 again": model, "INT8": int8}, data.test.images[:64]


def _checked_inputs(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    inputs = as_tuple(inputs)
    for tensor in inputs:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"BenchmarkExplorer needs a tensor or a tuple of tensors, got {type(tensor).__name__}")
        if tensor.dim() == 0 or len(tensor) == 0:
            raise ValueError(f"BenchmarkExplorer needs a batch, got an input of shape {tuple(tensor.shape)}")
    if not inputs:
        raise ValueError("BenchmarkExplorer needs an input, got an empty tuple")
    return inputs


def _figure(duels: int, names: list[str]) -> go.Figure:
    """Draw what no control changes, and leave empty traces for what does."""
    figure = look.panels(1, 2, (" ", " "), horizontal_spacing=0.16, column_widths=[0.6, 0.4])
    for name, colour, symbol in (("within 5%", look.BLUE, "circle"), ("further off", look.VERMILLION, "x")):
        marker = {"color": colour, "symbol": symbol, "size": 7}
        figure.add_scatter(mode="markers", name=name, marker=marker, row=1, col=1)
    point = {"mode": "markers+text", "marker": {"color": look.BLUE, "size": 11}, "textposition": "top center"}
    interval = {"type": "data", "symmetric": False, "width": 8, "thickness": 2}
    for name in names:
        figure.add_scatter(name=name, showlegend=False, **point, error_x=interval, cliponaxis=False, row=1, col=2)
    figure.add_vrect(x0=1 - TOLERANCE, x1=1 + TOLERANCE, fillcolor=look.GREY, opacity=0.15, line_width=0, row=1, col=1)
    figure.add_vline(x=1, line={"color": look.INK, "width": 1})
    figure.update_layout(height=440, margin={"t": 92, "r": 40}, legend={"y": 1.12})
    axis = {"range": [-0.42, 0.42], "type": "log", **look.ticks([0.4, 0.5, 0.7, 1, 1.5, 2, 2.5])}
    figure.update_xaxes(title="time of A / time of B (log scale, cut at its ends)", row=1, col=1, **axis)
    figure.update_yaxes(title="duel", range=[0, duels + 1], row=1, col=1)
    figure.update_xaxes(title="times as fast as the first chosen", row=1, col=2)
    rows = {"type": "category", "categoryorder": "array", "categoryarray": names[::-1]}
    return figure.update_yaxes(range=[-0.6, len(names) - 0.4], row=1, col=2, **rows)
