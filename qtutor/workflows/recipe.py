"""What a flow was asked for: all that `load` must know to build the same model again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qtutor.machine import describe
from qtutor.models.copying import copy_model
from qtutor.models.operators import kind_of
from qtutor.workflows.backends import SATURATING, choose

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

FLOWS = ("eager", "fx", "pt2e")


@dataclass(frozen=True)
class Recipe:
    """How a model was quantized, or is being trained to be.

    Attributes:
        flow: of `FLOWS`, or "dynamic".
        engine: whose kernels it is for.
        inputs: shape and dtype of each input of the first batch.
        reduced: whether activations keep to 7 of 8 bits, as sums of two products would overflow otherwise.
        keep_float: names of modules that stay in floating point.
        bits: width of weights and activations.
        edges: other widths, by the names of layers.
        fused: names of modules that eager mode merges, group by group.
        trained: whether it is trained through the rounding.
        prepared: whether it is not converted yet.
    """

    flow: str
    engine: str
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    reduced: bool = False
    keep_float: tuple[str, ...] = ()
    bits: int = 8
    edges: Mapping[str, int] = field(default_factory=dict)
    fused: tuple[tuple[str, ...], ...] = ()
    trained: bool = False
    prepared: bool = False

    @classmethod
    def of(cls, model: nn.Module, flow: str, inputs: tuple[Tensor, ...], engine: str | None, **asked: Any) -> "Recipe":
        """Check what was asked for, and choose an engine where none was.

        Raises:
            TypeError: `model` is not a module.
            ValueError: the flow or the engine is unknown, or the engine computes a layer of the model wrongly.
            Unavailable: there is no engine.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"a torch.nn.Module is needed, got {kind_of(model)}")
        if flow not in (*FLOWS, "dynamic"):
            raise ValueError(f"flow must be one of {', '.join(FLOWS)}, got {flow!r}")
        engine = choose(engine, flow, model)
        shapes = tuple((tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in inputs)
        return cls(flow, engine, shapes, engine in SATURATING and not describe().has_int8_dot_product, **asked)

    @classmethod
    def from_header(cls, header: dict[str, Any]) -> "Recipe":
        """Return what `header` gave, from JSON."""
        inputs = tuple((tuple(shape), dtype) for shape, dtype in header["inputs"])
        return cls(**(header | {"inputs": inputs}))

    def header(self) -> dict[str, Any]:
        """Return it as JSON can keep it."""
        return asdict(self)

    def zeros(self) -> tuple[Tensor, ...]:
        """Return inputs of the right shapes and dtypes."""
        return tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in self.inputs)


def recipe_of(model: nn.Module) -> Recipe | None:
    """Return the recipe of a model that a flow made, else None."""
    return model.meta.get("qtutor") if isinstance(model, GraphModule) else vars(model).get("_qtutor")


def remember(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Have a model carry its recipe, through copies too, and return it."""
    if isinstance(model, GraphModule):  # copying one keeps this and no other attribute
        model.meta["qtutor"] = recipe
    else:
        model._qtutor = recipe
    return model


def float_copy(model: nn.Module, training: bool = False) -> nn.Module:
    """Return a copy to quantize.

    Raises:
        ValueError: the model is quantized already, or not float32 on the CPU.
    """
    if recipe_of(model):
        raise ValueError(f"{kind_of(model)} is quantized or prepared already: pass the floating-point model")
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            kind = f"{parameter.dtype} on {parameter.device}"
            raise ValueError(f"{name} is {kind}: PyTorch quantizes float32 on the CPU, so pass model.cpu().float()")
    return copy_model(model).train(training)
