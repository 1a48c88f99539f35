"""Which layers of a model can be simulated, and what each of them reads, gives and is followed by.

Nothing is traced with torch.fx: one run of the model shows who calls whom with which tensor.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from qtutor.fusion.folding import Uses, foldable_kind
from qtutor.models.operators import KINDS, PRODUCTS, Trait, kind_of, traits
from qtutor.models.tensors import tensors_in

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

_ARGUMENTS = ("query", "key", "value", "input", "x")


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


def find_layers(
    model: nn.Module, run: Callable[[], Any]
) -> tuple[dict[str, Layer], dict[str, tuple[str, str]], dict[str, frozenset[str]]]:
    """Find the layers of a model while `run` runs it.

    Returns:
        What can be simulated, by name, in the order of the first call; what cannot, by name, with class and reason;
        and for each layer, those that have done all their work when its own begins.
    """
    layers, skipped = _candidates(model)
    trace = _Trace(model, layers)
    with trace.hooks(), trace:
        run()
    for name, layer in layers.items():
        if not (layer.called or trace.reads_weight[name]):
            skipped[name] = layer.kind, "forward does not use it on these data"
    last = {name: place for place, name in enumerate(trace.order)}
    used = [layer for name, layer in layers.items() if name not in skipped]
    before = {}
    for layer in used:
        first = trace.order.index(layer.name) if layer.called and layer.name not in trace.foreign else 0
        before[layer.name] = frozenset(other for other, place in last.items() if place < first)
    used.sort(key=lambda layer: last.get(layer.name, len(last)))
    return {layer.name: layer for layer in used}, skipped, before


def outermost(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model, by name, but for those inside a layer: an attention owns its output projection."""
    modules = dict(model.named_modules())
    within = tuple(f"{name}." for name, module in modules.items() if isinstance(module, KINDS) and name)
    return {name: module for name, module in modules.items() if not name.startswith(within)}


def with_weights(model: nn.Module) -> list[str]:
    """Return the names of the outermost layers that own weights, and of weights that stand beside other modules."""
    found: dict[str, None] = {}
    for name, module in outermost(model).items():
        one = isinstance(module, KINDS) or next(module.children(), None) is None
        for path, parameter in module.named_parameters(name, recurse=one):
            if parameter.is_floating_point() and not _is_vector(parameter):
                found[name if one else path] = None
    return [*found]


def _candidates(model: nn.Module) -> tuple[dict[str, Layer], dict[str, tuple[str, str]]]:
    """The layers of a kind that can be simulated; and those that hold weights and cannot, with class and reason."""
    layers, skipped = {}, {}
    for name, module in outermost(model).items():
        kind = kind_of(module)
        if isinstance(module, KINDS):
            reason, paths = _weights_of(module)
            if reason:
                skipped[name] = kind, reason
            else:
                layers[name] = Layer(name, kind, paths)
        elif "quantized" in type(module).__module__ and hasattr(module, "weight"):
            skipped[name] = kind, "it is quantized already"
        elif shapes := [path for path, p in module._parameters.items() if p is not None and not _is_vector(p)]:
            known = "linear, convolution, embedding, recurrent and attention layers"
            reason = f"the simulation knows {known}, and not what {kind} does with its {', '.join(shapes)}"
            skipped[name or "(model)"] = kind, reason
    return layers, skipped


def _weights_of(module: nn.Module) -> tuple[str, tuple[str, ...]]:
    """Why a layer cannot be simulated, or ""; and the names of its weights."""
    reason = ""
    if "weight" not in module._parameters and isinstance(module, (*PRODUCTS, nn.Embedding)):
        reason = "its weight is computed anew at each call: make it permanent"
    paths = tuple(path for path, p in module.named_parameters() if p.dim() > 1)
    reason = reason or next(filter(None, (_trouble(module, path) for path in paths)), "")
    return reason or ("" if paths else "it has no weight parameter"), paths


class _Trace(TorchFunctionMode):
    """Follow tensors from layer to layer: each carries the layer that gave it, and how it came from there."""

    def __init__(self, model: nn.Module, layers: dict[str, Layer]):
        super().__init__()
        self.modules, self.layers = dict(model.named_modules()), layers
        self.order: list[str] = []
        self.followed: dict[tuple[str, str], set[str]] = defaultdict(set)  # of the output of a layer, of its batch norm
        self.norms: dict[str, list[str]] = defaultdict(list)  # whose output each batch norm gets
        self.reads_weight: dict[str, bool] = defaultdict(bool)
        self.calls: Counter[str] = Counter()
        self.sources: dict[str, set[str]] = defaultdict(set)
        self.inside: list[str] = []  # the layers that are at work
        self.foreign: set[str] = set()  # whose weights others read too
        self.dims: dict[str, int] = {}
        self.uses = Uses(model, self.calls, self.foreign, self.dims)
        self.owner = {
            id(self.modules[name].get_parameter(path)): name for name, layer in layers.items() for path in layer.weights
        }

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_in([args, kwargs])
        tags = [(x, tag) for x in given if (tag := _tag(x))]
        output = func(*args, **kwargs)
        for x in given:
            if id(x) in self.owner:
                name = self.owner[id(x)]
                self.reads_weight[name] = True
                if name not in self.inside:
                    self.foreign.add(name)
        results = tensors_in(output)
        if not results or not tags:
            return output
        name = getattr(func, "__name__", "").strip("_")
        known = traits(name)
        use = "relu" if Trait.RELU in known else "norm" if Trait.NORM in known else name
        for _, (layer, stage) in tags:
            self.followed[layer, stage].add(use)
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
                    enter, leave = partial(self._enter, name), partial(self._leave, name)
                    stack.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
                    stack.enter_context(module.register_forward_hook(leave))
                elif isinstance(module, _BatchNorm):
                    stack.enter_context(module.register_forward_pre_hook(partial(self._norm, name)))
                    stack.enter_context(module.register_forward_hook(partial(self._normed, name)))
            yield
        for norm, sources in self.norms.items():
            layer = self.layers.get(sources[0])
            alone = len({*sources}) == 1 and layer and self.followed[layer.name, "raw"] == {"norm"}
            if alone and foldable_kind(self.modules[layer.name]) and not self.uses.fold_obstacle(layer.name, [norm]):
                layer.norm = norm
        for name, layer in self.layers.items():
            layer.relu = self.followed[name, "normed" if layer.norm else "raw"] == {"relu"}
            layer.source = next(iter(self.sources[name])) if len(self.sources[name]) == 1 else ""

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        layer = self.layers[name]
        layer.called = True
        self.calls[name] += 1
        self.order.append(name)
        self.inside.append(name)
        inputs: list[Tensor] = []
        each_input(args, kwargs, inputs.append)
        sources = {tag[0] if (tag := _tag(x)) else "" for x in inputs}
        layer.reads |= "" in sources
        self.sources[name] |= sources

    def _leave(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        self.inside.remove(name)
        if (value := gives(output)) is not None:
            _mark(value, name, "raw")

    def _norm(self, name: str, module: nn.Module, args: tuple) -> None:
        layer, stage = (args and _tag(args[0])) or ("", "")
        self.calls[name] += 1
        self.norms[name].append(layer if stage == "raw" else "")
        if args:
            self.dims[name] = args[0].dim()

    def _normed(self, name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        if source := self.norms[name][-1]:
            _mark(output, source, "normed")


def _mark(x: Tensor, layer: str, stage: str) -> None:
    x._qtutor = layer, stage, _version(x)


def _tag(x: Tensor) -> tuple[str, str] | None:
    """The layer that gave a tensor and how it came from there; None if another did, or it was written into since."""
    *tag, version = getattr(x, "_qtutor", (None,))
    return tuple(tag) if tag and version == _version(x) else None


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version  # shared with all views of the same memory


def channel_axis(module: nn.Module) -> int:
    """The axis of the output channels of a layer's weights."""
    return 1 if isinstance(module, _ConvTransposeNd) else 0


def activation_axis(module: nn.Module, x: Tensor) -> int:
    """The axis of the channels of what a layer reads or gives."""
    return x.dim() - 1 - len(module.kernel_size) if isinstance(module, _ConvNd) else x.dim() - 1


def by_channel(x: Tensor, axis: int) -> Tensor:
    """Return the values of each channel as a row, `(channels, n)`."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)


def each_input(args: tuple, kwargs: dict, see: Callable[[Tensor], Any]) -> tuple[tuple, dict]:
    """Give each floating-point input of a layer to `see`, and return the inputs with what it returns."""

    def treat(x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            return x
        result = see(x)
        return x if result is None else result

    named = {key: treat(x) if key in _ARGUMENTS else x for key, x in kwargs.items()}
    places = 3 if len(args) + sum(key in ("query", "key", "value") for key in kwargs) >= 3 else 1  # an attention
    return (*map(treat, args[:places]), *args[places:]), named


def gives(output: Any) -> Tensor | None:
    """Return the floating-point tensor that a layer gives, which is the first of several; None where it is none."""
    value = output[0] if isinstance(output, tuple) and output else output
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def _trouble(module: nn.Module, path: str) -> str:
    weight = module.get_parameter(path)
    if not weight.is_floating_point():
        return f"its {path} is {weight.dtype}, not floating point"
    if weight.numel() == 0:
        return f"its {path} is empty"
    if not weight.isfinite().all():
        return f"its {path} holds NaN or infinity"
    return ""


def _is_vector(parameter: Tensor) -> bool:
    """Whether a parameter is one number a channel, as of a norm, which no runtime quantizes."""
    return parameter.numel() == max(parameter.shape, default=1)
