"""What moves in a network under a choice of fusions, in floating point or INT8, and what that does to its output."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

from qtutor.affine import choose_qparams, fake_quantize
from qtutor.fusion import OperatorTraffic, fold_batch_norm
from qtutor.fusion.patterns import patterns
from qtutor.fusion.traffic import Meter, as_one_operator
from qtutor.machine import describe
from qtutor.models.copying import copy_model
from qtutor.models.running import agreement
from qtutor.models.tensors import copies, floats_in, tensors_in
from qtutor.models.tracing import label, trace
from qtutor.observers import round_min_max
from qtutor.workflows.floats import without_kernel
from qtutor.workflows.rewriting import Kernel, kernel_of

import torch
from torch import Tensor, fx, nn

_NAMES = {torch.float32: "FP32", torch.float64: "FP64", torch.float16: "FP16", torch.bfloat16: "BF16"}


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
        rounded: the nodes whose values are rounded to INT8 on a grid of their own: each is a pair of quantize and
            dequantize in a model that simulates integers.
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


class _Recorder(Meter):
    """A meter that also notes how large each value is and how far it reaches."""

    def __init__(self, tracer: Any):
        super().__init__(tracer, None, None)
        self.elements: dict[fx.Node, int] = {}
        self.ranges: dict[fx.Node, tuple[float, float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        values = floats_in(output)
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
        self.floats = {*without_kernel(self.tracer.root, describe().engine)}
        self.operators = [node for node, row in self.meter.rows.items() if row.total]
        floats = floats_in([self.inputs, [*self.tracer.root.parameters()]])
        self.float_name = _NAMES.get(floats[0].dtype, "float") if floats else "FP32"
        self.float_bytes = floats[0].element_size() if floats else 4
        self.found, self.refused = {}, {}
        for fusion, nodes in patterns(self.tracer):
            if fusion.accepted:
                self.found[" + ".join(fusion.names)] = fusion, nodes
            else:
                self.refused[nodes[-1]] = fusion.reason
        self._layer, self._flow = cache(self._layer), cache(self._flow)

    def _run(self, interpreter: fx.Interpreter) -> list[Tensor]:
        """Run on copies of the inputs."""
        return floats_in(interpreter.run(*copies(self.inputs)))

    def groups(self, fused: Iterable[str]) -> list[list[fx.Node]]:
        """The nodes of each operator as they run with these patterns merged."""
        first = {self.found[name][1][0]: self.found[name][1] for name in fused}
        inside = {node for nodes in first.values() for node in nodes[1:]}
        return [first.get(node, [node]) for node in self.operators if node not in inside]

    def kernel(self, node: fx.Node) -> Kernel | None:
        """The INT8 kernel of an operator, None where it needs floats."""
        left = node.op == "call_module" and node.target in self.floats
        return None if left else kernel_of(node, self.tracer.root)

    def _has_codes(self, node: fx.Node) -> bool:
        """Whether an operator is a layer with a weight that becomes codes."""
        kernel = self.kernel(node)
        return node.op == "call_module" and kernel is not None and kernel.multiplies

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

    def judge(self, fused: frozenset[str], numbers: str, rounded: list[fx.Node], grids: dict) -> float:
        """Return the SQNR in dB of the output; `grids` are nodes that give codes on the grid of another."""
        folded, layers = set(), {}
        if numbers == "INT8":
            layers = {node: self._layer(node.target, (), numbers) for node in self.operators if self._has_codes(node)}
        for fusion, nodes in map(self.found.get, fused):
            if fusion.norms:
                layers[nodes[0]] = self._layer(nodes[0].target, fusion.norms, numbers)
                folded.update(node for node in nodes if node.target in fusion.norms)
        qparams = {node: choose_qparams(*self.meter.ranges[node]) for node in rounded if node in self.meter.ranges}
        for node, source in grids.items():
            qparams |= {node: qparams[source]} if source in qparams else {}
        with torch.inference_mode(False), torch.no_grad():
            return agreement(self.reference, self._run(_Simulator(self.tracer, layers, folded, qparams)))

    def _layer(self, name: str, norms: tuple[str, ...], numbers: str) -> nn.Module:
        """A layer with batch norms folded in, if there are any, and its weight rounded, if it is to be INT8."""
        layer = copy_model(self.tracer.root.get_submodule(name))
        layer = reduce(fold_batch_norm, map(self.tracer.root.get_submodule, norms), layer)
        if numbers == "INT8":
            weight, transposed = layer.weight.detach(), getattr(layer, "transposed", False)
            axis = None if transposed else 0  # as PyTorch has them
            layer.weight.data = round_min_max(weight, symmetric=True, axis=axis)
        return layer

    def flow(self, fused: tuple[str, ...], numbers: str) -> Flow:
        """Find what moves with these patterns merged; asked again, from memory."""
        return self._flow(frozenset(fused), numbers)

    def _flow(self, fused: frozenset[str], numbers: str) -> Flow:
        groups, fusions = self.groups(fused), {self.found[name][1][0]: self.found[name][0] for name in fused}
        place = {node: i for i, nodes in enumerate(groups) for node in nodes}
        kernels = [self.kernel(nodes[0]) if numbers == "INT8" else None for nodes in groups]
        rows, ribbons, rounded, grids, converted = [], [], [], {}, {}
        for nodes, kernel in zip(groups, kernels, strict=True):
            meter, fusion = self.codes if kernel else self.meter, fusions.get(nodes[0])
            rows.append(as_one_operator(meter, fusion, nodes) if fusion else meter.rows[nodes[0]])
            read = [source for source, _ in self.sources(nodes[0])]
            if kernel and kernel.shares and len(read) == 1:
                grids[nodes[-1]] = read[0]
            elif kernel:
                rounded.append(nodes[-1])
        ends = [node for node in self.tracer.graph.nodes if node.op == "output"]
        for target, (nodes, kernel) in enumerate(zip([*groups, ends], [*kernels, None], strict=True)):
            for source, elements in self.sources(nodes[0]):
                before = kernels[place[source]] if source in place else None
                given, needed = ("INT8" if k else self.float_name for k in (before, kernel))
                if given != needed:
                    converted[source, needed] = elements
                    if needed == "INT8":
                        rounded.append(source)
                size = elements * (1 if before else self.float_bytes)
                form = given if given == needed else f"{given} → {needed}"
                ribbons.append(Ribbon(place.get(source, -1), target, size, form))
        total = sum(row.total for row in rows) + sum(converted.values()) * (1 + self.float_bytes)
        rounded = list(dict.fromkeys(rounded))
        quality = self.judge(fused, numbers, rounded, grids)
        return Flow(tuple(rows), tuple(ribbons), tuple(rounded), len(converted), total, quality)
