"""From a recipe to a model: prepared, calibrated, converted, and compared with what it was made of at each step."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from qtutor.models.batches import inputs_of
from qtutor.models.copying import eval_copy
from qtutor.models.operators import kind_of
from qtutor.models.running import agreement, backwards, outputs
from qtutor.models.tensors import floats_in, tensors_in
from qtutor.models.tracing import refuse_left_out
from qtutor.workflows import eager, fx, pt2e
from qtutor.workflows.backends import Unavailable
from qtutor.workflows.calls import given_name
from qtutor.workflows.checks import Reference, repeats
from qtutor.workflows.floats import without_kernel
from qtutor.workflows.infinity import marks, noting_unheld, spared
from qtutor.workflows.judging import (
    Unfit,
    cannot_run,
    check_finite,
    check_same,
    check_trained,
    failed,
    judge,
    lines_in_place,
    stays,
    tell_what_hurts_untrained,
    tell_what_stays,
)
from qtutor.workflows.kernels import Weights, compute_in_floats, mend, noting_weights
from qtutor.workflows.low_bits import clip_codes
from qtutor.workflows.recipe import Recipe, float_copy, remember
from qtutor.workflows.refusals import Refused, Untraced, reason_of
from qtutor.workflows.telling import QuantizationWarning, tell
from qtutor.workflows.training import keep_trained_scales, span_what_shares

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

_FLOWS = {"eager": eager, "fx": fx, "pt2e": pt2e}
_NOTHING = "finds nothing to quantize: it takes linear layers and convolutions, outside torch.vmap"
_TAKEN = {"meta", *dir(GraphModule)}  # what PyTorch calls its own
_BY_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams)
_KEPT = 1 << 28  # bytes of a generator's batches that are kept, should they be needed again
_EVENLY = torch.linspace(-1, 1, 2048)  # a value for each bin of a histogram: of two PyTorch takes a second for a range


class Batches:
    """The inputs of calibration data, which can be read again; of a generator, as much as is kept."""

    def __init__(self, data: Iterable, model: nn.Module):
        self._data, self._model, self._once, self._begun = data, model, isinstance(data, Iterator), False
        self._left = inputs_of(data, model, keep=True)
        self.first = next(self._left, None)
        if self.first is None:
            raise ValueError(
                "calibration_data holds no batch, and without one every scale would be 1: pass a few batches of "
                "training inputs, and make a new generator if this one is used up"
            )
        self._kept, self._room = [self.first], _KEPT if self._once else 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self._begun and not self._once:  # read before, perhaps in part: a loader that shuffles has another order
            self._left = inputs_of(self._data, self._model, keep=True)
            self._kept = [next(self._left, self.first)]  # a stream may give nothing again
        self._begun = True
        yield from self._kept
        for inputs in self._left:
            self._room -= sum(x.nbytes for x in tensors_in(inputs))
            if self._room > 0:
                self._kept.append(inputs)
            yield inputs


def static(model: nn.Module, recipe: Recipe, batches: Batches) -> nn.Module:
    """Return a quantized model; what no kernel takes is added to what the recipe leaves in floats.

    Raises:
        Refused: the flow cannot take the model, or gives another function.
    """
    reference = Reference.of(float_copy(model), batches.first)
    while True:
        prepared, recipe = prepare(model, recipe, reference)
        reference = _taken(reference, prepared)
        try:
            missing = _calibrate(model, prepared, recipe, reference, batches)
            written = lines_in_place(prepared)
            quantized, recipe = build(prepared, recipe, reference)
            judge(model, quantized, recipe, reference, written)
        except Unfit as found:
            recipe = found.recipe
        else:
            tell_what_stays(model, quantized, recipe)
            if missing:
                tell(missing)
            return quantized


def prepare(model: nn.Module, recipe: Recipe, reference: Reference) -> tuple[nn.Module, Recipe]:
    """Return a copy with observers, or fake-quantizers if it is to be trained, and the recipe with what they need.

    Raises:
        Refused: the flow cannot take the model.
    """
    copied, inputs = float_copy(model), reference.batch
    unfitting = () if recipe.flow == "pt2e" else without_kernel(copied, recipe.engine)
    left = (*recipe.left_float, *(name for name in unfitting if name not in recipe.keep_float))
    recipe = replace(recipe, left_float=tuple(dict.fromkeys(left)))
    if recipe.flow == "eager":
        recipe = replace(recipe, fused=eager.fusable(model, inputs, recipe.trained))
    try:
        prepared = rebuilt(copied, recipe, inputs)
    except (Unavailable, Refused):
        raise
    except Exception as error:
        raise failed(model, inputs, error) from error
    if not recipe.trained:
        return prepared, recipe
    if recipe.flow != "eager":
        untrained, own = backwards(float_copy(model), reference.inputs)
        if own and (lost := {*own} - {*backwards(prepared, reference.inputs)[1]}):
            names = " and ".join(sorted(lost))
            raise Untraced(
                f"cannot train {kind_of(model)}: gradients would not go by the backward of {names}. "
                "Call it in a function at the top of a file, write torch.fx.wrap with the name of that function below, "
                "and flow='fx' keeps it"
            )
        for name, parameter in prepared.named_parameters():
            if name in untrained:
                parameter.requires_grad_(False)
    reference = _taken(reference, prepared)
    try:
        _check_untrained(model, prepared, recipe, reference)
        tried = _tried(prepared, recipe, reference)
        tell_what_hurts_untrained(model, tried, recipe, reference)
        tell_what_stays(model, tried, recipe)
        if not recipe.infinite and (missing := marks(reference.batch)):
            tell(missing)
        reference.check_offset(tried)
    except Unfit as found:
        return prepare(model, found.recipe, reference)
    except (Unavailable, ValueError):
        raise
    except Exception as error:
        raise failed(model, inputs, error) from error
    return prepared, recipe


def _taken(reference: Reference, prepared: nn.Module) -> Reference:
    """Return a reference of the whole batch where a captured model takes no fewer samples."""
    if pt2e.takes(prepared, reference.inputs):
        return reference
    return replace(reference, inputs=reference.batch, outputs=reference.batch_outputs)


def _calibrate(model: nn.Module, prepared: nn.Module, recipe: Recipe, reference: Reference, batches: Batches) -> str:
    """Show a prepared model all batches, the first of which tells whether it sees what the model does.

    Returns:
        What `marks` says of the first batch of which it says something.
    """
    missing = ""
    for number, inputs in enumerate(batches):
        missing = missing or marks(inputs)
        which = f" on batch {number} of calibration_data"
        try:
            with noting_unheld(prepared) as unheld:
                found = outputs(prepared, inputs)
        except pt2e.OtherSizes as error:
            raise Refused(f"cannot take all batches: {error}", inputs) from error
        except Exception as error:
            raise failed(model, inputs, error, prepared, which) from error
        if not all(x.isfinite().all() for x in floats_in(found)):
            check_finite(model, inputs, which)
        if unheld and (sparing := spared(prepared, recipe, unheld)) != recipe:
            raise Unfit(sparing)
        if number == 0:
            known = all(map(torch.equal, tensors_in(inputs), tensors_in(reference.batch)))
            wanted = reference.batch_outputs if known else outputs(float_copy(model), inputs)
            check_same(model, prepared, recipe, agreement(wanted, found), reference)
    return "" if recipe.infinite else missing  # a mask of attention


def rebuilt(copied: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Return what a recipe makes of a float copy, which is used up, before any data."""
    taken = _TAKEN & {*copied._modules, *copied._parameters, *copied._buffers} if recipe.flow != "eager" else ()
    for name in taken:
        raise Refused(
            f"cannot take {kind_of(copied)}: PyTorch keeps something of its own under the name {name} in what it makes "
            f"of a model: give self.{name} another name"
        )
    prepared = _FLOWS[recipe.flow].prepare(copied, recipe, inputs)
    refuse_left_out(prepared, inputs)
    span_what_shares(prepared)
    return prepared


def shape_scales(prepared: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Give the scales of a prepared model, in place, the shapes that data would give them; what they are, a file says.

    The model does not run, for no made input suits each forward: only weights that have a scale for each channel are
    computed, from `inputs` where forward makes a weight of what it gets.
    """
    observers = {name: m for name, m in prepared.named_modules() if hasattr(m, "calculate_qparams")}
    by_channel = {name for name, m in observers.items() if getattr(m, "qscheme", None) in _BY_CHANNEL}
    for name in observers.keys() - by_channel:
        observers[name](_EVENLY)
    if isinstance(prepared, GraphModule):
        graph, copied = Graph(), dict[Node, Any]()
        graph.graph_copy(prepared.graph, copied)
        graph.output(tuple(copied[n] for n in prepared.graph.nodes if n.op == "call_module" and n.target in by_channel))
        weights = GraphModule(prepared, graph)
        weights.graph.eliminate_dead_code()
        weights.recompile()
        outputs(weights, inputs)


def build(prepared: nn.Module, recipe: Recipe, reference: Reference) -> tuple[nn.Module, Recipe]:
    """Return the INT8 model, which runs and repeats itself, and its recipe; the prepared one is used up.

    Raises:
        Refused: it does not run, or gives another output each time.
        Unfit: an operator has no kernel for what it is given, and may stay in floats.
    """
    blind = without_data(prepared)
    try:
        model, weights = converted(prepared, recipe)
    except Exception as error:
        raise Refused(f"cannot convert it: {reason_of(error)}") from error
    inputs = reference.inputs
    if not (recipe.keep_float or _rounds(model)):
        raise Refused(_NOTHING + stays(model, recipe))
    try:
        found = outputs(model, inputs)
    except Exception as error:
        raise cannot_run(model, recipe, inputs, error) from error
    if recipe.flow != "pt2e" and (wrong := mend(model, weights, inputs)):
        recipe = replace(recipe, in_floats=(*recipe.in_floats, *wrong))
        remember(model, recipe)
        found = outputs(model, inputs)
        names = ", ".join(dict.fromkeys(map(given_name, wrong)))
        tell(f"engine={recipe.engine!r} computes {names} wrongly: it runs in floats, on its INT8 weights")
    if recipe.flow == "eager" and blind:
        tell(f"no batch reached {', '.join(blind)}, which keep a scale of 1")
    if not repeats(model, inputs, found):
        raise Refused("gives another output each time that it gets the same input")
    return model, recipe


def converted(prepared: nn.Module, recipe: Recipe) -> tuple[nn.Module, Weights]:
    """Return the INT8 model of a prepared one, which is used up, and the weights that its layers were given.

    One that has trained comes with its scales kept, by `keep_trained_scales`.
    """
    if recipe.flow == "pt2e":
        return remember(pt2e.convert(prepared.eval()), recipe), {}
    with noting_weights() as weights:
        model = (eager if recipe.flow == "eager" else fx).convert(prepared.eval())
        fx.quiet(model)
        if recipe.engine == "qnnpack":
            fx.straighten(model)
        if recipe.clipped:
            clip_codes(model, weights, recipe.bits, recipe.edges, recipe.reduced)
    compute_in_floats(model, weights, recipe.in_floats)
    return remember(model.eval(), recipe), weights  # conversion makes new modules, in training mode


def _rounds(model: nn.Module) -> bool:
    """Whether a converted model holds codes of weights."""
    if any(hasattr(module, "set_weight_bias") for module in model.modules()):
        return True
    nodes = model.graph.nodes if isinstance(model, GraphModule) else ()
    return any(str(node.target).startswith(("quantized.", "quantized_decomposed.")) for node in nodes)


def _tried(prepared: nn.Module, recipe: Recipe, reference: Reference) -> nn.Module:
    """What a model to train is converted to before it is trained: what stands in the way of that is said at once."""
    trial = eval_copy(prepared)
    try:
        outputs(trial, reference.inputs)
    except Exception as error:
        place = fx.line_of_failing(trial, reference.inputs)
        raise Refused(f"cannot round what it computes{place}: {reason_of(error)}") from error
    keep_trained_scales(trial)
    found = outputs(trial, reference.inputs)
    reference = replace(reference, batch=reference.inputs, batch_outputs=found, outputs=found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)
        quantized, _ = build(trial, recipe, reference)
    if not recipe.narrow:  # with fewer, an untrained model is noise, and a tie that falls to the other side changes it
        check_trained(quantized, reference)
    return quantized


def _check_untrained(model: nn.Module, prepared: nn.Module, recipe: Recipe, reference: Reference) -> None:
    """Check that a model to train gives in eval mode, without rounding, what the float one does."""
    exact = without_rounding(prepared)
    if not any(hasattr(module, "fake_quant_enabled") for module in exact.modules()):
        raise Refused(_NOTHING + stays(prepared, recipe))
    with noting_unheld(exact) as unheld:
        found = reference.agreement(exact)
    if unheld and (sparing := spared(exact, recipe, unheld)) != recipe:
        raise Unfit(sparing)
    check_same(model, prepared, recipe, found, reference)


def without_rounding(prepared: nn.Module) -> nn.Module:
    """Return a copy in eval mode of a model that trains, which rounds nothing."""
    exact = eval_copy(prepared)
    for module in exact.modules():
        if hasattr(module, "fake_quant_enabled"):
            module.disable_fake_quant()
            module.disable_observer()
            module.register_forward_hook(_elsewhere)
    return exact


def _elsewhere(module: nn.Module, inputs: tuple[Any], output: Any) -> Any:
    """Give a tensor of its own, as rounding does: what is written into it in place does not reach the one given."""
    return output.clone() if isinstance(output, Tensor) else output


def without_data(prepared: nn.Module) -> list[str]:
    """Return the names of the layers whose observers saw nothing.

    Raises:
        ValueError: none saw anything.
    """
    observers = {n: m for n, m in prepared.named_modules() if isinstance(getattr(m, "min_val", None), Tensor)}
    blind = [n for n, m in observers.items() if not (m.min_val.numel() and m.min_val.isfinite().all())]
    if blind and len(blind) == len(observers):
        raise ValueError("the prepared model has seen no data, so every scale would be 1: train it before convert")
    return [n.partition(".activation_post_process")[0] for n in blind if ".activation_post" in n]
