"""Exercises of lesson 04, dynamic quantization."""

import io

from qtutor.exercises.exercise import Exercises

import torch
from torch import nn

exercises = Exercises("04_dynamic_quantization")


# --- Compute by hand.

batch_scale = exercises.value(
    "batch_scale",
    0.02,
    hints=[
        "The range of the whole batch, widened to hold zero, over the number of steps.",
        "From -0.40 to 2.14 are 2.54. Codes 0 to 127 leave 127 steps between them.",
    ],
    mistakes={
        2.54 / 255: "That is the step of 8 bits. Codes 0 to 127 have 127 steps between them.",
        2.14 / 127: "The lowest value counts too: the range starts at -0.40.",
        2.54 / 128: "128 codes, but only 127 steps between the first and the last.",
        2.14 / 63.5: "That is symmetric around zero. Here the grid has its own low end.",
        1.70 / 127: "You took the range of one row. Per tensor, all rows of the batch share it.",
    },
    because="2.54 over 127 steps. Another batch gets another scale.",
    tolerance=1e-5,
)


# --- Write code: one scale for each row.


def _rows(generator: torch.Generator) -> tuple:
    rows, features = torch.randint(2, 9, (2,), generator=generator).tolist()
    loudness = 10 ** (2 * torch.rand(rows, 1, generator=generator, dtype=torch.float64))
    return (torch.randn(rows, features + 3, generator=generator, dtype=torch.float64) * loudness,)


@exercises.function(
    inputs=_rows,
    hints=[
        "x.abs().amax(dim=1, keepdim=True) is the largest magnitude of each row, of shape (N, 1).",
        "The scale is that over 127; the codes are (x / scale).round().",
    ],
    because="Each row has a scale of its own, of shape (N, 1), so no row can touch another.",
    tolerance=1e-9,
)
def quantize_rows(x):
    scale = x.abs().amax(dim=1, keepdim=True) / 127
    return (x / scale).round(), scale


@quantize_rows.mistake("That is one scale per column: dim=0 looks down the rows. Take the maximum along dim=1.")
def _per_column(x):
    scale = x.abs().amax(dim=0, keepdim=True) / 127
    return (x / scale).round(), scale


@quantize_rows.mistake("That is one scale for the whole batch. Take the maximum along dim=1, with keepdim=True.")
def _per_tensor(x):
    scale = x.abs().max() / 127
    return (x / scale).round(), scale.expand(len(x), 1)


@quantize_rows.mistake("A row's most negative value may be the largest in magnitude: take abs() first.")
def _without_magnitude(x):
    scale = x.amax(dim=1, keepdim=True) / 127
    return (x / scale).round(), scale


@quantize_rows.mistake("Codes are whole numbers: round them.")
def _unrounded(x):
    scale = x.abs().amax(dim=1, keepdim=True) / 127
    return x / scale, scale


# --- Diagnose a symptom.

diagnose_service = exercises.value(
    "diagnose_service",
    "b",
    hints=[
        "What differs between noon and night, if the model and the image do not?",
        "At noon the service collects requests into batches. What do rows of a batch share per tensor?",
    ],
    mistakes={
        "a": "Dynamic quantization has no calibration set: it looks at each batch as it comes.",
        "c": "Weights were quantized once, ahead. They are the same at noon and at night.",
        "d": "Another order of adding floats moves the last digits, not the answer.",
    },
    because="Per tensor, the loudest row of a batch chooses the step for all. Per row, it cannot.",
)


# --- Write code: SmoothQuant.


def _layers(generator: torch.Generator) -> tuple:
    features = int(torch.randint(4, 12, (), generator=generator))
    x = torch.randn(30, features, generator=generator, dtype=torch.float64)
    x[:, 1] *= 40
    weight = torch.randn(7, features, generator=generator, dtype=torch.float64)
    return x, weight, float(torch.randint(2, 9, (), generator=generator)) / 10


@exercises.function(
    inputs=_layers,
    hints=[
        "Both maxima are per input channel: x.abs().amax(dim=0) and weight.abs().amax(dim=0), each (features,).",
        "s = x_max ** alpha / w_max ** (1 - alpha); return x / s and weight * s.",
    ],
    because="x / s and weight * s give the same product for any positive s; this s shares the difficulty out.",
    tolerance=1e-9,
)
def smooth(x, weight, alpha):
    s = x.abs().amax(dim=0) ** alpha / weight.abs().amax(dim=0) ** (1 - alpha)
    return x / s, weight * s


@smooth.mistake("The function is not preserved: you divide both. What x loses, the weight must gain.")
def _divides_both(x, weight, alpha):
    s = x.abs().amax(dim=0) ** alpha / weight.abs().amax(dim=0) ** (1 - alpha)
    return x / s, weight / s


@smooth.mistake("It is the same function, but upside down: the outliers grew. x is divided by s.")
def _upside_down(x, weight, alpha):
    s = x.abs().amax(dim=0) ** alpha / weight.abs().amax(dim=0) ** (1 - alpha)
    return x * s, weight / s


@smooth.mistake("The exponents are swapped: alpha belongs to x, 1 - alpha to the weight.")
def _swapped(x, weight, alpha):
    s = x.abs().amax(dim=0) ** (1 - alpha) / weight.abs().amax(dim=0) ** alpha
    return x / s, weight * s


@smooth.mistake("That leaves the weight out of s: divide by w_max ** (1 - alpha) too.")
def _without_weight(x, weight, alpha):
    s = x.abs().amax(dim=0) ** alpha
    return x / s, weight * s


# --- Find the silent bug.


def _models(generator: torch.Generator) -> tuple:
    from qtutor.workflows import quantize_dynamic

    first, second = (8 * torch.randint(4, 40, (2,), generator=generator)).tolist()
    return (quantize_dynamic(nn.Sequential(nn.Linear(first, second), nn.ReLU(), nn.BatchNorm1d(second))),)


def _counts_parameters(model):
    size = 0
    for parameter in model.parameters():
        size += parameter.numel() * parameter.element_size()
    return size


@exercises.function(
    inputs=_models,
    given=_counts_parameters,
    hints=[
        "print(list(int8_mlp.parameters())): where did the weights go?",
        "Packed INT8 weights are not parameters, but they are in the state dict: save that with torch.save and look "
        "how many bytes there are.",
    ],
    because="Packed weights are no parameters, so a sum over parameters takes them for gone. What is saved is true.",
)
def mend_size(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue())


@mend_size.mistake("Buffers do not hold the packed weights either. What does torch.save write?")
def _with_buffers(model):
    return _counts_parameters(model) + sum(b.numel() * b.element_size() for b in model.buffers())


@mend_size.mistake(
    "In the state dict the packed weights stand inside a tuple: you skip it. What does torch.save write?"
)
def _plain_tensors(model):
    tensors = [t for t in model.state_dict().values() if isinstance(t, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


@mend_size.mistake("You saved the whole model, code references and all. Save its state dict.")
def _pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    return len(file.getvalue())


# --- Take a decision.

choose_way = exercises.value(
    "choose_way",
    "c",
    hints=[
        "What takes the memory, and what the time, when one token at a time passes billions of weights?",
        "At batch 1 every weight is read for one row. Fewer bits per weight are less to read; activations are tiny.",
    ],
    mistakes={
        "a": "4 GB hold half a byte for each of 7 billion weights. INT8 takes one each: 7 GB.",
        "b": "4 GB hold half a byte for each of 7 billion weights. INT8 takes one each, dynamic or static: 7 GB.",
        "d": "Without quantization the weights alone take 14 GB in 16 bits.",
    },
    because="4 GB hold half a byte for each of 7 billion weights, and at batch 1 reading them is the time.",
)


# --- Missions in the explorer.


def _wander_goal(explorer) -> str | None:
    state, quality = explorer.state, explorer.result.sqnr
    if state.shift or state.bits != 8:
        return "This mission is played with nothing shifted and at 8 bits: touch the neighbour alone."
    behind = quality["per row"] - quality["per tensor"]
    if behind >= 20:
        return None
    return f"Per tensor is {behind:.1f} dB behind per row; the mission is 20 dB. How loud must the neighbour be?"


make_it_wander = exercises.mission(
    "make_it_wander",
    _wander_goal,
    answer={"factor": 100, "shift": 0, "bits": 8},
    hints=[
        "Each factor of 10 in the range costs 20 dB.",
        "The neighbour times 100, nothing else.",
    ],
    mistakes=[
        ({"factor": 2}, "How loud must the neighbour be?"),
        ({"factor": 100, "bits": 4}, "touch the neighbour alone"),
        ({"factor": 100, "shift": 1.0}, "nothing shifted and at 8 bits"),
    ],
    because="Twenty decibels are a step ten times as wide, and your row did nothing for it.",
)


def _clip_goal(explorer) -> str | None:
    result = explorer.result
    if not result.clipped["static"]:
        return "Static clips none of your row yet: the range was chosen for what the calibration batch held. Leave it."
    dynamic = min(result.sqnr["per tensor"], result.sqnr["per row"])
    ahead = dynamic - result.sqnr["static"]
    if ahead >= 20:
        return None
    return f"The worse dynamic range is {ahead:.1f} dB ahead of static; the mission is 20 dB. Is it too loud?"


make_it_clip = exercises.mission(
    "make_it_clip",
    _clip_goal,
    answer={"factor": 1, "shift": 1.5, "bits": 8},
    hints=[
        "The static range knows the calibration batch and nothing else. Which control leaves that batch behind?",
        "Neighbour x 1, shift 1.5, 8 bits.",
    ],
    mistakes=[
        ({"factor": 100, "shift": 0}, "Static clips none of your row yet"),
        ({"factor": 100, "shift": 1.5}, "Is it too loud?"),
        ({"factor": 1, "shift": 1.5, "bits": 2}, "the mission is 20 dB"),
    ],
    because="A range chosen ahead cannot follow. Both dynamic ranges did, at the price of a pass over each batch.",
)
