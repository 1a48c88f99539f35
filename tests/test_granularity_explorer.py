"""GranularityExplorer without a browser: set a control, see state, result, figure and sentence follow."""

import math

from qtutor.affine import grid
from qtutor.explorers import GranularityExplorer

import pytest
import torch
from controls import check_every_control
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thoroughness import examples


@pytest.fixture
def weight():
    """Unequal sizes on every axis, unequal filters, and filter 3 the widest."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 4, 3, 2, generator=generator) * torch.tensor([0.5, 1.0, 0.7, 4.0, 0.2]).view(-1, 1, 1, 1)
    return weight


def quantized(weight, state):
    """The codes and the restored weight: PyTorch's kernel per tensor, on the values of each scale alone."""
    quant_min, quant_max = grid(state.bits)
    along_axis = [-1 if axis == state.axis else 1 for axis in range(weight.dim())]
    cells = {
        "tensor": torch.zeros(weight.shape),
        "channel": torch.arange(weight.shape[state.axis]).view(along_axis).expand(weight.shape),
        "group": (torch.arange(weight.numel()) // state.group_size).view(weight.shape),
    }[state.granularity]
    codes, restored = torch.zeros(weight.shape), torch.zeros(weight.shape)
    for cell in cells.unique():
        values = weight[cells == cell]
        low, high = values.min().clamp(max=0), values.max().clamp(min=0)
        if state.symmetric:
            scale, zero_point = torch.maximum(-low, high) / ((quant_max - quant_min) / 2), 0
        else:
            scale = (high - low) / (quant_max - quant_min)
            zero_point = quant_min - int((low / scale).round())
        kernel = torch.fake_quantize_per_tensor_affine
        restored[cells == cell] = kernel(values, float(scale), zero_point, quant_min, quant_max)
        codes[cells == cell] = (restored[cells == cell] / scale).round() + zero_point
    return codes, restored


def decibels(x, restored):
    return 10 * math.log10(float(x.double().square().sum() / (x - restored).double().square().sum()))


def test_every_control_changes_state_figure_and_sentence(weight):
    explorer = GranularityExplorer(weight, granularity="group")
    changes = {"group_size": 8, "bits": 5, "factor": 16, "symmetric": True, "granularity": "channel", "axis": 1}
    check_every_control(explorer, changes)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    "shared",
    [{"granularity": "tensor"}]
    + [{"granularity": "channel", "axis": axis} for axis in range(4)]
    + [{"granularity": "group", "group_size": size} for size in (2, 6, 24)],
    ids=lambda shared: "-".join(map(str, shared.values())),
)
def test_codes_in_use_and_sqnr_are_those_of_each_scale_applied_alone(weight, shared, bits, symmetric):
    explorer = GranularityExplorer(weight)
    explorer.set(bits=bits, symmetric=symmetric, factor=4, **shared)
    weight[3] *= 4
    codes, restored = quantized(weight, explorer.state)
    each = [decibels(*pair) for pair in zip(weight, restored, strict=True)]
    result = explorer.result
    assert result.codes.tolist() == [len(c.unique()) for c in codes]
    assert result.per_channel.tolist() == pytest.approx(each, abs=1e-3)
    assert result.overall == pytest.approx(decibels(weight, restored), abs=1e-3)
    assert (result.median, result.worst) == pytest.approx((sorted(each)[2], min(each)), abs=1e-3)


def test_one_loud_channel_drains_the_others_per_tensor_and_not_per_channel():
    explorer = GranularityExplorer(torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(0)))
    quiet = explorer.result
    explorer.set(factor=128)
    drained = explorer.result
    assert drained.overall > 20
    assert drained.median < 5
    assert drained.codes.median() < 5 < 50 < quiet.codes.median()
    explorer.set(granularity="channel")
    assert explorer.result.median > quiet.median
    assert explorer.result.codes.median() >= quiet.codes.median()
    explorer.set(axis=1)
    assert explorer.result.median < 15


@pytest.mark.parametrize(
    ("changes", "scales", "codes"),
    [
        ({}, 4 + 1, 120),
        ({"symmetric": True}, 4, 120),
        ({"granularity": "channel", "symmetric": True}, 5 * 4, 120),
        ({"granularity": "channel", "axis": 2, "bits": 4}, 3 * 5, 60),
        ({"granularity": "group", "group_size": 8, "bits": 3}, 15 * 5, 45),
    ],
    ids=str,
)
def test_the_bytes_are_four_a_scale_one_a_zero_point_and_the_bits_of_the_codes(weight, changes, scales, codes):
    explorer = GranularityExplorer(weight)
    explorer.set(**changes)
    assert (explorer.result.scale_bytes, explorer.result.code_bytes) == (scales, codes)
    assert f"Scales take {scales:,} bytes" in explorer.sentence.text


def test_the_factor_turns_up_the_widest_channel_and_leaves_the_given_weight_alone(weight):
    given = weight.clone()
    explorer = GranularityExplorer(weight)
    explorer.set(factor=32)
    assert torch.equal(weight, given)
    assert explorer.result.high.tolist() == pytest.approx(
        [float(w.max()) * (32 if i == 3 else 1) for i, w in enumerate(weight)]
    )
    assert "channel 3 times 32" in explorer.sentence.text
    marks = [note for note in explorer.figure.layout.annotations if note.text == "▾"]
    assert [(mark.x, mark.xref) for mark in marks] == [(3, "x"), (3, "x2"), (3, "x3")]


def test_the_picture_shows_what_was_computed(weight):
    explorer = GranularityExplorer(weight)
    explorer.set(granularity="channel", bits=4, factor=2)
    result = explorer.result
    ranges, codes, channels, overall, median = explorer.figure.data
    assert list(ranges.base) == result.low.tolist()
    assert [b + y for b, y in zip(ranges.base, ranges.y, strict=True)] == pytest.approx(result.high.tolist(), abs=1e-6)
    assert list(codes.y) == result.codes.tolist()
    assert list(channels.y) == result.per_channel.tolist()
    assert set(overall.y) == {result.overall}
    assert set(median.y) == {result.median}


def test_output_channels_of_a_transposed_convolution_stand_on_axis_1(weight):
    plain, transposed = GranularityExplorer(weight), GranularityExplorer(weight.transpose(0, 1), output_axis=1)
    for axis, turned in ((0, 1), (1, 0), (2, 2), (3, 3)):
        plain.set(granularity="channel", axis=axis)
        transposed.set(granularity="channel", axis=turned)
        assert torch.equal(plain.result.per_channel, transposed.result.per_channel)
    assert transposed.first_state.axis == 1


def test_controls_that_do_not_apply_are_disabled(weight):
    explorer = GranularityExplorer(weight)
    for granularity, usable in (("tensor", set()), ("channel", {"axis"}), ("group", {"group_size"})):
        explorer.set(granularity=granularity)
        assert {name for name in ("axis", "group_size") if not explorer.controls[name].disabled} == usable


def test_scales_may_take_more_than_the_codes():
    explorer = GranularityExplorer(torch.randn(4, 8), granularity="group", group_size=2, bits=2)
    assert "Scales take 80 bytes, 1,000% on top of 8 bytes of codes." in explorer.sentence.text


def test_of_many_channels_some_are_drawn_and_all_are_measured():
    weight = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    weight[333] *= 10
    explorer = GranularityExplorer(weight)
    assert all(len(trace.x) <= 300 for trace in explorer.figure.data)
    assert 333 in explorer.figure.data[0].x
    assert len(explorer.result.per_channel) == 1000


def test_of_a_large_weight_some_channels_are_explored_and_the_sentence_says_so():
    weight = torch.randn(1200, 2500, generator=torch.Generator().manual_seed(0))
    weight[1001] *= 3
    explorer = GranularityExplorer(weight)
    kept = explorer.kept
    assert kept.tolist() == list(range(1001 % 3, 1200, 3))
    assert "All figures are those of 400 of the 1,200 channels." in explorer.sentence.text
    explorer.set(factor=8)
    assert "channel 1001 times 8" in explorer.sentence.text
    assert explorer.result.high.tolist() == [float(weight[i].max()) * (8 if i == 1001 else 1) for i in kept.tolist()]
    ranges = explorer.figure.data[0]
    heights = dict(zip(ranges.x.tolist(), ranges.y.tolist(), strict=True))
    assert heights[1001] == pytest.approx(8 * float(weight[1001].max() - weight[1001].min()))


@pytest.mark.parametrize("shape", [(7, 1), (1, 7), (1, 1), (4, 3, 2), (2, 1, 3, 3), (2, 2, 2, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_any_shape_of_2_to_5_dimensions_opens(shape, dtype):
    explorer = GranularityExplorer(torch.ones(shape, dtype=dtype))
    for granularity in ("tensor", "channel", "group"):
        explorer.set(granularity=granularity, factor=2)
        assert "nan" not in explorer.sentence.text


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 1e30])
def test_a_constant_weight_works(value):
    explorer = GranularityExplorer(torch.full((4, 6), value))
    for granularity in ("tensor", "channel", "group"):
        explorer.set(granularity=granularity, bits=3, symmetric=granularity == "group")
        assert "nan" not in explorer.sentence.text


def test_a_channel_of_zeros_costs_nothing_and_leaves_a_gap_in_the_picture(weight):
    weight[1] = 0
    explorer = GranularityExplorer(weight)
    explorer.set(factor=128)
    assert explorer.result.per_channel[1] == math.inf
    assert math.isnan(explorer.figure.data[2].y[1])
    assert explorer.result.worst < 10


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ([[1.0]], {}, TypeError, "needs a floating-point tensor, got list: pass layer.weight"),
        (torch.ones(2, 2, dtype=torch.int8), {}, TypeError, r"got a tensor of torch\.int8"),
        (torch.ones(3), {}, ValueError, r"2 to 5 dimensions, got one of shape \(3,\)"),
        (torch.ones(1, 1, 1, 1, 1, 1), {}, ValueError, "2 to 5 dimensions"),
        (torch.ones(0, 3), {}, ValueError, r"weight of shape \(0, 3\) is empty"),
        (torch.ones(3, 0, 2), {}, ValueError, "is empty"),
        (torch.tensor([[1.0, math.nan], [math.inf, 0.0]]), {}, ValueError, "2 of 4 weights are NaN, infinite or too"),
        (torch.full((1, 2), 2e36), {}, ValueError, "2 of 2 weights are NaN, infinite or too large to turn up"),
        (
            torch.ones(2, 3),
            {"output_axis": 2},
            ValueError,
            r"output_axis=2 is not an axis of a weight of shape \(2, 3\)",
        ),
        (torch.ones(2, 3), {"output_axis": 1.0}, TypeError, "output_axis must be a whole number, got 1.0"),
        (torch.eye(3).to_sparse(), {}, TypeError, r"dense tensor, got torch\.sparse_coo"),
        (torch.ones(2, 3), {"bits": 9}, ValueError, "bits cannot be 9: it goes from 2 to 8"),
        (torch.ones(2, 3), {"granularity": "row"}, ValueError, "granularity cannot be 'row'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_with_a_reason(given, options, error, message):
    with pytest.raises(error, match=message):
        GranularityExplorer(given, **options)


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    granularity=st.sampled_from(["tensor", "channel", "group"]),
    axis=st.integers(0, 3),
    group_size=st.sampled_from([2, 3, 4, 6, 8, 12, 24]),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    factor=st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]),
)
def test_codes_never_exceed_the_grid_nor_a_channel_its_worst(weight, **state):
    explorer = GranularityExplorer(weight)
    explorer.set(**state)
    result = explorer.result
    assert (result.codes <= 2 ** state["bits"]).all()
    assert (result.codes >= 1).all()
    assert result.worst <= result.median
    assert "nan" not in explorer.sentence.text
