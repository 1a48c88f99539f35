"""Infinity, which a mask adds to scores: no scale holds it, so what reads it must read no codes."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from qtutor.models.tracing import label, line_of
from qtutor.workflows import fx
from qtutor.workflows.recipe import Recipe
from qtutor.workflows.refusals import Refused

from torch import Tensor, nn
from torch.fx import GraphModule, Node


@contextmanager
def noting_infinity(prepared: nn.Module) -> Iterator[set[nn.Module]]:
    """Note in the block which observers of a prepared model see infinity."""
    found: set[nn.Module] = set()

    def look(observer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].isinf().any():
            found.add(observer)

    with ExitStack() as hooks:
        for module in prepared.modules():
            if hasattr(module, "calculate_qparams"):
                hooks.enter_context(module.register_forward_pre_hook(look))
        yield found


def spared(prepared: nn.Module, recipe: Recipe, observers: Collection[nn.Module]) -> Recipe:
    """Return a recipe by which all that reads what these observers of a prepared model saw is computed in floats.

    Raises:
        Refused: the flow has no way to do so.
    """
    if not isinstance(prepared, GraphModule):
        names = (n.partition(".activation_post")[0] for n, m in prepared.named_modules() if m in observers)
        met = ", ".join(names)
        raise Refused(f"cannot round infinity, met by {met}: call a DeQuantStub before such a mask is added")
    readers = _readers(prepared, observers)
    layers = [node.target for node in readers if node.op == "call_module" and node.target not in recipe.left_float]
    others = [node.name for node in readers if fx.name_of(node) and node.name not in recipe.infinite]
    if recipe.flow == "fx" and (layers or others):
        return replace(recipe, left_float=(*recipe.left_float, *layers), infinite=(*recipe.infinite, *others))
    who = " and ".join(f"{label(node)}{line_of(node)}" for node in readers)
    raise Refused(f"cannot round infinity, which {who} reads: use masked_fill with a boolean mask")


def lines_that_read_infinity(model: GraphModule, recipe: Recipe) -> list[str]:
    """Return " at file:line: `code`" for each line that is computed in floats for that."""
    return [*dict.fromkeys(line_of(node) for node in model.graph.nodes if node.name in recipe.infinite)]


def _readers(prepared: GraphModule, observers: Collection[nn.Module]) -> list[Node]:
    calls = (node for node in prepared.graph.nodes if node.op == "call_module")
    saw = (node for node in calls if prepared.get_submodule(node.target) in observers)
    return [*dict.fromkeys(user for node in saw for user in node.users if user.op != "output")]
