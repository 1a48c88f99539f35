"""What a flow makes of a model is compared with the model, on the first batch, before anybody gets it."""

import math
from contextlib import suppress
from dataclasses import dataclass

from qtutor.affine import decibels
from qtutor.models.batches import Batch
from qtutor.models.copying import eval_copy
from qtutor.models.operators import kind_of
from qtutor.models.running import agreement, check_outputs, lines_that_choose, outputs, power, unsteady
from qtutor.models.tensors import floats_in, tensors_in
from qtutor.simulation import Rounding, Scheme, Simulation
from qtutor.workflows.limits import CLEAR, HALF, TWICE, USUAL
from qtutor.workflows.recipe import Recipe
from qtutor.workflows.telling import CHOOSES, OFFSET, tell

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_FINER = 4
"""Bits more: each halves the error, but where something is chosen by value."""

_FEW = 2  # samples: what is wrong is wrong for each, and a check must cost little


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model gives for a batch, and for a few samples of it, on which most is compared.

    Attributes:
        batch: the inputs of one call.
        batch_outputs: the tensors that the model gives for them.
        inputs: the first samples of each; all where the model takes no fewer.
        outputs: what the model gives for these.
    """

    batch: tuple[Tensor, ...]
    batch_outputs: list[Tensor]
    inputs: tuple[Tensor, ...]
    outputs: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module, batch: tuple[Tensor, ...]) -> "Reference":
        """Run a float model in eval mode.

        Raises:
            ValueError: what it gives cannot be compared: NaN, infinity, or another output each time.
        """
        found = outputs(model, batch)
        if not found:
            raise ValueError(f"{kind_of(model)} gives no tensor to compare: return tensors from forward")
        check_outputs(model, lambda: outputs(model, batch), found)
        few, few_outputs = batch, found
        lengths = {len(x) if x.dim() else 0 for x in tensors_in(batch)}
        if len(lengths) == 1 and lengths.pop() > _FEW and floats_in(found):  # an index flips here and there
            some = tree_map_only(Tensor, lambda x: x[:_FEW], batch)
            with suppress(Exception):
                few, few_outputs = some, outputs(model, some)
        if not repeats(model, few, few_outputs):
            raise unsteady(model, *(outputs(eval_copy(model), few) for _ in range(2)))
        return cls(batch, found, few, few_outputs)

    def agreement(self, model: nn.Module) -> float:
        """Return the SQNR in dB of what another model gives for the samples, or for the batch if that is less."""
        few = agreement(self.outputs, outputs(model, self.inputs))
        return few if self.inputs is self.batch else min(few, agreement(self.batch_outputs, outputs(model, self.batch)))

    def check_offset(self, model: nn.Module) -> None:
        """Tell where an output of another model hardly shows how it varies, for the constant in it."""
        if not any(varies_little(*_powers(x)) for x in floats_in(self.batch_outputs)):  # a run is saved
            return
        for x, y in zip(self.batch_outputs, outputs(model, self.batch), strict=True):
            if x.is_floating_point() and offset_hides(*_powers(x), power(x.double() - y.double())):
                tell(OFFSET)
                return


def _powers(x: Tensor) -> tuple[float, float]:
    """The sum of squares of values, and of what they differ from their mean."""
    exact = x.double()
    return power(exact), power(exact - exact.mean())


def varies_little(signal: float, spread: float) -> bool:
    """Whether values lie ten times as far from zero as from their mean, and are not one constant but for an ULP."""
    return 1e-10 * signal < spread <= 1e-2 * signal


def offset_hides(signal: float, spread: float, noise: float) -> bool:
    """Whether a constant in an output makes its grid so coarse that what varies is lost, though the SQNR is good.

    Args:
        signal: its sum of squares.
        spread: the same about its mean over all values.
        noise: the sum of its squared errors.
    """
    return varies_little(signal, spread) and decibels(spread, noise) < CLEAR <= decibels(signal, noise)


def agrees(found: float, other: str) -> str:
    """Say how little an INT8 model agrees with another, by the SQNR in dB."""
    if found == -math.inf:
        return "the INT8 model gives NaN or infinity"
    return f"the INT8 model agrees with {other} to {found:.1f} dB only, where {USUAL:.0f} are usual"


def repeats(model: nn.Module, inputs: tuple[Tensor, ...], found: list[Tensor]) -> bool:
    """Whether a model gives the same again."""
    again = outputs(model, inputs)
    return len(again) == len(found) and all(torch.equal(x, y) for x, y in zip(again, found, strict=True))


class RoundedLayers:
    """A float model of which layers are rounded, and nothing between them: what these explain of an error, and which.

    Attributes:
        explained: the SQNR in dB where all that a recipe does not keep are rounded to 8 bits; infinity for none.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], recipe: Recipe):
        self._model, self._inputs, self._kept = model, inputs, recipe.keep_float
        self._simulation = Simulation.of(model, Batch(inputs))
        self._simulation.observe(Batch(inputs))
        self._exact = outputs(self._simulation.model, inputs)
        self._names = [name for name in self._simulation.layers if not recipe.keeps(name)]
        self._rounding = self._simulation.round(Scheme(weights="channel"))
        self.explained = self._agreement(self._names) if self._names else math.inf

    def _agreement(self, names: list[str], rounding: Rounding | None = None) -> float:
        with self._simulation.rounded(rounding or self._rounding, names):
            return agreement(self._exact, outputs(self._simulation.model, self._inputs))

    def what_hurts(self, *, can_keep: bool) -> str:
        """Say which layer hurts most.

        Args:
            can_keep: the caller takes `keep_float`, so what that would bring is measured and said too.
        """
        if not self._names:
            return ""
        if choosing := self._lines_that_choose():
            said = f"something is chosen by value{' and'.join(choosing)}, and rounding changes what: return all of it "
            return f"{said}and choose behind the model" + ", or keep what leads there in floats (keep_float)" * can_keep
        alone = {name: self._agreement([name]) for name in self._names}
        worst = min(alone, key=alone.__getitem__)
        if alone[worst] == -math.inf:
            return CHOOSES
        kind, others = self._simulation.layers[worst].kind, [name for name in self._names if name != worst]
        said = f"{worst} ({kind}) hurts most, {alone[worst]:.1f} dB where only it is rounded"
        if can_keep and others and (spared := self._agreement(others)) > self.explained + HALF:
            said += f": keep_float={[*self._kept, worst]} would reach up to {spared:.0f} dB"
        return said

    def _lines_that_choose(self) -> list[str]:
        """The lines that choose by value, where that and no layer explains the error: finer codes do not halve it."""
        lines = lines_that_choose(self._model, self._inputs) if -math.inf < self.explained < USUAL else []
        finer = self._simulation.round(Scheme(8 + _FINER, weights="channel")) if lines else None
        gained = self._agreement(self._names, finer) - self.explained if lines else 0.0
        return lines if abs(gained - _FINER * TWICE) > TWICE else []
