"""Give back the mean that rounding the weights takes from each channel.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2.
"""

import sys
from collections.abc import Iterable

from qtutor.models.batches import read_some
from qtutor.models.copying import copy_model
from qtutor.simulation import Configuration, Simulation

import torch
from torch import Tensor, nn


@torch.no_grad()
def correct_bias(model: nn.Module, data: Iterable, configuration: Configuration | None = None) -> nn.Module:
    """Return a copy with biases that give back the mean that rounding the weights will take.

    For each output channel of each linear layer and convolution, the mean over `data` of what the
    rounded weight gives, less what the weight gives, on the inputs of the float model, is taken off
    the bias; a layer without one gets one.

    Args:
        data: batches, as in `diagnosis.diagnose`.
        configuration: how the weights are going to be quantized; 8 bits per tensor by default.

    Raises:
        TypeError, ValueError: as in `diagnosis.diagnose`.

    Source: Nagel et al. 2019, section 4.2, with means measured rather than derived.
    """
    configuration = configuration or Configuration()
    batches, _ = read_some(data, sys.maxsize)
    simulation = Simulation.of(model, batches[0])
    rounding = simulation.round(configuration)
    sums: dict[str, list] = {}

    def compare(name: str, exact: Tensor, rounded: Tensor) -> None:
        total, count = sums.get(name, (0.0, 0))
        sums[name] = total + (rounded - exact).sum(dim=1), count + exact.shape[1]

    names = [name for name in simulation.products if name not in configuration.keep_float]
    with simulation.comparing(rounding, names, compare):
        for batch in batches:
            simulation.run(batch)
    corrected = copy_model(model)
    for name, (total, count) in sums.items():
        layer = corrected.get_submodule(name)
        shift = (total / count).to(layer.weight)
        before = 0 if layer.bias is None else layer.bias.detach()
        layer.bias = nn.Parameter(before - shift, requires_grad=layer.weight.requires_grad)
    return corrected
