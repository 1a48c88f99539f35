"""What to do about a layer that quantization hurts: equalize, correct biases, keep some layers in floating point.

    equalize             move a factor per channel from layer to layer, until ranges are alike; needs no data
    correct_bias         give back the mean that rounding the weights takes from each channel
    choose_float_layers  the fewest layers to leave in floating point for a wanted quality, by measuring

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
sections 4.1 and 4.2.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

from qtutor.batches import read
from qtutor.dataflow import trace
from qtutor.fusion import fuse
from qtutor.models.copying import copy_model
from qtutor.models.operators import Trait, target_of, traits
from qtutor.simulation import Configuration, Simulation

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

if TYPE_CHECKING:
    from qtutor.diagnosis import Diagnosis


@torch.no_grad()
def equalize(model: nn.Module, *, rounds: int = 5) -> nn.Module:
    """Return a copy that computes the same, with batch norms folded and weight ranges alike from layer to layer.

    Where a layer's output goes through nothing but ReLU, pooling and the like into one other layer,
    channel i of the first is divided by r_i, which the second gives back. With a_i and b_i the largest
    weights of the two in that channel, r_i = sqrt(a_i / b_i) makes them equal. A ReLU6 ends a pair: it
    clips at 6, whatever the factor.

    Args:
        model: any model that torch.fx can trace, in eval mode.
        rounds: how often to go along the network; later rounds spread what earlier ones moved.

    Raises:
        TypeError: `model` is not a module.
        ValueError: it cannot be traced, or no two layers are in such a row.

    Source: Nagel et al. 2019, section 4.1, eq. 11.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[8.0], [1.0]]))
        >>> _ = model[2].weight.data.copy_(torch.tensor([[2.0, 1.0]]))
        >>> equalize(model.eval())[0].weight.flatten().tolist()  # r = sqrt(8 / 2) = 2 and sqrt(1 / 1) = 1
        [4.0, 1.0]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"equalize needs a torch.nn.Module, got {type(model).__name__}")
    fused = fuse(copy_model(model).eval())
    pairs = [(fused.get_submodule(first), fused.get_submodule(second)) for first, second in _pairs(fused)]
    if not pairs:
        raise ValueError(
            "equalize finds no two layers in a row with nothing but ReLU, pooling or the like between them: there is "
            "nowhere to move a factor to"
        )
    dtypes = {layer: layer.weight.dtype for pair in pairs for layer in pair}
    for layer in dtypes:
        layer.double()
    for _ in range(rounds):
        for first, second in pairs:
            _equalize_pair(first, second)
    for layer, dtype in dtypes.items():
        layer.to(dtype)
    return fused


@torch.no_grad()
def correct_bias(model: nn.Module, data: Iterable, configuration: Configuration | None = None) -> nn.Module:
    """Return a copy with biases that give back the mean that rounding the weights will take.

    For each output channel of each linear layer and convolution, the mean over `data` of what the
    rounded weight gives, less what the weight gives, on the inputs of the float model, is taken off
    the bias; a layer without one gets one.

    Args:
        model: any module.
        data: batches, as in `diagnosis.diagnose`.
        configuration: how the weights are going to be quantized; 8 bits per tensor by default.

    Raises:
        TypeError, ValueError: as in `diagnosis.diagnose`.

    Source: Nagel et al. 2019, section 4.2, with means measured rather than derived.
    """
    configuration = configuration or Configuration()
    batches, _ = read(data, sys.maxsize)
    simulation = Simulation.of(model, batches[0])
    rounding = simulation.round(configuration)
    sums: dict[str, list] = {}

    def compare(name: str, exact: Tensor, rounded: Tensor) -> None:
        total, count = sums.get(name, (0.0, 0))
        sums[name] = total + (rounded - exact).sum(dim=1), count + exact.shape[1]

    names = [name for name in simulation.products if name not in configuration.keep_float]
    with simulation.comparing(rounding, names, compare):
        for batch in batches:
            simulation.run(batch)
    corrected = copy_model(model)
    for name, (total, count) in sums.items():
        layer = corrected.get_submodule(name)
        shift = (total / count).to(layer.weight)
        before = 0 if layer.bias is None else layer.bias.detach()
        layer.bias = nn.Parameter(before - shift, requires_grad=layer.weight.requires_grad)
    return corrected


def choose_float_layers(
    diagnosis: "Diagnosis",
    *,
    metric: float | None = None,
    sqnr: float | None = None,
    configuration: Configuration | None = None,
    tries: int = 64,
) -> tuple[str, ...]:
    """Choose the fewest layers to keep in floating point so that the rest may be quantized.

    Sets are tried by measuring, the smallest first and among equals the one first that the sensitivities
    promise most of. All sets are tried, and the answer is the smallest there is, where `tries` allows
    it. Else the most harmful layers are kept, as few of them as do, and what tries are left look for
    a smaller set.

    Args:
        diagnosis: of the model, on the data that judge.
        metric: the accuracy, or what the diagnosis measured, that is to be reached.
        sqnr: the SQNR of the output in dB that is to be reached; either will do.
        configuration: of what is quantized; by default that of the diagnosis.
        tries: how many sets to measure, each a pass over the data.

    Returns:
        Names of layers, the most harmful first.

    Raises:
        ValueError: no goal is given, or it is not reached with all layers in floating point.
    """
    if metric is None and sqnr is None:
        raise ValueError("choose_float_layers needs a goal: metric=, such as an accuracy, or sqnr= in dB")
    configuration = configuration or diagnosis.configuration
    names, left = list(diagnosis.table["layer"]), tries

    def reached(kept: tuple[str, ...]) -> bool:
        nonlocal left
        left -= 1
        measured = diagnosis.measure(replace(configuration, keep_float=kept))
        enough = metric is None or measured.metric >= metric - 1e-9
        return enough and (sqnr is None or measured.sqnr >= sqnr)

    if reached(()):
        return ()
    if not reached(tuple(names)):
        wanted = " and ".join(
            f"{name} {value:g}" for name, value in (("metric", metric), ("sqnr", sqnr)) if value is not None
        )
        raise ValueError(f"choose_float_layers: even in floating point the model does not reach {wanted}")
    harm = dict(zip(names, diagnosis.table["harm"], strict=True))

    def promising(size: int, pool: list[str]) -> list[tuple[str, ...]]:
        # Stable: among equals, the order of harm stands.
        return sorted(combinations(pool, size), key=lambda kept: -sum(harm[name] for name in kept))

    best, most = tuple(names), len(names) - 1
    if sum(comb(len(names), k) for k in range(1, len(names))) > left:
        low, high = 0, len(names)  # the most harmful `low` do not do, `high` do
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reached(tuple(names[:middle])) else (middle, high)
        best, most = tuple(names[:high]), high - 1
    for size in range(1, most + 1):
        pool = names
        while comb(len(pool), size) > max(4 * tries, len(names)) and len(pool) > size:
            pool = pool[:-1]
        share = max(1, left // (most + 1 - size)) if left < comb(len(pool), size) else left
        for kept in promising(size, pool)[:share]:
            if left <= 0:
                return best
            if reached(kept):
                return kept
    return best


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of the layers, in order, that pass a factor on to one other layer."""
    tracer = trace(model, "equalize")
    graph, modules = tracer.graph, dict(tracer.root.named_modules())
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    owners: dict[int, int] = {}
    for module in modules.values():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1

    def is_layer(node: fx.Node) -> bool:
        if node.op != "call_module" or calls[node.target] > 1 or isinstance(modules[node.target], _ConvTransposeNd):
            return False
        module = modules[node.target]
        own = not any(f"{node.target}.{name}" in read for name in module._parameters)
        alone = all(owners[id(p)] == 1 for p in module._parameters.values() if p is not None)
        plain = not (module._forward_hooks or module._forward_pre_hooks) and "weight" in module._parameters
        return isinstance(module, (nn.Linear, _ConvNd)) and own and alone and plain

    def passes(node: fx.Node) -> bool:
        return Trait.PASSES_SCALE in traits(target_of(node, tracer.root))

    found = []
    for node in filter(is_layer, graph.nodes):
        after, flattened = node, 0
        while len(after.users) == 1:
            after = next(iter(after.users))
            if not passes(after):
                break
            flattened += _flattens(after, modules)
        first, second = modules[node.target], modules.get(after.target) if after.op == "call_module" else None
        if after is not node and is_layer(after) and _fits(first, second, flattened):
            found.append((node.target, after.target))
    return found


def _flattens(node: fx.Node, modules: dict[str, nn.Module]) -> int:
    """1 for a flatten that keeps the samples apart, 2 for any other, 0 for what is none."""
    if node.op == "call_module":
        layer = modules[node.target]
        ends = (layer.start_dim, layer.end_dim) if isinstance(layer, nn.Flatten) else None
    elif node.target in (torch.flatten, "flatten"):
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        ends = given.get("start_dim", 0), given.get("end_dim", -1)
    else:
        ends = None
    return 0 if ends is None else 1 if ends == (1, -1) else 2


def _fits(first: nn.Module, second: nn.Module, flattened: int) -> bool:
    """Whether each input of the second layer belongs to one output channel of the first."""
    outputs = first.weight.shape[0]
    if isinstance(first, _ConvNd) and isinstance(second, nn.Linear):
        return flattened == 1 and second.in_features % outputs == 0
    inputs = second.in_features if isinstance(second, nn.Linear) else second.in_channels
    return type(first) is type(second) and not flattened and inputs == outputs


def _equalize_pair(first: nn.Module, second: nn.Module) -> None:
    channels = first.weight.shape[0]
    groups = getattr(second, "groups", 1)
    weight = second.weight  # (out, in / groups, *kernel)
    per_input = weight.unflatten(0, (groups, -1)).transpose(1, 2)  # (groups, in / groups, out / groups, *kernel)
    per_channel = per_input.reshape(channels, -1)  # neighbouring columns share a channel after a flatten
    a, b = first.weight.abs().flatten(1).amax(dim=1), per_channel.abs().amax(dim=1)
    r = torch.where((a > 0) & (b > 0), (a / b).sqrt(), 1.0)
    # A channel that is all zero on one side is free: its factor only must not make the other side larger.
    r = torch.where((a > 0) & (b == 0), a, r)
    first.weight /= r.view(-1, *[1] * (first.weight.dim() - 1))
    if first.bias is not None:
        first.bias /= r
    scaled = per_channel * r[:, None]
    second.weight.copy_(scaled.view(per_input.shape).transpose(1, 2).reshape(weight.shape))
