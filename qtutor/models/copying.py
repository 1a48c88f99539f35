"""The one way to copy a model."""

import copy
from typing import Any

from torch import Tensor, nn


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
