"""Exercises of lesson 09, published claims: mostly, find the bug in code as articles print it."""

from qtutor.exercises.exercise import Exercises

import torch

exercises = Exercises("09_published_claims")

# --- Compute by hand.

dynamic_megabytes = exercises.value(
    "dynamic_megabytes",
    97,
    hints=[
        "Only the linear layers become integers. Add up two parts.",
        "24 million parameters stay at 4 bytes each; 1 million take one byte.",
    ],
    mistakes={
        25: "That is every parameter in one byte. quantize_dynamic leaves convolutions as they are.",
        100: "That is FP32 throughout. The linear layers do shrink.",
        28: "The other way round: it is the linear layers that take one byte, the convolutions keep four.",
        96: "That is the convolutions alone; the linear layers take a byte each.",
    },
    because="24 * 4 + 1 * 1 = 97 MB, against 100: 1.03 times smaller, not 4.",
    tolerance=1e-6,
)


# --- Find the bug: a stop-watch.


def _runs(generator: torch.Generator) -> tuple:
    repeats = 2 * int(torch.randint(3, 12, (), generator=generator)) + 1
    times = 5 + torch.rand(repeats + 10, generator=generator, dtype=torch.float64)
    times[:3] *= torch.tensor([9.0, 4.0, 2.0], dtype=torch.float64)
    return times, repeats


def _as_printed(times, repeats):
    total = 0.0
    for i in range(len(times)):
        total += times[i]
        if i == repeats:
            break
    return total / repeats


@exercises.function(
    inputs=_runs,
    given=_as_printed,
    hints=[
        "Three faults: which runs count, how many of them, and what one slow run does to the result.",
        "With i counted from 0, `if i == repeats: break` leaves the loop after repeats + 1 runs.",
        "times[3 : 3 + repeats] are the runs that count; torch.median takes their middle.",
    ],
    because="Three runs to warm up, then exactly `repeats`, and a median, which one slow run cannot move.",
    tolerance=1e-9,
)
def median_time(times, repeats):
    return times[3 : 3 + repeats].median()


@median_time.mistake("The number of runs is right now, but the first three are among them: leave them out.")
def _no_warm_up(times, repeats):
    return times[:repeats].median()


@median_time.mistake("The right runs, but their mean: one interrupted run moves it. Take the median.")
def _mean(times, repeats):
    return times[3 : 3 + repeats].mean()


@median_time.mistake("Still a mean with the warm-up in it: only the number of runs is mended.")
def _counts_right(times, repeats):
    return times[:repeats].mean()


@median_time.mistake("That is three runs too few: the warm-up comes on top of `repeats`.")
def _too_few(times, repeats):
    return times[3:repeats].median()


@median_time.mistake("That is one run too many: the slice should hold `repeats` of them.")
def _too_many(times, repeats):
    return times[3 : 4 + repeats].median()


# --- Diagnose a symptom.

diagnose_constant = exercises.value(
    "diagnose_constant",
    "b",
    hints=[
        "What does an observer answer that has seen nothing?",
        "A scale of exactly 1.0 is no accident: see article A.",
    ],
    mistakes={
        "a": "Unfused layers cost time and a few decibels. Their scales would still come from the data.",
        "c": "Without stubs the integer layers meet float tensors, and that raises an error.",
        "d": "Training mode makes fusing fail. It does not make scales exactly 1.0.",
    },
    because="Observers without data give scale 1 and zero point 0, and what lies below 0.5 becomes 0.",
)


# --- Find the bug: a constant.


def _image(generator: torch.Generator) -> tuple:
    return (torch.rand(3, 4, 5, generator=generator),)


def _misprinted(image):
    mean = image.new_tensor([0.485, 0.465, 0.406])
    std = image.new_tensor([0.229, 0.224, 0.225])
    return (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@exercises.function(
    inputs=_image,
    given=_misprinted,
    hints=[
        "The formula is right. Are the constants? The lesson printed those of torchvision.",
        "ResNet18_Weights.IMAGENET1K_V1.transforms().mean says them: look at green, the second.",
    ],
    because="Green's mean is 0.456: two digits were swapped, in many places on the web.",
    tolerance=1e-5,
)
def normalise(image):
    mean = image.new_tensor([0.485, 0.456, 0.406])
    std = image.new_tensor([0.229, 0.224, 0.225])
    return (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@normalise.mistake("You reversed the channels: red comes first, with the mean 0.485.")
def _reversed(image):
    mean = image.new_tensor([0.406, 0.456, 0.485])
    std = image.new_tensor([0.225, 0.224, 0.229])
    return (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@normalise.mistake("The mean is right now, but you lost the division by the standard deviation.")
def _not_divided(image):
    return image - image.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)


@normalise.mistake("First subtract, then divide: (image - mean) / std.")
def _divided_first(image):
    mean = image.new_tensor([0.485, 0.456, 0.406])
    std = image.new_tensor([0.229, 0.224, 0.225])
    return image / std.view(3, 1, 1) - mean.view(3, 1, 1)


# --- Find the bug: folding.


def _layer(generator: torch.Generator) -> tuple:
    numbers = torch.randn(5, generator=generator, dtype=torch.float64).tolist()
    return *numbers, float(torch.rand((), generator=generator)) + 0.05, 1e-2


def _bias_not_scaled(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / (var + eps) ** 0.5
    return weight * factor, beta + bias - factor * mean


@exercises.function(
    inputs=_layer,
    given=_bias_not_scaled,
    hints=[
        "The batch norm sees weight * x + bias. Write out gamma * (that - mean) / sqrt(var + eps) + beta.",
        "The bias passes through the batch norm, so it is scaled as the weight is.",
    ],
    because="beta + factor * (bias - mean): with bias 0 the bug cannot be seen, so a test needs a bias.",
    tolerance=1e-9,
)
def fold(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / (var + eps) ** 0.5
    return weight * factor, beta + factor * (bias - mean)


@fold.mistake("The layer's own bias is gone: the batch norm gets weight * x + bias.")
def _bias_lost(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / (var + eps) ** 0.5
    return weight * factor, beta - factor * mean


@fold.mistake("Without eps the factor is a little too large, and without limit where the variance is 0.")
def _no_eps(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / var**0.5
    return weight * factor, beta + factor * (bias - mean)


@fold.mistake("A batch norm divides by the standard deviation, the square root of the variance.")
def _no_root(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / (var + eps)
    return weight * factor, beta + factor * (bias - mean)


@fold.mistake("beta comes after the scaling: it must not be scaled.")
def _beta_scaled(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / (var + eps) ** 0.5
    return weight * factor, factor * (beta + bias - mean)


# --- Take a decision.

choose_verdict = exercises.value(
    "choose_verdict",
    "b",
    hints=[
        "Which of the values 1 (no effect) and 1.7 (claimed, less a tenth: 1.53) does the interval hold?",
        "The claim is out of reach, and no effect is not.",
    ],
    mistakes={
        "a": "To hold, the interval must reach a tenth below 1.7, which is 1.53. It ends at 1.41.",
        "c": "Smaller here means that there is an effect. With 1 in the interval, none has been seen.",
        "d": "1.7 does not lie in it: whatever the noise, the claimed factor is out of reach.",
    },
    because="1 is possible and 1.7 is not: on this computer there may be no effect, and not the one claimed.",
)
