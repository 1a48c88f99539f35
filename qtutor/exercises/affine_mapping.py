"""Exercises of lesson 01, the affine mapping."""

from qtutor.affine import choose_qparams, grid, measure_error
from qtutor.exercises.exercise import Exercises

import torch
from torch import Tensor

exercises = Exercises("01_affine_mapping")

# --- Compute by hand.

predict_code = exercises.value(
    "predict_code",
    2,
    hints=[
        "Three steps, in this order: x / s, round, add z.",
        "-0.40 / 0.25 is -1.6. Round it to the nearest whole number, then add 4.",
    ],
    mistakes={
        3: "You cut -1.6 down to -1. Rounding goes to the nearest whole number, which is -2.",
        -2: "-2 is round(x / s), steps from zero. The code counts from z: add 4.",
        6: "You added 2 to z. The weight is negative, so its code lies below z.",
        2.4: "A code is a whole number: round -1.6 before you add 4.",
    },
    because="-0.40 / 0.25 = -1.6, which rounds to -2, and -2 + 4 = 2.",
)


# --- Write code: from a range to scale and zero point.


def _ranges(generator: torch.Generator) -> tuple:
    ends = (torch.rand(2, generator=generator, dtype=torch.float64) * 8 - 4).sort().values
    bits = int(torch.randint(2, 9, (), generator=generator))
    signed = bool(torch.randint(2, (), generator=generator))
    return (*ends.tolist(), *grid(bits, signed=signed))


@exercises.function(
    inputs=_ranges,
    hints=[
        "How many steps lie between quant_min and quant_max? And what if the range does not hold zero?",
        "First widen the range: min_val = min(min_val, 0), max_val = max(max_val, 0).",
        "scale = (max_val - min_val) / (quant_max - quant_min); the zero point makes min_val land on quant_min.",
    ],
    because="The ends of the widened range meet the ends of the grid, and zero gets a code of its own.",
    tolerance=1e-6,
)
def derive_qparams(min_val, max_val, quant_min, quant_max):
    min_val, max_val = min(min_val, 0.0), max(max_val, 0.0)
    scale = (max_val - min_val) / (quant_max - quant_min)
    zero_point = quant_min - round(min_val / scale)
    return scale, zero_point


@derive_qparams.mistake("You left zero out: a range such as 1 to 3 must be widened to hold 0 before it is divided.")
def _no_widening(min_val, max_val, quant_min, quant_max):
    scale = (max_val - min_val) / (quant_max - quant_min)
    return scale, quant_min - round(min_val / scale)


@derive_qparams.mistake("You divided by the number of codes. Between n codes there are n - 1 steps.")
def _codes_not_steps(min_val, max_val, quant_min, quant_max):
    min_val, max_val = min(min_val, 0.0), max(max_val, 0.0)
    scale = (max_val - min_val) / (quant_max - quant_min + 1)
    return scale, quant_min - round(min_val / scale)


@derive_qparams.mistake("The scale is right. The zero point must count from quant_min, which is not always 0.")
def _grid_starts_at_zero(min_val, max_val, quant_min, quant_max):
    scale, zero_point = derive_qparams.answer(min_val, max_val, quant_min, quant_max)
    return scale, zero_point - quant_min


@derive_qparams.mistake("The order is (scale, zero_point): you return them the other way round.")
def _swapped(min_val, max_val, quant_min, quant_max):
    return derive_qparams.answer(min_val, max_val, quant_min, quant_max)[::-1]


@derive_qparams.mistake("The zero point must be a whole number, or zero has no code of its own: round it.")
def _not_rounded(min_val, max_val, quant_min, quant_max):
    scale, _ = derive_qparams.answer(min_val, max_val, quant_min, quant_max)
    return scale, quant_min - min(min_val, 0.0) / scale


@derive_qparams.mistake("The zero point lies above quant_min: subtract round(min_val / scale), which is negative.")
def _wrong_sign(min_val, max_val, quant_min, quant_max):
    scale, zero_point = derive_qparams.answer(min_val, max_val, quant_min, quant_max)
    return scale, 2 * quant_min - zero_point


# --- Write code: quantize.


def _tensors(generator: torch.Generator) -> tuple:
    bits = int(torch.randint(3, 9, (), generator=generator))
    quant_min, quant_max = grid(bits, signed=bool(torch.randint(2, (), generator=generator)))
    zero_point = int(torch.randint(quant_min, quant_max + 1, (), generator=generator))
    half_steps = torch.randint(-3 * 2**bits, 3 * 2**bits, (40,), generator=generator) / 2
    between = torch.rand(40, generator=generator) * 2**bits - zero_point
    return torch.cat([half_steps, between]) * 0.125, 0.125, zero_point, quant_min, quant_max


@exercises.function(
    inputs=_tensors,
    hints=[
        "torch has round, which rounds half to even, and clamp.",
        "Divide, round, add the zero point, and clamp last, when the codes are codes.",
        "torch.clamp(torch.round(x / scale) + zero_point, quant_min, quant_max)",
    ],
    because="Rounding first keeps half-steps even relative to zero; clamping last keeps every code on the grid.",
)
def write_quantize(x, scale, zero_point, quant_min, quant_max):
    return torch.clamp(torch.round(x / scale) + zero_point, quant_min, quant_max)


@write_quantize.mistake("Your codes leave the grid: clamp them to [quant_min, quant_max].")
def _no_clamp(x, scale, zero_point, quant_min, quant_max):
    return torch.round(x / scale) + zero_point


@write_quantize.mistake("You clamp before you add the zero point, so the codes are shifted off the grid again.")
def _clamps_first(x, scale, zero_point, quant_min, quant_max):
    return torch.clamp(torch.round(x / scale), quant_min, quant_max) + zero_point


@write_quantize.mistake("You cut off the fraction. Quantization rounds to the nearest step: torch.round.")
def _truncates(x, scale, zero_point, quant_min, quant_max):
    return torch.clamp(torch.trunc(x / scale) + zero_point, quant_min, quant_max)


@write_quantize.mistake("The zero point is missing: add it after rounding, so that real zero gets the code zero_point.")
def _no_zero_point(x, scale, zero_point, quant_min, quant_max):
    return torch.clamp(torch.round(x / scale), quant_min, quant_max)


@write_quantize.mistake("You round down. Quantization rounds to the nearest step: torch.round.")
def _rounds_down(x, scale, zero_point, quant_min, quant_max):
    return torch.clamp(torch.floor(x / scale) + zero_point, quant_min, quant_max)


@write_quantize.mistake(
    "Right but for half-steps: floor(x / scale + 0.5) rounds them up, torch.round to the even side."
)
def _rounds_half_up(x, scale, zero_point, quant_min, quant_max):
    return torch.clamp(torch.floor(x / scale + 0.5) + zero_point, quant_min, quant_max)


@write_quantize.mistake("You multiply by the scale. How many steps is x from zero? Divide.")
def _multiplies(x, scale, zero_point, quant_min, quant_max):
    return torch.clamp(torch.round(x * scale) + zero_point, quant_min, quant_max)


@write_quantize.mistake("The sign of the zero point is wrong: real zero must get the code zero_point.")
def _subtracts(x, scale, zero_point, quant_min, quant_max):
    return torch.clamp(torch.round(x / scale) - zero_point, quant_min, quant_max)


@write_quantize.mistake(
    "Right but for half-steps: you add the zero point before rounding, which changes which neighbour is even. "
    "This course rounds first; Go deeper shows that PyTorch itself does both."
)
def _rounds_last(x, scale, zero_point, quant_min, quant_max):
    exact = torch.round(x / scale + zero_point)
    return torch.clamp(exact, quant_min, quant_max)


# --- Find the silent bug.


def _codes(generator: torch.Generator) -> tuple:
    codes = torch.randint(0, 256, (32,), generator=generator, dtype=torch.uint8)
    return codes, 0.5, int(torch.randint(64, 192, (), generator=generator))


def _wraps_around(codes, scale, zero_point):
    return (codes - zero_point) * scale


@exercises.function(
    inputs=_codes,
    given=_wraps_around,
    hints=[
        "Print codes - zero_point for a code below the zero point. Which type is it?",
        "uint8 has no negative numbers: 3 - 5 wraps around to 254. Widen the codes before you subtract.",
    ],
    because="The subtraction happens in a type that can hold its result.",
)
def mend_dequantize(codes, scale, zero_point):
    return (codes.to(torch.int32) - zero_point) * scale


@mend_dequantize.mistake("Still wrapped: the subtraction itself happens in uint8. Convert the codes before it.")
def _widens_late(codes, scale, zero_point):
    return (codes - zero_point).to(torch.float32) * scale


@mend_dequantize.mistake("int8 ends at 127, so codes from 128 up wrap around. Widen to int32 or float.")
def _widens_too_little(codes, scale, zero_point):
    return (codes.to(torch.int8).to(torch.int32) - zero_point) * scale


# --- Diagnose a symptom.

diagnose_relu = exercises.value(
    "diagnose_relu",
    "b",
    hints=[
        "Which codes can a ReLU output never get on a symmetric signed grid?",
        "All values are at least 0, so codes -128 to -1 stay empty. What is half the grid worth in bits?",
    ],
    mistakes={
        "a": "Clipping would pile values up on the last code. A range taken from the data clips next to nothing.",
        "c": "Rounding mode moves half-steps only; it cannot cost 6 dB.",
        "d": "A scale is one float32 number: its own rounding costs about one part in ten million.",
    },
    because="Half of the codes are spent on negative values that never come: one bit, 6 dB. Use an asymmetric grid.",
)

# --- Take a decision.

choose_bits = exercises.value(
    "choose_bits",
    7,
    hints=[
        "Each bit is worth about 6 dB.",
        "You may give away 40.2 - 33 = 7.2 dB. How many bits is that, rounded down?",
    ],
    mistakes={
        6: "Two bits cost about 12 dB, which leaves 28 dB: too little.",
        8: "8 bits are enough, but not the fewest: how much does one bit cost?",
        5: "Three bits cost about 18 dB, which leaves 22 dB: too little.",
    },
    because="7.2 dB may go, and one bit costs about 6: 7 bits give about 34.2 dB, 6 bits 28.2 dB.",
)

# --- Missions in the explorer.


def _is_on_normal_weights(explorer) -> bool:
    return torch.equal(explorer.values, normal_weights())


_ELSEWHERE = "The mission is played on the lesson's values: AffineExplorer(normal)."


def _larger_part(explorer, rounding: str) -> str:
    error = explorer.result.error
    return "Clipping makes most of the error: widen the range." if error.clipping > error.rounding else rounding


def _clip_goal(explorer) -> str | None:
    if not _is_on_normal_weights(explorer):
        return _ELSEWHERE
    if explorer.state.bits != 3:
        return f"This mission is played at 3 bits, the explorer stands at {explorer.state.bits}."
    values, ends = explorer.values, grid(3, signed=explorer.state.signed)
    plain = choose_qparams(*values.aminmax(), quant_min=ends[0], quant_max=ends[1])
    gain = explorer.result.error.sqnr - measure_error(values, plain).sqnr
    if gain >= 4:
        return None
    advice = _larger_part(explorer, "Rounding still makes most of the error: narrow the range.")
    return f"{gain + 0.0:+.1f} dB against the range of the data; the mission is +4 dB. {advice}"


beat_min_max = exercises.mission(
    "beat_min_max",
    _clip_goal,
    answer={"bits": 3, "clip": (-2.1, 2.1)},
    hints=[
        "Draw both ends of the clip range in, a little at a time, and watch the two bars.",
        "Try about -2.1 to 2.1.",
    ],
    mistakes=[
        ({"bits": 3, "clip": (-0.8, 0.8)}, "Clipping makes most of the error: widen the range."),
        ({"bits": 3, "clip": (-4.0, 4.0)}, "Rounding still makes most of the error: narrow the range."),
        ({"bits": 8, "clip": (-2.1, 2.1)}, "This mission is played at 3 bits"),
    ],
    because="A few rare values clipped hard cost less than coarse steps for all the others.",
)


def _bits_goal(explorer) -> str | None:
    if not _is_on_normal_weights(explorer):
        return _ELSEWHERE
    quality, bits = explorer.result.error.sqnr, explorer.state.bits
    if quality < 40:
        advice = _larger_part(
            explorer, "Rounding makes most of the error. Are there enough codes, and is the range no wider than needed?"
        )
        return f"{quality:.1f} dB at {bits} bits; the mission is 40 dB. {advice}"
    if bits > 8:
        return f"{quality:.1f} dB is enough, but {bits} bits are more than it takes."
    return None


reach_40_db = exercises.mission(
    "reach_40_db",
    _bits_goal,
    answer={"bits": 8, "clip": (-4.0, 4.0)},
    hints=[
        "At 8 bits, is the best range narrower or wider than at 4?",
        "Use 8 bits and clip almost nothing: about -4 to 4.",
    ],
    mistakes=[
        ({"bits": 8, "clip": (-2.6, 2.6)}, "Clipping makes most of the error: widen the range."),
        ({"bits": 7}, "Are there enough codes"),
        ({"bits": 10}, "more than it takes"),
    ],
    because="With fine steps rounding costs little, so even rare clipping is dear: the best range is wide.",
)


def normal_weights(count: int = 100_000) -> Tensor:
    """Return the normal values that the missions are played on; always the same."""
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def explorer():
    """Open the explorer that the missions are played in."""
    from qtutor.explorers import AffineExplorer

    return AffineExplorer(normal_weights())
