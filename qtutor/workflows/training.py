"""Training computes what the converted model will: on the same scales, and in the range of all that shares one."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule


def trained_qconfig(qconfig: Any, fake_quantize: Any) -> Any:
    """Return PyTorch's QConfig for training, changed so that training computes what the converted model will.

    Args:
        qconfig: of torch.ao, with its fused fake-quantizers.
        fake_quantize: the class that is not fused, and takes as long. A fused one has a scale of weights that is one
            step coarser, a third at 2 bits, shifts zero in a channel of one sign, and has no scale below 6e-5.
    """
    activation = qconfig.activation.with_args(quant_min=0, quant_max=255)
    activation, weight = (fake_quantize.with_args(**make.p.keywords) for make in (activation, qconfig.weight))
    return qconfig._replace(activation=activation, weight=weight)


def span_what_shares(prepared: nn.Module) -> None:
    """Have each fake-quantizer of a graph that several tensors share, as before a cat, span them all, in place.

    PyTorch averages their ranges, which clips the widest. Here the range grows at once, and shrinks by the average.
    """
    nodes = prepared.graph.nodes if isinstance(prepared, GraphModule) else ()
    uses = Counter(prepared.get_submodule(node.target) for node in nodes if node.op == "call_module")
    for module, count in uses.items():
        if count > 1 and hasattr(module, "fake_quant_enabled") and hasattr(module.activation_post_process, "min_val"):
            module.register_forward_pre_hook(_span)


def _span(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if module.observer_enabled[0]:
        observer, (low, high) = module.activation_post_process, inputs[0].detach().aminmax()
        observer.min_val.copy_(torch.minimum(observer.min_val, low))
        observer.max_val.copy_(torch.maximum(observer.max_val, high))


def keep_trained_scales(prepared: nn.Module) -> None:
    """Make each fake-quantizer that has seen data hand on the scale that it trained with, in place.

    Conversion would let those of weights see the weight once more.
    """
    for module in prepared.modules():
        seen = getattr(getattr(module, "activation_post_process", None), "min_val", None)  # a sigmoid's range is fixed
        if hasattr(module, "fake_quant_enabled") and seen is not None and seen.isfinite().any():
            module.disable_observer()
