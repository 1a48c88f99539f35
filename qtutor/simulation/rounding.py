"""Run any model as if some of its layers were integers: hooks round what those layers hold, read and give.

A simulated layer has rounded weights. Its output is rounded where a runtime would round it: after the
batch norm that can be folded into it (whose factors its weights get first) and after its ReLU. Its
input is rounded too, unless that is the output of another layer, which is rounded there. So each
rounding belongs to one layer, and may be switched on and off with it.

Nothing is traced: one run of the model shows who calls whom with which tensor. All this happens on a
copy in eval mode; the given model is never touched.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

from qtutor.affine import QParams, decibels, fake_quantize, grid
from qtutor.fusion.folding import factor
from qtutor.models.batches import Batch
from qtutor.models.copying import copy_model, plain_copy
from qtutor.models.operators import PRODUCTS, check_module
from qtutor.models.running import no_fast_attention
from qtutor.models.tracing import has_hooks
from qtutor.observers import HistogramObserver, MinMaxObserver, Observer, round_min_max, squared_error
from qtutor.simulation.layers import Layer, activation_axis, by_channel, channel_axis, each_input, find_layers, gives
from qtutor.simulation.scheme import Scheme

import torch
from torch import Tensor, nn

_OBSERVERS = {"minmax": MinMaxObserver, "mse": HistogramObserver}


@dataclass(frozen=True, eq=False)
class Rounding:
    """All that one scheme rounds to.

    Attributes:
        weights: for each layer, its rounded weights by name.
        inputs: for each layer that has one, the scale of its input.
        outputs: the same of its output.
    """

    weights: dict[str, dict[str, Tensor]]
    inputs: dict[str, QParams]
    outputs: dict[str, QParams]


@dataclass
class Simulation:
    """A copy of a model in eval mode, whose layers can be rounded and restored.

    Attributes:
        model: the copy.
        layers: what can be simulated, by name, in the order of the first call.
        skipped: what cannot: name, class and reason.
        observed: by name, (input, output) observers of each kind.
        before: for each layer, those that have done all their work when its own begins.
    """

    model: nn.Module
    layers: dict[str, Layer] = field(default_factory=dict)
    skipped: dict[str, tuple[str, str]] = field(default_factory=dict)
    observed: dict[tuple[str, str], dict[str, Observer]] = field(default_factory=dict)
    before: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> "Simulation":
        """Find the layers of a model by running a copy on one batch."""
        check_module(model, "a simulation")
        return cls.found_in(plain_copy(model).requires_grad_(False), batch)

    @classmethod
    def found_in(cls, copied: nn.Module, batch: Batch) -> "Simulation":
        """Find the layers of a model in eval mode, which is used as it is, by running it on one batch."""
        layers, skipped, before = find_layers(copied, lambda: cls(copied).run(batch))
        return cls(copied, layers, skipped, before=before)

    @property
    def products(self) -> list[str]:
        """Names of the linear layers and convolutions that `forward` calls."""
        return [name for name, layer in self.layers.items() if layer.called and isinstance(self.module(name), PRODUCTS)]

    def known(self, name: str | None, given: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """Return what layers gave in another run until this one's turn: it need not be computed again."""
        return {other: given[other] for other in self.before.get(name or "", ()) if other in given}

    def copy(self) -> "Simulation":
        """Return one with a model of its own, and without what was observed."""
        return replace(self, model=copy_model(self.model), observed={})

    def run(self, batch: Batch) -> Any:
        """Return what the model gives for a batch; its own inputs stay as they are."""
        with no_fast_attention(), torch.inference_mode(False), torch.no_grad():
            return batch.run(self.model)

    def module(self, name: str) -> nn.Module:
        """Return the module of that name in the copy."""
        return self.model.get_submodule(name)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return the weights of a layer by name, with the factors of its batch norm folded in."""
        module, layer = self.module(name), self.layers[name]
        weights = {path: module.get_parameter(path).detach() for path in layer.weights}
        if layer.norm:
            weights["weight"] = weights["weight"] * self.factor(name)
        return weights

    def factor(self, name: str) -> Tensor:
        """What folding its batch norm multiplies a layer's weight by, shaped to broadcast."""
        module = self.module(name)
        return factor(module, self.module(self.layers[name].norm)).to(module.weight)

    def observe(self, batch: Batch) -> Any:
        """Let observers see what a batch makes each layer read and give, and return what the model gives."""

        def see(key: tuple[str, str], value: Tensor) -> None:
            observers = self.observed.setdefault(key, {kind: make() for kind, make in _OBSERVERS.items()})
            try:
                for observer in observers.values():
                    observer.observe(value)
            except (TypeError, ValueError):  # empty, or NaN, as a mask may give: it cannot be rounded
                self.observed[key] = {}

        with self.watching(see):
            return self.run(batch)

    def gain(self, name: str, side: str, rounding: Rounding) -> float:
        """Estimate the dB that the range of least squared error wins over another, from the histogram."""
        qparams = (rounding.inputs if side == "input" else rounding.outputs)[name]
        observer = self.observed[name, side]["mse"]
        estimate = squared_error(observer.histogram)
        best = copy.copy(observer)
        best.quant_min, best.quant_max = qparams.quant_min, qparams.quant_max
        now, then = (
            float(estimate(each.scale.view(1, 1), each.zero_point.view(1, 1), each.quant_min, each.quant_max))
            for each in (qparams, best.qparams())
        )
        return decibels(now, then) if now > 0 and then > 0 else 0.0

    def histogram(self, name: str, side: str) -> tuple[Tensor, Tensor]:
        """The `(bins,)` left edges and counts of what a layer reads or gives; exact zeros are left out."""
        stream = self.observed[name, side]["mse"].histogram
        return (stream.edges() * stream.width)[0], stream.counts[0].to(torch.float64)

    def round(self, scheme: Scheme) -> Rounding:
        """Round all weights, and choose scales for all activations from what was observed."""
        low, high = grid(scheme.bits)
        top = grid(min(scheme.bits, 31), signed=False)[1]
        weights: dict[str, dict[str, Tensor]] = {}
        scales: dict[str, dict[str, QParams]] = {"input": {}, "output": {}}
        for name, layer in self.layers.items():
            axis = channel_axis(self.module(name)) if scheme.weights == "channel" else None
            weights[name] = {}
            for path, weight in self.weights(name).items():
                rounded = round_min_max(weight, quant_min=low, quant_max=high, symmetric=True, axis=axis)
                if layer.norm:
                    factor = self.factor(name)
                    rounded = torch.where(factor == 0, 0, rounded / factor)
                weights[name][path] = rounded
        for (name, side), observers in self.observed.items():
            if scheme.activations in observers:
                observer = copy.copy(observers[scheme.activations])
                observer.quant_min, observer.quant_max = 0, top  # observing did not depend on the grid
                scales[side][name] = observer.qparams()
        return Rounding(weights, scales["input"], scales["output"])

    @contextmanager
    def rounded(
        self, rounding: Rounding, names: Iterable[str], known: Mapping[str, list[Tensor]] | None = None
    ) -> Iterator[None]:
        """Round the named layers while the block runs; those in `known` give again what they gave, call by call."""
        known = known or {}
        with ExitStack() as stack:
            for name, outputs in known.items():
                giver = self.module(self.layers[name].output)
                idle = {self.module(name), giver}
                for module in () if any(map(has_hooks, idle)) else idle:  # a hook expects what its layer gives
                    stack.enter_context(mock.patch.object(module, "forward", lambda x=None, *args, **kwargs: x))
                stack.enter_context(giver.register_forward_hook(_replay(outputs)))
            for name in set(names) - set(known):
                layer, module = self.layers[name], self.module(name)
                for path, weight in rounding.weights[name].items():
                    stack.enter_context(_replaced(module, path, weight))
                if qparams := rounding.inputs.get(name):
                    hook = partial(_round_inputs, qparams)
                    stack.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
                if qparams := rounding.outputs.get(name):
                    rounds = partial(_round_output, qparams)
                    stack.enter_context(self.module(layer.output).register_forward_hook(rounds))
            yield

    @contextmanager
    def recorded(self, most: int = 1 << 28) -> Iterator[dict[str, list[Tensor]]]:
        """Keep what convolutions and linear layers give in the block, rounded if they are, up to `most` bytes."""
        kept: dict[str, list[Tensor]] = {}
        left = most

        def keep(name: str, module: nn.Module, args: tuple, output: Any) -> None:
            nonlocal left
            if not isinstance(output, Tensor):
                return
            left -= output.nbytes
            if left >= 0:
                kept.setdefault(name, []).append(output.clone())  # what follows may change it in place
            else:
                kept.pop(name, None)

        with ExitStack() as stack:
            for name in self.products:
                giver = self.module(self.layers[name].output)
                stack.enter_context(giver.register_forward_hook(partial(keep, name)))
            yield kept

    @contextmanager
    def comparing(
        self, rounding: Rounding, names: Iterable[str], see: Callable[[str, Tensor, Tensor], None]
    ) -> Iterator[None]:
        """Call `see(layer, exact, rounded)` when one of `products` runs in the block.

        Both are `(channels, n)` float64: what the layer gives before its hooks, and would with rounded weights.
        """

        def compare(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            with ExitStack() as stack:
                for path, weight in rounding.weights[name].items():
                    stack.enter_context(_replaced(module, path, weight))
                rounded = module.forward(*args, **kwargs)
            axis = activation_axis(module, output)
            see(name, *(by_channel(x.double(), axis) for x in (output, rounded)))

        with ExitStack() as stack:
            for name in names:
                hook = partial(compare, name)
                stack.enter_context(self.module(name).register_forward_hook(hook, with_kwargs=True, prepend=True))
            yield

    @contextmanager
    def watching(self, see: Callable[[tuple[str, str], Tensor], None]) -> Iterator[None]:
        """Call `see((layer, "input" or "output"), tensor)` for all that is rounded, while the block runs."""

        def before(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
            each_input(args, kwargs, lambda x: see((name, "input"), x))

        def after(name: str, module: nn.Module, args: tuple, output: Any) -> None:
            if (value := gives(output)) is not None:
                see((name, "output"), value.clamp(min=0) if self.layers[name].relu else value)

        with ExitStack() as stack:
            for name, layer in self.layers.items():
                if layer.reads and layer.called:
                    reads = partial(before, name)
                    stack.enter_context(self.module(name).register_forward_pre_hook(reads, with_kwargs=True))
                if layer.output:
                    stack.enter_context(self.module(layer.output).register_forward_hook(partial(after, name)))
            yield


def _round_inputs(qparams: QParams, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return each_input(args, kwargs, lambda x: fake_quantize(x, qparams))


def _round_output(qparams: QParams, module: nn.Module, args: tuple, output: Any) -> Any:
    if isinstance(output, Tensor):
        return fake_quantize(output, qparams)
    return (fake_quantize(output[0], qparams), *output[1:])


@contextmanager
def _replaced(module: nn.Module, path: str, weight: Tensor) -> Iterator[None]:
    owner, _, name = path.rpartition(".")
    owner = module.get_submodule(owner)
    before = owner._parameters[name]
    owner._parameters[name] = nn.Parameter(weight.to(before.dtype), requires_grad=False)
    flat = getattr(owner, "_flat_weights", None)
    if flat is not None:  # an LSTM keeps a list of its own
        owner._flat_weights = [owner._parameters[key] for key in owner._flat_weights_names]
    try:
        yield
    finally:
        owner._parameters[name] = before
        if flat is not None:
            owner._flat_weights = [owner._parameters[key] for key in owner._flat_weights_names]


def _replay(outputs: list[Tensor]) -> Callable:
    again = iter(outputs)
    return lambda *args, **kwargs: next(again).clone()
