import dataclasses
import io
import math
from types import SimpleNamespace

from qtutor.benchmark import Comparison, Flips, accuracy, compare, flips, intervals, size_bytes, timing
from qtutor.machine import describe
from qtutor.workflows import hide_torch_notices

import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

X = torch.arange(6.0).reshape(2, 3)
TORCH_NOTICES = (
    "ignore:torch.ao.quantization is deprecated",
    "ignore:Please use quant_min and quant_max",
    "ignore:torch.quantize_per_tensor, torch.quantize_per_channel",
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when an entry of `taking` runs."""
    clock = SimpleNamespace(now=0.0, order=[])
    monkeypatch.setattr(timing, "timer", lambda: clock.now)
    return clock


def taking(clock, seconds, name="", then=None):
    """An entry whose n-th run takes `seconds` or `seconds(n)` of the clock."""
    runs = iter(range(10**9))

    def run(*inputs):
        number = next(runs)
        clock.order.append(name)
        clock.now += seconds(number) if callable(seconds) else seconds
        if then:
            then(number)
        return inputs[0]

    return run


def fail(*inputs):
    raise OSError("no such kernel")


def test_latency_and_speedup_are_those_of_the_clock(clock):
    table = compare({"slow": taking(clock, 0.03), "fast": taking(clock, 0.002)}, X).table
    assert list(table.index) == ["slow", "fast"]
    assert table.index.name == "name"
    assert table["latency_ms"].tolist() == pytest.approx([30, 2])
    for column in ("speedup", "speedup_low", "speedup_high"):
        assert table[column].tolist() == pytest.approx([1, 15])


def test_a_disturbance_that_slows_every_entry_down_leaves_the_speedup_alone(clock):
    def disturbed(seconds):
        return lambda number: seconds * (3 if 1 < clock.now < 2 else 1)

    row = compare({"a": taking(clock, disturbed(0.04)), "b": taking(clock, disturbed(0.02))}, X).table.loc["b"]
    assert (row["speedup_low"], row["speedup_high"]) == pytest.approx((2, 2), rel=0.01)


def test_entries_take_turns_and_every_other_round_goes_backwards(clock):
    entries = {name: taking(clock, 0.1, name) for name in "abc"}
    compare(entries, X, repeats=4)
    assert clock.order[-12:] == list("abccbaabccba")


def test_slow_first_runs_do_not_count(clock):
    def compiles_then_settles(number):
        return {0: 20, 1: 0.3, 2: 0.1}.get(number, 0.01)

    comparison = compare({"a": taking(clock, compiles_then_settles)}, X)
    assert comparison.times["a"].max() == pytest.approx(10)


def test_the_time_budget_holds(clock):
    compare({"a": taking(clock, 0.013), "b": taking(clock, 0.007)}, X, seconds=1.5)
    assert 2.5 < clock.now <= 3 + 0.02  # and the first run of each


def test_a_measurement_whose_figures_nobody_reads_is_brief(clock, monkeypatch):
    monkeypatch.setenv("QTUTOR_MEASURE", "0.2")
    compare({"a": taking(clock, 0.013), "b": taking(clock, 0.007)}, X, seconds=1.5)
    assert 0.5 < clock.now <= 0.6 + 0.02


def test_slow_entries_get_the_rounds_that_the_interval_needs_or_three_times_the_budget(clock):
    comparison = compare({"a": taking(clock, 0.5)}, X, seconds=2)
    assert (len(comparison.times), comparison.confidence) == (8, 0.99)
    start = clock.now
    comparison = compare({"a": taking(clock, 1.3)}, X, seconds=2)
    assert clock.now - start <= 6 + 1.3
    assert comparison.confidence == 1 - 0.5 ** (len(comparison.times) - 1) < 0.99


def test_a_turn_in_which_every_run_stalls_is_cut_short(clock):
    warm = 7  # its first run, and the six after which it was no faster for five
    stalling = taking(clock, lambda number: 0.001 if number < warm else 0.25, "stalling")
    compare({"stalling": stalling, "quick": taking(clock, 0.001, "quick")}, X, repeats=3)
    assert clock.order.count("stalling") == warm + 3 * 2
    assert clock.order.count("quick") == warm + 3 * 10


def test_repeats_are_exactly_the_rounds(clock):
    comparison = compare({"a": taking(clock, 0.001), "b": taking(clock, 9)}, X, repeats=5)
    assert comparison.times.shape == (5, 2)


def test_progress_rises_to_one_and_can_stop_the_comparison(clock):
    seen = []
    compare({"a": taking(clock, 0.2)}, X, progress=seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] == 1

    def stop(fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare({"a": taking(clock, 0.2)}, X, progress=stop)


@given(st.integers(1, 120), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_an_interval_leaves_out_all_that_its_confidence_allows(rounds, confidence):
    def coverage(left_out):
        return 1 - 2 * scipy.stats.binom.cdf(left_out, rounds, 0.5)

    left_out = intervals.left_out(rounds, confidence)
    assert 0 <= 2 * left_out < max(rounds, 1)
    assert coverage(left_out) >= confidence or left_out == 0
    assert coverage(left_out + 1) < confidence


@pytest.mark.parametrize("entry", [fail, torch.abs])
def test_runs_without_gradients_on_fixed_threads_and_puts_the_number_back(entry):
    before, seen = torch.get_num_threads(), set()

    def spy(x):
        seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return entry(x)

    other = before + 1
    if entry is fail:
        with pytest.raises(RuntimeError, match="spy: OSError: no such kernel"):
            compare({"spy": spy}, X, threads=other)
    else:
        assert compare({"spy": spy}, X, threads=other, repeats=1).machine.threads == other
    assert seen == {(other, True)}
    assert torch.get_num_threads() == before


def test_a_failing_entry_keeps_a_row_and_the_others_their_results(clock):
    def breaks(number):
        if number == 30:
            raise OSError("worn out")

    entries = {
        "good": taking(clock, 0.02),
        "raises": fail,
        "worn": taking(clock, 0.02, then=breaks),
        "misshapen": lambda x: x[:1],
    }
    comparison = compare(entries, X)
    table = comparison.table
    assert table["error"].tolist()[:3] == ["", "OSError: no such kernel", "OSError: worn out"]
    assert "returns (1, 3), but good returns (2, 3)" in table["error"]["misshapen"]
    assert table["latency_ms"].notna().tolist() == [True, False, False, False]
    assert list(comparison.times) == ["good"]
    assert "raises failed: OSError: no such kernel" in str(comparison)


def test_if_the_first_entry_fails_there_is_no_speedup(clock):
    comparison = compare({"broken": fail, "good": taking(clock, 0.02)}, X)
    assert math.isnan(comparison.table["speedup"]["good"])
    assert comparison.table["latency_ms"]["good"] == pytest.approx(20)
    assert "no speed-up, because broken failed" in str(comparison)


def test_if_all_fail_the_error_names_each_of_them():
    with pytest.raises(RuntimeError, match="one: OSError: no such kernel; two: OSError: no such kernel"):
        compare({"one": fail, "two": fail}, X)


def test_an_input_on_another_device_is_an_error_that_names_the_entry():
    with pytest.raises(RuntimeError, match="net: ValueError: the model is on cpu, an input on meta"):
        compare({"net": nn.Linear(3, 1)}, X.to("meta"))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.Dropout()])
def test_a_model_in_training_mode_is_refused_untouched(layer):
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"net: ValueError: the model is in training mode .*\.eval\(\)"):
        compare({"net": layer}, X)
    with pytest.raises(ValueError, match="training mode"):
        accuracy(layer, [(X, torch.tensor([0, 1]))])
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("entries", "inputs", "options", "error", "message"),
    [
        ({}, X, {}, ValueError, "entries is empty"),
        ([("net", torch.abs)], X, {}, TypeError, "entries must be a dict .* got list"),
        (nn.Sequential(nn.ReLU()), X, {}, TypeError, "entries must be a dict .* got Sequential"),
        ({3: torch.abs}, X, {}, TypeError, "name of an entry must be text, got 3"),
        ({"net": X}, X, {}, TypeError, "entry 'net' must be a model or a function, got Tensor"),
        ({"net": torch.abs}, [X], {}, TypeError, "inputs must be a tensor or a tuple of tensors"),
        ({"net": torch.abs}, (), {}, TypeError, "inputs must be a tensor or a tuple of tensors"),
        ({"net": torch.abs}, X, {"repeats": 0}, ValueError, "repeats must be a whole number from 1 on, got 0"),
        ({"net": torch.abs}, X, {"repeats": 2.5}, TypeError, "repeats must be a whole number"),
        ({"net": torch.abs}, X, {"threads": 0}, ValueError, "threads must be a whole number from 1 on, got 0"),
        ({"net": torch.abs}, X, {"seconds": 0}, ValueError, "seconds must be a positive number"),
        ({"net": torch.abs}, X, {"seconds": math.nan}, ValueError, "seconds must be a positive number"),
        ({"net": torch.abs}, X, {"confidence": 1}, ValueError, "confidence must be between 0 and 1"),
        ({"net": torch.abs}, X, {"confidence": "high"}, TypeError, "confidence must be between 0 and 1"),
    ],
)
def test_bad_input_is_refused_in_words(entries, inputs, options, error, message):
    with pytest.raises(error, match=message):
        compare(entries, inputs, **options)


def test_several_inputs_and_nested_outputs():
    entries = {"stack": lambda x, y: {"sum": (x + y, x)}, "same": lambda x, y: {"sum": (y + x, y)}}
    assert compare(entries, (X, X), repeats=1).table["error"].tolist() == ["", ""]


def test_size_accuracy_and_memory_are_columns_when_asked_for():
    model = nn.Linear(3, 2)
    batches = [(X, torch.tensor([0, 1]))]
    plain = compare({"net": model, "function": lambda x: -model(x)}, X, repeats=1).table
    assert plain["size_mb"]["net"] == size_bytes(model) / 1e6
    assert math.isnan(plain["size_mb"]["function"])
    assert not {"peak_mb", "accuracy"} & set(plain)

    table = compare({"net": model, "other": lambda x: -model(x)}, X, repeats=1, loader=iter(batches), memory=True).table
    assert table["accuracy"]["net"] == accuracy(model, batches)
    assert table["accuracy"]["other"] == 1 - table["accuracy"]["net"]


def test_an_entry_may_say_itself_how_large_it_is():
    def run(x):
        return x

    run.size_bytes = 1_500_000
    assert compare({"file": run}, X, repeats=1).table["size_mb"]["file"] == 1.5


def test_peak_memory_is_what_the_tensors_of_a_run_take():
    table = compare({"run": lambda x: (torch.ones(5_000_000) + 1).sum()}, X, repeats=1, memory=True).table
    if table["peak_mb"].isna().all():
        pytest.skip("this system does not tell")
    assert table["peak_mb"]["run"] == pytest.approx(40, rel=0.1)


@pytest.fixture
def comparison(clock):
    entries = {"<float>": taking(clock, 0.03), "int8": taking(clock, 0.01), "broken": fail}
    return compare(entries, X, loader=None, repeats=9)


def test_shows_as_a_table_in_text_and_in_jupyter(comparison):
    text, html = str(comparison), comparison._repr_html_()
    for words in (
        *(comparison.machine.features or ()),
        "10 (10 to 10)",
        "3 (3 to 3)",
        "Medians of 9 rounds",
        torch.__version__,
    ):
        assert words in text
        assert words in html
    assert "&lt;float&gt;" in html
    assert "<float>" not in html


def test_a_comparison_is_frozen(comparison):
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison.table = None


def saved(model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return len(buffer.getvalue())


def test_size_is_that_of_the_saved_state():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64))
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert size_bytes(model) == saved(model)
    assert weights < size_bytes(model) < weights + 4000


@pytest.mark.filterwarnings(*TORCH_NOTICES)
def test_packed_int8_weights_count():
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic, quantize_fx

    before = torch.backends.quantized.engine
    convolutional = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(2304, 100)).eval()
    recurrent = nn.Sequential(nn.LSTM(64, 128))
    x = torch.rand(2, 3, 8, 8)
    try:
        torch.backends.quantized.engine = describe().engine
        prepared = quantize_fx.prepare_fx(convolutional, get_default_qconfig_mapping(), (x,))
        prepared(x)
        for full, int8 in (
            (convolutional, quantize_fx.convert_fx(prepared)),
            (recurrent, quantize_dynamic(recurrent, {nn.LSTM})),
        ):
            codes = sum(parameter.numel() for parameter in full.parameters())
            assert codes < size_bytes(int8) == saved(int8) < 1.1 * codes + 8000
            assert size_bytes(full) > 4 * codes
    finally:
        torch.backends.quantized.engine = before


@pytest.mark.filterwarnings(*TORCH_NOTICES)
def test_a_layer_with_two_names_counts_once():
    from qtutor.workflows import quantize_dynamic

    layer = nn.Linear(256, 256)
    for quantize in (nn.Sequential, quantize_dynamic):
        once, twice = size_bytes(quantize(nn.Sequential(layer))), size_bytes(quantize(nn.Sequential(layer, layer)))
        assert once <= twice < once + 200


def test_size_of_a_model_that_torchao_quantized_is_found_in_a_comparison_too():
    hide_torch_notices()
    torchao = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 32))
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    row = compare({"int8": model}, torch.rand(2, 64), repeats=1).table.loc["int8"]
    assert (row["error"], row["size_mb"]) == ("", saved(model) / 1e6)


def test_only_a_model_has_a_size():
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Module, got function"):
        size_bytes(fail)


def by_label(predictions):
    """A model that predicts `predictions[i]` for image i."""
    return lambda images: nn.functional.one_hot(torch.tensor(predictions)[images], 3).float()


LABELS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@given(st.data(), LABELS, st.integers(1, 7))
def test_accuracy_and_flips_agree_with_counting(data, labels, size):
    same_length = st.lists(st.integers(0, 2), min_size=len(labels), max_size=len(labels))
    first, second = data.draw(same_length), data.draw(same_length)
    loader = list(zip(torch.arange(len(labels)).split(size), torch.tensor(labels).split(size), strict=True))
    assert accuracy(by_label(first), loader) == sum(p == y for p, y in zip(first, labels, strict=True)) / len(labels)

    triples = list(zip(first, second, labels, strict=True))
    found = flips(by_label(first), by_label(second), iter(loader))
    assert found.images == len(labels)
    assert found.changed == sum(a != b for a, b, _ in triples)
    assert found.lost == sum(a == y != b for a, b, y in triples)
    assert found.gained == sum(a != y == b for a, b, y in triples)
    assert found.difference == pytest.approx(accuracy(by_label(second), loader) - accuracy(by_label(first), loader))


@given(st.integers(0, 300), st.integers(0, 300))
def test_p_value_is_mcnemars_exact_one(lost, gained):
    p_value = Flips(images=1000, changed=lost + gained, lost=lost, gained=gained).p_value
    expected = scipy.stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1
    assert p_value == pytest.approx(expected)


def test_says_whether_a_difference_may_be_chance():
    assert "-0.33 points may well be chance" in str(Flips(images=600, changed=9, lost=4, gained=2))
    assert "-3.3 points is unlikely to be chance" in str(Flips(images=600, changed=30, lost=22, gained=2))


def test_says_where_each_change_went():
    assert str(Flips(images=600, changed=0, lost=0, gained=0)) == "Of 600 predictions none changed."
    wrong = "Of 600 predictions 1 changed: 0 became wrong, 0 right, 1 went from wrong to wrong."
    assert str(Flips(images=600, changed=1, lost=0, gained=0)) == wrong
    assert "9 changed: 4 became wrong, 2 right, 3 went from wrong to wrong." in str(Flips(600, 9, 4, 2))
    assert "6 changed: 4 became wrong, 2 right. The difference" in str(Flips(600, 6, 4, 2))


def test_an_image_with_a_nan_score_counts_as_wrong():
    scores = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    assert accuracy(lambda images: scores, [(X, torch.tensor([1, 1]))]) == 0.5


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], ValueError, "the loader has no images"),
        ([X], TypeError, r"batch 0 of the loader must be \(images, labels\), got NoneType for labels"),
        ([(X, X)], ValueError, r"labels must be integers, .* got \(2, 3\) torch.float32"),
        ([(X, torch.tensor([1, 2, 0]))], ValueError, r"must return \(3, classes\) scores for 3 labels, got \(2, 3\)"),
        ([(X[0], torch.tensor([1, 2, 0]))], ValueError, r"must return \(3, classes\) .* got \(3,\)"),
    ],
)
def test_a_bad_loader_is_refused_in_words(loader, error, message):
    with pytest.raises(error, match=message):
        accuracy(torch.abs, loader)


@pytest.mark.parametrize(("shape", "join"), [((6,), torch.stack), ((6, 1), torch.cat), ((6, 1, 4, 3), torch.cat)])
def test_one_logit_is_no_class_and_the_advice_makes_two(shape, join):
    x = torch.randn(shape)
    truth = (x > 0).long() if shape == (6,) else (x > 0).long()[:, 0]
    with pytest.raises(
        ValueError, match=rf"of one logit x for each label, torch.{join.__name__}\(\[-x, x\], 1\) makes"
    ):
        accuracy(lambda x: x, [(x, truth)])
    assert accuracy(lambda x: join([-x, x], 1), [(x, truth)]) == 1


def test_pareto_joins_what_nothing_beats_and_leaves_failures_out(clock):
    from qtutor import plots

    entries = {"slow": taking(clock, 0.03), "slower": taking(clock, 0.04), "fast": taking(clock, 0.01), "broken": fail}
    table = compare(entries, X, repeats=3).table
    table["accuracy"] = [0.9, 0.8, 0.85, math.nan]
    comparison = Comparison(table, pd.DataFrame(), 0.99, describe(), {})
    front, *points = plots.pareto(comparison).data
    assert list(front.x) == pytest.approx([10, 30])
    assert [point.name for point in points] == ["1 slow", "2 slower", "3 fast"]
    assert [point.marker.color == "white" for point in points] == [False, True, False]


def test_pareto_without_accuracy_trades_size_and_needs_one_of_them():
    from qtutor import plots

    sized = compare({"net": nn.Linear(3, 3), "function": torch.abs}, X, repeats=1)
    assert [trace.name.split()[1] for trace in plots.pareto(sized).data[1:]] == ["net"]
    with pytest.raises(ValueError, match="no entry has a latency and a size_mb"):
        plots.pareto(compare({"function": torch.abs}, X, repeats=1))


DISTURBED = "disturbed, run it again when the computer is quiet."
SAME = "no difference that this measurement can tell."


def compared(confidence=0.99, **times):
    """A comparison with these times in ms, round by round."""
    times = pd.DataFrame(times)
    return Comparison(pd.DataFrame({"error": ""}, index=[*times, "lost"]), times, confidence, None, {})


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        ([5.0, 5.1] * 6, "1.98 times as fast as first (1.96 to 2.00): a gain."),
        ([20.0] * 12, "0.50 times as fast as first (0.50 to 0.50): a loss."),
        ([10.0, 9.9, 10.1] * 4, f"1.00 times as fast as first (0.99 to 1.01): {SAME}"),
        ([3.0, 30.0, 10.0] * 4, f"1.00 times as fast as first (0.33 to 3.33): {DISTURBED}"),
    ],
)
def test_a_finding_says_no_more_than_its_interval(second, outcome):
    assert compared(first=[10.0] * 12, second=second).finding("second") == f"second is {outcome}"


def test_too_few_rounds_are_no_finding():
    few = compared(confidence=0.5, first=[10.0, 10.0], second=[5.0, 5.0])
    assert few.finding("second").endswith(DISTURBED)


def test_two_entries_are_held_against_each_other_round_by_round():
    noisy = [10.0, 30.0, 20.0] * 4
    found = compared(first=[1.0] * 12, second=noisy, third=[0.9 * ms for ms in noisy])
    assert found.ratio("third", "second") == pytest.approx((1 / 0.9,) * 3)
    assert found.fastest(("second", "third")) == "third"  # though the intervals of their latencies overlap
    assert found.fastest() == "first"
    with pytest.raises(ValueError, match="there is no time of 'fourth': the entries are first, second, third, lost"):
        found.ratio("fourth")
    with pytest.raises(ValueError, match="none of these"):
        found.fastest(["lost"])


def test_what_cannot_be_told_from_the_fastest_is_named_with_it():
    assert compared(a=[10.0, 9.0] * 6, b=[9.8, 9.3] * 6, c=[20.0] * 12).fastest() in ("a, or b", "b, or a")


@pytest.mark.parametrize(
    ("flipped", "low", "high"),
    [
        (Flips(images=1000, changed=60, lost=40, gained=4), -0.0418, -0.0249),  # 4 of 44: 2.5 to 21.7 percent
        (Flips(images=597, changed=0, lost=0, gained=0), -0.0062, 0.0062),
        (Flips(images=100, changed=20, lost=10, gained=10), -0.0912, 0.0912),
    ],
)
def test_the_difference_of_two_accuracies_has_an_interval(flipped, low, high):
    assert flipped.interval() == pytest.approx((low, high), abs=1e-4)


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_interval_excludes_no_difference_where_mcnemar_says_that_it_is_no_chance(lost, gained):
    flipped = Flips(images=100, changed=lost + gained, lost=lost, gained=gained)
    low, high = flipped.interval()
    assert low <= flipped.difference <= high
    assert (low > 0 or high < 0) == (flipped.p_value < 0.05)
