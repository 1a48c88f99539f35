"""Inductor's kernels of a model, compiled once for each shape of the inputs."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def lower(model: nn.Module) -> Callable[..., Any]:
    """Return what runs a model in Inductor's kernels, which it compiles where inputs have new shapes.

    Frozen, for only then are the weights packed. Inductor would compile anew for inference mode, and again for tensors
    that were made in it; so that mode is left, and such a tensor is read as an ordinary one.
    """
    run = torch.compile(model, dynamic=False)

    def lowered(*inputs: Any) -> Any:
        from torch._inductor import config

        with torch.inference_mode(False), torch.no_grad(), config.patch(freezing=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="To copy construct from a tensor", module=r"torch\._inductor")
            return run(*tree_map_only(Tensor, _ordinary, inputs))

    return lowered


def _ordinary(x: Tensor) -> Tensor:
    """Return a view of a tensor without the mark of inference mode."""
    return torch.empty(0, dtype=x.dtype).set_(x) if x.is_inference() else x
