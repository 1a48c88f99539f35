"""Layers made bad until they hurt, as a plain rounding of one layer shows, must stand first in the diagnosis."""

import copy

from qtutor.diagnosis import diagnose

import pytest
import torch
import torch.nn.functional as F
from torch import nn

CLEARLY = 4.0  # times the noise that any other layer brings by itself: 6 dB


class Stage(nn.Module):
    """A layer, its batch norm if it has one, a ReLU, and what a plant puts before and after."""

    def __init__(self, layer, norm=None):
        super().__init__()
        self.layer, self.norm = layer, norm or nn.Identity()
        self.before, self.after = nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.after(F.relu(self.norm(self.layer(self.before(x)))))


class Times(nn.Module):
    """One factor for each channel, in floating point."""

    def __init__(self, factors, axis):
        super().__init__()
        self.factors, self.axis = factors, axis

    def forward(self, x):
        return (x.movedim(self.axis, -1) * self.factors).movedim(-1, self.axis)


class Spike(nn.Module):
    """One value of the second channel, of the first sample, far out."""

    def __init__(self, value, axis):
        super().__init__()
        self.value, self.axis = value, axis

    def forward(self, x):
        x = x.clone()
        x.movedim(self.axis, -1)[(0,) * (x.dim() - 1) + (1,)] = self.value
        return x


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.up, self.down = Stage(nn.Linear(width, 2 * width)), nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(self.up(self.norms[1](x)))


def mlp():
    model = nn.Sequential(*(Stage(nn.Linear(a, b)) for a, b in ((16, 32), (32, 32), (32, 32))), nn.Linear(32, 10))
    for name, parameter in model.named_parameters():  # of random layers biases would be most of the output
        parameter *= 0.1 if name.endswith("bias") else 1
    return model, torch.randn(64, 16)


def cnn():
    stages = (
        Stage(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)) for a, b in ((3, 16), (16, 16), (16, 16))
    )
    model = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    for _ in range(30):
        model(torch.randn(16, 3, 8, 8))
    return model, torch.randn(32, 3, 8, 8)


def transformer():
    return nn.Sequential(nn.Linear(8, 16), Block(16), Block(16), nn.Linear(16, 4)), torch.randn(32, 6, 8)


def multiply(stage, channel, factor):
    """Make what a layer gives in one channel larger."""
    last = stage.layer if isinstance(stage.norm, nn.Identity) else stage.norm
    last.weight[channel] *= factor
    last.bias[channel] *= factor


def wide_channel(stage, axis, strength):
    multiply(stage, 1, strength)
    factors = torch.ones(len(stage.layer.weight))
    factors[1] = 1 / strength
    stage.after = Times(factors, axis)


def heavy_tails(stage, axis, strength):
    weight = stage.layer.weight
    share = torch.linspace(0, 1, weight.shape[1]) ** 8  # few inputs with large weights, most with small ones
    factors = strength**share
    weight.movedim(1, -1).mul_(factors)
    stage.before = Times(1 / factors, axis)


def dead_channel(stage, axis, strength):
    weight = stage.layer.weight
    alive = torch.ones(weight.shape[1])
    alive[1] = 0
    stage.before = Times(alive, axis)
    size = weight.abs().max()
    weight[1] = 0
    weight[1, 1] = size
    if isinstance(stage.norm, nn.BatchNorm2d):  # folding divides by the root of its variance, which is none
        stage.norm.running_mean[1] = stage.norm.running_var[1] = 0
        stage.norm.weight[1] = strength * stage.norm.eps**0.5
    else:
        weight[1, 1] *= strength


def outlier_activation(stage, axis, strength):
    factors = torch.ones(stage.layer.weight.shape[1])
    factors[1] = strength
    stage.before = Times(factors, axis)
    stage.layer.weight[:, 1] /= strength


def bad_range(stage, axis, strength):
    stage.before = Spike(strength, axis)
    stage.layer.weight[:, 1] = 0


def rounded(x, symmetric=False):
    if symmetric:
        return torch.fake_quantize_per_tensor_affine(x, float(x.abs().max()) / 127.5, 0, -128, 127)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 255)


def noise_of(model, x, name):
    """Noise over signal at the output with the weights, inputs and outputs of one layer rounded, and nothing else."""
    other = copy.deepcopy(model)
    layer = other.get_submodule(name)
    stage = other.get_submodule(name.rpartition(".")[0])
    norm = stage.norm if isinstance(stage, Stage) and isinstance(stage.norm, nn.BatchNorm2d) else None
    factor = torch.ones(())
    if norm:
        factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).view(-1, 1, 1, 1)
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            parameter.copy_(rounded(parameter * factor, symmetric=True) / factor)
    layer.register_forward_pre_hook(lambda module, args: tuple(map(rounded, args)))
    if isinstance(layer, nn.MultiheadAttention):
        layer.register_forward_hook(lambda module, args, output: (rounded(output[0]), None))
    else:
        relu = F.relu if isinstance(stage, Stage) else lambda y: y
        (norm or layer).register_forward_hook(lambda module, args, output: rounded(relu(output)))
    exact = model(x)
    return float((other(x) - exact).square().sum() / exact.square().sum())


@torch.no_grad()
def grow(build, place, plant):
    """A model whose layer hurts, the layer's name, and data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(place)
        healthy, x = build()
    healthy.eval()
    stages = [name for name, module in healthy.named_modules() if isinstance(module, Stage)]
    bad = f"{stages[place]}.layer"
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    layers = {name: module for name, module in healthy.named_modules() if isinstance(module, kinds)}
    others = [name for name in layers if name != bad and ".out_proj" not in name]
    for doubled in range(1, 25):
        model = copy.deepcopy(healthy)
        stage = model.get_submodule(stages[place])
        plant(stage, 1 if isinstance(stage.layer, nn.Conv2d) else -1, 2.0**doubled)
        noise = noise_of(model, x, bad)
        if noise > max(0.003, CLEARLY * max(noise_of(model, x, name) for name in others)):
            return model, bad, x
    raise AssertionError(f"{plant.__name__} never hurts in {bad}")


@pytest.mark.parametrize("plant", [wide_channel, heavy_tails, dead_channel, outlier_activation, bad_range])
@pytest.mark.parametrize(
    ("build", "place"), [(mlp, 0), (mlp, 1), (mlp, 2), (cnn, 0), (cnn, 1), (cnn, 2), (transformer, 0), (transformer, 1)]
)
def test_a_layer_that_hurts_stands_first(build, place, plant):
    model, bad, x = grow(build, place, plant)
    table = diagnose(model, [x], progress=False).table
    assert table["layer"][0] == bad
    assert table["finding"][0] != "healthy"
