import math

from qtutor.affine import Histogram, QParams, choose_qparams, grid, measure_error

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples

nan, inf = math.nan, math.inf
thorough = settings(max_examples=examples(150))
seeds = st.integers(0, 2**32)
grids = st.builds(lambda bits, signed: grid(bits, signed=signed), st.integers(2, 8), st.booleans())


def normal(count, generator):
    return torch.randn(count, generator=generator)


def heavy_tailed(count, generator):
    return torch.randn(count, generator=generator) / torch.randn(count, generator=generator).abs().add(0.01)


def with_outliers(count, generator):
    x = torch.randn(count, generator=generator)
    x[:: max(count // 20, 1)] *= 1000
    return x


shapes = {
    "normal": normal,
    "ReLU": lambda count, generator: normal(count, generator).relu(),
    "heavy-tailed": heavy_tailed,
    "outliers": with_outliers,
    "far from zero": lambda count, generator: normal(count, generator) + 100,
}


def make_values(shape, count, seed):
    return shapes[shape](count, torch.Generator().manual_seed(seed))


def fit(x, quant_range, keep):
    """QParams for the share `keep` of the range of x: below 1 it clips."""
    low, high = x.aminmax()
    return choose_qparams(low * keep, high * keep, quant_min=quant_range[0], quant_max=quant_range[1])


@settings(thorough, max_examples=examples(75))
@given(st.sampled_from(list(shapes)), grids, st.floats(0.01, 1.5), st.integers(2, 5000), seeds)
def test_error_stays_within_the_bound_of_the_bin_width(shape, quant_range, keep, count, seed):
    x = make_values(shape, count, seed)
    qparams = fit(x, quant_range, keep)
    histogram = Histogram.of(x, bins=4096)
    estimate, exact = histogram.error(qparams), measure_error(x, qparams)
    # The distance d to the grid changes no faster than x, so moving x by at most a bin's width w changes d**2 by
    # at most w (2 d + w); summed over n values, with Cauchy-Schwarz, by at most 2 w sqrt(n D) + n w**2. The margin on w
    # holds what float32 costs: x_hat is off by up to an eps of the largest value, 1 / 2048 of a bin.
    width = (histogram.high - histogram.low) / 4096 + 2e-7 * max(abs(histogram.low), abs(histogram.high))
    bound = 2 * width * math.sqrt(count * exact.total) + count * width**2
    assert abs(estimate.total - exact.total) <= bound
    assert estimate.count == exact.count == count
    assert estimate.signal == pytest.approx(exact.signal, rel=1e-9)
    # Only values that share a bin with an end of the range can be taken for clipped, or for kept, by mistake.
    ends = ((torch.tensor([quant_range[0] - 0.5, quant_range[1] + 0.5]) - qparams.zero_point) * qparams.scale).double()
    near = sum(int(((x - end).abs() <= width).sum()) for end in ends)
    assert abs(estimate.clipped - exact.clipped) <= near + 1e-6 * count


@pytest.mark.parametrize("keep", [0.3, 1.0])
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("shape", shapes)
def test_error_agrees_with_the_values_where_a_bin_is_a_fair_sample(shape, bits, keep):
    x = make_values(shape, 200_000, seed=5)
    qparams = fit(x, grid(bits), keep)
    histogram = Histogram.of(x)
    estimate, exact = histogram.error(qparams), measure_error(x, qparams)
    # Values spread evenly in a bin of width w err by 2 d w / sqrt(12) each, independently: the sum strays by
    # w sqrt(D / 3). Six such deviations; the second term is for the slope of the density and what float32 rounds.
    width = (histogram.high - histogram.low) / (1 << 16)
    tolerance = 6 * width * math.sqrt(exact.total / 3) + 1e-4 * exact.total + 200_000 * width**2
    assert abs(estimate.total - exact.total) <= tolerance
    assert estimate.sqnr == pytest.approx(exact.sqnr, abs=0.1)
    assert estimate.rounding + estimate.clipping == estimate.total


@thorough
@given(st.floats(-100, 100, width=32), st.integers(1, 50), grids, st.floats(0.01, 1.5))
def test_the_error_of_a_constant_is_exact(value, count, quant_range, keep):
    x = torch.full((count,), value)
    qparams = fit(x, quant_range, keep)
    estimate, exact = Histogram.of(x, bins=8).error(qparams), measure_error(x, qparams)
    # measure_error rounds x_hat and the histogram does not: by half an eps of x_hat each.
    slack = 1e-7 * abs(value)
    assert math.sqrt(estimate.total / count) == pytest.approx(math.sqrt(exact.total / count), rel=1e-6, abs=slack)
    assert estimate.signal == pytest.approx(exact.signal, rel=1e-12)
    assert estimate.count == count


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_are_counted_apart_and_cost_nothing(zero):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    alone = Histogram.of(values, bins=64)
    mixed = Histogram.of(torch.cat([values, torch.full((5000,), zero)]), bins=64)
    qparams = QParams(0.5, 3, 0, 7)
    assert torch.equal(mixed.counts, alone.counts)
    assert (mixed.zeros, mixed.count, alone.zeros) == (5000, 6000, 0)
    assert mixed.error(qparams).total == alone.error(qparams).total
    assert Histogram.of(torch.zeros(9)).error(qparams).total == 0.0


@thorough
@given(st.sampled_from(list(shapes)), st.integers(1, 3000), st.integers(1, 100), seeds)
def test_each_value_is_counted_once_in_a_bin_that_holds_it(shape, count, bins, seed):
    x = make_values(shape, count, seed)
    histogram = Histogram.of(x, bins=bins)
    assert histogram.count == count
    assert (histogram.counts >= 0).all()
    assert len(histogram.centres) == bins == len(histogram.edges) - 1
    assert (histogram.edges[0], histogram.edges[-1]) == tuple(v.double() for v in x.aminmax())
    below = torch.stack([(x.double() <= edge + 1e-9 * x.abs().max()).sum() for edge in histogram.edges[1:]])
    nonzero_below = torch.stack([((x != 0) & (x.double() < edge)).sum() for edge in histogram.edges[1:]])
    assert (histogram.counts.cumsum(0) <= below).all()
    assert bins == 1 or (histogram.counts.cumsum(0) >= nonzero_below - (x == x.max()).sum()).all()


def test_a_bin_counts_beyond_the_integers_of_float32():
    count = (1 << 24) + 5
    x = torch.full((2 * count,), 0.5)
    x[:2] = torch.tensor([-1.0, 1.0])
    assert Histogram.of(x, bins=4).counts.tolist() == [1, 0, 0, 2 * count - 1]


def test_ranges_that_float32_cannot_subtract_are_binned():
    histogram = Histogram.of(torch.tensor([-3e38, -1e38, 3e38]), bins=3)
    assert histogram.counts.tolist() == [1, 1, 1]


def test_the_shortest_range_there_is_keeps_its_bins():
    histogram = Histogram.of(torch.tensor([1.0, 1.0 + 2**-23]))
    assert (histogram.edges.diff() > 0).all()
    # Both values lie within 2**-23 of a code: so does every bin.
    assert 0 <= histogram.error(QParams(0.25, 0, -128, 127)).total <= 2 * 2.0**-46


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_is_binned_as_float32(dtype):
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, expected = Histogram.of(x.mT, bins=16), Histogram.of(x.float(), bins=16)
    assert torch.equal(ours.counts, expected.counts)
    assert (ours.low, ours.high, ours.zeros) == (expected.low, expected.high, expected.zeros)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: Histogram.of([1.0]), TypeError, "floating-point tensor, got list"),
        (
            lambda: Histogram.of(torch.zeros(3, dtype=torch.int64)),
            TypeError,
            "floating-point tensor, got a tensor of torch.int64",
        ),
        (lambda: Histogram.of(torch.zeros(3), bins=0), ValueError, "at least one bin, got 0"),
        (lambda: Histogram.of(torch.zeros(0)), ValueError, r"Histogram: the tensor of shape \(0,\) is empty"),
        (lambda: Histogram.of(torch.tensor([0.0, nan])), ValueError, "Histogram: 1 of 2 values are NaN or infinite"),
        (lambda: Histogram.of(torch.tensor([0.0, inf])), ValueError, "Histogram: 1 of 2 values are NaN or infinite"),
        (
            lambda: Histogram.of(torch.ones(3)).error(QParams(torch.ones(3), 0, 0, 1)),
            ValueError,
            r"per tensor, got a scale",
        ),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
