"""LayerExplorer: the budget game. Which layers may be integers, what accuracy is left, and in how many bytes?"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

from qtutor.diagnosis import Diagnosis, Measured
from qtutor.diagnosis.statistics import ChannelSums
from qtutor.explorers.explorer import Explorer, Stops, choices, every, toggles
from qtutor.plots import look
from qtutor.words import in_decibels

import ipywidgets
import plotly.graph_objects as go
import torch
from torch import Tensor

_BINS = 60
_CHANNELS = 128  # the most drawn: of more, every second, third, ... is
_FRONTIER = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)
"""How many of the most harmful layers the tool keeps in floating point, one after the other."""


@dataclass(frozen=True)
class LayerResult:
    """What a choice of layers gives.

    Attributes:
        measured: metric, SQNR and bytes.
        frontier: what the tool's own choices give, from none to many layers in floating point.
    """

    measured: Measured
    frontier: tuple[Measured, ...]


class LayerExplorer(Explorer):
    """Play for a budget with the layers of a model of your own.

    A large model is measured on fewer batches, so that the dot follows at once.

    Args:
        diagnosis: of `diagnosis.diagnose`.
        start: where controls start, by name, such as `weights="channel"`.

    Controls:
        keep_float: names of the layers in floating point, such as `("conv1", "head")`; at first none.
        weights: "tensor" or "channel": what shares a scale; at first as in the diagnosis.
        layer: the name of the layer that is drawn and spoken of; it changes no result.

    Attributes:
        tries: what was measured so far, by state.

    Raises:
        TypeError: `diagnosis` is not a diagnosis.
        ValueError: it has no layer, or a control cannot start there.
    """

    def __init__(self, diagnosis: Diagnosis, **start: Any):
        if not isinstance(diagnosis, Diagnosis):
            raise TypeError(
                f"LayerExplorer needs a Diagnosis, got {type(diagnosis).__name__}: pass diagnose(model, data)"
            )
        names = list(diagnosis.table["layer"])
        if not names:
            raise ValueError("LayerExplorer: the diagnosis has no layer, there is nothing to choose from")
        self.diagnosis = diagnosis.shortened(0.3)
        self.tries: dict[Any, Measured] = {}
        self.frontier = functools.cache(self.frontier)
        self._layers = {name: _drawn(diagnosis, name) for name in names}
        controls = {
            "keep_float": ipywidgets.SelectMultiple(
                options=names,
                description="Keep in float",
                rows=min(8, max(2, len(names))),
                layout={"width": "26em"},
                style={"description_width": "max-content"},
            ),
            "weights": toggles("A scale per", ["tensor", "channel"], "5.5em"),
            "layer": ipywidgets.SelectionSlider(options=names, description="Look at", layout={"width": "28em"}),
        }
        super().__init__(controls, _figure(self.diagnosis), {"weights": diagnosis.configuration.weights} | start)

    def make_state(self, *, keep_float: tuple[str, ...], **others: Any) -> Any:
        return super().make_state(keep_float=tuple(sorted(keep_float)), **others)

    def measure(self, weights: str, keep_float: tuple[str, ...]) -> Measured:
        """Measure a choice of layers; each is measured once."""
        configuration = replace(self.diagnosis.configuration, weights=weights, keep_float=tuple(sorted(keep_float)))
        return self.diagnosis.measure(configuration)

    def frontier(self, weights: str) -> tuple[Measured, ...]:
        """Return what keeping none, one, two, ... of the most harmful layers in floating point gives."""
        names = list(self.diagnosis.table["layer"])
        return tuple(self.measure(weights, tuple(names[:k])) for k in _FRONTIER if k <= len(names))

    def compute(self, state: Any) -> LayerResult:
        measured = self.measure(state.weights, state.keep_float)
        return LayerResult(measured, self.frontier(state.weights))

    def say(self, state: Any, result: LayerResult) -> str:
        names, measured = list(self.diagnosis.table["layer"]), result.measured
        row = self.diagnosis.table.set_index("layer").loc[state.layer]
        kept = f"{len(state.keep_float)} of {len(names)} layers in float" if state.keep_float else "All layers rounded"
        metric = self.diagnosis.metric_name
        quality = f"{metric} {measured.metric:.3f} ({self.diagnosis.float_metric:.3f} in float), " if metric else ""
        tool = min((m.bytes for m in result.frontier if self.good(m)), default=None)
        goal = "reaches the goal" if self.good(measured) else "misses the goal"
        rival = f"; the tool reaches it with {tool:,}" if tool else "; the tool does not reach it this way"
        advice = f"; {row['suggestion']}" if row["suggestion"] else ""
        return (
            f"{kept}, a scale per {state.weights}: {quality}SQNR {in_decibels(measured.sqnr)} in {measured.bytes:,} "
            f"bytes, which {goal}{rival}. {state.layer}: {row['finding']}{advice}."
        )

    def forget(self) -> None:
        self.tries = {}

    def stops(self) -> Stops:
        names = list(self.controls["keep_float"].options)
        kept = [*choices(names, 400), *(tuple(names[:k]) for k in _FRONTIER)]
        return {"keep_float": kept, "weights": ("tensor", "channel"), "layer": names[:1]}

    def draw(self, result: LayerResult) -> None:
        state, figure = self.state, self.figure
        self.tries[replace(state, layer="")] = result.measured
        tool, tried, best, now, *bars = figure.data
        smallest = self.best()
        for trace, points in (
            (tool, result.frontier),
            (tried, [*self.tries.values()][-200:]),
            (best, [smallest] if smallest else []),
            (now, [result.measured]),
        ):
            trace.x, trace.y = [p.bytes / 1000 for p in points], [self._height(p) for p in points]
        histograms, ranges, side = self._layers[state.layer]
        for trace, (x, y) in zip(bars[:2], histograms, strict=True):
            trace.x, trace.y = x, y
        for trace, (x, low, high) in zip(bars[2:], ranges, strict=True):
            trace.x, trace.base, trace.y = x, low, high - low
        figure.layout.annotations[3].text = side

    def best(self) -> Measured | None:
        """Your smallest choice that is as good as the goal, if there is one."""
        good = [m for m in self.tries.values() if self.good(m)]
        return min(good, key=lambda m: m.bytes, default=None)

    def good(self, measured: Measured) -> bool:
        """Whether a choice loses no more than the diagnosis allows."""
        return self.diagnosis.goal.reached(measured)

    def _height(self, measured: Measured) -> float:
        height = measured.metric if self.diagnosis.metric_name else measured.sqnr
        return height if math.isfinite(height) else None


def _drawn(diagnosis: Diagnosis, name: str) -> tuple[list[tuple], list[tuple], str]:
    """The histograms of a layer's weights and of what reads or leaves it, the ranges of their channels, and a title."""
    statistics, histograms = diagnosis.statistics[name], diagnosis.histograms(name)
    side = statistics.worst_side
    sums = statistics.sides.get(side) or ChannelSums(low=torch.zeros(1), high=torch.zeros(1))
    values = [_coarser(*histograms["weights"]), _coarser(*histograms[side]) if side else ([], [])]
    ranges = [_ranges(statistics.weights.low, statistics.weights.high), _ranges(sums.low, sums.high)]
    return values, ranges, f"Values of its {side}" if side else "No activation is rounded"


def _coarser(edges: Tensor, counts: Tensor) -> tuple:
    """The middles and counts of at most `_BINS` bins over what is not empty; empty ones are left out of a log axis."""
    used = counts.nonzero().flatten()
    if not len(used):
        return [], []
    first, last = int(used[0]), int(used[-1]) + 1
    step = math.ceil((last - first) / _BINS)
    groups = range(first, last, step)
    width = float(edges[1] - edges[0])
    x = torch.tensor([float(edges[i]) + width * step / 2 for i in groups])
    y = torch.tensor([float(counts[i : i + step].sum()) for i in groups])
    return x.numpy(), torch.where(y > 0, y, torch.nan).numpy()


def _ranges(low: Tensor, high: Tensor) -> tuple:
    widest = int(torch.maximum(-low, high).argmax())
    shown, _ = every(len(low), _CHANNELS, widest)
    return shown.numpy(), low[shown].float().numpy(), high[shown].float().numpy()


def _figure(diagnosis: Diagnosis) -> go.Figure:
    """Draw what no control changes, and leave empty traces for what does."""
    layer = ("Weights", "Weight range of each channel", " ", "Range of each channel")
    specs = [[{"rowspan": 2}, {}, {}], [None, {}, {}]]
    widths = {"column_widths": [0.42, 0.29, 0.29], "horizontal_spacing": 0.075, "vertical_spacing": 0.24}
    figure = look.panels(2, 3, ("What is left, and in how many bytes", *layer), specs=specs, **widths)
    figure.update_annotations(font_size=14)
    dashed = {"line": {"color": look.GREY, "dash": "dash"}, "marker": {"size": 7}}
    figure.add_scatter(mode="lines+markers", x=[], y=[], name="the tool", cliponaxis=False, row=1, col=1, **dashed)
    for name, keeps, colour, size, symbol in (
        ("tried", "all", look.SKY, 8, "circle"),
        ("your best", "leftmost", look.GREEN, 18, "star"),
        ("now", None, look.VERMILLION, 12, "diamond"),
    ):
        drawn = {"meta": {"keeps": keeps}, "marker": {"color": colour, "size": size, "symbol": symbol}}
        figure.add_scatter(mode="markers", x=[], y=[], name=name, cliponaxis=False, row=1, col=1, **drawn)
    for column in (2, 3):
        for row, colour in ((1, look.BLUE), (2, look.PURPLE)):
            bars = {"marker_color": colour, "marker_line_width": 0, "showlegend": False}
            figure.add_bar(x=[], y=[], row=row, col=column, **bars)
    figure.update_layout(height=470, bargap=0.05, margin={"t": 48}, legend={"x": 0, "y": -0.14, "yanchor": "top"})
    everything = diagnosis.experiment.bytes(
        replace(diagnosis.configuration, keep_float=tuple(diagnosis.table["layer"]))
    )
    figure.update_xaxes(title="kilobytes", range=[0, 1.05 * everything / 1000], row=1, col=1)
    if diagnosis.metric_name == "accuracy":
        figure.update_yaxes(title="accuracy", tickformat=".0%", range=[-0.03, 1.05], row=1, col=1)
    else:
        figure.update_yaxes(title=diagnosis.metric_name or "SQNR of the output, dB", row=1, col=1)
    figure.update_yaxes(title="count (log)", type="log", dtick=1, col=2)
    figure.update_xaxes(title="value", col=2)
    return figure.update_xaxes(title="channel", col=3)
