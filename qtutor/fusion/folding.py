"""What folding a batch norm takes, and when a layer's parameters may be rewritten at all.

In eval mode a batch norm is one affine map per channel, which the layer before it can absorb:

    y = gamma * (w * x + b - mu) / sqrt(var + eps) + beta = w_fold * x + b_fold

    w_fold = gamma * w / sqrt(var + eps)
    b_fold = beta + gamma * (b - mu) / sqrt(var + eps)

Fusion, simulation and repair all ask the rules that stand here. A trace proves who uses a layer, a run observes
it: `Uses` holds either.

Source: Jacob et al. 2018, section 3.2; Krishnamoorthi 2018, "Quantizing deep convolutional networks
for efficient inference: A whitepaper", section 3.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from qtutor.models.copying import copy_model
from qtutor.models.operators import kind_of
from qtutor.models.tracing import Tracer, has_hooks

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_NORM_AFTER = {nn.Linear: nn.BatchNorm1d}
_NORM_AFTER |= {
    getattr(nn, f"{kind}{n}d"): norm for kind in ("Conv", "ConvTranspose") for n, norm in _BATCH_NORMS.items()
}


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
    if not foldable_kind(layer) or not _fits(layer, bn):
        pairs = ", ".join(f"{norm.__name__} into {base.__name__}" for base, norm in _NORM_AFTER.items())
        given = f"{kind_of(bn)} and {kind_of(layer)}"
        raise TypeError(f"fold_batch_norm folds {pairs}, SyncBatchNorm into any; got {given}")
    name = "the batch norm"
    if reason := _oddity(layer, "the layer") or _mismatch(layer, bn, name) or _oddity(bn, name):
        raise ValueError(f"fold_batch_norm: {reason}")
    weight, bias, mean, beta = (
        0 if t is None else t.detach().to("cpu", torch.float64)
        for t in (layer.weight, layer.bias, bn.running_mean, bn.bias)
    )
    like = layer.weight if layer.bias is None else layer.bias
    folded = copy_model(layer).eval()
    folded.weight = nn.Parameter((weight * factor(layer, bn)).to(layer.weight), layer.weight.requires_grad)
    folded.bias = nn.Parameter((beta + _scale(bn) * (bias - mean)).to(like), like.requires_grad)
    return folded


def factor(layer: nn.Module, bn: nn.Module) -> Tensor:
    """Return what folding multiplies a layer's weight by: gamma / sqrt(var + eps), float64, shaped to broadcast.

    The weight is `(out, in / groups, *kernel)`, or `(in, out / groups, *kernel)` where the layer is transposed.
    """
    scale = _scale(bn)
    if getattr(layer, "transposed", False):
        scale = scale.view(layer.groups, -1).repeat_interleave(layer.in_channels // layer.groups, dim=0)
    else:
        scale = scale.view(-1, 1)
    return scale.view(*scale.shape, *[1] * (layer.weight.dim() - 2))


def foldable_kind(module: nn.Module | None) -> type[nn.Module] | None:
    """Return the class of `torch.nn` as which a batch norm can be folded into a layer, or None."""
    return next((base for base in _NORM_AFTER if isinstance(module, base)), None)


def along_channels(layer: nn.Module, dims: int) -> bool:
    """Whether the axis 1 of what a layer gives, which a batch norm normalizes along, is that of its channels."""
    return dims == 2 + len(getattr(layer, "kernel_size", ()))


class Uses:
    """Who uses the modules of a model: what decides whether their parameters may be rewritten.

    PyTorch's flows fold batch norms by rules of their own, which ask less: where those do not hold, `workflows` keeps
    them from it, in `rewriting._keep_apart` and `pt2e._fold_norms`.

    Args:
        model: the one that was traced or run, before anybody but its owner hooked onto it.
        calls: how often `forward` calls each module, by name.
        read: names of modules of which `forward` itself reads a parameter or buffer.
        dims: of how many dimensions is what each batch norm gets, by name, where that is known.
    """

    def __init__(self, model: nn.Module, calls: Mapping[str, int], read: Collection[str], dims: Mapping[str, int]):
        self.modules = dict(model.named_modules())
        self.calls, self.read, self.dims = calls, read, dims
        self._owners: dict[nn.Parameter | None, list[str]] = defaultdict(list)
        self._oddities: dict[str, str] = {}
        for name, module in self.modules.items():
            for parameter in module._parameters.values():
                self._owners[parameter].append(name)
            if foldable_kind(module) or isinstance(module, _BatchNorm):
                self._oddities[name] = _oddity(module, name)

    @classmethod
    def traced(cls, tracer: Tracer) -> "Uses":
        """Return those of a traced model."""
        nodes = tracer.graph.nodes
        read = {node.target.rpartition(".")[0] for node in nodes if node.op == "get_attr"}
        for name, module in tracer.root.named_modules():
            if not tracer.looked_up.isdisjoint(map(id, module._buffers.values())):
                read.add(name)
        return cls(tracer.root, Counter(node.target for node in nodes if node.op == "call_module"), read, tracer.dims)

    def obstacle(self, name: str) -> str:
        """Say why other parameters in a layer would change more than what it gives, or ""."""
        return self._sharing(name) or self._oddities[name]

    def fold_obstacle(self, layer: str, norms: Collection[str]) -> str:
        """Say why the batch norms right after a layer cannot be folded into it, or ""."""
        reasons = (
            self._sharing(norm)
            or _mismatch(self.modules[layer], self.modules[norm], norm)
            or self._other_axis(layer, norm)
            or self._oddities[norm]
            for norm in norms
        )
        return self.obstacle(layer) or next(filter(None, reasons), "")

    def _other_axis(self, layer: str, norm: str) -> str:
        if norm not in self.dims or along_channels(self.modules[layer], self.dims[norm]):
            return ""
        return f"{norm} normalizes along axis 1, and {layer} gives its channels along another"

    def _sharing(self, name: str) -> str:
        if self.calls.get(name, 0) > 1:
            return f"{name} is called {self.calls[name]} times, and folding would change it for all of them"
        if name in self.read:
            return f"forward itself reads a parameter or buffer of {name}"
        for parameter in self.modules[name]._parameters.values():
            if parameter is not None and len(self._owners[parameter]) > 1:
                return f"{' and '.join(self._owners[parameter])} share a parameter, and folding would part them"
        return ""


def _scale(bn: nn.Module) -> Tensor:
    """`(channels,)` gamma / sqrt(var + eps), float64."""
    gamma = 1 if bn.weight is None else bn.weight.detach().to("cpu", torch.float64)
    return gamma / torch.sqrt(bn.running_var.to("cpu", torch.float64) + bn.eps)


def _oddity(module: nn.Module, name: str) -> str:
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
    base = foldable_kind(module) or next(b for b in type(module).__mro__ if b.__module__.startswith("torch.nn."))
    for method in ("forward", "_conv_forward"):
        if method in vars(module) or getattr(type(module), method, None) is not getattr(base, method, None):
            return f"{name} is {kind_of(module)} with a {method} of its own"
    return ""


def _mismatch(layer: nn.Module, bn: nn.Module, name: str) -> str:
    """Why a batch norm does not normalize what `layer` gives by fixed numbers, or ""."""
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if not _fits(layer, bn):
        only = _NORM_AFTER[foldable_kind(layer)].__name__
        return f"{kind_of(bn)} after {kind_of(layer)}: only {only} normalizes its channels"
    if bn.training:
        return f"{name} is in training mode, where it normalizes by the statistics of each batch: call .eval() first"
    if bn.running_mean is None or bn.running_var is None:
        return f"{name} has no running statistics (track_running_stats=False): it normalizes by those of each batch"
    if channels != bn.num_features:
        return f"{name} normalizes {bn.num_features} channels and the layer before it gives {channels}"
    return ""


def _fits(layer: nn.Module, bn: nn.Module) -> bool:
    return isinstance(bn, (_NORM_AFTER[foldable_kind(layer)], nn.SyncBatchNorm))
