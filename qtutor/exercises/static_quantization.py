"""Exercises of lesson 05, static quantization."""

from qtutor.exercises.exercise import Exercises

import torch
from torch import nn

exercises = Exercises("05_static_quantization")


def edge_filters() -> nn.Sequential:
    """Return a convolution of four filters made by hand, with ReLU: two kinds of edges, a blur and its opposite."""
    down = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]]) / 4
    spread = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    sharp = -spread
    sharp[1, 1] += 1
    layer = nn.Conv2d(1, 4, 3, padding=1)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(torch.stack([down, down.T, spread, sharp])[:, None])
        layer.bias.copy_(torch.tensor([0.0, 0.0, 0.1, 0.0]))
    return nn.Sequential(layer, nn.ReLU()).eval()


# --- Compute by hand.

one_output = exercises.value(
    "one_output",
    31,
    hints=[
        "M = s_x s_w / s_y. With these scales it is 0.5 * 0.02 / 0.5.",
        "M = 0.02. Add sum and bias first: 1250. Times M, plus z: 25 + 6.",
    ],
    mistakes={
        25: "That is the value on the output's grid before its zero point. Code 0 does not stand for the value 0 here.",
        26: "The bias came too late: it is at scale s_x s_w, so it is added to the sum before M.",
        6: "Where did the sum go? M is 0.02, not 0.00002.",
        255: "Nothing is clamped here. Did you forget to multiply by M?",
    },
    because="(1000 + 250) x 0.02 + 6 = 31, which lies between 0 and 255.",
)


# --- Write code: a linear layer with ReLU, in integers.


def _layers(generator: torch.Generator) -> tuple:
    rows, inputs, outputs = (int(torch.randint(2, 12, (), generator=generator)) for _ in range(3))
    q_x = torch.randint(0, 256, (rows, inputs), generator=generator)
    q_w = torch.randint(-128, 128, (outputs, inputs), generator=generator)
    z_x, z_y = (int(torch.randint(20, 200, (), generator=generator)) for _ in range(2))
    q_b = torch.randint(-3000, 3000, (outputs,), generator=generator)
    m = (torch.rand(outputs, generator=generator, dtype=torch.float64) + 1) / (100 * inputs)
    return q_x, z_x, q_w, q_b, m, z_y


@exercises.function(
    inputs=_layers,
    hints=[
        "The sum is a matrix product: (q_x - z_x) @ q_w.T.",
        "Then + q_b, * m, torch.round, + z_y. A value of 0 has the code z_y, so ReLU means: no code below z_y.",
    ],
    because="ReLU costs nothing in integers: it is the lower end of a clamp that happens anyway.",
)
def integer_linear_relu(q_x, z_x, q_w, q_b, m, z_y):
    total = (q_x - z_x) @ q_w.T + q_b
    return (torch.round(total * m) + z_y).clamp(z_y, 255)


@integer_linear_relu.mistake("Without z_x every input is shifted by z_x steps: the sum needs q_x - z_x.")
def _no_zero_point(q_x, z_x, q_w, q_b, m, z_y):
    return (torch.round((q_x @ q_w.T + q_b) * m) + z_y).clamp(z_y, 255)


@integer_linear_relu.mistake("Code 0 is not the value 0. The value 0 has the code z_y: that is where ReLU cuts.")
def _clamps_at_zero(q_x, z_x, q_w, q_b, m, z_y):
    return (torch.round(((q_x - z_x) @ q_w.T + q_b) * m) + z_y).clamp(0, 255)


@integer_linear_relu.mistake(
    "The bias is an integer at the scale of the sum, s_x s_w: add it before you multiply by m."
)
def _late_bias(q_x, z_x, q_w, q_b, m, z_y):
    return (torch.round((q_x - z_x) @ q_w.T * m) + q_b + z_y).clamp(z_y, 255)


@integer_linear_relu.mistake(
    "Converting to integers cuts off the fraction, and half of the codes end one too low: round."
)
def _cuts_off(q_x, z_x, q_w, q_b, m, z_y):
    total = (q_x - z_x) @ q_w.T + q_b
    return ((total * m).to(torch.int64) + z_y).clamp(z_y, 255)


# --- Missions in the explorer.


def _lift_goal(explorer) -> str | None:
    result = explorer.result
    lifted = result.low - result.rounded
    if lifted >= 50:
        return None
    if lifted > 0:
        return f"The clamp lifts this output by {lifted} codes; the mission is 50. Where does the digit's edge point?"
    return "The clamp does not lift this output. An edge filter gives negative sums where dark meets bright."


lift = exercises.mission(
    "lift",
    _lift_goal,
    answer={"sample": 0, "channel": 0, "row": 2, "column": 5},
    hints=[
        "Channel 0 subtracts the row below from the row above.",
        "So its sum is very negative where ink begins below: sample 0, channel 0, row 2, column 5.",
    ],
    mistakes=[
        ({"sample": 0, "channel": 2, "row": 3, "column": 3}, "does not lift this output"),
        ({"sample": 0, "channel": 0, "row": 0, "column": 2}, "the mission is 50"),
    ],
    because="Far below zero or just below, behind a ReLU both become the code of 0: there the clamp is the ReLU.",
)


def _sign_goal(explorer) -> str | None:
    result = explorer.result
    if result.raw > 0 > result.accumulator:
        return None
    if abs(result.correction) < 1000:
        return f"Here the zero points change {result.correction:,} only. Of which filter do the weights not cancel out?"
    return f"The raw sum is {result.raw:,}, the right one {result.accumulator:,}. The mission is: above 0, then below."


turn_sign = exercises.mission(
    "turn_sign",
    _sign_goal,
    answer={"sample": 0, "channel": 2, "row": 3, "column": 0},
    hints=[
        "The correction is -z_x times the sum of the filter's codes. Which filter has no negative weights?",
        "The blur, channel 2. Its raw sum is never negative; the right one is, where the image is dark: column 0.",
    ],
    mistakes=[
        ({"sample": 0, "channel": 1, "row": 3, "column": 0}, "do the weights not cancel out?"),
        ({"sample": 0, "channel": 2, "row": 3, "column": 3}, "The mission is: above 0, then below"),
    ],
    because="Codes are never negative, so a dark patch has a positive raw sum; only minus z_x makes dark negative.",
)


# --- Diagnose a symptom.

diagnose_scales = exercises.value(
    "diagnose_scales",
    "b",
    hints=[
        "What is a scale made from, and what does an observer return that has seen nothing?",
        "A scale of exactly 1 is the default of an observer without data. Which step shows it data?",
    ],
    mistakes={
        "a": "Without stubs the model would not run at all: its first quantized layer refuses a float tensor.",
        "c": "The wrong engine is slow, or refuses to run. It does not change scales.",
        "d": "Seven bits double a scale. They do not make every one of them 1.",
    },
    because="Prepared and converted with no pass in between: PyTorch warns once and takes scale 1, zero point 0.",
)


# --- Find the bug in published code.

find_published_bug = exercises.value(
    "find_published_bug",
    3,
    hints=[
        "Which line puts observers in, which one takes them out? What must happen in between, and what before?",
        "Convert replaces layers by quantized ones. Is there still a convolution, a batch norm and a ReLU to fuse?",
    ],
    mistakes={
        1: "Eval mode is right: fusing folds the batch norm's stored statistics.",
        2: "Calibration stands where it must: after prepare, before convert. Ten batches or eleven hardly matter.",
        4: "Comparing on the same inputs is right, and by then the damage is done.",
    },
    because="After convert nothing is left to fuse: PyTorch has no fuser method for quantized layers. Fuse first.",
)


# --- Find the silent bug.


def _sums(generator: torch.Generator) -> tuple:
    count = int(torch.randint(2, 30, (), generator=generator))
    total = torch.randint(-20_000, 20_000, (count,), generator=generator)
    bias = torch.randn(count, generator=generator, dtype=torch.float64)
    s_x, s_w = (0.005 + 0.01 * float(torch.rand((), generator=generator, dtype=torch.float64)) for _ in range(2))
    return total, bias, s_x, s_w, 0.05, int(torch.randint(60, 180, (), generator=generator))


def _bias_at_the_wrong_scale(total, bias, s_x, s_w, s_y, z_y):
    q_bias = (bias / s_w).round()
    scaled = (total + q_bias) * (s_x * s_w / s_y)
    return (scaled.round() + z_y).clamp(0, 255)


@exercises.function(
    inputs=_sums,
    given=_bias_at_the_wrong_scale,
    hints=[
        "In which unit is `total`? One step of it stands for how much?",
        "A product of two codes stands for s_x s_w. What is added to such products must be in the same unit.",
    ],
    because="The bias joins a sum of products, and one step of a product is s_x s_w. At s_w it is nearly lost.",
)
def mend_requantize(total, bias, s_x, s_w, s_y, z_y):
    q_bias = (bias / (s_x * s_w)).round()
    scaled = (total + q_bias) * (s_x * s_w / s_y)
    return (scaled.round() + z_y).clamp(0, 255)


@mend_requantize.mistake("s_y is the output's scale, and the bias joins before M takes the sum to that scale.")
def _output_scale(total, bias, s_x, s_w, s_y, z_y):
    scaled = (total + (bias / s_y).round()) * (s_x * s_w / s_y)
    return (scaled.round() + z_y).clamp(0, 255)


@mend_requantize.mistake("Now the bias is an ordinary number among sums in steps of s_x s_w: divide it by that.")
def _plain_bias(total, bias, s_x, s_w, s_y, z_y):
    scaled = (total + bias) * (s_x * s_w / s_y)
    return (scaled.round() + z_y).clamp(0, 255)


# --- Take a decision.

choose_flow = exercises.value(
    "choose_flow",
    "b",
    hints=[
        "Which of the flows needs no change to the model, and runs where there is no compiler?",
        "Eager wants stubs in somebody else's code, PT2E wants a C++ compiler on the device. That leaves one.",
    ],
    mistakes={
        "a": "You would have to put stubs and FloatFunctional into 50 layers of code that is not yours.",
        "c": "PT2E is lowered by Inductor, which calls a C++ compiler; without one it only simulates, slowly.",
        "d": "Dynamic quantization takes linear and recurrent layers, and leaves the convolutions in float.",
    },
    because="FX traces the model as it is, and its kernels come compiled with PyTorch.",
)


def explorer():
    """Open the explorer that the missions are played in."""
    from qtutor.explorers import IntegerExplorer
    from qtutor.models.running import input_and_output
    from qtutor.samples import digits
    from qtutor.workflows import quantize_static

    images = (digits().train.images[:8] - 0.3) / 0.4
    model = quantize_static(edge_filters(), [images])
    patches, _ = input_and_output(model, "0", images)
    return IntegerExplorer(model.get_submodule("0"), patches)
