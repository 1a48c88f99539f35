"""What a flow says to the owner of a model that it cannot take: the line, the reason, and which flow could."""

import traceback

from qtutor.models.copying import copy_model
from qtutor.models.tracing import where
from qtutor.workflows.pt2e import export

import torch
from torch import Tensor, nn


def refusal(model: nn.Module, inputs: tuple[Tensor, ...], flow: str, reason: str) -> ValueError:
    """Return the error to raise for a model that a flow cannot take.

    It ends with the other flows that could at least capture the model, found out by trying.
    """
    able = []
    for other, capture in (("fx", torch.fx.symbolic_trace), ("pt2e", lambda m: export(m, inputs))):
        try:
            if other != flow and capture(copy_model(model).eval()):
                able.append(f"flow={other!r}")
        except Exception:
            continue
    if able:
        way_out = f"{' or '.join(able)} can take it as it is"
    else:
        way_out = (
            "No other flow takes it" if flow == "eager" else "flow='eager' could, once the model calls stubs itself"
        )
    return ValueError(f"flow={flow!r} {reason}. {way_out}")


def trace_refusal(model: nn.Module, inputs: tuple[Tensor, ...], flow: str, error: Exception) -> ValueError:
    """Return the error to raise where torch.fx or torch.export raised one."""
    reason = f"{where(error)}: {type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error) else ""
    return refusal(model, inputs, flow, f"cannot take {type(model).__name__}{reason}")


def stub_refusal(model: nn.Module, inputs: tuple[Tensor, ...], quantized: nn.Module, error: RuntimeError) -> ValueError:
    """Return the error to raise where `quantized`, an eager one, did: it met what its stubs do not cover."""
    if "'quantized::" in str(error):
        reason = "it gets a floating-point tensor: call a QuantStub on what comes in"
    else:
        reason = (
            "it has no kernel for quantized tensors: a residual add, a product or a cat needs a FloatFunctional of "
            "torch.ao.nn.quantized (self.add.add(a, b)), anything else a DeQuantStub before it"
        )
    modules = {id(module): name for name, module in quantized.named_modules()}
    frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
    *_, innermost = ("", *(modules[id(f["self"])] for f in frames if id(f.get("self")) in modules))
    place = f"cannot run {innermost or 'forward'} of the quantized {type(model).__name__}{where(error)}"
    return refusal(model, inputs, "eager", f"{place}: {reason}")
