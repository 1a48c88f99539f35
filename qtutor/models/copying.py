"""The one way to copy a model, and what a copy whose layers are replaced needs."""

import copy
from functools import partial
from types import CellType
from typing import Any

from qtutor.models.operators import kind_of
from qtutor.models.tensors import tensors_in

from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def copy_model(model: nn.Module, replacements: dict[int, Any] | None = None) -> nn.Module:
    """Deep-copy a model, with some modules (by id) replaced wherever the model refers to them.

    What a model keeps of a run that had gradients, such as its last activation or the weight that weight_norm
    computed, is copied as a plain tensor: `copy.deepcopy` refuses it.

    Raises:
        ValueError: the model holds what cannot be copied, or a copy would go on to use the given model.
    """
    _check_hooks(model)
    memo = dict(replacements or {})
    for module in model.modules():
        kept = tensors_in(vars(module), records=False)
        memo |= {id(x): x.detach().clone() for x in kept if not x.is_leaf and id(x) not in memo}
        if _holds_a_model(vars(module).get("forward")):  # it would go on to run the given one
            raise ValueError(f"the forward of {kind_of(module)} was replaced by a function: write it into a subclass")
    try:
        copied = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{kind_of(model)} holds what cannot be copied ({error}): keep it elsewhere") from error
    shared = {*copied.modules()} & {*model.modules()} - {x for x in memo.values() if isinstance(x, nn.Module)}
    if shared:
        raise ValueError(f"{kind_of(shared.pop())} gives itself in place of a copy (__deepcopy__): it must be copied")
    return copied


def eval_copy(model: nn.Module, replacements: dict[int, Any] | None = None) -> nn.Module:
    """Copy a model into eval mode."""
    copied = copy_model(model, replacements)
    copied.eval()  # which a model may have overridden, and return nothing
    return copied


def _holds_a_model(function: Any) -> bool:
    """Whether a function knows a module, or a method of one, by its closure, which a copy does not change."""
    cells = getattr(function, "__closure__", None) or ()
    known = [cell.cell_contents for cell in cells if cell != CellType()]  # one may be empty still
    return any(isinstance(each, nn.Module) or isinstance(getattr(each, "__self__", None), nn.Module) for each in known)


def _check_hooks(model: nn.Module) -> None:
    """Refuse hooks that know a module by a closure or a default: those of a copy would go on to write into that one."""
    for name, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            while isinstance(hook, partial):
                hook = hook.func
            if _holds_a_model(hook) or any(isinstance(x, nn.Module) for x in getattr(hook, "__defaults__", None) or ()):
                whose = f"{name or 'the model itself'} ({kind_of(module)})"
                raise ValueError(
                    f"a hook of {whose} holds a module, and a copy would go on to use it: take it off first, with "
                    "handle.remove()"
                )


def through_layers(model: nn.Module) -> nn.Module:
    """Let encoders call their linear layers, whose weights PyTorch's fast path would read; return the model.

    What a padding mask hides then comes out as the layers compute it, where the fast path may give zeros.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return model


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a model in eval mode, with what is computed anew at each call (weight_norm, pruning ...) made permanent."""
    copied = eval_copy(model)
    for module in copied.modules():
        if parametrize.is_parametrized(module):  # by a class that the original shares: nothing of it may be removed
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
        for hook in [*module._forward_pre_hooks.values()]:
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
    return copied
