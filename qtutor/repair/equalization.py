"""Move a factor per channel from layer to layer, until ranges are alike; needs no data.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.
"""

from qtutor.fusion import fuse
from qtutor.fusion.folding import Uses, foldable_kind
from qtutor.models.copying import eval_copy
from qtutor.models.operators import Trait, check_module, target_of, traits
from qtutor.models.tracing import is_altered, trace

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

_ROUNDS = 5  # along the network; later ones spread what earlier ones moved


@torch.no_grad()
def equalize(model: nn.Module, inputs: tuple | None = None) -> nn.Module:
    """Return a copy that computes the same, with batch norms folded and weight ranges alike from layer to layer.

    Where a layer's output goes through nothing but ReLU, pooling and the like into one other layer,
    channel i of the first is divided by r_i, which the second gives back. With a_i and b_i the largest
    weights of the two in that channel, r_i = sqrt(a_i / b_i) makes them equal. A ReLU6 ends a pair: it
    clips at 6, whatever the factor.

    Args:
        model: any model that torch.fx can trace, in eval mode.
        inputs: of a call, which show along which axis a batch norm normalizes, as in `find_fusions`.

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
    check_module(model, "equalize")
    fused = fuse(eval_copy(model), inputs)
    pairs = [(fused.get_submodule(first), fused.get_submodule(second)) for first, second in _pairs(fused, inputs)]
    if not pairs:
        raise ValueError(
            "equalize finds no two layers in a row with nothing but ReLU, pooling or the like between them: there is "
            "nowhere to move a factor to"
        )
    dtypes = {layer: layer.weight.dtype for pair in pairs for layer in pair}
    for layer in dtypes:
        layer.double()
    for _ in range(_ROUNDS):
        for first, second in pairs:
            _equalize_pair(first, second)
    for layer, dtype in dtypes.items():
        layer.to(dtype)
    return fused


def _pairs(model: nn.Module, inputs: tuple | None) -> list[tuple[str, str]]:
    """Names of the layers, in order, that pass a factor on to one other layer."""
    tracer = trace(model, "equalize", inputs)
    uses = Uses.traced(tracer)
    modules = uses.modules

    def is_layer(node: fx.Node) -> bool:
        if node.op != "call_module" or not foldable_kind(modules[node.target]):
            return False
        return not getattr(modules[node.target], "transposed", False) and not uses.obstacle(node.target)

    found = []
    for node in filter(is_layer, tracer.graph.nodes):
        after, flattened = node, 0
        while len(after.users) == 1 and after not in tracer.watched:  # by a hook of a block
            after = next(iter(after.users))
            altered = after.op == "call_module" and is_altered(modules[after.target])
            if altered or Trait.PASSES_SCALE not in traits(target_of(after, tracer.root)):
                break
            flattened += _flattens(after, modules)
        if after is not node and is_layer(after) and _fits(modules[node.target], modules[after.target], flattened):
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
