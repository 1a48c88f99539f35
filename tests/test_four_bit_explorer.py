"""FourBitExplorer without a browser: set a control, see state, result, figure and sentence follow."""

import math

from qtutor.explorers import FourBitExplorer
from qtutor.explorers.low_bits import Choice, random_layer
from qtutor.lowbit import FORMATS, gptq_steps, hessian, integers, layer_loss

import pytest
import torch
from controls import check_every_control


@pytest.fixture(scope="module")
def layer():
    return random_layer(rows=6, inputs=64)


@pytest.fixture(scope="module")
def explorer(layer):
    return FourBitExplorer(*layer)


def test_every_control_changes_state_figure_and_sentence(layer):
    changes = {"method": "GPTQ", "group": 16, "symmetric": True, "column": 7, "format": "NF4"}
    explorer = FourBitExplorer(*layer)
    explorer.controls = {name: explorer.controls[name] for name in changes}
    check_every_control(explorer, changes)


@pytest.mark.parametrize("method", ["rounding", "GPTQ"])
@pytest.mark.parametrize(
    ("changes", "form"),
    [
        ({"format": "INT3"}, integers(3, 64, False, torch.float16)),
        ({"format": "INT2", "group": 16, "symmetric": True}, integers(2, 16, True, torch.float16)),
        ({"format": "MXFP4"}, FORMATS["MXFP4"]),
        ({"format": "NVFP4"}, FORMATS["NVFP4"]),
    ],
)
def test_the_result_is_that_of_the_format_on_the_layer(explorer, layer, changes, form, method):
    weight, x = layer
    explorer.set(**({"group": 0, "symmetric": False} | changes), method=method, column=64)
    steps, result = gptq_steps(weight, hessian(x), format=form), explorer.result
    rounded = steps.rounded if method == "GPTQ" else form.round(weight)
    signal = float((x @ weight.T).double().square().sum() / len(x))
    assert result.loss == pytest.approx(layer_loss(weight, rounded, hessian(x)) / signal, rel=1e-4)
    assert result.bits_per_weight == form.bits_per_weight
    window = slice(result.window.start, result.window.stop)
    assert torch.equal(result.rounded, rounded[0, window])
    assert all(value in levels for value, levels in zip(result.rounded, result.levels, strict=True))
    assert f"{form.bits_per_weight:.2f} bits a weight" in explorer.sentence.text


def test_the_picture_shows_what_errors_have_made_of_the_columns_to_come(explorer, layer):
    weight, x = layer
    explorer.set(format="INT2", group=0, symmetric=False, method="GPTQ", column=20)
    steps = gptq_steps(weight, hessian(x), format=integers(2, 64, False, torch.float16))
    moved = steps.after(20)[0] - weight[0]
    grid, exact, become, rounded, bars, last, _ = explorer.figure.data[:7]
    assert list(exact.y) == weight[0, :32].tolist()
    assert torch.allclose(torch.tensor(bars.y)[20:], moved[20:], atol=1e-6)
    assert set(torch.tensor(bars.y)[:20].tolist()) == {0.0}
    assert torch.allclose(torch.tensor(last.y)[20:], (steps.after(20) - steps.after(19))[0, 20:], atol=1e-6)
    assert torch.allclose(torch.tensor(become.y)[20:], steps.after(20)[0, 20:32], atol=1e-6)
    assert list(rounded.y)[:20] == steps.rounded[0, :20].tolist()
    assert all(map(math.isnan, list(rounded.y)[20:]))
    assert len({y for y in grid.y if y is not None}) == 4


def test_gptq_keeps_outputs_better_and_weights_worse_than_rounding(explorer):
    explorer.set(format="INT3", group=0, symmetric=False, method="rounding")
    plain = explorer.result
    explorer.set(method="GPTQ")
    assert explorer.result.output_sqnr > plain.output_sqnr + 2
    assert explorer.result.weight_sqnr < plain.weight_sqnr - 2
    assert f"; rounded, {plain.output_sqnr:.1f} dB and {plain.weight_sqnr:.1f} dB." in explorer.sentence.text
    explorer.set(method="rounding", column=5)
    assert "no error is handed on" in explorer.sentence.text
    assert not explorer.result.moved.any()


def test_the_frontier_is_the_kl_of_the_model_where_it_was_measured(layer):
    kl = {
        Choice("INT4", 0, "rounding", False): (0.02, 0.018, 0.022),
        Choice("NF4", 0, "GPTQ", False): (0.01, 0.0, 0.02),
    }
    explorer = FourBitExplorer(*layer, kl=kl)
    assert explorer.result.kl == (0.02, 0.018, 0.022)
    assert "KL of the whole model: 0.02 bits (0.018 to 0.022)" in explorer.sentence.text
    assert (list(explorer.figure.data[6].x), list(explorer.figure.data[6].y)) == ([4.3125], [0.02])
    explorer.set(format="NF4", method="GPTQ", group=16, symmetric=True)  # which NF4 has no say in
    assert explorer.result.kl == (0.01, 0.0, 0.02)
    assert explorer.controls["group"].disabled
    explorer.set(format="INT2")
    assert explorer.result.kl is None
    assert "was not measured for this" in explorer.sentence.text


def test_no_point_of_the_frontier_is_beaten(explorer):
    points = list(explorer.data.frontier().values())
    line = list(zip(explorer.figure.data[-1].x, explorer.figure.data[-1].y, strict=True))
    assert all(not (bits <= b and cost < c) for b, c in line for bits, cost in points)
    assert min(cost for _, cost in points) == line[-1][1]


def test_of_a_large_layer_a_part_is_explored_and_the_sentence_says_so():
    weight, x = random_layer(rows=40, inputs=320)
    explorer = FourBitExplorer(weight, x, kl={Choice("INT4", 0, "rounding", False): (1.0, 1.0, 1.0)})
    assert explorer.data.weight.shape == (32, 256)
    assert "Figures of the layer are of 32 of its 40 rows and 256 of its 320 inputs." in explorer.sentence.text


def test_formats_whose_blocks_do_not_divide_the_inputs_are_not_offered():
    weight, x = random_layer(rows=3, inputs=48)
    explorer = FourBitExplorer(weight, x)
    assert explorer.data.formats == ["INT2", "INT3", "INT4", "NVFP4"]
    assert explorer.data.groups == [0, 16]


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((torch.ones(2, 4), None), {}, "both a weight and what its layer reads, or neither"),
        ((torch.ones(2, 4), torch.ones(3, 5)), {}, r"got shapes \(2, 4\) and \(3, 5\)"),
        ((torch.ones(2, 4), torch.ones(3, 4)), {"format": "NF4"}, "format cannot be 'NF4'"),
        ((torch.ones(2, 4), torch.full((3, 4), math.nan)), {}, "inputs: 12 of 12 values are NaN"),
    ],
)
def test_bad_input_is_refused_with_a_reason(given, options, message):
    with pytest.raises(ValueError, match=message):
        FourBitExplorer(*given, **options)


@pytest.mark.parametrize("given", [([1.0], [2.0]), (torch.ones(2, 4).int(), torch.ones(3, 4))])
def test_what_is_no_floating_point_tensor_is_refused(given):
    with pytest.raises(TypeError, match="FourBitExplorer: weight needs a floating-point tensor"):
        FourBitExplorer(*given)
