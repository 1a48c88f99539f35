"""Run any model as if some of its layers were integers: hooks round what those layers hold, read and give.

A simulated layer has rounded weights. Its output is rounded where a runtime would round it: after the
batch norm that can be folded into it (whose factors its weights get first) and after its ReLU. Its
input is rounded too, unless that is the output of another layer, which is rounded there. So each
rounding belongs to one layer, and may be switched on and off with it.

Nothing is traced: one run of the model shows who calls whom with which tensor. All this happens on a
copy in eval mode; the given model is never touched.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from qtutor.affine import QParams, fake_quantize, grid
from qtutor.batches import Batch
from qtutor.models.copying import copy_model
from qtutor.models.operators import Trait, traits
from qtutor.observers import HistogramObserver, MinMaxObserver, Observer, squared_error

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

KINDS = (nn.Linear, _ConvNd, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""What is simulated, with all classes that derive from these."""

_OBSERVERS = {"minmax": MinMaxObserver, "mse": HistogramObserver}
_ARGUMENTS = ("query", "key", "value", "input", "x")


@dataclass(frozen=True)
class Configuration:
    """How a model is quantized.

    Attributes:
        bits: width of weights and activations.
        weights: "tensor" or "channel": what shares a scale; weights are symmetric.
        activations: "minmax" or "mse": which range of an activation is represented.
        equalized: whether `repair.equalize` comes first.
        bias_corrected: whether `repair.correct_bias` comes last.
        keep_float: names of layers that stay in floating point.
    """

    bits: int = 8
    weights: str = "tensor"
    activations: str = "minmax"
    equalized: bool = False
    bias_corrected: bool = False
    keep_float: tuple[str, ...] = ()

    def __post_init__(self):
        grid(self.bits)
        for name, value, known in (
            ("weights", self.weights, ("tensor", "channel")),
            ("activations", self.activations, ("minmax", "mse")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")

    def __str__(self) -> str:
        kept = f"; {len(self.keep_float)} in float: {', '.join(self.keep_float)}" if self.keep_float else ""
        extras = "".join(f", {name}" for name in ("equalized", "bias_corrected") if getattr(self, name)).replace(
            "_", " "
        )
        return f"{self.bits} bits, weights per {self.weights}, {self.activations} activations{extras}{kept}"


@dataclass
class Layer:
    """A layer that can be simulated.

    Attributes:
        name: its qualified name, the first where it has several.
        kind: its class.
        weights: names of the weights below it.
        norm: the batch norm that is folded into it, or "".
        reads: whether its input is rounded on its account.
        relu: whether its output only goes through a ReLU.
        called: whether `forward` calls it; if not, something else reads its weights.
        source: the layer that gives it its input, or "" where it is not one layer.
    """

    name: str
    kind: str
    weights: tuple[str, ...]
    norm: str = ""
    reads: bool = True
    relu: bool = False
    called: bool = True
    source: str = ""

    @property
    def output(self) -> str:
        """The module whose output is rounded, or "" where none is."""
        rows = self.kind in ("Embedding", "EmbeddingBag")  # rows of rounded weights are rounded already
        return "" if rows or not self.called else self.norm or self.name


@dataclass(frozen=True, eq=False)
class Rounding:
    """All that one configuration rounds to.

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
        """Find the layers of a model by running a copy on one batch.

        Raises:
            TypeError: `model` is not a module.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"a torch.nn.Module is needed, got {type(model).__name__}")
        simulation = cls(copy_model(model).eval().requires_grad_(False))
        simulation._find(batch)
        return simulation

    @property
    def products(self) -> list[str]:
        """Names of the linear layers and convolutions that `forward` calls."""
        kinds = (nn.Linear, _ConvNd)
        return [name for name, layer in self.layers.items() if layer.called and isinstance(self.module(name), kinds)]

    def copy(self) -> "Simulation":
        """Return one with a model of its own, and without what was observed."""
        return replace(self, model=copy_model(self.model), observed={})

    def run(self, batch: Batch) -> Any:
        """Return what the model gives for a batch; its own inputs stay as they are."""
        args, kwargs = batch.clone()
        with no_fast_attention(), torch.inference_mode(False), torch.no_grad():
            return self.model(*args, **kwargs)

    def module(self, name: str) -> nn.Module:
        """Return the module of that name in the copy."""
        return self.model.get_submodule(name)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return the weights of a layer by name, with the factors of its batch norm folded in."""
        module, layer = self.module(name), self.layers[name]
        weights = {path: _get(module, path).detach() for path in layer.weights}
        if layer.norm:
            weights["weight"] = weights["weight"] * self.factor(name)
        return weights

    def factor(self, name: str) -> Tensor:
        """What folding its batch norm multiplies each output channel of a layer's weight by."""
        norm, weight = self.module(self.layers[name].norm), self.module(name).weight
        factor = (1 if norm.weight is None else norm.weight) / torch.sqrt(norm.running_var + norm.eps)
        return factor.detach().view([-1 if i == channel_axis(self.module(name)) else 1 for i in range(weight.dim())])

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
        return 10 * math.log10(now / then) if now > 0 and then > 0 else 0.0

    def histogram(self, name: str, side: str) -> tuple[Tensor, Tensor]:
        """The `(bins,)` left edges and counts of what a layer reads or gives; exact zeros are left out."""
        stream = self.observed[name, side]["mse"].histogram
        return (stream.edges() * stream.width)[0], stream.counts[0].to(torch.float64)

    def first_not_finite(self, batch: Batch) -> str:
        """Say which module first gives NaN or infinity: " (first in ...)", or "" if it is none."""
        found: list[str] = []

        def note(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                if not found and any(x.is_floating_point() and not x.isfinite().all() for x in _tensors(output)):
                    found.append(f" (first in {name}, {type(module).__name__})")

            return hook

        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                if name and next(module.children(), None) is None:
                    stack.callback(module.register_forward_hook(note(name)).remove)
            self.run(batch)
        return found[0] if found else ""

    def round(self, configuration: Configuration) -> Rounding:
        """Round all weights, and choose scales for all activations from what was observed."""
        low, high = grid(configuration.bits)
        top = grid(min(configuration.bits, 31), signed=False)[1]
        weights, scales = {}, {"input": {}, "output": {}}
        for name, layer in self.layers.items():
            axis = channel_axis(self.module(name)) if configuration.weights == "channel" else None
            weights[name] = {}
            for path, weight in self.weights(name).items():
                observer = MinMaxObserver(quant_min=low, quant_max=high, symmetric=True, axis=axis)
                observer.observe(weight)
                rounded = fake_quantize(weight, observer.qparams())
                if layer.norm:
                    factor = self.factor(name)
                    rounded = torch.where(factor == 0, 0, rounded / factor)
                weights[name][path] = rounded
        for (name, side), observers in self.observed.items():
            if configuration.activations in observers:
                observer = copy.copy(observers[configuration.activations])
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
                stack.enter_context(_forward(self.module(name), lambda x=None, *args, **kwargs: x))
                stack.enter_context(_forward(self.module(self.layers[name].output), _replay(outputs)))
            for name in set(names) - set(known):
                layer, module = self.layers[name], self.module(name)
                for path, weight in rounding.weights[name].items():
                    stack.enter_context(_replaced(module, path, weight))
                if qparams := rounding.inputs.get(name):
                    stack.callback(module.register_forward_pre_hook(_input_hook(qparams), with_kwargs=True).remove)
                if qparams := rounding.outputs.get(name):
                    stack.callback(self.module(layer.output).register_forward_hook(_output_hook(qparams)).remove)
            yield

    @contextmanager
    def recorded(self, most: int = 1 << 28) -> Iterator[dict[str, list[Tensor]]]:
        """Keep what convolutions and linear layers give in the block, rounded if they are, up to `most` bytes."""
        kept: dict[str, list[Tensor]] = {}
        left = most

        def keep(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
                nonlocal left
                left -= output.nbytes
                if left >= 0:
                    kept.setdefault(name, []).append(output.clone())  # what follows may change it in place
                else:
                    kept.pop(name, None)

            return hook

        with ExitStack() as stack:
            for name in self.products:
                stack.callback(self.module(self.layers[name].output).register_forward_hook(keep(name)).remove)
            yield kept

    @contextmanager
    def comparing(
        self, rounding: Rounding, names: Iterable[str], see: Callable[[str, Tensor, Tensor], None]
    ) -> Iterator[None]:
        """Call `see(layer, exact, rounded)` when one of `products` runs in the block.

        Both are `(channels, n)` float64: what the layer gives, and what it would give with rounded weights.
        """

        def compare(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
                with ExitStack() as stack:
                    for path, weight in rounding.weights[name].items():
                        stack.enter_context(_replaced(module, path, weight))
                    rounded = module.forward(*args, **kwargs)
                axis = activation_axis(module, output)
                see(name, *(x.double().movedim(axis, 0).flatten(1) for x in (output, rounded)))

            return hook

        with ExitStack() as stack:
            for name in names:
                stack.callback(self.module(name).register_forward_hook(compare(name), with_kwargs=True).remove)
            yield

    @contextmanager
    def watching(self, see: Callable[[tuple[str, str], Tensor], None]) -> Iterator[None]:
        """Call `see((layer, "input" or "output"), tensor)` for all that is rounded, while the block runs."""

        def before(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
                _each_input(args, kwargs, lambda x: see((name, "input"), x))

            return hook

        def after(name: str, relu: bool) -> Callable:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                value = output[0] if isinstance(output, tuple) and output else output
                if isinstance(value, Tensor) and value.is_floating_point():
                    see((name, "output"), value.clamp(min=0) if relu else value)

            return hook

        with ExitStack() as stack:
            for name, layer in self.layers.items():
                if layer.reads and layer.called:
                    hook = self.module(name).register_forward_pre_hook(before(name), with_kwargs=True)
                    stack.callback(hook.remove)
                if layer.output:
                    hook = self.module(layer.output).register_forward_hook(after(name, layer.relu))
                    stack.callback(hook.remove)
            yield

    def _find(self, batch: Batch) -> None:
        modules = dict(self.model.named_modules())
        within = {f"{name}." for name, module in modules.items() if isinstance(module, KINDS) and name}
        found: dict[str, Layer] = {}
        for name, module in modules.items():
            if any(name.startswith(prefix) for prefix in within):
                continue  # the output projection of an attention belongs to it
            own = module._parameters.items() if not isinstance(module, KINDS) else module.named_parameters()
            kind = type(module).__name__
            if isinstance(module, KINDS):
                reason = _repair_parametrization(module)
                paths = tuple(path for path, p in module.named_parameters() if p.dim() > 1)
                if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
                    reason = "its weights are not initialized: run the model once first"
                reason = reason or next((_trouble(module, path) for path in paths if _trouble(module, path)), "")
                if not reason and not paths:
                    reason = "it has no weight parameter"
                if reason:
                    self.skipped[name] = kind, reason
                else:
                    found[name] = Layer(name, kind, paths)
            elif _is_packed(module):
                self.skipped[name] = kind, "it is quantized already"
            elif shapes := [path for path, p in own if p is not None and not _is_vector(p)]:
                known = "linear, convolution, embedding, recurrent and attention layers"
                reason = f"diagnose knows {known}, and not what {kind} does with its {', '.join(shapes)}"
                self.skipped[name or "(model)"] = kind, reason
        trace = _Trace(modules, found)
        with trace.hooks(), trace:
            self.run(batch)
        for name, layer in found.items():
            if not (layer.called or trace.reads_weight[name]):
                self.skipped[name] = layer.kind, "forward does not use it on these data"
        order = {name: place for place, name in enumerate(trace.order)}
        used = [layer for name, layer in found.items() if name not in self.skipped]
        self.layers = {layer.name: layer for layer in sorted(used, key=lambda each: order.get(each.name, len(order)))}
        last = {name: place for place, name in enumerate(trace.order)}
        for name, layer in self.layers.items():
            first = trace.order.index(name) if layer.called and name not in trace.foreign else 0
            self.before[name] = frozenset(other for other, place in last.items() if place < first)


class _Trace(TorchFunctionMode):
    """Follow tensors from layer to layer: each carries the layer that gave it, and how it came from there."""

    def __init__(self, modules: dict[str, nn.Module], layers: dict[str, Layer]):
        super().__init__()
        self.modules, self.layers = modules, layers
        self.order: list[str] = []
        self.uses: dict[tuple[str, str], set[str]] = defaultdict(set)  # of the output of a layer, of its batch norm
        self.norms: dict[str, list[str]] = defaultdict(list)  # whose output each batch norm gets
        self.reads_weight: dict[str, bool] = defaultdict(bool)
        self.calls: dict[str, int] = defaultdict(int)
        self.sources: dict[str, set[str]] = defaultdict(set)
        self.inside: list[str] = []  # the layers that are at work
        self.foreign: set[str] = set()  # whose weights others read too
        self.owner = {id(_get(modules[name], path)): name for name, layer in layers.items() for path in layer.weights}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors([args, kwargs]))
        tags = [(x, tag) for x in given if (tag := _tag(x))]
        output = func(*args, **kwargs)
        for x in given:
            if id(x) in self.owner:
                name = self.owner[id(x)]
                self.reads_weight[name] = True
                if name not in self.inside:
                    self.foreign.add(name)
        results = list(_tensors(output))
        if not results or not tags:
            return output
        name = getattr(func, "__name__", "").removeprefix("_")
        known = traits(name)
        use = "relu" if Trait.RELU in known else "norm" if name == "batch_norm" else name
        for _, (layer, stage) in tags:
            self.uses[layer, stage].add(use)
        for result in results:
            if hasattr(result, "_qtutor"):
                del result._qtutor  # in place: it is another tensor now
            if Trait.KEEPS_RANGE in known and len(tags) == 1:
                _mark(result, tags[0][1][0], "passed")
        return output

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Note each call while the block runs, then settle what was found."""
        for layer in self.layers.values():
            layer.called = layer.reads = False
        with ExitStack() as stack:
            for name, module in self.modules.items():
                if name in self.layers:
                    stack.callback(module.register_forward_pre_hook(self._enter(name), with_kwargs=True).remove)
                    stack.callback(module.register_forward_hook(self._leave(name)).remove)
                elif isinstance(module, _BatchNorm):
                    stack.callback(module.register_forward_pre_hook(self._norm(name)).remove)
                    stack.callback(module.register_forward_hook(self._normed(name)).remove)
            yield
        for norm, sources in self.norms.items():
            layer = self.layers.get(sources[0])
            if len({*sources}) == 1 and layer and self.uses[layer.name, "raw"] == {"norm"} and self._folds(layer, norm):
                layer.norm = norm
        for name, layer in self.layers.items():
            layer.relu = self.uses[name, "normed" if layer.norm else "raw"] == {"relu"}
            layer.source = next(iter(self.sources[name])) if len(self.sources[name]) == 1 else ""

    def _folds(self, layer: Layer, norm: str) -> bool:
        module, bn = self.modules[layer.name], self.modules[norm]
        channels = module.weight.shape[channel_axis(module)] if isinstance(module, (nn.Linear, _ConvNd)) else -1
        once = self.calls[layer.name] == len(self.norms[norm])
        plain = getattr(module, "groups", 1) == 1 or not isinstance(module, _ConvTransposeNd)
        return once and plain and bn.running_var is not None and bn.num_features == channels

    def _enter(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            layer = self.layers[name]
            layer.called = True
            self.calls[name] += 1
            self.order.append(name)
            self.inside.append(name)
            inputs: list[Tensor] = []
            _each_input(args, kwargs, inputs.append)
            sources = {tag[0] if (tag := _tag(x)) else "" for x in inputs}
            layer.reads |= "" in sources
            self.sources[name] |= sources

        return hook

    def _leave(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            self.inside.remove(name)
            value = output[0] if isinstance(output, tuple) and output else output
            if isinstance(value, Tensor) and value.is_floating_point():
                _mark(value, name, "raw")

        return hook

    def _norm(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            layer, stage = (args and _tag(args[0])) or ("", "")
            self.norms[name].append(layer if stage == "raw" else "")

        return hook

    def _normed(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            if source := self.norms[name][-1]:
                _mark(output, source, "normed")

        return hook


def _mark(x: Tensor, layer: str, stage: str) -> None:
    x._qtutor = layer, stage, _version(x)


def _tag(x: Tensor) -> tuple[str, str] | None:
    """The layer that gave a tensor and how it came from there; None if another did, or it was written into since."""
    *tag, version = getattr(x, "_qtutor", (None,))
    return tuple(tag) if tag and version == _version(x) else None


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version  # shared with all views of the same memory


@contextmanager
def no_fast_attention() -> Iterator[None]:
    """Keep attention off its fast path, which passes modules by, and hooks with them; for all threads."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def channel_axis(module: nn.Module) -> int:
    """The axis of the output channels of a layer's weights."""
    return 1 if isinstance(module, _ConvTransposeNd) else 0


def activation_axis(module: nn.Module, x: Tensor) -> int:
    """The axis of the channels of what a layer reads or gives."""
    return x.dim() - 1 - len(module.kernel_size) if isinstance(module, _ConvNd) else x.dim() - 1


def _each_input(args: tuple, kwargs: dict, see: Callable[[Tensor], Any]) -> tuple[tuple, dict]:
    """Give each floating-point input of a layer to `see`, and return the inputs with what it returns."""

    def treat(x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            return x
        result = see(x)
        return x if result is None else result

    named = {key: treat(x) if key in _ARGUMENTS else x for key, x in kwargs.items()}
    places = 3 if len(args) + sum(key in ("query", "key", "value") for key in kwargs) >= 3 else 1  # an attention
    return (*map(treat, args[:places]), *args[places:]), named


def _input_hook(qparams: QParams) -> Callable:
    return lambda module, args, kwargs: _each_input(args, kwargs, lambda x: fake_quantize(x, qparams))


def _output_hook(qparams: QParams) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, Tensor):
            return fake_quantize(output, qparams)
        return (fake_quantize(output[0], qparams), *output[1:])

    return hook


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


@contextmanager
def _forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _replay(outputs: list[Tensor]) -> Callable:
    again = iter(outputs)
    return lambda *args, **kwargs: next(again).clone()


def _repair_parametrization(module: nn.Module) -> str:
    """Make what a parametrization computes at each call permanent, on the copy; why that cannot be, or ""."""
    for name in [*getattr(module, "parametrizations", {})]:
        value = getattr(module, name).detach().clone()
        parametrize.remove_parametrizations(module, name)
        if name not in module._parameters:  # what needs no gradient is left as a plain tensor
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    if "weight" not in module._parameters and isinstance(module, (nn.Linear, _ConvNd, nn.Embedding)):
        return "its weight is computed anew at each call, by weight_norm, spectral_norm or pruning: make it permanent"
    return ""


def _trouble(module: nn.Module, path: str) -> str:
    weight = _get(module, path)
    if not weight.is_floating_point():
        return f"its {path} is {weight.dtype}, not floating point"
    if weight.numel() == 0:
        return f"its {path} is empty"
    if not weight.isfinite().all():
        return f"its {path} holds NaN or infinity"
    return ""


def _is_packed(module: nn.Module) -> bool:
    return "quantized" in type(module).__module__ and hasattr(module, "weight")


def _is_vector(parameter: Tensor) -> bool:
    """Whether a parameter is one number a channel, as of a norm, which no runtime quantizes."""
    return isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.numel() == max(
        parameter.shape, default=1
    )


def _get(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return module.get_submodule(owner)._parameters[name]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for each in tree:
            yield from _tensors(each)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
