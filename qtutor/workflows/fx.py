"""The FX flow: torch.fx traces the model, and PyTorch puts observers where integers can be."""

import warnings
from types import ModuleType
from typing import Any

from qtutor.models.operators import Trait, target_of, traits
from qtutor.workflows.backends import TRANSPOSED, torch_ao
from qtutor.workflows.low_bits import narrow_qconfig, reduced_qconfig, trained_qconfig
from qtutor.workflows.recipe import Recipe

from torch import Tensor, nn
from torch.fx import GraphModule


class _Skipped(nn.Identity):
    """An Identity that torch.fx does not see, so that what it stands between can be merged."""


class _FloatPReLU(nn.PReLU):
    """A PReLU that torch.fx leaves in floats: its kernel, as of PyTorch 2.13, scales positive codes too."""


def prepare(model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Return a traced model with observers, or fake-quantizers if it is to be trained; the given one is used up."""
    ao = torch_ao()
    for module in model.modules():
        if type(module) is nn.Identity:  # as where `fuse` folded a batch norm
            module.__class__ = _Skipped
        elif type(module) is nn.PReLU:
            module.__class__ = _FloatPReLU
    prepare = ao.quantize_fx.prepare_qat_fx if recipe.trained else ao.quantize_fx.prepare_fx
    return prepare(model, qconfigs(ao, recipe), inputs)


def qconfigs(ao: ModuleType, recipe: Recipe) -> Any:
    """Return PyTorch's own qconfig mapping for the engine, narrowed to the bits."""
    get_default = ao.get_default_qat_qconfig_mapping if recipe.trained else ao.get_default_qconfig_mapping
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Default qconfig of oneDNN backend with reduce_range of false")  # see below
        mapping = get_default(recipe.engine)
    if recipe.trained:
        mapping.set_global(trained_qconfig(mapping.global_qconfig, ao.FakeQuantize))
    if recipe.reduced:
        mapping.set_global(reduced_qconfig(mapping.global_qconfig))
    for name, bits in recipe.edges.items():
        mapping.set_module_name(name, narrow_qconfig(mapping.global_qconfig, bits))
    for name in recipe.keep_float:
        mapping.set_module_name(name, None)
    for kind in TRANSPOSED:  # whose weights no engine takes per channel, though onednn's mapping says so
        weight = ao.default_weight_fake_quant if recipe.trained else ao.default_weight_observer
        mapping.set_object_type(kind, narrow_qconfig(mapping.global_qconfig._replace(weight=weight), recipe.bits))
    return mapping.set_global(narrow_qconfig(mapping.global_qconfig, recipe.bits))


def convert(prepared: nn.Module) -> nn.Module:
    """Return the INT8 model; the prepared one is used up."""
    return torch_ao().quantize_fx.convert_fx(prepared)


def straighten(model: nn.Module) -> None:
    """Undo channels-last before each clamp, in place: as of PyTorch 2.13, QNNPACK would mix the codes up."""
    from torch.ao.nn.quantized import ReLU6

    def clamps(target: Any) -> bool:
        return target is ReLU6 or Trait.CLAMPS in traits(target)

    if not isinstance(model, GraphModule):
        for module in model.modules():
            if clamps(type(module)):
                module.register_forward_pre_hook(lambda module, inputs: inputs[0].contiguous())
        return
    for node in model.graph.nodes:
        if clamps(target_of(node, model)) and node.args:
            with model.graph.inserting_before(node):
                node.args = (model.graph.call_method("contiguous", node.args[:1]), *node.args[1:])
    model.recompile()
