"""Exercises of lesson 03, observers and calibration."""

from qtutor.exercises.exercise import Exercises

import torch

exercises = Exercises("03_observers")

# --- Compute by hand.

count_clipped = exercises.value(
    "count_clipped",
    100,
    hints=[
        "Which share of the values lies above the upper end?",
        "0.01 percent lie outside, half of it above. Half of 0.01 percent of two million is ...",
    ],
    mistakes={
        200: "That counts both tails. After a ReLU the lower end is zero, and nothing lies below it.",
        10_000: "You took 1 - 0.99. The percentile is 99.99: one in ten thousand lies outside, half of that above.",
        20_000: "You took 1 - 0.99, and both tails. At 99.99 one in ten thousand lies outside, half of that above.",
        0: "Then it would be min-max. Some values are always clipped, however clean the stream is.",
    },
    because="Above the upper end lies half of 0.01 percent, 0.00005 of two million values.",
)


# --- Write code: percentile.


def _activations(generator: torch.Generator) -> tuple:
    size = int(torch.randint(50, 500, (), generator=generator))
    x = torch.randn(size, generator=generator, dtype=torch.float64) * 3
    return x, float(torch.randint(80, 100, (), generator=generator))


@exercises.function(
    inputs=_activations,
    hints=[
        "torch.quantile(x, q) takes q from 0 to 1.",
        "Half of what is left out lies below, half above: q is (1 - percentile / 100) / 2, and one minus that.",
    ],
    because="The tails are equally likely to be outliers, so each gives up half of what is left out.",
    tolerance=1e-9,
)
def percentile_range(x, percentile):
    tail = (1 - percentile / 100) / 2
    return torch.quantile(x, tail), torch.quantile(x, 1 - tail)


@percentile_range.mistake("You cut off the whole share on each side, twice as much as asked for: each tail gets half.")
def _both_whole(x, percentile):
    return torch.quantile(x, 1 - percentile / 100), torch.quantile(x, percentile / 100)


@percentile_range.mistake("That is symmetric: the percentile of |x| to either side. Here each end is its own.")
def _magnitude(x, percentile):
    largest = torch.quantile(x.abs(), percentile / 100)
    return -largest, largest


@percentile_range.mistake("That is a share of the range, not of the values: one outlier still moves it.")
def _share_of_range(x, percentile):
    tail = (1 - percentile / 100) / 2
    span = x.max() - x.min()
    return x.min() + tail * span, x.max() - tail * span


# --- Diagnose a symptom.

diagnose_collapse = exercises.value(
    "diagnose_collapse",
    "c",
    hints=[
        "What do the scales say? A wide range gives a large scale.",
        "The weights are as always. The activation scales are a hundred times too large. One image can do that.",
    ],
    mistakes={
        "a": "A few images give ranges that are too narrow, so scales would be smaller, not larger.",
        "b": "One class gives ranges that are somewhat too narrow. It cannot make a scale a hundred times as large.",
        "d": "Then nothing would have been observed, and every scale would be exactly 1.",
    },
    because="Pixels of 0 to 255 instead of 0 to 1 widen every range, and min-max never forgets the one image.",
)


# --- Find the silent bug.


def _streams(generator: torch.Generator) -> tuple:
    count = int(torch.randint(2, 9, (), generator=generator))
    batches = torch.rand(count, 20, generator=generator, dtype=torch.float64) + 1
    return list(batches), float(torch.randint(1, 20, (), generator=generator)) / 100


def _starts_at_zero(batches, share):
    high = 0.0
    for batch in batches:
        high = high + share * (batch.max() - high)
    return high


@exercises.function(
    inputs=_streams,
    given=_starts_at_zero,
    hints=[
        "What does it return after one batch with the maximum 2, at a share of 0.01?",
        "The average starts at 0, which no batch has shown. Start it at the maximum of the first batch.",
    ],
    because="The first batch starts the average, later ones move it: the range is right from the first batch on.",
    tolerance=1e-9,
)
def mend_average(batches, share):
    high = batches[0].max()
    for batch in batches[1:]:
        high = high + share * (batch.max() - high)
    return high


@mend_average.mistake("A fair average, by Adam's correction, but not what PyTorch's observer does: start at batch one.")
def _corrects_afterwards(batches, share):
    return _starts_at_zero(batches, share) / (1 - (1 - share) ** len(batches))


@mend_average.mistake("That is min-max: the largest of all. The average follows the batches.")
def _largest(batches, share):
    return torch.stack([batch.max() for batch in batches]).max()


@mend_average.mistake("The shares are swapped: a new batch counts for `share`, the average so far for the rest.")
def _swapped(batches, share):
    high = batches[0].max()
    for batch in batches[1:]:
        high = batch.max() + share * (high - batch.max())
    return high


# --- Take a decision.

choose_set = exercises.value(
    "choose_set",
    "b",
    hints=[
        "Which sets show the network what it will see at work? Of those, which may you look at?",
        "The test set is for one report at the end. Noise is for want of anything better.",
    ],
    mistakes={
        "a": "Ranges fitted to the test images flatter the one number that you report. Keep them out.",
        "c": "Augmented images may be harsher than any that come at work; calibrate on what the network will see.",
        "d": "More of the wrong thing does not help: noise excites other values than images do.",
    },
    because="Training images, prepared as at work, and a few hundred of them: more changes nothing.",
)

# --- Missions in the explorer.


def _average_goal(explorer) -> str | None:
    state, quality = explorer.state, explorer.result.sqnr
    if state.seen < len(explorer.stream):
        return "This mission is played with all batches seen."
    if state.strength > 10:
        return f"A hot value of x {state.strength:g} is too much: at most x 10."
    behind = quality["percentile"] - quality["moving average"]
    if behind >= 6:
        return None
    return f"The moving average is {behind:.1f} dB behind the percentile; the mission is 6 dB. What does it start from?"


fool_average = exercises.mission(
    "fool_average",
    _average_goal,
    answer={"strength": 10, "hot_batch": 1, "bits": 8},
    hints=[
        "Try the hot value in each of the batches in turn.",
        "Each later batch counts for 1 percent, but the first is where the average starts: batch 1, x 10.",
    ],
    mistakes=[
        ({"strength": 10, "hot_batch": 9, "bits": 8}, "What does it start from?"),
        ({"strength": 100, "hot_batch": 1}, "too much: at most x 10"),
        ({"strength": 10, "hot_batch": 1, "seen": 3}, "with all batches seen"),
    ],
    because="The first batch starts the average, so it is forgotten at 1 percent a batch, which takes long.",
)


def _percentile_goal(explorer) -> str | None:
    state = explorer.state
    if state.hot_batch > state.seen:
        return f"Batch {state.hot_batch} is still to come: let the observers see it."
    _, clean = explorer.stream.judge(1, state.hot_batch, state.bits)
    lost = float(clean[2, state.seen - 1]) - explorer.result.sqnr["percentile"]
    if lost >= 10:
        return None
    return f"The hot value costs the percentile {lost:.1f} dB; the mission is 10 dB. How many values has it seen?"


fool_percentile = exercises.mission(
    "fool_percentile",
    _percentile_goal,
    answer={"strength": 100, "hot_batch": 1, "seen": 1, "bits": 8},
    hints=[
        "0.005 percent of the values lie above its range. Of how many values is that less than one?",
        "One batch seen, the hot one, x 100.",
    ],
    mistakes=[
        ({"strength": 100, "hot_batch": 4, "seen": 16}, "How many values has it seen?"),
        ({"strength": 100, "hot_batch": 9, "seen": 2}, "still to come"),
    ],
    because="Of a few values, the share that a percentile clips is less than one value: then it is min-max.",
)
