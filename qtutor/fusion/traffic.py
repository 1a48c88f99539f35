"""The bytes that a model moves, operator by operator: it is traced, and then runs on real tensors."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qtutor.fusion.patterns import Fusion, patterns
from qtutor.models.operators import function_name, kind_of
from qtutor.models.tensors import as_tuple, copies, tensors_in
from qtutor.models.tracing import Tracer, label, trace
from qtutor.words import first_line

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class OperatorTraffic:
    """The bytes that one operator moves.

    Attributes:
        name: qualified name, or several joined by " + " where they run as one operator.
        kind: class of the module, name of the function, or kind of the fusion.
        read: bytes of the input tensors; one that is given twice counts once.
        parameters: bytes of weights, biases and statistics.
        written: bytes of the output tensors.
    """

    name: str
    kind: str
    read: int
    parameters: int
    written: int

    @property
    def total(self) -> int:
        """All bytes moved."""
        return self.read + self.parameters + self.written


@dataclass(frozen=True)
class Traffic:
    """The bytes that a model moves for one batch: one row an operator, in the order in which they run."""

    rows: tuple[OperatorTraffic, ...]

    @property
    def totals(self) -> OperatorTraffic:
        """The sum of all rows, as a row."""
        sums = (sum(getattr(row, column) for row in self.rows) for column in ("read", "parameters", "written"))
        return OperatorTraffic("total", "model", *sums)

    @property
    def total(self) -> int:
        """All bytes moved."""
        return self.totals.total


class Meter(fx.Interpreter):
    """Run a traced model and keep in `rows` the traffic of each node that gives tensors."""

    def __init__(self, tracer: Tracer, activation_bytes: float | None, weight_bytes: float | None):
        super().__init__(tracer.root, graph=tracer.graph)
        self.extra_traceback = False
        self.activation_bytes, self.weight_bytes = activation_bytes, weight_bytes
        self.weights = {storage_of(t) for t in (*tracer.root.parameters(), *tracer.root.buffers())}
        self.rows: dict[fx.Node, OperatorTraffic] = {}

    def size(self, tensors: Iterable[Tensor], width: float | None) -> int:
        size = 0.0
        for t in tensors:
            elements = min(t.numel(), t.untyped_storage().nbytes() // t.element_size())  # fewer where it is expanded
            size += elements * (width if width and t.is_floating_point() else t.element_size())
        return math.ceil(size)

    def run_node(self, n: fx.Node) -> Any:
        versions = {t: t._version for t in tensors_in(self.fetch_args_kwargs_from_env(n))}
        try:
            output = super().run_node(n)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"operator {label(n)} fails on this input: {first_line(error)}") from error
        if not n.op.startswith("call_") or not tensors_in(output):
            return output
        # An operator in place raises the version of an input. A view shares its storage and leaves the version.
        storages = {storage_of(t) for t in versions}
        results = {t for t, version in versions.items() if t._version != version}
        results |= {t for t in tensors_in(output) if storage_of(t) not in storages}
        module = self.submodules[n.target] if n.op == "call_module" else None
        kind = function_name(n) if module is None else kind_of(module)
        read = parameters = written = 0
        if results:
            own = [t for t in versions if storage_of(t) in self.weights]
            if isinstance(module, nn.Embedding):  # reads the rows that it is asked for
                own += results
            elif module is not None:
                own += [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
                own = own or tensors_in(module.state_dict())  # packed, where the module is quantized
            parameters = self.size(own, self.weight_bytes)
            read = self.size((t for t in versions if storage_of(t) not in self.weights), self.activation_bytes)
            written = self.size(results, self.activation_bytes)
        self.rows[n] = OperatorTraffic(label(n), kind, read, parameters, written)
        return output


def traffic(
    model: nn.Module,
    example_input: Any,
    *,
    fused: bool | None = None,
    activation_bytes: float | None = None,
    weight_bytes: float | None = None,
) -> Traffic:
    """Count the bytes that each operator reads and writes, from the tensors of a run of a copy.

    What moves no data (views, `Identity`, dropout in eval mode) counts 0 bytes. A module of torch.nn
    or a function wrapped for torch.fx is one operator, whatever it does inside. Caches are ignored.

    Args:
        model: any module that torch.fx can trace.
        example_input: the input, or a tuple of the inputs.
        fused: count each accepted fusion as one operator, which writes nothing between its parts and
            has no parameters but those of the folded layer. Default: if the model comes from `fuse`.
        activation_bytes: bytes to count for a floating-point element that is read or written: 1 stands for
            INT8, 0.5 for INT4. Default: as the tensors are.
        weight_bytes: the same for parameters.

    Raises:
        TypeError: `model` is not a module, or `forward` does not take these inputs.
        ValueError: `forward` cannot be traced or fails on these inputs, or a number of bytes is not positive.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())  # float32: 4 bytes an element
        >>> for row in traffic(model, torch.ones(5, 3)).rows:
        ...     print(row.kind, row.read, row.parameters, row.written)
        Linear 60 32 40
        ReLU 40 0 40
        >>> traffic(model, torch.ones(5, 3), fused=True).total
        132
    """
    for name, width in (("activation_bytes", activation_bytes), ("weight_bytes", weight_bytes)):
        if width is not None and not (isinstance(width, (int, float)) and 0 < width < math.inf):
            raise ValueError(f"traffic: {name} must be positive, got {width!r}: 1 stands for INT8")
    inputs = as_tuple(example_input)
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode have no version, which Meter needs
        tracer = trace(model, "traffic", inputs)
        meter = Meter(tracer, activation_bytes, weight_bytes)
        meter.run(*copies([i for i in inputs if i is None or tensors_in(i)]))
    rows = dict(meter.rows)
    if getattr(model, "_counts_as_fused", False) if fused is None else fused:
        for fusion, nodes in patterns(tracer):
            if fusion.accepted:
                rows[nodes[0]] = as_one_operator(meter, fusion, nodes)
                for node in nodes[1:]:
                    del rows[node]
    return Traffic(tuple(rows[node] for node in tracer.graph.nodes if node in rows))


def as_one_operator(meter: Meter, fusion: Fusion, nodes: list[fx.Node]) -> OperatorTraffic:
    """Return the traffic of an accepted fusion: nothing between its parts, no parameters but the folded layer's."""
    first, last = meter.rows[nodes[0]], meter.rows[nodes[-1]]
    parameters = first.parameters
    if fusion.norms:
        layer, bn = map(meter.module.get_submodule, (fusion.names[0], fusion.norms[0]))
        if layer.bias is None:  # the folded one has a bias
            parameters += meter.size([bn.running_mean], meter.weight_bytes)
    return OperatorTraffic(" + ".join(fusion.names), fusion.kind, first.read, parameters, last.written)


def storage_of(tensor: Tensor) -> int:
    """Return what tells memory apart: views of one tensor share it."""
    return tensor.untyped_storage()._cdata
