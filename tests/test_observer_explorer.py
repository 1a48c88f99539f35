"""ObserverExplorer without a browser, against the observers themselves."""

from qtutor.affine import fake_quantize, grid, sqnr
from qtutor.explorers import ObserverExplorer
from qtutor.explorers.dynamic_range import FACTORS
from qtutor.explorers.observer import MOST_BATCHES, OBSERVERS
from qtutor.observers import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, PercentileObserver

import pytest
import torch
from controls import check_every_control
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thoroughness import examples

MAKE = {
    "min-max": MinMaxObserver,
    "moving average": MovingAverageMinMaxObserver,
    "percentile": PercentileObserver,
    "squared error": HistogramObserver,
    "entropy": lambda **options: HistogramObserver(criterion="entropy", **options),
}
strengths, batches = st.sampled_from(FACTORS), st.integers(1, 6)


@pytest.fixture(scope="module")
def stream():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, 50, generator=generator) + 0.3 for _ in range(6)]


def traces(explorer, name):
    return [trace for trace in explorer.figure.data if trace.name == name]


def test_every_control_changes_state_figure_and_sentence(stream):
    explorer = ObserverExplorer(stream, strength=10)
    changes = {"bits": 3, "hot_batch": 1, "strength": 50, "seen": 4}
    check_every_control(explorer, changes)


@settings(max_examples=examples(12), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seen=batches, hot_batch=batches, strength=strengths, bits=st.integers(2, 8), negative=st.booleans())
def test_ranges_are_those_of_the_observers_themselves(stream, seen, hot_batch, strength, bits, negative):
    stream = [-batch for batch in stream] if negative else stream
    explorer = ObserverExplorer(stream, seen=seen, hot_batch=hot_batch, strength=strength, bits=bits)
    everything = torch.cat(stream).flatten()
    hot = strength * everything[everything.abs().argmax()]
    quant_min, quant_max = grid(bits)
    for i, name in enumerate(OBSERVERS):
        observer = MAKE[name](quant_min=quant_min, quant_max=quant_max)
        for number, batch in enumerate(stream[:seen], start=1):
            is_hot = strength > 1 and number == hot_batch
            observer.observe(torch.cat([batch.flatten(), hot[None]]) if is_hot else batch)
        qparams = observer.qparams()
        assert float(explorer.result.qparams.scale[i, seen - 1]) == pytest.approx(float(qparams.scale), rel=1e-6)
        assert explorer.result.qparams.zero_point[i, seen - 1] == qparams.zero_point
        assert explorer.result.ranges[name] == pytest.approx((float(qparams.low), float(qparams.high)), rel=1e-6)
        measured = sqnr(everything, fake_quantize(everything, qparams))
        assert explorer.result.sqnr[name] == pytest.approx(measured, abs=0.3)  # estimated from bins, of few values


def test_a_hot_value_moves_min_max_for_ever_and_the_average_less_and_less():
    explorer = ObserverExplorer(strength=20, hot_batch=5)
    width = {name: traces(explorer, name)[0].y for name in OBSERVERS}
    assert (width["min-max"][4:] > 15 * width["min-max"][3]).all()
    jump = width["moving average"] / width["moving average"][3]
    assert 1.1 < jump[4] < 1.3
    assert (jump[5:] < jump[4]).all()
    assert (width["percentile"] < 1.5 * width["percentile"][3]).all()


def test_lines_end_at_the_batches_seen_and_show_width_and_sqnr(stream):
    explorer = ObserverExplorer(stream, seen=4)
    for name in OBSERVERS:
        width, quality = traces(explorer, name)
        assert list(width.x) == list(quality.x) == [1, 2, 3, 4]
        low, high = explorer.result.ranges[name]
        assert width.y[-1] == pytest.approx(high - low)
        assert quality.y[-1] == pytest.approx(explorer.result.sqnr[name])


def test_the_hot_batch_is_marked_only_while_there_is_a_hot_value(stream):
    explorer = ObserverExplorer(stream)
    assert not any(mark.visible for mark in explorer.figure.layout.shapes)
    explorer.set(strength=7, hot_batch=3)
    assert all(mark.visible and mark.x0 == mark.x1 == 3 for mark in explorer.figure.layout.shapes)


def test_the_sentence_says_what_was_computed_and_whether_the_hot_value_has_come(stream):
    explorer = ObserverExplorer(stream, strength=7, hot_batch=3, seen=2)
    assert "2 of 6 batches seen; a value 7 times the largest, in batch 3, is still to come" in explorer.sentence.text
    explorer.set(seen=3)
    assert "was among them" in explorer.sentence.text
    for name, decibels in explorer.result.sqnr.items():
        assert f"({decibels:.1f} dB)" in explorer.sentence.text.split(name, 1)[1]
    best = max(explorer.result.sqnr, key=explorer.result.sqnr.get)
    assert explorer.sentence.text.endswith(f"Best: {best}.")


def test_a_state_seen_before_gives_the_same_result_again(stream):
    explorer = ObserverExplorer(stream, strength=3)
    first = explorer.result.history.clone()
    explorer.set(strength=100, hot_batch=1)
    explorer.set(strength=3, hot_batch=explorer.first_state.hot_batch)
    assert torch.equal(explorer.result.history, first)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 1e30])
def test_a_constant_stream_works(value):
    explorer = ObserverExplorer([torch.full((5, 2), value)] * 3)
    explorer.set(strength=100, hot_batch=2, bits=4)
    assert "nan" not in explorer.sentence.text


@pytest.mark.parametrize("shapes", [[()], [(1,)], [(3, 1, 2), (7,)]], ids=str)
def test_batches_of_any_shape_and_number_open(shapes):
    explorer = ObserverExplorer([torch.ones(shape, dtype=torch.float64) for shape in shapes])
    assert f"{len(shapes)} of {len(shapes)} batches seen" in explorer.sentence.text


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.ones(4, 3), TypeError, r"sequence of batches.*x\.split"),
        (3, TypeError, "sequence of batches, got int"),
        ([torch.ones(3), torch.arange(3)], TypeError, "batch 2: .*torch.int64"),
        ([torch.ones(3), [1.0]], TypeError, "batch 2: .*got list"),
        ([torch.ones(3), torch.tensor([torch.nan])], ValueError, "batch 2: .*NaN"),
        ([], ValueError, "1 to 32 batches, got 0"),
        ([torch.empty(0, 2)], ValueError, "batch 1: .*empty"),
        ([torch.ones(3)] * (MOST_BATCHES + 1), ValueError, f"1 to {MOST_BATCHES} batches"),
    ],
)
def test_bad_streams_are_refused_with_the_batch_that_is_bad(bad, error, message):
    with pytest.raises(error, match=message):
        ObserverExplorer(bad)


@pytest.mark.parametrize("largest", [3e37, -2e38])
def test_a_stream_whose_hot_value_is_beyond_float32_is_refused(largest):
    with pytest.raises(ValueError, match=r"100 times the largest magnitude, .*, is beyond float32"):
        ObserverExplorer([torch.tensor([largest, 1.0])])


@pytest.mark.parametrize("start", [{"seen": 0}, {"seen": 4}, {"strength": 4}, {"hot_batch": 0}, {"bits": 9}])
def test_a_control_that_cannot_start_there_is_refused(start):
    with pytest.raises(ValueError, match=f"{next(iter(start))} cannot be"):
        ObserverExplorer([torch.ones(3)] * 3, **start)
