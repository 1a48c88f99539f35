"""Exercises of lesson 11, four bits and fewer."""

from dataclasses import replace

from qtutor.exercises.exercise import Exercises

import torch

exercises = Exercises("11_four_bits")


# --- Write code: GPTQ.


def _nearest(column, scale):
    return (column / scale).round().clamp(-8, 7) * scale


def _undamped_layer(generator: torch.Generator, own: float = 0.03) -> tuple:
    """A weight, the Hessian of inputs that nearly repeat each other, a scale for each row."""
    shared = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    mixing = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    inputs = shared @ mixing + own * torch.randn(64, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return weight, inputs.T @ inputs / 64, weight.abs().amax(dim=1) / 7.5


def _damped(hessian):
    return hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


def _layer(generator: torch.Generator) -> tuple:
    weight, hessian, scale = _undamped_layer(generator, own=0.3)
    return weight, _damped(hessian), scale


@exercises.function(
    inputs=_layer,
    hints=[
        "U comes first: which matrix does it belong to? The cell above made it for two columns. Then columns are "
        "rounded one after the other, in a copy of the weight.",
        "Which weight is rounded when the turn of column j comes: the one given, or the one that earlier errors have "
        "moved? Its error is divided by U[j, j] before it is handed on.",
        "A column has an error for each row, and row j of U says how much of it each column to the right takes: all "
        "products of the two, error[:, None] * U[j, j + 1 :].",
    ],
    because="Each column is rounded as it has become, and those to its right take up what that broke.",
    tolerance=1e-6,
)
def gptq(weight, hessian, scale):
    U = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    weight = weight.clone()
    for j in range(weight.shape[1]):
        rounded = (weight[:, j] / scale).round().clamp(-8, 7) * scale
        error = (weight[:, j] - rounded) / U[j, j]
        weight[:, j] = rounded
        weight[:, j + 1 :] -= error[:, None] * U[j, j + 1 :]
    return weight


@gptq.mistake("That is plain rounding: no column hears of the errors of those before it.")
def _plain(weight, hessian, scale):
    return _nearest(weight, scale[:, None])


def _fed(weight, factor, scale, *, sign=1.0, divided=True, nearest=_nearest, stale=False):
    old, weight = weight, weight.clone()
    for j in range(weight.shape[1]):
        rounded = nearest(weight[:, j], scale)
        error = ((old if stale else weight)[:, j] - rounded) / (factor[j, j] if divided else 1.0)
        weight[:, j] = rounded
        weight[:, j + 1 :] -= sign * error[:, None] * factor[j, j + 1 :]
    return weight


def _factor(hessian):
    return torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)


@gptq.mistake("The error is handed on with the wrong sign: what a rounding took away, the others must make up for.")
def _adds(weight, hessian, scale):
    return _fed(weight, _factor(hessian), scale, sign=-1.0)


@gptq.mistake("The error is the difference divided by U[j, j]. You left the division out.")
def _leaves_out_the_division(weight, hessian, scale):
    return _fed(weight, _factor(hessian), scale, divided=False)


@gptq.mistake("You factored the Hessian. U belongs to its inverse.")
def _factors_the_hessian(weight, hessian, scale):
    return _fed(weight, torch.linalg.cholesky(hessian, upper=True), scale)


@gptq.mistake(
    "You divide by the diagonal of the whole inverse. Of the columns that are done it must know no more: use U."
)
def _keeps_the_inverse(weight, hessian, scale):
    return _fed(weight, torch.linalg.inv(hessian), scale)


@gptq.mistake("The right values meet the wrong grid: limits of 4 bits are -8 and 7, so clamp before you multiply.")
def _does_not_clamp(weight, hessian, scale):
    return _fed(weight, _factor(hessian), scale, nearest=lambda column, scale: (column / scale).round() * scale)


# --- Compute by hand.

bits_per_weight = exercises.value(
    "bits_per_weight",
    3.1875,
    hints=[
        "What do 128 weights take together: their codes, and what they share?",
        "128 codes of 3 bits, one scale of 16 bits, one zero point of 8: divide by 128.",
    ],
    mistakes={
        3: "That is the code alone. Somewhere the scale and the zero point must be kept too.",
        3.125: "That is with the scale. The zero point of each group takes room as well.",
        3.0625: "That is with the zero point. The scale of each group takes room as well.",
        27: "You gave every weight a scale and a zero point of its own: 128 weights share them.",
        3.3125: "That would be a scale of 32 bits. This one has 16.",
        408: "That is the bits of the whole group. How many is that for each of its 128 weights?",
    },
    because="(128 * 3 + 16 + 8) / 128 = 3 + 24 / 128 = 3.1875.",
    tolerance=1e-9,
)


# --- Compute by hand: a block of MXFP4.

decode_block = exercises.value(
    "decode_block",
    -0.75,
    hints=[
        "The first bit of 1101 is the sign. Which magnitude has the number 101?",
        "101 is 5, and magnitude number 5 is 3. Now the scale: 2 to the power of 125 - 127.",
    ],
    mistakes={
        0.75: "The magnitude is right. The first bit of the code is a sign, and it is set.",
        -3: "That is the level. The scale of the block still multiplies it.",
        -1.25: "You took 101 for the value 5. It is a place in the table of magnitudes.",
        3.25: "You took the code for the whole number 13. It is a sign and a place in the table.",
        -12: "The scale is 2 to the power of 125 - 127, which is below 1.",
        -375: "125 is the code of the scale: an exponent, shifted by 127.",
    },
    because="1101 is a minus and magnitude number 5, which is 3; the scale is 2 ** -2; so -3 * 0.25 = -0.75.",
    tolerance=1e-9,
)


# --- Go deeper: write code.


def _bytes(generator: torch.Generator) -> tuple:
    rows, columns = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(2))
    return (torch.randint(256, (rows + 1, columns + 1), generator=generator, dtype=torch.uint8),)


@exercises.function(
    inputs=_bytes,
    hints=[
        "packed & 15 keeps the four low bits of each byte, packed >> 4 gives the four high ones.",
        "The two codes of a byte stand beside each other: torch.stack([low, high], dim=-1) has shape (rows, bytes, 2).",
        "Flatten the last two dimensions: .flatten(-2).",
    ],
    because="The low half of each byte is the code with the even number; stacking last puts the high half beside it.",
)
def unpack(packed):
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)


@unpack.mistake("The halves of each byte are swapped: its low four bits hold the first code.")
def _high_half_first(packed):
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2)


@unpack.mistake("All low halves stand before all high ones. Here the two codes of a byte are neighbours.")
def _halves_apart(packed):
    return torch.cat([packed & 15, packed >> 4], dim=-1)


@unpack.mistake("The high half is still shifted up: packed & 240 is sixteen times its code.")
def _not_shifted(packed):
    return torch.stack([packed & 15, packed & 240], dim=-1).flatten(-2)


# --- Go deeper: find the silent bugs.


def _two_bugs(weight, hessian, scale):
    U = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    rounded = weight.clone()
    for j in range(weight.shape[1]):
        column = (weight[:, j] / scale).round().clamp(-8, 7) * scale
        error = (weight[:, j] - column) / U[j, j]
        rounded[:, j + 1 :] -= error[:, None] * U[j, j + 1 :]
        rounded[:, j] = column
    return rounded


@exercises.function(
    inputs=_undamped_layer,
    given=_two_bugs,
    hints=[
        "It returns what plain rounding returns. Which tensor takes up the errors, and which one is rounded?",
        "Errors go into `rounded`, yet the column that is rounded comes from `weight`, which never changes: read "
        "rounded[:, j].",
        "The second bug stands in the first line. Inputs that nearly repeat each other make H nearly singular: what "
        "does one add to its diagonal before it is inverted, and how much?",
        "A hundredth of the mean of the diagonal: 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), "
        "dtype=hessian.dtype).",
    ],
    because="A column must be rounded as it has become. Damping keeps the inverse, and so the errors that are handed "
    "on, small where inputs nearly repeat each other.",
    tolerance=1e-6,
)
def mend_gptq(weight, hessian, scale):
    damping = 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    U = torch.linalg.cholesky(torch.linalg.inv(hessian + damping), upper=True)
    rounded = weight.clone()
    for j in range(weight.shape[1]):
        column = (rounded[:, j] / scale).round().clamp(-8, 7) * scale
        error = (rounded[:, j] - column) / U[j, j]
        rounded[:, j + 1 :] -= error[:, None] * U[j, j + 1 :]
        rounded[:, j] = column
    return rounded


@mend_gptq.mistake("The order is right now. The Hessian is still inverted without damping: see the first line.")
def _still_undamped(weight, hessian, scale):
    return _fed(weight, _factor(hessian), scale)


@mend_gptq.mistake("Damped, but still plain rounding: what is rounded must be the column as it has become.")
def _still_plain(weight, hessian, scale):
    return _nearest(weight, scale[:, None])


@mend_gptq.mistake("The column is rounded as it has become, but its error is still measured from the old weight.")
def _error_of_the_old_weight(weight, hessian, scale):
    return _fed(weight, _factor(_damped(hessian)), scale, stale=True)


@mend_gptq.mistake("Damping goes on the diagonal only. You added it to every number of the Hessian.")
def _damps_everything(weight, hessian, scale):
    return _fed(weight, _factor(hessian + 0.01 * hessian.diagonal().mean()), scale)


@mend_gptq.mistake("Damping is a share of the mean of the diagonal: 0.01 alone depends on how loud the inputs are.")
def _damps_by_a_constant(weight, hessian, scale):
    return _fed(weight, _factor(hessian + 0.01 * torch.eye(len(hessian), dtype=hessian.dtype)), scale)


# --- Go deeper: a verdict.

judge_fp4 = exercises.value(
    "judge_fp4",
    "c",
    hints=[
        "How many weights share a scale in each of the two formats, and what does that do to any grid?",
        "Look at INT4 with blocks that are nearly as small, and at its bits, in the lines above.",
    ],
    mistakes={
        "a": "The measurement is right. But the codes are not all that a format stores, nor all that differs here.",
        "b": "More bits are a reason to ask, and no proof: MXFP4 takes more than this INT4 too, and lost more.",
        "d": "This is about what is lost, and that does not depend on who computes it, or how fast.",
    },
    because="16 weights share a scale in one and 256 in the other: small blocks cost bits, and buy precision on any "
    "grid. A pair at equal bits per weight, or one that is worse and takes more, says something about the grid.",
)


# --- Missions in the explorer.


def _three_bits_goal(explorer) -> str | None:
    result = explorer.result
    if result.bits_per_weight > 3.4:
        return f"{result.bits_per_weight:.2f} bits per weight; the mission is at most 3.4. Fewer bits a code?"
    if result.output_sqnr < 18:
        mended = "Smaller groups?" if explorer.state.method == "GPTQ" else "Who could mend the errors?"
        return f"The layer's outputs keep {result.output_sqnr:.1f} dB; the mission is at least 18. {mended}"
    return None


mend_three_bits = exercises.mission(
    "mend_three_bits",
    _three_bits_goal,
    answer={"format": "INT3", "group": 64, "method": "GPTQ"},
    hints=["Three bits, and something that mends their errors.", "INT3 in groups of 64, by GPTQ."],
    mistakes=[
        ({"format": "INT3", "group": 16, "method": "GPTQ"}, "at most 3.4"),
        ({"format": "INT3", "group": 64, "method": "rounding"}, "Who could mend the errors?"),
        ({"format": "INT3", "group": 0, "method": "GPTQ"}, "Smaller groups?"),
    ],
    because="GPTQ hands on what each column lost. Plain rounding to three bits does not reach 18 dB, even in the "
    "smallest groups.",
)


def _thriftier_goal(explorer) -> str | None:
    state, result = explorer.state, explorer.result
    bar = explorer.compute(replace(state, format="NVFP4", group=0, method="rounding", symmetric=False))
    if state.method != "rounding":
        return "This mission is played by rounding alone: with GPTQ, NVFP4 would do better too."
    if result.bits_per_weight >= bar.bits_per_weight:
        return f"{result.bits_per_weight:.2f} bits per weight; NVFP4 takes {bar.bits_per_weight:.2f}. Fewer scales?"
    if result.loss >= bar.loss:
        return (
            f"The outputs keep {result.output_sqnr:.1f} dB, and NVFP4 keeps {bar.output_sqnr:.1f}. "
            "Which grids fit these weights better than E2M1's?"
        )
    return None


beat_nvfp4 = exercises.mission(
    "beat_nvfp4",
    _thriftier_goal,
    answer={"format": "INT4", "group": 64, "method": "rounding"},
    hints=[
        "In the table of formats two take fewer bits than NVFP4, and have a smaller KL.",
        "One is NF4. The other has even steps and a zero point: INT4 in groups of 64, not symmetric.",
    ],
    mistakes=[
        ({"format": "INT4", "group": 64, "method": "GPTQ"}, "by rounding alone"),
        ({"format": "INT4", "group": 16}, "Fewer scales?"),
        ({"format": "MXFP4", "method": "rounding"}, "Which grids fit"),
    ],
    because="A zero point lets even steps reach from the least weight of a group to the largest, which does here what "
    "NVFP4's smaller blocks do, for fewer bits. So does NF4: its levels fit weights better than a float's.",
)


def explorer():
    """Open the explorer that the missions are played in: a layer of the small model, and what it reads."""
    from qtutor.explorers import FourBitExplorer
    from qtutor.language import layer_inputs, small

    model, layer = small.load(), "blocks.1.feed_forward.gate"
    seen = layer_inputs(model, layer, small.encode(small.training_text())[: 8 * 256 + 1])
    return FourBitExplorer(model.get_parameter(f"{layer}.weight"), seen)
