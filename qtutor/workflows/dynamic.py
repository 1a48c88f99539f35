"""Dynamic quantization: INT8 weights, and activations that get a range at each call."""

import math
from collections import Counter

from qtutor.affine import fake_quantize, sqnr
from qtutor.models.copying import through_layers
from qtutor.models.operators import kind_of
from qtutor.observers import MinMaxObserver
from qtutor.workflows.backends import at_work, swapped, torch_ao
from qtutor.workflows.checks import tell
from qtutor.workflows.recipe import Recipe, float_copy, remember

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

_FINE = 25.0  # dB: healthy weights keep 30 to 45 at 8 bits
_KINDS = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)


def quantize_dynamic(model: nn.Module, *, engine: str | None = None) -> nn.Module:
    """Quantize the weights of linear and recurrent layers to INT8; activations get a range at each call.

    One range for the whole input of a layer: a row's result depends on the other rows of its batch.

    Raises:
        ValueError: the model has no such layer, so nothing would shrink, or one that has no INT8 kernel.
        Unavailable: no torch.ao or no engine.
    """
    recipe = Recipe.of(model, "dynamic", (), engine)
    if not any(type_before_parametrizations(module) in _KINDS for module in model.modules()):
        found = Counter(kind_of(m) for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
        raise ValueError(
            f"nothing would shrink: quantize_dynamic takes {', '.join(kind.__name__ for kind in _KINDS)}, and this "
            f"model has {', '.join(f'{n} {kind}' for kind, n in found.items()) or 'no layer with weights'}. "
            "quantize_static takes convolutions"
        )
    for name, module in model.named_modules():
        if type(module) is nn.LSTM and module.proj_size:
            layer = f"{name} ({kind_of(module)})" if name else f"this {kind_of(module)}"
            raise ValueError(
                f"{layer} has a proj_size, and PyTorch has no INT8 kernel for it in any flow: project with a linear "
                "layer behind an LSTM without proj_size instead"
            )
    for name, module in model.named_modules():
        if type(module) in _KINDS and (coarse := _coarse(module)) < _FINE:
            tell(
                f"{name} ({kind_of(module)}) keeps its weights to {coarse:.1f} dB only: each of its tensors has one "
                "scale, and a few weights are far larger than the rest. Equalize them; 16 bits would keep them, in a "
                "file as large as before"
            )
    with at_work(recipe.engine):
        return convert(model, recipe)


def convert(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Return a quantized copy of a model; its engine is at work."""
    quantize = torch_ao("use torchao.quantization.quantize_ instead, for linear layers").quantize_dynamic
    # PyTorch replaces the children of a module, never the module itself.
    holder = through_layers(nn.Sequential(float_copy(model)))
    for module in holder.modules():
        if type(module) in _KINDS[1:] and not module.bias:  # the kernels need biases, and zero is one
            for name, weight in [*module.named_parameters(recurse=False)]:
                setattr(module, name.replace("weight", "bias"), nn.Parameter(torch.zeros(len(weight))))
            module.bias = True
    quantized = swapped(quantize, holder, {*_KINDS}, dtype=torch.qint8)[0]
    for module in quantized.modules():
        if type(module).__name__ in ("LSTM", "GRU") and not hasattr(module, "flatten_parameters"):
            module.flatten_parameters = _nothing  # which a forward may call; packed weights need no flattening
    return remember(quantized, recipe)


def _nothing() -> None:
    pass


def _coarse(layer: nn.Module) -> float:
    """SQNR in dB of the median row of a layer's worst weight, where it has one scale, as in PyTorch's kernels."""
    worst = math.inf
    for weight in layer.parameters():
        if weight.dim() > 1 and weight.numel():
            observer = MinMaxObserver(symmetric=True)
            observer.observe(weight.detach())
            rounded = fake_quantize(weight.detach(), observer.qparams())
            worst = min(worst, float(torch.as_tensor(sqnr(weight.detach(), rounded, axis=0)).median()))
    return worst
