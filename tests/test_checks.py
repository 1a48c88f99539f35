"""What people's models are made of and flows stumble on: each kind gets a sound model, or a refusal that names it."""

import copy
import functools
import warnings

from qtutor.affine import sqnr
from qtutor.diagnosis import diagnose
from qtutor.fusion import find_fusions, fuse
from qtutor.models.copying import plain_copy
from qtutor.models.running import agreement, lines_that_read_training
from qtutor.simulation import Configuration
from qtutor.workflows import convert, load, prepare_qat, quantize_dynamic, quantize_static, save
from qtutor.workflows.checks import QuantizationWarning
from qtutor.workflows.kernels import InFloats

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]
FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines
FLOWS = ("fx", "pt2e")


class Forward(nn.Module):
    """Layers by name, and a forward as a function of the module."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs):
        return self.function(self, *inputs)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return [torch.randn(4, 3, 12, 12) for _ in range(2)]


def two_convolutions(between):
    return Forward(between, first=nn.Conv2d(3, 8, 3, padding=1), second=nn.Conv2d(8, 4, 1)).eval()


def assigned_nowhere(self, x):
    x = self.first(x)
    F.relu(x, inplace=True)
    return self.second(x)


def written_through_a_view(self, x):
    x = self.first(x)
    x.view(-1).relu_()
    return self.second(x)


def written_in_part(self, x):
    x = self.first(x)
    x[:, :4] = 0
    return self.second(x)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("between", "refused"),
    [(assigned_nowhere, ()), (written_through_a_view, ("fx",)), (written_in_part, ("fx",))],
)
@pytest.mark.parametrize("flow", FLOWS)
def test_what_is_written_in_place_is_kept_or_the_line_is_named(flow, between, refused, trained, images):
    model = two_convolutions(between)

    def quantize():
        if not trained:
            return quantize_static(model, images, flow)
        prepared = prepare_qat(model, images[0], flow=flow)
        prepared(images[0])
        return convert(prepared)

    if flow in refused:
        with pytest.raises(ValueError, match=r"x\.view\(-1\)\.relu_\(\)|x\[:, :4\] = 0") as caught:
            quantize()
        assert str(caught.value).endswith("flow='pt2e' can take it as it is")
    else:
        assert sqnr(model(images[0]), quantize()(images[0])) > 25


@pytest.mark.skipif(not FBGEMM, reason="PyTorch for ARM has no fbgemm")
@pytest.mark.parametrize("trained", [False, True])
def test_a_kernel_that_is_wrong_is_replaced_named_and_comes_back_from_a_file(trained, tmp_path):
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, stride=2)).eval()  # noqa: E731
    model, x = make(), torch.randn(2, 3, 8, 8)
    if trained:
        prepared = prepare_qat(model, x, engine="fbgemm")
        prepared(x)
    with pytest.warns(QuantizationWarning, match="'fbgemm' computes 2 wrongly"):
        quantized = convert(prepared) if trained else quantize_static(model, [x], engine="fbgemm")
    assert sqnr(model(x), quantized(x)) > 25
    assert [type(module) for name, module in quantized.named_modules() if name == "2"] == [InFloats]
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", make())(x), quantized(x))


@pytest.mark.parametrize("engine", [e for e in torch.backends.quantized.supported_engines if e != "none"])
def test_copies_and_reloads_compute_the_same_whatever_engine_is_at_work(engine, images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)).eval()
    quantized = quantize_static(model, images, engine=engine)
    expected = quantized(images[0])
    for copied in (copy.deepcopy(quantized), copy.deepcopy(copy.deepcopy(quantized))):
        assert torch.equal(copied(images[0]), expected)
        copied.load_state_dict(quantized.state_dict())
        assert torch.equal(copied(images[0]), expected)


class DropPath(nn.Module):
    def forward(self, x):
        return 2 * x * (torch.rand_like(x) < 0.5).float() if self.training else x


def test_a_training_branch_does_not_stay_and_its_line_is_named(images):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), DropPath(), nn.BatchNorm2d(8, eps=1e-2, momentum=0.3), nn.Conv2d(8, 4, 1))
    assert len(lines_that_read_training(model, (images[0],))) == 1
    for flow in FLOWS:
        with pytest.warns(QuantizationWarning, match="reads self.training: at .*test_checks.py"):
            prepared = prepare_qat(model.eval(), images[0], flow=flow)
        prepared(images[0])
        quantized = convert(prepared)
        assert torch.equal(quantized(images[0]), quantized(images[0]))


@pytest.mark.parametrize("flow", FLOWS)
def test_a_batch_norm_that_trains_keeps_its_own_eps_and_momentum(flow, images):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8, eps=0.5, momentum=0.25)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), norm, nn.Conv2d(8, 4, 1)).eval()
    prepared = prepare_qat(model, images[0], flow=flow)
    with torch.no_grad():
        before = model[1](model[0](images[0])).mean((0, 2, 3))
        prepared(images[0])
    trained = dict(prepared.named_buffers())
    mean = next(value for name, value in trained.items() if name.endswith("running_mean") or "running_mean" in name)
    torch.testing.assert_close(mean, 0.25 * before, rtol=0.05, atol=0.02)  # the input of the norm is rounded
    assert sqnr(prepared.eval()(images[0]), convert(prepared)(images[0])) > 25


@pytest.mark.parametrize("flow", FLOWS)
def test_dropout_drops_in_training_and_not_at_work(flow, images):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Conv2d(8, 4, 1)).eval()
    prepared = prepare_qat(model, images[0], flow=flow)
    assert not torch.equal(prepared(images[0]), prepared(images[0]))
    twin = copy.deepcopy(prepared).eval()
    for module in twin.modules():
        if hasattr(module, "disable_observer"):
            module.disable_observer()
    assert torch.equal(twin(images[0]), twin(images[0]))
    quantized = convert(prepared)
    assert torch.equal(quantized(images[0]), quantized(images[0]))


class Shuffled:
    """Gives its batches in another order at each reading, as a loader that shuffles does."""

    def __init__(self, batches):
        self.batches, self.reading = batches, 0

    def __iter__(self):
        self.reading += 1
        return iter(self.batches if self.reading % 2 else self.batches[::-1])


@pytest.mark.parametrize("once", [False, True])
def test_data_may_come_in_another_order_when_they_are_read_again(once, images):
    model = two_convolutions(lambda s, x: s.second(F.interpolate(s.first(x), scale_factor=2, mode="bicubic")))
    data = iter(images) if once else Shuffled(images)
    with pytest.warns(QuantizationWarning, match="no INT8 kernel"):  # found by the first reading
        quantized = quantize_static(model, data)
    assert sqnr(model(images[0]), quantized(images[0])) > 25


def test_what_stays_in_floats_is_said(images):
    model = Forward(
        lambda s, x: s.h(s.g(x.flatten(2))[0]), g=nn.GRU(144, 8, batch_first=True), h=nn.Linear(8, 4)
    ).eval()
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: g \(GRU\)"):
        quantize_static(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_static(model, images, keep_float=["g"])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_that_no_kernel_has_stays_in_floats(images):
    layers = [nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.Conv2d(8, 8, 4, padding="same")]
    model = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d(8, 4, 1)).eval()
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: 0 \(Conv2d\), 1 \(Conv2d\)$"):
        quantized = quantize_static(model, images)
    assert sqnr(model(images[0]), quantized(images[0])) > 25
    with pytest.raises(ValueError, match="no INT8 kernel pads like that\\. flow='fx' can take it as it is"):
        quantize_static(model, images, "pt2e")


def test_an_operator_without_a_kernel_stays_in_floats(images):
    model = two_convolutions(lambda s, x: s.second(F.interpolate(s.first(x), scale_factor=2, mode="bicubic")))
    with pytest.warns(QuantizationWarning, match="no INT8 kernel for torch.nn.functional.interpolate"):
        quantized = quantize_static(model, images)
    assert sqnr(model(images[0]), quantized(images[0])) > 25


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("between", [lambda s, x: s.second(s.first(x) + 3), lambda s, x: s.second(0.1 * s.first(x))])
def test_what_is_computed_with_a_number_has_a_range_of_its_own(flow, between, images):
    model = two_convolutions(between)
    assert sqnr(model(images[0]), quantize_static(model, images, flow)(images[0])) > 25
    prepared = prepare_qat(model, images[0], flow=flow)
    prepared(images[0])
    assert sqnr(prepared.eval()(images[0]), convert(prepared)(images[0])) > 25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(nn.Linear(3, 3)), "pass the nn.Module that it was made of"),
        (lambda: nn.DataParallel(nn.Linear(3, 3)), r"pass model\.module"),
        (lambda: nn.Sequential(nn.Linear(3, 3), Forward(lambda s, x: x + torch.rand(()))), "another output each time"),
        (lambda: nn.Sequential(nn.Linear(3, 3), Forward(lambda s, x: x / 0)), r"NaN or infinity \(first in 1, Forward"),
        (lambda: nn.Sequential(nn.Flatten()), "finds nothing to quantize"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_that_nobody_can_compare_or_quantize_is_refused_at_once(make, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        quantize_static(model, [torch.randn(4, 3)])
    with pytest.raises(ValueError, match=message):
        prepare_qat(model, torch.randn(4, 3))


def test_an_infinite_mask_is_answered_with_a_boolean_one():
    model = Forward(lambda s, x, mask: (s.q(x) + mask).softmax(-1), q=nn.Linear(4, 4)).eval()
    mask = torch.full((4, 4), float("-inf")).triu(1)
    with pytest.raises(ValueError, match="masked_fill with a boolean one"):
        quantize_static(model, [((torch.randn(4, 4), mask), None)])


def test_weights_that_one_scale_cannot_hold_are_named_where_there_is_no_batch():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight.data[0, 0] = 100
    with pytest.warns(QuantizationWarning, match=r"^1 \(Linear\) keeps its weights to -?\d+\.\d dB only"):
        quantize_dynamic(model)


def test_a_parametrization_becomes_permanent_on_a_copy_and_stays_on_the_model():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(6, 4)
    expected = model(x)
    assert torch.equal(plain_copy(model)(x), expected)
    diagnose(model, [x], progress=False)
    for quantized in (quantize_static(model, [x]), quantize_dynamic(model)):
        assert sqnr(expected, quantized(x)) > 25
    assert torch.equal(model(x), expected)
    assert hasattr(model[0], "parametrizations")


def test_inputs_of_any_number_and_name_can_be_traced():
    def star(self, *xs):
        first, second = xs
        return self.bn(self.conv(first)) + second

    def named(self, **xs):
        return self.bn(self.conv(xs["x"])) + xs["y"]

    for function in (star, named):
        kind = type("Kind", (nn.Module,), {"forward": function})
        model = kind()
        model.conv, model.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        assert [fusion.kind for fusion in find_fusions(model.eval())] == ["Conv-BN"]
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(fuse(model)(x=x, y=y), model(x=x, y=y))


ROWS = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))


def two_layers(forward=lambda self, x: self.second(F.relu(self.first(x)))):
    torch.manual_seed(0)
    return Forward(forward, first=nn.Linear(16, 16), second=nn.Linear(16, 4)).eval()


def test_a_hook_stays_in_every_flow_that_takes_it():
    model = two_layers()
    model.first.register_forward_hook(lambda layer, given, output: 3 * output)
    with pytest.warns(QuantizationWarning, match="leaves in floating point: first"):
        assert sqnr(model(ROWS), quantize_static(model, [ROWS])(ROWS)) > 25
    assert sqnr(model(ROWS), quantize_dynamic(model)(ROWS)) > 25


def test_a_large_output_hides_no_other():
    exact, good = [torch.ones(4), 1000 * torch.ones(4)], [1.01 * torch.ones(4), 1000 * torch.ones(4)]
    assert agreement(exact, good) == pytest.approx(40, abs=0.01)
    assert agreement([torch.ones(4), torch.zeros(4)], [torch.ones(4), torch.full((4,), 0.1)]) == pytest.approx(20)
    assert agreement([torch.ones(2), torch.tensor([3])], [torch.ones(2), torch.tensor([4])]) == float("inf")
    assert agreement([torch.tensor([1 + 1j])], [torch.tensor([1 + 0j])]) == pytest.approx(3.01, abs=0.01)


def its_own_forward(model):
    given = model.forward
    model.forward = lambda x: given(x / 2)
    return model


class Stays(nn.Linear):
    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: its_own_forward(two_layers()), "the forward of Forward was replaced by a function"),
        (lambda: nn.Sequential(Stays(16, 16), nn.ReLU(), nn.Linear(16, 2)), "Stays gives itself in place of a copy"),
        (lambda: torch.compile(two_layers()), "pass model._orig_mod"),
        (lambda: two_layers(lambda self, x: self.second(self.first(x)).sum().item()), "Forward gives no tensor"),
    ],
)
def test_what_cannot_be_copied_or_compared_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        quantize_static(make(), [ROWS])


class Remembers(nn.Module):
    """Keeps a mean with its history, and whatever it saw; its train() returns nothing."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(16, 4), []
        self.register_buffer("mean", torch.zeros(4))

    def train(self, mode=True):
        super().train(mode)

    def forward(self, x):
        y = self.layer(x)
        if self.training:
            self.mean = 0.9 * self.mean + y.mean(0)
            self.seen.append(y)
        return y


def test_what_a_model_keeps_of_its_training_is_copied_too():
    model = Remembers()
    model(ROWS)
    model.eval()
    assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS], "pt2e")(ROWS).detach()) > 25
    assert len(model.seen) == 1
    with pytest.raises(ValueError, match=r"its train\(\) returns nothing: let it return self. flow='pt2e' can take it"):
        quantize_static(model, [ROWS])


def test_a_list_that_holds_itself_is_copied():
    model = Remembers()
    model.seen.append(model.seen)
    model(ROWS)
    copied = plain_copy(model)
    assert copied.seen[0] is copied.seen
    assert not copied.seen[1].requires_grad


def test_inference_mode_around_a_flow_changes_nothing():
    model = two_layers()
    with torch.inference_mode():
        quantized, prepared = quantize_static(model, [ROWS.clone()]), prepare_qat(model, ROWS.clone())
    assert sqnr(model(ROWS).detach(), quantized(ROWS)) > 25
    prepared(ROWS).sum().backward()


def test_a_loader_may_fill_one_buffer_again_and_again():
    def batches():
        buffer = torch.empty(6, 16)
        for factor in (1, 2, 3):
            yield buffer.copy_(factor * ROWS)

    assert sqnr(two_layers()(ROWS).detach(), quantize_static(two_layers(), batches())(ROWS)) > 25


def test_dynamic_takes_flattened_and_parametrized_layers():
    reader = Forward(
        lambda self, x: self.memory.flatten_parameters() or self.memory(x)[0], memory=nn.LSTM(16, 8)
    ).eval()
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(16, 16))).eval()
    for float_model, x in ((reader, ROWS[None]), (model, ROWS)):
        quantized = quantize_dynamic(float_model)
        assert sqnr(float_model(x).detach(), quantized(x).detach()) > 25
        assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))


@pytest.mark.parametrize("flow", FLOWS)
def test_a_model_that_no_zeros_may_enter_comes_back(flow, tmp_path):
    model = two_layers(lambda self, x: self.second(self.first(input=(x - x.mean()) / x.std())))
    quantized = quantize_static(model, [ROWS], flow)
    save(quantized, tmp_path / "model.qt")
    assert torch.equal(load(tmp_path / "model.qt", model)(ROWS), quantized(ROWS))


def norm_along_another_axis():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(64, 4, 8)
    x = x * torch.tensor([1, 4, 0.2, 3]).view(1, 4, 1) + torch.tensor([1, 0, -2, 3]).view(1, 4, 1)
    for _ in range(30):
        model(x)
    return model.eval(), x


@pytest.mark.parametrize("flow", FLOWS)
def test_a_batch_norm_along_another_axis_is_not_folded(flow, tmp_path):
    model, x = norm_along_another_axis()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quantized = quantize_static(model, [x], flow)
    assert sqnr(model(x).detach(), quantized(x)) > 20
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", model)(x), quantized(x))
    prepared = prepare_qat(model, x, flow=flow)
    for _ in range(20):
        prepared(x)
    assert sqnr(prepared.eval()(x).detach(), convert(prepared)(x).detach()) > 20


def test_inputs_show_along_which_axis_a_batch_norm_normalizes():
    model, x = norm_along_another_axis()
    [norm] = find_fusions(model, (x,))
    assert norm.reason == "1 normalizes along axis 1, and 0 gives its channels along another"
    torch.testing.assert_close(fuse(model, (x,))(x), model(x))
    assert diagnose(model, [x], progress=False).experiment.prepare(Configuration())[0].layers["0"].norm == ""


LEFT_ALONE = {
    "statistics": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "a hook": lambda: tripled(nn.Hardswish()),
    "a hook on a norm": lambda: tripled(nn.BatchNorm2d(8)),
    "PReLU": nn.PReLU,
}


def tripled(layer):
    layer.register_forward_hook(lambda layer, given, output: 3 * output)
    return layer


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_a_layer_that_no_kernel_computes_stays_in_floats_and_is_named(kind, trained, images, tmp_path):
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), LEFT_ALONE[kind](), nn.ReLU(), nn.Conv2d(8, 4, 1))  # noqa: E731
    model = make()
    for _ in range(30):
        model(images[0])
    model.eval()
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: 1 \(\w+\)$"):
        quantized = prepare_qat(model, images[0]) if trained else quantize_static(model, images)
    if trained:
        for _ in range(5):
            quantized(images[0])
        expected, quantized = quantized.eval(), convert(quantized)
    for x in (images[0], 0.3 * images[0]):
        assert sqnr((expected if trained else model)(x).detach(), quantized(x).detach()) > 20
    x = images[0]
    assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", make())(x), quantized(x))


def test_what_is_to_stay_in_floats_does_though_a_kernel_stands(images):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 4, 1)).eval()
    quantized = quantize_static(model, images, keep_float=["1"])
    assert isinstance(quantized.get_submodule("1"), nn.Hardswish)
    assert not isinstance(quantized.get_submodule("1"), nnq.Hardswish)
    assert sqnr(model(images[0]), quantized(images[0])) > 25


def multiplied(function):
    model = Forward(lambda self, x: self.head(function(x, self.w)), head=nn.Linear(16, 4))
    model.w = nn.Parameter(torch.randn(16, 16) / 4)
    return model


@pytest.mark.parametrize(
    ("make", "kind", "flows"),
    [
        (
            lambda: nn.Sequential(
                nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 1, enable_nested_tensor=False),
                nn.Linear(16, 4),
            ),
            r"0 \(TransformerEncoder\)",
            ("fx",),
        ),
        (
            lambda: Forward(lambda s, x: s.head(s.b(x, x)), b=nn.Bilinear(16, 16, 16), head=nn.Linear(16, 4)),
            r"b \(Bilinear\)",
            FLOWS,
        ),
        (lambda: multiplied(lambda x, w: torch.einsum("ti,ij->tj", x, w)), r"w \(Parameter\)", FLOWS),
        (lambda: multiplied(lambda x, w: x @ w.t()), r"w \(Parameter\)", FLOWS),
    ],
)
def test_weights_that_no_flow_rounds_are_named(make, kind, flows):
    torch.manual_seed(0)
    model = make().eval()
    for flow in flows:
        with pytest.warns(QuantizationWarning, match=f"leaves in floating point: {kind}$"):
            assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS], flow)(ROWS)) > 25


def blocks():
    torch.manual_seed(0)
    return Forward(
        lambda self, x: self.head(self.block(x)),
        block=nn.Sequential(nn.Linear(16, 16), nn.ReLU()),
        head=nn.Linear(16, 4),
    ).eval()


@pytest.mark.parametrize("name", ["block", ""])
def test_a_hook_of_a_block_is_told_of_where_it_watches_and_refused_where_it_changes(name):
    model, seen = blocks(), []
    handle = model.get_submodule(name).register_forward_hook(lambda block, given, output: seen.append(output))
    said = name or "the model itself"
    with pytest.warns(QuantizationWarning, match=f"leaves out the hooks of {said}, which change nothing"):
        assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS])(ROWS)) > 20
    assert {*map(type, seen)} == {torch.Tensor}
    handle.remove()
    model.get_submodule(name).register_forward_pre_hook(lambda block, given: (given[0] / 10,))
    for quantize in (lambda: quantize_static(model, [ROWS]), lambda: prepare_qat(model, ROWS)):
        with pytest.raises(ValueError, match=rf"hooks of {said} get lost.*handle.remove\(\). flow='pt2e' can take it"):
            quantize()


def test_a_hook_that_holds_the_given_model_is_refused():
    model = blocks()
    model.seen = []
    hooks = (
        lambda block, given, output: model.seen.append(output),
        lambda block, given, output, model=model: model.seen.append(output),
        functools.partial(lambda extra, block, given, output: model.seen.append(output), 1),
    )
    for hook in hooks:
        handle = model.block.register_forward_hook(hook)
        for quantize in (
            quantize_dynamic,
            lambda model: quantize_static(model, [ROWS]),
            lambda model: diagnose(model, [ROWS], progress=False),
        ):
            with pytest.raises(ValueError, match=r"a hook of block \(Sequential\) holds a module"):
                quantize(model)
        handle.remove()
    assert not model.seen


def test_a_hook_that_torchao_takes_for_the_layer_is_named():
    model = blocks()
    model.head.register_forward_hook(lambda block, given, output: 3 * output)
    with pytest.raises(ValueError, match=r"there are hooks on head: take them off .* flow='fx' can take it as it is"):
        quantize_static(model, [ROWS], "pt2e")


def test_autocast_in_forward_is_named():
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            x = self.first(x)
        return self.second(x.float())

    with pytest.raises(ValueError, match=r"autocast gets lost, here at .*test_checks.py:\d+: `with torch.autocast"):
        quantize_static(two_layers(forward), [ROWS])
    assert "noted" not in torch.autocast.__enter__.__qualname__


def with_constant(constant):
    model = two_layers()
    model.second.bias.data += constant
    return model


@pytest.mark.parametrize("trained", [False, True])
def test_a_constant_that_hides_what_varies_is_told_of(trained):
    model = with_constant(1000)
    with pytest.warns(QuantizationWarning, match="an output lies far from zero and varies little"):
        quantized = prepare_qat(model, ROWS) if trained else quantize_static(model, [ROWS])
    assert sqnr(model(ROWS).detach(), quantized.eval()(ROWS).detach()) > 50
    assert sqnr(model(ROWS).detach() - 1000, quantized(ROWS).detach() - 1000) < 10
    kept = quantize_static(model, [ROWS], keep_float=["second"])
    assert sqnr(model(ROWS).detach() - 1000, kept(ROWS) - 1000) > 20
    assert any("far from zero" in note for note in diagnose(model, [ROWS], progress=False).notes)


@pytest.mark.parametrize("rows", [1, 6])
def test_no_constant_is_told_of_where_what_varies_is_seen(rows):
    for head in (nn.Identity(), nn.Softmax(-1), nn.Sigmoid(), nn.Linear(4, 1)):
        model = nn.Sequential(with_constant(1), head).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("error", QuantizationWarning)
            quantize_static(model, [ROWS[:rows]])
        assert not diagnose(model, [ROWS[:rows]], progress=False).notes


def padded():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2)
    model = Forward(lambda self, x, mask: self.encoder(x, src_key_padding_mask=mask), encoder=encoder)
    return model.eval(), (torch.randn(4, 5, 16), torch.arange(5) >= torch.tensor([5, 3, 4, 2])[:, None])


def test_what_a_mask_hides_is_computed_by_one_rule():
    model, inputs = padded()
    with pytest.warns(QuantizationWarning, match="leaves in floating point"):
        quantized = quantize_static(model, [(inputs, None)], "pt2e")
    seen = ~inputs[1]
    assert sqnr(model(*inputs).detach()[seen], quantized(*inputs).detach()[seen]) > 25
    simulated = diagnose(model, [(inputs, None)], progress=False)
    assert simulated.experiment.agreement(simulated.simulate(Configuration())) > 25
    assert torch.backends.mha.get_fastpath_enabled()


def test_layers_inside_a_block_of_pytorch_are_not_half_converted():
    torch.manual_seed(0)
    layers = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), nn.Linear(16, 4)
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: 1 \(TransformerEncoderLayer\)"):
        prepared = prepare_qat(nn.Sequential(nn.Linear(16, 16), *layers), ROWS[None])
    for _ in range(5):
        prepared(ROWS[None])
    assert sqnr(prepared.eval()(ROWS[None]).detach(), convert(prepared)(ROWS[None]).detach()) > 25
