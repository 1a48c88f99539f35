"""Run a model, and see whom it calls, what it gives, and whether that can be compared."""

import io
import linecache
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, suppress
from functools import partial
from types import CodeType, FrameType
from typing import Any, NamedTuple
from unittest import mock

from qtutor.affine import decibels
from qtutor.models.copying import eval_copy
from qtutor.models.operators import kind_of
from qtutor.models.tensors import copies, floats_in, tensors_in

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

_WIDE = 120  # characters of a line of code
_LOCK = threading.Lock()
_BEFORE: list[bool] = []  # whether attention's fast path was on as each came who is inside `no_fast_attention`
_CHOOSING = {"topk", "sort", "argsort", "argmax", "argmin", "kthvalue", "nonzero", "multinomial", "nms"}


@contextmanager
def no_fast_attention() -> Iterator[None]:
    """Keep attention off its fast path, which passes modules by, and hooks with them.

    It is off for all threads, until the last one leaves.
    """
    with _LOCK:
        _BEFORE.append(torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _LOCK:
            torch.backends.mha.set_fastpath_enabled(_BEFORE.pop())


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the tensors that a model gives, as dense ones, for inputs that stay; attention is off its fast path."""
    quiet = redirect_stderr(io.StringIO()) if isinstance(model, GraphModule) else nullcontext()  # it prints its errors
    with quiet, no_fast_attention(), torch.inference_mode(False), torch.no_grad():
        return [tensor.detach().clone().to_dense() for tensor in tensors_in(model(*copies(inputs)))]


def layer_outputs(model: nn.Module, names: Iterable[str], *inputs: Tensor) -> dict[str, Tensor]:
    """Run a model once and return what some of its layers give.

    Args:
        model: any module; what watches it is gone afterwards.
        names: qualified names of layers that give one tensor each.

    Raises:
        AttributeError: the model has no layer of that name.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
        >>> layer_outputs(model, ["0"], torch.tensor([[-1.0, 2.0]]))
        {'0': tensor([[0., 2.]])}
    """
    return {name: output for name, (_, output) in passing(model, names, inputs).items()}


def input_and_output(model: nn.Module, layer: str, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Run a model, and return what goes into one of its layers, and what comes out of it.

    Args:
        layer: its qualified name, "" for the model itself.

    Raises:
        AttributeError: the model has no such layer.
        ValueError: `forward` does not call it, or passes it no tensor.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
        >>> [tuple(x.shape) for x in input_and_output(model, "1", torch.ones(2, 3, 4))]
        [(2, 3, 4), (2, 12)]
    """
    given, output = passing(model, [layer], inputs).get(layer, ([], None))
    if not given:
        raise ValueError(f"the model does not call {layer!r} with a tensor")
    return given[0], output


def passing(model: nn.Module, names: Iterable[str], inputs: tuple) -> dict[str, tuple[list[Tensor], Any]]:
    """Return what goes into some layers, copied before they may write into it, and what comes out, at the last call."""
    before: dict[str, list[Tensor]] = {}
    seen: dict[str, tuple[list[Tensor], Any]] = {}

    def enter(name: str, layer: nn.Module, given: tuple, named: dict) -> None:
        before[name] = [x.clone() for x in tensors_in((given, named))]

    def leave(name: str, layer: nn.Module, given: tuple, output: Any) -> None:
        seen[name] = before[name], output

    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            layer = model.get_submodule(name)
            hooks.enter_context(layer.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
            hooks.enter_context(layer.register_forward_hook(partial(leave, name)))
        model(*copies(inputs))
    return seen


def agreement(exact: list[Tensor], other: list[Tensor]) -> float:
    """Return the SQNR in dB of what a model gives against what it should, by `noise_of_the_worst` of its tensors; -inf
    where shapes differ, or one is not finite.

    Whole numbers count where there is nothing else: an index may flip where scores hardly move. They are compared as
    numbers, or by the share of them that differs where that is less.
    """
    if [x.shape for x in exact] != [x.shape for x in other]:
        return -math.inf
    pairs = [*zip(exact, other, strict=True)]
    pairs = [(x, y) for x, y in pairs if x.is_floating_point() or x.is_complex()] or pairs
    noise = noise_of_the_worst([_powers(x, y) for x, y in pairs])
    return -math.inf if math.isnan(noise) else decibels(1.0, noise)


def noise_of_the_worst(powers: list[tuple[float, float]]) -> float:
    """Return noise over signal of an output, from both of each of its tensors; NaN where one of them is.

    Of the tensor that fares worst: who reads boxes is not helped by good scores, which may be large, or many. Of all
    together where that is more: a tensor of zeros has no ratio of its own.
    """
    signal, noise = (sum(each) for each in zip(*powers, strict=True)) if powers else (0.0, 0.0)
    return max(_over(noise, signal), *(_over(n, s) for s, n in powers if s), 0.0)


def _over(noise: float, signal: float) -> float:
    return noise / signal if signal else math.inf * noise if noise else 0.0


def _powers(exact: Tensor, other: Tensor) -> tuple[float, float]:
    """The power of a tensor, and of what another differs from it by."""
    wide = _wide(exact)
    signal, noise = power(exact), power(exact.to(wide) - other.to(wide))
    if not (exact.is_floating_point() or exact.is_complex()):
        differ = float((exact != other).sum())
        if _over(differ, exact.numel()) < _over(noise, signal):
            return float(exact.numel()), differ
    return signal, noise


def _wide(x: Tensor) -> torch.dtype:
    return torch.complex128 if x.is_complex() else torch.float64


def power(x: Tensor) -> float:
    """Return the sum of squares of a tensor, in float64."""
    return float(x.to(_wide(x)).abs().square().sum())


def count_calls(model: nn.Module, inputs: tuple[Tensor, ...], kinds: tuple[type, ...] = (nn.Module,)) -> Counter[str]:
    """Count how often `forward` calls each module of some kinds, in the order of the first calls."""
    calls: Counter[str] = Counter()
    model = eval_copy(model)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    outputs(model, inputs)
    return calls


def check_outputs(model: nn.Module, run: Callable[[], Any], given: Any, where: str = "") -> None:
    """Refuse a model whose outputs, which `run` gave, cannot be compared with others: ValueError if one is not finite.

    The message names the module that first gives NaN or infinity, and says `where`, such as " on batch 3".
    """
    if all(x.isfinite().all() for x in floats_in(given)):
        return
    found: list[str] = []

    def note(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if not found and not all(x.isfinite().all() for x in floats_in(output)):
            found.append(f" (first in {name}, {kind_of(module)})")

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name and next(module.children(), None) is None:
                hooks.enter_context(module.register_forward_hook(partial(note, name)))
        run()
    first = found[0] if found else ""
    way = "mend that before you quantize it"
    if all((x.isfinite() | x.isneginf()).all() for x in floats_in(given)):
        way += ", or, where it is a mask, put that on behind the model"
    raise ValueError(f"{kind_of(model)} itself gives NaN or infinity{where}{first}: {way}")


def unsteady(model: nn.Module, one: list[Tensor], other: list[Tensor]) -> ValueError:
    """Return the error for a model that gives another output each time, which nothing can be compared with.

    What two new copies of it give at their first call tells state, in which they begin alike, from chance.
    """
    if agreement(one, other) == math.inf:
        return ValueError(
            f"{kind_of(model)} itself gives another output at its next call for the same input, as forward keeps "
            "something in self from call to call: let forward take that as an input, and return what it becomes"
        )
    return ValueError(
        f"{kind_of(model)} itself gives another output each time it gets the same input, in eval mode too: a "
        "functional dropout needs training=self.training, and random numbers belong in the training branch"
    )


def backwards(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[str], list[str]]:
    """Return the names of the parameters that get no gradient, as those that forward uses under `torch.no_grad`, and
    those of the `torch.autograd.Function`s that lead gradients another way.

    None are returned where the outputs have no gradient at all. Nothing is computed backwards: a gradient goes where
    the graph leads.
    """
    watched, left = eval_copy(model), []
    with suppress(Exception), no_fast_attention(), torch.inference_mode(False), torch.enable_grad():
        left = [x.grad_fn for x in tensors_in(watched(*copies(inputs))) if x.grad_fn]
    seen, reached, own = {None, *left}, set[int](), dict[str, None]()
    while left:
        step = left.pop()
        reached.add(id(getattr(step, "variable", None)))
        if isinstance(step, BackwardCFunction) and not step._forward_cls.__module__.startswith("torch."):
            own[step._forward_cls.__name__] = None
        later = {each for each, _ in step.next_functions} - seen
        seen |= later
        left += later
    named = watched.named_parameters() if len(seen) > 1 else ()
    return [name for name, parameter in named if parameter.requires_grad and id(parameter) not in reached], [*own]


class Read(NamedTuple):
    """That something outside PyTorch asked whether a model is in training mode.

    Attributes:
        forward: the innermost forward that was at work.
        call: where that was, " at file:line: `code`".
        line: where it was asked, which may be in a function that is called there.
    """

    forward: CodeType
    call: str
    line: str


def reads_of_training(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Read]:
    """Return what outside PyTorch asks in a run whether a model is in training mode, in order.

    No class of the owner's is touched or derived from, for they may keep account of their subclasses.
    """
    reads: list[Read] = []
    watched = eval_copy(model)
    theirs = {id(module) for module in watched.modules()}

    def read(module: nn.Module) -> bool:
        frame = sys._getframe(1)
        if id(module) in theirs and not _of_torch(frame):
            inner = frame
            while inner.f_code.co_name != "forward" and inner.f_back:
                inner = inner.f_back
            reads.append(Read(inner.f_code, line_at(inner), line_at(frame)))
        if "training" not in vars(module):
            raise AttributeError("training")  # then __getattr__ is asked, as for a scripted module
        return vars(module)["training"]

    def write(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    with mock.patch.object(nn.Module, "training", property(read, write), create=True), suppress(Exception):
        outputs(watched, inputs)
    return reads


def lines_that_enter_autocast(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Return " at file:line: `code`" for each line outside PyTorch that computes in another precision by autocast."""
    lines: dict[str, None] = {}
    enter = torch.autocast.__enter__

    def noted(context: torch.autocast) -> Any:
        lines.update(_callers_line())
        return enter(context)

    with mock.patch.object(torch.autocast, "__enter__", noted):
        outputs(model, inputs)
    return [*lines]


def lines_that_choose(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Return " at file:line: `code`" for each line outside PyTorch that chooses by value, as some best scores."""
    lines: dict[str, None] = {}

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            if getattr(func, "__name__", "") in _CHOOSING:
                lines.update(_callers_line())
            return func(*args, **(kwargs or {}))

    with Watching():
        outputs(model, inputs)
    return [*lines]


def _callers_line() -> dict[str, None]:
    """The line outside PyTorch that called what asks, if any did."""
    frame: FrameType | None = sys._getframe(2)
    while frame and _of_torch(frame):
        frame = frame.f_back
    return {line_at(frame): None} if frame else {}


def _of_torch(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").startswith("torch.")


def line_at(frame: FrameType) -> str:
    file, number = frame.f_code.co_filename, frame.f_lineno
    return at_line(file, number, linecache.getline(file, number).strip())


def at_line(file: str, number: int | str | None, code: str | None) -> str:
    """Say where a line stands, for the end of a sentence, and how it begins, where anybody kept that."""
    said = code if not code or len(code) <= _WIDE else f"{code[:_WIDE]} ..."
    return f" at {file}:{number}" + (f": `{said}`" if said else "")
