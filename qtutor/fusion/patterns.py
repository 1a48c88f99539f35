"""Find what can run as one operator, and fold the batch norms of it.

A model is traced with torch.fx only to find the patterns. What is rewritten is a deep copy of the
model itself, so classes, hooks, buffers and state of everything else survive.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

from qtutor.fusion.folding import Uses, fold_batch_norm, foldable_kind
from qtutor.models.copying import copy_model
from qtutor.models.operators import Trait, target_of, traits
from qtutor.models.tracing import Tracer, is_altered, label, trace

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

_LAYER_ROLES = ("ConvTranspose", "Conv", "Linear")


@dataclass(frozen=True)
class Fusion:
    """A pattern that can run as one operator, or the reason why it cannot.

    Attributes:
        kind: the roles in order, such as "Conv-BN-ReLU"; a ReLU6 counts as ReLU.
        names: qualified names of the modules in order; a function is named as in "block.relu()".
        reason: why it is refused, a sentence; empty if it is accepted.
    """

    kind: str
    names: tuple[str, ...]
    reason: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the fused model computes the same."""
        return not self.reason

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of the batch norms that follow the layer; more than one may."""
        roles = self.kind.split("-")[1:]
        return tuple(name for name, role in zip(self.names[1:], roles, strict=True) if role == "BN")


def find_fusions(model: nn.Module, inputs: tuple | None = None) -> tuple[Fusion, ...]:
    """List what can run as one operator and what cannot, in the order in which the model runs.

    Looked for is a convolution, transposed convolution or linear layer followed by a batch norm, a
    ReLU, or both. Without `inputs`, arguments of `forward` that have a default are taken at it, and a
    linear layer before a batch norm is taken to give `(N, features)`: a trace knows no shapes.

    Args:
        inputs: of a call.

    Raises:
        TypeError: `model` is not a module.
        ValueError: `forward` cannot be traced; the message names the line and what to do.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
        >>> for fusion in find_fusions(model.eval()):
        ...     print(fusion.kind, fusion.names, fusion.reason or "accepted")
        Conv-BN-ReLU ('0', '1', '2') accepted
        BN ('3',) 3 follows 2: only a batch norm right after its layer is folded
    """
    return tuple(fusion for fusion, _ in patterns(trace(model, "find_fusions", inputs)))


def fuse(model: nn.Module, inputs: tuple | None = None, only: Collection[str] | None = None) -> nn.Module:
    """Return a copy of the model, for inference, in which every batch norm that `find_fusions` accepts is folded.

    A folded batch norm becomes an `nn.Identity`. A ReLU stays: only a quantized backend has a kernel
    that it shares with the layer before it, and `traffic` counts it so. `inputs` and errors are those
    of `find_fusions`; with `only`, batch norms of other names stay.

    Example:
        >>> fuse(nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3)).eval())
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): Identity()
        )
    """
    replacements: dict[int, Any] = {}
    for fusion, _ in patterns(trace(model, "fuse", inputs)):
        if fusion.accepted and fusion.norms and (only is None or {*fusion.norms} <= {*only}):
            layer, *norms = map(model.get_submodule, (fusion.names[0], *fusion.norms))
            replacements[id(layer)] = reduce(fold_batch_norm, norms, layer).train(layer.training)
            replacements.update((id(norm), nn.Identity().eval()) for norm in norms)
    fused = copy_model(model, replacements)
    fused._counts_as_fused = True  # for `traffic`; copies and pickles keep it
    return fused


def patterns(tracer: Tracer) -> list[tuple[Fusion, list[fx.Node]]]:
    """Find the fusions of a traced model, each with its nodes, from the layer on."""
    return list(_Search(tracer).found.values())


class _Search:
    """What is found of a traced model: `found` holds the fusions and their nodes by the last node of each."""

    def __init__(self, tracer: Tracer):
        self.tracer, self.uses = tracer, Uses.traced(tracer)
        self.found: dict[fx.Node, tuple[Fusion, list[fx.Node]]] = {}
        for node in tracer.graph.nodes:
            if self.role(node) in ("BN", "ReLU"):
                self.look_before(node)

    def role(self, node: fx.Node) -> str:
        module = self.uses.modules[node.target] if node.op == "call_module" else None
        if kind := foldable_kind(module):
            return next(role for role in _LAYER_ROLES if kind.__name__.startswith(role))
        if isinstance(module, _BatchNorm):
            return "BN"
        if type(module) is nn.Identity and not is_altered(module):
            return "Identity"
        return "ReLU" if Trait.RELU in traits(target_of(node, self.tracer.root)) else ""

    def look_before(self, node: fx.Node) -> None:
        """Note what a batch norm or ReLU ends."""
        nodes = [node.all_input_nodes[0], node]
        while self.role(nodes[0]) == "Identity":
            nodes.insert(0, nodes[0].all_input_nodes[0])
        source = nodes[0]
        if self.role(source) == "BN" and self.found[source][0].accepted:
            nodes = self.found[source][1] + nodes[1:]
        if self.role(nodes[0]) in _LAYER_ROLES:
            parts = [part for part in nodes if self.role(part) != "Identity"]
            reason = self.refusal(nodes)
            if not reason:
                self.found.pop(source, None)
        elif self.role(node) == "BN":
            parts = [node, *(user for user in node.users if self.role(user) in _LAYER_ROLES)][:2]
            reason = f"{node.target} follows {label(source)}: only a batch norm right after its layer is folded"
            if len(parts) == 2 and _pads_with_zeros(self.uses.modules[parts[1].target]):
                reason += f"; zeros that pad the input of {parts[1].target} miss its shift"
        else:
            return
        self.found[node] = Fusion("-".join(map(self.role, parts)), tuple(map(label, parts)), reason), nodes

    def refusal(self, nodes: list[fx.Node]) -> str:
        for node, after in pairwise(nodes):
            if others := [label(user) for user in node.users if user is not after]:
                return f"the output of {label(node)} is also used by {' and '.join(others)}"
            if node in self.tracer.watched:
                return f"a hook on a block sees the output of {label(node)}"
        last = nodes[-1]
        if last.op == "call_module" and is_altered(self.uses.modules[last.target]):
            return f"{last.target} has a hook or a forward of its own, which would see other values or none"
        return self.uses.fold_obstacle(nodes[0].target, [n.target for n in nodes if self.role(n) == "BN"])


def _pads_with_zeros(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear) or layer.transposed or layer.padding == "valid":
        return False
    return layer.padding_mode == "zeros" and any(layer.padding)
