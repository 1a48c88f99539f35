"""Fewer than 8 bits in flows whose kernels know 8 alone: narrower grids to train on, and to stay on.

    codes of weights      in [-2**(bits - 1), 2**(bits - 1) - 1]
    codes of activations  in [0, 2**bits - 1]

Training rounds to these; convert and the kernels of an engine clip at 8 bits. So the codes of weights
are clipped once, and each output as it comes. The graph of a PT2E model clips by itself.
"""

from collections.abc import Mapping
from typing import Any

from qtutor.affine import grid
from qtutor.workflows.calls import given_name

import torch
from torch import Tensor, nn
from torch.fx import GraphModule


def narrow_qconfig(qconfig: Any, bits: int) -> Any:
    """Return a QConfig of torch.ao for `bits`, or the same for 8."""
    if bits == 8:
        return qconfig
    (low, high), (_, most) = grid(bits), grid(bits, signed=False)
    activation = qconfig.activation.with_args(quant_min=0, quant_max=most, reduce_range=False)
    return qconfig._replace(activation=activation, weight=qconfig.weight.with_args(quant_min=low, quant_max=high))


def clip_codes(
    model: nn.Module,
    weights: Mapping[nn.Module, tuple[Tensor, Tensor | None]],
    bits: int,
    edges: Mapping[str, int],
    reduced: bool = False,
) -> None:
    """Clip the codes of an eager or FX model in place.

    Args:
        weights: the codes and the bias that each layer was given.
        bits: the width of all layers but those of `edges`.
        edges: widths by the names of layers.
        reduced: whether activations of 8 bits keep to 7.
    """
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "scale")}
    widths = {name: edges.get(given_name(name), bits) for name in layers}
    for name, module in layers.items():
        if hasattr(module, "set_weight_bias"):  # by 7.5 steps, a weight at the end of its range, convert gives code 8
            weight, bias = weights[module]
            codes = torch.empty(0, dtype=torch.int8).set_(weight.untyped_storage())  # whatever the scheme and layout
            codes.clamp_(*grid(widths[name]))
            module.set_weight_bias(weight, bias)
    if reduced:
        bits, widths = min(bits, 7), {name: min(width, 7) for name, width in widths.items()}
    if isinstance(model, GraphModule):
        _clip_nodes(model, bits, widths)
        return
    for name, module in layers.items():
        source = getattr(module, "activation_post_process", module)  # through which a QFunctional passes its result
        source.register_forward_hook(lambda m, inputs, output, width=widths[name]: clip(output, width))


def _clip_nodes(model: GraphModule, bits: int, widths: Mapping[str, int]) -> None:
    for node in [*model.graph.nodes]:
        if node.target is torch.quantize_per_tensor:  # for the layer that comes next
            width = widths.get(next(iter(node.users)).target, bits)
        elif node.op == "call_module" and node.target in widths:
            width = widths[node.target]
        elif str(node.target).startswith("quantized."):
            width = bits
        else:
            continue
        with model.graph.inserting_after(node):
            clipped = model.graph.call_function(clip, (node, width))
        node.replace_all_uses_with(clipped, delete_user_cb=lambda user, clipped=clipped: user is not clipped)
    model.recompile()


def clip(output: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return output
    low, high = ((end - output.q_zero_point()) * output.q_scale() for end in grid(bits, signed=False))
    return output.contiguous().clamp(low, high)  # QNNPACK has no kernel for one bound, and mixes up channels-last codes
