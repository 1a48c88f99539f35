"""A model and data for `qtutor diagnose`, where none is at hand: `qtutor.course.example:build` and `:loader`.

`spoilt` is for a room that guesses: which layer it is, only the diagnosis says.
"""

import random

from qtutor.samples import digits, trained

import torch
from torch import nn


def build() -> nn.Module:
    """Return the network of lesson 10, which breaks where a weight has one scale for the whole tensor."""
    return trained("digits_depthwise")


def spoilt(layer: str | None = None) -> nn.Module:
    """Return a network of the digits that computes what it did, though one channel is a hundred times as loud.

    The layer after it takes the factor back, as in equalization; a ReLU between lets a positive factor pass.

    Args:
        layer: the name of the convolution that has the loud channel; None draws one.
    """
    model = trained("digits_cnn")
    *convolutions, last = [name for name, each in model.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    layer = random.choice(convolutions) if layer is None else layer
    after = [*convolutions, last][convolutions.index(layer) + 1]
    norm = layer.replace("conv", "bn")
    for name in (f"{norm}.weight", f"{norm}.bias"):
        model.get_parameter(name).data[0] *= 100
    model.get_parameter(f"{after}.weight").data[:, 0] /= 100
    return model


def loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the batches on which lesson 10 chooses."""
    return digits().validation.batches(100)
