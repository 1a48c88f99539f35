import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from qtutor.affine import QParams, choose_qparams, measure_error, quantize, scale_and_zero_point
from qtutor.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PercentileObserver,
    StreamingHistogram,
    observing,
    rounding_outputs,
    squared_error,
)

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from thoroughness import examples
from torch import nn
from torch.ao.quantization import observer as oracle

OBSERVERS = [
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PercentileObserver,
    HistogramObserver,
    lambda **kwargs: HistogramObserver(criterion="entropy", **kwargs),
]
every_observer = pytest.mark.parametrize("make", OBSERVERS, ids=["minmax", "average", "percentile", "mse", "entropy"])

values = st.floats(-(2.0**80), 2.0**80, width=32, allow_subnormal=False)
streams = st.lists(st.lists(values, min_size=12, max_size=12), min_size=1, max_size=5).map(
    lambda batches: [torch.tensor(batch).reshape(2, 3, 2) for batch in batches]
)


def seen(observer, *batches):
    for batch in batches:
        assert observer.observe(batch) is batch
    return observer


def samples(name, n=100_000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, generator=generator)
    uniform = torch.rand(n, generator=generator)
    if name == "outliers":
        return torch.where(uniform < 1e-4, 50 * normal, normal)
    return {
        "normal": normal,
        "laplace": -(2 * uniform - 1).sign() * (1 - (2 * uniform - 1).abs()).log(),
        "relu": normal.relu(),
        "student": normal / torch.randn(n, 3, generator=generator).square().mean(dim=1).sqrt(),
        "shifted": normal + 5,
        "gelu": nn.functional.gelu(2 * normal),
    }[name]


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("symmetric", [False, True])
@settings(max_examples=examples(40))
@given(stream=streams, unsigned=st.booleans())
def test_min_max_qparams_equal_pytorchs(average, axis, symmetric, stream, unsigned):
    name = ("MovingAverage" if average else "") + ("PerChannel" if axis is not None else "") + "MinMaxObserver"
    scheme = f"per_{'tensor' if axis is None else 'channel'}_{'symmetric' if symmetric else 'affine'}"
    theirs = getattr(oracle, name)(
        dtype=torch.quint8 if unsigned else torch.qint8,
        qscheme=getattr(torch, scheme),
        **({} if axis is None else {"ch_axis": axis}),
    )
    grid = {"quant_min": 0, "quant_max": 255} if unsigned else {}
    ours = (MovingAverageMinMaxObserver if average else MinMaxObserver)(axis=axis, symmetric=symmetric, **grid)
    for batch in stream:
        theirs(batch)
    qparams = seen(ours, *stream).qparams()
    scale, zero_point = theirs.calculate_qparams()
    assert torch.equal(qparams.scale.flatten(), scale)
    assert torch.equal(qparams.zero_point.flatten().to(torch.int64), zero_point.to(torch.int64))


@example(stream=[torch.zeros(2, 3, 2), torch.ones(2, 3, 2)], bins=16)
@given(stream=streams, bins=st.sampled_from([16, 1024]))
def test_the_counts_do_not_depend_on_the_batches(stream, bins):
    def counted(batches):
        stream = StreamingHistogram(2, bins)
        for rows in batches:
            stream.add(rows, rows.amin(dim=1), rows.amax(dim=1))
        return stream

    batches = [batch.reshape(2, -1) for batch in stream]
    once, streamed = counted([torch.cat(batches, dim=1)]), counted(batches)
    assert int(once.counts.sum() + once.zeros.sum()) == 12 * len(stream)
    for name in ("counts", "zeros", "low", "high", "width", "first"):
        assert torch.equal(getattr(once, name), getattr(streamed, name)), name


@pytest.mark.parametrize("rows", [1, 3])
def test_many_values_are_counted_one_by_one(rows):
    x = samples("outliers", rows * 200_001).reshape(rows, -1).relu()
    stream = StreamingHistogram(rows, 64)
    stream.add(x, x.amin(dim=1), x.amax(dim=1))
    edges = stream.edges() * stream.width
    for row in range(rows):
        nonzero = x[row][x[row] > 0].to(torch.float64)
        index = torch.searchsorted(edges[row].contiguous(), nonzero, right=True) - 1
        assert torch.equal(stream.counts[row], torch.bincount(index, minlength=128))
        assert int(stream.zeros[row]) == x.shape[1] - len(nonzero)


@every_observer
def test_what_becomes_of_a_batch_after_it_was_observed_does_not_count(make):
    batch = samples("normal", 1000)
    observer = seen(make(), batch)
    expected = seen(make(), batch.clone()).qparams()
    batch.zero_()
    assert observer.qparams() == expected


@every_observer
def test_inference_mode_may_come_and_go(make):
    batches = samples("normal").split(len(samples("normal")) // 4)
    observer, plain = make(), seen(make(), *batches)
    for i, batch in enumerate(batches):
        with torch.inference_mode(i % 2 == 0):
            observer.observe(batch * 1.0)
    assert observer.qparams() == plain.qparams()
    assert not any(end.is_inference() for end in observer.range())


def test_threads_may_observe_at_the_same_time():
    batches = [samples(name) for name in ("normal", "laplace", "student", "outliers")]
    with ThreadPoolExecutor(len(batches)) as pool:
        together = list(pool.map(lambda batch: seen(HistogramObserver(), *[batch] * 20).qparams(), batches))
    assert together == [seen(HistogramObserver(), *[batch] * 20).qparams() for batch in batches]


@given(stream=streams, percentile=st.floats(1, 100), symmetric=st.booleans())
def test_percentiles_are_within_a_bin_of_torch_quantile(stream, percentile, symmetric):
    observer = seen(PercentileObserver(percentile=percentile, symmetric=symmetric), *stream)
    x = torch.cat(stream).flatten().to(torch.float64)
    low, high = observer.range()
    tail = (1 - percentile / 100) / 2
    if symmetric:
        expected = torch.quantile(x.abs(), 1 - 2 * tail)
        expected = (-expected, expected)
    else:
        expected = (torch.quantile(x, tail), torch.quantile(x, 1 - tail))
    span = max(float(x.max() - x.min()), float(x.abs().max()) * 2**-20)  # float32 tells no more apart
    width = max(span / 4096, 2**-60)  # no bin is narrower
    assert abs(low - expected[0]) <= width
    assert abs(high - expected[1]) <= width


def test_percentile_clips_only_the_upper_tail_after_relu():
    low, high = seen(PercentileObserver(percentile=99), samples("relu")).range()
    assert quantize(torch.zeros(1), seen(PercentileObserver(), samples("relu")).qparams()).item() == -128
    assert low == pytest.approx(0, abs=1e-2)
    assert high == pytest.approx(2.576, abs=0.05)  # the normal distribution's 99.5 percentile


def integrated_error(counts, edges, qparams):
    """The squared error of values that are spread evenly within each bin, by its integral over each.

    With u = x / s and L and H the codes at the ends of the grid less the zero point: inside the grid the integral of
    (u - round(u))**2 is round(u) / 12 + (u - round(u))**3 / 3, beyond it that of (u - H)**2 or (u - L)**2 is added.
    """
    scale = float(qparams.scale)
    lowest, highest = qparams.quant_min - int(qparams.zero_point), qparams.quant_max - int(qparams.zero_point)
    u = edges.double() / scale
    inside = u.clamp(lowest - 0.5, highest + 0.5)
    nearest = inside.round()
    above, below = (u - highest).clamp(min=0.5), (u - lowest).clamp(max=-0.5)
    integral = nearest / 12 + ((inside - nearest) ** 3 + above**3 + below**3) / 3
    return float((counts / u.diff()) @ integral.diff()) * scale**2


@given(
    low=st.floats(-2, 0),
    high=st.floats(0.1, 2),
    zeros=st.integers(0, 50),
    symmetric=st.booleans(),
    bits=st.integers(2, 8),
)
def test_the_streamed_error_equals_the_histograms_closed_form(low, high, zeros, symmetric, bits):
    x = torch.cat([torch.linspace(-1, 1 - 2**-14, 1 << 15), torch.zeros(zeros)])
    stream = StreamingHistogram(1, 16)
    stream.add(x[None], x.amin()[None], x.amax()[None])
    counts = stream.counts[0].to(torch.float64)
    first, width = float(stream.first), float(stream.width)
    edges = (first + torch.arange(len(counts) + 1)) * width
    grid = {"quant_min": -(2 ** (bits - 1)), "quant_max": 2 ** (bits - 1) - 1, "symmetric": symmetric}
    ends = torch.tensor([[low]]), torch.tensor([[high]])
    estimate = squared_error(stream)(*scale_and_zero_point(*ends, **grid), grid["quant_min"], grid["quant_max"])
    expected = integrated_error(counts, edges, choose_qparams(low, high, **grid))
    assert float(estimate) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "student", "outliers", "shifted", "gelu"])
def test_squared_error_is_at_most_that_of_pytorchs_range(name, symmetric):
    batches = samples(name).split(20_000)
    theirs = oracle.HistogramObserver(
        dtype=torch.qint8, qscheme=torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    )
    for batch in batches:
        theirs(batch)
    scale, zero_point = theirs.calculate_qparams()
    ours = measure_error(samples(name), seen(HistogramObserver(symmetric=symmetric), *batches).qparams())
    assert ours.total <= measure_error(samples(name), QParams(scale[0], zero_point[0], -128, 127)).total * (1 + 1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["normal", "student", "relu"])
def test_no_range_on_a_fine_grid_beats_the_one_found_by_squared_error(name, bits):
    x = samples(name, 20_000)
    grid = {"quant_min": -(2 ** (bits - 1)), "quant_max": 2 ** (bits - 1) - 1, "symmetric": True}
    found = measure_error(x, seen(HistogramObserver(**grid), x).qparams()).total
    ranges = x.abs().max() * torch.linspace(0.01, 1, 200)
    best = min(measure_error(x, choose_qparams(-r, r, **grid)).total for r in ranges)
    assert found <= best * 1.005


@pytest.mark.parametrize("criterion", ["mse", "entropy"])
def test_an_outlier_wrecks_min_max_and_not_the_histogram(criterion):
    grid, clean = {"quant_min": -8, "quant_max": 7}, samples("normal")
    x = torch.cat([clean, torch.tensor([20.0])])
    wrecked = measure_error(clean, seen(MinMaxObserver(**grid), x).qparams()).sqnr
    assert measure_error(clean, seen(HistogramObserver(criterion=criterion, **grid), x).qparams()).sqnr > wrecked + 6


def test_entropy_ignores_the_zeros_of_a_relu_where_naive_entropy_clips_too_much():
    x = (samples("normal") - 2).relu()
    naive = x.clamp(min=1e-9)  # what a histogram that does not tell zeros apart would see
    _, high = seen(HistogramObserver(criterion="entropy", symmetric=True), x).range()
    _, naive_high = seen(HistogramObserver(criterion="entropy", symmetric=True), naive).range()
    _, alone = seen(HistogramObserver(criterion="entropy", symmetric=True), x[x > 0]).range()
    assert naive_high < high / 2
    assert high == alone


def divergence(counts, code_of):
    """Migacz 2017, bin by bin: all that is clipped goes to the last bin, and each code evens out what it holds.

    The paper does not say what becomes of empty bins. Here a code fills only those of its bins that
    hold something, and what is clipped goes to the last of these: else most candidates are infinite.
    """
    inside = [i for i in range(len(code_of)) if counts[i] > 0]
    held, bins = Counter(), Counter(code_of[i] for i in inside)
    for i in inside:
        held[code_of[i]] += int(counts[i])
    clipped = int(counts[len(code_of) :].sum())
    total, kept, divergence = int(counts.sum()), sum(held.values()), 0.0
    for i in inside:
        p = (int(counts[i]) + (clipped if i == inside[-1] else 0)) / total
        q = held[code_of[i]] / bins[code_of[i]] / kept
        divergence += p * math.log(p / q)
    return divergence


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "student", "outliers"])
def test_entropy_finds_what_the_published_search_finds_bin_by_bin(name, seed):
    x = samples(name, seed=seed)
    x = x[x != 0]  # zeros have a code of their own and stand apart
    low, high = seen(HistogramObserver(criterion="entropy", symmetric=True), *x.split(10_000)).range()
    x = x.abs().double().numpy()
    width = 2.0 ** (math.floor(math.log2(x.max() / 2046)) + 1)  # at most 2048 bins, as wide as a power of two
    counts = np.bincount(np.floor(x / width).astype(int))
    found = math.ceil(max(-float(low), float(high)) / width - 1e-3)  # bins

    def nearest(kept):  # a bin belongs to the code that its middle is rounded to, as the quantizer does
        return [round((i + 0.5) * 127.5 / min(kept, x.max() / width)) for i in range(kept)]

    candidates = {round(256 * (len(counts) / 256) ** (i / 48)) for i in range(49)}
    least = min(divergence(counts, nearest(kept)) for kept in candidates)
    assert divergence(counts, nearest(found)) <= least * (1 + 1e-6)

    # The paper cuts the range into 128 even codes and tries every bin. Against 49 candidates and codes of which
    # the one at zero is half as wide, chance in single bins of a thin tail is worth up to twice, wrong ranges more.
    every = {found, *range(256, len(counts) + 1, 4)}
    published = {kept: divergence(counts, [i * 128 // kept for i in range(kept)]) for kept in every}
    assert published[found] <= 2 * min(published.values())
    assert max(published.values()) > 4 * min(published.values())


@every_observer
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_channel_equals_one_observer_a_channel(make, axis):
    x = (
        torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 9.0, 0.01])[:, None, None]
    )
    x = x[..., :5] if axis == -1 else x
    qparams = seen(make(axis=axis), x, 2 * x).qparams()
    assert qparams.scale.shape == tuple(n if i == axis % 3 else 1 for i, n in enumerate(x.shape))
    for channel, (scale, zero_point) in enumerate(
        zip(qparams.scale.flatten(), qparams.zero_point.flatten(), strict=True)
    ):
        alone = seen(make(), x.select(axis, channel), 2 * x.select(axis, channel)).qparams()
        assert alone == QParams(scale, zero_point, -128, 127)


@every_observer
def test_channels_on_one_side_of_zero_equal_one_observer_a_channel_among_others(make):
    x = torch.randn(8, 400, generator=torch.Generator().manual_seed(0))
    grid = {"quant_min": -8, "quant_max": 7}
    x[1::4].abs_()
    x[2::4] = -x[2::4].abs()
    qparams = seen(make(axis=0, **grid), x).qparams()
    alone = [seen(make(**grid), row).qparams() for row in x]
    assert qparams.scale.flatten().tolist() == [float(each.scale) for each in alone]
    assert qparams.zero_point.flatten().tolist() == [int(each.zero_point) for each in alone]


@every_observer
def test_per_group_equals_per_channel_of_the_groups(make):
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    qparams = seen(make(group_size=4, symmetric=True, quant_min=-8, quant_max=7), weight).qparams()
    groups = seen(make(axis=0, symmetric=True, quant_min=-8, quant_max=7), weight.view(12, 4)).qparams()
    assert qparams.scale.shape == (6, 2, 1)
    assert torch.equal(qparams.scale.flatten(), groups.scale.flatten())
    assert torch.equal(qparams.zero_point.flatten(), groups.zero_point.flatten())
    quantize(weight.view(6, 2, 4), qparams)


@pytest.mark.parametrize("make", [PercentileObserver, HistogramObserver])
def test_many_channels_are_searched_in_parts_and_stay_in_order(make):
    x = torch.randn(300, 400, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 301)[:, None]
    scale = seen(make(axis=0), x).qparams().scale[:, 0]
    ratio = scale / seen(MinMaxObserver(axis=0), x).qparams().scale[:, 0]
    assert ((ratio > 0.5) & (ratio <= 1.01)).all()


@every_observer
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-30, 3e30])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_constant_costs_at_most_half_a_step(make, value, symmetric):
    x = torch.full((3, 7), value)
    qparams = seen(make(symmetric=symmetric), x).qparams()
    assert measure_error(x, qparams).total <= 21 * (float(qparams.scale) * 0.51) ** 2


@every_observer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_point_dtype_is_observed_as_float32(make, dtype):
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert seen(make(), x).qparams() == seen(make(), x.to(torch.float32)).qparams()


@every_observer
@pytest.mark.parametrize(
    ("kwargs", "bad", "error", "message"),
    [
        ({}, torch.empty(0, 3), ValueError, r"\(0, 3\) is empty"),
        ({}, torch.tensor([1.0, torch.nan]), ValueError, "1 of the 2 values of a tensor of shape .2,. are NaN"),
        ({}, torch.tensor([torch.inf, 1.0]), ValueError, "infinite"),
        ({}, torch.tensor([1e300], dtype=torch.float64), ValueError, "beyond float32"),
        (
            {},
            torch.arange(3),
            TypeError,
            r"floating-point tensor, got a tensor of torch.int64: convert it",
        ),
        ({}, [1.0], TypeError, "got list"),
        ({}, torch.eye(3).to_sparse(), TypeError, r"dense tensor, got torch.sparse_coo: convert it with .to_dense"),
        ({"axis": 0}, torch.ones(3, 4), ValueError, r"qparams of shape \(2, 1\).*\(3, 4\) needs \(3, 1\)"),
        ({"axis": 0}, torch.ones(2, 4, 1), ValueError, r"needs \(2, 1, 1\)"),
        ({"axis": 1}, torch.ones(4), ValueError, r"axis=1 is not an axis of a tensor of shape \(4,\)"),
        ({"group_size": 2}, torch.ones(2, 3), ValueError, r"a multiple of it, got \(2, 3\)"),
        ({"group_size": 2}, torch.ones(2, 4, 1), ValueError, r"\(out, in\)"),
    ],
)
def test_bad_batches_are_refused_and_leave_no_trace(make, kwargs, bad, error, message):
    good = torch.tensor([[-1.0, 2.0, 0.0, 0.5], [3.0, 0.25, -0.5, 1.0]])
    observer = seen(make(**kwargs), good)
    with pytest.raises(error, match=message) as caught:
        observer.observe(bad)
    assert type(observer).__name__ in str(caught.value)
    assert observer.qparams() == seen(make(**kwargs), good).qparams()
    assert seen(observer, good).qparams() == seen(make(**kwargs), good, good).qparams()


@every_observer
def test_qparams_before_observe_are_refused(make):
    with pytest.raises(RuntimeError, match="Observer has observed nothing"):
        make().qparams()


@pytest.mark.parametrize("make", [PercentileObserver, HistogramObserver])
def test_a_histogram_before_observe_is_refused(make):
    with pytest.raises(RuntimeError, match="Observer has observed nothing"):
        _ = make().histogram


@every_observer
def test_a_range_wider_than_float32_is_refused_on_an_asymmetric_grid_only(make):
    x = torch.tensor([-3e38, 0.0, 1.0, 3e38])
    with pytest.raises(ValueError, match="wider than float32"):
        seen(make(), x).qparams()
    assert seen(make(symmetric=True), x).qparams().scale > 1e36


@pytest.mark.parametrize(
    ("make", "kwargs", "error", "message"),
    [
        (MinMaxObserver, {"axis": 0, "group_size": 4}, ValueError, "not both"),
        (MinMaxObserver, {"axis": 0.5}, TypeError, "axis must be a whole number"),
        (MinMaxObserver, {"group_size": 0}, ValueError, "group_size must be at least 1"),
        (MinMaxObserver, {"quant_min": 3, "quant_max": 3}, ValueError, "quant_min must be below"),
        (PercentileObserver, {"percentile": 0}, ValueError, r"PercentileObserver: percentile must be in \(0, 100\]"),
        (PercentileObserver, {"percentile": 100.1}, ValueError, "got 100.1"),
        (PercentileObserver, {"percentile": float("nan")}, ValueError, "got nan"),
        (PercentileObserver, {"percentile": "99"}, TypeError, "percentile must be a number, got '99'"),
        (HistogramObserver, {"criterion": "kl"}, ValueError, "'mse' or 'entropy', got 'kl'"),
        (MovingAverageMinMaxObserver, {"averaging_constant": 0}, ValueError, r"in \(0, 1\], got 0"),
        (MovingAverageMinMaxObserver, {"averaging_constant": 1.5}, ValueError, "got 1.5"),
        (MovingAverageMinMaxObserver, {"averaging_constant": None}, TypeError, "averaging_constant must be a number"),
    ],
)
def test_bad_settings_are_refused(make, kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 2)))


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_observing_sees_outputs_or_inputs_and_changes_nothing(model):
    x = torch.randn(7, 3)
    expected, hidden = model(x), model[:2](x)
    with observing(model, {"1": MinMaxObserver(), "2.0": MinMaxObserver()}) as outputs:
        assert torch.equal(model(x), expected)
    with observing(model, {"0": MinMaxObserver(), "2.0": MinMaxObserver()}, inputs=True) as inputs:
        model(x)
    assert outputs["1"].qparams() == inputs["2.0"].qparams() == seen(MinMaxObserver(), hidden).qparams()
    assert inputs["0"].qparams() == seen(MinMaxObserver(), x).qparams()
    assert outputs["2.0"].qparams() == seen(MinMaxObserver(), expected).qparams()
    assert hooks(model) == 0


def test_observing_removes_its_hooks_after_an_error(model):
    with pytest.raises(ValueError, match=r"observing layer '0': MinMaxObserver.*NaN"):  # noqa: SIM117
        with observing(model, {"0": MinMaxObserver()}):
            model(torch.full((1, 3), torch.nan))
    assert hooks(model) == 0


def test_observing_an_unknown_layer_names_near_ones(model):
    with (
        pytest.raises(ValueError, match=r"no layer '2\.1'; near it are .*'2\.0'"),
        observing(model, {"0": MinMaxObserver(), "2.1": MinMaxObserver()}),
    ):
        pass
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("observers", "error", "message"),
    [
        (["0"], TypeError, "dict from names of layers to observers, got list"),
        ({"0": MinMaxObserver}, TypeError, r"layer '0' needs an observer such as .*, got the class MinMaxObserver"),
        ({"0": 3}, TypeError, "layer '0' needs an observer such as .*, got int"),
        ({0: MinMaxObserver()}, ValueError, "no layer 0; near it are '0'"),
    ],
)
def test_observing_with_something_else_than_observers_says_so(model, observers, error, message):
    with pytest.raises(error, match=message), observing(model, observers):
        pass
    with pytest.raises(TypeError, match=r"ReLU is a class, pass ReLU\(\.\.\.\)"), observing(nn.ReLU, {}):
        pass


def test_observing_a_layer_that_returns_a_tuple_says_so():
    model = nn.LSTM(3, 4)
    with (
        pytest.raises(TypeError, match=r"output of layer '' \(LSTM\) is a tuple, not a tensor"),
        observing(model, {"": MinMaxObserver()}),
    ):
        model(torch.randn(2, 1, 3))
    with observing(model, {"": MinMaxObserver()}, inputs=True) as observers:
        model(torch.ones(2, 1, 3))
    assert observers[""].range() == (1, 1)


def test_outputs_are_rounded_to_their_grids_while_the_block_runs():
    model, x = nn.Sequential(nn.Identity(), nn.ReLU()), torch.tensor([-0.3, 0.3, 3.4])
    qparams = QParams(scale=0.25, zero_point=4, quant_min=0, quant_max=15)
    with rounding_outputs(model, {"0": qparams, "1": qparams}) as rounded:
        assert rounded is model
        assert model(x).tolist() == [0.0, 0.25, 2.75]
    with pytest.raises(ZeroDivisionError), rounding_outputs(model, {"1": qparams}):
        raise ZeroDivisionError
    assert torch.equal(model(x), x.relu())


def test_rounding_of_outputs_says_what_it_cannot_round():
    qparams = QParams(scale=0.25, zero_point=4, quant_min=0, quant_max=15)
    with (
        pytest.raises(ValueError, match="rounding_outputs: the model has no layer '1'; near it are '0'"),
        rounding_outputs(nn.Sequential(nn.ReLU()), {"1": qparams}),
    ):
        raise AssertionError
    with pytest.raises(TypeError, match=r"ReLU is a class, pass ReLU\(\.\.\.\)"), rounding_outputs(nn.ReLU, {}):
        raise AssertionError
    recurrent = nn.LSTM(3, 3)
    with rounding_outputs(recurrent, {"": qparams}), pytest.raises(TypeError, match=r"\(LSTM\) gives a tuple"):
        recurrent(torch.rand(1, 3))
