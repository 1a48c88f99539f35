"""Inputs and data of every form: each is taken, or answered with a way that holds."""

import copy
import warnings
from types import SimpleNamespace

from qtutor import runtimes
from qtutor.affine import sqnr
from qtutor.benchmark import accuracy, compare
from qtutor.diagnosis import diagnose
from qtutor.fusion import find_fusions, fuse
from qtutor.lowbit import awq_scales, integers
from qtutor.models.copying import copy_model
from qtutor.models.running import agreement
from qtutor.repair import equalize
from qtutor.simulation import Configuration
from qtutor.workflows import (
    convert,
    load,
    prepare_qat,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
    recipe,
    save,
)
from qtutor.workflows.telling import QuantizationWarning

import pytest
import torch
import torch.nn.functional as F
from people import (
    FLOWS,
    PYTORCH_RETIRES,
    ROWS,
    Forward,
    in_int8,
    two_convolutions,
    two_layers,
)
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

pytestmark = PYTORCH_RETIRES


def test_an_eager_layer_gets_its_input_by_name_or_the_refusal_says_how(images):
    layers = {"enter": QuantStub(), "layer": nn.Conv2d(3, 4, 1), "leave": DeQuantStub()}
    model = Forward(lambda s, x: s.leave(s.layer(input=s.enter(x))), **layers).eval()
    assert sqnr(model(images[0]), quantize_static(model, images, "eager")(images[0])) > 25
    model.layer = nn.Linear(16, 4)
    with pytest.raises(ValueError, match=r"layer .*has other names for its inputs: give them by place"):
        quantize_static(model, [ROWS], "eager")


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


def test_weights_that_one_scale_cannot_hold_are_named_where_there_is_no_batch():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight.data[0, 0] = 100
    with pytest.warns(QuantizationWarning, match=r"^1 \(Linear\) keeps its weights to -?\d+\.\d dB only.*equalize"):
        quantized = quantize_dynamic(model)
    with pytest.warns(QuantizationWarning):
        equalized = quantize_dynamic(equalize(model))
    x = torch.randn(32, 64)
    other, equal = ((model(x) - each(x)).detach()[:, 1:].norm() for each in (quantized, equalized))
    assert equal < 0.5 * other


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


class KeepsFeatures(nn.Module):
    """Reads what a hook of a layer or of a block has kept: in a dict that both know, or by a method."""

    def __init__(self, layer, kept=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.tail, self.head, self.kept = nn.Linear(16, 16), nn.Linear(32, 4), {} if kept is None else kept
        hook = self.keep if kept is None else lambda layer, given, output: kept.update(middle=output)
        self.get_submodule(layer).register_forward_hook(hook)

    def keep(self, layer, given, output):
        self.kept["middle"] = output

    def forward(self, x):
        y = self.tail(self.body(x))
        return self.head(torch.cat([y, self.kept["middle"].clamp(-1, 1)], 1))


@pytest.mark.filterwarnings("ignore:.* leaves in floating point")
@pytest.mark.parametrize("layer", ["body", "body.0"])
def test_features_that_a_hook_keeps_are_those_of_each_input_or_it_is_refused(layer):
    torch.manual_seed(0)
    model, other = KeepsFeatures(layer).eval(), ROWS.flip(0) + 1
    model(other)
    for quantized in (quantize_dynamic(model), quantize_static(model, [ROWS, other], "pt2e")):
        for x in (ROWS, other):
            assert sqnr(model(x).detach(), quantized(x).detach()) > 25
    for quantize in (lambda: quantize_static(model, [other]), lambda: prepare_qat(model, other)):
        with pytest.raises(ValueError, match=r'kept\["middle"\].* left behind .*in forward. flow=\'pt2e\' can take it'):
            quantize()
    shared = KeepsFeatures(layer, {}).eval()
    for quantize in (quantize_dynamic, copy_model, lambda model: quantize_static(model, [ROWS])):
        with pytest.raises(ValueError, match=f"a hook of {layer} .* fills kept of the given model.*fills self.kept$"):
            quantize(shared)
    assert not shared.kept


class OneBuffer:
    def __iter__(self):
        buffer, labels = torch.empty(6, 16), torch.empty(6, dtype=torch.long)
        for number, factor in enumerate((10, 1, 0.01)):
            yield buffer.copy_(factor * ROWS), labels.fill_(number)


def test_a_loader_may_fill_one_buffer_again_and_again():
    model, expected = two_layers(), [(factor * ROWS, torch.full((6,), n)) for n, factor in enumerate((10, 1, 0.01))]
    for data in (OneBuffer(), iter(OneBuffer())):
        assert sqnr(model(10 * ROWS).detach(), quantize_static(model, data)(10 * ROWS)) > 25
    built = runtimes.build(model, OneBuffer(), ["FX INT8", "ONNX Runtime INT8"])
    for name, runtime in built.items():
        assert runtime.missing or sqnr(model(10 * ROWS).detach(), runtime(10 * ROWS)) > 20, name
    assert diagnose(model, OneBuffer(), progress=False).float_metric == accuracy(model, expected)
    table = compare({"model": model}, ROWS, repeats=1, loader=iter(OneBuffer())).table
    assert table["accuracy"].item() == accuracy(model, expected)


RECURRENT = (
    nn.LSTM(16, 8, 2, bidirectional=True),
    nn.GRU(16, 8, batch_first=True),
    nn.LSTMCell(16, 8),
    nn.GRUCell(16, 8),
)


@pytest.mark.parametrize("layer", RECURRENT, ids=lambda layer: type(layer).__name__)
def test_a_quantized_recurrent_layer_takes_what_has_no_batch(layer):
    x, quantized = ROWS if isinstance(layer, nn.RNNBase) else ROWS[0], copy.deepcopy(quantize_dynamic(layer))
    given = layer(x)
    state = given[1] if isinstance(layer, nn.RNNBase) else given
    for arguments in ((x,), (x, state)):
        expected, got = tree_leaves(layer(*arguments)), tree_leaves(quantized(*arguments))
        assert agreement([y.detach() for y in expected], [y.detach() for y in got]) > 20


class SomeLeftOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x, mask=None, pos=None):
        x = self.layer(x) if mask is None else self.layer(x) * mask
        return x if pos is None else x + pos


def test_inputs_that_a_flow_cannot_give_are_refused_with_a_way_that_holds():
    model = SomeLeftOut().eval()
    with pytest.raises(TypeError, match=r"none for pos, .* after one left out: .* forward\(self, x, pos\)"):
        quantize_static(model, [{"x": ROWS, "pos": ROWS}])
    wrapped = Forward(lambda self, x, pos: self.model(x, pos=pos), model=model).eval()
    assert sqnr(wrapped(ROWS, ROWS).detach(), quantize_static(wrapped, [((ROWS, ROWS), None)])(ROWS, ROWS)) > 25

    packed, reader = pack_sequence([ROWS[:4], ROWS[:2]]), Forward(lambda s, x: s.g(x)[1], g=nn.GRU(16, 8)).eval()
    for data in ([packed], [(packed, None)], [((packed,), None)]):
        with pytest.raises(TypeError, match="got PackedSequence: quantize_dynamic takes"):
            quantize_static(reader, data)
        assert list(diagnose(reader, data, progress=False).table["layer"]) == ["g"]
    assert sqnr(reader(packed).detach(), quantize_dynamic(reader)(packed)) > 25

    ragged = torch.nested.nested_tensor([ROWS, ROWS], layout=torch.jagged)
    for x, message in ((ROWS.to_sparse(), r"sparse_coo: pass x.to_dense\(\)"), (ragged, "nested: pass x.to_padded_t")):
        with pytest.raises(TypeError, match=message):
            quantize_static(model, [x])
    assert torch.equal(ragged.to_padded_tensor(0.0), torch.stack([ROWS, ROWS]))


@pytest.mark.parametrize("flow", FLOWS)
def test_an_input_may_be_left_out_before_another(flow, tmp_path):
    torch.manual_seed(0)
    model, inputs = SomeLeftOut().eval(), (ROWS, None, ROWS)
    expected = model(*inputs).detach()
    quantized = quantize_static(model, [(inputs, None)] * 2, flow)
    prepared = prepare_qat(model, inputs, flow=flow)
    prepared(*inputs)
    save(quantized, tmp_path / "model.qt")
    for other in (quantized, convert(prepared), load(tmp_path / "model.qt", model), copy.deepcopy(quantized)):
        assert sqnr(expected, other(*inputs)) > 25
        with pytest.raises((AssertionError, ValueError), match="mask"):
            other(ROWS, ROWS, ROWS)
    with pytest.raises(ValueError, match="mask"):
        quantize_static(model, [(inputs, None), ((ROWS, ROWS, ROWS), None)], flow)


def test_every_room_takes_an_input_that_is_left_out():
    torch.manual_seed(0)
    model, inputs = SomeLeftOut().eval(), (ROWS, None, ROWS.clone())
    expected, batch = model(*inputs).detach(), (inputs, torch.zeros(6).long())
    built = runtimes.build(model, [batch])
    for name, runtime in built.items():
        assert "None" not in runtime.missing
        assert runtime.missing or sqnr(expected, runtime(*inputs)) > 20, name
        assert torch.equal(inputs[2], ROWS), f"{name} writes into its input"
    found = diagnose(model, [batch], progress=False)
    with pytest.warns(QuantizationWarning, match="where the simulation of its layers promised"):
        assert sqnr(expected, found.apply()(*inputs)) > 25
    assert not any(compare(built, inputs, repeats=1, seconds=0.1).table.loc[["eager FP32", "FX INT8"], "error"])
    torch.testing.assert_close(fuse(model, inputs)(*inputs), model(*inputs))


class TakesAMapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, batch):
        return self.layer(batch["x"])


def test_a_forward_that_takes_one_mapping_is_answered_with_a_module_around_it():
    model = TakesAMapping().eval()
    for data in ([{"x": ROWS}], [({"x": ROWS}, None)]):
        with pytest.raises(TypeError, match=r"forward takes it as it is, .* whose forward\(self, x\) makes it"):
            quantize_static(model, data)
    wrapped = Forward(lambda self, x: self.model({"x": x}), model=model).eval()
    assert sqnr(wrapped(ROWS).detach(), quantize_static(wrapped, [ROWS])(ROWS)) > 25


def test_what_is_no_model_is_named(tmp_path):
    save(quantize_static(two_layers(), [ROWS]), tmp_path / "model")
    for given, said in ((TakesAMapping, "type: TakesAMapping is a class, pass TakesAMapping"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"quantization needs a torch.nn.Module, got {said}"):
            load(tmp_path / "model", given)
        with pytest.raises(TypeError, match=f"quantization needs a torch.nn.Module, got {said}"):
            quantize_static(given, [{"batch": ROWS}])
    with pytest.raises(ValueError, match="convert needs a model that prepare_qat made, got NoneType"):
        convert(None)
    with pytest.raises(ValueError, match="save takes a quantized model, got NoneType"):
        save(None, tmp_path / "other")


def test_an_example_may_be_named_and_an_output_sparse():
    model = two_layers(lambda self, x: self.second(self.first(x)).relu().to_sparse())
    assert sqnr(model(ROWS).to_dense().detach(), quantize_static(model, [ROWS])(ROWS).to_dense()) > 25
    diagnose(model, [ROWS], progress=False)
    prepare_qat(SomeLeftOut().eval(), {"x": ROWS, "mask": ROWS})(ROWS, ROWS)


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


def test_inputs_that_one_scale_rounds_to_zero_are_named_with_a_way_that_holds():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval(), torch.randn(64, 16)
    x[:, 3] *= 2e4
    with torch.no_grad():
        model[0].weight[:, 3] /= 2e4
        model[0].weight[:, 5] = 0  # which is pruned
    exact = model(x).detach()
    with pytest.warns(
        QuantizationWarning, match=r"0 \(Linear\) rounds to zero all weights of 1 of its 16 inputs \(3\)"
    ):
        assert sqnr(exact, quantize_dynamic(model)(x)) < 10
    x[:, 3] /= 2e4
    with torch.no_grad():
        model[0].weight[:, 3] *= 2e4
    assert sqnr(exact, quantize_dynamic(model)(x)) > 25


def test_inputs_that_a_loud_one_drowns_in_four_bits_are_named_with_a_way_that_holds():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)), torch.randn(64, 128)
    model[0].weight.data[:, 64:] = 0  # which is pruned
    exact = model(x).detach()
    assert sqnr(exact, quantize_weights(model)(x).detach()) > 15
    model[0].weight.data[:, 3] *= 30
    x[:, 3] /= 30
    told = r"0 \(Linear\) keeps .* in 1 of its 2 groups to [34]\.\d dB only.* smaller than 64 .*awq_scales chooses"
    with pytest.warns(QuantizationWarning, match=told):
        assert sqnr(exact, quantize_weights(model)(x).detach()) < 10
    scales = awq_scales(model[0].weight, x, format=integers(4, 64))
    model[0].weight.data *= scales
    assert sqnr(exact, quantize_weights(model)(x / scales).detach()) > 15


def on_a_grid(self, x):
    rows, columns = torch.meshgrid(torch.arange(x.size(0)), torch.arange(x.shape[-1]), indexing="ij")
    return self.first(x) + 0.1 * rows + torch.linspace(-1, 1, x.size(-1)) * columns


SIZES = {
    "zeros": lambda self, x: self.first(x) + torch.zeros(x.size(0), 1),
    "a tuple": lambda self, x: self.first(x) + torch.zeros((x.size(0), 1)),
    "random": lambda self, x: self.first(x) + 0 * torch.randn(x.size(0), 1),
    "like": lambda self, x: self.first(x) + x.new_ones(x.size(0), 1) + self.steps.new_zeros(x.size(0), 1),
    "triangle": lambda self, x: torch.ones(x.size(0), x.size(0), device=x.device).tril() @ self.first(x),
    "eye": lambda self, x: torch.eye(x.size(0), dtype=x.dtype) @ self.first(x),
    "number": lambda self, x: self.first(x) / torch.tensor(x.size(0)),
    "slice": lambda self, x: self.first(x) + self.steps[: x.size(0)] + self.plain[None, : x.size(0)][0],
    "expand": lambda self, x: self.first(x) + self.steps[:1].expand(x.size(0), -1),
    "repeat": lambda self, x: self.first(x) + self.steps[:1].repeat(x.size(0), 1),
    "positions": lambda self, x: self.first(x) + self.plain[torch.arange(0, x.size(0), device=x.device)],
    "grid": on_a_grid,
    "joined": lambda self, x: self.first(
        torch.cat([x[:, :14], torch.linspace(-1, 1, x.size(0)).view(-1, 1).expand(-1, 1), (x * 2)[:, :1].clone()], 1)
    ),
    "whole": lambda self, x: self.first(x).view(torch.sym_int(x.size(0) / 1), -1),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", SIZES)
def test_a_size_of_an_input_may_go_into_what_forward_makes(kind, trained, tmp_path):
    def make():
        torch.manual_seed(0)
        model = Forward(SIZES[kind], first=nn.Linear(16, 16)).eval()
        model.register_buffer("steps", torch.rand(9, 1))
        model.plain = torch.rand(9, 1)
        return model

    model, quantized = make(), in_int8(make(), ROWS, trained=trained)
    for x in (ROWS, ROWS[:5]):
        assert sqnr(model(x).detach(), quantized(x).detach()) > 20
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", make())(ROWS), quantized(ROWS))
    assert "__getitem__" not in vars(torch.Tensor)


def test_a_few_large_samples_do_not_speak_for_their_batch(monkeypatch):
    monkeypatch.setattr(recipe, "describe", lambda: SimpleNamespace(saturates=True))  # 7 bits, whoever computes
    x = torch.cat([10 * ROWS[:2], 0.1 * torch.randn(200, 16, generator=torch.Generator().manual_seed(1))])
    model = two_layers()
    model.first.bias.data.zero_()
    model.second.bias.data.zero_()
    with pytest.warns(QuantizationWarning, match=r"to 1\d\.\d dB only, .*: first \(Linear\) hurts most"):
        quantized = quantize_static(model, [x])
    assert sqnr(model(x).detach(), quantized(x)) < 20 < sqnr(model(x[:2]).detach(), quantized(x[:2])) - 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (nn.ReLU, r"got type: ReLU is a class, pass ReLU\(...\)"),
        (nn.Linear(2, 2).state_dict(), "got OrderedDict: if these are the weights of a model, build it"),
        (3, "got int$"),
    ],
    ids=["class", "weights", "number"],
)
@pytest.mark.parametrize(
    "use",
    [lambda m: quantize_static(m, [ROWS]), quantize_dynamic, quantize_weights, fuse, lambda m: diagnose(m, [ROWS])],
)
def test_what_is_no_module_is_refused_with_what_to_pass(use, given, said):
    with pytest.raises(TypeError, match=f"needs a torch.nn.Module, {said}"):
        use(given)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, ids, mask):
        return self.layer(ids * mask)


def test_inputs_that_forward_does_not_take_are_told_from_labels():
    model, one = TwoInputs().eval(), SomeLeftOut().layer.eval()
    with pytest.raises(TypeError, match=r"forward got ids only: pass \(\(ids, mask\), None\)"):
        quantize_static(model, [(ROWS, ROWS)])
    assert sqnr(model(ROWS, ROWS).detach(), quantize_static(model, [((ROWS, ROWS), None)])(ROWS, ROWS)) > 25
    with pytest.raises(TypeError, match=r"a batch does not fit forward: .* pass \(\(ids, mask\), None\)"):
        diagnose(model, [(ROWS, ROWS)], progress=False)
    with pytest.raises(TypeError, match="an input must be a tensor, got int"):
        quantize_static(model, [((ROWS, 3), None)])
    with pytest.raises(TypeError, match=r"batch 0 of calibration_data does not fit forward: missing .* 'mask'"):
        quantize_static(model, [ROWS])
    with pytest.raises(
        TypeError, match=r"example_input .* holds 2 inputs, and forward takes input only: leave the labels"
    ):
        prepare_qat(one, (ROWS, torch.zeros(6)))
    model.register_forward_pre_hook(lambda model, given: (*given, torch.ones(16)) if len(given) == 1 else given)
    assert not runtimes.build(model, [ROWS], ["eager FP32"])["eager FP32"].missing


class TakesAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, views):
        return torch.stack([self.layer(view) for view in views]).sum(0)


def test_a_forward_that_takes_one_list_is_answered_with_a_module_around_it():
    inner = TakesAList().eval()
    for inputs, said in (([ROWS, ROWS], "holds 2 inputs.* a list of inputs"), (([ROWS, ROWS],), "got list")):
        with pytest.raises(TypeError, match=f"{said}.* wrap the model in a module"):
            quantize_static(inner, [(inputs, None)])
    model = Forward(lambda self, a, b: self.inner([a, b]), inner=inner).eval()
    assert sqnr(model(ROWS, ROWS).detach(), quantize_static(model, [((ROWS, ROWS), None)])(ROWS, ROWS)) > 25


@pytest.mark.parametrize("flow", FLOWS)
def test_a_batch_of_which_the_model_makes_nan_is_named_though_it_is_not_the_first(flow):
    model = two_layers(lambda self, x: self.second(self.first((x - x.mean()) / x.std())))
    with pytest.raises(ValueError, match=r"Forward itself gives NaN or infinity on batch 1 of calibration_data \("):
        quantize_static(model, [ROWS, torch.zeros(6, 16)], flow)


@pytest.mark.parametrize("flow", FLOWS)
def test_another_flow_is_named_only_if_it_takes_the_batch_that_was_refused(flow):
    model = two_layers(lambda self, x: self.second(torch.nan_to_num(self.first((x - x.mean()) / x.std()))))
    said = "NaN or infinity is computed there, and no scale holds it. No other flow takes it as it is"
    with pytest.raises(ValueError, match=said):
        quantize_static(model, [ROWS, torch.zeros(6, 16)], flow)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)],
        lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)],
        lambda: [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 8, 3), nn.BatchNorm2d(8)],
        lambda: [nn.Flatten(2), nn.Linear(144, 8), nn.BatchNorm1d(3, affine=False)],
    ],
)
@pytest.mark.filterwarnings("ignore:flow=.pt2e. leaves in floating point")
def test_batch_norms_that_pytorch_does_not_merge_stay_beside_their_layer(layers, flow, trained, images):
    torch.manual_seed(0)
    model = nn.Sequential(*layers()).train()
    for _ in range(40):
        model(images[0])
    model.eval()
    quantized = in_int8(model, images[0], flow, trained)
    assert sqnr(model(images[0]).detach(), quantized(images[0]).detach()) > 20


@pytest.mark.parametrize("trained", [False, True])
def test_one_sample_is_captured_though_another_axis_comes_first(trained):
    torch.manual_seed(0)
    model = Forward(lambda s, x, state: s.read(s.enter(x).relu(), state), enter=nn.Linear(16, 8)).eval()
    model.read = nn.GRU(8, 4, batch_first=True)
    inputs = ROWS[None], torch.randn(1, 1, 4)
    with pytest.warns(QuantizationWarning, match=r"floating point: read \(GRU\): quantize_dynamic takes it$"):
        quantized = in_int8(model, inputs, "pt2e", trained)
    assert sqnr(model(*inputs)[0].detach(), quantized(*inputs)[0].detach()) > 25


def sequences_too(self, x):
    if not isinstance(x, torch.Tensor):
        x = x[-1]
    x = self.first(x)
    return self.second(x if torch.is_tensor(x) else x[0])


def changes_what_has_two_names(self, x):
    x = self.first(x)
    other = x
    other += 1
    return self.second(x.relu()) + other[:, :4]


def test_who_asks_whether_an_input_is_a_tensor_gets_the_answer_of_a_run():
    model = two_layers(sequences_too)
    assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS])(ROWS)) > 25
    asks = two_layers(lambda s, x: s.second(y if isinstance(y := s.first(x).relu(), torch.Tensor) else 1 - y))
    with pytest.raises(ValueError, match=r"class of a value, .* here at .*isinstance\(y := .*: do so in __init__"):
        quantize_static(asks, [ROWS])
    with pytest.raises(ValueError, match=r"takes x \+= y for x = x \+ y, here at .*: `other \+= 1`: write that"):
        quantize_static(two_layers(changes_what_has_two_names), [ROWS])


def test_a_loop_as_long_as_an_input_is_named_with_the_flows_that_take_it():
    model = two_layers(lambda self, x: sum(self.second(self.first(x[:, i])) for i in range(x.size(1)))).eval()
    x = torch.stack([ROWS, -ROWS])
    with pytest.raises(
        ValueError,
        match=r"at .*range\(x.size\(1\)\).*: Python counts .* flow='pt2e' captures one length only, quant.* all",
    ):
        quantize_static(model, [x])
    captured, dynamic = quantize_static(model, [x], "pt2e"), quantize_dynamic(model)
    for quantized in (captured, dynamic):
        assert sqnr(model(x).detach(), quantized(x).detach()) > 25
    with pytest.raises(ValueError, match=r"captured where .*== 6"):
        captured(x[:, :3])
    assert sqnr(model(x[:, :3]).detach(), dynamic(x[:, :3])) > 25


def test_what_is_found_at_a_later_batch_begins_the_calibration_anew():
    seen = []

    class Batches(list):
        def __iter__(self):
            for place, batch in enumerate(list.__iter__(self)):
                seen.append(place)
                yield batch

    model = two_layers(lambda s, x: s.second((s.first(x) + torch.where(x > 3, -1e9, 0.0)).softmax(-1)))
    with pytest.warns(QuantizationWarning, match="a mask as far out"):
        quantized = quantize_static(model, Batches([ROWS.clamp(-2, 2), ROWS * 4, -ROWS]))
    assert seen == [0, 1, 0, 1, 2]
    assert sqnr(model(ROWS * 4).detach(), quantized(ROWS * 4).detach()) > 25


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("mark", [-9999.0, -999.0, 1e6])
def test_a_mark_of_what_is_missing_is_named(mark, trained, flow):
    model, x = two_layers(), ROWS.clone()
    x[2, 3] = mark
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", QuantizationWarning)
        try:
            in_int8(model, x, flow, trained)
        except ValueError as refused:
            said = [*said, refused]
    assert sum(f"n input holds {mark:g} beside values" in f"{getattr(each, 'message', each)}" for each in said) == 1


def test_values_that_one_scale_holds_are_no_mark_of_what_is_missing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (ROWS * 1e4, ROWS.abs().exp()):
            quantize_static(two_layers(), [x])


def test_what_no_flow_compiles_is_not_loaded_compiled(images, tmp_path):
    model = two_convolutions(lambda s, x: s.second(s.first(x)))
    save(quantize_static(model, images), tmp_path / "model")
    with pytest.raises(ValueError, match="compile=True is for flow='pt2e'"):
        load(tmp_path / "model", model, compile=True)


def test_a_stream_that_can_be_read_only_once_calibrates_with_what_is_left():
    class Stream:
        def __init__(self, batches):
            self.batches = iter(batches)

        def __iter__(self):
            return self.batches

    model = two_layers(lambda s, x: s.second((s.first(x) + torch.where(x > 3, -1e9, 0.0)).softmax(-1)))
    for behind in ([], [-ROWS]):
        with pytest.warns(QuantizationWarning, match="a mask as far out"):
            quantized = quantize_static(model, Stream([ROWS.clamp(-2, 2), ROWS * 4, *behind]))
        assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 20
