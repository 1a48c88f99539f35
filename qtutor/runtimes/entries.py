"""Bring a model into each runtime that is here."""

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from qtutor.machine import describe
from qtutor.models.batches import inputs_of
from qtutor.models.copying import eval_copy
from qtutor.models.operators import check_module
from qtutor.runtimes import four_bits, onnx_runtime, openvino, pytorch
from qtutor.runtimes.exported import Exported
from qtutor.words import said_by
from qtutor.workflows import Unavailable
from qtutor.workflows.limits import LEAST, SAME

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Way:
    """How a model gets into a runtime.

    Attributes:
        build: makes what runs of a model, and says what that takes in a file.
        packages: what it imports.
        compiles: whether it needs a compiler.
        exact: whether it computes in floating point as wide as the model.
    """

    build: Callable[[Exported], tuple[Callable, int]]
    packages: tuple[str, ...] = ()
    compiles: bool = False
    exact: bool = False


_ONNX, _OPENVINO = ("onnxruntime", "onnx"), ("openvino", "onnx")  # onnx, because PyTorch's exporter reads what it wrote
_WAYS = {
    "eager FP32": _Way(pytorch.eager, exact=True),
    "channels-last": _Way(pytorch.channels_last, exact=True),
    "BF16": _Way(pytorch.bf16),
    "torch.compile": _Way(pytorch.compiled, compiles=True, exact=True),
    "FX INT8": _Way(pytorch.fx),
    "PT2E INT8": _Way(pytorch.pt2e, compiles=True),
    "ONNX Runtime FP32": _Way(onnx_runtime.fp32, _ONNX, exact=True),
    "ONNX Runtime INT8": _Way(onnx_runtime.int8, _ONNX),
    "OpenVINO FP32": _Way(openvino.fp32, _OPENVINO, exact=True),
    "OpenVINO INT8": _Way(openvino.int8, ("openvino", "nncf", "onnx")),
    "INT4 weights": _Way(four_bits.int4_weights),
    "ONNX Runtime INT4": _Way(four_bits.onnx_int4, _ONNX),
}

FOUR_BITS = ("INT4 weights", "ONNX Runtime INT4")
"""Runtimes for models of linear layers, with 4-bit weights; `build` brings a model there where it is asked to."""

NAMES = tuple(name for name in _WAYS if name not in FOUR_BITS)
"""The other runtimes, in the order in which `build` gives them."""


@dataclass(frozen=True, eq=False)
class Runtime:
    """A model in one runtime: call it with tensors, as you would the model; it returns tensors.

    ONNX Runtime and OpenVINO use as many threads as PyTorch has at the time of the call.

    Attributes:
        name: of `NAMES` or `FOUR_BITS`.
        run: what a call runs; None where it cannot.
        size_bytes: what the model takes in a file of this runtime; None where there is none.
        missing: why it cannot run here and what to do, or "".
    """

    name: str
    run: Callable[..., Any] | None = None
    size_bytes: int | None = None
    missing: str = ""

    def __call__(self, *inputs: Tensor) -> Any:
        if self.run is None:
            raise Unavailable(self.missing)
        with torch.no_grad():
            return self.run(*inputs)


def missing() -> dict[str, str]:
    """Return which runtimes are not on this computer, each with what to do; builds nothing, so it answers at once."""
    absent = {name: lacking(name) for name in NAMES}
    return {name: reason for name, reason in absent.items() if reason}


def build(
    model: nn.Module,
    calibration_data: Iterable,
    names: Iterable[str] | None = None,
    *,
    progress: Callable[[str], object] = lambda name: None,
) -> dict[str, Runtime]:
    """Bring a model into each runtime; one that is not here, fails, or differs gets an entry that says why.

    A model in training mode is taken as it is in eval mode. What compiles does so here, for the shapes
    of the first batch, and again when it meets others. ONNX Runtime and OpenVINO read a file, which takes
    any batch size, and any size along other axes where the batches differ in it.

    Args:
        model: float32 on the CPU; it stays as it was: the entries that need no change share one copy.
        calibration_data: batches as `workflows.quantize_static` takes them.
        names: of `NAMES` and `FOUR_BITS`, in the order wanted; all of `NAMES` if None.
        progress: called with each name before it is built; what it raises ends the building.

    Raises:
        TypeError: `model` is not an `nn.Module`, or these are not batches.
        ValueError: there is no batch, or no runtime of some name.

    Example:
        >>> list(build(nn.Linear(8, 8), [torch.rand(4, 8)], ["eager FP32", "BF16"]))
        ['eager FP32', 'BF16']
    """
    check_module(model, "build")
    names = [names] if isinstance(names, str) else list(NAMES if names is None else names)
    if unknown := [name for name in names if name not in _WAYS]:
        raise ValueError(f"there is no runtime {', '.join(map(repr, unknown))}: choose from {', '.join(_WAYS)}")
    batches = [*inputs_of(calibration_data, model, keep=True)]
    if not batches:
        raise ValueError("calibration_data holds no batch: pass a few batches of training inputs")
    exported = Exported(eval_copy(model), batches)
    built = {}
    for name in names:
        progress(name)
        reason = lacking(name)
        if not reason:
            try:
                entry = Runtime(name, *_WAYS[name].build(exported))
                reason = _differs(entry, exported)
                if not reason:
                    built[name] = entry
                    continue
            except Exception as error:
                reason = said_by(error)
                if not isinstance(error, Unavailable):
                    reason = f"{name} cannot take this model: {reason}"
        built[name] = Runtime(name, missing=reason)
    return built


def _differs(entry: Runtime, exported: Exported) -> str:
    """Say that what runs is not the model, which a trace may lose a branch of; "" where it is.

    What compiles asks for the shape by itself, and is not made to compile for others here.
    """
    if entry.run is exported.model:
        return ""
    exact, compiles = _WAYS[entry.name].exact, _WAYS[entry.name].compiles
    if (found := exported.agreement(entry, every=not compiles)) >= (SAME if exact else LEAST):
        return ""
    also = "" if exact else "its numbers are too coarse for this model, or "
    return (
        f"{entry.name} computes another function, which agrees with the model to {found:.1f} dB only: {also}forward "
        "branches on values or sizes, of which a trace keeps one branch, and torch.where both"
    )


def lacking(name: str) -> str:
    """What a runtime needs and this computer has not, and what to do; "" if nothing."""
    way = _WAYS[name]
    absent = [package for package in way.packages if importlib.util.find_spec(package) is None]
    if absent:
        return f'{name} needs {" and ".join(absent)}: run pip install "qtutor[runtimes]"'
    machine = describe()
    if way.compiles and not machine.can_compile:
        tool = "Python's headers (Debian: python3-dev)" if machine.compiler else "a C++ compiler (Debian: g++)"
        return f"{name} needs {tool}: install it and start again"
    return ""
