"""The runtimes of PyTorch itself: eager, channels-last, BF16, Inductor, and its INT8 flows."""

from collections.abc import Callable
from typing import Any

from qtutor.benchmark import size_bytes
from qtutor.models.batches import Batch
from qtutor.models.copying import copy_model
from qtutor.runtimes.exported import Exported, no_notices, shapes_of
from qtutor.workflows import needs_compiler, quantize_static
from qtutor.workflows.backends import at_work
from qtutor.workflows.inductor import lower
from qtutor.workflows.recipe import recipe_of

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def eager(exported: Exported) -> tuple[Callable, int]:
    return exported.model, size_bytes(exported.model)


def channels_last(exported: Exported) -> tuple[Callable, int]:
    model = _by_pixels(copy_model(exported.model))
    return lambda *inputs: model(*tree_map_only(Tensor, _by_pixel, inputs)), size_bytes(model)


def bf16(exported: Exported) -> tuple[Callable, int]:
    model = _by_pixels(copy_model(exported.model).to(torch.bfloat16))

    def cast(tree: Any, come_from: torch.dtype, to: torch.dtype) -> Any:
        return tree_map_only(Tensor, lambda x: x.to(to) if x.dtype == come_from else x, tree)

    def run(*inputs: Tensor) -> Any:
        narrow = cast(tree_map_only(Tensor, _by_pixel, inputs), torch.float32, torch.bfloat16)
        return cast(model(*narrow), torch.bfloat16, torch.float32)

    run(*exported.inputs)
    return run, size_bytes(model)


def compiled(exported: Exported) -> tuple[Callable, int]:
    with no_notices():
        run = quiet_where_new(lower(exported.model))
    with needs_compiler():
        run(*exported.inputs)
    return run, size_bytes(exported.model)


def fx(exported: Exported) -> tuple[Callable, int]:
    model = quantize_static(exported.model, map(Batch, exported.batches))
    recipe = recipe_of(model)
    assert recipe is not None
    with at_work(recipe.engine):  # freezing packs the weights anew
        return _traced(model, exported.inputs), size_bytes(model)


def pt2e(exported: Exported) -> tuple[Callable, int]:
    model = quantize_static(exported.model, map(Batch, exported.batches), flow="pt2e", compile=True)
    return quiet_where_new(model), size_bytes(model)


def _traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """The operators of a model without the Python between them; the model itself where it cannot be traced."""
    try:
        with torch.no_grad(), no_notices():
            return torch.jit.freeze(torch.jit.trace(model, inputs, check_trace=False, strict=False))
    except Exception:
        return model


def quiet_where_new(run: Callable[..., Any]) -> Callable[..., Any]:
    """Hide notices where Inductor compiles, which is where it meets new shapes."""
    seen = set()

    def quiet(*inputs: Tensor) -> Any:
        shapes = shapes_of(inputs)
        if shapes in seen:
            return run(*inputs)
        with no_notices():
            outputs = run(*inputs)
        seen.add(shapes)
        return outputs

    return quiet


def _by_pixel(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _by_pixels(model: nn.Module) -> nn.Module:
    """Lay out the weights of convolutions of images so that their kernels need not; in place."""
    for parameter in model.parameters():
        parameter.data = _by_pixel(parameter.data)
    return model
