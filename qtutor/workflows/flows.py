"""The flows from a float model to an INT8 one and into a file; every function leaves what it was given as it was."""

import itertools
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qtutor.affine import grid
from qtutor.models.batches import Batch, by_place, inputs_of
from qtutor.models.copying import copy_model
from qtutor.models.operators import kind_of
from qtutor.models.tracing import count_calls
from qtutor.workflows import dynamic, eager, fx, model_file, pt2e
from qtutor.workflows.backends import Unavailable, at_work, engines
from qtutor.workflows.low_bits import clip_codes, keep_trained_scales
from qtutor.workflows.recipe import Recipe, float_copy, recipe_of, remember
from qtutor.workflows.refusals import refusal, stub_refusal, trace_refusal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


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

    A model in training mode is quantized as it is in eval mode.

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
    batches = inputs_of(calibration_data, model)
    inputs = next(batches, None)
    if inputs is None:
        raise ValueError(
            "calibration_data holds no batch, and without one every scale would be 1: pass a few batches of "
            "training inputs, and make a new generator if this one is used up"
        )
    kept = (keep_float,) if isinstance(keep_float, str) else tuple(keep_float)
    recipe = Recipe.of(model, flow, inputs, engine, keep_float=kept)
    if unknown := set(kept) - dict(model.named_modules()).keys():
        raise ValueError(f"keep_float names no module of the model: {', '.join(sorted(unknown))}")
    if kept and flow == "eager":
        raise ValueError(
            "keep_float needs flow='fx' or 'pt2e': in eager mode the model itself puts a DeQuantStub before and a "
            "QuantStub after what stays in floating point"
        )
    _check_compile(compile, flow)
    with at_work(recipe.engine):
        recipe = _with_fusions(model, recipe, inputs)
        prepared = _prepare(model, recipe, inputs)
        for batch in itertools.chain([inputs], batches):
            _calibrate(prepared, batch, recipe, model)
        return _finish(prepared, recipe, model, inputs, compile)


def prepare_qat(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    flow: str = "fx",
    bits: int = 8,
    edge_bits: int = 8,
    engine: str | None = None,
) -> nn.Module:
    """Return a model to train, in training mode, that rounds weights and activations as INT8 will.

    Narrower codes are still stored in 8 bits: fewer bits show what they cost, and save nothing. Activations of
    8 bits keep to 7, as PyTorch's default does, only where two products of 8 bits overflow: on the engines x86
    and fbgemm, where the processor has no INT8 dot product.

    Args:
        example_input: what the model takes, as a batch; a tuple for several inputs.
        bits: width of weights and activations, 2 to 8; each scale stands for 2**bits codes.
        edge_bits: the same for the first and the last layer, which suffer most.

    Raises as `quantize_static`.
    """
    for name, width in (("bits", bits), ("edge_bits", edge_bits)):
        grid(width)
        if width > 8:
            raise ValueError(f"{name} must be from 2 to 8, got {width}: the codes are stored as 8-bit integers")
    given = example_input if isinstance(example_input, tuple) else (example_input,)
    inputs = by_place(Batch(given), model, "example_input")
    recipe = Recipe.of(model, flow, inputs, engine, trained=True, prepared=True, bits=bits)
    with at_work(recipe.engine):
        if edge_bits != bits:
            layers = [*count_calls(float_copy(model), inputs, (_ConvNd, nn.Linear))]
            recipe = replace(recipe, edges=dict.fromkeys([*layers[:1], *layers[-1:]], edge_bits))
        recipe = _with_fusions(model, recipe, inputs)
        return remember(_prepare(model, recipe, inputs), recipe)


def convert(model: nn.Module, *, compile: bool = False) -> nn.Module:
    """Turn what `prepare_qat` gave, once trained, into an INT8 model; the given one can train on.

    Raises:
        ValueError: `prepare_qat` did not make it, or it has seen no data.
        Unavailable: as in `quantize_static`.
    """
    recipe = recipe_of(model)
    if not recipe or not recipe.prepared:
        raise ValueError(f"convert needs a model that prepare_qat made, got {kind_of(model)}")
    _check_compile(compile, recipe.flow)
    with at_work(recipe.engine):
        return _finish(copy_model(model), replace(recipe, prepared=False), model, recipe.zeros(), compile)


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
        fix = "convert it first" if recipe else "quantize it with qtutor.workflows first"
        raise ValueError(f"save takes a quantized model, got {kind_of(model)}: {fix}")
    with at_work(recipe.engine):
        model_file.write(Path(path), recipe.header(), model)


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
    flow, engine, inputs = recipe.flow, recipe.engine, recipe.zeros()
    if engine not in engines(flow):
        raise ValueError(f"{path} is for the engine {engine}, and this machine has {', '.join(engines(flow))}")
    with at_work(engine):
        if flow == "dynamic":
            model = dynamic.convert(float_model, recipe)
        else:
            prepared = _prepare(float_model, recipe, inputs)
            if flow == "pt2e":  # the shapes of its scales come from a run
                with torch.no_grad():
                    prepared.eval()(*inputs)
            model = _convert(prepared, recipe)
        model_file.fill(model, content, Path(path))
        return pt2e.Compiled(model, inputs) if compile and flow == "pt2e" else model


def _check_compile(compile: bool, flow: str) -> None:
    if compile and flow != "pt2e":
        raise ValueError(f"compile=True is for flow='pt2e': the kernels of flow={flow!r} are compiled already")


def _with_fusions(model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> Recipe:
    """The recipe with what eager mode merges; the other flows find that by themselves."""
    return replace(recipe, fused=eager.fusable(model, inputs)) if recipe.flow == "eager" else recipe


def _prepare(given: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy of the model with observers, or with fake-quantizers if it is to be trained."""
    model = float_copy(given, recipe.trained)
    if recipe.flow == "eager":
        return eager.prepare(model, recipe, inputs)
    try:
        return (fx if recipe.flow == "fx" else pt2e).prepare(model, recipe, inputs)
    except Unavailable:
        raise
    except Exception as error:
        raise _refusal(given, inputs, recipe, error) from error


def _refusal(given: nn.Module, inputs: tuple[Tensor, ...], recipe: Recipe, error: Exception) -> Exception:
    with torch.no_grad():
        float_copy(given)(*inputs)  # if the model itself cannot take the inputs, its own error says why
    return trace_refusal(given, inputs, recipe.flow, error)


def _calibrate(prepared: nn.Module, batch: tuple[Tensor, ...], recipe: Recipe, given: nn.Module) -> None:
    with torch.no_grad():
        try:
            prepared(*batch)
        except Exception as error:
            raise _refusal(given, batch, recipe, error) from error


def _finish(
    prepared: nn.Module, recipe: Recipe, given: nn.Module, inputs: tuple[Tensor, ...], compile: bool
) -> nn.Module:
    """Convert a prepared model, which is used up, and check that it saw data and that it runs."""
    observers = {n: m for n, m in prepared.named_modules() if isinstance(getattr(m, "min_val", None), Tensor)}
    blind = [n for n, m in observers.items() if not (m.min_val.numel() and m.min_val.isfinite().all())]
    if blind and len(blind) == len(observers):
        raise ValueError("the prepared model has seen no data, so every scale would be 1: train it before convert")
    model = _convert(prepared, recipe)
    nodes = model.graph.nodes if recipe.flow == "pt2e" and not recipe.keep_float else ()
    if nodes and not any("quantize_per" in str(node.target) for node in nodes):
        reason = f"finds nothing to quantize in {kind_of(given)}: it takes linear layers and Conv1d and Conv2d"
        raise refusal(given, inputs, "pt2e", reason)
    if recipe.flow == "eager":
        try:
            with torch.no_grad():
                model(*inputs)
        except RuntimeError as error:  # only now does eager mode find out what the stubs do not cover
            raise stub_refusal(given, inputs, model, error) from error
        if layers := [n.partition(".activation_post_process")[0] for n in blind if ".activation_post" in n]:
            warnings.warn(f"no batch reached {', '.join(layers)}, which keep a scale of 1", stacklevel=3)
    return pt2e.Compiled(model, inputs) if compile else model


def _convert(prepared: nn.Module, recipe: Recipe) -> nn.Module:
    keep_trained_scales(prepared)
    if recipe.flow == "pt2e":
        return remember(pt2e.convert(prepared, recipe.trained), recipe)
    model = (eager if recipe.flow == "eager" else fx).convert(prepared.eval())
    if recipe.engine == "qnnpack":
        fx.straighten(model)
    if recipe.trained and (recipe.bits < 8 or recipe.edges or recipe.reduced):
        clip_codes(model, recipe.bits, recipe.edges, recipe.reduced)
    return remember(model.eval(), recipe)  # conversion makes new modules, in training mode
