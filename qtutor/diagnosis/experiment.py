"""A model, the data that judge it, and all that was measured of the two: what a diagnosis is made of."""

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

from qtutor.diagnosis.trials import Metric, Score, sweep
from qtutor.models.batches import Batch, by_place
from qtutor.models.operators import check_names
from qtutor.models.running import outputs
from qtutor.models.tensors import floats_in
from qtutor.repair.bias import correct_bias
from qtutor.repair.equalization import equalize
from qtutor.simulation import Configuration, Rounding, Simulation
from qtutor.simulation.layers import channel_axis

from torch import Tensor, nn


@dataclass(frozen=True)
class Measured:
    """What a configuration gives.

    Attributes:
        sqnr: of the output, in dB; NaN where outputs cannot be compared.
        metric: the accuracy, or what else was asked for; NaN without labels.
        bytes: of all weights, scales included.
        offset_hides: whether what varies in an output is lost beside a constant in it, whatever the SQNR.
    """

    sqnr: float
    metric: float
    bytes: int
    offset_hides: bool = False


@dataclass(frozen=True)
class Stored:
    """A weight, stored once however many layers use it.

    Attributes:
        users: names of the layers.
        elements: how many numbers it holds.
        width: bytes of each, in the float model.
        channels: output channels: how many scales it has where each channel gets one.
    """

    users: tuple[str, ...]
    elements: int
    width: int
    channels: int

    @classmethod
    def of(cls, simulation: Simulation) -> "tuple[Stored, ...]":
        """Return the weights of all layers."""
        users: dict[Tensor, list[str]] = defaultdict(list)
        for name, layer in simulation.layers.items():
            for path in layer.weights:
                users[simulation.module(name).get_parameter(path)].append(name)
        axes = {weight: channel_axis(simulation.module(names[0])) for weight, names in users.items()}
        return tuple(
            cls(tuple(names), weight.numel(), weight.element_size(), weight.shape[axes[weight]])
            for weight, names in users.items()
        )


@dataclass(eq=False)
class Experiment:
    """Measures configurations of one model on the same data, each of them once.

    Attributes:
        model: the float model, in eval mode.
        batches: the data that judge.
        metric: what is measured besides the SQNR of the output, or None.
        stored: the weights of the layers that can be rounded.
    """

    model: nn.Module
    batches: list[Batch]
    metric: Metric | None
    stored: tuple[Stored, ...]
    _prepared: dict[Configuration, tuple[Simulation, Rounding]] = field(repr=False)
    _measured: dict[Configuration, Measured] = field(default_factory=dict, repr=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that can be rounded."""
        return tuple(dict.fromkeys(user for weight in self.stored for user in weight.users))

    def measure(self, configuration: Configuration) -> Measured:
        """Measure what a configuration gives, once.

        Raises:
            ValueError: `keep_float` names no layer that was simulated, or a repair does not fit the model.
        """
        configuration = replace(configuration, keep_float=tuple(sorted(configuration.keep_float)))
        if configuration not in self._measured:
            simulation, rounding = self.prepare(configuration)
            trial = _rounded_in(configuration, simulation)
            unrepaired = None if simulation.model is self.model else Simulation(self.model)
            score = sweep(simulation, rounding, self.batches, [trial], self.metric, unrepaired=unrepaired).get(trial)
            if score is None or score.error:
                said = score.error if score else "on every batch"
                raise ValueError(f"the model raised when it was rounded ({configuration}): {said}")
            self.note(configuration, score)
        return self._measured[configuration]

    def note(self, configuration: Configuration, score: Score) -> None:
        """Keep what was measured elsewhere; `keep_float` is sorted."""
        size = self.bytes(configuration)
        self._measured[configuration] = Measured(score.sqnr, score.metric, size, score.offset_hides)

    def prepare(self, configuration: Configuration) -> tuple[Simulation, Rounding]:
        """Return the simulation of a configuration, whatever it keeps in floating point; raises as `measure`."""
        check_names(configuration.keep_float, self.layers, "keep_float", "what is rounded")
        key = replace(configuration, keep_float=())
        if key not in self._prepared:
            alike = (s for c, (s, _) in self._prepared.items() if c.equalized == key.equalized and not c.bias_corrected)
            simulation = None if key.bias_corrected else next(alike, None)
            if simulation is None:
                simulation = Simulation.of(self.repaired(key), self.batches[0])
                for batch in self.batches:
                    simulation.observe(batch)
            self._prepared[key] = simulation, simulation.round(key)
        return self._prepared[key]

    def repaired(self, configuration: Configuration) -> nn.Module:
        """Return the float model after the repairs of a configuration."""
        model = self.model
        if configuration.equalized:
            bound = self.batches[0].bound(model)
            model = equalize(model, None if bound.kwargs else bound.args)
        if configuration.bias_corrected:
            model = correct_bias(model, self.batches, configuration)
        return model

    def simulate(self, configuration: Configuration) -> nn.Module:
        """Return a copy of the model that rounds as a configuration says; it stays in floating point."""
        simulation, rounding = self.prepare(configuration)
        simulation = simulation.copy()
        return _Rounded(simulation, rounding, _rounded_in(configuration, simulation))

    def agreement(self, other: nn.Module, batches: list[Batch] | None = None) -> float:
        """Return the SQNR in dB of what another model gives for the data, or for other batches."""
        return self.score(other, batches=batches).sqnr

    def score(self, other: nn.Module, metric: Metric | None = None, batches: list[Batch] | None = None) -> Score:
        """Return how far what another model, which takes inputs by place, gives is off, and its metric if one is given.

        `batches` are those of the data by default.
        """
        score = Score()
        for batch in self.batches if batches is None else batches:
            inputs = by_place(batch, self.model, "a batch")
            output = Simulation(other).run(Batch(inputs))
            score.add(floats_in(outputs(self.model, inputs)), output, batch.labels, metric, batch.size)
        return score

    def shortened(self, configuration: Configuration, seconds: float) -> "Experiment":
        """Return one that measures on as many batches, at least one, as take about so long."""
        started = time.perf_counter()
        self.prepare(configuration)[0].run(self.batches[0])
        taken = 2 * (time.perf_counter() - started)
        count = max(1, int(seconds / max(taken, 1e-6)))
        return self if count >= len(self.batches) else replace(self, batches=self.batches[:count], _measured={})

    @property
    def float_bytes(self) -> int:
        """What the parameters take in the model as it was given."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def bytes(self, configuration: Configuration) -> int:
        """Return what the parameters take: codes and scales where rounded, else as in the model."""
        total = self.float_bytes
        for weight in self.stored:
            in_float = [user for user in weight.users if user in configuration.keep_float]
            if len(in_float) < len(weight.users):
                scales = 4 * (weight.channels if configuration.weights == "channel" else 1)
                total += math.ceil(weight.elements * configuration.bits / 8) + scales
                total -= 0 if in_float else weight.elements * weight.width
        return total


class _Rounded(nn.Module):
    """A model that rounds; its parameters are those of the copy inside."""

    def __init__(self, simulation: Simulation, rounding: Rounding, names: frozenset[str]):
        super().__init__()
        self.model = simulation.model
        self._simulation, self._rounding, self._names = simulation, rounding, names
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._simulation.rounded(self._rounding, self._names):
            return self._simulation.run(Batch(args, kwargs))


def _rounded_in(configuration: Configuration, simulation: Simulation) -> frozenset[str]:
    return frozenset(simulation.layers) - frozenset(configuration.keep_float)
