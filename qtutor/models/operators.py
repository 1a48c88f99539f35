"""One table of operators: what each does to ranges, scales and codes.

Whoever walks through a model asks here, by what a node calls: a module's class, a function, or the name of a method.
An operator that is not in the table has no trait, and is treated with the care that a stranger deserves.
"""

import difflib
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Flag, auto

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

PRODUCTS = (nn.Linear, _ConvNd)
"""Layers that multiply what they get by their weight, once each; with all classes that derive from these."""

KINDS = (*PRODUCTS, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Layers whose weights can be rounded, with all classes that derive from these."""


class Trait(Flag):
    """What is true of an operator."""

    RELU = auto()
    """It clamps below at zero: a kernel of the layer before it can do that too. A ReLU6 counts."""
    CLAMPS = auto()
    """It clamps at fixed ends."""
    KEEPS_RANGE = auto()
    """What it gives lies in the range of what it gets: nothing needs to be rounded anew after it."""
    PASSES_SCALE = auto()
    """f(a * x) = a * f(x) for each channel and any a > 0."""
    AVERAGES = auto()
    """It gives means of what it gets."""
    ARITHMETIC = auto()
    """It adds or multiplies two numbers."""
    NORM = auto()
    """It gives each channel a mean and a variance."""


_CLAMP = Trait.RELU | Trait.KEEPS_RANGE
_POOL = Trait.KEEPS_RANGE | Trait.PASSES_SCALE
_TABLE: tuple[tuple[Trait, tuple], ...] = (
    (_CLAMP | Trait.PASSES_SCALE, (nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")),
    (_CLAMP | Trait.CLAMPS, (nn.ReLU6, F.relu6, "relu6", "relu6_")),
    (Trait.CLAMPS, (nn.Hardtanh, F.hardtanh, torch.clamp, "clamp", "hardtanh")),
    (Trait.PASSES_SCALE, (nn.LeakyReLU, F.leaky_relu)),
    (
        _POOL,
        (
            *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d),
            *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
            *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d"),
        ),
    ),
    (
        _POOL | Trait.AVERAGES,
        (
            *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
            *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
            *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
            *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
            *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        ),
    ),
    (Trait.KEEPS_RANGE | Trait.AVERAGES, (torch.mean, "mean")),
    (_POOL, (nn.Flatten, torch.flatten, "flatten", "contiguous")),
    (
        _POOL,
        (
            *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, F.dropout),
            *("dropout", "dropout1d", "dropout2d", "dropout3d"),
        ),
    ),
    (
        Trait.KEEPS_RANGE,
        (
            *(nn.ChannelShuffle, "channel_shuffle", "clone", nn.Upsample, F.interpolate, "interpolate"),
            *("unflatten", "view", "reshape", "view_as", "permute", "transpose", "movedim", "t", "squeeze"),
            *("unsqueeze", "expand", "chunk", "split", "unbind", "select", "narrow", "slice", "getitem"),
            *("pixel_shuffle", "to", "float", "detach", "repeat", "flip", "roll", "amax", "max"),
        ),
    ),
    (Trait.NORM, ("batch_norm",)),
    (
        Trait.ARITHMETIC,
        (operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul, "add", "mul"),
    ),
)
_MULTIPLYING = (
    *("linear", "conv", "embedding", "lstm", "gru", "rnn_", "matmul", "bmm", "mm", "addmm", "baddbmm"),
    *("einsum", "tensordot", "bilinear", "scaled_dot_product"),
    *("wrap_with", "cond"),  # blocks that were captured apart, as under autocast
)
_TRAITS: dict[type | Callable | str, Trait] = {thing: traits for traits, things in _TABLE for thing in things}


def traits(target: type | Callable | str | None) -> Trait:
    """Return what is true of an operator: of a module's class, a function, or a name.

    A name is that of a method or, where a running model is watched, of the function that PyTorch calls. A class
    counts as the one that it derives from, as long as it keeps that one's `forward`.

    Example:
        >>> Trait.RELU in traits(nn.ReLU6), Trait.PASSES_SCALE in traits(nn.ReLU6), traits("my_own")
        (True, False, <Trait: 0>)
    """
    if isinstance(target, type) and issubclass(target, nn.Module):
        target = next((base for base in target.__mro__ if base in _TRAITS and base.forward is target.forward), None)
    return _TRAITS.get(target, Trait(0))


def multiplies(name: str) -> bool:
    """Whether a function of that name, such as "conv2d", multiplies numbers and adds up the products."""
    return name.startswith(_MULTIPLYING)


def target_of(node: fx.Node, model: nn.Module) -> type | Callable | str | None:
    """Return what a node of a traced model calls: the class of a module, a function, a name; None where nothing."""
    if node.op == "call_module":
        return type(model.get_submodule(node.target))
    return node.target if node.op in ("call_function", "call_method") else None


def function_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls."""
    return getattr(node.target, "__name__", str(node.target))


def kind_of(value: object) -> str:
    """Return the name of the class."""
    return type(value).__name__


def check_module(model: object, caller: str) -> None:
    """Refuse what is no module, and say what to do with what people hand over instead: TypeError."""
    if isinstance(model, nn.Module):
        return
    advice = ""
    if isinstance(model, type) and issubclass(model, nn.Module):
        advice = f": {model.__name__} is a class, pass {model.__name__}(...)"
    elif isinstance(model, Mapping):
        advice = ": if these are the weights of a model, build it, and call its load_state_dict with them"
    raise TypeError(f"{caller} needs a torch.nn.Module, got {kind_of(model)}{advice}")


def check_names(names: Iterable[str], known: Collection[str], caller: str, place: str = "the model") -> None:
    """Refuse names of layers that a place does not know, and say which are near them: ValueError."""
    if unknown := [name for name in names if name not in known]:
        near = difflib.get_close_matches(str(unknown[0]), known, n=3, cutoff=0.4) or [n for n in known if n][:3]
        wrong = " or ".join(map(repr, unknown))
        raise ValueError(f"{caller}: {place} has no layer {wrong}; near it are {', '.join(map(repr, near))}")


def called(name: str, module: nn.Module) -> str:
    """Return what to call a module of a model in a sentence: by its qualified name, if it has one, and its class."""
    return f"{name} ({kind_of(module)})" if name else f"this {kind_of(module)}"
