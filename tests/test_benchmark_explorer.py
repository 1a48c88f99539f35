"""BenchmarkExplorer without a browser."""

import asyncio
import statistics

from qtutor.explorers import BenchmarkExplorer
from qtutor.explorers.benchmark import ORDERS, RUNS, SUMMARIES, WARM_UP, duel, recorded_timings

import pytest
import torch
from controls import check_every_control
from torch import nn


@pytest.fixture
def explorer():
    torch.manual_seed(0)
    return BenchmarkExplorer({"a": nn.Linear(6, 4), "b": nn.Linear(6, 4)}, torch.rand(8, 6), seconds=0.05)


def test_every_control_changes_state_figure_and_sentence(explorer):
    changes = {"order": ORDERS[1], "runs": 5, "summary": "median", "warm_up": True, "models": ("b",), "batch_size": 2}
    check_every_control(explorer, changes | {"threads": 1}, same_figure={"models"})


@pytest.mark.parametrize("summary", SUMMARIES)
@pytest.mark.parametrize("warm_up", [False, True])
@pytest.mark.parametrize("runs", [1, 2, 3, 8])
def test_a_duel_is_what_counting_runs_says(summary, warm_up, runs):
    timings = 1 + torch.rand(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reduce = {"mean": statistics.mean, "median": statistics.median, "fastest": min}[summary]
    for order in ORDERS:
        found = duel(timings, order, runs, summary, warm_up)
        for row, ratio in zip(timings.tolist(), found.tolist(), strict=True):
            row = row[WARM_UP:] if warm_up else row
            if order == ORDERS[0]:
                mine, other = row[:runs], row[runs : 2 * runs]
            else:
                mine = [row[2 * i + i % 2] for i in range(runs)]
                other = [row[2 * i + 1 - i % 2] for i in range(runs)]
            assert ratio == pytest.approx(reduce(mine) / reduce(other))


def test_the_recording_shows_what_the_lesson_says():
    timings = recorded_timings()
    assert timings.shape[1] >= 2 * RUNS[-1] + WARM_UP
    bad = duel(timings, ORDERS[0], 30, "mean", False)
    good = duel(timings, ORDERS[1], 75, "median", True)
    assert ((bad - 1).abs() > 0.05).double().mean() > 0.5
    assert ((good - 1).abs() > 0.05).double().mean() < 0.1


def test_run_compares_the_chosen_models_and_says_so(explorer):
    explorer.set(models=("a", "b"), batch_size=4)
    comparison = explorer.run()
    assert list(comparison.table.index) == ["a", "b"]
    assert explorer.result.comparison is comparison
    assert "Measured here at batch 4" in explorer.sentence.text
    assert f"b {comparison.table['speedup']['b']:.2f} times as fast" in explorer.sentence.text
    assert [list(trace.x) for trace in explorer.figure.data[2:]] == [[1.0], [comparison.table["speedup"]["b"]]]
    assert explorer.progress.value == 1
    assert not explorer.run_button.disabled


def test_run_in_a_page_goes_on_in_the_background_and_can_be_cancelled():
    seen = []

    def slow(x):
        seen.append(x)
        return x

    async def press():
        explorer = BenchmarkExplorer({"slow": slow}, torch.rand(4), seconds=60)
        explorer.run_button.click()
        assert explorer.run_button.disabled
        while not seen:
            await asyncio.sleep(0.01)
        explorer.cancel_button.click()
        while "cancelled" not in explorer.sentence.text:
            await asyncio.sleep(0.01)
        return explorer

    explorer = asyncio.run(asyncio.wait_for(press(), 30))
    assert explorer.comparison is None
    assert not explorer.run_button.disabled
    assert explorer.cancel_button.disabled


def test_a_failing_model_is_named_and_a_failed_run_leaves_the_explorer_alive():
    def fail(x):
        raise OSError("no such kernel")

    explorer = BenchmarkExplorer({"good": torch.abs, "bad": fail}, torch.rand(4), seconds=0.02)
    explorer.run()
    assert "bad failed (OSError: no such kernel)" in explorer.sentence.text
    explorer.set(models=("bad",))
    explorer.run()
    assert "The run failed: every entry failed" in explorer.sentence.text
    explorer.set(models=())
    assert explorer.run_button.disabled


def test_takes_several_inputs_and_batches_larger_than_given():
    sizes = []

    def add(x, y):
        sizes.append((len(x), len(y)))
        return x + y

    explorer = BenchmarkExplorer({"add": add}, (torch.rand(3, 2), torch.rand(3, 2)), seconds=0.02)
    explorer.set(batch_size=64)
    explorer.run()
    assert set(sizes) == {(64, 64)}


def test_while_one_run_goes_on_no_other_begins():
    def again(x):
        assert explorer.run() is None
        explorer._start()
        return x

    explorer = BenchmarkExplorer({"again": again}, torch.rand(4), seconds=0.02)
    assert explorer.run() is not None
    assert explorer.cancel_button.disabled


def test_opens_without_arguments():
    assert list(BenchmarkExplorer().controls["models"].options) == ["FP32", "FP32 again", "INT8"]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (({"a": torch.abs},), {}, ValueError, "models together with the inputs"),
        (({}, torch.rand(2)), {}, ValueError, "entries is empty"),
        (({"a": 3}, torch.rand(2)), {}, TypeError, "entry 'a' must be a model or a function"),
        (({"a": torch.abs}, [1.0]), {}, TypeError, "needs a tensor or a tuple of tensors, got list"),
        (({"a": torch.abs}, torch.rand(0, 3)), {}, ValueError, r"needs a batch, got an input of shape \(0, 3\)"),
        (({"a": torch.abs}, torch.rand(2)), {"order": "at random"}, ValueError, "order cannot be 'at random'"),
        (({"a": torch.abs}, torch.rand(2)), {"runs": 4}, ValueError, "runs cannot be 4"),
    ],
)
def test_bad_input_is_refused_in_words(arguments, options, error, message):
    with pytest.raises(error, match=message):
        BenchmarkExplorer(*arguments, **options)
