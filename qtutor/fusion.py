"""Fold batch norms into the layers before them, find what can run as one operator, count the bytes that saves.

In eval mode a batch norm is one affine map per channel, which the layer before it can absorb:

    y = gamma * (w * x + b - mu) / sqrt(var + eps) + beta = w_fold * x + b_fold

    w_fold = gamma * w / sqrt(var + eps)
    b_fold = beta + gamma * (b - mu) / sqrt(var + eps)

A model is traced with torch.fx only to find the patterns. What is rewritten is a deep copy of the
model itself, so classes, hooks, buffers and state of everything else survive.

Source: Jacob et al. 2018, section 3.2; Krishnamoorthi 2018, "Quantizing deep convolutional networks
for efficient inference: A whitepaper", section 3.
"""

import copy
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

from qtutor.dataflow import (
    Meter,
    OperatorTraffic,
    Tracer,
    Traffic,
    has_hooks,
    kind_of,
    label,
    tensors_in,
    trace,
)
from qtutor.models.copying import copy_model
from qtutor.models.operators import Trait, target_of, traits

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_NORM_AFTER = {nn.Linear: nn.BatchNorm1d}
_NORM_AFTER |= {
    getattr(nn, f"{kind}{n}d"): norm for kind in ("Conv", "ConvTranspose") for n, norm in _BATCH_NORMS.items()
}
_LAYER_ROLES = ("Conv", "ConvTranspose", "Linear")


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


def fold_batch_norm(layer: nn.Module, bn: nn.Module) -> nn.Module:
    """Return a new layer that computes `bn(layer(x))` in eval mode; neither argument is changed.

    Args:
        layer: Linear, Conv1d to 3d or ConvTranspose1d to 3d. The output of a linear layer must be
            `(N, features)`: it maps the last axis and a batch norm normalizes axis 1.
        bn: BatchNorm of the same dimension, or SyncBatchNorm, in eval mode.

    Returns:
        A layer like `layer` (class, dtype, device), with a bias, in eval mode. Computed in float64.

    Raises:
        TypeError: a kind of layer or batch norm, or a pair of them, that cannot be folded.
        ValueError: the batch norm is in training mode or has no running statistics, the channels
            differ, or either does more than its class says (hooks, parametrizations, own `forward`).

    Source: Jacob et al. 2018, section 3.2.

    Example:
        >>> layer, bn = nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0).eval()
        >>> values = (layer.weight, 3.0), (layer.bias, 1.0), (bn.weight, 4.0), (bn.bias, 5.0)
        >>> for tensor, value in (*values, (bn.running_mean, 7.0), (bn.running_var, 4.0)):
        ...     _ = tensor.data.fill_(value)
        >>> folded = fold_batch_norm(layer, bn)  # 4 * 3 / sqrt(4) and 5 + 4 * (1 - 7) / sqrt(4)
        >>> folded.weight.item(), folded.bias.item()
        (6.0, -7.0)
    """
    if not _base(layer) or not _fits(layer, bn):
        pairs = ", ".join(f"{norm.__name__} into {base.__name__}" for base, norm in _NORM_AFTER.items())
        given = f"{kind_of(bn)} and {kind_of(layer)}"
        raise TypeError(f"fold_batch_norm folds {pairs}, SyncBatchNorm into any; got {given}")
    if reason := _obstacle(layer, "the layer") or _norm_obstacle(layer, bn, "the batch norm"):
        raise ValueError(f"fold_batch_norm: {reason}")
    weight, bias, mean, var, gamma, beta = (
        None if t is None else t.detach().to("cpu", torch.float64)
        for t in (layer.weight, layer.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    scale = (1 if gamma is None else gamma) / torch.sqrt(var + bn.eps)  # (channels,)
    shift = (0 if beta is None else beta) + scale * ((0 if bias is None else bias) - mean)
    if getattr(layer, "transposed", False):  # the weight is (in, out / groups, *kernel)
        scale = scale.view(layer.groups, -1).repeat_interleave(layer.in_channels // layer.groups, dim=0)
    else:  # (out, in / groups, *kernel)
        scale = scale.view(-1, 1)
    weight = weight * scale.view(*scale.shape, *[1] * (weight.dim() - 2))

    folded = copy.deepcopy(layer).eval()
    like = layer.weight if layer.bias is None else layer.bias
    folded.weight = nn.Parameter(weight.to(layer.weight), layer.weight.requires_grad)
    folded.bias = nn.Parameter(shift.to(like), like.requires_grad)
    return folded


def find_fusions(model: nn.Module) -> tuple[Fusion, ...]:
    """List what can run as one operator and what cannot, in the order in which the model runs.

    Looked for is a convolution, transposed convolution or linear layer followed by a batch norm, a
    ReLU, or both. Arguments of `forward` that have a default are taken at it. A trace knows no
    shapes: a linear layer before a batch norm is taken to give `(N, features)`.

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
    return tuple(fusion for fusion, _ in patterns(trace(model, "find_fusions")))


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy of the model, for inference, in which every batch norm that `find_fusions` accepts is folded.

    A folded batch norm becomes an `nn.Identity`. A ReLU stays: only a quantized backend has a kernel
    that it shares with the layer before it, and `traffic` counts it so. Raises as `find_fusions`.

    Example:
        >>> fuse(nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3)).eval())
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): Identity()
        )
    """
    replacements: dict[int, Any] = {}
    for fusion, _ in patterns(trace(model, "fuse")):
        if fusion.accepted and fusion.norms:
            layer, *norms = map(model.get_submodule, (fusion.names[0], *fusion.norms))
            replacements[id(layer)] = reduce(fold_batch_norm, norms, layer).train(layer.training)
            replacements.update((id(norm), nn.Identity().eval()) for norm in norms)
    fused = copy_model(model, replacements)
    fused._counts_as_fused = True  # for `traffic`; copies and pickles keep it
    return fused


def traffic(
    model: nn.Module,
    example_input: Any,
    *,
    fused: bool | None = None,
    activation_bytes: float | None = None,
    weight_bytes: float | None = None,
) -> Traffic:
    """Count the bytes that each operator reads and writes, from the tensors of a run of a copy.

    What moves no data (views, `Identity`, dropout in eval mode) counts 0 bytes. A module of torch.nn
    or a function wrapped for torch.fx is one operator, whatever it does inside. Caches are ignored.

    Args:
        model: any module that torch.fx can trace.
        example_input: the input, or a tuple of the inputs.
        fused: count each accepted fusion as one operator, which writes nothing between its parts and
            has no parameters but those of the folded layer. Default: if the model comes from `fuse`.
        activation_bytes: bytes to count for a floating-point element that is read or written: 1 stands for
            INT8, 0.5 for INT4. Default: as the tensors are.
        weight_bytes: the same for parameters.

    Raises:
        TypeError: `model` is not a module, or `forward` does not take these inputs.
        ValueError: `forward` cannot be traced or fails on these inputs, or a number of bytes is not positive.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())  # float32: 4 bytes an element
        >>> for row in traffic(model, torch.ones(5, 3)).rows:
        ...     print(row.kind, row.read, row.parameters, row.written)
        Linear 60 32 40
        ReLU 40 0 40
        >>> traffic(model, torch.ones(5, 3), fused=True).total
        132
    """
    for name, width in (("activation_bytes", activation_bytes), ("weight_bytes", weight_bytes)):
        if width is not None and not (isinstance(width, (int, float)) and 0 < width < math.inf):
            raise ValueError(f"traffic: {name} must be positive, got {width!r}: 1 stands for INT8")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode have no version, which Meter needs
        tracer = trace(model, "traffic", inputs)
        meter = Meter(tracer, activation_bytes, weight_bytes)
        meter.run(*(tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, i) for i in inputs if tensors_in(i)))
    rows = dict(meter.rows)
    if getattr(model, "_counts_as_fused", False) if fused is None else fused:
        for fusion, nodes in patterns(tracer):
            if fusion.accepted:
                rows[nodes[0]] = as_one_operator(meter, fusion, nodes)
                for node in nodes[1:]:
                    del rows[node]
    return Traffic(tuple(rows[node] for node in tracer.graph.nodes if node in rows))


def as_one_operator(meter: Meter, fusion: Fusion, nodes: list[fx.Node]) -> OperatorTraffic:
    """Return the traffic of an accepted fusion: nothing between its parts, no parameters but the folded layer's."""
    first, last = meter.rows[nodes[0]], meter.rows[nodes[-1]]
    parameters = first.parameters
    if fusion.norms:
        layer, bn = map(meter.module.get_submodule, (fusion.names[0], fusion.norms[0]))
        if layer.bias is None:  # the folded one has a bias
            parameters += meter.size([bn.running_mean], meter.weight_bytes)
    return OperatorTraffic(" + ".join(fusion.names), fusion.kind, first.read, parameters, last.written)


def patterns(tracer: Tracer) -> list[tuple[Fusion, list[fx.Node]]]:
    """Find the fusions of a traced model, each with its nodes, from the layer on."""
    modules, graph = dict(tracer.root.named_modules()), tracer.graph
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    owners = defaultdict(list)
    for name, module in modules.items():
        for parameter in module._parameters.values():
            owners[parameter].append(name)

    def role(node: fx.Node) -> str:
        module = modules[node.target] if node.op == "call_module" else None
        if base := _base(module):
            return base.__name__.rstrip("123d")
        if isinstance(module, _BatchNorm):
            return "BN"
        if type(module) is nn.Identity and not has_hooks(module):
            return "Identity"
        return "ReLU" if Trait.RELU in traits(target_of(node, tracer.root)) else ""

    def pads_with_zeros(layer: nn.Module) -> bool:
        if isinstance(layer, nn.Linear) or layer.transposed or layer.padding == "valid":
            return False
        return layer.padding_mode == "zeros" and any(layer.padding)

    def refusal(nodes: list[fx.Node]) -> str:
        for node, after in pairwise(nodes):
            if others := [label(user) for user in node.users if user is not after]:
                return f"the output of {label(node)} is also used by {' and '.join(others)}"
            if node in tracer.watched:
                return f"a hook on a block sees the output of {label(node)}"
        if nodes[-1].op == "call_module" and has_hooks(modules[nodes[-1].target]):
            return f"{nodes[-1].target} has a hook, which would see other values or none"
        layer = modules[nodes[0].target]
        for name in [node.target for node in nodes if role(node) not in ("ReLU", "Identity")]:
            if calls[name] > 1:
                return f"{name} is called {calls[name]} times, and folding would change it for all of them"
            if name in read or not tracer.looked_up.isdisjoint(map(id, modules[name].buffers())):
                return f"forward itself reads a parameter or buffer of {name}"
            for parameter in modules[name]._parameters.values():
                if parameter is not None and len(owners[parameter]) > 1:
                    return f"{' and '.join(owners[parameter])} share a parameter, and folding would part them"
            own = modules[name] is layer
            if reason := _obstacle(layer, name) if own else _norm_obstacle(layer, modules[name], name):
                return reason
        return ""

    found: dict[fx.Node, tuple[Fusion, list[fx.Node]]] = {}
    for node in graph.nodes:
        if role(node) not in ("BN", "ReLU"):
            continue
        nodes = [node.all_input_nodes[0], node]
        while role(nodes[0]) == "Identity":
            nodes.insert(0, nodes[0].all_input_nodes[0])
        source = nodes[0]
        if role(source) == "BN" and found[source][0].accepted:
            nodes = found[source][1] + nodes[1:]
        if role(nodes[0]) in _LAYER_ROLES:
            parts = [part for part in nodes if role(part) != "Identity"]
            reason = refusal(nodes)
            if not reason:
                found.pop(source, None)
        elif role(node) == "BN":
            parts = [node, *(user for user in node.users if role(user) in _LAYER_ROLES)][:2]
            reason = f"{node.target} follows {label(source)}: only a batch norm right after its layer is folded"
            if len(parts) == 2 and pads_with_zeros(modules[parts[1].target]):
                reason += f"; zeros that pad the input of {parts[1].target} miss its shift"
        else:
            continue
        found[node] = Fusion("-".join(map(role, parts)), tuple(map(label, parts)), reason), nodes
    return list(found.values())


def _obstacle(module: nn.Module, name: str) -> str:
    """Why a layer or batch norm does something else than its class says, or ""."""
    for attribute in ("weight", "bias"):
        if attribute not in module._parameters:
            return (
                f"the {attribute} of {name} is computed anew at each call, by a parametrization, weight_norm, "
                "spectral_norm or pruning: make it permanent first"
            )
        if type(parameter := module._parameters[attribute]) not in (nn.Parameter, type(None)):
            return f"the {attribute} of {name} is not a plain parameter but {kind_of(parameter)}"
    if has_hooks(module):
        return f"{name} has a hook, which would see other values or none"
    base = _base(module) or next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn."))
    for method in ("forward", "_conv_forward"):
        if method in vars(module) or getattr(type(module), method, None) is not getattr(base, method, None):
            return f"{name} is {kind_of(module)} with a {method} of its own"
    return ""


def _norm_obstacle(layer: nn.Module, bn: nn.Module, name: str) -> str:
    """Why a batch norm cannot be folded into `layer`, or ""."""
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if not _fits(layer, bn):
        only = _NORM_AFTER[_base(layer)].__name__
        return f"{kind_of(bn)} after {kind_of(layer)}: only {only} normalizes its channels"
    if bn.training:
        return f"{name} is in training mode, where it normalizes by the statistics of each batch: call .eval() first"
    if bn.running_mean is None or bn.running_var is None:
        return f"{name} has no running statistics (track_running_stats=False): it normalizes by those of each batch"
    if channels != bn.num_features:
        return f"{name} normalizes {bn.num_features} channels and the layer before it gives {channels}"
    return _obstacle(bn, name)


def _base(module: nn.Module | None) -> type[nn.Module] | None:
    return next((base for base in _NORM_AFTER if isinstance(module, base)), None)


def _fits(layer: nn.Module, bn: nn.Module) -> bool:
    return isinstance(bn, (_NORM_AFTER[_base(layer)], nn.SyncBatchNorm))
