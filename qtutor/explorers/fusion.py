"""FusionExplorer: walk through a network, merge its operators, and see bytes, roundings and error change."""

import math
from dataclasses import dataclass
from typing import Any

from qtutor.explorers.explorer import Explorer, Stops, button, choices, toggles
from qtutor.explorers.flow import Flow, FusionData, Ribbon
from qtutor.fusion import OperatorTraffic
from qtutor.models.tensors import as_tuple
from qtutor.models.tracing import label
from qtutor.plots import look
from qtutor.words import in_bytes, in_decibels

import ipywidgets
import plotly.graph_objects as go
from torch import nn

_SHOWN = 5  # operators in view
_HALF = 0.35  # half the width of an operator's box


@dataclass(frozen=True, eq=False)
class FusionResult:
    """What a state does to a network.

    Attributes:
        now: the network with the chosen fusions.
        plain: the network in the same numbers without any.
        place: where in `now.rows` the operator is that the learner looks at.
    """

    now: Flow
    plain: Flow
    place: int


class FusionExplorer(Explorer):
    """Explore what fusion does to a network of your own.

    In INT8, operators run on codes where PyTorch has a kernel for codes, else in floating point between two
    conversions. Ranges are the extremes that the example reaches; weights get a scale per output channel.

    Args:
        model: any module that torch.fx can trace; it stays as it is.
        example_input: the input, or a tuple of the inputs. Take real data: its ranges are those of the codes.
        start: where controls start, by name, such as `numbers="INT8"`.

    Controls:
        operator: the operator to look at, from 1, in the order in which they run without fusion.
        numbers: "float", as the model is, or "INT8".
        fused: the patterns that are merged, each as the names of its parts: `("conv1 + bn1 + relu1", "conv2 + bn2")`;
            `data.found` has all.

    Attributes:
        data: the network made ready for any fusions: `found`, the patterns, and `operators`, in order.

    Raises:
        TypeError: `model` is not a module, or `forward` does not take these inputs.
        ValueError: `forward` cannot be traced, fails on these inputs, gives NaN or infinity, or moves nothing; or a
            control cannot start there.
    """

    def __init__(self, model: nn.Module, example_input: Any, **start: Any):
        data = FusionData(model, as_tuple(example_input))
        if not data.operators or not any(ribbon.size for ribbon in data.flow((), "float").ribbons):
            raise ValueError("FusionExplorer: no operator moves floating-point values of this example: nothing to fuse")
        self.data = data
        options = [(f"{fusion.names[0]}  ({fusion.kind})", name) for name, (fusion, _) in data.found.items()]
        controls = {
            "operator": ipywidgets.IntSlider(1, 1, len(data.operators), description="Operator"),
            "numbers": toggles("Numbers", [(data.float_name, "float"), ("INT8", "INT8")], "5em"),
            "fused": ipywidgets.SelectMultiple(
                options=options, description="Fused", rows=min(6, max(2, len(options))), layout={"width": "28em"}
            ),
        }
        buttons = [
            button("Fuse all", lambda: self.set(fused=tuple(data.found)), layout={"width": "max-content"}),
            button("Fuse none", lambda: self.set(fused=()), layout={"width": "max-content"}),
            button("Fuse or split here", self._toggle, layout={"width": "max-content"}),
        ]
        self._widest = max(ribbon.size for ribbon in data.flow((), "float").ribbons)
        super().__init__(controls, _figure(), start, buttons)

    def _toggle(self) -> None:
        """Fuse the pattern that the operator in view belongs to, or take it apart."""
        with self._lock:
            node, fused = self.data.operators[self.controls["operator"].value - 1], {*self.controls["fused"].value}
            for name, (_, nodes) in self.data.found.items():
                if node in nodes:
                    fused ^= {name}
            self.set(fused=tuple(name for name in self.data.found if name in fused))

    def compute(self, state: Any) -> FusionResult:
        flow, node = self.data.flow, self.data.operators[state.operator - 1]
        place = next(i for i, nodes in enumerate(self.data.groups(state.fused)) if node in nodes)
        return FusionResult(flow(state.fused, state.numbers), flow((), state.numbers), place)

    def say(self, state: Any, result: FusionResult) -> str:
        data, now, plain = self.data, result.now, result.plain
        node = data.operators[state.operator - 1]
        row, int8 = now.rows[result.place], state.numbers == "INT8"
        where = f"Operator {state.operator} of {len(data.operators)}, {label(node)} ({data.meter.rows[node].kind}), "
        where += f"runs in one as {row.name}" if row.name != label(node) else "runs alone"
        if node in data.refused:
            where += f"; not fused: {data.refused[node]}"
        moved = (
            f"It reads {row.read:,} bytes and {row.parameters:,} of parameters, and writes {row.written:,}. "
            f"{len({*state.fused})} of {len(data.found)} patterns fused, {'INT8' if int8 else data.float_name}: "
            f"{now.total:,} bytes moved in all, {plain.total:,} without fusion"
        )
        if not int8:
            return f"{where}. {moved}. SQNR of the output {in_decibels(now.sqnr)}: what float rounding changes."
        return (
            f"{where}. {moved}; {len(now.rounded)} pairs of quantize and dequantize, {len(plain.rounded)} without; "
            f"{now.conversions} conversions from or to {data.float_name}, {plain.conversions} without; "
            f"SQNR of the output {in_decibels(now.sqnr)}, {in_decibels(plain.sqnr)} without."
        )

    def stops(self) -> Stops:
        operators = range(1, len(self.data.operators) + 1)
        fused = choices(list(self.data.found), 5000 // len(operators))
        return {"operator": operators, "numbers": ("float", "INT8"), "fused": fused}

    def draw(self, result: FusionResult) -> None:
        parts, rows = {trace.name: trace for trace in self.figure.data}, result.now.rows
        first = max(0, min(result.place - _SHOWN // 2, len(rows) - _SHOWN))
        shown = rows[first : first + _SHOWN]
        outlines = {name: _Outlines() for name in ("float", "INT8", "operators", "current")}
        sizes = self._draw_ribbons(result.now.ribbons, first, len(shown), outlines)
        for i in range(len(shown)):
            outlines["current" if first + i == result.place else "operators"].box(i)
        for name, outline in outlines.items():
            parts[name].x, parts[name].y = outline.x, outline.y
        int8 = self.state.numbers == "INT8"
        parts["kinds"].x, parts["kinds"].y = list(range(len(shown))), [0] * len(shown)
        parts["kinds"].text = [_box_text(row, int8) for row in shown]
        parts["sizes"].x, parts["sizes"].y = [x for x, _, _ in sizes], [y for _, y, _ in sizes]
        parts["sizes"].text = [f"{r.numbers.replace(' → ', '<br>→ ')}<br>{in_bytes(r.size)}" for _, _, r in sizes]
        flows, layout = (result.now, result.plain), self.figure.layout
        for name, axis, values, texts in (
            ("bytes", layout.xaxis2, [f.total for f in flows], [in_bytes(f.total) for f in flows]),
            ("pairs", layout.xaxis3, [len(f.rounded) for f in flows], [str(len(f.rounded)) for f in flows]),
            ("quality", layout.xaxis4, [_length(f.sqnr) for f in flows], [in_decibels(f.sqnr) for f in flows]),
        ):
            most = max(values) or 1
            parts[name].x = [value or most / 250 for value in values]  # a bar of length 0 would carry no text
            parts[name].text, axis.range = texts, [0, most]

    def _draw_ribbons(
        self, ribbons: tuple[Ribbon, ...], first: int, count: int, outlines: dict[str, "_Outlines"]
    ) -> list[tuple[float, float, Ribbon]]:
        """Outline the ribbons among `count` operators from `first` on, and return where each is described."""
        texts: list[tuple[float, float, Ribbon]] = []
        lane = 0
        for ribbon in ribbons:
            source, target = ribbon.source - first, ribbon.target - first
            if target < 0 or source >= count or (target > count and source < -1):
                continue
            thick = max(0.012, 0.8 * ribbon.size / self._widest)
            outline = outlines["INT8" if ribbon.numbers == "INT8" else "float"]
            if target - source == 1:
                outline.band(source + _HALF, target - _HALF, thick)
                texts.append((source + 0.5, -0.52, ribbon))
            else:
                left, right, height = max(source, -1), min(target, count), 0.72 + 0.34 * (lane % 3)
                outline.arch(left + _HALF, right - _HALF, height, thick)
                texts.append(((left + right) / 2, height + thick / 2 + 0.28, ribbon))
                lane += 1
        return texts


class _Outlines:
    """Outlines to fill, one after another."""

    def __init__(self):
        self.x: list[float | None] = []
        self.y: list[float | None] = []

    def add(self, x: list[float], y: list[float]) -> None:
        self.x += [*x, x[0], None]
        self.y += [*y, y[0], None]

    def box(self, place: int) -> None:
        self.add([place - _HALF, place + _HALF, place + _HALF, place - _HALF], [-0.5, -0.5, 0.5, 0.5])

    def band(self, start: float, end: float, thick: float) -> None:
        self.add([start, end, end, start], [thick / 2, thick / 2, -thick / 2, -thick / 2])

    def arch(self, start: float, end: float, height: float, thick: float) -> None:
        """A band that leaves at the top of a box, passes above others and comes down to a box."""
        share = [i / 20 for i in range(21)]
        x = [start + (end - start) * t for t in share]
        middle = [0.3 + (height - 0.3) * min(1.0, 4 * t * (1 - t) * 1.6) for t in share]
        self.add([*x, *x[::-1]], [*(y + thick / 2 for y in middle), *(y - thick / 2 for y in middle[::-1])])


def _box_text(row: OperatorTraffic, int8: bool) -> str:
    parts = row.kind.split("-") if " + " in row.name else [row.kind]
    parts = [part if len(part) < 18 else f"{part[:11]}…" for part in parts]
    if int8 and parts[0].startswith(("Conv", "Linear")):
        parts.insert(1, "<i>sums INT32</i>")
    text = "<br>".join(parts)
    return text.replace("ConvTranspose", "Conv<br>Transpose").replace("AdaptiveAvg", "AdaptiveAvg<br>")


def _length(sqnr: float) -> float:
    """Of the bar that shows it; without error there is none."""
    return 0.0 if sqnr == math.inf else max(sqnr, 0.0)


def _figure() -> go.Figure:
    """Draw what no control changes, and leave empty traces for what does."""
    bars = ("Bytes moved", "Quantize/dequantize pairs", "SQNR of the output")
    specs = [[{"rowspan": 3}, {}], [None, {}], [None, {}]]
    widths = {"column_widths": [0.72, 0.28], "horizontal_spacing": 0.1, "vertical_spacing": 0.16}
    figure = look.panels(3, 2, ("Ribbons as wide as the bytes that move", *bars), specs=specs, **widths)
    for name, fill, colour, width in (
        ("float", "rgba(213,94,0,.45)", look.VERMILLION, 1),
        ("INT8", "rgba(0,114,178,.55)", look.BLUE, 1),
        ("operators", "white", look.GREY, 1.5),
        ("current", "#FFF6D6", look.INK, 3),
    ):
        line = {"color": colour, "width": width}
        filled = {"mode": "lines", "fill": "toself", "fillcolor": fill, "line": line}
        figure.add_scatter(name=name, x=[], y=[], hoverinfo="skip", row=1, col=1, **filled)
    for name, side in (("kinds", "middle center"), ("sizes", "bottom center")):
        text = {"mode": "text", "textposition": side, "textfont": {"size": 11}, "cliponaxis": False}
        figure.add_scatter(name=name, x=[], y=[], hoverinfo="skip", row=1, col=1, **text)
    for row, name in enumerate(("bytes", "pairs", "quality"), start=1):
        drawn = {"marker_color": [look.BLUE, look.PALE], "textposition": "auto", "cliponaxis": False}
        figure.add_bar(name=name, x=[0, 0], y=[0, 1], orientation="h", hoverinfo="skip", row=row, col=2, **drawn)
    figure.update_layout(showlegend=False, height=430, bargap=0.25, margin={"t": 44, "b": 24, "l": 12, "r": 24})
    figure.update_xaxes(visible=False, range=[-0.8, _SHOWN - 0.2], row=1, col=1)
    figure.update_yaxes(visible=False, range=[-1.0, 1.9], row=1, col=1)
    figure.update_xaxes(visible=False, col=2)
    rows = {"tickvals": [0, 1], "ticktext": ["now", "no fusion"], "range": [1.6, -0.6]}
    return figure.update_yaxes(showline=False, ticks="", showgrid=False, zeroline=False, col=2, **rows)
