"""Modules that `forward` calls several times, of which FX makes one kernel, with one scale: that of the last call.

Where calls cannot share a kernel, later ones get a copy under a name of its own, on the same parameters: training goes
on to change one weight. Where a copy would store the weights of a layer twice, its calls share one range instead.
"""

import copy
import re
from typing import Any

from qtutor.models.operators import Trait, target_of, traits

from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

_COPY = "__call"
_BESIDE = "__read"
_COPIES = rf"({_COPY}\d+|{_BESIDE})$"


def given_name(name: str) -> str:
    """Return the name that the owner of a model gave to a module, of which this may be a copy."""
    return re.sub(_COPIES, "", name)


def copies_of(name: str) -> str:
    """Return a pattern for the names of the copies of a module."""
    return re.escape(name) + _COPIES


def call_apart(graph: Graph, root: nn.Module, weighted: tuple[type[nn.Module], ...], passed: type[nn.Module]) -> None:
    """Give calls of a module that cannot share a kernel a copy each, in place.

    Args:
        weighted: what is copied only where another norm follows a call, or a ReLU does after some calls only: FX would
            merge these into the layer, for all calls. Everything else that rounds is copied for each call.
        passed: what stays in floats, and has no scale.
    """
    kernels: dict[str, dict[Any, str]] = {}
    for node in graph.nodes:
        module = root.get_submodule(node.target) if node.op == "call_module" else None
        if module is None or isinstance(module, passed) or next(module.children(), None) is not None:
            continue
        if Trait.KEEPS_RANGE not in traits(type(module)):
            mine = kernels.setdefault(node.target, {})
            setting = _merged_into(node, root) if isinstance(module, weighted) else node
            if setting not in mine:
                mine[setting] = _copied(root, node.target, len(mine)) if mine else node.target
            node.target = mine[setting]


def _merged_into(node: Node, root: nn.Module) -> tuple[str, ...]:
    """What FX may merge into a layer at a call: the name of a batch norm, a ReLU."""
    found: list[str] = []
    while len(node.users) == 1:
        node = next(iter(node.users))
        target = target_of(node, root)
        if isinstance(target, type) and issubclass(target, _BatchNorm):
            found.append(node.target)
        elif Trait.RELU in traits(target):
            found.append("relu")
        else:
            break
    return (*found,)


def _copied(root: nn.Module, name: str, number: int) -> str:
    """Put a copy of a module beside it, on the same parameters and buffers; return its name."""
    module = root.get_submodule(name)
    owner, _, attribute = name.rpartition(".")
    kept = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    root.get_submodule(owner).add_module(f"{attribute}{_COPY}{number + 1}", copy.deepcopy(module, kept))
    return f"{name}{_COPY}{number + 1}"


def beside(root: nn.Module, layer: str, parameter: str) -> str:
    """Keep a parameter of a layer beside it too, where it can be read when another takes its place; return its name."""
    place, kept = layer + _BESIDE, root.get_submodule(layer)._parameters[parameter]
    if place not in dict(root.named_modules()):
        root.set_submodule(place, nn.Module())
    root.get_submodule(place).register_parameter(parameter, kept)
    return f"{layer}{_BESIDE}.{parameter}"


def share_ranges(prepared: GraphModule) -> None:
    """Let all calls of a layer with weights share one observer, in place, and those that share with one of them."""
    named = dict(prepared.named_modules(remove_duplicate=False))
    firsts: dict[str, nn.Module] = {}
    for node in prepared.graph.nodes:
        observer, source = named.get(str(node.target)), next(iter(node.all_input_nodes), node)
        if hasattr(observer, "calculate_qparams") and source.op == "call_module" and _is_rounded(named[source.target]):
            first = firsts.setdefault(source.target, observer)
            if first is not observer:
                for name in [name for name, each in named.items() if each is observer]:
                    prepared.set_submodule(name, first)
                    named[name] = first
                firsts = {name: first if each is observer else each for name, each in firsts.items()}


def _is_rounded(layer: nn.Module) -> bool:
    return getattr(layer, "qconfig", None) is not None and next(layer.parameters(), None) is not None
