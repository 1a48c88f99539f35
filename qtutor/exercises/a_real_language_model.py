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
        "Compare x @ weight.T with what your two results give: floating point must not change at all.",
        "Output o is a sum over channels i of x[i] * weight[o, i]. What x[i] loses, weight[o, i] must gain.",
        "Channels of the input are the columns of the weight: weight * factors.",
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
        "The lines above: which of the two has channels far louder than its others?",
        "A loud channel costs nobody else if it has a scale of its own.",
    ],
    mistakes={
        "a": "A token's scale is set by its loudest channel, and keys have channels that are loud at every token.",
        "c": "Upside down: it is the keys that have loud channels.",
        "d": "That serves the keys. But values have hardly a loud channel, and with scales per channel a new token's "
        "values would have to wait for others, or change the scale of those that are stored.",
    },
    because="Loud channels are the keys'; values have hardly any, and a token's scale is known when the token comes.",
)

# --- Go deeper: take a decision.

judge_lossless = exercises.value(
    "judge_lossless",
    "c",
    hints=[
        "What were the weights of that file before anybody touched them?",
        "Whoever rounds to a grid what lies on that grid loses nothing, and shows nothing.",
    ],
    mistakes={
        "a": "The arithmetic is right, and says nothing of weights that are not on the grid already.",
        "b": "The perplexity was measured correctly. Ask what it was compared with.",
        "d": "More text narrows the interval of a difference. Here the difference is exactly 0, and means nothing.",
    },
    because="The file's weights lie on Q4_1's grid. The float model, from before that, is the one to compare with.",
)

# --- Go deeper: write code, fold the factors into a norm.


def _norm_and_weight(generator: torch.Generator) -> tuple:
    norm = 0.2 + torch.rand(4, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return norm, weight, 0.5 + 4 * torch.rand(4, generator=generator, dtype=torch.float64)


@exercises.function(
    inputs=_norm_and_weight,
    hints=[
        "A norm ends with a factor for each channel: y = norm * x / rms(x). Dividing y by s is the same as ...?",
        "The norm's weight is divided, and the columns of the layer that reads it are multiplied.",
        "return norm / factors, weight * factors",
    ],
    because="(norm / s) * x / rms(x) is the smoothed input already: no division is left to do when the model runs.",
    tolerance=1e-9,
)
def fold_into_norm(norm, weight, factors):
    return norm / factors, weight * factors


@fold_into_norm.mistake("The norm now hands on smoothed inputs, and the layer still takes them for the old ones.")
def _forgets_the_layer(norm, weight, factors):
    return norm / factors, weight


@fold_into_norm.mistake("The function stays, but you made the loud channels louder.")
def _multiplies_the_norm(norm, weight, factors):
    return norm * factors, weight / factors


@fold_into_norm.mistake("A root in each does not undo the other: what the norm loses the weight must gain, all of it.")
def _halves_it(norm, weight, factors):
    return norm / factors, weight * factors.sqrt()


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
        "rotated": "A rotation mixes the channels of a position, and position 0 stays as loud as a whole.",
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


def explorer():
    """Open the explorer that the missions are played in."""
    from qtutor.explorers import OutlierExplorer

    return OutlierExplorer()
