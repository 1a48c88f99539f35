"""Copies, files and states of what a flow made compute the same, or it is said what to call."""

import copy
import warnings
from functools import partial
from pickle import PicklingError
from types import SimpleNamespace

from qtutor import runtimes
from qtutor.affine import sqnr
from qtutor.benchmark import accuracy, compare, flips
from qtutor.diagnosis import diagnose
from qtutor.models.copying import copy_model, plain_copy
from qtutor.models.running import layer_outputs
from qtutor.workflows import (
    convert,
    load,
    model_file,
    prepare_qat,
    pt2e,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
    save,
)
from qtutor.workflows.kernels import InFloats
from qtutor.workflows.telling import QuantizationWarning

import pytest
import torch
import torch.nn.functional as F
from people import (
    CONVERT,
    ENGINES,
    FLOWS,
    PYTORCH_RETIRES,
    ROWS,
    Remembers,
    two_layers,
)
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

pytestmark = PYTORCH_RETIRES


FBGEMM = "fbgemm" in ENGINES


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


@pytest.mark.parametrize("engine", ENGINES)
def test_copies_and_reloads_compute_the_same_whatever_engine_is_at_work(engine, images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)).eval()
    quantized = quantize_static(model, images, engine=engine)
    expected = quantized(images[0])
    for copied in (copy.deepcopy(quantized), copy.deepcopy(copy.deepcopy(quantized))):
        assert torch.equal(copied(images[0]), expected)
        for wrap in (lambda model: model, nn.Sequential):
            wrap(copied).load_state_dict(wrap(quantized).state_dict())
            assert torch.equal(copied(images[0]), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [2, 3])
def test_a_layer_that_gives_other_weights_back_is_not_copied_with_these(size, engine, images, tmp_path):
    torch.manual_seed(0)

    def make():
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, size), nn.Conv2d(8, 4, 1)).eval()

    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)  # where it runs in floats for that
        quantized = quantize_static(model, images, engine=engine)
    assert sqnr(model(images[0]).detach(), quantized(images[0])) > 25
    save(quantized, tmp_path / "model")
    for copied in (copy.deepcopy(quantized), load(tmp_path / "model", make())):
        assert torch.equal(copied(images[0]), quantized(images[0]))


class Leaky(nn.Module):
    """Mixes what it gave into what it gives; where it is given that, it keeps nothing."""

    def __init__(self):
        super().__init__()
        self.layer, self.before = nn.Linear(16, 4), 0.0

    def forward(self, x, before=None):
        mixed = self.layer(x) + 0.5 * (self.before if before is None else before)
        if before is not None:
            return mixed, mixed
        self.before = mixed
        return mixed


def test_state_is_told_from_chance_and_may_go_in_and_out():
    for quantize in (
        lambda model: quantize_static(model, [ROWS]),
        lambda model: prepare_qat(model, ROWS),
        lambda model: diagnose(model, [ROWS], progress=False),
    ):
        with pytest.raises(ValueError, match="let forward take that as an input, and return what it becomes"):
            quantize(Leaky().eval())
        with pytest.raises(ValueError, match="random numbers belong in the training branch"):
            quantize(two_layers(lambda self, x: self.second(F.dropout(self.first(x)))))
    quantized = quantize_static(Leaky().eval(), [((ROWS, ROWS[:, :4]), None)])
    assert torch.equal(quantized(ROWS, ROWS[:, :4])[0], quantized(ROWS, ROWS[:, :4])[1])


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


def its_own_forward(model):
    given = model.forward
    model.forward = lambda x: given(x / 2)
    return model


class Stays(nn.Linear):
    def __deepcopy__(self, memo):
        return self


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: its_own_forward(two_layers()), "the forward of this Forward was replaced by a function"),
        (lambda: nn.Sequential(Stays(16, 16), nn.ReLU(), nn.Linear(16, 2)), "Stays gives itself in place of a copy"),
        (lambda: torch.compile(two_layers()), "pass model._orig_mod"),
        (lambda: two_layers(lambda self, x: self.second(self.first(x)).sum().item()), "Forward gives no tensor"),
    ],
)
def test_what_cannot_be_copied_or_compared_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        quantize_static(make(), [ROWS])


class Labelled(nn.Module):
    """Keeps class names, a size, settings, and what is no plain attribute."""

    size = (16,)

    def __init__(self, *classes):
        super().__init__()
        self.layer, self.activation, self.table = nn.Linear(16, 2), F.relu, [torch.ones(2)]
        self.classes, self.settings, self.layers, self._own = [*classes], SimpleNamespace(seed=3), [self.layer], 3

    def forward(self, x):
        return self.activation(self.layer(x))


@pytest.mark.parametrize("flow", FLOWS)
def test_plain_attributes_of_a_model_come_along(flow, tmp_path):
    model = Labelled("cat", "dog").eval()
    prepared, quantized = prepare_qat(model, ROWS, flow=flow), quantize_static(model, [ROWS], flow)
    prepared(ROWS)
    save(quantized, tmp_path / "model")
    loaded = load(tmp_path / "model", Labelled("dog", "cat"))
    assert loaded.classes == ["dog", "cat"]
    for each in (prepared, convert(copy.deepcopy(prepared)), quantized, copy_model(quantized), loaded):
        assert (each.size, each.settings) == ((16,), model.settings)
        assert each.settings is not model.settings
        assert each is loaded or each.classes == ["cat", "dog"]
        assert not any(hasattr(each, name) for name in ("activation", "table", "layers", "_own"))


def test_a_list_that_holds_itself_is_copied():
    model = Remembers()
    model.seen.append(model.seen)
    model(ROWS)
    copied = plain_copy(model)
    assert copied.seen[0] is copied.seen
    assert not copied.seen[1].requires_grad


def less_a_masked_mean(self, x, mask):
    hidden = self.first(x)
    return self.second(hidden - hidden.masked_fill(mask == 0, 0.0).sum(1, True) / mask.sum(1, True))


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layer", [nn.Linear(16, 8), nn.GRU(16, 8), nn.LSTMCell(16, 8)])
def test_a_pickle_of_a_dynamic_model_takes_inputs_as_the_model_does(layer, engine, tmp_path):
    quantized, x = quantize_dynamic(layer, engine=engine), ROWS if isinstance(layer, nn.GRU) else ROWS[0]
    torch.save(nn.Sequential(quantized), tmp_path / "model")
    (loaded,) = torch.load(tmp_path / "model", weights_only=False)
    for same in (loaded, copy.deepcopy(loaded)):
        assert all(map(torch.equal, tree_leaves(quantized(input=x)), tree_leaves(same(input=x))))


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(
    ("forward", "inputs"),
    [
        (lambda self, x: self.second(self.first(torch.linalg.cholesky(x))), (ROWS.T @ ROWS + torch.eye(16),)),
        (lambda self, x: self.second(F.linear(x, self.first(x).T @ self.first(x))), (ROWS,)),
        (less_a_masked_mean, (ROWS, (ROWS > 0).long())),
    ],
)
def test_a_model_comes_back_whatever_its_forward_does_with_numbers(forward, inputs, flow, tmp_path):
    model = two_layers(forward)
    quantized = quantize_static(model, [(inputs, None)], flow)
    save(quantized, tmp_path / "model.qt")
    assert torch.equal(load(tmp_path / "model.qt", model)(*inputs), quantized(*inputs))


@pytest.mark.parametrize(
    "run",
    [
        lambda model, x: runtimes.build(model, [x], ["FX INT8"]),
        lambda model, x: compare({"model": model}, x, repeats=1),
        lambda model, x: accuracy(model, [(x, torch.zeros(6).long())]),
        lambda model, x: flips(model, model, [(x, torch.zeros(6).long())]),
        lambda model, x: layer_outputs(model, ["first"], x),
        lambda model, x: diagnose(model, [x], progress=False),
    ],
)
def test_a_model_that_writes_into_its_input_writes_into_a_copy(run):
    x = ROWS.clone()
    run(two_layers(lambda self, x: self.second(self.first(x.sub_(0.5).div_(0.25)))), x)
    assert torch.equal(x, ROWS)


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.layer = nn.Linear(16, 4)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x):
        return (self.layer(x) * self.scale.item()).clamp(max=self.scale.item())


@pytest.mark.parametrize("flow", FLOWS)
def test_a_number_that_a_trace_took_from_a_buffer_comes_back_from_the_file(flow, tmp_path):
    quantized = quantize_static(Scaled(2.0).eval(), [ROWS], flow)
    save(quantized, tmp_path / "model.qt")
    assert torch.equal(load(tmp_path / "model.qt", Scaled(5.0))(ROWS), quantized(ROWS))


class KeepsPlainTensors(nn.Module):
    """Computes with tensors that no state dict holds, and leaves its last output behind."""

    def __init__(self):
        super().__init__()
        self.frequencies, self.tables = torch.randn(2, 16), [{"shift": torch.randn(16)}]
        self.layer, self.stub, self.unstub, self.last = nn.Linear(32, 16), QuantStub(), DeQuantStub(), None
        self.register_buffer("mean", torch.randn(16), persistent=False)

    def forward(self, x):
        phases = (x[:, :2] - self.mean[:2]) @ self.frequencies
        found = self.layer(self.stub(torch.cat([phases.sin(), phases.cos()], 1)))
        self.last = self.unstub(found) + self.tables[0]["shift"]
        return self.last


@pytest.mark.parametrize("flow", ["dynamic", "eager", *FLOWS])
def test_tensors_that_no_state_dict_holds_come_back_from_the_file(flow, tmp_path):
    model, other = KeepsPlainTensors().eval(), KeepsPlainTensors().eval()
    model(ROWS)
    quantized = quantize_dynamic(model) if flow == "dynamic" else quantize_static(model, [ROWS], flow)
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", other)(ROWS), quantized(ROWS))
    other.frequencies = torch.randn(2, 17)
    if flow in ("dynamic", "eager"):
        with pytest.warns(QuantizationWarning, match="load leaves frequencies as float_model has it"):
            load(tmp_path / "model", other)


@pytest.mark.parametrize("flow", FLOWS)
def test_who_pickles_a_static_model_is_told_what_to_call(flow, tmp_path):
    make = lambda: nn.Sequential(nn.Linear(16, 16), nn.PReLU(), nn.Linear(16, 4)).eval()  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)  # of the PReLU, which stays
        prepared = prepare_qat(make(), ROWS, flow=flow)
        prepared(ROWS)
        again, converted = prepare_qat(make(), ROWS, flow=flow), convert(prepared)
    for each in (prepared, copy.deepcopy(prepared)):
        with pytest.raises(
            PicklingError, match=r"use torch.save\(model.state_dict\(\), path\), and load_state_dict of"
        ):
            torch.save(each, tmp_path / "prepared")
    torch.save(prepared.state_dict(), tmp_path / "prepared")
    again.load_state_dict(torch.load(tmp_path / "prepared"))
    assert torch.equal(again.eval()(ROWS), prepared.eval()(ROWS))
    for each in (converted, copy.deepcopy(converted)):
        with pytest.raises(PicklingError, match=r"use workflows.save\(model, path\), and workflows.load"):
            torch.save(each, tmp_path / "model")


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("flow", FLOWS)
def test_numbers_in_the_code_come_with_the_state(flow, copied):
    torch.manual_seed(0)
    given, other = (quantize_static(Scaled(scale).eval(), [x], flow) for scale, x in ((2.0, ROWS), (5.0, 3 * ROWS)))
    before, taking = other(ROWS), copy.deepcopy(other) if copied else other
    nn.Sequential(taking).load_state_dict(nn.Sequential(given).state_dict())
    assert torch.equal(taking(ROWS), given(ROWS))
    assert torch.equal(other(ROWS), before) == copied
    state = given.state_dict()
    state._metadata[""]["numbers"].popitem()
    with pytest.raises(RuntimeError, match="the state is of a model that calls something else"):
        taking.load_state_dict(state)
    if flow == "pt2e":
        with pytest.raises(RuntimeError, match=r"pass the state_dict\(\) itself, or use workflows.save and load"):
            taking.load_state_dict(dict(state))


def test_the_layers_of_an_fx_model_load_from_a_dict_that_was_made_anew():
    given, taking = (quantize_static(two_layers().eval(), [x]) for x in (ROWS, 3 * ROWS))
    taking.load_state_dict(dict(given.state_dict()))
    assert torch.equal(taking(ROWS), given(ROWS))


def test_a_copy_of_a_compiled_model_runs_its_own_weights(monkeypatch):
    monkeypatch.setattr(pt2e, "lower", lambda model: lambda *inputs: model(*inputs))
    given, other = (quantize_static(two_layers().eval(), [data], "pt2e", compile=True) for data in (ROWS, 5 * ROWS))
    before, copied = given(ROWS), copy.deepcopy(given)
    copied.load_state_dict(other.state_dict())
    assert torch.equal(copied(ROWS), other(ROWS))
    assert torch.equal(given(ROWS), before)


def test_a_file_of_before_numbers_of_all_calls_were_noted_loads(tmp_path, monkeypatch):
    model = Scaled(2.0).eval()
    quantized = quantize_static(model, [ROWS])
    monkeypatch.setattr(model_file, "calls", lambda model: {})
    save(quantized, tmp_path / "model.qt")
    monkeypatch.undo()
    assert torch.equal(load(tmp_path / "model.qt", model)(ROWS), quantized(ROWS))


@pytest.mark.parametrize("group", [32, 64])
def test_four_bit_weights_come_back_as_save_says(group, tmp_path):
    model, other = (nn.Sequential(nn.Linear(64, 32)) for _ in range(2))
    quantized = quantize_weights(model, group=group)
    back = rf"quantize_weights\(float_model, group={group}\)\.load_state_dict\(torch\.load\(path\)\)$"
    with pytest.raises(ValueError, match=rf"with torch\.save\(model\.state_dict\(\), path\), and back with {back}"):
        save(quantized, tmp_path / "model")
    torch.save(quantized.state_dict(), tmp_path / "state")
    loaded = quantize_weights(other, group=group)
    loaded.load_state_dict(torch.load(tmp_path / "state"))
    assert torch.equal(loaded(torch.ones(2, 64)), quantized(torch.ones(2, 64)))


@pytest.mark.parametrize("run", [*CONVERT.values(), lambda model, x: diagnose(model, [x], progress=False)])
def test_a_compiled_part_is_named_with_a_way_that_holds(run):
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)), torch.randn(4, 64)
    model[0] = torch.compile(model[0], backend="eager")
    with pytest.raises(ValueError, match=r"0 is wrapped by torch.compile: write (.*) first$") as refused:
        run(model, x)
    exec(str(refused.value).split("write ")[1].removesuffix(" first"), {"model": model})
    run(model, x)


class KeepsAFunction(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.stem = wrap(lambda x: F.relu(self.norm(self.conv(x))))

    def forward(self, x):
        return self.stem["a"](x) if isinstance(self.stem, dict) else self.stem(x)


@pytest.mark.parametrize("wrap", [lambda f: f, partial, lambda f: {"a": f}])
def test_a_function_that_knows_the_model_is_refused_and_another_is_copied(wrap, images):
    model = KeepsAFunction(wrap)
    for run in (lambda: diagnose(model, images, progress=False), lambda: quantize_static(model, images)):
        with pytest.raises(ValueError, match=r"stem of this KeepsAFunction .* write it as a method of the class$"):
            run()
    assert not model.norm.num_batches_tracked
    model.stem = wrap(partial(F.conv2d, weight=torch.ones(3, 3, 1, 1)))
    assert torch.equal(copy_model(model)(images[0]), model(images[0]))


def swish(x):
    return x * torch.sigmoid(x)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_function_is_copied_and_named_where_a_trace_meets_it():
    model = two_layers(lambda self, x: self.second(self.activations["swish"](self.first(x))))
    model.activations = {"swish": torch.jit.script(swish)}
    for quantized in (quantize_dynamic(model), quantize_static(model, [ROWS], "pt2e")):
        assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 25
    with pytest.raises(ValueError, match=r"torch.jit.script made the function .*: call the one that it was made of\. "):
        quantize_static(model, [ROWS])
    model.activations = {"swish": swish}
    assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS])(ROWS)) > 25
