"""Explorers without a browser: set a control, see state, figure and sentence follow."""

import asyncio
import dataclasses
import json
import math
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from qtutor import exercises
from qtutor.affine import fake_quantize, measure_error, sqnr
from qtutor.explorers import (
    AffineExplorer,
    DynamicRangeExplorer,
    FourBitExplorer,
    GranularityExplorer,
    OutlierExplorer,
)
from qtutor.manifest import LESSONS

import pytest
import torch
from controls import check_every_control
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thoroughness import examples


@pytest.fixture
def normal():
    return torch.randn(10_000, generator=torch.Generator().manual_seed(0))


def traces(explorer):
    return {(trace.name, trace.xaxis): trace for trace in explorer.figure.data}


def test_every_control_changes_state_figure_and_sentence(normal):
    explorer = AffineExplorer(normal)
    changes = {"bits": 3, "clip": (-1.0, 2.0), "value": -0.5, "symmetric": True, "signed": False}
    check_every_control(explorer, changes)


def test_several_controls_set_at_once_redraw_once(normal, monkeypatch):
    explorer = AffineExplorer(normal)
    drawn = []
    monkeypatch.setattr(explorer, "draw", drawn.append)
    explorer.set(bits=7, clip=(-2.0, 2.0), symmetric=True)
    assert len(drawn) == 1
    explorer.set(bits=7)
    assert len(drawn) == 1


def test_an_unknown_control_is_refused_by_name(normal):
    with pytest.raises(ValueError, match="no control named width: there are bits, clip"):
        AffineExplorer(normal).set(width=3)


def test_the_error_is_that_of_the_whole_tensor_and_the_staircase_is_the_map(normal):
    explorer = AffineExplorer(normal)
    explorer.set(bits=4, clip=(-2.0, 1.5))
    approximation = fake_quantize(normal, explorer.result.qparams)
    assert explorer.result.error.sqnr == pytest.approx(sqnr(normal, approximation), rel=1e-9)
    stairs = traces(explorer)["quantized", "x"]
    for x in torch.linspace(-2.4, 1.9, 29).tolist():
        level = [y for left, y in zip(stairs.x, stairs.y, strict=True) if left <= x][-1]
        assert level == pytest.approx(float(fake_quantize(torch.tensor(x), explorer.result.qparams)), abs=1e-6)


def test_all_figures_of_a_kernel_share_what_draws_them(normal):
    first, second = (AffineExplorer(normal).figure for _ in range(2))
    assert first.library is second.library
    assert len(first.library.source) > 1_000_000 > len(json.dumps(first.get_state(["_esm", "library"])))
    first.library.close()
    assert AffineExplorer(normal).figure.library.comm is not None


def test_the_bars_are_rounding_and_clipping_in_percent(normal):
    explorer = AffineExplorer(normal)
    explorer.set(clip=(-1.0, 1.0))
    error = measure_error(normal, explorer.result.qparams)
    rounding, clipping = traces(explorer)["error", "x3"].y
    assert rounding == pytest.approx(100 * error.rounding / error.signal)
    assert clipping == pytest.approx(100 * error.clipping / error.signal)


def test_the_quantized_histogram_holds_all_values(normal):
    explorer = AffineExplorer(normal)
    for bits in (2, 4, 8, 12, 16):
        explorer.set(bits=bits, clip=(-1.0, 1.0))
        after = traces(explorer)["after", "x2"]
        area = sum(y * (b - a) for y, a, b in zip(after.y, after.x, after.x[1:], strict=False))
        assert area == pytest.approx(1.0)
        assert len(after.x) <= 257


def test_fit_to_data_brings_the_clip_range_back(normal):
    explorer = AffineExplorer(normal)
    first = explorer.state
    explorer.set(clip=(-0.5, 0.5))
    next(w for w in explorer.children[0].children if w.description == "Fit to data").click()
    assert explorer.state == first


def test_the_sentence_states_what_was_computed(normal):
    explorer = AffineExplorer(normal)
    explorer.set(bits=5, clip=(-2.0, 2.0))
    text, result = explorer.sentence.text, explorer.result
    assert f"SQNR {result.error.sqnr:.1f} dB" in text
    assert f"gets code {result.code}," in text
    assert "measured on 10,000 values" in text


def test_numbers_in_the_sentence_have_no_power_of_ten():
    explorer = AffineExplorer(torch.linspace(-20_000, 1_000_000, 4001), bits=2)
    assert "e+" not in explorer.sentence.text
    assert "scale 340,000" in explorer.sentence.text


def test_of_a_large_tensor_spread_values_and_the_extremes_are_explored_and_the_sentence_says_so():
    x = torch.randn(1500, 1000, generator=torch.Generator().manual_seed(0))
    x[0, 1], x[7, 3] = -9.0, 11.0
    explorer = AffineExplorer(x)
    assert explorer.values.aminmax() == (-9.0, 11.0)
    assert "Error measured on 750,002 of 1,500,000 values." in explorer.sentence.text


@pytest.mark.parametrize("lesson", [each for each in LESSONS if each.explorer], ids=lambda lesson: lesson.explorer)
def test_the_documentation_names_each_control(lesson):
    explorer = exercises.opened(lesson)
    section = re.search(r"^    Controls:\n((?: {8}.*\n)+)", type(explorer).__doc__, re.MULTILINE)[1]
    names = re.findall(r"\w+", " ".join(re.findall(r"^ {8}(\w[\w, ]*):", section, re.MULTILINE)))
    if lesson.explorer == "IntegerExplorer":
        names.remove("depth")  # only of a convolution in three dimensions
    assert names == list(explorer.controls)


def test_states_of_one_explorer_are_one_class_by_its_name(normal):
    first, again = AffineExplorer(normal, bits=5), AffineExplorer(2 * normal, bits=5, clip=(-1.0, 1.0))
    again.set(**dataclasses.asdict(first.state))
    assert again.state == first.state
    assert repr(first.state).startswith("AffineState(bits=5, clip=")


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 2)], ids=str)
def test_any_shape_opens(shape):
    explorer = AffineExplorer(torch.ones(shape))
    assert explorer.sentence.text


def test_an_empty_tensor_is_refused():
    with pytest.raises(ValueError, match=r"AffineExplorer: the tensor of shape \(0, 3\) is empty"):
        AffineExplorer(torch.empty(0, 3))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 1e30])
def test_a_constant_tensor_works(value):
    explorer = AffineExplorer(torch.full((50,), value))
    explorer.set(bits=3, symmetric=True)
    assert math.isfinite(explorer.result.error.total)
    assert "nan" not in explorer.sentence.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        AffineExplorer(torch.tensor([1.0, bad]))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.arange(5), r"floating-point tensor, got a tensor of torch.int64.*\.float\(\)"),
        ([1.0, 2.0], r"needs a floating-point tensor, got list.*torch\.tensor"),
    ],
)
def test_what_is_not_a_float_tensor_is_refused_with_what_to_do(x, message):
    with pytest.raises(TypeError, match=message):
        AffineExplorer(x)


@pytest.mark.parametrize(
    "explore",
    [
        AffineExplorer,
        DynamicRangeExplorer,
        lambda x: FourBitExplorer(x, x),
        GranularityExplorer,
        lambda x: OutlierExplorer(x, x),
    ],
)
def test_a_tensor_changed_afterwards_does_not_change_the_explorer(explore):
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    first, again = explore(x), explore(x.clone())
    x.fill_(100.0)
    control = next(name for name, widget in first.controls.items() if type(widget).__name__ == "IntSlider")
    values = {control: first.controls[control].min}
    first.set(**values)
    again.set(**values)
    assert first.sentence.text == again.sentence.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 1}, "bits cannot be 1: it goes from 2 to 16"),
        ({"bits": 4.5}, "bits cannot be 4.5"),
        ({"symmetric": True, "clip": (2.0, -2.0)}, r"clip cannot be \(2.0, -2.0\)"),
        ({"value": 1e9}, "value cannot be"),
        ({"bits": None}, "bits cannot be None"),
        ({"bit": 4}, "no control named bit: there are bits, clip, value, symmetric, signed"),
    ],
    ids=str,
)
def test_what_a_control_cannot_take_is_refused_and_changes_nothing(normal, values, message):
    explorer = AffineExplorer(normal)
    before = explorer.state
    with pytest.raises(ValueError, match=message):
        explorer.set(**values)
    explorer.set(bits=before.bits)
    assert explorer.state == before
    with pytest.raises(ValueError, match=message):
        AffineExplorer(normal, **values)


def test_every_control_may_start_elsewhere(normal):
    explorer = AffineExplorer(normal, bits=6, clip=(-1.0, 1.0), signed=False)
    state = explorer.first_state
    assert (state.bits, state.clip, state.signed) == (6, (-1.0, 1.0), False)
    assert explorer.state == state


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.integers(2, 16),
    symmetric=st.booleans(),
    signed=st.booleans(),
    ends=st.tuples(st.floats(-4, 4), st.floats(-4, 4)),
    value=st.floats(-4, 4),
)
def test_no_state_breaks_it(normal, bits, symmetric, signed, ends, value):
    explorer = AffineExplorer(normal)
    explorer.set(bits=bits, symmetric=symmetric, signed=signed, clip=tuple(sorted(ends)), value=value)
    assert explorer.state.bits == bits
    assert "nan" not in explorer.sentence.text


def test_stale_events_are_dropped_while_the_page_draws(normal, monkeypatch):
    explorer = AffineExplorer(normal)
    drawn = []
    monkeypatch.setattr(explorer, "draw", lambda result: drawn.append(explorer.state.bits))

    async def drag():
        explorer.sentence.drawn = explorer.sentence.number  # a page has drawn the first update
        for bits in (5, 6, 7, 8):
            explorer.controls["bits"].value = bits
        assert drawn == [5]
        explorer.sentence.drawn = explorer.sentence.number
        assert drawn == [5, 8]

    asyncio.run(drag())


def test_a_page_that_never_answers_delays_but_does_not_stop_the_explorer(normal, monkeypatch):
    explorer = AffineExplorer(normal)
    explorer.patience = 0.05

    async def drag():
        explorer.sentence.drawn = explorer.sentence.number
        explorer.controls["bits"].value = 5
        explorer.controls["bits"].value = 6
        assert explorer.state.bits == 5
        await asyncio.sleep(0.2)
        assert explorer.state.bits == 6

    asyncio.run(drag())


def test_a_page_and_a_cell_at_once_never_mix_state_figure_and_sentence(normal, monkeypatch):
    explorer = AffineExplorer(normal)
    drawing, overlaps, draw = threading.Lock(), [], explorer.draw

    def slowly(result):
        alone = drawing.acquire(blocking=False)
        overlaps.append(not alone or result is not explorer.result)
        time.sleep(0.002)  # now the other thread may try
        draw(result)
        if alone:
            drawing.release()

    def page():
        for bits in (*range(5, 17), *range(2, 14)):
            explorer.controls["bits"].value = bits

    def cell():
        for i in range(24):
            explorer.set(clip=(-1 - i / 20, 2.0), symmetric=i % 2 == 0)

    monkeypatch.setattr(explorer, "draw", slowly)
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(page), threads.submit(cell)]:
            done.result()
    assert len(overlaps) > 24
    assert not any(overlaps)
    assert (explorer.state.bits, explorer.state.clip) == (13, (-2.15, 2.0))
    again = AffineExplorer(normal)
    again.set(**dataclasses.asdict(explorer.state))
    assert explorer.sentence.text == again.sentence.text
    assert explorer.figure.to_json() == again.figure.to_json()


def test_an_interrupted_computation_leaves_the_last_result_whole(normal, monkeypatch):
    explorer = AffineExplorer(normal)
    state, result = explorer.state, explorer.result

    def interrupt(state):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(explorer, "compute", interrupt)
        with pytest.raises(KeyboardInterrupt):
            explorer.set(bits=5)
    assert (explorer.state, explorer.result) == (state, result)
    explorer.set(bits=5)
    assert explorer.say(explorer.state, explorer.result) == explorer.sentence.text
    assert explorer.sentence.text.startswith("5 bits")
