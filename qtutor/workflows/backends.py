"""What the installed PyTorch and this computer have for quantization, and what they compute wrongly."""

import importlib
import platform
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

from qtutor.machine import choose_engine, on_arm
from qtutor.models.tracing import ONE_AT_A_TIME
from qtutor.workflows.notices import hide_torch_notices, unlogged

import torch
from torch import nn

INDUCTOR = {"x86_inductor": "X86", "arm_inductor": "Arm"}

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Unavailable(RuntimeError):
    """This computer, or the installed PyTorch, lacks what a flow needs; the message says what, in a sentence."""


@contextmanager
def needs_compiler(otherwise: str = "") -> Iterator[None]:
    """Turn Inductor's error about a missing C++ compiler into `Unavailable`, which says what to do, `otherwise` too."""
    try:
        yield
    except Exception as error:
        if not any(name in f"{error!r}" for name in ("InvalidCxxCompiler", "CppCompileError")):
            raise
        raise Unavailable(
            "torch.compile needs a C++ compiler, and none works here: install g++ with Python's headers (or name "
            f"another in CXX){otherwise}."
        ) from error


@contextmanager
def at_work(engine: str | None) -> Iterator[None]:
    """Use a quantized engine, without PyTorch's notices; None and Inductor, which is none, leave it as it is.

    One thread at a time, for the engine and what is put in place of PyTorch's functions are there for all.
    Afterwards random numbers go on as if nobody had made a layer, which draws its first weights.
    """
    with ONE_AT_A_TIME, warnings.catch_warnings(), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        before = torch.backends.quantized.engine
        hide_torch_notices()
        warnings.filterwarnings("ignore", message="must run observer before calling")  # `flows` names the layers
        warnings.filterwarnings("ignore", message="torch.inf detected in input tensor")  # `infinity` sees to it
        warnings.filterwarnings("ignore", message=r"The tensor attributes? self")  # kept for later, as an LSTM does
        try:
            torch.backends.quantized.engine = before if engine in (None, *INDUCTOR) else engine
            yield
        finally:
            torch.backends.quantized.engine = before


def torch_ao(instead: str = "use flow='pt2e', which lives on in torchao") -> ModuleType:
    """Return `torch.ao.quantization`, or raise Unavailable and say what to do `instead`."""
    try:
        importlib.import_module("torch.ao.quantization.quantize_fx")
        return importlib.import_module("torch.ao.quantization")
    except ImportError as error:
        raise Unavailable(
            f"PyTorch {torch.__version__} has no torch.ao.quantization, which eager, FX and dynamic quantization "
            f"need: {instead}."
        ) from error


def torchao(*names: str) -> list[ModuleType]:
    """Return modules below `torchao.quantization.pt2e`, or raise Unavailable."""
    try:
        with unlogged("torchao"), unlogged("torch.utils._pytree"):  # about missing kernels for GPUs
            return [importlib.import_module(f"torchao.quantization.pt2e{name}") for name in names]
    except ImportError as error:
        raise Unavailable(f"flow='pt2e' needs torchao, which cannot be imported here ({error}).") from error


def engines(flow: str) -> list[str]:
    """Return the engines for a flow on this machine, the best first."""
    if flow == "pt2e":
        return ["arm_inductor" if on_arm() else "x86_inductor"]
    found = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    best = choose_engine(found, platform.machine())
    return sorted(found, key=lambda engine: engine != best) if best else []


def choose(engine: str | None, flow: str, model: nn.Module) -> str:
    """Return the engine to use: the one asked for, or the best, which for transposed convolutions is fbgemm.

    Raises:
        ValueError: this machine has no such engine.
        Unavailable: it has none.
    """
    here = engines(flow)
    if not here:
        raise Unavailable("This PyTorch has no quantized engine, so INT8 models cannot run: install an official build.")
    if engine not in (None, *here):
        raise ValueError(
            f"engine says whose INT8 kernels run, of {', '.join(here)} for flow={flow!r} here, got {engine!r}: leave "
            "it out to get the best"
        )
    transposed = flow != "dynamic" and any(isinstance(module, TRANSPOSED) for module in model.modules())
    return engine or ("fbgemm" if transposed and "fbgemm" in here else here[0])


def swapped(swap: Callable[..., nn.Module], model: nn.Module) -> nn.Module:
    """Let PyTorch swap layers in place; of a layer with several names it would leave all but the first as they were."""
    places = defaultdict(list)
    for owner in model.modules():
        for name, layer in owner._modules.items():
            if layer is not None:
                places[layer].append((owner, name))
    model = swap(model, inplace=True)
    for (first, name), *others in places.values():
        for owner, other in others:
            setattr(owner, other, getattr(first, name))
    let_go(places.keys() - {*model.modules()})
    return model


def let_go(layers: Iterable[nn.Module]) -> None:
    """Take off layers, which others replace, the qconfig that PyTorch gave them: it holds the layer and its weights."""
    for layer in layers:
        vars(layer).pop("qconfig", None)
