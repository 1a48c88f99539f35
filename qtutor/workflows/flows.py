"""The flows from a float model to an INT8 one and into a file; every function leaves what it was given as it was."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from qtutor.machine import describe
from qtutor.models.batches import Batch, by_place, call_of
from qtutor.models.copying import eval_copy, held, masks_of
from qtutor.models.operators import PRODUCTS, check_names, kind_of
from qtutor.models.running import count_calls, outputs, reads_of_training
from qtutor.models.tensors import tensors_in
from qtutor.workflows import dynamic, model_file, pt2e
from qtutor.workflows.backends import at_work, engines
from qtutor.workflows.building import (
    Batches,
    build,
    converted,
    prepare,
    rebuilt,
    shape_scales,
    static,
    without_data,
    without_rounding,
)
from qtutor.workflows.checks import Reference
from qtutor.workflows.infinity import marks
from qtutor.workflows.int4 import Int4Linear
from qtutor.workflows.judging import check_trained, tell_what_rounding_costs
from qtutor.workflows.limits import USUAL
from qtutor.workflows.recipe import Recipe, carry, example_of, float_copy, recipe_of, remember
from qtutor.workflows.refusals import Refused, Untraced
from qtutor.workflows.telling import listed, tell
from qtutor.workflows.training import keep_trained_scales

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_TRIED = 4
"""Batches that a flow which is advised has to take."""


def quantize_static(
    model: nn.Module,
    calibration_data: Iterable,
    flow: str = "fx",
    *,
    engine: str | None = None,
    keep_float: Iterable[str] = (),
    compile: bool = False,
) -> nn.Module:
    """Quantize weights and activations to INT8, with activation ranges from `calibration_data`.

    A model in training mode is quantized as it is in eval mode. "fx" and "pt2e" give a graph: plain attributes of the
    model, such as class names, are there too, its methods are not.

    Args:
        model: float32 on the CPU.
        calibration_data: batches. One is a tensor, or a pair that is always `(inputs, labels)`; a model
            of several inputs takes `((a, b), labels)`, where the labels may be None.
        flow: "eager", "fx" or "pt2e": see the table of `qtutor.workflows`.
        engine: of `torch.backends.quantized.supported_engines`; by default the best for this machine.
            PT2E has its own, "x86_inductor" and "arm_inductor".
        keep_float: names of modules to leave in floating point (not in eager mode).
        compile: lower the PT2E model with Inductor now, for the shapes of the first batch.

    Raises:
        TypeError: `model` or a batch is not of its type.
        ValueError: there is no batch, a batch is empty or not finite, or the flow cannot take the
            model; the message names the layer or line, the reason, and which flow could take it.
        Unavailable: no torch.ao, torchao, engine or C++ compiler, where one is needed.
    """
    batches = Batches(calibration_data, model)
    kept = (keep_float,) if isinstance(keep_float, str) else tuple(keep_float)
    recipe = Recipe.of(model, flow, batches.first, engine, keep_float=kept)
    check_names(kept, dict(model.named_modules()), "keep_float")
    if kept and flow == "eager":
        raise ValueError(
            "keep_float needs flow='fx' or 'pt2e': in eager mode the model itself sets the qconfig of a layer to None, "
            "and puts a DeQuantStub before and a QuantStub after it"
        )
    _check_compile(compile, flow)
    with at_work(recipe.engine):
        with _advised(model, batches, recipe):
            quantized = static(model, recipe, batches)
        return carry(model, pt2e.Compiled(quantized, batches.first) if compile else quantized)


def prepare_qat(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    *,
    flow: str = "fx",
    bits: int = 8,
    edge_bits: int = 8,
    engine: str | None = None,
) -> nn.Module:
    """Return a model to train, in training mode, that rounds weights and activations as INT8 will.

    Parameters that get no gradient from the model, as under torch.no_grad, get none here. What torch.nn.utils.prune
    has set to zero stays zero.

    Narrower codes are still stored in 8 bits: fewer bits show what they cost, and save nothing. Activations of
    8 bits keep to 7, as PyTorch's default does, only where two products of 8 bits overflow: on the engines for
    x86 processors, where this one has no INT8 dot product.

    Args:
        example_input: what the model takes: a tensor, a tuple of several, or a mapping of named ones.
        bits: width of weights and activations, 2 to 8; each scale stands for 2**bits codes.
        edge_bits: the same for the first and the last layer, which suffer most.

    Raises as `quantize_static`.
    """
    for name, width in (("bits", bits), ("edge_bits", edge_bits)):
        if width not in range(2, 9):
            raise ValueError(f"{name} must be from 2 to 8, got {width!r}: the codes are stored as 8-bit integers")
    inputs = by_place(call_of(example_input), model, "example_input")
    recipe = Recipe.of(model, flow, inputs, engine, trained=True, prepared=True, bits=bits)
    with at_work(recipe.engine):
        if edge_bits != bits:
            layers = [*count_calls(float_copy(model), inputs, PRODUCTS)]
            recipe = replace(recipe, edges=dict.fromkeys([*layers[:1], *layers[-1:]], edge_bits))
        reference = Reference.of(float_copy(model), inputs)
        with _advised(model, [inputs], recipe):
            prepared, recipe = prepare(model, recipe, reference)
        reads = reads_of_training(model, reference.inputs) if flow != "eager" else []
        lost = Counter(read.call for read in reads)
        if flow == "pt2e":
            lost -= pt2e.lines_that_switch(prepared)
        if lines := dict.fromkeys(read.line for read in reads if read.call in lost):
            tell(f"forward takes its eval branch in training too, where it reads self.training:{', '.join(lines)}")
        if names := held(model):
            tell(
                f"prepare_qat makes permanent what holds the weights of {listed(model, dict.fromkeys(names, ''))}, as "
                "to a norm: from here they train freely"
            )
        return carry(model, remember(prepared, recipe, example=inputs, masks=masks_of(model)))


def convert(model: nn.Module, *, compile: bool = False) -> nn.Module:
    """Turn what `prepare_qat` gave, once trained, into an INT8 model; the given one can train on.

    Raises:
        ValueError: `prepare_qat` did not make it, it has seen no data, or the INT8 model does not compute what it does.
        Unavailable: as in `quantize_static`.
    """
    recipe = recipe_of(model)
    if not recipe or not recipe.prepared:
        raise ValueError(f"convert needs a model that prepare_qat made, got {kind_of(model)}")
    _check_compile(compile, recipe.flow)
    with at_work(recipe.engine):
        trained = eval_copy(model)
        without_data(trained)
        _check(trained, torch.isnan)
        keep_trained_scales(trained)
        inputs = example_of(model)
        try:
            reference, exact = Reference.of(trained, inputs), without_rounding(trained)
        except ValueError:
            _check(trained, torch.isinf)  # which may stand in the bias of a class that is banned
            raise
        try:
            quantized, recipe = build(trained, replace(recipe, prepared=False), reference)
            check_trained(quantized, reference)
            tell_what_rounding_costs(exact, quantized, recipe, reference)
        except Refused as refused:
            raise ValueError(f"convert {refused}") from refused
        return carry(model, pt2e.Compiled(quantized, inputs) if compile else quantized)


def save(model: nn.Module, path: Path | str) -> None:
    """Write a quantized model, tensors and no code, so that `load` gives it back bit for bit.

    The second line of the file says in JSON what is inside: flow, engine, versions.

    Raises:
        ValueError: no function of this module made the model, or it is not converted yet.
        storage.Unwritable: the file cannot be written.
    """
    model = model.model if isinstance(model, pt2e.Compiled) else model
    recipe = recipe_of(model)
    if not recipe or recipe.prepared:
        fix = "convert it first" if recipe else "quantize it with quantize_static, quantize_dynamic or convert first"
        modules = model.modules() if isinstance(model, nn.Module) else ()
        if group := next((module.group for module in modules if isinstance(module, Int4Linear)), None):
            fix = (
                "4-bit weights go into a file with torch.save(model.state_dict(), path), and back with "
                f"quantize_weights(float_model, group={group}).load_state_dict(torch.load(path))"
            )
        raise ValueError(f"save takes a quantized model, got {kind_of(model)}: {fix}")
    with at_work(recipe.engine):
        model_file.write(Path(path), asdict(recipe), model)


def load(path: Path | str, float_model: nn.Module, *, compile: bool = False) -> nn.Module:
    """Read what `save` wrote, into a quantized copy of `float_model`; nothing in the file is executed.

    Args:
        float_model: the model before quantization; its weights do not matter.
        compile: lower a PT2E model, as in `quantize_static`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, of another format, version or engine, or of another model.
        Unavailable: as in `quantize_static`.
    """
    header, content = model_file.read(Path(path))
    recipe = Recipe.from_header(header)
    flow, engine, inputs = recipe.flow, recipe.engine, recipe.some_inputs()
    if engine not in engines(flow):
        raise ValueError(
            f"{path} is for the engine {engine}, and this machine has {', '.join(engines(flow))}: "
            "quantize the float model on this machine"
        )
    _check_compile(compile, flow)
    if describe().saturates and flow != "dynamic" and engine != "qnnpack" and not recipe.seven:
        raise ValueError(
            f"{path} holds activations of 8 bits, for which this processor adds up products wrongly: quantize the "
            "float model on this machine"
        )
    with at_work(engine):
        if flow == "dynamic":
            model = dynamic.convert(float_copy(float_model), recipe)
        else:
            prepared = rebuilt(float_copy(float_model), recipe, inputs).eval()
            shape_scales(prepared, inputs)
            model, _ = converted(prepared, recipe)
        model_file.fill(model, content, Path(path))
        return carry(float_model, pt2e.Compiled(model, inputs) if compile else model)


def _check(trained: nn.Module, diverged: Callable[[Tensor], Tensor]) -> None:
    for name, parameter in trained.named_parameters():
        if diverged(parameter).any():
            raise ValueError(
                f"the trained model holds NaN or infinity, first in {name}: train anew, with a smaller learning rate"
            )


def _check_compile(compile: bool, flow: str) -> None:
    if compile and flow != "pt2e":
        raise ValueError(f"compile=True is for flow='pt2e': the kernels of flow={flow!r} are compiled already")


@contextmanager
def _advised(model: nn.Module, batches: Iterable[tuple[Tensor, ...]], recipe: Recipe) -> Iterator[None]:
    """Add to a refusal which other flow takes the model, found out by trying, on the batch that was refused too."""
    try:
        yield
    except Refused as refused:
        several = (inputs for inputs in (*islice(batches, _TRIED), refused.inputs) if inputs is not None)
        tried = [*{id(inputs): inputs for inputs in several}.values()]
        others = [flow for flow in ("fx", "pt2e") if flow != recipe.flow and _works(model, tried, flow, recipe.trained)]
        able = " or ".join(f"flow={flow!r}" for flow in others)
        way = f"{able} can take it as it is" if able else "No other flow takes it as it is"
        if others == ["pt2e"]:
            way += ", fast only with compile=True"
        if "fx" not in others and _works(model, tried, "dynamic", False):
            way = f"{way}; so can quantize_dynamic(model)" if able else "quantize_dynamic(model) can take it as it is"
        elif not able and isinstance(refused, Untraced) and recipe.flow != "eager":
            way += "; flow='eager' does not read forward, and asks for a QuantStub and a DeQuantStub there"
        missing = next(filter(None, map(marks, tried)), "")
        raise ValueError(f"flow={recipe.flow!r} {refused}. {way}" + f". And {missing}" * bool(missing)) from refused


def _works(model: nn.Module, batches: list[tuple[Tensor, ...]], flow: str, trained: bool) -> bool:
    """Whether a flow makes a sound model, on each of these batches."""
    first = batches[0]
    try:
        recipe = Recipe.of(model, flow, () if flow == "dynamic" else first, None, trained=trained)
        with at_work(recipe.engine), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if flow == "dynamic":
                quantized = dynamic.quantize_dynamic(model)
                return all(Reference.of(float_copy(model), x).agreement(quantized) > USUAL for x in batches)
            if trained:
                prepared, _ = prepare(model, recipe, Reference.of(float_copy(model), first))
                return flow == "fx" or all(pt2e.takes(prepared, inputs) for inputs in _longer(model, first))
            else:
                static(model, recipe, Batches([Batch(x) for x in batches], model))
            return True
    except Exception:
        return False


def _longer(model: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Yield inputs twice as long along each axis but the first along which a float model takes that."""
    copied = float_copy(model)
    for axis in range(1, max(x.dim() for x in tensors_in(inputs))):
        twice = tree_map_only(Tensor, lambda x, axis=axis: torch.cat([x, x], axis) if x.dim() > axis else x, inputs)
        with suppress(Exception):
            outputs(copied, twice)
            yield twice
