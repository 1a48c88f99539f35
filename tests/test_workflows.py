import copy
import gc
import hashlib
import importlib
import itertools
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import replace

from qtutor import affine, vision, workflows  # noqa: F401
from qtutor.benchmark import size_bytes
from qtutor.fusion import fuse
from qtutor.samples import DepthwiseNet, RowReader, SlimResNet, SmallCNN
from qtutor.workflows import convert, flows, load, prepare_qat, quantize_dynamic, quantize_static, recipe, save
from qtutor.workflows.low_bits import clip

import pytest
import torch
import torch.ao.quantization as ao
from people import ENGINES
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torchvision says of its missing extension
    from torchvision.models.resnet import BasicBlock, ResNet

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ROWS = torch.rand(5, 8, generator=torch.Generator().manual_seed(1))


class Staged(nn.Module):
    """Says itself where integers begin and end. One ReLU serves twice, so it must not be fused away."""

    def __init__(self, *, plain_add=False, quantizes=True):
        super().__init__()
        self.plain_add, self.quantizes = plain_add, quantizes
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.last, self.add = nn.Conv2d(3, 4, 1), FloatFunctional()

    def forward(self, x):
        x = self.quant(x) if self.quantizes else x
        y = self.relu(self.bn(self.conv(x)))
        y = y + x if self.plain_add else self.relu(self.add.add(y, x))
        return self.dequant(self.last(y))


class Reusing(nn.Module):
    def __init__(self, reused):
        super().__init__()
        self.first, self.second, self.act, self.reused = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU(), reused

    def forward(self, x):
        if self.reused == "act":
            return self.act(self.second(self.act(self.first(x))))
        return self.first(self.act(self.first(x)))


class Branching(nn.Module):
    def __init__(self, on):
        super().__init__()
        self.linear, self.on = nn.Linear(8, 8), on

    def forward(self, x):
        if (x.sum() if self.on == "values" else x.shape[1]) > 0:  # the branch
            return self.linear(x)
        return x


class NarrowResNet(ResNet):
    """torchvision's ResNet18, a quarter as wide."""

    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.fc = nn.Linear(128, 8)

    def _make_layer(self, block, planes, *others, **named):
        return super()._make_layer(block, planes // 4, *others, **named)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True), nn.GRU(12, 8)
        self.lstm_cell, self.gru_cell, self.linear = nn.LSTMCell(8, 4), nn.GRUCell(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        y = self.gru(self.lstm(x)[0])[0]
        return self.linear(self.gru_cell(self.lstm_cell(y[:, 0])[0]))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, a, b):
        return self.linear(a) + b


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, a, b=None):
        return self.linear(a if b is None else a + b)


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        hidden = self.first(x).relu()
        return {"hidden": hidden, "out": self.second(hidden)}


class Warns(nn.Module):
    def forward(self, x):
        warnings.warn("of the user's own", UserWarning, stacklevel=2)
        return x


@pytest.fixture(autouse=True)
def nothing_else_changes():
    torch.manual_seed(0)
    before = torch.backends.quantized.engine
    yield
    assert torch.backends.quantized.engine == before


def sqnr(model, quantized, x):
    with torch.no_grad():
        return affine.sqnr(copy.deepcopy(model).eval()(x), quantized(x))


def settled(model, x):
    """A model whose batch norms have seen data, in eval mode."""
    with torch.no_grad():
        for _ in range(4):
            model.train()(x)
    return model.eval()


@pytest.mark.parametrize("flow", ["eager", "fx", "pt2e"])
def test_a_static_model_is_close_smaller_for_any_batch_size_and_comes_back_exactly(tmp_path, flow):
    x = IMAGES
    make = {"eager": Staged, "fx": SlimResNet, "pt2e": lambda: SmallCNN(channels=3)}[flow]
    model = settled(make(), x).train()
    before = copy.deepcopy(model.state_dict())
    quantized = quantize_static(model, [(x, None), x[:1]], flow)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sqnr(model, quantized, x) > 20
    assert quantized(x[:3]).shape[0] == 3
    save(quantized, tmp_path / "model")
    loaded = load(tmp_path / "model", make())
    assert torch.equal(loaded(x), quantized(x))
    if flow != "eager":
        parameters = sum(p.numel() for p in model.parameters())
        assert parameters < os.path.getsize(tmp_path / "model") < 2 * parameters  # float32 takes 4 bytes each


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_quantizes_and_its_file_comes_back_exactly(tmp_path, engine):
    model = settled(SmallCNN(channels=3), IMAGES)
    quantized = quantize_static(model, [IMAGES], engine=engine)
    assert sqnr(model, quantized, IMAGES) > 25
    save(quantized, tmp_path / "static")
    assert torch.equal(load(tmp_path / "static", SmallCNN(channels=3))(IMAGES), quantized(IMAGES))
    x = torch.rand(3, 5, 8)
    dynamic = quantize_dynamic(Recurrent(), engine=engine)
    save(dynamic, tmp_path / "dynamic")
    assert torch.equal(load(tmp_path / "dynamic", Recurrent())(x), dynamic(x))


class Clamped(nn.Module):
    def __init__(self, clamp):
        super().__init__()
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.first, self.clamp, self.last = nn.Conv2d(3, 8, 3), clamp, nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.dequant(self.last(self.clamp(self.first(self.quant(x)))))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clamp", [nn.ReLU6(), nn.Hardtanh(), nn.functional.relu6, lambda x: x.clamp(-1, 2)])
def test_clamps_between_convolutions_are_right_on_every_engine(monkeypatch, engine, clamp):
    model, x = Clamped(clamp).eval(), 3 * torch.randn(2, 3, 12, 12)
    for flow in ("fx", "eager") if isinstance(clamp, nn.Module) else ("fx",):
        quantized = quantize_static(model, [x], flow, engine=engine)
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.quantized, "engine", engine)
            assert sqnr(model, quantized, x) > 20


def test_a_prelu_stays_in_floating_point():
    model, x = Clamped(nn.PReLU()).eval(), 3 * torch.randn(2, 3, 12, 12)
    with pytest.warns(
        workflows.telling.QuantizationWarning, match=r"leaves in floating point: clamp \(PReLU\): no INT8 kernel"
    ):
        assert sqnr(model, quantize_static(model, [x]), x) > 20
    with pytest.raises(ValueError, match="clamp"):
        quantize_static(model, [x], "eager")


def test_eager_fuses_but_not_a_relu_that_serves_twice():
    quantized = quantize_static(settled(Staged(), IMAGES), [IMAGES], "eager")
    assert isinstance(quantized.bn, nn.Identity)
    assert isinstance(quantized.relu, nn.ReLU)


@pytest.mark.skipif("fbgemm" not in ENGINES, reason="the fault is of the x86 engine")
def test_a_transposed_convolution_is_computed_in_floats_where_the_engine_computes_it_wrongly():
    model, x = nn.Sequential(nn.ConvTranspose2d(3, 4, 2)).eval(), torch.randn(8, 3, 8, 8)
    assert sqnr(model, quantize_static(model, [x]), x) > 25
    for engine in {"x86", "onednn"} & {*ENGINES}:
        with pytest.warns(
            workflows.telling.QuantizationWarning, match=f"engine='{engine}' computes 0 wrongly: it runs in floats"
        ):
            assert sqnr(model, quantize_static(model, [x], engine=engine), x) > 25
        same = nn.Sequential(nn.ConvTranspose2d(3, 3, 2)).eval()
        assert sqnr(same, quantize_static(same, [x], engine=engine), x) > 25


@pytest.mark.parametrize("flow", ["fx", "pt2e"])
def test_named_modules_stay_in_floating_point(tmp_path, flow):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    quantized = quantize_static(model, [ROWS], flow, keep_float="2")
    assert torch.equal(quantized.state_dict()["2.weight"], model[2].weight)
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", copy.deepcopy(model))(ROWS), quantized(ROWS))


@pytest.mark.parametrize("flow", ["fx", "pt2e"])
def test_several_inputs_are_a_tuple_inside_the_pair(tmp_path, flow):
    quantized = quantize_static(TwoInputs(), [((ROWS, ROWS), None), [(ROWS, ROWS), torch.zeros(5)]], flow)
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", TwoInputs())(ROWS, ROWS), quantized(ROWS, ROWS))


@pytest.mark.parametrize("flow", ["fx", "pt2e"])
def test_a_model_may_return_a_dictionary(tmp_path, flow):
    model = Dictionary()
    quantized = quantize_static(model, [ROWS], flow)
    save(quantized, tmp_path / "model")
    loaded = load(tmp_path / "model", Dictionary())
    for name, expected in model(ROWS).items():
        assert affine.sqnr(expected.detach(), quantized(ROWS)[name]) > 25
        assert torch.equal(loaded(ROWS)[name], quantized(ROWS)[name])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "holds no batch"),
        (iter(()), ValueError, "holds no batch"),
        (None, TypeError, "got NoneType"),
        (ROWS, TypeError, "put it in a list"),
        ((ROWS, torch.zeros(5)), TypeError, "put it in a list"),
        ([(ROWS, ROWS, ROWS)], TypeError, "3 parts"),
        ([{"x": ROWS}], TypeError, "does not fit forward: missing a required argument: 'input'"),
        ([["a", "b"]], TypeError, "holds no tensor"),
        ([((ROWS, 3), None)], TypeError, "holds 2 inputs, and forward takes input only"),
        ([ROWS[:0]], ValueError, "is empty"),
        ([ROWS, ROWS * float("nan")], ValueError, "batch 1 .* NaN"),
        (TensorDataset(ROWS), TypeError, r"are samples: pass torch.utils.data.DataLoader\(dataset, batch_size=32\)"),
    ],
)
def test_bad_calibration_data_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        quantize_static(nn.Sequential(nn.Linear(8, 8)), data)


def test_what_has_items_and_a_length_ends_there():
    class Items:
        def __len__(self):
            return 2

        def __getitem__(self, place):
            assert place < 2
            return ROWS

    model = nn.Sequential(nn.Linear(8, 8)).eval()
    assert torch.equal(quantize_static(model, Items())(ROWS), quantize_static(model, [ROWS])(ROWS))


def test_named_inputs_are_the_same_as_inputs_by_place():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x, shift):
            return self.layer(x) + shift

    model, shift = Net().eval(), torch.ones(1)
    by_place = quantize_static(model, [((ROWS[:, :8], shift), None)])
    by_name = quantize_static(model, [{"shift": shift, "x": ROWS[:, :8]}])
    assert torch.equal(by_place(ROWS[:, :8], shift), by_name(ROWS[:, :8], shift))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flow": "jit"}, "flow must be one of eager, fx, pt2e"),
        ({"flow": "dynamic"}, r"got 'dynamic': quantize_dynamic\(model\) does that"),
        ({"engine": "cuda"}, "engine says whose INT8 kernels run"),
        ({"flow": "pt2e", "engine": "qnnpack"}, "engine says whose INT8 kernels run"),
        ({"keep_float": ["head"]}, "keep_float: the model has no layer 'head'; near it are"),
        ({"flow": "eager", "keep_float": ["0"]}, "needs flow='fx' or 'pt2e'"),
        ({"compile": True}, "is for flow='pt2e'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize_static(nn.Sequential(nn.Linear(8, 8)), [ROWS], **arguments)


def test_other_dtypes_and_quantized_models_are_refused():
    with pytest.raises(ValueError, match=r"0.weight is torch.float64 .*\.float\(\)"):
        quantize_static(nn.Sequential(nn.Linear(8, 8)).double(), [ROWS])
    with pytest.raises(ValueError, match="quantized or prepared already"):
        quantize_static(quantize_static(nn.Sequential(nn.Linear(8, 8)), [ROWS]), [ROWS])
    with pytest.raises(TypeError, match="got int"):
        quantize_static(3, [ROWS])


@pytest.mark.parametrize(
    ("model", "x", "flow", "parts"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 1)), IMAGES, "eager", ["no QuantStub and no DeQuantStub", "flow='fx'"]),
        (Staged(plain_add=True), IMAGES, "eager", ["`y = y + x if", "FloatFunctional", "flow='fx'"]),
        (
            Branching("values"),
            ROWS,
            "fx",
            ["# the branch`", "Python decides there by", "quantize_dynamic(model) can take it"],
        ),
        (Branching("values"), ROWS, "pt2e", ["# the branch`", "quantize_dynamic(model) can take it"]),
        (Branching("shape"), ROWS, "fx", ["# the branch`", "flow='pt2e' can take it as it is"]),
        (nn.ConvTranspose2d(3, 3, 1), IMAGES, "pt2e", ["finds nothing to quantize"]),
    ],
)
def test_a_flow_that_cannot_take_a_model_says_where_why_and_which_could(model, x, flow, parts):
    with pytest.raises(ValueError, match=f"flow='{flow}'") as caught:
        quantize_static(model, [x], flow)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_an_argument_that_has_a_default_is_taken_at_it():
    model = Optional().eval()
    assert affine.sqnr(model(ROWS), quantize_static(model, [ROWS])(ROWS)) > 30


def test_a_stub_that_forward_does_not_call_is_named_by_its_consequence():
    with pytest.raises(ValueError, match=r"cannot run conv .*gets a floating-point tensor: call a QuantStub"):
        quantize_static(Staged(quantizes=False), [IMAGES], "eager")


@pytest.mark.parametrize("flow", ["fx", "pt2e"])
def test_torchvisions_resnet_calls_each_relu_twice_and_comes_back_exactly(tmp_path, flow):
    x = torch.rand(2, 3, 32, 32)
    model = settled(NarrowResNet(), x)
    quantized = quantize_static(model, [x], flow)
    assert sqnr(model, quantized, x) > 15
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", NarrowResNet())(x), quantized(x))


@pytest.mark.parametrize("reused", ["act", "first"])
def test_pt2e_quantizes_each_call_of_a_module_that_is_called_twice(reused):
    model = Reusing(reused).eval()
    quantized = quantize_static(model, [IMAGES], "pt2e")
    inputs = [n for n in quantized.graph.nodes if "quantized_decomposed.quantize_per_tensor" in str(n.target)]
    assert len(inputs) == 2  # one for each convolution, and none for the ReLU, which is merged into the first
    assert sqnr(model, quantized, IMAGES) > 30
    assert torch.equal(quantize_static(model, [IMAGES], "pt2e", keep_float=["first", "second"])(IMAGES), model(IMAGES))


def test_a_models_own_error_on_its_inputs_is_not_dressed_up():
    for flow in ("fx", "pt2e"):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            quantize_static(nn.Sequential(nn.Linear(8, 8)), [ROWS[:, :3]], flow)


def test_the_users_own_warnings_still_show():
    with pytest.warns(UserWarning, match="of the user's own"):
        quantize_static(nn.Sequential(nn.Linear(8, 8), Warns()), [ROWS])


def test_dynamic_equals_torchs_own(tmp_path):
    model, x = RowReader().eval(), torch.rand(3, 1, 8, 8)
    quantized = quantize_dynamic(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ao.quantize_dynamic(model, {nn.Linear, nn.LSTM})
    assert torch.equal(quantized(x), expected(x))


def test_dynamic_lets_go_of_the_float_copy_at_once():
    def linear_layers():
        return sum(type(each) is nn.Linear for each in gc.get_objects())

    quantize_dynamic(model := nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    gc.collect()
    gc.disable()  # Python's search for cycles would find it later
    try:
        before, _quantized = linear_layers(), quantize_dynamic(model)
        assert linear_layers() == before
    finally:
        gc.enable()


def test_dynamic_says_what_it_found_where_nothing_would_shrink():
    with pytest.raises(ValueError, match=r"nothing would shrink.* this model has 8 Conv2d, 8 BatchNorm2d"):
        quantize_dynamic(DepthwiseNet().features[:8])
    with pytest.raises(ValueError, match=r"0 \(LSTM\): it has a proj_size"):
        quantize_dynamic(nn.Sequential(nn.LSTM(3, 3, proj_size=2)))


DYNAMIC = {
    "a linear layer alone": (lambda: nn.Linear(16, 16, bias=False), (5, 16)),
    "an LSTM alone": (lambda: nn.LSTM(16, 12, 2, bidirectional=True, dropout=0.3), (4, 3, 16)),
    "an LSTM without bias": (lambda: nn.LSTM(16, 12, 2, bias=False, bidirectional=True), (4, 3, 16)),
    "a GRU without bias": (lambda: nn.GRU(16, 12, bias=False, batch_first=True), (4, 3, 16)),
    "an LSTM cell": (lambda: nn.LSTMCell(16, 12), (4, 16)),
    "a GRU cell without bias": (lambda: nn.GRUCell(16, 12, bias=False), (4, 16)),
    "nested": (lambda: nn.Sequential(nn.ModuleList([nn.Sequential(nn.Linear(16, 8))])[0], nn.Linear(8, 4)), (5, 16)),
    "one layer twice": (lambda: nn.Sequential(*[nn.Linear(16, 16)] * 2), (5, 16)),
    "a transformer layer": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (2, 5, 16)),
    "a transformer": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 2), (2, 5, 16)),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:.*self_attn .MultiheadAttention.$")
@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_takes_it_and_its_file_gives_it_back(name, tmp_path):
    make, shape = DYNAMIC[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.rand(shape)
    before = copy.deepcopy(model.state_dict())
    quantized = quantize_dynamic(model)
    y, expected = (tree_leaves(m(x))[0] for m in (quantized, model))
    assert 0 < (y - expected).abs().max() < 0.05  # INT8, and still the same function
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    save(quantized, tmp_path / "model")
    assert torch.equal(tree_leaves(load(tmp_path / "model", make())(x))[0], y)


def shared(*ends):
    layer = nn.Linear(16, 16)
    middle = [nn.Sequential(layer), layer, layer]
    return nn.Sequential(*ends[:1], *middle, *ends[1:])


def test_a_layer_with_several_names_is_still_one_when_quantized(tmp_path):
    x = torch.rand(5, 16)
    model, staged = shared().eval(), shared(ao.QuantStub(), ao.DeQuantStub()).eval()
    trained = convert(trained_a_little(prepare_qat(staged, x, flow="eager"), x))
    for float_model, quantized in ((staged, quantize_static(staged, [x], "eager")), (staged, trained)):
        assert quantized[1][0] is quantized[2] is quantized[3]
        assert sqnr(float_model, quantized, x) > (0 if quantized is trained else 25)
        save(quantized, tmp_path / "model")
        assert torch.equal(load(tmp_path / "model", copy.deepcopy(float_model))(x), quantized(x))
    quantized = quantize_dynamic(model)
    assert quantized[0][0] is quantized[1] is quantized[2]
    assert sqnr(model, quantized, x) > 25
    assert size_bytes(quantized) < size_bytes(quantize_dynamic(model[0])) + 500  # names, and no second weight


def test_hiding_torchs_notices_hides_those_of_importing_torchao_and_no_others():
    workflows.hide_torch_notices()
    logger = logging.getLogger("torchao")
    shown = [
        text
        for text in ("Failed to load /somewhere/_C_cutlass.so", "something new")
        if logger.filter(logging.LogRecord("torchao", logging.WARNING, "", 0, text, (), None))
    ]
    assert shown == ["something new"]


def trained_a_little(prepared, x, steps=3):
    optimizer = torch.optim.SGD(prepared.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(prepared(x), torch.arange(len(x)) % 4).backward()
        optimizer.step()
    prepared.apply(ao.disable_observer)
    prepared.apply(importlib.import_module("torchao.quantization.pt2e").disable_observer)
    return prepared.eval()


class Plain(nn.Sequential):
    def __init__(self):
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class StagedClassifier(Staged):
    def forward(self, x):
        return super().forward(x).mean((2, 3))


@pytest.mark.parametrize(("flow", "bits"), [("eager", 8), ("eager", 3), ("fx", 8), ("fx", 3), ("pt2e", 3)])
def test_a_trained_model_converts_to_what_it_computed_and_comes_back_exactly(tmp_path, flow, bits):
    make = StagedClassifier if flow == "eager" else Plain
    model, x = settled(make(), IMAGES), IMAGES
    before = copy.deepcopy(model.state_dict())
    prepared = prepare_qat(model, x, flow=flow, bits=bits)
    assert prepared.training
    trained_a_little(prepared, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    quantized = convert(prepared)
    with torch.no_grad():
        assert affine.sqnr(prepared(x), quantized(x)) > 30
    prepared.train()(x)
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", make())(x), quantized(x))


# Nobody can pretend to have a dot product: sums of two products would overflow.
WITH_DOT_PRODUCT = [("fx", True)] if recipe.describe().has_int8_dot_product else []


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("flow", "has_dot_product"), [*WITH_DOT_PRODUCT, ("fx", False), ("pt2e", True)])
def test_training_computes_what_the_converted_model_will(monkeypatch, flow, has_dot_product, bits):
    machine = replace(recipe.describe(), features=("AVX512-VNNI",) if has_dot_product else ())
    monkeypatch.setattr(recipe, "describe", lambda: machine)
    model = settled(DepthwiseNet(8, channels=3, classes=4), IMAGES)
    with torch.no_grad():
        for weight in (model.features[2].conv.weight, model.features[4].conv.weight):
            weight[:3] = weight[:3].abs()  # channels of one sign
    prepared = trained_a_little(prepare_qat(model, IMAGES, flow=flow, bits=bits), IMAGES)
    x = 3 * torch.rand(64, 3, 16, 16)  # beyond the ranges that training saw
    with torch.no_grad():
        assert affine.sqnr(prepared(x), convert(prepared)(x)) > 30


class OneLayerAtATime(torch.fx.Interpreter):
    """Hands each layer of a converted model what it met in training, so that no difference is passed on."""

    def __init__(self, model, simulated):
        super().__init__(model)
        self.simulated, self.steps = iter(simulated), []

    def run_node(self, node):
        result = super().run_node(node)
        if not getattr(result, "is_quantized", False) or any(user.target is clip for user in node.users):
            return result
        expected = torch.quantize_per_tensor(
            next(self.simulated), result.q_scale(), result.q_zero_point(), result.dtype
        )
        self.steps.append((result.int_repr().int() - expected.int_repr().int()).abs())
        return expected


@pytest.mark.filterwarnings("ignore:.* agrees with the trained one without rounding")  # after so few steps
@pytest.mark.parametrize("engine", ENGINES)
def test_each_layer_of_a_trained_resnet_gives_the_codes_of_training_but_for_ties(monkeypatch, engine):
    x = torch.rand(2, 3, 64, 64)
    model = settled(NarrowResNet(), x)
    prepared = trained_a_little(prepare_qat(model, x, engine=engine), x, steps=2)
    quantized, simulated = convert(prepared), []
    for name, module in prepared.named_modules():
        if "weight" not in name and isinstance(module, ao.FakeQuantize):
            module.register_forward_hook(lambda module, inputs, output: simulated.append(output))
    layers = OneLayerAtATime(quantized, simulated)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch.backends.quantized, "engine", engine)
        prepared(x)
        layers.run(x)
    assert len(layers.steps) == len(simulated) > 30
    assert max(int(steps.max()) for steps in layers.steps) == 1
    assert sum(float((steps > 0).float().mean()) > 0.01 for steps in layers.steps) <= 1  # the average of 2 x 2 codes


class Gated(nn.Module):
    """Means that go straight into a layer, and a sigmoid, whose range is fixed."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.gate = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8)
        self.inner, self.pool, self.last = nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(2), nn.Conv2d(8, 4, 2)

    def forward(self, x):
        y = self.bn(self.conv(x)).relu()
        y = y * self.gate(y.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.last(self.pool(self.inner(y).relu())).flatten(1)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_means_and_fixed_ranges_convert_to_what_was_trained(tmp_path, bits):
    prepared = trained_a_little(prepare_qat(settled(Gated(), IMAGES), IMAGES, bits=bits), IMAGES)
    quantized = convert(prepared)
    with torch.no_grad():
        assert affine.sqnr(prepared(IMAGES), quantized(IMAGES)) > 30
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", Gated())(IMAGES), quantized(IMAGES))


@pytest.mark.parametrize(("edge_bits", "edges"), [(8, 100), (3, 8)])
def test_inner_layers_use_2_to_the_bits_codes_and_the_edges_theirs(edge_bits, edges):
    prepared = prepare_qat(settled(SmallCNN(8, channels=3), IMAGES), IMAGES, bits=3, edge_bits=edge_bits)
    quantized = convert(trained_a_little(prepared, IMAGES))
    codes = {n: len(m.weight().int_repr().unique()) for n, m in quantized.named_modules() if hasattr(m, "scale")}
    first, *inner, last = codes.values()
    assert len(inner) == 3
    assert max(inner) <= 8
    assert (first > 8, last > 8) == (edges > 8,) * 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("flow", "make"), [("eager", StagedClassifier), ("fx", Plain)])
def test_narrow_layers_compute_on_every_engine_what_was_trained(monkeypatch, engine, flow, make):
    prepared = prepare_qat(settled(make(), IMAGES), IMAGES, flow=flow, bits=3, engine=engine)
    quantized = convert(trained_a_little(prepared, IMAGES))
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch.backends.quantized, "engine", engine)
        assert affine.sqnr(prepared(IMAGES), quantized(IMAGES)) > 25


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_beyond_a_byte_are_refused(bits):
    with pytest.raises(ValueError, match="from 2 to"):
        prepare_qat(SmallCNN(), torch.rand(2, 1, 8, 8), bits=bits)


def test_convert_needs_a_prepared_model_that_has_seen_data():
    with pytest.raises(ValueError, match="prepare_qat"):
        convert(SmallCNN())
    with pytest.raises(ValueError, match="seen no data"):
        convert(prepare_qat(nn.Sequential(nn.Linear(8, 8)), ROWS))


@pytest.fixture
def saved(tmp_path):
    save(quantize_static(nn.Sequential(nn.Linear(8, 8)), [ROWS]), tmp_path / "model")
    return tmp_path / "model"


def edit_header(path, **changes):
    """Change the header and seal the file again."""
    magic, header, content = path.read_bytes().split(b"\n", 2)
    body = json.dumps(json.loads(header) | changes).encode() + b"\n" + content
    path.write_bytes(magic[:-64] + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def test_the_header_says_what_is_inside(saved):
    header = json.loads(saved.read_bytes().split(b"\n")[1])
    assert header["flow"] == "fx"
    assert header["engine"] in ENGINES
    assert header["torch"] == torch.__version__
    assert {"torchao", "qtutor"} < header.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "an engine of another machine"}, "is for the engine an engine of another machine"),
        ({"torch": "1.13.0"}, "was saved with torch 1.13.0, and 2"),
        ({"qtutor": "9.0.0"}, "was saved with qtutor 9.0.0"),
    ],
)
def test_a_file_of_another_engine_or_version_is_refused(saved, changes, message):
    edit_header(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load(saved, nn.Sequential(nn.Linear(8, 8)))


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b[:-99] + b"x" + b[-98:]])
def test_a_damaged_file_is_refused(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(ValueError, match="is damaged"):
        load(saved, nn.Sequential(nn.Linear(8, 8)))


@pytest.mark.parametrize("content", [b"", b"something else", b"qtutor model 2 \n"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a model that|has a format that"):
        load(tmp_path / "model", nn.Linear(8, 8))


def test_code_in_a_file_is_not_executed(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"state": Evil(), "numbers": []}, tmp_path / "payload")
    magic, header, _ = saved.read_bytes().split(b"\n", 2)
    saved.write_bytes(b"\n".join([magic, header, (tmp_path / "payload").read_bytes()]))
    edit_header(saved)
    with pytest.raises(ValueError, match="more than tensors"):
        load(saved, nn.Sequential(nn.Linear(8, 8)))
    assert not (tmp_path / "evil").exists()


def test_a_file_of_another_model_is_refused(saved):
    with pytest.raises(ValueError, match="another model than float_model"):
        load(saved, nn.Sequential(nn.Linear(8, 9)))


def test_only_quantized_models_of_these_flows_are_saved(tmp_path):
    with pytest.raises(ValueError, match="quantize it with quantize_static, quantize_dynamic or convert first"):
        save(nn.Linear(8, 8), tmp_path / "model")
    with pytest.raises(ValueError, match="convert it first"):
        save(prepare_qat(nn.Sequential(nn.Linear(8, 8)), ROWS), tmp_path / "model")


def test_an_error_in_calibration_leaves_the_engine_alone():
    with pytest.raises(RuntimeError):
        quantize_static(nn.Sequential(nn.Linear(8, 8)), [ROWS, ROWS[:, :3]], engine=ENGINES[-1])


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize("side", ["keys", "values"])
def test_what_torch_retires_and_what_replaces_it_are_both_here(side):
    for name in getattr(workflows.REPLACEMENTS, side)():
        home, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(home), attribute), name


def run(script, **environment):
    lines = ["import sys, torch, warnings", "from torch import nn", script]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


LOAD = """
from qtutor.workflows import hide_torch_notices, load
hide_torch_notices()
for path, (model, x, expected) in torch.load({path!r}, weights_only=False).items():
    print(torch.equal(load(path, model)(x), expected))
"""

COMPILE = """
warnings.simplefilter("error")
from qtutor import workflows
model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.rand(3, 3, 8, 8)
try:
    quantized = workflows.quantize_static(model, [x], "pt2e", compile=True)
except workflows.Unavailable as error:
    print(error)
else:
    plain = workflows.quantize_static(model, [x], "pt2e")
    workflows.save(quantized, {path!r})
    loaded = workflows.load({path!r}, model)
    print(torch.equal(loaded(x), plain(x)), torch.allclose(quantized(x[:2]), plain(x[:2]), atol=1e-4))
"""


@pytest.mark.slow
def test_a_new_process_gives_the_same_bits_of_every_flow_and_says_that_there_is_no_compiler(tmp_path):
    rows, found = torch.rand(3, 5, 8), {}

    def keep(model, x, quantized):
        path = str(tmp_path / str(len(found)))
        save(quantized, path)
        found[path] = (copy.deepcopy(model), x, quantized(x).detach())

    for model in (nn.Linear(8, 4), Recurrent()):
        keep(model, rows, quantize_dynamic(model))
    for flow, model in (("eager", StagedClassifier()), ("fx", Plain()), ("pt2e", Plain())):
        keep(settled(model, IMAGES), IMAGES, quantize_static(model, [IMAGES], flow))
    linear = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    trained = ("eager", StagedClassifier(), IMAGES), ("fx", Plain(), IMAGES), ("pt2e", linear, ROWS)
    for (flow, model, x), bits in itertools.product(trained, (8, 3)):
        keep(model, x, convert(trained_a_little(prepare_qat(settled(model, x), x, flow=flow, bits=bits), x)))
    torch.save(found, tmp_path / "expected")
    here = os.pathsep.join([os.path.dirname(__file__), *sys.path])  # where the classes of the models are
    script = LOAD.format(path=str(tmp_path / "expected")) + COMPILE.format(path=str(tmp_path / "model"))
    result = run(script, PYTHONPATH=here, CXX="no-such-compiler", PATH="", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    *same, said = result.stdout.splitlines()
    assert same == ["True"] * len(found)
    assert "needs a C++ compiler" in said
    assert result.stderr == ""


@pytest.mark.system
def test_pt2e_compiles_or_says_that_there_is_no_compiler(tmp_path):
    result = run(COMPILE.format(path=str(tmp_path / "model")), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert result.stdout == "True True\n" or "needs a C++ compiler" in result.stdout
    assert result.stderr == ""


HIDE = """
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if f"{name}.".startswith(f"{hidden}."):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
model, x = nn.Sequential(nn.Linear(8, 8)), torch.rand(3, 8)
for hidden, flows in FLOWS.items():
    for name in [name for name in sys.modules if f"{name}.".startswith((f"{hidden}.", "qtutor."))]:
        del sys.modules[name]
    from qtutor import workflows
    from qtutor.workflows import quantize_dynamic, quantize_static
    for flow in flows:
        try:
            eval(flow)
        except workflows.Unavailable as error:
            print(error)
"""


def test_without_a_package_only_the_flows_that_need_it_say_so():
    static = "quantize_static(model, [x], '{}')".format
    flows = {"torchao": [static("pt2e")], "torch.ao": ["quantize_dynamic(model)", static("eager"), static("fx")]}
    (of_torchao, *others) = run(f"FLOWS = {flows}\n{HIDE}").stdout.splitlines()
    assert "needs torchao" in of_torchao
    assert ["torch.ao.quantization" in said for said in others] == [True] * 3


@pytest.mark.parametrize("flow", ["fx", "pt2e"])
def test_what_was_folded_beforehand_is_merged_as_if_it_were_not(flow, tmp_path):
    model = SmallCNN(4, 3).eval()
    whole, folded = (quantize_static(m, [IMAGES], flow) for m in (model, fuse(model)))
    torch.testing.assert_close(folded(IMAGES), whole(IMAGES), rtol=0.02, atol=0.02)
    called = [node.target for node in folded.graph.nodes if node.op == "call_module"]
    assert not any("bn" in name or "relu" in name for name in called)
    save(folded, tmp_path / "folded")
    assert torch.equal(load(tmp_path / "folded", fuse(model))(IMAGES), folded(IMAGES))


def test_a_file_of_before_every_flow_noted_its_reduced_range_loads(tmp_path, monkeypatch):
    model, path = nn.Sequential(nn.Linear(8, 4)).eval(), tmp_path / "model"
    quantized = quantize_static(model, [ROWS[:, :8]])
    header = flows.asdict
    monkeypatch.setattr(flows, "asdict", lambda recipe: {k: v for k, v in header(recipe).items() if k != "reduced"})
    save(quantized, path)
    monkeypatch.undo()
    assert torch.equal(load(path, model)(ROWS[:, :8]), quantized(ROWS[:, :8]))


@pytest.mark.parametrize("flow", ["eager", "fx"])
def test_a_qconfig_that_was_left_on_a_model_does_not_count(flow):
    model = nn.Sequential(ao.QuantStub(), nn.Linear(8, 4), ao.DeQuantStub())
    for module in model.modules():
        module.qconfig = ao.get_default_qconfig("qnnpack")
    prepared = prepare_qat(model, torch.randn(8, 8), flow=flow)
    assert type(prepared.get_submodule("1").weight_fake_quant) is ao.FakeQuantize
    assert model.qconfig


def test_a_layer_stays_in_floats_in_eager_mode_as_the_refusal_says():
    stubs = {"quant": ao.QuantStub(), "dequant": ao.DeQuantStub()}
    model = nn.Sequential()
    for name, layer in {"quant": stubs["quant"], "a": nn.Linear(8, 8), "dequant": stubs["dequant"]}.items():
        model.add_module(name, layer)
    model.add_module("b", nn.Linear(8, 4))
    x = torch.randn(8, 8)
    with pytest.raises(ValueError, match=r"keep the layer in float with (model.get_submodule\('b'\).qconfig) = None"):
        quantize_static(model, [x], "eager")
    model.get_submodule("b").qconfig = None
    assert type(quantize_static(model, [x], "eager").b) is nn.Linear


class Padded(nn.Module):
    """Images padded to sizes that windows divide, again and again, as transformers for images do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        for size in 4 * (3, 4):
            x = nn.functional.pad(x, [0, -x.shape[-1] % size, 0, -x.shape[-2] % size])
        return self.layer(x)


def test_sizes_that_pytorch_would_simplify_for_hours_are_fixed_but_for_the_samples():
    torch.manual_seed(0)
    model, x = Padded().eval(), torch.randn(4, 3, 13, 13)
    quantized = quantize_static(model, [x], "pt2e")
    assert sqnr(model, quantized, x[:3]) > 25
    with pytest.raises(ValueError, match=r"forward was captured where .*13.*, and got \(4, 3, 12, 12\)"):
        quantized(x[..., 1:, 1:])
