"""FusionExplorer: walk through a network, merge its operators, and see bytes, roundings and error change."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from qtutor import plots
from qtutor.affine import choose_qparams, fake_quantize, sqnr
from qtutor.explorers.explorer import Explorer
from qtutor.fusion.folding import fold_batch_norm
from qtutor.fusion.patterns import patterns
from qtutor.fusion.traffic import Meter, OperatorTraffic, as_one_operator
from qtutor.models.operators import Trait, target_of, traits
from qtutor.models.tensors import tensors_in
from qtutor.models.tracing import label, trace

import ipywidgets
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SHOWN = 5  # operators in view
_NAMES = {torch.float32: "FP32", torch.float64: "FP64", torch.float16: "FP16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class FusionState:
    """What the controls of a FusionExplorer say.

    Attributes:
        operator: the operator to look at, from 1, in the order in which they run without fusion.
        numbers: "float", as the model is, or "INT8".
        fused: the patterns that are merged, each as the names of its parts joined by " + ".
    """

    operator: int
    numbers: str
    fused: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Ribbon:
    """A tensor on its way between two operators, by their places in `Flow.rows`.

    Attributes:
        source: -1 for an input of the model.
        target: `len(rows)` for an output of the model.
        size: bytes.
        numbers: what they are: "FP32", "INT8", or "INT8 → FP32" where they are converted on the way.
    """

    source: int
    target: int
    size: int
    numbers: str


@dataclass(frozen=True, eq=False)
class Flow:
    """What moves in a network under a choice of fusions.

    Attributes:
        rows: the operators as they run; conversions between number formats are not among them.
        ribbons: the tensors between them.
        rounded: the nodes whose values are rounded to INT8: each is a pair of quantize and dequantize in a
            model that simulates integers.
        conversions: how many tensors are converted between INT8 and floating point outside of any operator.
        total: all bytes moved, by operators and conversions.
        sqnr: of the model's output against the float model without fusion, in dB; infinite where they are equal.
    """

    rows: tuple[OperatorTraffic, ...]
    ribbons: tuple[Ribbon, ...]
    rounded: tuple[fx.Node, ...]
    conversions: int
    total: int
    sqnr: float


@dataclass(frozen=True, eq=False)
class FusionResult:
    """What a state does to a network.

    Attributes:
        now: the network with the chosen fusions.
        plain: the network in the same numbers without any.
        place: where in `now.rows` the operator is that the learner looks at.
        sentence: the result in words.
    """

    now: Flow
    plain: Flow
    place: int
    sentence: str


class _Recorder(Meter):
    """A meter that also notes how large each value is and how far it reaches."""

    def __init__(self, tracer: Any):
        super().__init__(tracer, None, None)
        self.elements: dict[fx.Node, int] = {}
        self.ranges: dict[fx.Node, tuple[float, float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        values = [t for t in tensors_in(output) if t.is_floating_point()]
        if n.op != "get_attr" and values:
            self.elements[n] = sum(t.numel() for t in values)
            if isinstance(output, Tensor) and output.numel():
                low, high = output.aminmax()
                if not (math.isfinite(low) and math.isfinite(high)):
                    raise ValueError(f"FusionExplorer: {label(n)} gives NaN or infinity for this input: pass another")
                self.ranges[n] = float(low), float(high)
        return output


class _Simulator(fx.Interpreter):
    """Run a traced model with some layers replaced, some batch norms passed by and some values rounded."""

    def __init__(self, tracer: Any, layers: dict[fx.Node, nn.Module], folded: set[fx.Node], qparams: dict):
        super().__init__(tracer.root, graph=tracer.graph)
        self.extra_traceback = False
        self.layers, self.folded, self.qparams = layers, folded, qparams

    def run_node(self, n: fx.Node) -> Any:
        if n in self.folded:
            return self.env[n.all_input_nodes[0]]
        if n in self.layers:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            output = self.layers[n](*args, **kwargs)
        else:
            output = super().run_node(n)
        return fake_quantize(output, self.qparams[n]) if n in self.qparams else output


class FusionData:
    """A model made ready to be fused in any way: traced, run once, its operators and tensors listed.

    Attributes:
        operators: the nodes that move data, in order.
        found: each accepted pattern with its nodes, by the names of its parts joined by " + ".
        refused: why a node is not merged with what comes before it.
    """

    def __init__(self, model: nn.Module, inputs: tuple):
        with torch.inference_mode(False), torch.no_grad():
            self.tracer = trace(model, "FusionExplorer", inputs)
            self.inputs = [x for x in inputs if tensors_in(x)]
            self.meter, self.codes = _Recorder(self.tracer), Meter(self.tracer, 1, 1)
            self.reference = self._run(self.meter)
            self._run(self.codes)
        self.operators = [node for node, row in self.meter.rows.items() if row.total]
        floats = [t for t in (*tensors_in(self.inputs), *self.tracer.root.parameters()) if t.is_floating_point()]
        self.float_name = _NAMES.get(floats[0].dtype, "float") if floats else "FP32"
        self.float_bytes = floats[0].element_size() if floats else 4
        self.found, self.refused = {}, {}
        for fusion, nodes in patterns(self.tracer):
            if fusion.accepted:
                self.found[" + ".join(fusion.names)] = fusion, nodes
            else:
                self.refused[nodes[-1]] = fusion.reason
        self._layers: dict[tuple, nn.Module] = {}
        self._flows: dict[tuple, Flow] = {}

    def _run(self, interpreter: fx.Interpreter) -> Tensor:
        """Run on copies of the inputs; all floating-point outputs as one vector."""
        copies = [tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, x) for x in self.inputs]
        outputs = [t.flatten().double() for t in tensors_in(interpreter.run(*copies)) if t.is_floating_point()]
        return torch.cat(outputs) if outputs else torch.zeros(0)

    def groups(self, fused: Iterable[str]) -> list[list[fx.Node]]:
        """The nodes of each operator as they run with these patterns merged."""
        first = {self.found[name][1][0]: self.found[name][1] for name in fused}
        inside = {node for nodes in first.values() for node in nodes[1:]}
        return [first.get(node, [node]) for node in self.operators if node not in inside]

    def kernel(self, node: fx.Node) -> str:
        """Whether an operator "rounds" to codes, is "exact" on codes, or needs "float"."""
        known = traits(target_of(node, self.tracer.root))
        return "exact" if Trait.CHOOSES in known else "rounds" if Trait.ROUNDS in known else "float"

    def sources(self, node: fx.Node) -> list[tuple[fx.Node, int]]:
        """The operators or inputs that `node` reads, through what moves no data, with the elements read."""
        found = []
        for value in node.all_input_nodes:
            if value.op == "get_attr" or value not in self.meter.elements:
                continue
            moving = value.op == "placeholder" or (value in self.meter.rows and self.meter.rows[value].total)
            if moving:
                found.append((value, self.meter.elements[value]))
            else:
                found += [(source, self.meter.elements[value]) for source, _ in self.sources(value)]
        return list(dict(found).items())

    def judge(self, fused: frozenset[str], numbers: str, rounded: list[fx.Node]) -> float:
        """Return the SQNR in dB of the output."""
        root, folded, layers = self.tracer.root, set(), {}
        if numbers == "INT8":
            for node in self.operators:
                module = root.get_submodule(node.target) if node.op == "call_module" else None
                if isinstance(module, _LAYERS) and "weight" in module._parameters:
                    layers[node] = self._layer(node, (), numbers)
        for fusion, nodes in map(self.found.get, fused):
            if fusion.norms:
                layers[nodes[0]] = self._layer(nodes[0], fusion.norms, numbers)
                folded.update(node for node in nodes if node.target in fusion.norms)
        qparams = {node: choose_qparams(*self.meter.ranges[node]) for node in rounded if node in self.meter.ranges}
        with torch.inference_mode(False), torch.no_grad():
            output = self._run(_Simulator(self.tracer, layers, folded, qparams))
        return sqnr(self.reference, output) if output.numel() else math.inf

    def _layer(self, node: fx.Node, norms: tuple[str, ...], numbers: str) -> nn.Module:
        """A layer with batch norms folded in, if there are any, and its weight rounded, if it is to be INT8."""
        key = node.target, norms, numbers
        if key not in self._layers:
            layer = copy.deepcopy(self.tracer.root.get_submodule(node.target))
            layer = reduce(fold_batch_norm, map(self.tracer.root.get_submodule, norms), layer)
            if numbers == "INT8":
                weight = layer.weight.detach()
                one = getattr(layer, "transposed", False)  # a scale for all, as PyTorch has it
                reach = weight.abs().amax() if one else weight.abs().flatten(1).amax(dim=1)
                reach = reach.view([] if one else [-1, *[1] * (weight.dim() - 1)])
                layer.weight.data = fake_quantize(weight, choose_qparams(-reach, reach, symmetric=True))
            self._layers[key] = layer
        return self._layers[key]

    def flow(self, fused: tuple[str, ...], numbers: str) -> Flow:
        """Find what moves with these patterns merged; asked again, from memory."""
        key = frozenset(fused), numbers
        if key not in self._flows:
            self._flows[key] = self._flow(*key)
        return self._flows[key]

    def _flow(self, fused: frozenset[str], numbers: str) -> Flow:
        groups, fusions = self.groups(fused), {self.found[name][1][0]: self.found[name][0] for name in fused}
        place = {node: i for i, nodes in enumerate(groups) for node in nodes}
        kinds = [self.kernel(nodes[0]) if numbers == "INT8" else "float" for nodes in groups]
        rounded = [nodes[-1] for nodes, kind in zip(groups, kinds, strict=True) if kind == "rounds"]
        rows, ribbons, converted = [], [], {}
        for nodes, kind in zip(groups, kinds, strict=True):
            meter, fusion = self.meter if kind == "float" else self.codes, fusions.get(nodes[0])
            rows.append(as_one_operator(meter, fusion, nodes) if fusion else meter.rows[nodes[0]])
        ends = [node for node in self.tracer.graph.nodes if node.op == "output"]
        for target, (nodes, kind) in enumerate(zip([*groups, ends], [*kinds, "float"], strict=True)):
            for source, elements in self.sources(nodes[0]):
                before = kinds[place[source]] if source in place else "float"
                formats = [self.float_name if k == "float" else "INT8" for k in (before, kind)]
                if formats[0] != formats[1]:
                    converted[source, kind == "float"] = elements
                    if kind != "float":
                        rounded.append(source)
                size = elements * (self.float_bytes if before == "float" else 1)
                ribbons.append(Ribbon(place.get(source, -1), target, size, " → ".join(dict.fromkeys(formats))))
        total = sum(row.total for row in rows) + sum(converted.values()) * (1 + self.float_bytes)
        rounded = tuple(dict.fromkeys(rounded))
        quality = self.judge(fused, numbers, rounded)
        return Flow(tuple(rows), tuple(ribbons), rounded, len(converted), total, quality)


def explore_fusion(data: FusionData, state: FusionState) -> FusionResult:
    """Compute what `state` does to the model."""
    now, plain = data.flow(state.fused, state.numbers), data.flow((), state.numbers)
    node = data.operators[state.operator - 1]
    place = next(i for i, nodes in enumerate(data.groups(state.fused)) if node in nodes)
    return FusionResult(now, plain, place, _sentence(data, state, node, now, plain, place))


def _sentence(data: FusionData, state: FusionState, node: fx.Node, now: Flow, plain: Flow, place: int) -> str:
    row, int8 = now.rows[place], state.numbers == "INT8"
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
        return f"{where}. {moved}. SQNR of the output {_decibels(now.sqnr)}: what float rounding changes."
    return (
        f"{where}. {moved}; {len(now.rounded)} pairs of quantize and dequantize, {len(plain.rounded)} without; "
        f"{now.conversions} conversions from or to {data.float_name}, {plain.conversions} without; "
        f"SQNR of the output {_decibels(now.sqnr)}, {_decibels(plain.sqnr)} without."
    )


def _decibels(quality: float) -> str:
    return "without error" if quality == math.inf else f"{quality:.1f} dB"


class FusionExplorer(Explorer):
    """Explore what fusion does to a network of your own.

    In INT8, operators run on codes where PyTorch has a kernel for codes, else in floating point between two
    conversions. Ranges are the extremes that the example reaches; weights get a scale per output channel.

    Args:
        model: any module that torch.fx can trace; it stays as it is.
        example_input: the input, or a tuple of the inputs. Take real data: its ranges are those of the codes.
        numbers: where the control starts, "float" or "INT8".

    Raises:
        TypeError: `model` is not a module, or `forward` does not take these inputs.
        ValueError: `forward` cannot be traced, fails on these inputs, or gives NaN or infinity; or there are no such
            numbers.
    """

    def __init__(self, model: nn.Module, example_input: Any, *, numbers: str = "float"):
        if numbers not in ("float", "INT8"):
            raise ValueError(f"FusionExplorer: numbers is 'float' or 'INT8', got {numbers!r}")
        data = FusionData(model, example_input if isinstance(example_input, tuple) else (example_input,))
        empty = not data.operators or not any(ribbon.size for ribbon in data.flow((), "float").ribbons)
        self.data = data = FusionData(nn.ReLU(), (torch.zeros(1),)) if empty else data
        options = [(f"{fusion.names[0]}  ({fusion.kind})", name) for name, (fusion, _) in data.found.items()]
        controls = {
            "operator": ipywidgets.IntSlider(1, 1, len(data.operators), description="Operator"),
            "numbers": ipywidgets.ToggleButtons(
                options=[(data.float_name, "float"), ("INT8", "INT8")],
                value=numbers,
                description="Numbers",
                style={"button_width": "5em"},
                layout={"width": "max-content"},
            ),
            "fused": ipywidgets.SelectMultiple(
                options=options, description="Fused", rows=min(6, max(2, len(options))), layout={"width": "28em"}
            ),
        }
        presses = {
            "Fuse all": lambda _: self.set(fused=tuple(data.found)),
            "Fuse none": lambda _: self.set(fused=()),
            "Fuse or split here": lambda _: self._toggle(),
        }
        buttons = [ipywidgets.Button(description=name, layout={"width": "max-content"}) for name in presses]
        for button, press in zip(buttons, presses.values(), strict=True):
            button.on_click(press)
        self._widest = max(ribbon.size for ribbon in data.flow((), "float").ribbons)
        figure = _figure(data.float_name)
        self._parts = {trace.name: trace for trace in figure.data}
        self._axes = {"bytes": figure.layout.xaxis2, "pairs": figure.layout.xaxis3, "quality": figure.layout.xaxis4}
        super().__init__(controls, figure, buttons=tuple(buttons))
        if empty:
            self.show_only("No operator moves floating-point values of this example: there is nothing to fuse.")

    make_state = FusionState

    def _toggle(self) -> None:
        """Fuse the pattern that the operator in view belongs to, or take it apart."""
        node, fused = self.data.operators[self.controls["operator"].value - 1], self.controls["fused"].value
        for name, (_, nodes) in self.data.found.items():
            if node in nodes:
                self.set(fused=tuple(n for n in self.data.found if (n in fused) != (n == name)))

    def compute(self, state: FusionState) -> FusionResult:
        return explore_fusion(self.data, state)

    def draw(self, result: FusionResult) -> None:
        parts, rows = self._parts, result.now.rows
        first = max(0, min(result.place - _SHOWN // 2, len(rows) - _SHOWN))
        shown = rows[first : first + _SHOWN]
        shapes = {"INT8": _Shapes(), "float": _Shapes()}
        texts, lane = [], 0
        for ribbon in result.now.ribbons:
            source, target = ribbon.source - first, ribbon.target - first
            if target < 0 or source >= len(shown) or (target > len(shown) and source < -1):
                continue
            thick = max(0.012, 0.8 * ribbon.size / self._widest)
            shape = shapes["INT8" if ribbon.numbers == "INT8" else "float"]
            if target - source == 1:
                shape.band(source + _HALF, target - _HALF, thick)
                texts.append((source + 0.5, -0.52, ribbon))
            else:
                height = 0.72 + 0.34 * (lane % 3)
                shape.arch(max(source, -1) + _HALF, min(target, len(shown)) - _HALF, height, thick)
                texts.append(((max(source, -1) + min(target, len(shown))) / 2, height + thick / 2 + 0.28, ribbon))
                lane += 1
        for name, shape in shapes.items():
            parts[name].x, parts[name].y = shape.x, shape.y
        boxes, current = _Shapes(), _Shapes()
        for i in range(len(shown)):
            (current if first + i == result.place else boxes).box(i)
        for name, shape in (("operators", boxes), ("current", current)):
            parts[name].x, parts[name].y = shape.x, shape.y
        int8 = self.state.numbers == "INT8"
        labels = [_box_text(row, int8) for row in shown]
        parts["kinds"].x, parts["kinds"].y, parts["kinds"].text = list(range(len(shown))), [0] * len(shown), labels
        parts["sizes"].x, parts["sizes"].y = [x for x, _, _ in texts], [y for _, y, _ in texts]
        parts["sizes"].text = [f"{r.numbers.replace(' → ', '<br>→ ')}<br>{_bytes(r.size)}" for *_, r in texts]
        bars = {
            "bytes": [(flow.total, _bytes(flow.total)) for flow in (result.now, result.plain)],
            "pairs": [(len(flow.rounded), str(len(flow.rounded))) for flow in (result.now, result.plain)],
            "quality": [_quality(flow.sqnr) for flow in (result.now, result.plain)],
        }
        for name, pairs in bars.items():
            most = max(value for value, _ in pairs) or 1
            parts[name].x, parts[name].text = [value or most / 250 for value, _ in pairs], [text for _, text in pairs]
            self._axes[name].range = [0, most]  # and a bar of length 0 would carry no text


_HALF = 0.35  # half the width of an operator's box


class _Shapes:
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
    if int8 and parts[0].startswith(("Conv", "Linear")):
        parts.insert(1, "<i>sums INT32</i>")
    return (
        "<br>".join(part if len(part) < 18 or "<" in part else f"{part[:11]}…" for part in parts)
        .replace("ConvTranspose", "Conv<br>Transpose")
        .replace("AdaptiveAvg", "AdaptiveAvg<br>")
    )


def _bytes(size: float) -> str:
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"


def _quality(quality: float) -> tuple[float, str]:
    return (0, "no error") if quality == math.inf else (max(quality, 0), f"{quality:.1f} dB")


def _figure(float_name: str) -> go.FigureWidget:
    """Draw what no control changes, and leave empty traces for what does."""
    titles = (
        "Ribbons as wide as the bytes that move",
        "Bytes moved",
        "Quantize/dequantize pairs",
        "SQNR of the output",
    )
    specs = [[{"rowspan": 3}, {}], [None, {}], [None, {}]]
    widths = {"column_widths": [0.72, 0.28], "horizontal_spacing": 0.1, "vertical_spacing": 0.16}
    figure = make_subplots(3, 2, specs=specs, subplot_titles=titles, **widths)

    def add(name: str, **look: Any) -> None:
        figure.add_scatter(name=name, x=[], y=[], hoverinfo="skip", row=1, col=1, **look)

    add(
        "float",
        mode="lines",
        fill="toself",
        fillcolor="rgba(213,94,0,.45)",
        line={"color": plots.VERMILLION, "width": 1},
    )
    add("INT8", mode="lines", fill="toself", fillcolor="rgba(0,114,178,.55)", line={"color": plots.BLUE, "width": 1})
    add("operators", mode="lines", fill="toself", fillcolor="white", line={"color": plots.GREY, "width": 1.5})
    add("current", mode="lines", fill="toself", fillcolor="#FFF6D6", line={"color": plots.INK, "width": 3})
    add("kinds", mode="text", textfont={"size": 11})
    add("sizes", mode="text", textposition="bottom center", textfont={"size": 11}, cliponaxis=False)
    for row, name in enumerate(("bytes", "pairs", "quality"), start=1):
        look = {"marker_color": [plots.BLUE, "#C3CBD4"], "textposition": "auto", "cliponaxis": False}
        figure.add_bar(name=name, x=[0, 0], y=[0, 1], orientation="h", hoverinfo="skip", row=row, col=2, **look)
    figure.update_layout(template=plots.TEMPLATE, showlegend=False, autosize=True, height=430, bargap=0.25)
    figure.update_layout(margin={"t": 44, "b": 24, "l": 12, "r": 24})
    figure.update_annotations(font_size=15)
    figure.update_xaxes(visible=False, range=[-0.8, _SHOWN - 0.2], row=1, col=1)
    figure.update_yaxes(visible=False, range=[-1.0, 1.9], row=1, col=1)
    figure.update_xaxes(visible=False, col=2)
    rows = {"tickvals": [0, 1], "ticktext": ["now", "no fusion"], "range": [1.6, -0.6]}
    figure.update_yaxes(showline=False, ticks="", showgrid=False, zeroline=False, col=2, **rows)
    return go.FigureWidget(figure)
