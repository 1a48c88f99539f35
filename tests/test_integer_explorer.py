"""IntegerExplorer without a browser, against the converted layers themselves."""

import itertools

from qtutor.explorers import IntegerExplorer
from qtutor.explorers.integer import IntegerLayer
from qtutor.workflows import quantize_dynamic, quantize_static

import pytest
import torch
from controls import check_every_control
from people import ENGINES
from torch import nn

LAYERS = {
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9)),
    "conv2d": (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 5, 6)),
    "no bias": (nn.Conv2d(3, 5, (3, 2), stride=(2, 1), bias=False), (2, 3, 7, 6)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=(2, 1), stride=(1, 2)), (2, 4, 6, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 6, 5)),
    "reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 5)),
    "conv3d": (nn.Conv3d(2, 3, (3, 2, 3), padding=1), (2, 2, 3, 4, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, (3, 2), stride=(1, 2), padding=1, groups=2), (2, 4, 5, 4)),
    "linear": (nn.Linear(20, 7), (5, 20)),
    "rows": (nn.Linear(6, 3), (2, 4, 6)),
}


def converted(layer, shape, *, relu=False, **options):
    """A layer as the FX flow converts it, and what goes into it."""
    torch.manual_seed(0)
    nn.init.normal_(layer.weight, std=0.2)
    x = torch.randn(shape) + 0.4
    model = quantize_static(nn.Sequential(layer, nn.ReLU()) if relu else nn.Sequential(layer), [x], **options)
    seen = {}
    model.get_submodule("0").register_forward_pre_hook(lambda layer, inputs: seen.update(x=inputs[0]))
    model(x)
    return model.get_submodule("0"), seen["x"]


@pytest.fixture
def explorer():
    return IntegerExplorer(*converted(*LAYERS["conv2d"], relu=True))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_every_output_ends_on_the_layers_own_code(name, relu):
    layer, x = converted(*LAYERS[name], relu=relu)
    walk = IntegerLayer(layer, x)
    codes = layer(x).int_repr()
    assert codes.numel() == walk.outputs.numel()
    results = [walk.walk(*place) for place in itertools.product(*map(range, walk.outputs.shape))]
    assert [result.walked for result in results] == codes.flatten().tolist()
    assert [result.code for result in results] == codes.flatten().tolist()
    assert all(result.raw + result.correction == result.accumulator for result in results)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_rounds_its_bias_in_its_own_way(engine):
    layer, x = converted(*LAYERS["conv2d"], engine=engine)
    walk = IntegerLayer(layer, x)
    results = [walk.walk(*place) for place in itertools.product(*map(range, walk.outputs.shape))]
    assert sum(result.walked != result.code for result in results) <= 1


def test_with_symmetric_weights_the_correction_is_one_for_each_channel():
    layer, x = converted(nn.Conv2d(2, 3, 3), (1, 2, 6, 6))
    walk = IntegerLayer(layer, x)
    assert walk.zero_point > 0
    for channel in range(3):
        corrections = {walk.walk(0, channel, row, 2).correction for row in range(4)}
        assert corrections == {-walk.zero_point * int(walk.weights[channel].sum())}


def test_every_control_changes_state_figure_and_sentence(explorer):
    changes = {"sample": 1, "channel": 3, "row": 4, "column": 0}
    check_every_control(explorer, changes)


def test_the_figure_shows_what_was_computed(explorer):
    explorer.set(channel=2, row=0, column=5)
    result, layer = explorer.result, explorer.layer
    places, mark, patch, weights, products, total, real, code = explorer.figure.data
    assert (places.z == layer.outputs[0, 2].numpy()).all()
    assert (mark.x[0], mark.y[0]) == (5, 0)
    assert (patch.z * weights.z == products.z).all()
    assert products.z.sum() == total.y[-1] == result.accumulator
    assert real.x[0] == pytest.approx(result.multiplier * (result.accumulator + result.bias) + layer.output_zero_point)
    assert code.x[0] == result.code


def test_the_padding_holds_the_zero_point(explorer):
    explorer.set(row=0, column=0)
    assert (explorer.result.patch[:, 0] == explorer.layer.zero_point).all()
    assert not explorer.result.products[:, 0].any()


def test_the_sentence_says_each_step(explorer):
    result, text = explorer.result, explorer.sentence.text
    for part in (f"{result.accumulator:,} in INT32", f"M = {result.multiplier:.6f}", f"end on {result.code}"):
        assert part in text
    assert text.endswith("so does the layer's own int_repr.")


def test_a_kernel_that_ends_elsewhere_is_told_so(explorer):
    explorer.layer.outputs += 1
    explorer.set(column=1)
    assert f"own kernel rounds or saturates otherwise and gives {explorer.result.code}" in explorer.sentence.text


def test_a_wide_layer_is_drawn_in_few_points():
    explorer = IntegerExplorer(*converted(nn.Conv2d(200, 3, 3), (1, 200, 5, 5)))
    *_, products, total, _, _ = explorer.figure.data
    assert len(products.z) <= 50
    assert len(total.x) <= 300
    assert total.y[-1] == explorer.result.accumulator


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 3, 3), (1, 2, 30)),
        (nn.Conv2d(1, 2, 1), (1, 1, 130, 7)),
        (nn.Conv3d(1, 2, 1), (1, 1, 2, 3, 4)),
        (nn.Linear(5, 20), (3, 5)),
        (nn.Linear(5, 1), (3, 5)),
    ],
    ids=["conv1d", "conv2d", "conv3d", "linear", "one feature"],
)
def test_the_mark_is_on_the_code_of_its_output(layer, shape):
    explorer = IntegerExplorer(*converted(layer, shape))
    for last in (False, True):
        explorer.set(**{name: control.max for name, control in explorer.controls.items() if last})
        places, mark = explorer.figure.data[:2]
        row = places.y.tolist().index(mark.y[0])
        assert places.z[row, mark.x[0]] == explorer.result.code
        assert len(places.z) <= 50


@pytest.mark.parametrize("name", ["conv1d", "conv3d", "linear", "rows", "transposed"])
def test_layers_of_any_kind_open(name):
    explorer = IntegerExplorer(*converted(*LAYERS[name]))
    explorer.set(channel=1)
    assert "so does the layer's own int_repr" in explorer.sentence.text


def test_layers_that_are_not_in_integers_are_refused():
    x = torch.quantize_per_tensor(torch.rand(2, 8), 0.01, 0, torch.quint8)
    for layer in (nn.Linear(8, 8), quantize_dynamic(nn.Sequential(nn.Linear(8, 8)))[0], nn.ReLU(), "0"):
        with pytest.raises(TypeError, match="needs a converted convolution or linear layer"):
            IntegerExplorer(layer, x)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (lambda x: x.dequantize(), TypeError, "needs the quantized tensor .*float32.*pre-hook"),
        (lambda x: None, TypeError, "got NoneType"),
        (lambda x: x[:0], ValueError, "is empty"),
        (lambda x: x[:, :2], ValueError, r"input of \(2, 2, 5, 6\)"),
    ],
)
def test_bad_inputs_are_refused(bad, error, message):
    layer, x = converted(*LAYERS["conv2d"])
    with pytest.raises(error, match=message):
        IntegerExplorer(layer, bad(x))
