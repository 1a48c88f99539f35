"""What the owner's own code asks of layers beside calling them: their weights, or their class.

A layer that takes the place of another answers neither, and loses hooks and a forward that were put on that. The
bytecode is read and not run: it is there where no source is, as in a console or a frozen program. All that `forward`
may lead to counts: methods by their names, and functions, of the owner's other files too. A layer below a `forward`
that is no Python function counts as asked.
"""

import dis
import inspect
import sysconfig
from collections.abc import Iterator, Mapping
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from qtutor.models.operators import kind_of
from qtutor.models.tracing import is_altered

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import stateless

_ALL = ("parameters", "named_parameters", "state_dict", "all_weights")
_NAMES = ("__name__", "_get_name")
_USING = {
    "differentiates, which no INT8 or 4-bit layer can": (
        *(torch.autograd.grad, torch.autograd.backward, torch.func.grad, torch.func.grad_and_value, torch.func.vjp),
        *(torch.func.jvp, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian),
        *(getattr(torch.autograd.functional, name) for name in ("jacobian", "hessian", "vjp", "jvp", "hvp", "vhp")),
    ),
    "gives layers other weights by functional_call": (functional_call, stateless.functional_call),
}
"""Functions that need the layers as they are, by what one says of a method that uses them."""
_BY_TEXT = ("getattr", "get_parameter")
_NAMED = {*dis.haslocal, *dis.hasfree, *dis.hasname}
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_IDLE = ("EXTENDED_ARG", "CACHE", "NOP")


def bound_by_code(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the names of those layers of a model that cannot make way for another class, with the reason of each."""
    names = {layer: name for name, layer in layers.items()}
    lost = "it has hooks or a forward of its own, which would be lost"
    found = {name: lost for name, layer in layers.items() if is_altered(layer)}
    reached = _reached(model)
    for owner in model.modules():
        mine = {layer for layer in owner.modules() if layer in names}
        if mine and not _function(vars(owner).get("forward", type(owner).forward)):
            sealed = f"forward of {kind_of(owner)} has no code to read, and may ask for its class or weight"
            found = {names[layer]: sealed for layer in mine} | found
        for method, function in _own(owner) if mine else ():
            for reader in reached.get(function, ()):
                for layer, what in _Asked(owner, reader, mine).pairs():
                    found.setdefault(names[layer], f"{method} of {kind_of(owner)} {what}")
    return {name: found[name] for name in layers if name in found}


class _Expression(NamedTuple):
    """What stands in code: a name, an attribute or an item of something, a constant, or what cannot be told."""

    kind: str = "unknown"
    what: Any = None
    of: Any = None


_UNKNOWN = _Expression()


def _expressions(code: CodeType) -> Iterator[_Expression]:
    """Yield the expressions that a function computes, and those of the functions inside it."""
    stack: list[_Expression] = []
    for step in dis.get_instructions(code):
        top, below = [_UNKNOWN, _UNKNOWN, *stack][:-3:-1]
        if step.opname in _IDLE:
            continue
        if step.opname.endswith(("_ATTR", "_METHOD")):
            stack = [*stack[:-1], _Expression("attribute", step.argval, top)]
        elif step.opname == "BINARY_SUBSCR" or step.argrepr == "[]":
            stack = [*stack[:-2], _Expression("item", top.what, below)]
        elif step.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            stack.append(_Expression("constant", step.argval))
        elif "LOAD_" in step.opname and step.opcode in _NAMED:
            name = step.argval[-1] if isinstance(step.argval, tuple) else step.argval  # of two that one step loads
            stack.append(_Expression("name", name))
        else:
            stack = []
            continue
        yield stack[-1]
    for inner in _inside(code):
        yield from _expressions(inner)


def _local(code: CodeType) -> set[str]:
    """The names of the variables of a function, and of the functions inside it."""
    return {*code.co_varnames, *code.co_cellvars}.union(*map(_local, _inside(code)))


def _inside(code: CodeType) -> list[CodeType]:
    return [each for each in code.co_consts if isinstance(each, CodeType)]


def _texts(constant: _Expression) -> list[str]:
    several = constant.what if isinstance(constant.what, (tuple, frozenset)) else [constant.what]
    return [text for text in several if isinstance(text, str)]


class _Reader:
    """A function: what stands in it, what its names mean, and the one that stands for the module, "" if none does."""

    def __init__(self, function: FunctionType, is_method: bool):
        code = function.__code__
        free = zip(code.co_freevars, function.__closure__ or (), strict=True)
        self.local = _local(code)
        self.names = function.__globals__ | {name: cell.cell_contents for name, cell in free if cell != CellType()}
        self.itself = code.co_varnames[0] if is_method and code.co_argcount else ""
        self.expressions = [*_expressions(code)]
        if any(each.what in _BY_TEXT for each in self.expressions):
            texts = [text for each in self.expressions if each.kind == "constant" for text in _texts(each)]
            self.expressions += [_Expression("attribute", text, _UNKNOWN) for text in texts]
        self.attributes = {each.what for each in self.expressions if each.kind == "attribute"}

    def helpers(self) -> list[FunctionType]:
        meant = (self.names.get(each.what) for each in self.expressions if each.kind == "name")
        home = self.names.get("__name__")
        functions = [each for each in meant if isinstance(each, FunctionType)]
        return [each for each in functions if each.__module__ == home or _is_theirs(each)]


class _Asked:
    """What a function of a module asks of the layers below it."""

    def __init__(self, owner: nn.Module, reader: _Reader, layers: set[nn.Module]):
        self.owner, self.reader, self.layers = owner, reader, layers

    def pairs(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield each layer of which something is asked, and what."""
        for each in self.reader.expressions:
            if each.kind == "attribute":
                for layer in self.read(each):
                    yield layer, f"reads its {each.what} itself"
            for kind in self.classes(each):
                for layer in self.layers:
                    if isinstance(layer, kind):
                        yield layer, f"branches on the class {kind.__name__}, and a quantized layer has another"
            meant = self.value(each) if each.kind in ("name", "attribute") else None
            for said in (said for said, functions in _USING.items() if any(meant is one for one in functions)):
                for layer in self.layers:
                    yield layer, said

    def read(self, attribute: _Expression) -> list[nn.Module]:
        """The layers whose parameters an expression such as self.fc.weight means."""
        holders, sure = self.modules(attribute.of)
        if attribute.what in _ALL:
            return [layer for holder in holders for layer in self.emptied(holder)]
        known = sure or attribute.what.startswith("weight")
        return [each for each in holders if known and each in self.layers and attribute.what in each._parameters]

    def emptied(self, holder: nn.Module) -> set[nn.Module]:
        """The layers below a module that would leave it no parameter."""
        below = {*holder.modules()} & self.layers
        gone = {id(p) for layer in below for p in layer.parameters()}
        return below if all(id(p) in gone for p in holder.parameters()) else set()

    def modules(self, of: _Expression) -> tuple[list[nn.Module], bool]:
        """The modules that an expression may mean, and whether it surely means these."""
        if of.kind == "name":
            if of.what == self.reader.itself:
                return [self.owner], True
            return ([*self.owner.modules()], False) if of.what in self.reader.local else ([], True)
        if of.kind == "attribute":
            holders, sure = self.modules(of.of)
            children = [child for each in holders if (child := each._modules.get(of.what)) is not None]
            if children or not any(isinstance(getattr(type(each), of.what, None), property) for each in holders):
                return children, sure
            return [below for each in holders for below in each.modules()], False
        if of.kind == "item":
            holders, sure = self.modules(of.of)
            exact = [each._modules[str(of.what)] for each in holders if str(of.what) in each._modules]
            return (exact, sure) if exact else ([below for each in holders for below in each.modules()], False)
        return ([*self.owner.modules()], False) if of.kind == "unknown" else ([], True)

    def classes(self, each: _Expression) -> list[type]:
        """The classes of layers that an expression such as nn.Linear means, or a tuple of them."""
        if each.kind == "constant" and self.reader.attributes & {*_NAMES}:
            return [*{type(layer) for layer in self.layers if type(layer).__name__ in _texts(each)}]
        value = self.value(each)
        several = [*value] if isinstance(value, (tuple, list, set, frozenset, dict)) else [value]
        kinds = [each for each in several if isinstance(each, type) and issubclass(each, nn.Module)]
        return [kind for kind in kinds if kind is not nn.Module]

    def value(self, of: _Expression) -> Any:
        """What an expression such as a name, nn.Linear or self.kinds means, as far as it can be told without a run."""
        if of.kind == "name":
            return self.owner if of.what == self.reader.itself else self.reader.names.get(of.what)
        if of.kind == "attribute" and isinstance(home := self.value(of.of), (ModuleType, type, nn.Module)):
            return inspect.getattr_static(home, of.what, None)
        return None


def _reached(model: nn.Module) -> dict[FunctionType, list[_Reader]]:
    """The functions of a model's own classes to which forward may lead, each with those that help it."""
    left = {pair for module in model.modules() for pair in _own(module)}
    names, reached = {"forward"}, {}
    while ready := {pair for pair in left if pair[0] in names}:
        left -= ready
        for _, function in ready:
            readers, queue = {function: _Reader(function, True)}, [function]
            while queue:
                for helper in readers[queue.pop()].helpers():
                    if helper not in readers:
                        readers[helper] = _Reader(helper, False)
                        queue.append(helper)
            reached[function] = [*readers.values()]
            names |= {name for reader in reached[function] for name in reader.attributes}
    return reached


def _own(module: nn.Module) -> list[tuple[str, FunctionType]]:
    """The functions of a module and its classes that are not PyTorch's, with the names by which they are called.

    What a class overrides counts only where super() may lead to it.
    """
    found, hidden = [], set()
    for holder in (module, *type(module).__mro__):
        for name, each in vars(holder).items():
            function = None if name in hidden else _function(each)
            if function:
                if "super" not in function.__code__.co_names:
                    hidden.add(name)
                if not f"{function.__module__}.".startswith("torch."):
                    found.append((name, function))
    return found


def _is_theirs(function: FunctionType) -> bool:
    """Whether a function stands in no installed package."""
    return not function.__code__.co_filename.startswith(_INSTALLED)


def _function(each: Any) -> FunctionType | None:
    """The function behind what a class holds, such as a property, or None."""
    each = getattr(each, "fget", None) or getattr(each, "__func__", None) or getattr(each, "func", None) or each
    found = inspect.unwrap(each) if isinstance(each, FunctionType) else None
    return found if isinstance(found, FunctionType) else None
