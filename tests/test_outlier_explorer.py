"""OutlierExplorer without a browser: set a control, see state, result, figure and sentence follow."""

import math

from qtutor.explorers import OutlierExplorer
from qtutor.explorers.outlier import PREPARED, activations_with_outliers

import pytest
import torch
from controls import check_every_control


@pytest.fixture(scope="module")
def explorer():
    return OutlierExplorer()


def rows_rounded(x, bits, symmetric):
    """Each row alone through PyTorch's kernel."""
    low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    top = torch.maximum(-low, high)
    scale = 2 * top / (2**bits - 1) if symmetric else (high - low) / (2**bits - 1)
    zero = torch.zeros_like(scale).int() if symmetric else (-(low / scale).round()).int()
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    return torch.fake_quantize_per_channel_affine(x, scale, zero, 0, *ends)


def test_every_control_changes_state_figure_and_sentence():
    changes = {"prepared": "smoothed", "strength": 0.85, "per": "token", "bits": 5, "spare": True, "position": 3}
    check_every_control(OutlierExplorer(), {**changes, "channel": 20})


@pytest.mark.parametrize("prepared", PREPARED)
def test_preparing_leaves_the_function_as_it_was(explorer, prepared):
    x, weight = explorer.prepare(prepared, 0.75)
    exact, got = explorer.activations.double() @ explorer.weight.T.double(), x.double() @ weight.T.double()
    assert 10 * math.log10(float(exact.square().sum() / (exact - got).square().sum())) > 25  # the weight has 8 bits


def test_a_scale_per_token_rounds_each_position_alone(explorer):
    explorer.set(prepared="as it is", per="token", bits=5, spare=False)
    x, weight = activations_with_outliers()
    left, rounded = rows_rounded(x, 5, False), rows_rounded(weight, 8, True)
    exact, got = x.double() @ weight.T.double(), left.double() @ rounded.T.double()
    each = 10 * (exact.square().sum(1) / (exact - got).square().sum(1)).log10()
    assert explorer.result.each.tolist() == pytest.approx(each.tolist(), abs=0.01)
    assert explorer.result.kept.tolist() == pytest.approx(((left != 0).double().mean(1)).tolist())


def test_one_value_empties_all_others_and_each_remedy_fills_them_again(explorer):
    explorer.set(prepared="as it is", per="tensor", bits=8, spare=False)
    drained = explorer.result
    assert drained.kept.mean() < 0.1
    assert drained.overall > 30 > 15 > drained.median  # the loud outputs are kept, the others are gone
    for remedy in ({"per": "token"}, {"spare": True}, {"prepared": "smoothed", "strength": 0.5}):
        explorer.set(**({"prepared": "as it is", "per": "tensor", "spare": False} | remedy))
        assert explorer.result.kept.mean() > 0.9
        assert explorer.result.median > drained.median + 10
    explorer.set(prepared="as it is", per="token", bits=4, spare=False)
    plain = explorer.result
    explorer.set(prepared="rotated")
    assert explorer.result.kept.mean() > plain.kept.mean() + 0.3
    assert explorer.result.prepared.abs().max() < plain.prepared.abs().max() / 4


def test_a_spared_position_is_not_rounded(explorer):
    explorer.set(prepared="as it is", per="tensor", bits=4, spare=True, position=0)
    value, left = explorer.result.value
    assert value == left
    assert "is not rounded" in explorer.sentence.text
    assert explorer.result.kept[0] == 1


def test_the_picture_shows_what_was_computed(explorer):
    explorer.set(prepared="rotated", per="token", bits=6, spare=False, position=5, channel=9)
    result = explorer.result
    sizes, steps, kept, mean, mark, _ = explorer.figure.data
    assert torch.allclose(10 ** torch.tensor(sizes.z), result.prepared.abs().clamp(min=1e-4).double(), rtol=0.06)
    assert ((torch.tensor(steps.z) == 0) == (result.steps == 0)).all()
    assert list(kept.x) == result.kept.tolist()
    assert mean.x[0] == pytest.approx(float(result.kept.mean()))
    assert (*mark.x, *mark.y) == (9, 5)
    assert "At position 5, channel 9:" in explorer.sentence.text


def test_of_many_channels_the_loudest_are_drawn_and_all_are_measured():
    x = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    x[:, 123] *= 90
    explorer = OutlierExplorer(x, torch.randn(200, 300))
    assert 123 in explorer.drawn
    assert len(explorer.drawn) <= 64
    assert explorer.result.prepared.shape == (32, 300)
    explorer.set(channel=123)
    assert "channel 123: " in explorer.sentence.text
    assert explorer.figure.data[4].x == (explorer.drawn.tolist().index(123),)
    last = int(explorer.drawn[-1])
    assert OutlierExplorer(x, torch.randn(200, 300), channel=last).state.channel == last
    explorer.set(prepared="rotated")  # no Hadamard matrix of order 300 can be made here
    assert explorer.result.prepared.abs().max() < x[:32].abs().max() / 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1)])
def test_small_and_constant_activations_open(shape):
    for value in (0.0, 2.0):
        explorer = OutlierExplorer(torch.full(shape, value), torch.ones(3, shape[1]))
        for prepared in PREPARED:
            explorer.set(prepared=prepared, per="token", spare=True)
            assert "nan" not in explorer.sentence.text


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((torch.ones(2, 3), None), ValueError, "both activations and the weight that reads them"),
        ((torch.ones(2, 3), torch.ones(4, 2)), ValueError, "the weight reads 2 channels, and the activations have 3"),
        ((torch.ones(3), torch.ones(4, 3)), ValueError, r"activations must be a matrix, got shape \(3,\)"),
        ((torch.ones(2, 3).int(), torch.ones(4, 3)), TypeError, r"activations needs a floating-point tensor, got a"),
        (
            (torch.full((2, 3), math.inf), torch.ones(4, 3)),
            ValueError,
            "activations: 6 of 6 values are NaN",
        ),
    ],
)
def test_bad_input_is_refused_with_a_reason(given, error, message):
    with pytest.raises(error, match=message):
        OutlierExplorer(*given)
