"""Dynamic quantization: INT8 weights, and activations that get a range at each call."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MethodType
from typing import Any

from qtutor.affine import sqnr
from qtutor.models.bytecode import bound_by_code
from qtutor.models.copying import check_weights, copy_model, through_layers
from qtutor.models.operators import called, kind_of
from qtutor.observers import round_min_max
from qtutor.simulation.layers import with_weights
from qtutor.workflows.backends import at_work, let_go, torch_ao
from qtutor.workflows.limits import WELL
from qtutor.workflows.recipe import SCRIPTED, Recipe, float_copy, remember, scripted
from qtutor.workflows.telling import listed, tell, tell_what_is_hidden

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_FEW = 3  # inputs of a layer that are named
_KINDS = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)


def quantize_dynamic(model: nn.Module, *, engine: str | None = None) -> nn.Module:
    """Quantize the weights of linear and recurrent layers to INT8; activations get a range at each call.

    One range for the whole input of a layer: a row's result depends on the other rows of its batch.

    Raises:
        TypeError: `model` is not a module.
        ValueError: nothing would shrink, for the model has no such layer, or each must stay; a weight is not finite;
            or the model is not float32 on the CPU.
        Unavailable: no torch.ao or no engine.
    """
    recipe = Recipe.of(model, "dynamic", (), engine)
    with at_work(recipe.engine):
        copied = float_copy(model)
        check_weights(copied)
        layers = {name: layer for name, layer in copied.named_modules() if type(layer) in _KINDS}
        stays = bound_by_code(copied, layers)
        stays |= {name: reason for name, layer in layers.items() if (reason := _obstacle(layer))}
        if stays.keys() == layers.keys():
            raise ValueError(f"nothing would shrink: {_why(copied, stays)}")
        for name, layer in layers.items():
            if name not in stays:
                _tell_of_weights(called(name, layer), layer)
        if left := _never_taken(copied) | stays:
            tell(f"quantize_dynamic leaves in floating point: {listed(copied, left)}")
        tell_what_is_hidden(copied, "quantize_dynamic")
        return convert(copied, replace(recipe, left_float=tuple(stays)))


def convert(copied: nn.Module, recipe: Recipe) -> nn.Module:
    """Return what a recipe makes of a float copy, which is used up; the engine is at work."""
    quantize = torch_ao("use torchao.quantization.quantize_ instead, for linear layers").quantize_dynamic
    through_layers(copied)
    kept = recipe.left_float
    layers = [layer for name, layer in copied.named_modules() if type(layer) in _KINDS and name not in kept]
    for layer in layers:
        if type(layer) is not nn.Linear and not layer.bias:  # the kernels need biases, and zero is one
            for path, weight in [*layer.named_parameters(recurse=False)]:
                setattr(layer, path.replace("weight", "bias"), nn.Parameter(torch.zeros(len(weight))))
            layer.bias = True
    swapped = quantize(nn.ModuleList(layers), {*_KINDS}, dtype=torch.qint8, inplace=True)
    let_go(layers)
    for module in swapped:
        vars(module).update(_methods(module))
    replaced = {id(layer): module for layer, module in zip(layers, swapped, strict=True)}
    return remember(copy_model(copied, replaced), recipe)  # in the lists, too, that a model may keep them in


def takes(layer: nn.Module) -> bool:
    """Whether `quantize_dynamic` replaces a layer of some model."""
    return type(layer) in _KINDS and not _obstacle(layer)


def _obstacle(layer: nn.Module) -> str:
    """Why a layer cannot be replaced, or ""."""
    if getattr(layer, "proj_size", 0):
        return (
            "it has a proj_size, and PyTorch has no INT8 kernel for that in any flow: project with a linear layer "
            "behind an LSTM without proj_size instead"
        )
    return ""


def _never_taken(model: nn.Module) -> dict[str, str]:
    """The names of the layers with weights, and of the weights, that the flow does not know."""
    modules, reasons = dict(model.named_modules()), dict.fromkeys(scripted(model), SCRIPTED)
    inside = tuple(f"{name}." for name in reasons)
    names = [name for name in with_weights(model) if type(modules.get(name)) not in _KINDS]
    return {name: "" for name in names if not name.startswith(inside)} | reasons


def _why(model: nn.Module, stays: Mapping[str, str]) -> str:
    """Say why no layer of a model is replaced."""
    if stays:
        return f"these have to stay in floating point: {listed(model, stays)}"
    found = Counter(kind_of(m) for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    return (
        f"quantize_dynamic takes {', '.join(kind.__name__ for kind in _KINDS)}, and this model has "
        f"{', '.join(f'{n} {kind}' for kind, n in found.items()) or 'no layer with weights'}. quantize_static takes "
        "convolutions"
    )


def _tell_of_weights(name: str, layer: nn.Module) -> None:
    """Tell of a layer that keeps little of its weights."""
    if (coarse := _coarse(layer)) < WELL:
        way = "try qtutor.repair.equalize(model) before"
        if type(layer) is not nn.Linear:
            call = f"torch.ao.quantization.quantize_dynamic(model, {{torch.nn.{kind_of(layer)}}}, dtype=torch.float16)"
            way = f"{call} keeps them, in half the memory of float32 and a file as large as before"
        tell(
            f"{name} keeps its weights to {coarse:.1f} dB only: each of its tensors has one scale, and a few weights "
            f"are far larger than the rest: {way}"
        )
    elif isinstance(layer, nn.Linear) and (lost := _lost_inputs(layer.weight.detach())):
        few = ", ".join(map(str, lost[:_FEW])) + (" ..." if len(lost) > _FEW else "")
        tell(
            f"{name} rounds to zero all weights of {len(lost)} of its {layer.in_features} inputs ({few}), which are "
            "far smaller than the rest: where that input is as much larger than the others, divide it by a number "
            "before the layer, and multiply these weights by that"
        )


def _methods(layer: nn.Module) -> dict[str, Callable]:
    """What a quantized layer has of its own, and its copies and pickles have again."""
    return {
        "forward": MethodType(_taking_one(type(layer)), layer),
        "flatten_parameters": _nothing,  # which a forward may call; packed weights need no flattening
        "__reduce_ex__": functools.partial(_reduced, layer),
    }


def _reduced(layer: nn.Module, protocol: int) -> tuple:
    return _blank, (type(layer),), {name: each for name, each in vars(layer).items() if name not in _methods(layer)}


def _blank(kind: type[nn.Module]) -> nn.Module:
    layer = kind.__new__(kind)
    vars(layer).update(_methods(layer))
    return layer


@functools.cache
def _taking_one(kind: type[nn.Module]) -> Callable:
    """The forward of a class of quantized layers that takes one sample too: a row, or a sequence; under autocast too.

    A layer has it as a method; it wraps the one of the class, which TorchScript reads.
    """
    given, in_batch = _in_float32(kind.forward), 2 if kind.__name__.endswith("Cell") else 3

    @functools.wraps(kind.forward)
    def linear(self: nn.Module, input: Tensor) -> Tensor:
        return given(self, input) if input.dim() > 1 else given(self, input[None])[0]

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, input: Any, hx: Any = None) -> Any:
        if not isinstance(input, Tensor) or input.dim() != in_batch - 1:
            return given(self, input, hx)
        axis = 0 if in_batch == 2 or self.batch_first else 1
        result = given(self, input.unsqueeze(axis), tree_map_only(Tensor, lambda h: h.unsqueeze(-2), hx))
        if in_batch == 2:
            return tree_map_only(Tensor, lambda h: h.squeeze(0), result)
        output, state = result
        return output.squeeze(axis), tree_map_only(Tensor, lambda h: h.squeeze(-2), state)

    return linear if kind.__name__ == "Linear" else forward


def _in_float32(forward: Callable) -> Callable:
    """A forward that is given float32 under autocast too, as kernels take nothing else; the result is cast back."""

    def cast(self: nn.Module, input: Any, *state: Any) -> Any:
        if not torch.is_autocast_enabled("cpu") or not input.data.is_floating_point():
            return forward(self, input, *state)
        result = forward(self, *_floats_to(torch.float32, (input, *state)))
        return _floats_to(input.data.dtype, result)

    return cast


def _floats_to(dtype: torch.dtype, tree: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, tree)


def _nothing() -> None:
    pass


def _lost_inputs(weight: Tensor) -> list[int]:
    """The columns of a weight of which nothing but zeros is left, though they are not zero."""
    rounded = round_min_max(weight, symmetric=True)
    return [*map(int, (weight.any(0) & ~rounded.any(0)).nonzero().flatten())]


def _coarse(layer: nn.Module) -> float:
    """SQNR in dB of the median row of a layer's worst weight, where it has one scale, as in PyTorch's kernels."""
    worst = math.inf
    for weight in layer.parameters():
        if weight.dim() > 1 and weight.numel():
            rounded = round_min_max(weight.detach(), symmetric=True)
            worst = min(worst, float(torch.as_tensor(sqnr(weight.detach(), rounded, axis=0)).median()))
    return worst
