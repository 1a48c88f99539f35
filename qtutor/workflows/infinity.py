"""What no scale holds: infinity, which a mask adds to scores, and what lies as far out; whole numbers, float64.

What reads it must read no codes. Nor can a step that PyTorch fixes, as that of a softmax, hold what is far smaller.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from qtutor.affine import sqnr
from qtutor.models.tracing import label, line_of
from qtutor.workflows import fx
from qtutor.workflows.calls import given_name
from qtutor.workflows.limits import USUAL
from qtutor.workflows.recipe import Recipe
from qtutor.workflows.refusals import Refused

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

_INFINITE, _FAR, _OTHER, _SMALL = "infinity", "a mask", "no float32", "less than a step"
_LEAST_FAR = 1e3  # what a softmax makes nothing of, whatever else it gets


@contextmanager
def noting_unheld(prepared: nn.Module) -> Iterator[dict[nn.Module, str]]:
    """Note in the block which observers of a prepared model see what no scale holds, which they let pass, and what."""
    found: dict[nn.Module, str] = {}

    def look(observer: nn.Module, observe: Any, x: Any) -> Any:
        if what := _unheld(observer, x):
            found.setdefault(observer, what)
            return x
        return observe(x)

    observers = [module for module in prepared.modules() if hasattr(module, "calculate_qparams")]
    for observer in observers:
        observer.forward = partial(look, observer, observer.forward)
    try:
        yield found
    finally:
        for observer in observers:
            del observer.forward


def _unheld(observer: nn.Module, x: Any) -> str:
    """What an observer sees that no scale of it holds, or ""."""
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        return _OTHER
    if not x.numel():
        return ""
    low, high = map(float, x.aminmax())
    if low == -torch.inf or high == torch.inf:
        return _INFINITE
    if low < -_LEAST_FAR:
        rest = x[x > low / 2]
        return _FAR if rest.numel() and float(rest.max() - rest.min()) < -low / 255 else ""
    fixed = getattr(observer, "activation_post_process", observer)
    if type(fixed).__name__ == "FixedQParamsObserver" and any((low, high)):
        scale, zero_point = float(fixed.scale), int(fixed.zero_point)
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, fixed.quant_min, fixed.quant_max)
        return _SMALL if sqnr(x, rounded) < USUAL else ""
    return ""


def spared(prepared: nn.Module, recipe: Recipe, found: Mapping[nn.Module, str]) -> Recipe:
    """Return a recipe by which all is computed in floats that meets what these observers of a prepared model saw.

    Raises:
        Refused: it is infinity, and the flow has no way to do so.
    """
    infinite = [observer for observer, what in found.items() if what is _INFINITE]
    if not isinstance(prepared, GraphModule):
        if not infinite:
            return recipe
        names = (n.partition(".activation_post")[0] for n, m in prepared.named_modules() if m in infinite)
        met = ", ".join(names)
        raise Refused(f"cannot round infinity, met by {met}: call a DeQuantStub before such a mask is added")
    changed, readers = recipe, list[Node]()
    for node in prepared.graph.nodes:
        what = found.get(prepared.get_submodule(node.target)) if node.op == "call_module" else None
        if what:
            users = [user for user in node.users if user.op != "output"]
            readers += users if what is _INFINITE else []
            meeting = (node.all_input_nodes if what in (_FAR, _SMALL) else []) + (users if what is not _SMALL else [])
            for each in meeting if recipe.flow == "fx" else ():
                changed = _in_floats(prepared, changed, each, what)
    if infinite and changed == recipe:
        who = " and ".join(dict.fromkeys(f"{label(node)}{line_of(node)}" for node in readers))
        raise Refused(f"cannot round infinity, which {who} reads: use masked_fill with a boolean mask")
    return changed


def _in_floats(prepared: GraphModule, recipe: Recipe, node: Node, what: str) -> Recipe:
    """Return a recipe by which a node that meets what no scale holds is computed in floats, where that can be."""
    field, name = "", fx.name_of(node)
    if node.op == "call_module":
        weighted = next(prepared.get_submodule(node.target).parameters(), None) is not None
        field, name = "" if weighted and what is not _INFINITE else "left_float", given_name(node.target)
    elif name:
        field = {_OTHER: "unrounded", _SMALL: "float_operators"}.get(what, "infinite")
        name = name if what is _SMALL else node.name
    known = getattr(recipe, field) if field else (name,)
    return recipe if name in known else replace(recipe, **{field: (*known, name)})


def lines_that_read_infinity(model: GraphModule, recipe: Recipe) -> list[str]:
    """Return " at file:line: `code`" for each line that is computed in floats for that."""
    return [*dict.fromkeys(line_of(node) for node in model.graph.nodes if node.name in recipe.infinite)]
