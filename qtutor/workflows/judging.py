"""What is said of what a flow made of a model, and what is raised where it cannot take one."""

import functools
import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from qtutor.models.copying import kept_in_eval
from qtutor.models.operators import kind_of
from qtutor.models.running import agreement, check_outputs, lines_that_enter_autocast, outputs
from qtutor.models.tensors import floats_in, shape_of
from qtutor.models.tracing import label, line_of, trace, where, works_in_place
from qtutor.workflows import fx
from qtutor.workflows.calls import given_name
from qtutor.workflows.checks import Reference, RoundedLayers, agrees
from qtutor.workflows.floats import left_in_floats, why_left
from qtutor.workflows.limits import APART, CLEAR, HALF, LEAST, SAME, TWICE, USUAL
from qtutor.workflows.recipe import Recipe, float_copy
from qtutor.workflows.refusals import Refused, Untraced, reason_of, stub_reason
from qtutor.workflows.rewriting import in_floats, name_of
from qtutor.workflows.telling import CHOOSES, listed, tell

from torch import Tensor, nn
from torch.fx import GraphModule


def tell_what_stays(given: nn.Module, model: nn.Module, recipe: Recipe) -> None:
    """Say which layers and parameters stay in floats, beside those that were asked to."""
    if recipe.widened:
        tell("activations have all 8 bits here, where PyTorch keeps to 7 for older processors: 7 lost too much")
    if recipe.flow == "eager":  # where the model itself says it, with stubs
        return
    asked, copied = tuple(f"{name}." for name in recipe.keep_float), functools.cache(lambda: float_copy(given))
    found = left_in_floats(given, model, recipe.left_float)
    if names := [name for name in found if not f"{name}.".startswith(asked)]:
        reasons = why_left(copied(), names, recipe)
        tell(f"flow={recipe.flow!r} leaves in floating point: {listed(given, reasons)}")
    if recipe.trained and (frozen := dict.fromkeys(kept_in_eval(copied()), "")):
        tell(f"train() of the model keeps in eval mode, and so it is here: {listed(copied(), frozen)}")
    if recipe.flow == "fx" and (blocks := fx.passed_by(given) and fx.passed_by(copied())):
        tell(f"flow='fx' leaves out the hooks of {_named(blocks)}, which change nothing here")
    if recipe.float_operators:
        tell(f"flow={recipe.flow!r} has no INT8 kernel for {', '.join(recipe.float_operators)} here: it runs in floats")
    computes = f"flow={recipe.flow!r} computes in floating point"
    if recipe.infinite:
        what = "what reads infinity, or a mask as far out, which no scale holds,"
        tell(f"{computes} {what}{_lines(model, recipe.infinite)}")
    if recipe.uneven:
        tell(f"{computes} what no one scale holds, as large values beside small ones,{_lines(model, recipe.uneven)}")
    if recipe.between and any(node.target is in_floats for node in model.graph.nodes):
        tell(f"{computes} sums, products, means, norms and functions between layers, where codes lose too much")


def _lines(model: nn.Module, names: Collection[str]) -> str:
    """Return " at file:line: `code`" of each line of a model that nodes of these names stand for."""
    nodes = model.graph.nodes if isinstance(model, GraphModule) else ()
    return " and".join(dict.fromkeys(line_of(node) for node in nodes if node.name in names))


def stays(model: nn.Module, recipe: Recipe) -> str:
    """Say for the end of a sentence what a flow has left in floats in a model, and why, if that is known."""
    names = left_in_floats(model, model, recipe.left_float) if isinstance(model, GraphModule) else []
    return f". What stays: {listed(model, why_left(model, names, recipe))}" if names else ""


def check_trained(quantized: nn.Module, reference: Reference) -> None:
    """Refuse an INT8 model that does not compute what the trained one does; say how far it is off where it is far."""
    found = _agreement(quantized, reference)
    said = agrees(found, "the model that trains")
    if found < LEAST:
        raise Refused(f"is too far off: {said}")
    if found < USUAL:
        tell(said)


def tell_what_rounding_costs(exact: nn.Module, quantized: nn.Module, recipe: Recipe, reference: Reference) -> None:
    """Say how far an INT8 model is off the trained one without rounding, beside what fewer bits cost."""
    if not recipe.narrow:
        found = agreement(outputs(exact, reference.batch), outputs(quantized, reference.batch))
        if found < USUAL:
            tell(agrees(found, "the trained one without rounding"))


def _agreement(quantized: nn.Module, reference: Reference) -> float:
    """Return what `reference.agreement` does; refuse an INT8 model that gives other shapes."""
    found = reference.agreement(quantized)
    pairs = (reference.inputs, reference.outputs), (reference.batch, reference.batch_outputs)
    if found == -math.inf and any(shape_of(outputs(quantized, each)) != shape_of(wanted) for each, wanted in pairs):
        raise Refused(f"gives other shapes than the float model: {CHOOSES}")
    return found


class Unfit(Exception):
    """A recipe does not do for a model, and `recipe` may: it leaves more in floats, or rewrites what works in place."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe


def cannot_run(model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...], error: Exception) -> Exception:
    """What to raise where an INT8 model fails; once it has been trained, nothing more can be left in floats."""
    if recipe.flow == "eager":
        return Refused(stub_reason(model, error))
    if recipe.flow == "pt2e":
        return Refused(f"cannot convert it: {reason_of(error)}")
    node = fx.failing(model, inputs)
    refused = Refused(f"cannot run {label(node)} in INT8{line_of(node)}: {reason_of(error)}")
    if recipe.trained and not recipe.prepared:
        return refused
    name = name_of(node)
    if node.op == "call_module" and (layer := given_name(node.target)) not in recipe.left_float:
        return Unfit(replace(recipe, left_float=(*recipe.left_float, layer)))
    if name and name not in recipe.float_operators:
        return Unfit(replace(recipe, float_operators=(*recipe.float_operators, name)))
    return refused


def failed(
    model: nn.Module, inputs: tuple[Tensor, ...], error: Exception, prepared: nn.Module | None = None, which: str = ""
) -> Exception:
    """What to raise where a flow fails; if the model itself cannot take the inputs, which are `which`, that is said."""
    check_finite(model, inputs, which)
    place = where(error) or fx.line_of_failing(prepared, inputs)
    return Untraced(f"cannot take {kind_of(model)}{place}: {reason_of(error)}", inputs)


def check_finite(model: nn.Module, inputs: tuple[Tensor, ...], which: str) -> None:
    """Refuse a float model that gives NaN or infinity for a batch, which a ValueError calls `which`."""
    copied = float_copy(model)
    check_outputs(copied, lambda: outputs(copied, inputs), outputs(copied, inputs), which)


def unseen(recipe: Recipe, said: str) -> Exception:
    """What to raise where a flow does not see all that a model does."""
    can_rewrite = recipe.flow == "pt2e" and not recipe.functional
    return Unfit(replace(recipe, functional=True)) if can_rewrite else Untraced(said)


def check_same(model: nn.Module, prepared: nn.Module, recipe: Recipe, found: float, reference: Reference) -> None:
    if found < SAME:
        raise unseen(
            recipe,
            f"loses a part of {kind_of(model)}: its copy differs before anything is rounded. "
            f"{_lost(float_copy(model), prepared, recipe, reference.inputs)}",
        )


def _lost(model: nn.Module, prepared: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> str:
    """Say what a trace loses of a model, as far as that can be told."""
    if lines := lines_that_enter_autocast(model, inputs):
        return f"autocast gets lost, here{' and'.join(lines)}: take it out of forward"
    if recipe.flow == "fx" and (blocks := fx.passed_by(model)):
        return (
            f"The hooks of {_named(blocks)} get lost: write what they do into forward, or take them off with "
            "handle.remove()"
        )
    with suppress(ValueError):
        tracer = trace(model, "a flow", inputs)
        if asked := " and".join(tracer.asked):
            return f"Python asks for the class of a value, which no trace knows, here{asked}: do so in __init__"
        if written := " and".join(tracer.written):
            return f"A trace takes x += y for x = x + y, here{written}: write that, for other names of x too"
    if written := lines_in_place(prepared):
        return (
            f"The usual cause is a write in place{written}: write y = relu(x), and torch.where or torch.cat for "
            "x[i] = y"
        )
    return "A trace takes another way through forward: Python decides there by what only a run knows"


def _named(modules: list[str]) -> str:
    return ", ".join(name or "the model itself" for name in modules)


def lines_in_place(model: nn.Module) -> str:
    nodes = model.graph.nodes if isinstance(model, GraphModule) else ()
    lines = dict.fromkeys(line_of(node) for node in nodes if works_in_place(node, model))
    return f", here{' and'.join(filter(None, lines))}" if any(lines) else ""


def judge(model: nn.Module, quantized: nn.Module, recipe: Recipe, reference: Reference, written: str) -> None:
    """Compare an INT8 model with the float one: say what hurts where it is far off, and refuse another function."""
    got = _agreement(quantized, reference)
    if got >= USUAL:
        reference.check_offset(quantized)
        return
    said = agrees(got, "the float one")
    if floats_in(reference.batch_outputs):
        worst = _what_hurts(model, reference.batch, recipe, got, written)
    else:
        worst = "return the scores too, to see how far off these are"
    if got < LEAST:
        raise Refused(f"is too far off: {said}; {worst}")
    tell(f"{said}: {worst}")


def _what_hurts(model: nn.Module, inputs: tuple[Tensor, ...], recipe: Recipe, got: float, written: str) -> str:
    """Say why an INT8 model reaches no more than `got` dB; refuse it if that is far below what its layers explain.

    Raises:
        Unfit: more bits, or more in floats, may reach more.
    """
    if recipe.seven and not recipe.reduced:
        raise Unfit(replace(recipe, widened=True))
    layers = RoundedLayers(float_copy(model), inputs, recipe)
    if recipe.flow == "fx" and not recipe.between and layers.explained > got + HALF + TWICE * recipe.reduced:
        raise Unfit(replace(recipe, between=True))
    if layers.explained <= got + APART:
        return layers.what_hurts(can_keep=recipe.flow != "eager" and not recipe.trained)
    alone = f"its layers alone would reach {layers.explained:.1f} dB"
    if got < CLEAR:
        lost = f"is too far off: {agrees(got, 'the float one')}; {alone}, so something between them gets lost{written}"
        raise unseen(recipe, lost)
    return alone + (", so a sum, product or softmax between them hurts" if not recipe.between else "")


def tell_what_hurts_untrained(model: nn.Module, tried: nn.Module, recipe: Recipe, reference: Reference) -> None:
    """Say what training has to make good, beside what fewer bits cost."""
    got = agreement(reference.outputs, outputs(tried, reference.inputs))
    if not recipe.narrow and got < USUAL:
        worst = _what_hurts(model, reference.inputs, recipe, got, "")
        tell(f"before it is trained, the INT8 model agrees with the float one to {got:.1f} dB only: {worst}")
