"""The numbers in the code of a traced model, which are part of its state though no tensor holds them.

A trace fixes what `item()` gave, and a PT2E model has its scales and zero points there. They go by the names of the
nodes of the graph. A state dict takes them along in its metadata, beside the versions of the modules.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate


def calls(model: nn.Module) -> dict[str, Node]:
    """The nodes of a graph that hold numbers which a trace found, by names that no tensor can have.

    In PT2E these are the ones that map between numbers and codes: others read buffers anew, and sizes have any name.
    """
    if not isinstance(model, GraphModule):
        return {}
    codecs = [node for node in model.graph.nodes if str(node.target).startswith("quantized_decomposed.")]
    nodes = codecs if _is_pt2e(model) else model.graph.nodes
    return {f"{node.name}()": node for node in nodes if numbers_of(node)}


def _is_pt2e(model: GraphModule) -> bool:
    recipe = model.meta.get("qtutor")
    return bool(recipe) and recipe.flow == "pt2e"


def numbers_of(node: Node) -> list[float]:
    """The numbers among the arguments of a node."""
    found: list[float] = []
    map_aggregate((node.args, node.kwargs), lambda arg: found.append(arg) if _is_number(arg) else None)
    return found


def put(model: nn.Module, found: Mapping[str, list[float]]) -> None:
    """Put numbers, as many as are there, in the place of those in the code of a model."""
    for name, node in calls(model).items():
        numbers = iter(found[name])
        given = node.args, node.kwargs
        node.args, node.kwargs = map_aggregate(given, lambda a, left=numbers: next(left) if _is_number(a) else a)
    if isinstance(model, GraphModule):
        model.recompile()


def travel_with_state(model: GraphModule) -> None:
    """Have `state_dict` note the numbers of a model, and `load_state_dict` put them there."""
    if _note not in model._state_dict_hooks.values():
        model.register_state_dict_post_hook(_note)
        model.register_load_state_dict_pre_hook(_take)


def _note(model: nn.Module, state: dict, prefix: str, metadata: dict[str, Any]) -> None:
    metadata["numbers"] = {name: numbers_of(node) for name, node in calls(model).items()}


def _take(model: GraphModule, state: dict, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
    here, errors = {name: numbers_of(node) for name, node in calls(model).items()}, rest[-1]
    there = metadata.get("numbers", here)  # a plain dict has none
    if here and _is_pt2e(model) and "numbers" not in metadata and any(name.startswith(prefix) for name in state):
        errors.append(
            "a PT2E model has its scales in the metadata of its state_dict(), which this dict lacks: pass the "
            "state_dict() itself, or use workflows.save and load"
        )
    elif differ := [name for name in here | there if len(here.get(name, ())) != len(there.get(name, ()))]:
        errors.append(f"the state is of a model that calls something else: they differ in {', '.join(differ[:3])}")
    else:  # though they be the same: what was compiled holds the weights of before
        put(model, there)


def _is_number(arg: Any) -> bool:
    return isinstance(arg, (int, float))
