"""What the linear layers of a model read: the Hessians that GPTQ takes."""

from qtutor.language.measuring import WINDOW, windows
from qtutor.lowbit import hessian
from qtutor.models.running import input_and_output
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
        raise ValueError(f"{type(model).__name__} never calls {', '.join(idle)}: nothing goes into a layer at rest")
    return {name: found.total / found.count for name, found in sums.items()}


def layer_inputs(model: nn.Module, layer: str, tokens: Tensor, window: int = WINDOW) -> Tensor:
    """Return what one layer reads while the model reads a text: `(windows, window, in)`.

    Raises:
        AttributeError: the model has no such layer.
        ValueError: the text is shorter than two windows, or the model never calls the layer.
    """
    return torch.cat([input_and_output(model, layer, inputs)[0] for inputs, _ in windows(tokens, window)])


class _Sum:
    """Of the products of inputs, over all that were seen."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def observe(self, x: Tensor) -> Tensor:
        count = x.numel() // x.shape[-1]
        self.total, self.count = self.total + hessian(x) * count, self.count + count
        return x
