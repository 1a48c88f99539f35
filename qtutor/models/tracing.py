"""Trace a model with torch.fx, and say in words where that, or a run, fails."""

import builtins
import functools
import inspect
import operator
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain, takewhile
from pathlib import Path
from types import FrameType
from typing import Any, get_args
from unittest import mock

from qtutor.models.copying import copy_model
from qtutor.models.known import Known
from qtutor.models.operators import PRODUCTS, check_module, function_name, kind_of
from qtutor.models.running import at_line, line_at, passing
from qtutor.models.tensors import tensors_in

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_MOST = 16  # inputs that a `*inputs` is taken to stand for
_NOT_THEIRS = (sysconfig.get_path("purelib"), str(Path(__file__).parent.parent))
_TORCH = str(Path(torch.__file__).parent)
_TRACE = fx.Tracer.trace.__code__
_SIZED = (
    *((torch, name) for name in ("zeros", "ones", "empty", "rand", "randn", "tensor", "as_tensor")),
    *((Tensor, name) for name in ("expand", "new_zeros", "new_ones", "new_empty")),
)
"""What takes sizes, or numbers, for which PyTorch takes no stand-in."""
_PARTS = ("chunks", "split_size_or_sections", "split_size")  # how torch.chunk and torch.split call their number
ONE_AT_A_TIME = threading.RLock()
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Proxy(fx.Proxy):
    """Stands for a value in a trace; errors of PyTorch name its class."""

    def __getattr__(self, k: str) -> Any:
        """Answer for the weight of a layer at once, which another layer may take the place of."""
        if k in ("dtype", "device") and self.node.op == "get_attr" and self.tracer.in_layer(self.node):
            return self.tracer.dtype_of(self.node) if k == "dtype" else torch.device("cpu")
        return super().__getattr__(k)


def _augmented(operation: Callable) -> Callable:
    def assign(self: Proxy, other: Any) -> Any:
        self.tracer.written[line_at(sys._getframe(1))] = None
        return operation(self, other)

    return assign


for _name in ("add", "sub", "mul", "truediv", "pow"):  # x += y is recorded as x = x + y
    setattr(Proxy, f"__i{_name}__", _augmented(getattr(operator, _name)))


class Call(Known):
    """Traces one kind of call, at which arguments that have a default are bound, so that Python may branch on them.

    Attributes:
        inputs: of the call; None for what `forward` takes by all means.
        stars: how many inputs a `*inputs` stands for, and which names a `**inputs`, where nobody said.
        asked: " at file:line: `code`" of each line that asks for the class of what may be a tensor or not.
        written: of each line that writes in place as in x += y, which is not recorded.
    """

    inputs: tuple | None = None
    stars: tuple[int, tuple[str, ...]] = (1, ())

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.asked: dict[str, None] = {}
        self.written: dict[str, None] = {}

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Record forward, to which stand-ins that are known to be tensors pass for such.

        They do so by another `isinstance`, for a `__class__` that says Tensor would deceive PyTorch's C++, too. NumPy
        leaves numbers of its own on the left of a stand-in to that. One thread traces at a time, or what is put in
        place of PyTorch's functions would stay.
        """
        self.modules = {*root.modules()}
        with ONE_AT_A_TIME, ExitStack() as patches:
            patch = mock.patch.object
            patches.enter_context(patch(builtins, "isinstance", functools.partial(self._is_instance, isinstance)))
            patches.enter_context(patch(fx.Proxy, "__array_ufunc__", None, create=True))
            for name in ("finfo", "iinfo"):
                patches.enter_context(patch(torch, name, functools.partial(self.of_known, getattr(torch, name))))
            for home, name in _SIZED:
                patches.enter_context(patch(home, name, self._recording(home, name)))
            patches.enter_context(_Indexing(self))
            return super().trace(root, concrete_args)

    def _recording(self, home: Any, name: str) -> Callable:
        """A function or method of PyTorch that is recorded where a stand-in is among its arguments."""
        original = getattr(home, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not _holds_stand_in((args, kwargs)):
                return original(*args, **kwargs)
            kind, target = ("call_function", original) if home is torch else ("call_method", name)
            return self.create_proxy(kind, target, args, kwargs)

        return call

    def _is_instance(self, original: Callable, value: Any, kinds: Any) -> bool:
        if type(value) is not Proxy or Tensor not in (kinds if type(kinds) is tuple else get_args(kinds) or (kinds,)):
            return original(value, kinds)
        frame = sys._getframe(1)
        if frame.f_code is torch.is_tensor.__code__ and frame.f_back:
            frame = frame.f_back
        if f"{frame.f_globals.get('__name__')}.".startswith(("torch.", "qtutor.")):
            return original(value, kinds)
        if not self.gives_tensor(value.node):
            self.asked[line_at(frame)] = None
        return self.gives_tensor(value.node)

    def iter(self, obj: fx.Proxy) -> Iterator:
        """Loop over parts of which the call says how many there are, as torch.chunk does."""
        name = getattr(obj.node.target, "__name__", obj.node.target)
        named = (obj.node.kwargs[each] for each in _PARTS if each in obj.node.kwargs)
        parts = next(chain(obj.node.args[1:2], named), None)
        if name == "split" and isinstance(parts, Sequence):
            parts = len(parts)
        elif name != "chunk":
            parts = None
        return iter([obj[i] for i in range(parts)]) if isinstance(parts, int) else super().iter(obj)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        """Follow a module without weights that forward makes, as nn.ReLU()(x)."""
        if m not in self.modules and next(m.parameters(), None) is None:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a node while forward runs."""
        return Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Note the user's lines that a node stands for, without the compiler that PyTorch would import to note them."""
        self.record_stack_traces = False
        node = super().create_node(*args, **kwargs)
        steps = takewhile(lambda step: step[0].f_code is not _TRACE, traceback.walk_stack(inspect.currentframe()))
        theirs = [step for step in steps if not step[0].f_code.co_filename.startswith(_NOT_THEIRS)]
        node.stack_trace = "".join(traceback.StackSummary.extract(theirs[::-1]).format()) or None
        return node

    def create_arg(self, a: Any) -> Any:
        """Keep the class of a mapping with attributes, such as an output with logits, as torch.fx does of a record.

        A number of NumPy's becomes one of Python's, which the code of a trace can hold.
        """
        if isinstance(a, np.generic):
            a = a.item()
        if isinstance(a, dict) and type(a) is not dict and all(isinstance(name, str) for name in a):
            return self.create_node("call_function", type(a), (), {name: self.create_arg(a[name]) for name in a})
        return super().create_arg(a)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple:
        def stand_in(name: str) -> fx.Proxy:
            return self.create_proxy("placeholder", name, (), {})

        def taken(name: str, value: Any) -> Any:
            if value is None:
                stand_in(name)  # what is left out keeps its place
                return None
            if isinstance(value, Tensor):
                with torch._C.DisableTorchFunction():  # nothing is computed, whoever watches
                    self.dtypes[name] = value.dtype
            return stand_in(name) if tensors_in(value) else value

        signature = inspect.signature(self.root.forward)
        if self.inputs is not None:
            bound = signature.bind(*self.inputs)
            for name, value in bound.arguments.items():
                if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                    bound.arguments[name] = tuple(taken(f"{name}_{i}", each) for i, each in enumerate(value))
                else:
                    bound.arguments[name] = taken(name, value)
        else:
            values: dict[str, Any] = {}
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_POSITIONAL:
                    values[name] = tuple(stand_in(f"{name}_{i}") for i in range(self.stars[0]))
                elif parameter.kind is parameter.VAR_KEYWORD:
                    values[name] = {each: stand_in(each) for each in self.stars[1]}
                elif parameter.default is parameter.empty:
                    values[name] = stand_in(name)
            bound = inspect.BoundArguments(signature, values)
        return functools.partial(self.root.forward, *bound.args, **bound.kwargs), []

    def asked_for(self, error: Exception) -> tuple[int, tuple[str, ...]] | None:
        """Return the stars with which a trace that failed may go on: one more, if that is what it missed."""
        kinds = {parameter.kind for parameter in inspect.signature(self.root.forward).parameters.values()}
        count, names = self.stars
        if self.inputs is not None or count == _MOST:
            return None
        if isinstance(error, KeyError) and inspect.Parameter.VAR_KEYWORD in kinds and error.args[0] not in names:
            return count, (*names, error.args[0])
        short = isinstance(error, IndexError) or "not enough values to unpack" in str(error)
        return (count + 1, names) if short and inspect.Parameter.VAR_POSITIONAL in kinds else None


class _Indexing(TorchFunctionMode):
    """Records where a tensor is indexed by a stand-in.

    Another `__getitem__` in place of PyTorch's would have its C++ take each number for a sequence, for good.
    """

    def __init__(self, tracer: Call):
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[0], Tensor) and _holds_stand_in(args[1]):
            return self.tracer.create_proxy("call_function", operator.getitem, args, {})
        return func(*args, **(kwargs or {}))


def _holds_stand_in(value: Any) -> bool:
    found: list[fx.Proxy] = []
    map_aggregate(value, lambda each: found.append(each) if isinstance(each, fx.Proxy) else None)
    return bool(found)


class Tracer(Call):
    """Record the `forward` of `root`, and what it and others look at on the way."""

    def __init__(self, root: nn.Module, inputs: tuple | None, stars: tuple[int, tuple[str, ...]] = (1, ())):
        super().__init__()
        self.inputs, self.stars = inputs, stars
        self.watched: set[fx.Node] = set()  # what goes into or comes out of a block with hooks
        self.looked_up: set[int] = set()  # ids of parameters and buffers that `forward` itself takes from a module
        self.dims: dict[str, int] = {}  # of what each batch norm gets, where a call showed it
        self.hooked = {m for m in root.modules() if has_hooks(m) and not self.is_leaf_module(m, "")}
        for module in self.hooked:  # a hook expects tensors: it would fail on, or keep, the stand-ins of a trace
            clear_hooks(module)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        subclass = isinstance(m, (*PRODUCTS, _BatchNorm)) and next(m.children(), None) is None
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


def trace(model: nn.Module, caller: str, inputs: tuple | None = None) -> Tracer:
    """Trace a copy of the model, for a trace may leave constants and stand-ins behind in the modules."""
    check_module(model, caller)
    if inputs is not None:
        if arrays := [kind_of(v) for v in tree_leaves(inputs) if hasattr(v, "__array__") and not isinstance(v, Tensor)]:
            raise TypeError(f"{caller} needs tensors, got {arrays[0]}: torch.as_tensor makes one of it")
        inspect.signature(model.forward).bind(*inputs)
    stars: tuple[int, tuple[str, ...]] | None = (1, ())
    while stars:
        root = copy_model(model)
        tracer = Tracer(root, inputs, stars)
        try:
            tracer.trace(root)
            if inputs is not None:
                tracer.dims = norm_dims(model, inputs)
            return tracer
        except Exception as error:
            problem, stars = error, tracer.asked_for(error)
    raise ValueError(
        f"{caller} cannot trace {kind_of(model)}{where(problem)}\n{kind_of(problem)}: {problem}\n"
        "forward is recorded without values, so Python cannot branch or loop on a tensor there. Write the line with "
        f"tensor operations (torch.where), or call {caller} on the submodules that have no such line, one by one."
    )


def refuse_left_out(model: nn.Module, inputs: tuple) -> None:
    """Have a model that was traced for a call refuse inputs that this call leaves out, in place."""
    if not isinstance(model, fx.GraphModule) or all(value is not None for value in inputs):
        return
    places = [node for node in model.graph.nodes if node.op == "placeholder"]
    with model.graph.inserting_before(places[-1].next):
        for node, value in zip(places, inputs, strict=True):
            if value is None:
                said = f"{node.name} is given, and the model was traced for calls that leave it out"
                model.graph.call_function(torch._assert, (model.graph.call_function(operator.is_, (node, None)), said))
    model.recompile()


def norm_dims(model: nn.Module, inputs: tuple) -> dict[str, int]:
    """Return of how many dimensions is what a batch norm gets in a call, by name; nothing where the call fails.

    BatchNorm2d and 3d take one number of dimensions only, and are left out: mostly nothing has to run.
    """
    images = (nn.BatchNorm2d, nn.BatchNorm3d)
    norms = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and not isinstance(m, images)]
    with suppress(Exception), torch.inference_mode(False):
        seen = passing(copy_model(model), norms, inputs) if norms else {}
        return {name: given[0].dim() for name, (given, _) in seen.items() if given}
    return {}


def where(error: BaseException) -> str:
    """Return " at file:line: `code`" for the innermost line of the user's code.

    Else of another package's, else of torch.nn's. Without the code where it was typed in and not kept; empty
    where there is no such line.
    """

    def blameless(frame: FrameType) -> bool:
        package, file = frame.f_globals.get("__name__", "").partition(".")[0], frame.f_code.co_filename
        if not package or file.startswith("<eval_with_key>"):  # which a program wrote, as torch.fx does
            return True
        if package == __name__.partition(".")[0]:  # ours are to blame where they are a model
            return not isinstance(frame.f_locals.get("self"), nn.Module)
        return package in ("torch", "torchao", "sympy", "typing_extensions") or package in sys.stdlib_module_names

    steps = [*traceback.walk_tb(error.__traceback__)]
    layers = [
        step
        for step in steps
        if (module := step[0].f_globals.get("__name__", "")).startswith(("torch.nn.modules.", "torch.nn.functional"))
        and module != "torch.nn.modules.module"
    ]
    lines = traceback.StackSummary.extract([step for step in steps if not blameless(step[0])] or layers)
    lines = [line for line in lines if not line.filename.startswith(sysconfig.get_path("purelib"))] or lines
    if not lines:
        return ""
    return at_line(lines[-1].filename, lines[-1].lineno, lines[-1].line)


def line_of(node: fx.Node) -> str:
    """Return " at file:line: `code`" for the line of the user's that a node stands for; "" where nobody noted it."""
    theirs = [line for line in _lines(node) if not line[0].startswith(_NOT_THEIRS)]
    return at_line(*theirs[-1]) if theirs else ""


def calling_line(node: fx.Node) -> tuple[str, int, str] | None:
    """Return file, line and code where the innermost forward makes a call; None where that is PyTorch's."""
    file, number, code = (_lines(node) or [(_TORCH, "0", "")])[-1]
    return None if file.startswith(_TORCH) else (file, int(number), code)


def _lines(node: fx.Node) -> list[tuple[str, str, str]]:
    """File, line and code of each call that led to a node, the innermost last."""
    return re.findall(r'File "(.+?)", line (\d+), in .+\n +(.*)', node.meta.get("stack_trace") or "")


def works_in_place(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node of a traced model changes what it gets."""
    if not node.all_input_nodes:
        return False
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(node.target), "inplace", False))
    name = node.target if node.op == "call_method" else getattr(node.target, "_opname", function_name(node))
    return bool(node.kwargs.get("inplace")) or (changes(name) and name != "__setitem__")


def changes(name: str) -> bool:
    """Whether a function or method of that name writes into what it gets."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches or changes what goes into or comes out of a module."""
    return any(getattr(module, hooks) for hooks in _HOOKS)


def clear_hooks(module: nn.Module) -> None:
    """Take all hooks off a module."""
    for hooks in _HOOKS:
        getattr(module, hooks).clear()


def is_altered(module: nn.Module) -> bool:
    """Whether a module does more than its class says: by hooks, or by a forward that was put on it alone."""
    return has_hooks(module) or "forward" in vars(module)


def label(node: fx.Node) -> str:
    """Name an operator: a module by its qualified name, a function as in "block.relu()"."""
    if node.op == "output":
        return "the output of the model"
    if node.op not in ("call_function", "call_method"):
        return str(node.target)
    scope = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return ".".join([*scope[-1:], f"{function_name(node)}()"])
