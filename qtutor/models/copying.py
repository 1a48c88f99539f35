"""The one way to copy a model."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def copy_model(model: nn.Module, replacements: dict[int, Any] | None = None) -> nn.Module:
    """Deep-copy a model, with some modules (by id) replaced wherever the model refers to them.

    What a model keeps of a run that had gradients, such as its last activation or the weight that weight_norm
    computed, is copied as a plain tensor: `copy.deepcopy` refuses it.
    """
    memo = dict(replacements or {})
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a model in eval mode, with what is computed anew at each call (weight_norm, pruning ...) made permanent."""
    copied = copy_model(model).eval()
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
