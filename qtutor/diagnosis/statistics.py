"""What rounding a layer does to its own weights, inputs and outputs, and what that tells in words.

All are sums over batches, one number a channel: memory does not grow with the data.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

from qtutor.affine import decibels, fake_quantize, noise_over_signal
from qtutor.models.batches import Batch
from qtutor.simulation import Rounding, Simulation
from qtutor.simulation.layers import activation_axis, by_channel, channel_axis
from qtutor.words import in_digits
from qtutor.workflows.limits import HALF, HARMLESS, WELL

import torch
from torch import Tensor

UNEVEN = 16.0
"""One scale for channels whose ranges differ by this factor leaves the median channel 4 of 8 bits."""

_FAR = 30.0  # times the root mean square: further out than any bell-shaped distribution goes


@dataclass
class ChannelSums:
    """Sums over all values of each channel, float64; and its extremes."""

    count: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    signal: Tensor = field(default_factory=lambda: torch.zeros(()))
    noise: Tensor = field(default_factory=lambda: torch.zeros(()))
    low: Tensor = field(default_factory=lambda: torch.tensor(math.inf))
    high: Tensor = field(default_factory=lambda: torch.tensor(-math.inf))

    def add(self, rows: Tensor, rounded: Tensor) -> None:
        """Add `(channels, n)` values, and what they are rounded to."""
        exact = rows.double()
        self.count = self.count + rows.shape[1]
        self.total = self.total + exact.sum(dim=1)
        self.signal = self.signal + exact.square().sum(dim=1)
        self.noise = self.noise + (exact - rounded).square().sum(dim=1)
        self.low, self.high = torch.minimum(self.low, rows.amin(dim=1)), torch.maximum(self.high, rows.amax(dim=1))

    @classmethod
    def cat(cls, parts: "list[ChannelSums]") -> "ChannelSums":
        """Return the sums of the channels of several tensors, one behind the other."""
        return cls(*(torch.cat([vars(p)[f.name].expand_as(p.total) for p in parts]) for f in fields(cls)))

    @property
    def std(self) -> Tensor:
        """`(channels,)` standard deviations; 0 for a constant, of which sums leave some round-off."""
        power = self.signal / self.count
        variance = power - (self.total / self.count).square()
        return torch.where(variance > 1e-12 * power, variance, 0.0).sqrt()

    @property
    def range(self) -> Tensor:
        """`(channels,)` largest magnitudes."""
        return torch.maximum(-self.low, self.high)

    @property
    def blur(self) -> float:
        """Noise over variance, overall or of the median channel, whichever is more: a constant is no signal."""
        variance, noise = self.std.square(), self.noise / self.count
        live = variance > 0
        if not live.any():
            return 0.0
        return max(float(noise.sum() / variance.sum()), float((noise[live] / variance[live]).median()))

    def decibels(self) -> tuple[float, float, float]:
        """SQNR overall, of the median and of the worst channel."""
        each = sorted(
            decibels(signal, noise) for signal, noise in zip(self.signal.tolist(), self.noise.tolist(), strict=True)
        )
        return decibels(float(self.signal.sum()), float(self.noise.sum())), each[(len(each) - 1) // 2], each[0]


@dataclass
class LayerStatistics:
    """What rounding does to the tensors of one layer.

    Attributes:
        parameters: how many weights it has.
        weights: sums of these by output channel, batch norm folded in.
        sides: sums of what is rounded on its account, by "input" and "output".
        shift: `(channels,)` mean of what rounding the weights adds to each output channel.
        shift_noise: mean power of what it adds, to each channel.
        spread: `(channels,)` standard deviation of the output.
        gain: dB that the range of least squared error would win over that of all values.
    """

    parameters: int
    weights: ChannelSums
    sides: dict[str, ChannelSums] = field(default_factory=dict)
    shift: Tensor | None = None
    shift_noise: Tensor | None = None
    spread: Tensor | None = None
    gain: dict[str, float] = field(default_factory=dict)

    @property
    def worst_side(self) -> str:
        """The side whose rounding adds more noise, or "" where nothing is rounded but weights."""
        return max(self.sides, key=lambda side: self.sides[side].blur, default="")

    @property
    def weight_noise(self) -> float:
        """Noise over signal that rounded weights bring into the output."""
        if self.shift_noise is None or self.spread is None:
            return noise_over_signal(self.weights.decibels()[0])
        power = float(self.spread.square().sum())
        return float(self.shift_noise.sum()) / power if power else 0.0

    @property
    def noise(self) -> float:
        """Noise over signal of the weights and of the worse side."""
        side = self.worst_side
        return self.weight_noise + (self.sides[side].blur if side else 0.0)

    @property
    def amplified(self) -> bool:
        """Whether well rounded weights give a bad output: then it is the input that is extreme."""
        overall, median, _ = self.weights.decibels()
        return median >= WELL and self.weight_noise >= max(0.01, 10 * noise_over_signal(overall))

    @property
    def bias_shift(self) -> float:
        """The shifted means over the standard deviation of the output, each as root mean square over channels."""
        if self.shift is None or self.spread is None:
            return math.nan
        spread = float(self.spread.square().mean())
        return math.sqrt(float(self.shift.square().mean()) / spread) if spread else 0.0

    def columns(self) -> dict[str, Any]:
        """The columns of the table."""
        activation = self.sides[self.worst_side].decibels() if self.sides else (math.nan,) * 3
        ranges = self.sides[self.worst_side].range if self.sides else None
        return {
            **dict(zip(("weight_sqnr", "weight_median", "weight_worst"), self.weights.decibels(), strict=True)),
            **dict(zip(("activation_sqnr", "activation_median", "activation_worst"), activation, strict=True)),
            "weight_spread": unevenness(self.weights.range),
            "activation_spread": math.nan if ranges is None else unevenness(ranges),
            "bias_shift": self.bias_shift,
            "parameters": self.parameters,
        }


def unevenness(ranges: Tensor) -> float:
    """How many times as wide as the median of the channels the widest is; channels that are all zero do not count."""
    live = ranges[ranges > 0]
    return float(live.max() / live.median()) if len(live) else 1.0


@torch.no_grad()
def local_statistics(simulation: Simulation, rounding: Rounding, batches: list[Batch]) -> dict[str, LayerStatistics]:
    """Gather the statistics of all layers of the float model in one pass."""
    statistics = {name: _of_weights(simulation, rounding, name) for name in simulation.layers}
    outputs: dict[str, ChannelSums] = {}
    shifts: dict[str, Tensor] = {}

    def see(key: tuple[str, str], value: Tensor) -> None:
        name, side = key
        qparams = (rounding.inputs if side == "input" else rounding.outputs).get(name)
        if qparams is None:
            return
        axis = activation_axis(simulation.module(name), value)
        both = (by_channel(x, axis) for x in (value, fake_quantize(value, qparams)))
        statistics[name].sides.setdefault(side, ChannelSums()).add(*both)

    def compare(name: str, exact: Tensor, rounded: Tensor) -> None:
        outputs.setdefault(name, ChannelSums()).add(exact, rounded)
        shifts[name] = shifts.get(name, 0) + (rounded - exact).sum(dim=1)

    with simulation.watching(see), simulation.comparing(rounding, simulation.products, compare):
        for batch in batches:
            with suppress(Exception):  # a model that raises now and then; the sweep says so
                simulation.run(batch)
    for name, sums in outputs.items():
        each = statistics[name]
        each.shift, each.shift_noise, each.spread = shifts[name] / sums.count, sums.noise / sums.count, sums.std
    for name, each in statistics.items():
        each.gain = {side: simulation.gain(name, side, rounding) for side in each.sides}
    return statistics


def explain(statistics: LayerStatistics) -> tuple[str, str]:
    """Say what is wrong with a layer, if anything, and what to do about it."""
    side = statistics.worst_side
    activation, weight = statistics.sides[side].blur if side else 0.0, statistics.weight_noise
    _, median, _ = statistics.weights.decibels()
    weight = max(weight, noise_over_signal(median))  # a loud channel must not hide the median one
    if max(weight, activation) <= noise_over_signal(HARMLESS):
        return "healthy", ""
    return _of_activations(statistics, side) if activation > weight else _of_the_weights(statistics)


def _of_the_weights(statistics: LayerStatistics) -> tuple[str, str]:
    if statistics.amplified:
        return "amplified: its weights are fine, its input is extreme", "repair the layer before it, or correct_bias"
    ranges = statistics.weights.range
    widest, ratio = int(ranges.argmax()), unevenness(ranges)
    output = statistics.spread
    if ratio >= UNEVEN:
        if output is not None and len(output) == len(ranges) and output[widest] <= 1e-3 * output.median():
            return (
                f"dead channel: channel {widest} gives the same value for every input, and its weights are {ratio:.0f} "
                "times as wide as those of the median channel",
                "a scale for each channel, or equalize",
            )
        return (
            f"uneven weights: channel {widest} is {ratio:.0f} times as wide as the median",
            "a scale for each channel, or equalize",
        )
    if ranges[widest] >= _FAR * (statistics.weights.signal / statistics.weights.count)[widest].sqrt():
        return "outlier weights: a few are far larger than the rest of their channel", "keep it in float, or more bits"
    shift, noise = statistics.shift, statistics.shift_noise
    if shift is not None and noise is not None and float(shift.square().sum()) > 0.5 * float(noise.sum()) > 0:
        return "bias shift: most of the error is a constant in each channel", "correct_bias"
    return "too few bits: its weights are rounded too coarsely", "a scale for each channel, more bits, or QAT"


def _of_activations(statistics: LayerStatistics, side: str) -> tuple[str, str]:
    sums = statistics.sides[side]
    ratio, gain = unevenness(sums.range), statistics.gain.get(side, 0.0)
    widest = int(sums.range.argmax())
    mean, std = float(sums.total[widest] / sums.count), float(sums.std[widest])
    if abs(mean) >= 10 * std > 0:
        return (
            f"bias shift: channel {widest} of its {side} lies at {in_digits(mean)} and varies by "
            f"{in_digits(std, 2)} only",
            "move the constant into the bias of the next layer, or keep it in float",
        )
    if ratio >= UNEVEN:
        return (
            f"outlier activation: channel {widest} of its {side} is {ratio:.0f} times as wide as the median",
            "equalize, or keep it in float",
        )
    rms = math.sqrt(float(sums.signal.sum() / (sums.count * len(sums.signal))))
    if gain >= HALF:
        return (
            f"badly calibrated: rare values set the range of its {side}, {gain:.0f} dB could be won",
            "ranges of least squared error",
        )
    if float(sums.range.max()) >= _FAR * rms:
        return f"outlier activation: a few values of its {side} are far out", "keep it in float, or clip"
    return f"too few bits: its {side} is rounded too coarsely", "more bits, QAT, or keep it in float"


def _of_weights(simulation: Simulation, rounding: Rounding, name: str) -> LayerStatistics:
    axis, parts, parameters = channel_axis(simulation.module(name)), [], 0
    for path, exact in simulation.weights(name).items():
        rounded = rounding.weights[name][path]
        if simulation.layers[name].norm:
            rounded = rounded * simulation.factor(name)
        parts.append(ChannelSums())
        parts[-1].add(*(by_channel(x, axis) for x in (exact, rounded)))
        parameters += exact.numel()
    return LayerStatistics(parameters, ChannelSums.cat(parts))
