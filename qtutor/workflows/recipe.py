"""What a flow was asked for: all that `load` must know to build the same model again."""

import copy
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pickle import PicklingError
from typing import Any

from qtutor.machine import describe
from qtutor.models.copying import check_loaded, plain_attributes, plain_copy
from qtutor.models.operators import check_module, kind_of
from qtutor.workflows.backends import at_work, choose
from qtutor.workflows.numbers import travel_with_state

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY
from torch.nn.modules.conv import _ConvNd

FLOWS = ("eager", "fx", "pt2e")
SCRIPTED = "torch.jit made it: put the nn.Module there that it was made of"
"""Why a scripted or traced module stays."""


@dataclass(frozen=True)
class Recipe:
    """How a model was quantized, or is being trained to be.

    Fields are the header of a saved file: add with a default, never rename.

    Attributes:
        flow: of `FLOWS`, or "dynamic".
        engine: whose kernels it is for.
        inputs: shape and dtype of each input of the first batch, None where one is left out.
        reduced: whether activations keep to 7 of 8 bits, as sums of two products would overflow otherwise.
        widened: whether activations have all 8 bits where PyTorch's default for the engine keeps to 7.
        keep_float: names of modules that stay in floating point.
        bits: width of weights and activations.
        edges: other widths, by the names of layers.
        fused: names of modules that eager mode merges, group by group.
        trained: whether it is trained through the rounding.
        prepared: whether it is not converted yet.
        left_float: names of modules that no kernel of the flow takes.
        float_operators: names of functions and methods that no kernel of the flow takes.
        functional: whether what works in place was rewritten when the model was captured.
        in_floats: names of INT8 layers whose kernel is wrong for their shapes.
        infinite: names of nodes of an FX graph that meet infinity, or a mask as far out.
        unrounded: names of those that compute with whole numbers or float64.
        uneven: names of those that no one scale suits.
        between: whether all that works on one scale, or joins what has several, is computed in floats.
    """

    flow: str
    engine: str
    inputs: tuple[tuple[tuple[int, ...], str] | None, ...]
    reduced: bool = False
    widened: bool = False
    keep_float: tuple[str, ...] = ()
    bits: int = 8
    edges: Mapping[str, int] = field(default_factory=dict)
    fused: tuple[tuple[str, ...], ...] = ()
    trained: bool = False
    prepared: bool = False
    left_float: tuple[str, ...] = ()
    float_operators: tuple[str, ...] = ()
    functional: bool = False
    in_floats: tuple[str, ...] = ()
    infinite: tuple[str, ...] = ()
    unrounded: tuple[str, ...] = ()
    uneven: tuple[str, ...] = ()
    between: bool = False

    @classmethod
    def of(cls, model: nn.Module, flow: str, inputs: tuple[Tensor, ...], engine: str | None, **asked: Any) -> "Recipe":
        """Check what was asked for, and choose an engine where none was.

        Raises:
            TypeError: `model` is not a module.
            ValueError: the flow or the engine is unknown.
            Unavailable: there is no engine.
        """
        check_module(model, "quantization")
        if flow not in FLOWS and (flow != "dynamic" or inputs):  # which is given none
            way = ": quantize_dynamic(model) does that, and needs no data" if flow == "dynamic" else ""
            raise ValueError(f"flow must be one of {', '.join(FLOWS)}, got {flow!r}{way}")
        engine = choose(engine, flow, model)
        shapes = tuple(x if x is None else (tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in inputs)
        reduced = engine != "qnnpack" and describe().saturates  # QNNPACK adds up in 32 bits everywhere
        return cls(flow, engine, shapes, reduced, **asked)

    @classmethod
    def from_header(cls, header: dict[str, Any]) -> "Recipe":
        """Return what `asdict` made of one, from JSON."""
        inputs = tuple(each and (tuple(each[0]), each[1]) for each in header["inputs"])
        return cls(**(header | {"inputs": inputs}))

    @property
    def seven(self) -> bool:
        """Whether activations keep to 7 of 8 bits: where sums of two products overflow, or by PyTorch's default."""
        default = self.engine in ("x86", "fbgemm") and not self.trained and not self.widened
        return self.reduced or default

    @property
    def narrow(self) -> bool:
        """Whether codes of any layer have fewer than 8 bits."""
        return self.bits < 8 or bool(self.edges)

    @property
    def clipped(self) -> bool:
        """Whether training kept to fewer codes than the INT8 kernels know."""
        return self.trained and (self.narrow or self.reduced)

    def keeps(self, name: str) -> bool:
        """Whether a module stays in floating point, as far as it is known."""
        return name in self.left_float or any(f"{name}.".startswith(f"{each}.") for each in self.keep_float)

    def some_inputs(self) -> tuple[Tensor, ...]:
        """Return inputs of the right shapes and dtypes: numbers from -1 to 1, or zeros where they are whole."""
        return tuple(each and _ordinary(torch.zeros(each[0], dtype=getattr(torch, each[1]))) for each in self.inputs)


def _ordinary(zeros: Tensor) -> Tensor:
    if not zeros.is_floating_point():
        return zeros
    return torch.linspace(-1, 1, zeros.numel()).view(zeros.shape).to(zeros.dtype)


def recipe_of(model: nn.Module) -> Recipe | None:
    """Return the recipe of a model that a flow made, else None."""
    return _noted(model, "qtutor")


def example_of(prepared: nn.Module) -> tuple[Tensor, ...]:
    """Return the inputs that a model to train was prepared with."""
    return _noted(prepared, "qtutor_example")


def remember(model: nn.Module, recipe: Recipe, **notes: Any) -> nn.Module:
    """Have a model carry its recipe and other notes through copies too; return it.

    Args:
        notes: of a model to train: the `example` that it was prepared with, and the `masks` of what was pruned, by the
            names of parameters, which are held to zero there.
    """
    notes = {"qtutor": recipe} | {f"qtutor_{name}": value for name, value in notes.items()}
    if isinstance(model, GraphModule):  # copying one keeps this and no other attribute
        model.meta |= notes
        travel_with_state(model)
        if _remember_again not in model._deepcopy_hooks:
            model._register_deepcopy_hook(_remember_again)
    else:
        vars(model).update({f"_{name}": value for name, value in notes.items()})
    if recipe.flow == "dynamic":
        model.__reduce_ex__ = partial(_pickled, model, recipe, own=vars(model).get("__reduce_ex__"))
    elif isinstance(model, GraphModule) or not (recipe.prepared or recipe.flow == "pt2e"):
        model.__reduce_ex__ = partial(_refuse_to_pickle, recipe)
    if recipe.flow != "pt2e":
        model.__deepcopy__ = partial(_copied, model, recipe)
        for module in model.modules():
            if "quantized" in type(module).__module__:
                module._load_from_state_dict = partial(_loaded, module, recipe.engine)
    parameters = dict(model.named_parameters())
    for name, mask in (_noted(model, "qtutor_masks") or {}).items():
        if name in parameters and parameters[name].requires_grad:
            parameters[name].register_hook(partial(_masked, mask))
    return model


def _masked(mask: Tensor, gradient: Tensor) -> Tensor:
    return gradient * mask.to(gradient)  # which may be on another device by now


def carry(model: nn.Module, made: nn.Module) -> nn.Module:
    """Give what was made of a model, which may be a graph, its plain attributes, through copies too; return it."""
    for name, value in plain_attributes(model).items():
        if not hasattr(made, name):
            setattr(made, name, value)
            if isinstance(made, GraphModule):
                made.meta.setdefault(_USER_PRESERVED_ATTRIBUTES_KEY, {})[name] = value
    return made


def _remember_again(copied: GraphModule) -> None:
    remember(copied, copied.meta["qtutor"])


def _noted(model: nn.Module, name: str) -> Any:
    return model.meta.get(name) if isinstance(model, GraphModule) else getattr(model, "__dict__", {}).get(f"_{name}")


def _refuse_to_pickle(recipe: Recipe, protocol: int) -> None:
    way = "workflows.save(model, path), and workflows.load(path, float_model)"
    if recipe.prepared:
        way = "torch.save(model.state_dict(), path), and load_state_dict of what prepare_qat gives for the float model"
    raise PicklingError(f"a pickle does not keep what flow={recipe.flow!r} made of this model: use {way}")


def _pickled(model: nn.Module, recipe: Recipe, protocol: int, *, own: Callable | None) -> tuple:
    content = io.BytesIO()
    with _packing(model, recipe):
        torch.save(model, content)
    return _unpickled, (recipe, content.getvalue())


def _unpickled(recipe: Recipe, content: bytes) -> nn.Module:
    with at_work(recipe.engine):
        return remember(torch.load(io.BytesIO(content), weights_only=False), recipe)


def _copied(model: nn.Module, recipe: Recipe, memo: dict) -> nn.Module:
    with _packing(model, recipe):
        copied = copy.deepcopy(model, memo)
    return copied if "__deepcopy__" in vars(copied) else remember(copied, recipe)


def _loaded(layer: Any, engine: str, state: dict, prefix: str, metadata: dict, *args: Any) -> None:
    """Load a layer for the engine that it is for, from a dict that somebody made anew too, without its version."""
    with at_work(engine):
        type(layer)._load_from_state_dict(layer, state, prefix, {"version": layer._version} | metadata, *args)


@contextmanager
def _packing(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Let PyTorch copy or pickle a model in its own way, and pack weights anew for the engine that they are for."""
    mine = {name: vars(model).pop(name) for name in ("__deepcopy__", "__reduce_ex__") if name in vars(model)}
    if own := getattr(mine.get("__reduce_ex__"), "keywords", {}).get("own"):
        model.__reduce_ex__ = own
    try:
        with at_work(recipe.engine):
            yield
    finally:
        vars(model).update(mine)


def float_copy(model: nn.Module) -> nn.Module:
    """Return a copy to quantize, in eval mode, with parametrizations made permanent.

    A qconfig that somebody set before would be taken for the flow's own, so none goes along but None, which keeps a
    layer in float.

    Raises:
        ValueError: the model is quantized already, has no values yet, is not float32 on the CPU, or is wrapped or
            compiled beyond recognition.
    """
    check_module(model, "quantization")
    if recipe_of(model):
        raise ValueError(f"{kind_of(model)} is quantized or prepared already: pass the floating-point model")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("this model is scripted or traced by torch.jit: pass the nn.Module that it was made of")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"this model is wrapped in {kind_of(model)}: pass model.module")
    check_loaded(model)
    for name, parameter in model.named_parameters():
        other = parameter.is_floating_point() and parameter.dtype != torch.float32
        if parameter.device.type != "cpu" or other:
            kind = f"{parameter.dtype} on {parameter.device}"
            mixed = other and any(each.dtype == torch.float32 for each in model.parameters())
            casts = f", and take the casts to {parameter.dtype} out of forward" if mixed else ""
            raise ValueError(
                f"{name} is {kind}: PyTorch quantizes float32 on the CPU, so pass copy.deepcopy(model).cpu().float()"
                f"{casts}"
            )
    copied = plain_copy(model)
    for module in copied.modules():
        if vars(module).get("qconfig"):
            del module.qconfig
        if isinstance(module, _ConvNd):
            _count(module)
    return copied


def _count(layer: _ConvNd) -> None:
    """Say in numbers, one for each axis, how a convolution moves, and how it pads, where both ends get the same."""
    for name in ("stride", "padding", "dilation", "output_padding"):
        if len(given := getattr(layer, name)) == 1:
            setattr(layer, name, tuple(given) * len(layer.kernel_size))
    if not isinstance(layer.padding, str):
        return
    total = [0] * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if not any(each % 2 for each in total):
        layer.padding = tuple(each // 2 for each in total)


def scripted(model: nn.Module) -> list[str]:
    """Return the names of the modules with weights that torch.jit made, of each the outermost."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(f"{name}.".startswith(f"{each}.") for each in found)
        if isinstance(module, torch.jit.ScriptModule) and not inside and next(module.parameters(), None) is not None:
            found.append(name)
    return found
