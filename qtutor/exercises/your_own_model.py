"""Exercises of lesson 10, your own model."""

import functools

from qtutor.exercises.exercise import Exercises

import torch

exercises = Exercises("10_your_own_model")

ENOUGH = 15.0
"""SQNR of the output in dB that the missions ask for."""

# --- Diagnose a symptom.

read_the_row = exercises.value(
    "read_the_row",
    "c",
    hints=[
        "Which number of this row is about the output of the model?",
        "Its own weights and activations look fine overall. Which number says that one channel is lost?",
    ],
    mistakes={
        "a": "36 dB is the overall SQNR of its weights. It hears the loudest channel only, lesson 02.",
        "b": "Its activations have 43 dB: their range is well chosen.",
        "d": "Rounded alone, it leaves the output 0.3 dB: noise as strong as the signal. It cannot be ignored.",
    },
    because="Overall fine, worst channel 0 dB, output gone: one channel sets a scale at which all others vanish.",
)

# --- Write code: rank layers.


def _noises(generator: torch.Generator) -> tuple:
    alone = 10 ** (-5 * torch.rand(6, generator=generator, dtype=torch.float64))
    everything = float(alone.sum() * (0.5 + torch.rand(1, generator=generator, dtype=torch.float64)))
    gain = 0.4 * everything * torch.rand(6, generator=generator, dtype=torch.float64)
    worse = torch.rand(6, generator=generator) < 0.3  # keeping a layer in float may even hurt a little
    return alone, everything - torch.where(worse, -0.3 * gain, gain), everything


@exercises.function(
    inputs=_noises,
    hints=[
        "A layer harms by what it does alone, and by what goes away when only it stays in floating point.",
        "harm = alone + (everything - all_but), with the bracket not below 0.",
        "torch.argsort(harm, descending=True) gives the places of the largest first.",
    ],
    because="Alone shows what a layer can do, all but one what the rest cannot undo: together they find both kinds.",
)
def rank_layers(alone, all_but, everything):
    harm = alone + (everything - all_but).clamp(min=0)
    return torch.argsort(harm, descending=True)


@rank_layers.mistake("The least harmful stands first: sort in descending order.")
def _ascending(alone, all_but, everything):
    return torch.argsort(alone + (everything - all_but).clamp(min=0))


@rank_layers.mistake("That ranks by the noise that is left without the layer. What counts is what goes away with it.")
def _what_is_left(alone, all_but, everything):
    return torch.argsort(alone + all_but, descending=True)


@rank_layers.mistake("Clamp the bracket at 0: that the rest is worse without a layer is no merit of the layer alone.")
def _without_clamp(alone, all_but, everything):
    return torch.argsort(alone + everything - all_but, descending=True)


@rank_layers.mistake("That uses the layers alone. What disappears when one stays in floating point counts too.")
def _alone_only(alone, all_but, everything):
    return torch.argsort(alone, descending=True)


# --- Compute by hand.

count_the_bytes = exercises.value(
    "count_the_bytes",
    13008,
    hints=[
        "A float32 weight takes 4 bytes, an INT8 weight 1, and a scale for a whole tensor 4.",
        "4 * 1,000 + 4,000 + 5,000 for the weights. How many tensors have a scale?",
    ],
    mistakes={
        10012: "That is with all three layers in INT8. The first stays in floating point.",
        13000: "The weights are right. The two rounded layers each have a float32 scale.",
        13012: "The layer in floating point has no scale.",
        40000: "That is the float model.",
    },
    because="4 * 1,000 + 4,000 + 5,000 + 2 * 4 = 13,008, against 10,012 with all layers in INT8.",
)

# --- Go deeper: find the silent bug.


def _means(generator: torch.Generator) -> tuple:
    outputs = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    shift = torch.randn(5, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    return torch.randn(5, generator=generator, dtype=torch.float64), outputs, outputs + shift + noise


def _adds_the_shift(bias, exact, rounded):
    shift = (rounded - exact).mean(dim=0)
    return bias + shift


@exercises.function(
    inputs=_means,
    given=_adds_the_shift,
    hints=[
        "Try it: if rounding adds 0.3 to every output of a channel, what must happen to its bias?",
        "After the correction the mean of the rounded outputs is to be that of the exact ones: take the shift off.",
    ],
    because="The outputs move with the bias, so taking the mean error off the bias takes it off the outputs.",
    tolerance=1e-9,
)
def mend_correction(bias, exact, rounded):
    shift = (rounded - exact).mean(dim=0)
    return bias - shift


@mend_correction.mistake("The sign is right, but this is one shift for all channels: average over axis 0 only.")
def _one_shift(bias, exact, rounded):
    return bias - (rounded - exact).mean()


@mend_correction.mistake("A positive and a negative shift are taken off alike: keep the sign of the error.")
def _without_sign(bias, exact, rounded):
    return bias - (rounded - exact).abs().mean(dim=0)


# --- Go deeper: take a decision.

choose_a_way = exercises.value(
    "choose_a_way",
    "a",
    hints=[
        "Where is the time spent, and what has to be calibrated?",
        "One text at a time through large LSTM layers: reading weights takes the time. Lesson 04.",
    ],
    mistakes={
        "b": "Static flows leave an LSTM in floating point or replace it: dynamic has the kernel for it.",
        "c": "Training is the dearest way. Nothing says yet that accuracy is lost.",
        "d": "The layers are large, and 4x fewer bytes to read is what helps at batch 1.",
    },
    because="Dynamic quantization shrinks what is read at each step, needs no calibration, and takes one line.",
)

# --- Missions in the explorer.


def _convolutions(*places: int) -> tuple[str, ...]:
    """The names of the layers at these places of the network: 1, 3, 5 and 7 are depthwise."""
    return tuple(f"features.{i}.conv" for i in places)


def _cheapest(explorer, weights: str) -> int | None:
    return min((m.bytes for m in explorer.frontier(weights) if m.sqnr >= ENOUGH), default=None)


def _budget_goal(explorer) -> str | None:
    state, measured = explorer.state, explorer.result.measured
    if state.weights != "tensor":
        return "This mission is played with one scale per tensor."
    if measured.sqnr < ENOUGH:
        return f"The output has {measured.sqnr:.1f} dB; the mission is {ENOUGH:.0f} dB. Which layers hurt most?"
    rival = _cheapest(explorer, "tensor")
    if rival is not None and measured.bytes > rival:
        return f"Good enough, in {measured.bytes:,} bytes; the tool needs {rival:,}. Which layer need not be in float?"
    return None


meet_the_frontier = exercises.mission(
    "meet_the_frontier",
    _budget_goal,
    answer={"weights": "tensor", "keep_float": _convolutions(1, 3, 5, 7)},
    hints=["The dashed line adds one layer after the other from the top of the list.", "All four depthwise layers."],
    mistakes=[
        ({"weights": "channel"}, "This mission is played with one scale per tensor"),
        ({"weights": "tensor", "keep_float": _convolutions(1, 3)}, "Which layers hurt most?"),
        ({"weights": "tensor", "keep_float": _convolutions(1, 3, 5, 7, 8)}, "Which layer need not be in float?"),
    ],
    because="Each dead channel ruins the output by itself, so all four must go, and no other layer is worth its bytes.",
)


def _cheaper_goal(explorer) -> str | None:
    measured, rival = explorer.result.measured, _cheapest(explorer, "tensor")
    if measured.sqnr < ENOUGH:
        return f"The output has {measured.sqnr:.1f} dB; the mission is {ENOUGH:.0f} dB. What else can you change?"
    if rival is not None and measured.bytes >= rival:
        return f"{measured.bytes:,} bytes; the mission is fewer than {rival:,}. Must a layer stay in float at all?"
    return None


beat_the_frontier = exercises.mission(
    "beat_the_frontier",
    _cheaper_goal,
    answer={"weights": "channel", "keep_float": ()},
    hints=[
        "A float takes 3 bytes more a weight. What takes 4 bytes a channel?",
        "A scale per channel, no floats.",
    ],
    mistakes=[
        ({"weights": "tensor", "keep_float": _convolutions(1)}, "What else can you change?"),
        ({"weights": "tensor", "keep_float": _convolutions(1, 3, 5, 7)}, "Must a layer stay in float at all?"),
    ],
    because="A scale for each channel costs 4 bytes a channel, and repairs what 3 bytes a weight did.",
)


def explorer():
    """Open the explorer that the missions are played in."""
    from qtutor.explorers import LayerExplorer

    return LayerExplorer(_untrained())


@functools.cache
def _untrained():
    """A network that has not been trained and has the faults of the trained one."""
    from qtutor.diagnosis import diagnose
    from qtutor.samples import DepthwiseNet

    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = DepthwiseNet()
        for _ in range(200):
            model(images)  # its batch norms learn their statistics
    return diagnose(model.eval(), [images], progress=False)
