"""What the linear layers of a model read: the Hessians that GPTQ takes."""

from types import SimpleNamespace

from qtutor.language.measuring import WINDOW, windows
from qtutor.lowbit import hessian
from qtutor.observers import observing

import torch
from torch import Tensor, nn


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a model by their qualified names, in its own order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def hessians(model: nn.Module, tokens: Tensor, window: int = WINDOW) -> dict[str, Tensor]:
    """Return H = X^T X / n of what each linear layer reads while the model reads a text.

    Layers that read the same, such as queries, keys and values, have equal Hessians.

    Args:
        model: from tokens `(N, T)` to logits.
        tokens: `(length,)`, cut into windows as `bits_per_character` does it.
        window: tokens that are read together.

    Returns:
        By the name of the layer, `(in, in)` float64.

    Raises:
        ValueError: the text is shorter than two windows, the model has no linear layer, or never calls one.
    """
    sums = {name: _Sum() for name in linear_layers(model)}
    if not sums:
        raise ValueError(f"{type(model).__name__} has no linear layer: there is nothing to calibrate")
    with observing(model, sums, inputs=True), torch.no_grad():  # type: ignore[arg-type]  # all it needs is `observe`
        for inputs, _ in windows(tokens, window):
            model(inputs)
    if idle := [name for name, found in sums.items() if not found.count]:
        raise _never_called(model, *idle)
    return {name: found.total / found.count for name, found in sums.items()}


def layer_inputs(model: nn.Module, layer: str, tokens: Tensor, window: int = WINDOW) -> Tensor:
    """Return what one layer reads while the model reads a text: `(windows, window, in)`.

    Raises:
        ValueError: the text is shorter than two windows, the model has no such layer, or never calls it.
    """
    batches: list[Tensor] = []
    seen = SimpleNamespace(observe=lambda x: batches.append(x.clone()))
    with observing(model, {layer: seen}, inputs=True), torch.no_grad():  # type: ignore[dict-item]
        for inputs, _ in windows(tokens, window):
            model(inputs)
    if not batches:
        raise _never_called(model, layer)
    return torch.cat(batches)


def _never_called(model: nn.Module, *layers: str) -> ValueError:
    return ValueError(f"{type(model).__name__} never calls {', '.join(layers)}: nothing goes into a layer at rest")


class _Sum:
    """Of the products of inputs, over all that were seen."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def observe(self, x: Tensor) -> Tensor:
        count = x.numel() // x.shape[-1]
        self.total, self.count = self.total + hessian(x) * count, self.count + count
        return x
