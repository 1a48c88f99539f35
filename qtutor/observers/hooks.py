"""Observers at the layers of a model, and what the ranges that they chose do to it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from qtutor.affine import QParams, fake_quantize
from qtutor.models.operators import check_module, check_names
from qtutor.observers.observer import Observer

from torch import Tensor, nn


@contextmanager
def observing(
    model: nn.Module, observers: Mapping[str, Observer], *, inputs: bool = False
) -> Iterator[Mapping[str, Observer]]:
    """Let observers watch layers of any model while the block runs.

    The hooks are gone when the block ends, however it ends. A layer that runs twice is observed twice.

    Args:
        observers: the qualified name of a layer, as in `model.named_modules()`, to the observer of its output.
        inputs: observe the first positional argument of each layer instead.

    Yields:
        `observers`.

    Raises:
        ValueError: the model has no layer of that name.
        TypeError: `model` is not a module, or `observers` not a mapping to observers; in the block, where a
            layer gives (or takes) something else than a tensor, such as the tuple of an LSTM: observe the
            inputs of the layer that takes it apart.

    Example:
        >>> import torch
        >>> from qtutor.observers import HistogramObserver, MinMaxObserver
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with observing(model, {"0": MinMaxObserver(), "1": HistogramObserver()}) as observers:
        ...     _ = model(torch.rand(8, 4))
        >>> observers["1"].qparams().scale.shape
        torch.Size([])
    """
    check_module(model, "observing")
    if not isinstance(observers, Mapping):
        given = type(observers).__name__
        raise TypeError(f"observing needs a dict from names of layers to observers, got {given}")
    for name, observer in observers.items():
        if isinstance(observer, type) or not hasattr(observer, "observe"):
            made = f"the class {observer.__name__}" if isinstance(observer, type) else type(observer).__name__
            raise TypeError(f"observing: layer {name!r} needs an observer such as MinMaxObserver(), got {made}")
    layers = _layers(model, observers, "observing")

    def see(name: str, layer: nn.Module, args: tuple, output: object = None) -> None:
        value = (args[0] if args else None) if inputs else output
        if not isinstance(value, Tensor):
            what = "first positional argument" if inputs else "output"
            raise TypeError(
                f"observing: the {what} of layer {name!r} ({type(layer).__name__}) is a {type(value).__name__}, "
                "not a tensor: observe a layer before or after it"
            )
        try:
            observers[name].observe(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"observing layer {name!r}: {error}") from error

    with ExitStack() as hooks:
        for name in observers:
            register = layers[name].register_forward_pre_hook if inputs else layers[name].register_forward_hook
            hooks.enter_context(register(partial(see, name)))
        yield observers


@contextmanager
def rounding_outputs(model: nn.Module, qparams: Mapping[str, QParams]) -> Iterator[nn.Module]:
    """Round what some layers of any model give to a grid while the block runs; the rest stays in floating point.

    The hooks are gone when the block ends, however it ends.

    Args:
        qparams: the qualified name of a layer to the grid of its output.

    Yields:
        `model`.

    Raises:
        ValueError: the model has no layer of that name.
        TypeError: `model` is not a module; in the block, where a layer gives something else than a tensor.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Identity())
        >>> with rounding_outputs(model, {"0": QParams(scale=0.25, zero_point=4, quant_min=0, quant_max=15)}):
        ...     model(torch.tensor([0.3, 3.4])).tolist()
        [0.25, 2.75]
    """
    check_module(model, "rounding_outputs")
    layers = _layers(model, qparams, "rounding_outputs")

    def rounded(name: str, layer: nn.Module, args: tuple, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise TypeError(f"rounding_outputs: layer {name!r} ({type(layer).__name__}) gives a {kind}, not a tensor")
        return fake_quantize(output, qparams[name])

    with ExitStack() as hooks:
        for name in qparams:
            hooks.enter_context(layers[name].register_forward_hook(partial(rounded, name)))
        yield model


def _layers(model: nn.Module, names: Iterable[str], caller: str) -> dict[str, nn.Module]:
    """The layers of a model by name, among them all that are asked for."""
    layers = dict(model.named_modules(remove_duplicate=False))
    check_names(names, layers, caller)
    return layers
