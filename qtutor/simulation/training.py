"""A model that rounds while it trains, with scales from what is seen, or learned: all else is the same."""

from typing import Literal

from qtutor.affine import LearnedFakeQuantizer, fake_quantize, grid
from qtutor.models.copying import copy_model
from qtutor.models.operators import PRODUCTS
from qtutor.observers import MinMaxObserver, MovingAverageMinMaxObserver

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Scales = Literal["min-max", "LSQ", "LSQ's start"]


class MinMaxFakeQuantizer(nn.Module):
    """Fake-quantize with a scale from the extremes, found as PyTorch's training flow finds it.

    Without `axis`, of activations: an average of the extremes of the batches, which moves in training mode only.
    With `axis`, of weights: the extremes of each channel as they are now, on a symmetric grid.

    Args:
        quant_min: lowest code; 0 after a ReLU.
        axis: the axis of the channels; None for one scale.
    """

    def __init__(self, quant_min: int, quant_max: int, *, axis: int | None = None):
        super().__init__()
        kind = MovingAverageMinMaxObserver if axis is None else MinMaxObserver
        self.settings = {"quant_min": quant_min, "quant_max": quant_max, "axis": axis, "symmetric": axis is not None}
        self.observer, self.started = kind(**self.settings), False

    def forward(self, x: Tensor) -> Tensor:
        if self.settings["axis"] is not None:
            self.observer = MinMaxObserver(**self.settings)  # of the weight as it is now
        if self.settings["axis"] is not None or self.training or not self.started:
            self.observer.observe(x.detach())
            self.started = True
        return fake_quantize(x, self.observer.qparams())


def round_in_training(model: nn.Module, images: Tensor, bits: int, scales: Scales = "LSQ") -> nn.Module:
    """Return a copy that rounds its weights and what its ReLUs give, while it trains and at work.

    The first layer with its ReLU, and the last layer, stay in floating point. Batch norms stay as they are: behind
    a rounded filter one only gives each channel another scale. Whatever `scales` says, the layers, the grids
    and the way the gradient passes are the same, so that two copies differ in the choice of the scales alone.

    Args:
        model: convolutions and linear layers, with a module for each ReLU.
        images: the first batch, from which the scales start.
        bits: width of the codes, from 2.
        scales: "min-max" follows the extremes; "LSQ" learns each scale, as Esser et al. 2020 do; "LSQ's start" is
            where LSQ starts, held there.

    Raises:
        ValueError: `scales` is none of these.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> rounded = round_in_training(model, torch.randn(8, 4), bits=2)
        >>> len(rounded[2].weight[0].unique()) <= 4, len(model[2].weight[0].unique())
        (True, 4)
    """
    if scales not in ("min-max", "LSQ", "LSQ's start"):
        raise ValueError(f"scales must be 'min-max', 'LSQ' or \"LSQ's start\", got {scales!r}")
    model, (low, high), (_, most) = copy_model(model), grid(bits), grid(bits, signed=False)
    layers = [module for module in model.modules() if isinstance(module, PRODUCTS)]
    for layer in layers[1:-1]:
        weights = len(layer.weight)
        learned = LearnedFakeQuantizer(low, high, axis=0, channels=weights)
        of_weight = MinMaxFakeQuantizer(low, high, axis=0) if scales == "min-max" else learned
        parametrize.register_parametrization(layer, "weight", of_weight)
    relus = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    for name in relus[1:]:
        rounds = MinMaxFakeQuantizer(0, most) if scales == "min-max" else LearnedFakeQuantizer(0, most)
        model.set_submodule(name, nn.Sequential(model.get_submodule(name), rounds))
    with torch.no_grad():
        model.eval()(images)
    for module in model.modules():
        if scales == "LSQ's start" and isinstance(module, LearnedFakeQuantizer):
            module.scale.requires_grad_(False)
    return model
