"""Exercises of lesson 06, quantization-aware training."""

from qtutor.exercises.exercise import Exercises

import torch

exercises = Exercises("06_quantization_aware_training")

# --- Compute by hand.

ste_gradient = exercises.value(
    "ste_gradient",
    0,
    hints=[
        "Which code does 0.9 round to, and is it on the grid?",
        "0.9 / 0.25 = 3.6, which rounds to 4. The last code is 1, so the weight is clipped.",
    ],
    mistakes={
        3: "That is what a weight inside the grid gets. Is 0.9 inside?",
        0.75: "The slope of the straight-through estimator is 1 or 0, never the scale.",
        2.7: "The gradient is not multiplied by the weight: it passes, or it does not.",
    },
    because="0.9 / 0.25 rounds to 4, beyond the last code 1. Clipped: moving the weight a little changes nothing.",
    tolerance=1e-9,
)


# --- Find the silent bug.


def _updates(generator: torch.Generator) -> tuple:
    weight = torch.randn(6, generator=generator, dtype=torch.float64)
    gradient = torch.randn(6, generator=generator, dtype=torch.float64)
    return weight, gradient, 0.5, 0.1


def _keeps_the_rounded_weight(weight, gradient, scale, rate):
    rounded = (weight / scale).round() * scale
    return rounded - rate * gradient


@exercises.function(
    inputs=_updates,
    given=_keeps_the_rounded_weight,
    hints=[
        "What becomes of an update that is smaller than half a step of the grid?",
        "The forward pass uses the rounded weight. The optimizer must move the one in full precision.",
        "return weight - rate * gradient",
    ],
    because="Small updates must add up somewhere: in the float weight. Rounding belongs in the forward pass alone.",
    tolerance=1e-9,
)
def mend_update(weight, gradient, scale, rate):
    return weight - rate * gradient


@mend_update.mistake("Now you round what you store, so updates below half a step are lost just the same.")
def _rounds_afterwards(weight, gradient, scale, rate):
    return ((weight - rate * gradient) / scale).round() * scale


@mend_update.mistake("Downhill is against the gradient: subtract it.")
def _goes_uphill(weight, gradient, scale, rate):
    return weight + rate * gradient


@mend_update.mistake("The gradient needs no scale: straight through means with slope 1.")
def _scales_the_gradient(weight, gradient, scale, rate):
    return weight - rate * scale * gradient


# --- Diagnose a symptom.

diagnose_fall = exercises.value(
    "diagnose_fall",
    "c",
    hints=[
        "The parameters hardly moved. What else does a model in training mode change?",
        "Batch norm keeps running averages of what it sees, at any learning rate.",
    ],
    mistakes={
        "a": "A learning rate of 1e-4 moved the weights by next to nothing, and a larger one would only fit the noise.",
        "b": "8 bits cost a fraction of a point here, before any training.",
        "d": "Random labels give gradients, but at this learning rate the weights stay nearly where they were.",
    },
    because="64 batches leave 0.9^64, a thousandth, of the old statistics. Put the buffers back and it is well again.",
)


# --- Go deeper: write code.


def _values(generator: torch.Generator) -> tuple:
    x = torch.randn(20, generator=generator, dtype=torch.float64) * 2
    return x, 0.3 + float(torch.rand((), generator=generator)), -4, 3


@exercises.function(
    inputs=_values,
    hints=[
        "x_hat = code * s. Inside the grid the code is round(x / s), which straight-through lets pass as x / s.",
        "Product rule: code + s * d(x / s)/ds = code - x / s inside. Outside the code is constant.",
        "torch.where(inside, codes - x / scale, codes), where inside means that clamping changed nothing.",
    ],
    because="Inside, the slope is the rounding error in steps; outside, the code itself: a wider grid reaches further.",
    tolerance=1e-9,
)
def lsq_slope(x, scale, quant_min, quant_max):
    steps = (x / scale).round()
    codes = steps.clamp(quant_min, quant_max)
    return torch.where(steps == codes, codes - x / scale, codes)


@lsq_slope.mistake("The sign is turned: code minus x / s, so that a code above x asks for a smaller scale.")
def _turned(x, scale, quant_min, quant_max):
    steps = (x / scale).round()
    codes = steps.clamp(quant_min, quant_max)
    return torch.where(steps == codes, x / scale - codes, codes)


@lsq_slope.mistake(
    "You treat clipped values like the others. Beyond the ends x no longer matters, the code alone does."
)
def _forgets_clipping(x, scale, quant_min, quant_max):
    return (x / scale).round().clamp(quant_min, quant_max) - x / scale


@lsq_slope.mistake("The code alone forgets that round(x / s) itself falls as s grows: subtract x / s inside.")
def _only_codes(x, scale, quant_min, quant_max):
    return (x / scale).round().clamp(quant_min, quant_max)


# --- Go deeper: compute by hand.

gradient_scale = exercises.value(
    "gradient_scale",
    0.05,
    hints=[
        "1 / sqrt(N q_max). What is q_max of a signed 2-bit grid?",
        "The codes are -2, -1, 0, 1. q_max is 1: N q_max = 400 = 20 * 20.",
    ],
    mistakes={
        0.0025: "That is 1 / (N q_max). Take the square root.",
        20: "Turn it around: one over the square root.",
        0.03536: "You took 2 for q_max. Of the four signed codes the last is 1.",
        0.02887: "You took 3, the last code of an unsigned grid. Weights are signed.",
    },
    because="q_max = 1 and N q_max = 400, so 1 / sqrt(400) = 0.05.",
    tolerance=1e-4,
)

# --- Go deeper: take a decision.

choose_training = exercises.value(
    "choose_training",
    "a",
    hints=[
        "What does each option cost, and what can it win at most?",
        "The loss is one image in six hundred, less than chance moves it.",
    ],
    mistakes={
        "b": "It can win one image at most, no more than chance. Training costs hours on real networks.",
        "c": "Better scales pay where codes are few. At 8 bits there is nothing left to win.",
        "d": "Fewer bits cost accuracy, and kernels of 8 bits run them no faster.",
    },
    because="One image of 597 is less than chance moves: ship it. Train only where calibration fails: few bits, or a "
    "compact network that loses points at 8.",
)

# --- Missions in the explorer.


def _rest_goal(explorer) -> str | None:
    state, result = explorer.state, explorer.result
    if state.step < 60:
        return f"Let it train for all 60 steps, it stands at {state.step}."
    if hops := result.hops_between("STE", 30, 60):
        return f"STE still hops {hops} times in the last 30 steps. To which values can it come exactly?"
    if not result.hops_between("STE", 0, 60):
        return "The code of the weight has never changed: give it somewhere to go."
    return None


make_it_rest = exercises.mission(
    "make_it_rest",
    _rest_goal,
    answer={"step": 60, "target": 1.0},
    hints=[
        "STE stops where the error is zero. Which values can it take?",
        "A target on another line of the grid: 1.0.",
    ],
    mistakes=[
        ({"step": 60, "target": 0.7}, "To which values can it come exactly?"),
        ({"step": 60, "target": 0.5}, "give it somewhere to go"),
        ({"step": 20, "target": 1.0}, "for all 60 steps"),
    ],
    because="Only a target on the grid has error zero. Between two lines the gradient never ends, so the weight hops.",
)


def _starve_goal(explorer) -> str | None:
    state, result = explorer.state, explorer.result
    if state.step < 60:
        return f"Let it train for all 60 steps, it stands at {state.step}."
    if state.target != explorer.first_state.target or state.bits != explorer.first_state.bits:
        return "Leave target and bits as they were when the explorer opened."
    off = abs(float(result.quantized[2, -1]) - state.target)
    if off < 0.08:
        return f"LSQ arrives within {off:.3f}; the mission is 0.08 or more. How fast does its scale move?"
    return None


starve_the_scale = exercises.mission(
    "starve_the_scale",
    _starve_goal,
    answer={"step": 60, "rate": 0.02},
    hints=["The scale learns like the weight does.", "The smallest learning rate."],
    mistakes=[
        ({"step": 60, "rate": 0.3}, "How fast does its scale move?"),
        ({"step": 60, "rate": 0.02, "target": 0.8}, "Leave target and bits"),
        ({"step": 30}, "for all 60 steps"),
    ],
    because="A scale needs steps to travel, as a weight does: too slow, and it ends between where it was and the goal.",
)
