"""What the owner's own code asks of layers beside calling them: their weights, or their class.

A layer that takes the place of another answers neither. The source is read and not run; where there is none, nothing
is found. All that `forward` may lead to counts: methods by their names, and the functions of the same file.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType, ModuleType
from typing import Any

from qtutor.models.operators import kind_of

from torch import nn

_ALL = ("parameters", "named_parameters", "state_dict", "all_weights")
_NAMES = ("__name__", "_get_name")


def bound_by_source(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the names of those layers of a model that cannot make way for another class, with the reason of each."""
    names = {layer: name for name, layer in layers.items()}
    found: dict[str, str] = {}
    reached = _reached(model)
    for owner in model.modules():
        mine = {layer for layer in owner.modules() if layer in names}
        for method, function in _own(owner) if mine else ():
            for reader in reached.get(function, ()):
                for layer, what in _Asked(owner, reader, mine).pairs():
                    found.setdefault(names[layer], f"{method} of {kind_of(owner)} {what}")
    return {name: found[name] for name in layers if name in found}


class _Reader:
    """A function: its tree, what its names mean, and the one that stands for the module, "" if none does."""

    def __init__(self, function: FunctionType, is_method: bool):
        code = function.__code__
        free = zip(code.co_freevars, function.__closure__ or (), strict=True)
        self.local = {*code.co_varnames, *code.co_cellvars}
        self.names = function.__globals__ | {name: cell.cell_contents for name, cell in free if cell != CellType()}
        self.itself = code.co_varnames[0] if is_method and code.co_argcount else ""
        try:
            source = inspect.getsource(function)
            tree: ast.AST = ast.parse(f"if True:\n{source}" if source[:1].isspace() else source)
        except (OSError, TypeError, SyntaxError):
            tree = ast.Module([], [])
        self.nodes = [*_walk(tree)]
        if function.__name__ == "<lambda>":  # its source is the whole statement that it stands in
            given = [*code.co_varnames[: code.co_argcount]]
            same = [n for n in self.nodes if isinstance(n, ast.Lambda) and [a.arg for a in n.args.args] == given]
            self.nodes = [below for node in same for below in _walk(node)]
        self.attributes = {node.attr for node in self.nodes if isinstance(node, ast.Attribute)}

    def helpers(self) -> list[FunctionType]:
        meant = (self.names.get(node.id) for node in self.nodes if isinstance(node, ast.Name))
        home = self.names.get("__name__")
        return [each for each in meant if isinstance(each, FunctionType) and each.__module__ == home]


class _Asked:
    """What a function of a module asks of the layers below it."""

    def __init__(self, owner: nn.Module, reader: _Reader, layers: set[nn.Module]):
        self.owner, self.reader, self.layers = owner, reader, layers

    def pairs(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield each layer of which something is asked, and what."""
        for node in self.reader.nodes:
            if isinstance(node, ast.Attribute):
                for layer in self.read(node):
                    yield layer, f"reads its {node.attr} itself"
            for kind in self.classes(node):
                for layer in self.layers:
                    if isinstance(layer, kind):
                        yield layer, f"branches on the class {kind.__name__}, and a quantized layer has another"

    def read(self, node: ast.Attribute) -> list[nn.Module]:
        """The layers whose parameters an expression such as self.fc.weight means."""
        holders, sure = self.modules(node.value)
        if node.attr in _ALL and sure:
            below = {each for holder in holders for each in holder.modules()} & self.layers
            gone = {id(p) for layer in below for p in layer.parameters()}
            return [*below] if all(id(p) in gone for holder in holders for p in holder.parameters()) else []
        known = sure or node.attr.startswith("weight")
        return [each for each in holders if known and each in self.layers and node.attr in each._parameters]

    def modules(self, node: ast.expr) -> tuple[list[nn.Module], bool]:
        """The modules that an expression may mean, and whether it surely means these."""
        if isinstance(node, ast.Name):
            if node.id == self.reader.itself:
                return [self.owner], True
            return ([*self.owner.modules()], False) if node.id in self.reader.local else ([], True)
        if isinstance(node, ast.Attribute):
            holders, sure = self.modules(node.value)
            children = [child for each in holders if (child := each._modules.get(node.attr)) is not None]
            if children or not any(isinstance(getattr(type(each), node.attr, None), property) for each in holders):
                return children, sure
            return [below for each in holders for below in each.modules()], False
        if isinstance(node, ast.Subscript):
            holders, sure = self.modules(node.value)
            place = str(getattr(node.slice, "value", ""))
            exact = [each._modules[place] for each in holders if place in each._modules]
            return (exact, sure) if exact else ([below for each in holders for below in each.modules()], False)
        return ([*self.owner.modules()], False) if isinstance(node, ast.Call) else ([], True)

    def classes(self, node: ast.AST) -> list[type]:
        """The classes of layers that an expression such as nn.Linear means, or a tuple of them."""
        if isinstance(node, ast.Constant) and self.reader.attributes & {*_NAMES}:
            return [*{type(layer) for layer in self.layers if type(layer).__name__ == node.value}]
        value = self.value(node)
        several = [*value] if isinstance(value, (tuple, list, set, frozenset, dict)) else [value]
        kinds = [each for each in several if isinstance(each, type) and issubclass(each, nn.Module)]
        return [kind for kind in kinds if kind is not nn.Module]

    def value(self, node: ast.AST) -> Any:
        """What an expression such as a name, nn.Linear or self.kinds means, as far as it can be told without a run."""
        if isinstance(node, ast.Name):
            return self.owner if node.id == self.reader.itself else self.reader.names.get(node.id)
        if isinstance(node, ast.Attribute) and isinstance(
            home := self.value(node.value), (ModuleType, type, nn.Module)
        ):
            return inspect.getattr_static(home, node.attr, None)
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
            each = getattr(each, "fget", None) or getattr(each, "__func__", None) or getattr(each, "func", None) or each
            function = inspect.unwrap(each) if isinstance(each, FunctionType) and name not in hidden else None
            if isinstance(function, FunctionType):
                if "super" not in function.__code__.co_names:
                    hidden.add(name)
                if not f"{function.__module__}.".startswith("torch."):
                    found.append((name, function))
    return found


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, without annotations and decorators."""
    yield node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _walk(child)
