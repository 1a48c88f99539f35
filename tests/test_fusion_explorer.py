"""FusionExplorer without a browser: set a control, see state, result, figure and sentence follow."""

import copy
import math

from qtutor.affine import choose_qparams, fake_quantize, sqnr
from qtutor.explorers import FusionExplorer
from qtutor.fusion import find_fusions, fuse, traffic
from qtutor.models.operators import kind_of
from qtutor.samples import DepthwiseNet, RowReader, SlimResNet, SmallCNN
from qtutor.workflows import quantize_static

import pytest
import torch
from controls import check_every_control
from torch import nn


def seasoned(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
    return model.eval()


@pytest.fixture
def images():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def explorer(images):
    return FusionExplorer(seasoned(SmallCNN(4)), images)


def test_every_control_changes_state_figure_and_sentence(explorer):
    last = " + ".join(f"features.5.{part}" for part in ("conv", "bn", "relu"))
    check_every_control(explorer, {"operator": 7, "numbers": "INT8", "fused": (last,)})


def test_the_buttons_fuse_all_none_and_the_pattern_in_view(explorer):
    buttons = {b.description: b for b in explorer.children[0].children if hasattr(b, "click")}
    buttons["Fuse all"].click()
    assert set(explorer.state.fused) == explorer.data.found.keys()
    explorer.set(operator=2)
    buttons["Fuse or split here"].click()
    assert len(explorer.state.fused) == 3
    assert explorer.result.now.rows[0].kind == "Conv2d"
    explorer.set(operator=4)  # a pooling, which belongs to no pattern
    buttons["Fuse or split here"].click()
    assert len(explorer.state.fused) == 3
    buttons["Fuse none"].click()
    assert explorer.state.fused == ()


def test_float_bytes_are_those_of_traffic_before_and_after(explorer, images):
    model = seasoned(SmallCNN(4))
    assert explorer.result.now.total == traffic(model, images).total
    explorer.set(fused=tuple(explorer.data.found))
    assert explorer.result.now.total == traffic(fuse(model), images).total
    assert explorer.result.plain.total == traffic(model, images).total
    assert len(explorer.result.now.rows) == len(explorer.result.plain.rows) - 8


def test_int8_moves_a_byte_for_a_value_and_counts_the_conversions_at_the_ends(explorer, images):
    explorer.set(numbers="INT8")
    codes = traffic(seasoned(SmallCNN(4)), images, activation_bytes=1, weight_bytes=1).total
    ends = images.numel() + 3 * 10
    assert explorer.result.now.conversions == 2
    assert explorer.result.now.total == codes + 5 * ends


def test_float_fusion_costs_float_rounding_only(explorer):
    explorer.set(fused=tuple(explorer.data.found))
    assert explorer.result.now.sqnr > 100
    assert explorer.result.plain.sqnr == math.inf
    assert not explorer.result.now.rounded


def quantized(x):
    return fake_quantize(x, choose_qparams(x.min(), x.max()))


def rounded_weight(layer):
    layer, reach = copy.deepcopy(layer), layer.weight.detach().abs().flatten(1).amax(dim=1).view(-1, 1, 1, 1)
    layer.weight.data = fake_quantize(layer.weight.data, choose_qparams(-reach, reach, symmetric=True))
    return layer


@torch.no_grad()
def test_int8_error_is_that_of_rounding_weights_and_each_operators_output(images):
    model = seasoned(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    conv, bn, relu = model
    explorer = FusionExplorer(model, images, numbers="INT8")
    # Ranges come from the float network, so each value is rounded on the grid of its float counterpart.
    grids = [choose_qparams(x.min(), x.max()) for x in (images, conv(images), bn(conv(images)), model(images))]
    x = fake_quantize(images, grids[0])
    apart = relu(fake_quantize(bn(fake_quantize(rounded_weight(conv)(x), grids[1])), grids[2]))
    together = fake_quantize(relu(rounded_weight(fuse(model)[0])(x)), grids[3])
    assert explorer.result.now.sqnr == pytest.approx(sqnr(model(images), apart), abs=0.01)
    assert len(explorer.result.now.rounded) == 3
    explorer.set(fused=tuple(explorer.data.found))
    assert explorer.result.now.sqnr == pytest.approx(sqnr(model(images), together), abs=0.01)
    assert len(explorer.result.now.rounded) == 2


def test_an_operator_without_an_integer_kernel_stands_between_two_conversions(images):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 3)).eval()
    explorer = FusionExplorer(model, images, numbers="INT8")
    assert [r.numbers for r in explorer.result.now.ribbons] == ["FP32 → INT8", "INT8 → FP32"] * 2
    assert explorer.result.now.conversions == 4
    assert [row.written for row in explorer.result.now.rows] == [3 * 4 * 36, 4 * 3 * 4 * 36, 3 * 2 * 16]


class Middle(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(1, 4, 3), middle, nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


@pytest.mark.filterwarnings("ignore::qtutor.workflows.telling.QuantizationWarning")
@pytest.mark.parametrize(
    "middle",
    [
        *(nn.Softmax(1), nn.Hardtanh(), nn.Sigmoid(), nn.GELU(), nn.PReLU(), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)),
        *(nn.LayerNorm(6), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(4), nn.Upsample(scale_factor=2), nn.ReLU6()),
    ],
    ids=kind_of,
)
def test_an_operator_has_an_integer_kernel_where_the_converted_model_computes_with_codes(middle, images):
    model = Middle(middle).eval()
    converted = quantize_static(model, [images], "fx")
    codes = [node.target for node in converted.graph.nodes].count("dequantize") == 1
    conversions = FusionExplorer(model, images, numbers="INT8").result.now.conversions
    assert conversions == (2 if codes else 4)


def test_what_keeps_the_scale_of_its_input_gives_codes_on_its_grid(images):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2)).eval()
    explorer = FusionExplorer(model, images, numbers="INT8")
    grids = [choose_qparams(x.min(), x.max()) for x in (images, model[0](images))]
    codes = fake_quantize(rounded_weight(model[0])(fake_quantize(images, grids[0])), grids[1])
    given = fake_quantize(model[1](codes), grids[1])
    assert explorer.result.now.sqnr == pytest.approx(sqnr(model(images), given), abs=0.01)
    assert len(explorer.result.now.rounded) == 2


def test_a_linear_batch_norm_needs_floats_until_it_is_folded():
    model = seasoned(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)))
    explorer = FusionExplorer(model, torch.randn(7, 6), numbers="INT8")
    assert explorer.result.now.conversions == 4
    explorer.set(fused=tuple(explorer.data.found))
    assert explorer.result.now.conversions == 2


def test_a_refused_pattern_cannot_be_fused_and_its_operator_says_why(images):
    model = SmallCNN(4).train()
    explorer = FusionExplorer(model, images)
    assert not explorer.data.found
    explorer.set(operator=2)
    assert "not fused: features.0.bn is in training mode" in explorer.sentence.text
    with pytest.raises(ValueError, match="fused cannot be"):
        explorer.set(fused=("features.0.conv + features.0.bn",))


def test_ribbons_are_as_wide_as_bytes_and_follow_skip_connections():
    explorer = FusionExplorer(seasoned(SlimResNet(4)), torch.rand(2, 3, 16, 16))
    sizes = {(r.source, r.target): r.size for r in explorer.result.now.ribbons}
    assert sizes[-1, 0] == 4 * 2 * 3 * 16 * 16
    assert sizes[0, 1] == 4 * 2 * 4 * 16 * 16
    assert any(target - source > 1 for source, target in sizes)
    assert max(target for _, target in sizes) == len(explorer.result.now.rows)
    bands = explorer.figure.data[0]
    wide = {round(max(b) - min(b), 6) for b in _outlines(bands)}
    assert round(0.8 * sizes[-1, 0] / max(sizes.values()), 6) in wide
    assert 0.8 in wide


def _outlines(trace):
    outline = []
    for y in trace.y:
        if y is None:
            yield outline
            outline = []
        else:
            outline.append(y)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, a, b):
        return {"sum": torch.relu(self.first(a)) + self.second(b), "index": a.argmax(1)}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru, self.last = nn.Embedding(9, 4), nn.GRU(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.gru(self.embed(x))[0][-1]).softmax(-1)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (TwoInputs(), (torch.randn(5, 4), torch.randn(5, 4))),
        (Recurrent(), torch.randint(0, 9, (6, 2))),
        (RowReader(), torch.rand(2, 1, 8, 8)),
        (seasoned(DepthwiseNet(4)), torch.rand(2, 1, 8, 8)),
        (seasoned(SlimResNet(4)).double(), torch.rand(2, 3, 8, 8).double()),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 3, groups=1), nn.ReLU6()), torch.randn(2, 3, 4, 4)),
        (nn.ReLU(inplace=True), torch.randn(3)),
        (nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)).eval(), torch.zeros(2, 2, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_any_traceable_model_opens_and_every_operator_can_be_visited(model, inputs):
    before = copy.deepcopy(model.state_dict())
    explorer = FusionExplorer(model, inputs)
    for numbers in ("float", "INT8"):
        for fused in ((), tuple(explorer.data.found)):
            explorer.set(numbers=numbers, fused=fused)
            for place in range(1, len(explorer.data.operators) + 1):
                explorer.set(operator=place)
                assert f"Operator {place} of" in explorer.sentence.text
                assert "nan" not in explorer.sentence.text.split("Operator")[1].split("(")[0]
                assert all(trace.x is None or len(trace.x) <= 300 for trace in explorer.figure.data)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert len(explorer.data.found) == sum(fusion.accepted for fusion in find_fusions(model))


class Whole(nn.Module):
    def forward(self, x):
        return x + x


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Flatten(), torch.ones(2, 3, 4)),
        (nn.Sequential(), torch.ones(2, 3, 4)),
        (nn.Linear(4, 2), torch.ones(0, 4)),
        (Whole(), torch.arange(3)),
    ],
)
def test_a_model_that_moves_nothing_is_refused(model, example):
    with pytest.raises(ValueError, match="nothing to fuse"):
        FusionExplorer(model, example)


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (torch.relu, torch.ones(2), TypeError, r"FusionExplorer needs a torch\.nn\.Module, got builtin"),
        (nn.Linear(2, 2), (), TypeError, "missing a required argument"),
        (nn.Linear(2, 2), torch.tensor([[math.nan, 1.0]]), ValueError, "gives NaN or infinity"),
    ],
)
def test_bad_input_is_refused_with_a_reason(model, inputs, error, message):
    with pytest.raises(error, match=message):
        FusionExplorer(model, inputs)


@pytest.mark.parametrize("numbers", ["int8", "FP32", None])
def test_only_its_own_numbers_are_accepted(images, numbers):
    with pytest.raises(ValueError, match="numbers cannot be"):
        FusionExplorer(SmallCNN(4), images, numbers=numbers)


def test_patterns_may_come_as_a_list(explorer):
    explorer.set(fused=list(explorer.data.found))
    assert explorer.state.fused == tuple(explorer.data.found)
