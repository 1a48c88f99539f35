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

_EXTRA = {  # onnx, because PyTorch's exporter reads what it wrote
    "ONNX Runtime FP32": ("onnxruntime", "onnx"),
    "ONNX Runtime INT8": ("onnxruntime", "onnx"),
    "ONNX Runtime INT4": ("onnxruntime", "onnx"),
    "OpenVINO FP32": ("openvino", "onnx"),
    "OpenVINO INT8": ("openvino", "nncf", "onnx"),
}

_COMPILED = ("torch.compile", "PT2E INT8")
_EXACT = ("channels-last", "torch.compile", "ONNX Runtime FP32", "OpenVINO FP32")


_BUILDERS: dict[str, Callable[[Exported], tuple[Callable, int]]] = {
    "eager FP32": pytorch.eager,
    "channels-last": pytorch.channels_last,
    "BF16": pytorch.bf16,
    "torch.compile": pytorch.compiled,
    "FX INT8": pytorch.fx,
    "PT2E INT8": pytorch.pt2e,
    "ONNX Runtime FP32": onnx_runtime.fp32,
    "ONNX Runtime INT8": onnx_runtime.int8,
    "OpenVINO FP32": openvino.fp32,
    "OpenVINO INT8": openvino.int8,
}
NAMES = tuple(_BUILDERS)
"""The runtimes, in the order in which `build` gives them."""

_FOUR_BITS: dict[str, Callable[[Exported], tuple[Callable, int]]] = {
    "INT4 weights": four_bits.int4_weights,
    "ONNX Runtime INT4": four_bits.onnx_int4,
}
FOUR_BITS = tuple(_FOUR_BITS)
"""Runtimes for models of linear layers, with 4-bit weights; `build` brings a model there where it is asked to."""


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
    of the first batch, and again when it meets others.

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
    builders = _BUILDERS | _FOUR_BITS
    if unknown := [name for name in names if name not in builders]:
        raise ValueError(f"there is no runtime {', '.join(map(repr, unknown))}: choose from {', '.join(builders)}")
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
                entry = Runtime(name, *builders[name](exported))
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
    """Say that what runs is not the model, which a trace may lose a branch of; "" where it is."""
    if entry.run is exported.model:
        return ""
    least = SAME if entry.name in _EXACT else LEAST
    if (found := exported.agreement(entry)) >= least:
        return ""
    also = "" if entry.name in _EXACT else "its numbers are too coarse for this model, or "
    return (
        f"{entry.name} computes another function, which agrees with the model to {found:.1f} dB only: {also}forward "
        "branches on values, of which a trace keeps one branch, and torch.where both"
    )


def lacking(name: str) -> str:
    """What a runtime needs and this computer has not, and what to do; "" if nothing."""
    absent = [package for package in _EXTRA.get(name, ()) if importlib.util.find_spec(package) is None]
    if absent:
        return f'{name} needs {" and ".join(absent)}: run pip install "qtutor[runtimes]"'
    machine = describe()
    if name in _COMPILED and not machine.can_compile:
        lacking = "Python's headers (Debian: python3-dev)" if machine.compiler else "a C++ compiler (Debian: g++)"
        return f"{name} needs {lacking}: install it and start again"
    return ""
