"""DynamicRangeExplorer without a browser, against PyTorch's own fake-quantize kernel."""

from qtutor.explorers import DynamicRangeExplorer
from qtutor.explorers.dynamic_range import FACTORS, MOST_ROWS, SCHEMES

import pytest
import torch
from controls import check_every_control
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thoroughness import examples


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 7, generator=generator) + 0.3


def traces(explorer, name):
    return [trace for trace in explorer.figure.data if trace.name == name]


def kept(values, seen, bits):
    """`values` on the grid that spans `seen` and zero, by PyTorch's observer and kernel."""
    observer = torch.ao.quantization.MinMaxObserver(
        dtype=torch.quint8, quant_min=0, quant_max=2**bits - 1, eps=torch.finfo(torch.float32).eps
    )
    observer(seen)
    scale, zero_point = observer.calculate_qparams()
    return torch.fake_quantize_per_tensor_affine(values, float(scale), int(zero_point), 0, 2**bits - 1)


def test_every_control_changes_state_figure_and_sentence(x):
    explorer = DynamicRangeExplorer(x, factor=10)
    changes = {"factor": 50, "shift": 0.5, "bits": 3, "row": 2}
    check_every_control(explorer, changes)


@pytest.mark.filterwarnings("ignore:\\s*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.integers(0, 4),
    factor=st.sampled_from(FACTORS),
    shift=st.integers(-8, 8).map(lambda n: n / 4),
    bits=st.integers(2, 8),
)
def test_each_scheme_keeps_what_pytorch_would_keep_of_your_row(x, row, factor, shift, bits):
    explorer = DynamicRangeExplorer(x, row=row, factor=factor, shift=shift, bits=bits)
    batch = x.clone()
    batch[(row + 1) % 5] *= factor
    batch = batch + shift * float(x.abs().max())
    torch.testing.assert_close(explorer.result.values, batch[row])
    torch.testing.assert_close(explorer.result.rows, torch.stack(batch.aminmax(dim=1)))
    for scheme, seen, stored in zip(SCHEMES, (x, batch, batch[row]), explorer.result.stored, strict=True):
        expected = kept(batch[row], seen, bits)
        step = explorer.result.ranges[scheme]
        # A value half-way between two codes may fall to either side.
        assert (stored - expected).abs().max() <= (step[1] - step[0]) / (2**bits - 1) * 1.001
        assert ((stored - expected).abs() < 1e-4 * batch.abs().max()).float().mean() > 0.7
        outside = (batch[row] < step[0]) | (batch[row] > step[1])
        assert explorer.result.clipped[scheme] <= int(outside.sum())


@given(factor=st.sampled_from(FACTORS), bits=st.integers(2, 8), shift=st.sampled_from([-1.0, 0.0, 0.6]))
@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_neighbour_never_moves_your_row_static_or_per_row(x, factor, bits, shift):
    moved = DynamicRangeExplorer(x, factor=factor, bits=bits, shift=shift).result.moved
    assert moved["static"] == moved["per row"] == 0
    assert moved["per tensor"] == 0 or factor > 1


def test_a_loud_neighbour_costs_your_row_twenty_decibels_for_each_factor_of_ten():
    generator = torch.Generator().manual_seed(0)
    explorer = DynamicRangeExplorer(torch.rand(2, 4000, generator=generator) * 2 - 1)
    quality = dict(zip(FACTORS, explorer.result.history.tolist(), strict=True))
    assert quality[1] - quality[10] == pytest.approx(20, abs=0.5)
    explorer.set(factor=10)
    assert explorer.result.sqnr["per tensor"] == pytest.approx(quality[10])
    assert explorer.result.sqnr["per row"] == pytest.approx(quality[1], abs=0.5)


def test_away_from_its_calibration_static_alone_clips(x):
    explorer = DynamicRangeExplorer(x, shift=1.5)
    assert explorer.result.clipped["static"] > 0
    assert explorer.result.clipped["per tensor"] == explorer.result.clipped["per row"] == 0


def test_the_picture_shows_ranges_stored_values_and_sqnr(x):
    explorer = DynamicRangeExplorer(x, factor=7, row=4)
    for i, scheme in enumerate(SCHEMES):
        assert tuple(traces(explorer, f"range, {scheme}")[0].x) == explorer.result.ranges[scheme]
        points, line = traces(explorer, scheme)
        order = explorer.result.values.argsort()
        assert points.x.tolist() == explorer.result.values[order].tolist()
        assert points.y.tolist() == explorer.result.stored[i, order].tolist()
        (mark,) = traces(explorer, f"{scheme}, now")
        assert (mark.x[0], mark.y[0]) == (7, pytest.approx(explorer.result.sqnr[scheme]))
        assert line.y[FACTORS.index(7)] == mark.y[0]
    low, high = explorer.result.rows[:, 0].tolist()  # the neighbour of the last row is the first
    assert traces(explorer, "neighbour")[0].x == (low, high, None)


def test_the_sentence_says_what_was_computed(x):
    explorer = DynamicRangeExplorer(x, factor=30, shift=1.0)
    text = explorer.sentence.text
    assert text.startswith("Row 0 of 5, its neighbour times 30, the batch shifted by ")
    for scheme in SCHEMES:
        part = text.split(f"{scheme} ", 1)[1]
        assert f"SQNR {explorer.result.sqnr[scheme]:.1f} dB, {explorer.result.clipped[scheme]} of 7" in part
    assert f"per tensor {explorer.result.moved['per tensor']:.2g}" in text


def test_a_wide_row_is_drawn_with_few_points():
    explorer = DynamicRangeExplorer(torch.linspace(-1, 1, 6000).view(2, 3000))
    assert all(len(trace.x) <= 300 for trace in explorer.figure.data)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 1e30])
def test_a_constant_batch_works(value):
    explorer = DynamicRangeExplorer(torch.full((3, 4), value))
    explorer.set(factor=100, shift=1.0, bits=2)
    assert "nan" not in explorer.sentence.text


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3, 4), (MOST_ROWS, 2)], ids=str)
def test_every_place_before_the_last_axis_is_a_row(shape):
    if len(shape) == 1:
        with pytest.raises(ValueError, match=r"2 to 64 rows, got 1"):
            DynamicRangeExplorer(torch.ones(shape))
        return
    explorer = DynamicRangeExplorer(torch.ones(shape, dtype=torch.float64))
    rows = torch.ones(shape).flatten(0, -2).shape[0]
    assert f"Row 0 of {rows}" in explorer.sentence.text


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([[1.0, 2.0]], TypeError, "DynamicRangeExplorer needs .*got list"),
        (torch.ones(3, 2, dtype=torch.int32), TypeError, "needs .*torch.int32"),
        (torch.tensor([[1.0], [torch.nan]]), ValueError, "DynamicRangeExplorer: .*NaN"),
        (torch.ones(0, 3), ValueError, r"shape \(0, 3\) is empty"),
        (torch.ones(3, 0), ValueError, r"shape \(3, 0\) is empty"),
        (torch.ones(MOST_ROWS + 1, 2), ValueError, f"2 to {MOST_ROWS} rows"),
        (torch.full((2, 2), 1e38), ValueError, "too large"),
    ],
)
def test_bad_batches_are_refused(bad, error, message):
    with pytest.raises(error, match=message):
        DynamicRangeExplorer(bad)


@pytest.mark.parametrize("start", [{"row": 5}, {"factor": 4}, {"shift": 3}, {"bits": 1}])
def test_a_control_that_cannot_start_there_is_refused(x, start):
    with pytest.raises(ValueError, match=f"{next(iter(start))} cannot be"):
        DynamicRangeExplorer(x, **start)
