"""Capture what a model computes, and say in words where and why that fails.

A flow sees a model through the modules that it calls, through torch.fx or through torch.export. What
a flow cannot take, another may: an error names the line, the reason and the flows that could.
"""

import io
import logging
import sys
import sysconfig
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from qtutor.models.copying import copy_model

import torch
from torch import Tensor, nn

_OURS = ("qtutor.capture", "qtutor.dataflow", "qtutor.fusion", "qtutor.narrow", "qtutor.workflows")


def where(error: BaseException) -> str:
    """Return " at file:line: `code`" for the innermost line of the user's code.

    Else of another package's, else of torch.nn's. Without the code where it was typed in and not kept; empty
    where there is no such line.
    """

    def blameless(module: str) -> bool:
        package = module.partition(".")[0]
        return (
            package in ("torch", "torchao", "typing_extensions")
            or package in sys.stdlib_module_names
            or module in _OURS
        )

    steps = [(step, step[0].f_globals.get("__name__", "")) for step in traceback.walk_tb(error.__traceback__)]
    layers = [step for step, module in steps if module.startswith("torch.nn.") and module != "torch.nn.modules.module"]
    lines = traceback.StackSummary.extract([step for step, module in steps if not blameless(module)] or layers)
    lines = [line for line in lines if not line.filename.startswith(sysconfig.get_path("purelib"))] or lines
    if not lines:
        return ""
    code = f": `{lines[-1].line}`" if lines[-1].line else ""
    return f" at {lines[-1].filename}:{lines[-1].lineno}{code}"


def count_calls(model: nn.Module, inputs: tuple[Tensor, ...], kinds: tuple[type, ...] = (nn.Module,)) -> Counter[str]:
    """Count how often `forward` calls each module of some kinds, in the order of the first calls."""
    calls: Counter[str] = Counter()
    model = copy_model(model).eval()
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.no_grad():
        model(*inputs)
    return calls


def export(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Capture a model with torch.export for any batch size, each call of a module told apart.

    torchao groups the operators of a graph by the name of their module. Of one that is called twice it
    would take both calls for one, and refuse it; so later calls get a name of their own besides.
    """
    if all(x.dim() and len(x) == 1 for x in inputs):  # export takes a size of 1 for a constant
        inputs = tuple(torch.cat([x, x]) for x in inputs)
    else:
        inputs = tuple(x.clone() for x in inputs)  # two inputs may be one tensor, and its size is noted by identity
    shapes = torch.export.ShapesCollection()
    for x in inputs:
        if x.dim():
            shapes[x] = {0: torch.export.Dim.AUTO}
    noisy = unlogged("torch.fx.experimental.symbolic_shapes"), unlogged("torch._subclasses.fake_tensor")
    with noisy[0], noisy[1], redirect_stderr(io.StringIO()):  # the graph, on failure
        captured = torch.export.export(model, inputs, dynamic_shapes=shapes).module()
    for node in captured.graph.nodes:
        stack = node.meta.get("nn_module_stack", {})
        if any("@" in call for call in stack):  # how torch.export marks a second call
            kind = [*stack.values()][-1][1]
            node.meta["nn_module_stack"] = stack | {"call": (" ".join(stack), kind)}
    return captured


@contextmanager
def unlogged(name: str) -> Iterator[None]:
    """Silence one logger for a while."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


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
