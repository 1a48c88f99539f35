"""Which tensors go where in a model, and how many bytes that moves.

A model is traced with torch.fx, on a copy of it; then it runs operator by operator, on real tensors.
"""

import functools
import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qtutor.capture import where
from qtutor.models.copying import copy_model

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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


class Tracer(fx.Tracer):
    """Record the `forward` of `root`: for a call with `inputs`, or with what it takes by all means."""

    def __init__(self, root: nn.Module, inputs: tuple | None):
        super().__init__()
        self.inputs = inputs
        self.watched: set[fx.Node] = set()  # what goes into or comes out of a block with hooks
        self.looked_up: set[int] = set()  # ids of parameters and buffers that `forward` itself takes from a module
        self.hooked = {m for m in root.modules() if has_hooks(m) and not self.is_leaf_module(m, "")}
        for module in self.hooked:  # a hook expects tensors: it would fail on, or keep, the stand-ins of a trace
            for hooks in _HOOKS:
                getattr(module, hooks).clear()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        subclass = isinstance(m, (nn.Linear, _ConvNd, _BatchNorm)) and next(m.children(), None) is None
        return subclass or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        if isinstance(attr_val, Tensor):
            self.looked_up.add(id(attr_val))
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if m in self.hooked:
            self.watched.update(v.node for v in tree_leaves((args, kwargs, output)) if isinstance(v, fx.Proxy))
        return output

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple:
        def stand_in(name: str) -> fx.Proxy:
            return self.create_proxy("placeholder", name, (), {})

        signature = inspect.signature(self.root.forward)
        if self.inputs is None:
            needed = [p for p in signature.parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
            values = {p.name: (stand_in(p.name),) if p.kind is p.VAR_POSITIONAL else stand_in(p.name) for p in needed}
            bound = inspect.BoundArguments(signature, values)
        else:
            bound = signature.bind(*(stand_in(f"input_{i}") if tensors_in(v) else v for i, v in enumerate(self.inputs)))
        return functools.partial(self.root.forward, *bound.args, **bound.kwargs), []


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
            raise kind(f"operator {label(n)} fails on this input: {str(error).partition(chr(10))[0]}") from error
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


def trace(model: nn.Module, caller: str, inputs: tuple | None = None) -> Tracer:
    """Trace a copy of the model, for a trace may leave constants and stand-ins behind in the modules."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller} needs a torch.nn.Module, got {kind_of(model)}")
    if inputs is not None:
        if arrays := [kind_of(v) for v in tree_leaves(inputs) if hasattr(v, "__array__") and not isinstance(v, Tensor)]:
            raise TypeError(f"{caller} needs tensors, got {arrays[0]}: torch.as_tensor makes one of it")
        inspect.signature(model.forward).bind(*inputs)
    root = copy_model(model)
    tracer = Tracer(root, inputs)
    try:
        tracer.trace(root)
    except Exception as error:
        raise ValueError(
            f"{caller} cannot trace {kind_of(model)}{where(error)}\n{kind_of(error)}: {error}\n"
            "A trace passes stand-ins without values, so Python cannot branch, loop or compute on them. Write the line "
            "with tensor operations (torch.where), or treat the submodules that have no such line one by one."
        ) from None
    return tracer


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches or changes what goes into or comes out of a module."""
    return any(getattr(module, hooks) for hooks in _HOOKS)


def label(node: fx.Node) -> str:
    """Name an operator: a module by its qualified name, a function as in "block.relu()"."""
    if node.op == "output":
        return "the output of the model"
    if node.op not in ("call_function", "call_method"):
        return str(node.target)
    scope = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return ".".join([*scope[-1:], f"{function_name(node)}()"])


def function_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls."""
    return getattr(node.target, "__name__", str(node.target))


def kind_of(value: object) -> str:
    """Return the name of the class."""
    return type(value).__name__


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """Return what tells memory apart: views of one tensor share it."""
    return tensor.untyped_storage()._cdata
