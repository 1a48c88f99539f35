"""Exercises of lesson 02, granularity."""

from dataclasses import replace

from qtutor.exercises.exercise import Exercises

import torch

exercises = Exercises("02_granularity")

# --- Compute by hand.

fold_by_hand = exercises.value(
    "fold_by_hand",
    -11,
    hints=[
        "The folded bias is what the batch norm gives where the filter gives 0.",
        "beta + gamma * (0 - mean) / sqrt(var + eps), with sqrt(0.25) = 0.5.",
    ],
    mistakes={
        -23: "You divided by var + eps. A batch norm divides by its square root, 0.5.",
        13: "The mean is subtracted: a filter output of 0 lies 3 below it.",
        -12: "That is gamma * (0 - mean) / sqrt(var + eps). The batch norm then adds beta.",
        1.2: "That is the folded weight, 0.3 * 2 / 0.5. The question is the bias.",
        1: "beta alone stays only where the mean is 0.",
    },
    because="gamma / sqrt(var + eps) = 2 / 0.5 = 4, and 1 + 4 * (0 - 3) = -11.",
    tolerance=1e-6,
)


# --- Find the silent bug.


def _square_weights(generator: torch.Generator) -> tuple:
    rows = torch.rand(3, 1, generator=generator) * 4 + 0.1
    return torch.randn(3, 3, generator=generator) * rows, 127


def _scales_along_the_wrong_axis(weight, quant_max):
    scale = weight.abs().amax(dim=1) / quant_max
    codes = (weight / scale).round()
    return codes * scale


@exercises.function(
    inputs=_square_weights,
    given=_scales_along_the_wrong_axis,
    hints=[
        "Print scale.shape. Which axis of the weight does a tensor of shape (3,) broadcast along?",
        "Broadcasting aligns the last axes, so scale i divides column i. It belongs to row i.",
        "amax(dim=1, keepdim=True) has shape (3, 1), and divides row i by scale i.",
    ],
    because="Kept as (out, 1), each scale meets its own row. On a weight that is not square the bug is an error.",
    tolerance=1e-6,
)
def mend_per_channel(weight, quant_max):
    scale = weight.abs().amax(dim=1, keepdim=True) / quant_max
    codes = (weight / scale).round()
    return codes * scale


@mend_per_channel.mistake("Consistent now, but this is one scale per input. Output channels are the rows of a weight.")
def _one_scale_per_input(weight, quant_max):
    scale = weight.abs().amax(dim=0) / quant_max
    return (weight / scale).round() * scale


@mend_per_channel.mistake("That is one scale for the tensor: right shapes, but it gives up what channels were for.")
def _one_scale(weight, quant_max):
    scale = weight.abs().max() / quant_max
    return (weight / scale).round() * scale


@mend_per_channel.mistake("Half mended: you divide row i by its scale, and multiply column i by it.")
def _mends_one_line(weight, quant_max):
    scale = weight.abs().amax(dim=1) / quant_max
    return (weight / scale[:, None]).round() * scale


# --- Write code: equalize two layers.


def _two_layers(generator: torch.Generator) -> tuple:
    sizes = 0.05 + 5 * torch.rand(5, 1, generator=generator, dtype=torch.float64)
    first = torch.randn(5, 4, generator=generator, dtype=torch.float64) * sizes
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    return first, bias, torch.randn(3, 5, generator=generator, dtype=torch.float64)


@exercises.function(
    inputs=_two_layers,
    hints=[
        "Channel i is row i of the first weight and column i of the second.",
        "Range of row i: first.abs().amax(dim=1). Range of column i: second.abs().amax(dim=0). r is the root of "
        "their ratio.",
        "Row i and bias i are divided by r, column i is multiplied: first / r[:, None], bias / r, second * r.",
    ],
    because="Both ranges of channel i become the root of their product, and ReLU passes the positive factor on.",
    tolerance=1e-9,
)
def equalize(first, bias, second):
    r = (first.abs().amax(dim=1) / second.abs().amax(dim=0)).sqrt()
    return first / r[:, None], bias / r, second * r


@equalize.mistake("The bias is added to outputs that are now r times smaller: divide it too, or the function changes.")
def _leaves_the_bias(first, bias, second):
    r = (first.abs().amax(dim=1) / second.abs().amax(dim=0)).sqrt()
    return first / r[:, None], bias, second * r


@equalize.mistake("The ratio without its root swaps the two ranges of a channel instead of making them equal.")
def _swaps(first, bias, second):
    r = first.abs().amax(dim=1) / second.abs().amax(dim=0)
    return first / r[:, None], bias / r, second * r


@equalize.mistake("The function is preserved, but the ranges move apart: your r is upside down.")
def _upside_down(first, bias, second):
    r = (second.abs().amax(dim=0) / first.abs().amax(dim=1)).sqrt()
    return first / r[:, None], bias / r, second * r


@equalize.mistake("You divide both layers. What the first one loses, the second must give back: multiply.")
def _divides_both(first, bias, second):
    r = (first.abs().amax(dim=1) / second.abs().amax(dim=0)).sqrt()
    return first / r[:, None], bias / r, second / r


# --- Go deeper: compute by hand.

bytes_of_scales = exercises.value(
    "bytes_of_scales",
    131072,
    hints=[
        "How many groups of 32 are there among 1024 * 1024 weights?",
        "32,768 groups, one float32 scale each, four bytes a scale.",
    ],
    mistakes={
        32768: "That is the number of scales. A float32 takes 4 bytes.",
        4096: "That is one scale for each of 1024 rows. Every row holds 32 groups.",
        524288: "That is what the codes take: a million weights of half a byte.",
        65536: "That would be 16-bit scales. These are float32.",
    },
    because="1024 * 1024 / 32 = 32,768 scales of 4 bytes, on 524,288 bytes of codes: one more bit for each weight.",
)

# --- Go deeper: diagnose a symptom.

diagnose_mobilenet = exercises.value(
    "diagnose_mobilenet",
    "b",
    hints=[
        "What do the weights of the depthwise layers look like to one scale?",
        "28 dB overall says only that the loudest channel is well kept.",
    ],
    mistakes={
        "a": "More images choose better ranges for activations. The damage here is done before the first image.",
        "c": "8 bits were enough in this lesson, with a scale for each channel.",
        "d": "Folding changes no output. It only shows the range that the batch norm would otherwise apply later.",
    },
    because="One huge filter sets the scale, all others round to a few codes; the overall SQNR hears only that one.",
)

# --- Go deeper: take a decision.

choose_what_leaves = exercises.value(
    "choose_what_leaves",
    "c",
    hints=[
        "y[n, o] is a sum over i of x[n, i] * w[o, i]. Which indices does a factor need to stand before the sum?",
        "A scale may depend on n or on o, and on nothing that the sum runs over.",
    ],
    mistakes={
        "a": "i is what the sum runs over: the scale of input i would be needed inside, at every product.",
        "b": "The halves are added up together: their scales differ inside the sum.",
        "d": "A group is part of i, so its sum must be kept apart: 32 products, then a float multiplication, then on.",
    },
    because="One scale for each row of x depends on n alone. It leaves the sum, and lesson 04 uses it.",
)


# --- Missions in the explorer.


def _hidden_goal(explorer) -> str | None:
    bits, result = explorer.state.bits, explorer.result
    if bits != 8:
        return f"This mission is played at 8 bits, the explorer stands at {bits}."
    if result.median >= 5:
        return f"The median channel still has {result.median:.1f} dB; the mission is below 5 dB. Turn one channel up."
    if result.overall < 20:
        return f"{result.overall:.1f} dB overall; the mission is at least 20 dB."
    return None


hide_the_collapse = exercises.mission(
    "hide_the_collapse",
    _hidden_goal,
    answer={"granularity": "tensor", "factor": 128},
    hints=["One scale for the tensor, and the slider that turns one channel up.", "Turn it up to 128."],
    mistakes=[
        ({"bits": 2, "factor": 128}, "This mission is played at 8 bits"),
        ({"factor": 4}, "Turn one channel up."),
    ],
    because="The loud channel holds nearly all of the power, so the sum hears only that it is well kept.",
)


def _thrifty_goal(explorer) -> str | None:
    state, result = explorer.state, explorer.result
    if state.bits != 4:
        return f"This mission is played at 4 bits, the explorer stands at {state.bits}."
    per_channel = replace(state, granularity="channel", axis=explorer.output_axis, symmetric=False)
    gain = result.worst - explorer.compute(per_channel).worst
    if gain < 0.5:
        return f"The worst channel has {gain:+.1f} dB against a scale per channel; the mission is +0.5. Share less?"
    extra = result.scale_bytes / result.code_bytes
    if extra > 0.1:
        return f"The worst channel is good enough, but scales cost {extra:.0%}; the mission is 10%. Larger groups?"
    return None


beat_per_channel = exercises.mission(
    "beat_per_channel",
    _thrifty_goal,
    answer={"granularity": "group", "group_size": 144, "bits": 4},
    hints=["Fewer weights must share a scale than one output channel has.", "Groups, but large ones: 144."],
    mistakes=[
        ({"granularity": "group", "group_size": 144}, "This mission is played at 4 bits"),
        ({"granularity": "channel", "bits": 4}, "Share less?"),
        ({"granularity": "group", "group_size": 8, "bits": 4}, "Larger groups?"),
    ],
    because="Where steps are coarse a narrower range is worth paying for; each halving of a group doubles the price.",
)


def explorer():
    """Open the explorer that the missions are played in."""
    from qtutor.explorers import GranularityExplorer

    return GranularityExplorer(torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(0)))
