"""Exercises of lesson 08, benchmarking."""

from qtutor.exercises.exercise import Exercises

import torch

exercises = Exercises("08_benchmarking")

# --- Compute by hand.

rounds_needed = exercises.value(
    "rounds_needed",
    6,
    hints=[
        "The n rounds miss the true median if all lie on one side of it, like n coins that all show the same face.",
        "That happens with probability 2 / 2**n. Which is the first n for which it is at most 5 percent?",
    ],
    mistakes={
        5: "Five coins all show the same side with probability 2 / 32, which is 6.25 percent: too often.",
        7: "Seven are enough, but so are fewer.",
        20: "5 percent is one in twenty, but it takes far fewer coins to make that.",
    },
    because="2 / 2**6 is 3.1 percent, and 2 / 2**5 is 6.25: six rounds span the median with 96.9 percent.",
)


# --- Write code: the ratio of a paired comparison.


def _times(generator: torch.Generator) -> tuple:
    rounds = int(torch.randint(5, 12, (), generator=generator)) * 2 + 1
    mood = 1 + 3 * torch.rand(rounds, generator=generator, dtype=torch.float64)  # slows both models of a round
    first, second = 1 + 0.05 * torch.rand(2, rounds, generator=generator, dtype=torch.float64)
    return 2 * mood * first, mood * second


@exercises.function(
    inputs=_times,
    hints=[
        "One round holds one time of each. What slows a round down slows both, so divide within the round first.",
        "(baseline / candidate).median()",
    ],
    because="A ratio within a round hardly feels the machine's mood; the median ignores the rounds that went wrong.",
    tolerance=1e-9,
)
def speedup(baseline, candidate):
    return (baseline / candidate).median()


@speedup.mistake("Upside down: a candidate that takes half the time is 2 times as fast.")
def _upside_down(baseline, candidate):
    return (candidate / baseline).median()


@speedup.mistake("The ratio of two medians compares times of different rounds. Divide within each round first.")
def _of_medians(baseline, candidate):
    return baseline.median() / candidate.median()


@speedup.mistake("The ratio of two means: one slow round decides it. Divide within each round, then take the median.")
def _of_means(baseline, candidate):
    return baseline.mean() / candidate.mean()


@speedup.mistake("A mean of the ratios: one round that went wrong moves it. Take their median.")
def _mean_ratio(baseline, candidate):
    return (baseline / candidate).mean()


# --- Find the silent bug.


def _sorted_first(baseline, candidate):
    ratios = (baseline.sort().values / candidate.sort().values).sort().values
    left_out = len(ratios) // 4
    return ratios[left_out], ratios[len(ratios) - 1 - left_out]


@exercises.function(
    inputs=_times,
    given=_sorted_first,
    hints=[
        "Which two times does the function divide by each other? Were they measured in the same round?",
        "The two first calls of sort put each model's times in order, and so pair times of different rounds.",
    ],
    because="Sorting the times destroys the pairs. Only the ratios may be sorted.",
    tolerance=1e-9,
)
def mend_interval(baseline, candidate):
    ratios = (baseline / candidate).sort().values
    left_out = len(ratios) // 4
    return ratios[left_out], ratios[len(ratios) - 1 - left_out]


@mend_interval.mistake(
    "The pairs are right now, but nothing sorts the ratios: the ends are those of two chance rounds."
)
def _unsorted(baseline, candidate):
    ratios = baseline / candidate
    left_out = len(ratios) // 4
    return ratios[left_out], ratios[len(ratios) - 1 - left_out]


@mend_interval.mistake("That is the whole range. A quarter of the rounds is left out at either end.")
def _whole(baseline, candidate):
    ratios = baseline / candidate
    return ratios.min(), ratios.max()


# --- Diagnose a symptom.

diagnose_slow_int8 = exercises.value(
    "diagnose_slow_int8",
    "c",
    hints=[
        "The file is four times as small, so the weights are INT8. What do the operators say about the work?",
        "Conv works on floats. What stands before and after each of them?",
    ],
    mistakes={
        "a": "Without calibration the accuracy would be lost, and the operators would be the same.",
        "b": "The weights are INT8: the file is four times as small.",
        "d": "One thread slows both down. It does not turn integer convolutions into Conv.",
    },
    because="Each Conv left in float pays for a DequantizeLinear before and a QuantizeLinear after it.",
)

# --- Take a decision.

choose_runtime = exercises.value(
    "choose_runtime",
    "b",
    hints=[
        "Which rows can be told apart? Look at the ratios within rounds, and whether their intervals hold 1.",
        "Speed does not decide between b and c. The requirement on size does.",
    ],
    mistakes={
        "a": "It meets the requirement on accuracy and no other: it is neither small nor fast.",
        "c": "Its ratio to b may be 1: it is not known to be faster, and it is larger than allowed.",
        "d": "17 flips to the worse against 2 to the better are no chance: p is below 0.001.",
    },
    because="B and C cannot be told apart in speed, and of the two only B fits. D really lost accuracy.",
)

# --- Missions in the explorer.


def _fair_goal(explorer) -> str | None:
    state, result = explorer.state, explorer.result
    if state.summary == "fastest":
        return "The fastest run is the best case, which nobody meets at work: use the mean or the median."
    if state.runs > 40:
        return f"{state.runs} runs of each are too many: at most 40."
    if result.share_far_off <= 0.06:
        return None
    return f"{result.share_far_off:.0%} of the duels are far off; the mission is at most 6%. What moves a mean?"


duel_fairly = exercises.mission(
    "duel_fairly",
    _fair_goal,
    answer={"order": "taking turns", "summary": "median", "runs": 40, "warm_up": True},
    hints=[
        "A single slow run moves a mean and not a median.",
        "Taking turns, the median of 40 runs of each, without the first ten.",
    ],
    mistakes=[
        ({"order": "taking turns", "runs": 40}, "What moves a mean?"),
        ({"summary": "fastest"}, "the best case"),
        ({"summary": "median", "runs": 75}, "too many: at most 40"),
    ],
    because="Medians ignore the runs that were disturbed, and turns spread what lasts longer over both.",
)


def _convincing_goal(explorer) -> str | None:
    state, result = explorer.state, explorer.result
    if not state.warm_up:
        return "A reader would see that you left no warm-up out. Leave it out."
    if state.runs < 30:
        return f"{state.runs} runs would convince nobody: take 30 or more."
    if result.share_far_off >= 0.5:
        return None
    return (
        f"Only {result.share_far_off:.0%} of the duels are far off; the mission is half of them. Which summary helps?"
    )


convince_wrongly = exercises.mission(
    "convince_wrongly",
    _convincing_goal,
    answer={"order": "one after the other", "summary": "mean", "runs": 30, "warm_up": True},
    hints=[
        "Do what most benchmarks in articles do.",
        "One after the other, the mean of 30 runs of each, after the warm-up.",
    ],
    mistakes=[
        ({"summary": "mean", "runs": 75}, "left no warm-up out"),
        ({"runs": 3, "warm_up": True}, "would convince nobody"),
        ({"summary": "median", "warm_up": True}, "Which summary helps?"),
    ],
    because="Warm-up and many runs look careful, and a mean of one model after the other is still a lottery.",
)


def explorer():
    """Open the explorer that the missions are played in."""
    from qtutor.explorers import BenchmarkExplorer

    return BenchmarkExplorer({"model": torch.abs}, torch.rand(4))
