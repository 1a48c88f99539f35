"""What no scale holds: infinity, which a mask adds to scores, and what lies as far out; whole numbers, float64.

What reads it must read no codes. Nor can a step that PyTorch fixes, as that of a softmax, hold what is far smaller, nor
one that is shared, as by scores that are joined to boxes in pixels.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from qtutor.affine import decibels, sqnr
from qtutor.models.operators import Trait, target_of, traits
from qtutor.models.tensors import floats_in
from qtutor.models.tracing import label, line_of
from qtutor.workflows.calls import given_name
from qtutor.workflows.limits import USUAL
from qtutor.workflows.recipe import Recipe
from qtutor.workflows.refusals import Refused
from qtutor.workflows.rewriting import kernel_of, name_of, operands

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

_INFINITE, _FAR, _OTHER, _SMALL, _UNEVEN = "infinity", "a mask", "no float32", "less than a step", "of several sizes"
_LEAST_FAR = 900.0  # what a softmax makes nothing of, whatever else it gets; -999 marks what is missing


@contextmanager
def noting_unheld(prepared: nn.Module) -> Iterator[dict[nn.Module | Node, str]]:
    """Note in the block which observers of a prepared model see what no scale holds, and what.

    They let it pass, but for a finite mask.

    Noted at its end are nodes between observers: what joins several values, or gives one on the scale of another, so
    that the smaller ones are lost.
    """
    found: dict[nn.Module | Node, str] = {}
    sharing = _sharing(prepared) if isinstance(prepared, GraphModule) else {}
    around = {each for places in sharing.values() for each, _ in (*places.before, *places.behind)}
    ranges: dict[nn.Module, list[Range | None]] = {observer: [] for observer in around}

    def look(observer: nn.Module, observe: Any, x: Any) -> Any:
        what = _unheld(observer, x)
        if observer in ranges:
            ranges[observer].append(Range.of(x) if not what and x.numel() else None)
        if what:
            found.setdefault(observer, what)
        return x if what and what is not _FAR else observe(x)

    observers = [module for module in prepared.modules() if hasattr(module, "calculate_qparams")]
    for observer in observers:
        observer.forward = partial(look, observer, observer.forward)
    try:
        yield found
        for node, places in sharing.items():
            before, behind = (
                [held for observer, call in side for held in ranges[observer][call : call + 1] if held]
                for side in places
            )
            at_stake = before if _keeps_own(node, prepared) else before + behind
            lost = any(each.lost_in(before + behind) for each in at_stake)
            if (lost and not (_joins(node) and _for_layers(node, prepared))) or len(_scales(node, prepared)) > 1:
                found[node] = _UNEVEN
    finally:
        for observer in observers:
            del observer.forward


class Range(NamedTuple):
    """Where values lie, and their mean square."""

    low: float
    high: float
    power: float

    @classmethod
    def of(cls, x: Tensor) -> "Range":
        """Measure a tensor that holds anything."""
        low, high = x.aminmax()
        return cls(float(low), float(high), float(x.square().mean()))

    def lost_in(self, all_of_them: Collection["Range"]) -> bool:
        """Whether a step for all leaves too little of these: the square of its error is a twelfth of its own."""
        step = (max(0.0, *(each.high for each in all_of_them)) - min(0.0, *(each.low for each in all_of_them))) / 255
        return self.power > 0 and decibels(self.power, step**2 / 12) < USUAL


def _scales(node: Node, prepared: nn.Module) -> set[float | Node | None]:
    """The scales of what a node joins: those that PyTorch fixes, what gives a value on a scale of its own, as 0.5 * x
    does, and None where the scale is free.
    """
    sources = [source for each in node.all_input_nodes for source in each.all_input_nodes] if _joins(node) else []
    found: set[float | Node | None] = set()
    for source in sources:
        kernel = kernel_of(source, prepared)
        found.add(source if _keeps_own(source, prepared) else kernel and kernel.scale)
    return found


def _keeps_own(node: Node, prepared: nn.Module) -> bool:
    """Whether a node computes with one tensor and a number, which keeps codes and changes their scale."""
    return len(operands(node)) == 1 and Trait.ARITHMETIC in traits(target_of(node, prepared))


def _joins(node: Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") in ("cat", "stack")


class _Places(NamedTuple):
    """The observers before and behind a node, and at which of their calls."""

    before: list[tuple[nn.Module, int]]
    behind: list[tuple[nn.Module, int]]


def _sharing(prepared: GraphModule) -> dict[Node, _Places]:
    """Return what computes on one scale for what it gets and gives, with its observers, and at which of their calls.

    A number that is added or multiplied leaves a value on the scale that it has; the first of values that are joined
    gives the others its own.
    """
    modules, calls = dict(prepared.named_modules(remove_duplicate=False)), Counter[nn.Module]()
    observed: dict[Node, tuple[nn.Module, int]] = {}
    for node in prepared.graph.nodes:
        observer = modules[node.target] if node.op == "call_module" else None
        if observer is not None and hasattr(observer, "calculate_qparams"):
            observed[node] = observer, calls[observer]
            calls[observer] += 1
    found = {}
    for node in prepared.graph.nodes:
        before, behind = ([observed[n] for n in nodes if n in observed] for nodes in (node.all_input_nodes, node.users))
        if node not in observed and (_joins(node) or {each for each, _ in before} & {each for each, _ in behind}):
            found[node] = _Places(before, behind)
    return found


def _for_layers(node: Node, prepared: nn.Module) -> bool:
    """Whether layers alone read what a node gives, each of which has one scale for all that it gets."""
    for user in node.users:
        kernel = kernel_of(user, prepared)
        observes = user.op == "call_module" and hasattr(prepared.get_submodule(user.target), "calculate_qparams")
        passes = observes or Trait.KEEPS_RANGE in traits(target_of(user, prepared))
        if not (_for_layers(user, prepared) if passes else kernel and kernel.begins):
            return False
    return True


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
        least, most = _left_by(x, low)
        return _FAR if most - least < -low / 255 else ""
    fixed = getattr(observer, "activation_post_process", observer)
    if type(fixed).__name__ == "FixedQParamsObserver" and any((low, high)):
        scale, zero_point = float(fixed.scale), int(fixed.zero_point)
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, fixed.quant_min, fixed.quant_max)
        return _SMALL if sqnr(x, rounded) < USUAL else ""
    return ""


def _left_by(x: Tensor, low: float) -> tuple[float, float]:
    """The ends of those values that are not half as far out as the lowest, which is negative; NaN for none."""
    rest = x[x > low / 2]
    return (float(rest.min()), float(rest.max())) if rest.numel() else (math.nan, math.nan)


def marks(inputs: tuple[Tensor, ...]) -> str:
    """Say that an input holds what marks a missing value, so far out that its scale holds no other; "" for none."""
    for x in floats_in(inputs):
        for sign in (1, -1) if x.numel() else ():
            low = float((sign * x).min())
            least, most = _left_by(sign * x, low) if low < -_LEAST_FAR else (math.nan, math.nan)
            step = (max(0.0, most) - low) / 255
            if 0 < most - least < 8 * step:
                return (
                    f"an input holds {sign * low:g} beside values that lie within {most - least:.3g}, for which one "
                    "scale has less than 8 steps: if it marks a missing value, replace it before"
                )
    return ""


def spared(prepared: nn.Module, recipe: Recipe, found: Mapping[nn.Module | Node, str]) -> Recipe:
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
        if node in found and recipe.flow == "fx":
            changed = _in_floats(prepared, changed, node, _UNEVEN)
        what = found.get(prepared.get_submodule(node.target)) if node.op == "call_module" else None
        if what:
            users = [user for user in node.users if user.op != "output"]
            readers += users if what is _INFINITE else []
            meeting = (node.all_input_nodes if what in (_FAR, _SMALL) else []) + (users if what is not _SMALL else [])
            for each in meeting if recipe.flow == "fx" else ():
                changed = _in_floats(prepared, changed, each, what)
    if infinite and changed == recipe:
        lines = " and".join(dict.fromkeys(line_of(node) or f" by {label(node)}" for node in readers))
        raise Refused(f"cannot round infinity, which is read{lines}: use masked_fill with a boolean mask")
    return changed


def _in_floats(prepared: GraphModule, recipe: Recipe, node: Node, what: str) -> Recipe:
    """Return a recipe by which a node that meets what no scale holds is computed in floats, where that can be."""
    field, name = "", name_of(node)
    if node.op == "call_module":
        weighted = next(prepared.get_submodule(node.target).parameters(), None) is not None
        field, name = "" if weighted and what is not _INFINITE else "left_float", given_name(node.target)
    elif name:
        field, name = {_OTHER: "unrounded", _SMALL: "uneven", _UNEVEN: "uneven"}.get(what, "infinite"), node.name
    known = getattr(recipe, field) if field else (name,)
    return recipe if name in known else replace(recipe, **{field: (*known, name)})
