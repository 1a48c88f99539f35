"""Exercises of lesson 07, fusion."""

from typing import Any

from qtutor.exercises.exercise import Exercises

import torch
from torch import nn

exercises = Exercises("07_fusion")


def every_kind() -> nn.Sequential:
    """A network that holds every kind of fusion, in float64, its batch norms with statistics to fold."""
    layers = [
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)),
        *(nn.Conv2d(8, 4, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 6, 2), nn.BatchNorm2d(6), nn.ReLU6()),
        nn.Flatten(),
        *(nn.Linear(6 * 13 * 13, 20), nn.BatchNorm1d(20)),
        *(nn.Linear(20, 5), nn.ReLU()),
    ]
    network = nn.Sequential(*layers).double().requires_grad_(False)
    for _ in range(3):
        network(torch.randn(16, 3, 16, 16).double())
    return network.eval()


def settled(block: nn.Module) -> nn.Module:
    """Give a block's `bn` statistics unlike those of its input, and fix it: eval mode, and no gradients."""
    norm: Any = block.bn
    for _ in range(20):
        norm(1 + 2 * torch.randn(8, norm.num_features, 9, 9))
    return block.eval().requires_grad_(False)


# --- Compute by hand.

bytes_between = exercises.value(
    "bytes_between",
    65536,
    hints=[
        "Between three operators lie two tensors. Each is written once and read once.",
        "One tensor holds 16 * 16 * 16 = 4096 values of 4 bytes.",
    ],
    mistakes={
        32768: "You counted each tensor once. It is written by one operator and read by the next.",
        16384: "That is the size of one tensor. There are two between the three operators, each written and read.",
        98304: "The output of the ReLU is still written and read afterwards: fusion saves what lies between the three.",
        4096: "That is the number of values in one tensor. A float32 takes 4 bytes.",
    },
    because="Two tensors of 4096 values, 4 bytes each, written and read: 2 * 2 * 16,384 bytes.",
)


# --- Write code: fold into a transposed convolution.


def _transposed(generator: torch.Generator) -> tuple:
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    var = torch.rand(3, generator=generator, dtype=torch.float64) * 0.1
    return draw(3, 3, 2, 2), draw(3), draw(3), var, draw(3), draw(3), 0.01


@exercises.function(
    inputs=_transposed,
    hints=[
        "The factor of output channel o is gamma[o] / sqrt(var[o] + eps). Which axis of the weight is o?",
        "The weight of a transposed convolution is (in, out, height, width): the factor needs shape (1, out, 1, 1).",
        "weight * factor.view(1, -1, 1, 1), and beta + factor * (bias - mean).",
    ],
    because="Folding scales output channels, and those of a transposed convolution stand on axis 1.",
    tolerance=1e-9,
)
def fold_transposed(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / torch.sqrt(var + eps)
    return weight * factor.view(1, -1, 1, 1), beta + factor * (bias - mean)


@fold_transposed.mistake("You scale the input channels. No error, since there are as many: the outputs are on axis 1.")
def _wrong_axis(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / torch.sqrt(var + eps)
    return weight * factor.view(-1, 1, 1, 1), beta + factor * (bias - mean)


@fold_transposed.mistake("Trailing axes broadcast: you scale the columns of each kernel. Give the factor four axes.")
def _no_view(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / torch.sqrt(var + eps)
    return weight * factor.view(1, 1, 1, -1)[..., :2], beta + factor * (bias - mean)


@fold_transposed.mistake("The old bias is lost: it is normalized too, so it belongs beside the mean.")
def _no_bias(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / torch.sqrt(var + eps)
    return weight * factor.view(1, -1, 1, 1), beta - factor * mean


@fold_transposed.mistake("eps is missing under the root, and where the variance is small it is most of what is there.")
def _no_eps(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / torch.sqrt(var)
    return weight * factor.view(1, -1, 1, 1), beta + factor * (bias - mean)


@fold_transposed.mistake("The batch norm divides by the root of the variance.")
def _no_root(weight, bias, mean, var, gamma, beta, eps):
    factor = gamma / (var + eps)
    return weight * factor.view(1, -1, 1, 1), beta + factor * (bias - mean)


# --- Find the silent bug.


def _codes(generator: torch.Generator) -> tuple:
    codes = torch.randint(0, 256, (1, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return codes, int(torch.randint(64, 192, (), generator=generator))


def _pads_with_code_zero(codes, zero_point):
    return torch.nn.functional.pad(codes, (1, 1, 1, 1))


@exercises.function(
    inputs=_codes,
    given=_pads_with_code_zero,
    hints=[
        "A convolution pads with the real number 0. Which code stands for it?",
        "torch.nn.functional.pad takes value=..., the code to pad with.",
    ],
    because="The code of zero is the zero point. Code 0 stands for -zero_point * scale, the lowest value on the grid.",
)
def mend_padding(codes, zero_point):
    return torch.nn.functional.pad(codes, (1, 1, 1, 1), value=zero_point)


@mend_padding.mistake("128 is the middle of the codes. Zero has it only on a symmetric grid.")
def _pads_with_the_middle(codes, zero_point):
    return torch.nn.functional.pad(codes, (1, 1, 1, 1), value=128)


@mend_padding.mistake("255 stands for the highest value on the grid.")
def _pads_with_the_highest(codes, zero_point):
    return torch.nn.functional.pad(codes, (1, 1, 1, 1), value=255)


@mend_padding.mistake("You shift the codes as well. They are codes already: only the border needs the zero point.")
def _shifts_the_codes(codes, zero_point):
    return torch.nn.functional.pad(codes.int() - zero_point, (1, 1, 1, 1))


# --- Go deeper: diagnose a symptom.

diagnose_fused = exercises.value(
    "diagnose_fused",
    "c",
    hints=[
        "The two models agree on every layer in eval mode. What differs between eval and training mode?",
        "Which layer of the unfused model still changes while images run through it?",
    ],
    mistakes={
        "a": "Float rounding changes the last digits of an output, not 4 points of accuracy.",
        "b": "Folding works per channel with or without groups: you proved it on a depthwise layer.",
        "d": "A ReLU that runs inside the kernel before it computes the same numbers.",
    },
    because="In training mode a batch norm uses the statistics of each batch. Call eval() before you measure.",
)

# --- Go deeper: take a decision.

choose_order = exercises.value(
    "choose_order",
    "b",
    hints=[
        "What do the observers have to see: what the merged layer gives, or what its parts gave?",
        "A range fits the operator that will run. Which operators run in the end?",
    ],
    mistakes={
        "a": "The observers then sit behind convolutions that no longer give these values once they are folded.",
        "c": "Rounded weights times a factor per channel leave the grid: they would have to be rounded again.",
        "d": "Between a convolution and its batch norm in INT8 stands one rounding more, which nothing takes back.",
    },
    because="Fold, then calibrate what is left, then convert: ranges and scales are those of the operators that run.",
)


# --- Missions in the explorer.


def _blocks(*places: int) -> tuple[str, ...]:
    """The names of the patterns at these places of the network."""
    return tuple(f"features.{i}.conv + features.{i}.bn + features.{i}.relu" for i in places)


def _two_goal(explorer) -> str | None:
    fused, numbers = {*explorer.state.fused}, explorer.state.numbers
    if len(fused) != 2:
        return f"This mission is played with two patterns fused, and {len(fused)} are."
    data = explorer.data
    plain, best = (data.flow(names, numbers).total for names in ((), tuple(data.found)))
    share = (plain - explorer.result.now.total) / (plain - best)
    if share < 0.7:
        return f"These two save {share:.0%} of what all patterns save; the mission is 70%. Where are the ribbons wide?"
    return None


fuse_two = exercises.mission(
    "fuse_two",
    _two_goal,
    answer={"fused": _blocks(0, 2)},
    hints=["Walk through the operators and watch the ribbons.", "The first two patterns: images are large there."],
    mistakes=[
        ({"fused": _blocks(4, 5)}, "Where are the ribbons wide?"),
        ({"fused": _blocks(0)}, "played with two patterns fused"),
    ],
    because="Early feature maps are large: two of four patterns hold three quarters of the traffic.",
)


def _sevenfold_goal(explorer) -> str | None:
    float_bytes = explorer.data.flow((), "float").total
    ratio = float_bytes / explorer.result.now.total
    if ratio >= 7:
        return None
    advice = "Fuse more." if explorer.state.numbers == "INT8" else "Four bytes a value are too many."
    return f"{ratio:.1f} times fewer bytes than the float network without fusion; the mission is 7. {advice}"


seven_times_fewer = exercises.mission(
    "seven_times_fewer",
    _sevenfold_goal,
    answer={"numbers": "INT8", "fused": _blocks(0, 2, 4, 5)},
    hints=["Neither fusion nor INT8 gets there alone.", "INT8, and fuse all."],
    mistakes=[
        ({"numbers": "INT8"}, "Fuse more."),
        ({"fused": _blocks(0, 2, 4, 5)}, "Four bytes a value"),
    ],
    because="INT8 makes each ribbon a quarter as wide, fusion removes ribbons: the two factors multiply.",
)


def explorer():
    """Open the explorer that the missions are played in."""
    from qtutor.explorers import FusionExplorer
    from qtutor.samples import SmallCNN, digits

    return FusionExplorer(SmallCNN().eval(), digits().train.images[:64])
