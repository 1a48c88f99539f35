"""A layer rounded to few bits in many ways, and what each costs: what the FourBitExplorer shows."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from qtutor.affine import decibels
from qtutor.lowbit import FORMATS, Format, Steps, gptq_steps, integers, layer_loss

import torch
from torch import Tensor

INTEGERS = {"INT2": 2, "INT3": 3, "INT4": 4}
FLOATS = ("NF4", "E2M1", "MXFP4", "NVFP4", "Q4_0")
METHODS = ("rounding", "GPTQ")
GROUPS = (128, 64, 32, 16)
WINDOW = 32  # columns of the row that are drawn at once

Cost = tuple[float, float, float]
"""A KL in bits, and the ends of its interval."""


@dataclass(frozen=True)
class Choice:
    """A way to round a layer: controls of a `FourBitExplorer`, 0 and False where the format has no choice."""

    format: str
    group: int
    method: str
    symmetric: bool

    def form(self, inputs: int) -> Format:
        """Return the format for a layer of so many inputs; integers keep float16 scales."""
        if self.format in INTEGERS:
            bits, group = INTEGERS[self.format], self.group or inputs
            return integers(bits, group, self.symmetric, scale_dtype=torch.float16)
        return FORMATS[self.format]

    def __str__(self) -> str:
        kind = " symmetric" if self.symmetric else ""
        shared = (
            f" in groups of {self.group}" if self.group else " with a scale a row" if self.format in INTEGERS else ""
        )
        return f"{self.format}{kind}{shared}, {'GPTQ' if self.method == 'GPTQ' else 'rounded'}"


@dataclass(frozen=True, eq=False)
class FourBitResult:
    """What a state does to a layer.

    Attributes:
        bits_per_weight: of codes and scales.
        loss: noise of the layer's outputs over their signal.
        weight_sqnr: of the weights in dB.
        kl: of the whole model, in bits, with its interval; None where it was not measured.
        window: the columns of the row that are drawn.
        levels: `(columns, values)` what a weight of each of these columns may become.
        exact: `(columns,)` the weights.
        become: `(columns,)` what errors have made of them: of those that are rounded, when their turn came.
        rounded: `(columns,)` what they were rounded to, NaN for those still to come.
        moved: `(in,)` how far each column that is still to come has been moved.
        last: `(in,)` what the last error added to that.
    """

    bits_per_weight: float
    loss: float
    weight_sqnr: float
    kl: Cost | None
    window: range
    levels: Tensor
    exact: Tensor
    become: Tensor
    rounded: Tensor
    moved: Tensor
    last: Tensor

    @property
    def output_sqnr(self) -> float:
        """Of the layer's outputs in dB."""
        return decibels(1.0, self.loss)


@dataclass(frozen=True, eq=False)
class Tried:
    """A choice worked out: its steps, and what it costs."""

    form: Format
    steps: Steps
    loss: float


@dataclass(eq=False)
class FourBitData:
    """A layer made ready for many ways to round it.

    Attributes:
        weight: `(rows, in)` of what is explored; its first row is drawn.
        given: the shape of the whole layer.
        curvature: `(in, in)`, the Hessian of what it reads.
        kl: of the whole model, by choice; empty where it was not measured.
    """

    weight: Tensor
    given: tuple[int, int]
    curvature: Tensor
    kl: Mapping[Choice, Cost]

    def __post_init__(self):
        self.attempt = functools.cache(self.attempt)

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @functools.cached_property
    def signal(self) -> float:
        """The power of the outputs."""
        return layer_loss(self.weight, torch.zeros_like(self.weight), self.curvature)

    @functools.cached_property
    def formats(self) -> list[str]:
        """Those whose blocks divide the inputs."""
        return [*INTEGERS, *(name for name in FLOATS if self.inputs % (FORMATS[name].block or 1) == 0)]

    @functools.cached_property
    def groups(self) -> list[int]:
        return [0, *(size for size in GROUPS if size < self.inputs and self.inputs % size == 0)]

    def attempt(self, choice: Choice) -> Tried:
        """Round the layer, once for each choice."""
        form = choice.form(self.inputs)
        if choice.method == "GPTQ":
            steps = gptq_steps(self.weight, self.curvature, format=form)
        else:
            steps = _plain_steps(self.weight, form)
        loss = layer_loss(self.weight, steps.rounded, self.curvature) / (self.signal or 1.0)
        return Tried(form, steps, loss)

    def frontier(self) -> dict[Choice, tuple[float, float]]:
        """Bits per weight and cost of what was measured: the KL of the model, else the loss of the layer."""
        if self.kl:
            return {choice: (choice.form(self.inputs).bits_per_weight, cost[0]) for choice, cost in self.kl.items()}
        ways = [Choice(f, g, m, False) for m in METHODS for f in INTEGERS for g in self.groups]
        ways += [Choice(f, 0, m, False) for m in METHODS for f in self.formats if f not in INTEGERS]
        tried = {choice: self.attempt(choice) for choice in ways}
        return {choice: (each.form.bits_per_weight, each.loss) for choice, each in tried.items()}

    def levels(self, choice: Choice, window: range) -> Tensor:
        """The values that weights of the first row in some columns could take, `(columns, values)`."""
        tried = self.attempt(choice)
        form, steps, found = tried.form.for_tensor(self.weight), tried.steps, []
        size = form.block or self.inputs
        for first in range(window.start // size * size, window.stop, size):
            block = self.weight[0, first : first + size].double()
            if choice.method == "GPTQ":  # as it was when its scale was chosen
                block = block - steps.error[0, :first] @ steps.factor[:first, first : first + size]
            found.append(form.values(block[None].float()).expand(size, -1))
        start = window.start % size
        return torch.cat(found)[start : start + len(window)]


def _plain_steps(weight: Tensor, form: Format) -> Steps:
    """Rounding, as if it were GPTQ that hands no error on."""
    rounded, inputs = form.round(weight), weight.shape[1]
    lost = (weight - rounded).double()
    return Steps(weight, torch.arange(inputs), weight, rounded, lost, torch.eye(inputs, dtype=torch.float64))


def random_layer(rows: int = 32, inputs: int = 128) -> tuple[Tensor, Tensor]:
    """Return a random weight, and inputs that go together and differ in loudness."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(inputs, inputs, generator=generator) / math.sqrt(inputs)
    loud = torch.rand(inputs, generator=generator).exp()
    x = torch.randn(2048, inputs, generator=generator) @ (mix + 0.5 * torch.eye(inputs)) * loud
    return torch.randn(rows, inputs, generator=generator) / math.sqrt(inputs), x
