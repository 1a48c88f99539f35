"""Models as people have them, on which the tests of flows stumble together."""

from collections import OrderedDict

from qtutor.workflows import (
    convert,
    prepare_qat,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
)

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

FLOWS = ("fx", "pt2e")
ENGINES = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]


PYTORCH_RETIRES = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]
"""What PyTorch warns of in each flow, and nobody here can change."""


class Forward(nn.Module):
    """Layers by name, and a forward as a function of the module."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def two_convolutions(between):
    return Forward(between, first=nn.Conv2d(3, 8, 3, padding=1), second=nn.Conv2d(8, 4, 1)).eval()


class Named(OrderedDict):
    """A mapping with attributes, as language models give it."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


ROWS = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))


def two_layers(forward=lambda self, x: self.second(F.relu(self.first(x)))):
    torch.manual_seed(0)
    return Forward(forward, first=nn.Linear(16, 16), second=nn.Linear(16, 4)).eval()


def scaled(layer, x):
    return 3 * F.linear(x, layer.weight, layer.bias)


def with_forward(make):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    model[0].forward = make(model)
    return model


CONVERT = {
    "static": lambda model, x: quantize_static(model, [x]),
    "dynamic": lambda model, x: quantize_dynamic(model),
    "4 bits": lambda model, x: quantize_weights(model),
}


class Asks(nn.Module):
    """Its forward is given; `layers` are linear, and so is `head`."""

    def __init__(self, layers=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(layers))
        self.head = nn.Linear(64, 32)

    @property
    def dtype(self):
        return self.layers[0].weight.dtype


class AsksForTheType(Asks):
    def forward(self, x):
        return self.head(x).relu() if type(self.head) is nn.Linear else self.head(x)


class Remembers(nn.Module):
    """Keeps a mean with its history, and whatever it saw; its train() returns nothing."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(16, 4), []
        self.register_buffer("mean", torch.zeros(4))

    def train(self, mode=True):
        super().train(mode)

    def forward(self, x):
        y = self.layer(x)
        if self.training:
            self.mean = 0.9 * self.mean + y.mean(0)
            self.seen.append(y)
        return y


def trains_on_each(self, batches):
    return [batch.sum() for batch in batches]


def one_activation(self, x):
    return self.out(self.act(self.second(self.act(self.first(x)))))


def one_layer(self, x):
    return self.out(self.first(x)) + self.second(self.first(x / 50))


def relu_after_one_call(self, x):
    return self.out(self.first(self.first(x).relu()))


def norm_of_each_call(self, x):
    return self.out(F.relu(self.norm(self.first(x))) + self.other(self.first(-x)))


def called_twice(forward):
    torch.manual_seed(0)
    layers = {"first": nn.Linear(16, 16, bias=False), "second": nn.Linear(16, 16), "out": nn.Linear(16, 16)}
    model = Forward(forward, **layers, act=nn.Hardswish(), norm=nn.BatchNorm1d(16), other=nn.BatchNorm1d(16))
    nn.init.uniform_(model.other.weight)
    model.other.running_mean.normal_()
    with torch.no_grad():
        model.second.weight *= 0.02
        model.second.bias *= 0.02 if forward is one_activation else 1
    return model.eval()


CALLED_TWICE = (one_activation, one_layer, relu_after_one_call, norm_of_each_call)


def packed(self, x, lengths, most=None):
    found, _ = self.memory(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return self.head(pad_packed_sequence(found, batch_first=True, total_length=most)[0])


def in_int8(model, x, flow="fx", trained=False):
    """What a flow makes of a model, at once or by way of training."""
    if not trained:
        return quantize_static(model, [(x, None)], flow)
    prepared = prepare_qat(model, x, flow=flow)
    prepared.train()(*x if isinstance(x, tuple) else (x,))
    return convert(prepared)
