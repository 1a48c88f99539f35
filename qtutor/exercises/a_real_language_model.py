"""Exercises of lesson 12, a real language model."""

from qtutor.exercises.exercise import Exercises

import torch

exercises = Exercises("12_a_real_language_model")

# --- Find the silent bug: smoothing.


def _smoothed_layer(generator: torch.Generator) -> tuple:
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return x, weight, 0.5 + 4 * torch.rand(4, generator=generator, dtype=torch.float64)


def _divides_both(x, weight, factors):
    return x / factors, weight / factors


@exercises.function(
    inputs=_smoothed_layer,
    given=_divides_both,
    hints=[
        "Compare x @ weight.T with the product of your two results: apart from last digits it must not change.",
        "Output o is a sum over channels i of x[i] * weight[o, i]. What x[i] loses, weight[o, i] must gain.",
        "Channels of the input are the columns of the weight: which operation undoes x / factors there?",
    ],
    because="x[i] / s[i] times weight[o, i] * s[i] is what it was; the columns of the weight are the channels of x.",
    tolerance=1e-9,
)
def mend_smoothing(x, weight, factors):
    return x / factors, weight * factors


@mend_smoothing.mistake("The product is right again, but you made the loud channels louder: swap the two.")
def _upside_down(x, weight, factors):
    return x * factors, weight / factors


@mend_smoothing.mistake("Nothing is divided any more, so the outliers stay where they were.")
def _leaves_all(x, weight, factors):
    return x, weight


# --- Diagnose: which axis.

choose_axes = exercises.value(
    "choose_axes",
    "b",
    hints=[
        "What layers read had one loud token, which a scale of its own kept apart. What is loud in keys: a token?",
        "A loud channel takes codes from others wherever it shares a scale, and from none if it has its own.",
    ],
    mistakes={
        "a": "A token's scale is set by its loudest channel, and keys have channels that are loud at many tokens: each "
        "of these tokens spoils itself.",
        "c": "Upside down: it is the keys that have loud channels.",
        "d": "That serves the keys. But values have hardly a loud channel, and with scales per channel a new token's "
        "values would have to wait for others, or change the scale of those that are stored.",
    },
    because="Loud channels are the keys', and at their tokens a scale per token spares nobody. Values have hardly any, "
    "and a token's scale is known when the token comes.",
)

# --- Go deeper: take a decision.

judge_lossless = exercises.value(
    "judge_lossless",
    "c",
    hints=[
        "On which values did the file's weights lie before they were rounded once more?",
        "Which of the two would have lost nothing, had the file come in Q8_0?",
    ],
    mistakes={
        "a": "It loses less against weights that lie on its own grid. Of any other weights that says nothing.",
        "b": "Steps of 8 bits are fine, and yet most of the file's values lie between them.",
        "d": "More text narrows the interval of a KL. Here one KL is exactly 0, on any text.",
    },
    because="The file's weights lie on Q4_1's grid, so only Q4_1 gives them back; of a file in Q8_0, Q8_0 would. Both "
    "should be compared on the float model, from before any rounding.",
)

# --- Go deeper: write code, fold a rotation away.


def _norm_and_weight(generator: torch.Generator) -> tuple:
    norm = 0.2 + torch.rand(4, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return norm, weight, torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q


@exercises.function(
    inputs=_norm_and_weight,
    hints=[
        "x @ R is as long as x, so rms stays. What stands between the norm's division by rms and the layer?",
        "The norm's weight g, which multiplies channels, and R mixes them. Who else can multiply channel j by g[j]?",
        "The columns of the layer: weight * norm, and then ones are left for the norm. Now the layer reads x @ R, "
        "divided by rms: which factor turns that back?",
        "(weight * norm) @ R, since R @ R.T is the identity.",
    ],
    because="With g in the columns, the norm sees lengths alone, which R keeps; (W diag(g) R)(R.T x) is W diag(g) x.",
    tolerance=1e-9,
)
def fold_rotation(norm, weight, R):
    return torch.ones_like(norm), (weight * norm) @ R


@fold_rotation.mistake("The norm's weight still multiplies channels, and after the rotation these are other ones.")
def _leaves_the_norm(norm, weight, R):
    return norm, weight @ R


@fold_rotation.mistake(
    "g belongs to the channels before they are turned: multiply it into the columns first, then turn."
)
def _turns_first(norm, weight, R):
    return torch.ones_like(norm), (weight @ R) * norm


@fold_rotation.mistake("The layer turns the wrong way: it reads x @ R, and its weight must be turned likewise.")
def _turns_the_other_way(norm, weight, R):
    return torch.ones_like(norm), (weight * norm) @ R.T


@fold_rotation.mistake("The layer takes over the norm's weight, and still reads its inputs as if nothing turned them.")
def _does_not_turn(norm, weight, R):
    return torch.ones_like(norm), weight * norm


# --- Go deeper: compute by hand, when the cache outgrows the model.

tokens_of_cache = exercises.value(
    "tokens_of_cache",
    4000,
    hints=[
        "Bytes of a token: keys and values, times layers, times heads of keys, times their width, times 2 bytes.",
        "2 * 30 * 3 * 64 * 2 = 23,040 bytes. How often do they go into 92,160,000?",
    ],
    mistakes={
        8000: "You counted the keys alone, or one byte a number. Keys and values, two bytes each.",
        120000: "That is one layer's. Each of the 30 layers keeps its own.",
        1333: "That is with nine heads. The queries have nine, and three of them share one head of keys and values.",
        16000: "That is at 4 bits. The question is FP16.",
    },
    because="2 * 30 layers * 3 heads * 64 * 2 bytes = 23,040 bytes a token, and 92,160,000 / 23,040 = 4,000.",
    tolerance=0.001,
)

# --- Go deeper: diagnose a symptom.

diagnose_first_token = exercises.value(
    "diagnose_first_token",
    "d",
    hints=[
        "Which scale depends on how long the text is that is rounded together?",
        "A huge first token sets the scale of all tokens that are rounded with it.",
    ],
    mistakes={
        "a": "Weights do not know how long a text is.",
        "b": "Per token each has its own scale, at any length.",
        "c": "A cache that is rounded worsens what comes late, not what comes first with it.",
    },
    because="Token by token each gets its own scale. Read at once, all share the one that the huge first token sets.",
)

# --- Missions in the explorer.


def _as_the_mission_says(explorer, bits: int) -> str | None:
    if explorer.state.bits != bits:
        return f"This mission is played at {bits} bits, the explorer stands at {explorer.state.bits}."
    if explorer.state.spare:
        return "In this mission every position is rounded: do not spare the first."
    return None


def _one_scale_goal(explorer) -> str | None:
    if missing := _as_the_mission_says(explorer, bits=8):
        return missing
    if explorer.state.per != "tensor":
        return "This mission is played with one scale for the tensor."
    if explorer.result.median >= 25:
        return None
    why = {
        "as it is": "Who else could bear the outliers?",
        "smoothed": "Do the weights bear too much now, or too little?",
        "rotated": "No norm stands here, and a rotation keeps lengths: position 0 stays as loud as a whole.",
    }[explorer.state.prepared]
    return f"The median position has {explorer.result.median:.1f} dB; the mission is 25. {why}"


one_scale = exercises.mission(
    "one_scale",
    _one_scale_goal,
    answer={"prepared": "smoothed", "strength": 0.5, "per": "tensor"},
    hints=["Someone else must bear the outliers: the weights.", "Smoothed, at a strength of 0.5."],
    mistakes=[
        ({"per": "token"}, "with one scale for the tensor"),
        ({"spare": True}, "do not spare the first"),
        ({"prepared": "as it is", "position": 0}, "Who else could bear the outliers?"),
        ({"prepared": "rotated"}, "position 0 stays as loud"),
        ({"prepared": "smoothed", "strength": 1.0}, "bear too much"),
        ({"prepared": "smoothed", "bits": 6}, "This mission is played at 8 bits"),
    ],
    because="Half of the trouble goes into weights, which have a scale a row; all of it would be too much for them.",
)


def _four_bits_goal(explorer) -> str | None:
    if missing := _as_the_mission_says(explorer, bits=4):
        return missing
    if explorer.result.median >= 22:
        return None
    why = "Can it be that no channel stands out?"
    if explorer.state.per == "tensor":
        why = "Position 0 sets the scale of all."
    elif explorer.state.prepared == "smoothed":
        why = "What smoothing leaves of the outliers still takes most of 16 codes."
    return f"The median position has {explorer.result.median:.1f} dB; the mission is 22. {why}"


four_bits = exercises.mission(
    "four_bits",
    _four_bits_goal,
    answer={"prepared": "rotated", "per": "token", "bits": 4},
    hints=["15 steps are too few for a channel that is 20 times as loud as others.", "Rotated, one scale per token."],
    mistakes=[
        ({"prepared": "rotated", "per": "token"}, "This mission is played at 4 bits"),
        ({"per": "token", "bits": 4}, "no channel stands out?"),
        ({"prepared": "smoothed", "per": "token", "bits": 4}, "still takes most of 16 codes"),
        ({"prepared": "rotated", "per": "tensor", "bits": 4}, "Position 0 sets the scale of all."),
        ({"prepared": "rotated", "per": "token", "bits": 4, "spare": True}, "do not spare the first"),
    ],
    because="A rotation spreads a loud channel over all; the loud first position still needs a scale of its own.",
)
