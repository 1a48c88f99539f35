"""What people's models are made of and flows stumble on: each kind gets a sound model, or a refusal that names it."""

import copy
import functools
import itertools
import math
import re
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pickle import PicklingError
from types import MethodType, SimpleNamespace

from qtutor import runtimes
from qtutor.affine import sqnr
from qtutor.benchmark import accuracy, compare, flips
from qtutor.diagnosis import diagnose
from qtutor.diagnosis.trials import Score
from qtutor.fusion import find_fusions, fuse
from qtutor.lowbit import awq_scales
from qtutor.models.batches import Batch
from qtutor.models.copying import copy_model, plain_copy
from qtutor.models.running import agreement, layer_outputs, outputs, reads_of_training
from qtutor.repair import equalize
from qtutor.simulation import Configuration, Simulation
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

import numpy as np
import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]
ENGINES = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
FBGEMM = "fbgemm" in ENGINES
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
        assert str(caught.value).endswith("flow='pt2e' can take it as it is, fast only with compile=True")
    else:
        assert sqnr(model(images[0]), quantize()(images[0])) > 25


@pytest.mark.parametrize("flow", ["eager", "fx"])
@pytest.mark.parametrize("function", [False, True])
def test_a_leaky_relu_in_place_prints_nothing(function, flow, images, capfd):
    act = partial(F.leaky_relu, negative_slope=0.2, inplace=True) if function else nn.LeakyReLU(0.2, inplace=True)
    model = two_convolutions(lambda self, x: self.leave(self.second(self.act(self.first(self.enter(x))))))
    model.act, model.enter, model.leave = act, QuantStub(), DeQuantStub()
    for quantized in (quantize_static(model, images, flow), in_int8(model, images[0], flow, trained=True)):
        assert sqnr(model(images[0]), quantized(images[0])) > 25
    assert capfd.readouterr() == ("", "")


def test_an_eager_layer_gets_its_input_by_name_or_the_refusal_says_how(images):
    layers = {"enter": QuantStub(), "layer": nn.Conv2d(3, 4, 1), "leave": DeQuantStub()}
    model = Forward(lambda s, x: s.leave(s.layer(input=s.enter(x))), **layers).eval()
    assert sqnr(model(images[0]), quantize_static(model, images, "eager")(images[0])) > 25
    model.layer = nn.Linear(16, 4)
    with pytest.raises(ValueError, match=r"layer .*has other names for its inputs: give them by place"):
        quantize_static(model, [ROWS], "eager")


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


class DropPath(nn.Module):
    def forward(self, x):
        return 2 * x * (torch.rand_like(x) < 0.5).float() if self.training else x


def test_a_training_branch_does_not_stay_and_its_line_is_named(images):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), DropPath(), nn.BatchNorm2d(8, eps=1e-2, momentum=0.3), nn.Conv2d(8, 4, 1))
    assert len(reads_of_training(model, (images[0],))) == 1
    for flow in FLOWS:
        with pytest.warns(QuantizationWarning, match="reads self.training: at .*test_checks.py"):
            prepared = prepare_qat(model.eval(), images[0], flow=flow)
        prepared(images[0])
        quantized = convert(prepared)
        assert torch.equal(quantized(images[0]), quantized(images[0]))


SUBCLASSES = []


class Registered(nn.Module):
    """Keeps account of its subclasses, each of which must say its name."""

    def __init_subclass__(cls, *, called, **kwargs):
        super().__init_subclass__(**kwargs)
        SUBCLASSES.append(called)


class Registering(Registered, called="this one"):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x):
        return self.layer(x).relu() if self.training else self.layer(x)


class RegisteredLinear(Registered, nn.Linear, called="a layer"):
    pass


def test_who_keeps_account_of_subclasses_finds_no_new_one():
    with pytest.warns(QuantizationWarning, match="reads self.training: at .*test_checks.py"):
        prepare_qat(Registering().eval(), ROWS)
    hooked = nn.Sequential(nn.Linear(16, 16), RegisteredLinear(16, 4)).eval()
    hooked[1].register_forward_hook(lambda layer, given, output: 3 * output)
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: 1 \(RegisteredLinear\)"):
        quantized = quantize_static(hooked, [ROWS])
    assert sqnr(hooked(ROWS).detach(), quantized(ROWS)) > 20
    assert SUBCLASSES == ["this one", "a layer"]
    assert "training" not in vars(nn.Module)


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


def drops(self, x):
    return F.dropout(x, 0.5, self.training)


@pytest.mark.parametrize(
    ("flow", "drop"), [("fx", nn.Dropout(0.5)), ("pt2e", nn.Dropout(0.5)), ("pt2e", Forward(drops))]
)
def test_dropout_drops_in_training_and_not_at_work(flow, drop, images):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), drop, nn.Conv2d(8, 4, 1)).eval()
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
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: g \(GRU\): quantize_dynamic takes it$"):
        quantize_static(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_static(model, images, keep_float=["g"])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_that_no_kernel_has_stays_in_floats(images):
    layers = [nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.Conv2d(8, 8, 4, padding="same")]
    model = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d(8, 4, 1)).eval()
    with pytest.warns(
        QuantizationWarning, match=r"floating point: 0 \(Conv2d\), 1 \(Conv2d\): no INT8 kernel does what it does here$"
    ):
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


class Named(OrderedDict):
    """A mapping with attributes, as language models give it."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


@pytest.mark.parametrize(
    ("form", "same"),
    [
        (lambda scores, hidden: Named(logits=scores, hidden=(hidden, None)), lambda got: type(got.hidden) is tuple),
        (
            lambda scores, hidden: {"logits": scores, "task": "choice", "sizes": [hidden.shape[0], 4]},
            lambda got: [*got.values()][1:] == ["choice", [6, 4]],
        ),
    ],
)
def test_an_output_keeps_its_form_and_its_constants(form, same, tmp_path):
    def forward(self, x):
        hidden = self.first(x).relu()
        return form(self.second(hidden), hidden)

    quantized = quantize_static(two_layers(forward), [ROWS])
    prepared = prepare_qat(two_layers(forward), ROWS)
    prepared(ROWS)
    save(quantized, tmp_path / "model")
    for each in (quantized, convert(prepared), load(tmp_path / "model", two_layers(forward)), copy.deepcopy(quantized)):
        assert type(each(ROWS)) is type(form(ROWS, ROWS))
        assert same(each(ROWS))


@pytest.mark.parametrize("options", [{"alpha": 0.5}, {"alpha": -1}])
def test_a_sum_with_a_factor_keeps_it(options):
    model = two_layers(lambda self, x: self.second(torch.add(self.first(x), self.first(-x).relu(), **options)))
    assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS])(ROWS)) > 25
    prepared = prepare_qat(model, ROWS)
    prepared(ROWS)
    assert sqnr(prepared.eval()(ROWS).detach(), convert(prepared)(ROWS)) > 25


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


class CountsInPython(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        for place in range(x.shape[1]):
            x = x + self.layer(x[:, place : place + 1])
        return x


@pytest.mark.parametrize("flow", ["pt2e"])
def test_a_captured_model_takes_all_sizes_that_forward_leaves_free(flow, tmp_path):
    torch.manual_seed(0)
    model = two_layers(lambda self, x: self.second(self.first(x).relu()).sum(1) / x.shape[1])
    short, long = torch.randn(4, 12, 16), torch.randn(3, 20, 16)
    for data in ([short], [short, long]):
        quantized = quantize_static(model, data, flow)
        for x in (short, long):
            assert sqnr(model(x).detach(), quantized(x).detach()) > 20
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", two_layers(model.function))(long), quantized(long))
    counts, wanted = CountsInPython().eval(), r"captured where x.size\(\)\[1\] == 2, and got \(4, 3, 16\): it turns"
    few, more = short[:, :2], short[:, :3]
    with pytest.raises(ValueError, match=wanted):
        quantize_static(counts, [few], flow)(more)
    with pytest.raises(ValueError, match=f"flow='pt2e' cannot take all batches: forward was {wanted}"):
        quantize_static(counts, [few, more], flow)
    for batch_first in (True, False):
        reader = Forward(lambda s, x: s.out(s.memory(s.first(x))[0]), first=nn.Linear(16, 8), out=nn.Linear(8, 4))
        reader.memory = nn.GRU(8, 8, batch_first=batch_first)
        assert (
            sqnr(
                reader.eval()(short).detach(),
                quantize_static(reader, [short], flow, keep_float=["memory"])(short).detach(),
            )
            > 20
        )


@pytest.mark.parametrize("flow", ["pt2e"])
def test_what_is_computed_without_gradients_is_quantized_and_what_is_in_other_precision_named(flow):
    def without(self, x):
        with torch.no_grad():
            x = self.first(x)
        return self.second(x.relu())

    def with_autocast(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.first(x).relu()
        return self.second(x)

    def with_one_layer(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.first(x)
        return self.second(x.relu())

    for forward in (without, torch.no_grad()(lambda self, x: self.second(self.first(x).relu()))):
        with warnings.catch_warnings():
            warnings.simplefilter("error", QuantizationWarning)
            quantized = quantize_static(two_layers(forward), [ROWS], flow)
        assert sqnr(two_layers()(ROWS).detach(), quantized(ROWS).detach()) > 25
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: first \(Linear\)$"):
        quantize_static(two_layers(with_autocast), [ROWS], flow)
    with pytest.raises(ValueError, match=r"as under torch.autocast: take it out of the block. flow='fx' can take it"):
        quantize_static(two_layers(with_one_layer), [ROWS], flow)


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


def test_an_infinite_mask_is_answered_with_a_boolean_one():
    model = Forward(lambda s, x, mask: (s.q(x) + mask).softmax(-1), q=nn.Linear(4, 4)).eval()
    mask = torch.full((4, 4), float("-inf")).triu(1)
    with pytest.raises(ValueError, match="masked_fill with a boolean one"):
        quantize_static(model, [((torch.randn(4, 4), mask), None)])


class Masked(nn.Module):
    """Attention to what came before, by a mask that is added or filled in."""

    def __init__(self, fills=False):
        super().__init__()
        self.q, self.k, self.v, self.softmax = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Softmax(-1)
        self.fills = fills
        self.register_buffer("mask", torch.full((32, 32), float("-inf")).triu(1))

    def forward(self, x):
        scores = torch.matmul(self.q(x), self.k(x).transpose(1, 2)) * 0.125
        if self.fills:
            return self.softmax(scores.masked_fill(self.mask < 0, float("-inf"))) @ self.v(x)
        return (scores + self.mask).softmax(-1) @ self.v(x)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("fills", "told"),
    [
        (False, r"what reads infinity, .* as far out, which no scale holds, at .*: `return \(scores \+ self.mask"),
        (True, ""),
    ],
)
def test_an_int8_model_does_not_see_what_infinity_hides(fills, told, trained, tmp_path):
    torch.manual_seed(0)
    model, x = Masked(fills).eval(), torch.randn(2, 32, 64)
    with pytest.warns(QuantizationWarning, match=told) if told else warnings.catch_warnings():
        quantized = in_int8(model, x, trained=trained)
    assert sqnr(model(x).detach(), quantized(x).detach()) > 25
    assert torch.equal(quantized(x)[:, :16], quantized(torch.cat([x[:, :16], -x[:, 16:]], 1))[:, :16])
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", Masked(fills))(x), quantized(x))


def test_infinity_that_an_eager_model_adds_is_answered_with_a_stub():
    model = Forward(
        lambda s, x: s.leave(s.add.add(s.layer(s.enter(x)), s.enter_too(s.mask))).softmax(-1),
        enter=QuantStub(),
        enter_too=QuantStub(),
        layer=nn.Linear(16, 16),
        add=nnq.FloatFunctional(),
        leave=DeQuantStub(),
    ).eval()
    model.register_buffer("mask", torch.zeros(16).masked_fill(torch.arange(16) < 4, float("-inf")))
    with pytest.raises(ValueError, match=r"infinity, met by enter_too, add: call a DeQuantStub before.*'fx'"):
        quantize_static(model, [ROWS], "eager")
    del model.enter_too, model.add
    model.function = lambda s, x: (s.leave(s.layer(s.enter(x))) + s.mask).softmax(-1)
    assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS], "eager")(ROWS)) > 25


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


def test_a_recurrent_layer_that_one_scale_cannot_hold_is_not_sent_to_equalize():
    model = nn.Sequential(nn.GRU(8, 8)).eval()
    model[0].weight_hh_l0.data[0] = 100
    with pytest.warns(QuantizationWarning, match="GRU") as told:
        quantized = quantize_dynamic(model)
    (way,) = re.findall(r"rest: (.*\)) keeps them, at half", f"{told[0].message}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        halved = eval(way, {"torch": torch, "model": model})
    x = torch.randn(5, 2, 8)
    expected, advised, given = (each(x)[0].detach() for each in (model, halved, quantized))
    assert sqnr(expected, advised) > max(50, sqnr(expected, given) + 10)


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


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("flow", ["eager", *FLOWS])
def test_what_was_pruned_stays_zero_in_training(flow, copied, images):
    torch.manual_seed(0)
    model = nn.Sequential(QuantStub(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model.append(DeQuantStub()).eval()
    prune.l1_unstructured(model[1], "weight", 0.5)
    prune.ln_structured(model[4], "weight", 0.5, 2, 0)
    prepared = prepare_qat(model, images[0], flow=flow)
    if copied:
        prepared = copy.deepcopy(copy_model(prepared))
    weights = {name: weight for name, weight in prepared.named_parameters() if weight.dim() == 4}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(prepared.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        prepared(images[0]).square().mean().backward()
        optimizer.step()
    for name, weight in weights.items():
        assert torch.equal(weight == 0, before[name] == 0)
        assert not torch.equal(weight, before[name])
    assert [float((weight == 0).float().mean()) for weight in weights.values()] == [0.5, 0.5]
    assert sqnr(prepared.eval()(images[0]).detach(), convert(prepared)(images[0]).detach()) > 20


@pytest.mark.parametrize("flow", FLOWS)
def test_weights_that_no_longer_keep_to_a_norm_in_training_are_named(flow):
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    parametrizations.orthogonal(model[0])
    parametrizations.weight_norm(model[1])
    nn.utils.spectral_norm(model[2])
    with pytest.warns(QuantizationWarning, match=r"permanent what holds the weights of 0 \(\w+\), 2 \(Linear\), as"):
        prepare_qat(model.eval(), ROWS, flow=flow)
    quantize_static(model, [ROWS], flow)  # and nobody is told of anything


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
    model.first.register_forward_pre_hook(lambda layer, given, named: (given, named), with_kwargs=True)
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: first \(Linear\): it has hooks"):
        assert sqnr(model(ROWS), quantize_dynamic(model)(ROWS)) > 25


def scaled(layer, x):
    return 3 * F.linear(x, layer.weight, layer.bias)


def with_forward(make):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    model[0].forward = make(model)
    return model


CONVERT = {
    "static": lambda model, x: quantize_static(model, [x]),
    "dynamic": lambda model, x: quantize_dynamic(model),
    "4 bits": lambda model, x: quantize_weights(model),
}


@pytest.mark.parametrize("convert", CONVERT)
@pytest.mark.parametrize("make", [lambda m: MethodType(scaled, m[0]), lambda m: partial(scaled, m[0])])
def test_a_layer_with_a_forward_of_its_own_stays(make, convert):
    model, x = with_forward(make), torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(QuantizationWarning, match=r"leaves .*: 0 \(Linear\)"):
        assert sqnr(model(x), CONVERT[convert](model, x)(x)) > 15


@pytest.mark.parametrize("convert", CONVERT)
@pytest.mark.parametrize(
    "make", [lambda m: m[2].forward, lambda m: partial(scaled, m[2]), lambda m: lambda x, layer=m[2]: scaled(layer, x)]
)
def test_a_forward_that_runs_another_module_is_refused(make, convert):
    with pytest.raises(ValueError, match=r"the forward of 0 \(Linear\) was replaced by a function that knows a module"):
        CONVERT[convert](with_forward(make), torch.randn(8, 64))


class Asks(nn.Module):
    """Its forward is given; `layers` are linear, and so is `head`."""

    def __init__(self, layers=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(layers))
        self.head = nn.Linear(64, 32)

    @property
    def dtype(self):
        return self.layers[0].weight.dtype


class AsksForTheClass(Asks):
    def forward(self, x):
        for layer in (*self.layers, self.head):
            x = layer(x)
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer is not self.head:
                x = F.relu(x)
        return x


class AsksForTheType(Asks):
    def forward(self, x):
        return self.head(x).relu() if type(self.head) is nn.Linear else self.head(x)


class ReadsAWeight(Asks):
    def forward(self, x):
        return self.head(F.linear(self.layers[1](x), self.layers[0].weight).relu())


class ReadsByAProperty(Asks):
    def forward(self, x):
        return self.head(self.layers[1](x.to(self.dtype)))


class CallsAHelper(Asks):
    def forward(self, x):
        return self.head(self.project(x))

    def project(self, x):
        for layer in self.layers:
            x = scaled(layer, x)
        return x


class ReadsNothing(Asks):
    def initialize(self, layer: nn.Linear):
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)

    def forward(self, x: "nn.Linear | torch.Tensor"):
        layer: nn.Linear = self.head
        return layer(x) + self.layers[0](x)[:, :32]


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
@pytest.mark.parametrize(
    ("kind", "stays", "why"),
    [
        (ReadsAWeight, {"layers.0"}, "forward of ReadsAWeight reads its weight itself"),
        (ReadsByAProperty, {"layers.0"}, "dtype of ReadsByAProperty reads its weight itself"),
        (ReadsNothing, set(), ""),
    ],
)
def test_what_a_forward_reads_of_a_layer_itself_stays(kind, stays, why, convert):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(8, 64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quantized = convert(model)
    assert {name for name, layer in quantized.named_modules() if type(layer) is nn.Linear} == stays
    assert [why in str(each.message) for each in told if each.category is QuantizationWarning] == [True] * bool(stays)
    assert sqnr(model(x), quantized(x)) > 15


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (AsksForTheClass, "forward of AsksForTheClass branches on the class Linear, and a quantized layer has another"),
        (AsksForTheType, "forward of AsksForTheType branches on the class Linear, and a quantized layer has another"),
        (CallsAHelper, "project of CallsAHelper reads its weight itself"),
    ],
)
def test_all_layers_that_a_forward_may_ask_stay(kind, why, convert):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), kind()).eval(), torch.randn(8, 64)
    with pytest.warns(QuantizationWarning, match=why):
        quantized = convert(model)
    assert type(quantized[0]) is not nn.Linear
    assert type(quantized[1].head) is nn.Linear
    assert sqnr(model(x), quantized(x)) > 15
    with pytest.raises(ValueError, match=f"head .Linear.: {why}"):
        convert(model[1])


TYPED = """
class Typed(Asks):
    def forward(self, x):
        return self.head(x).relu() if {asked} else self.head(x)
"""


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("isinstance(self.head, (nn.Conv2d, nn.Linear))", "branches on the class Linear"),
        ("type(self.head).__name__ in ('Linear', 'Conv2d')", "branches on the class Linear"),
        ("any(layer.weight.isnan().any() for layer in self.layers)", "reads its weight itself"),
        ("(lambda layer: layer.weight.dim())(self.head)", "reads its weight itself"),
        ("getattr(self.head, 'weight').dim()", "reads its weight itself"),
        ("[p for layer in self.layers for p in layer.parameters()]", "reads its parameters itself"),
    ],
)
def test_what_a_forward_asks_is_read_where_there_is_no_source(asked, what, convert):
    names = {"Asks": Asks, "nn": nn}
    exec(TYPED.format(asked=asked), names)
    with pytest.raises(ValueError, match=f"forward of Typed {what}"):
        convert(names["Typed"]().eval())


class Runs:
    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return AsksForTheType.forward(self.model, x)


def test_a_forward_without_code_lets_no_layer_go():
    model = nn.Sequential(nn.Linear(64, 64), Asks()).eval()
    model[1].forward = Runs(model[1])
    with pytest.warns(QuantizationWarning, match=r"1\.head \(Linear\).*: forward of Asks has no code to read"):
        quantized = quantize_weights(model)
    assert type(quantized[0]) is not nn.Linear


@pytest.mark.parametrize("convert", CONVERT)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(64)), r"0 \(LazyLinear\) has no weights yet: run the model once"),
        (lambda: nn.Sequential(nn.Linear(64, 64), nn.LazyBatchNorm1d()), r"1 \(LazyBatchNorm1d\) has no weights yet"),
        (lambda: nn.Linear(64, 64).to("meta"), "this Linear is on the meta device and holds no values: load"),
    ],
)
def test_a_layer_without_values_is_named_before_anything_else(make, message, convert):
    with pytest.raises(ValueError, match=message):
        CONVERT[convert](make().eval(), torch.randn(8, 64))


def with_numbers(numbers, forward):
    model = two_layers(forward)
    model.numbers = nn.Parameter(numbers, requires_grad=False)
    return model


def test_parameters_that_are_complex_or_whole_stay_as_they_are():
    chosen = with_numbers(torch.tensor([2, 0]), lambda self, x: self.second(self.first(x))[:, self.numbers])
    turned = with_numbers(
        torch.tensor([1j + 2]), lambda self, x: torch.view_as_real(self.second(self.first(x))[..., None] * self.numbers)
    )
    trains, captures = partial(in_int8, x=ROWS, trained=True), partial(in_int8, x=ROWS, flow="pt2e")
    ways = quantize_dynamic, partial(in_int8, x=ROWS), trains, captures
    for model, quantize in itertools.product((chosen, turned), ways):
        assert sqnr(model(ROWS).detach(), quantize(model)(ROWS).detach()) > 25
    with pytest.raises(
        ValueError, match=r"weight is torch.float64 on cpu: .* pass copy.deepcopy\(model\).cpu\(\).float\(\)"
    ):
        quantize_dynamic(two_layers().double())


def test_a_large_output_hides_no_other():
    exact, good = [torch.ones(4), 1000 * torch.ones(4)], [1.01 * torch.ones(4), 1000 * torch.ones(4)]
    assert agreement(exact, good) == pytest.approx(40, abs=0.01)
    assert agreement([torch.ones(4), torch.zeros(4)], [torch.ones(4), torch.full((4,), 0.1)]) == pytest.approx(20)
    assert agreement([torch.ones(2), torch.tensor([3])], [torch.ones(2), torch.tensor([4])]) == float("inf")
    assert agreement([torch.tensor([1 + 1j])], [torch.tensor([1 + 0j])]) == pytest.approx(3.01, abs=0.01)


def test_a_diagnosis_judges_several_tensors_as_the_flows_do():
    """By the worst: with the mean of many, one that is lost would pass."""
    exact = [torch.ones(4)] * 8 + [torch.zeros(4)]
    for other in ([torch.zeros(4), *exact[1:]], [*exact[:8], torch.full((4,), 0.1)], exact):
        score = Score()
        score.add(exact, other, None, None, 4)
        assert score.sqnr == pytest.approx(agreement(exact, other))


def test_a_slice_of_what_a_layer_gives_is_not_rounded_again():
    model = Forward(lambda self, x: self.b(self.a(x)[:, :4]), a=nn.Linear(16, 8), b=nn.Linear(4, 2)).eval()
    layers = Simulation.of(model, Batch((ROWS,))).layers
    assert (layers["b"].reads, layers["b"].source) == (False, "a")


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


def trains_on_batches(self, batch, epochs):
    return batch


def trains_for_epochs(self, epochs):
    for _ in range(epochs):
        pass


def trains_on_each(self, batches):
    return [batch.sum() for batch in batches]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("train", [trains_on_batches, trains_for_epochs, trains_on_each])
@pytest.mark.parametrize(
    "run",
    [
        *CONVERT.values(),
        lambda model, x: quantize_static(model, [x], "pt2e"),
        prepare_qat,
        lambda model, x: diagnose(model, [x], progress=False),
    ],
)
def test_a_train_that_is_no_switch_is_named(run, train, inside):
    def made(**methods):
        agent = type("Agent", (nn.Sequential,), methods)(nn.Linear(64, 64), nn.Linear(64, 32))
        return nn.Sequential(agent, nn.ReLU()) if inside else agent

    x, said = torch.randn(4, 64), "0 .Agent." if inside else "this Agent"
    with pytest.raises(ValueError, match=rf"train of {said} is not the train\(mode\) .* give it another name"):
        run(made(train=train), x)
    run(made(fit=train), x)


def test_an_eval_that_is_no_switch_is_named_and_what_it_needs_of_its_own_is_not():
    with pytest.raises(ValueError, match=r"eval of this Agent is not the eval\(\) of nn.Module"):
        quantize_dynamic(type("Agent", (nn.Sequential,), {"eval": trains_on_each})(nn.Linear(4, 4)))
    frozen = type("Frozen", (nn.Sequential,), {"train": lambda self, mode=True: nn.Module.train(self, False)})
    quantize_dynamic(frozen(nn.Linear(4, 4)))


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


def test_dynamic_takes_flattened_and_parametrized_layers():
    reader = Forward(
        lambda self, x: self.memory.flatten_parameters() or self.memory(x)[0], memory=nn.LSTM(16, 8)
    ).eval()
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(16, 16))).eval()
    for float_model, x in ((reader, ROWS[None]), (model, ROWS)):
        quantized = quantize_dynamic(float_model)
        assert sqnr(float_model(x).detach(), quantized(x).detach()) > 25
        assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))


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


def test_dynamic_says_what_stays_in_floats_and_which_layer_is_not_finite():
    layers = {f"conv{n}": nn.Conv1d(16, 16, 1) for n in range(8)} | {"embed": nn.Embedding(4, 16)}
    model = Forward(lambda s, x: s.out(s.attention(x, x, x)[0]), attention=nn.MultiheadAttention(16, 2), **layers)
    model.out = nn.Linear(16, 16)
    stays = r"leaves in floating point: attention \(MultiheadAttention\), all 8 Conv1d, embed \(Embedding\)$"
    with pytest.warns(QuantizationWarning, match=stays):
        quantize_dynamic(model)
    parametrizations.weight_norm(model.out).parametrizations.weight.original0.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"out \(Linear\) holds NaN or infinity in its weight: mend that"):
        quantize_dynamic(model)


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


def test_no_flow_draws_from_the_owners_random_numbers(images, tmp_path):
    torch.manual_seed(0)
    model, reader = two_convolutions(lambda self, x: self.second(self.first(x))), nn.LSTM(16, 8)
    before = torch.random.get_rng_state()
    save(quantize_static(model, images), tmp_path / "model.qt")
    load(tmp_path / "model.qt", model)
    prepared = prepare_qat(model, images[0])
    prepared(images[0])
    convert(prepared)
    quantize_dynamic(reader)
    assert torch.equal(torch.random.get_rng_state(), before)


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


def one_activation(self, x):
    return self.out(self.act(self.second(self.act(self.first(x)))))


def one_layer(self, x):
    return self.out(self.first(x)) + self.second(self.first(x / 50))


def relu_after_one_call(self, x):
    return self.out(self.first(self.first(x).relu()))


def norm_of_each_call(self, x):
    return self.out(F.relu(self.norm(self.first(x))) + self.other(self.first(-x)))


def called_twice(forward):
    torch.manual_seed(0)
    layers = {"first": nn.Linear(16, 16, bias=False), "second": nn.Linear(16, 16), "out": nn.Linear(16, 16)}
    model = Forward(forward, **layers, act=nn.Hardswish(), norm=nn.BatchNorm1d(16), other=nn.BatchNorm1d(16))
    nn.init.uniform_(model.other.weight)
    model.other.running_mean.normal_()
    with torch.no_grad():
        model.second.weight *= 0.02
        model.second.bias *= 0.02 if forward is one_activation else 1
    return model.eval()


CALLED_TWICE = (one_activation, one_layer, relu_after_one_call, norm_of_each_call)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("forward", CALLED_TWICE)
def test_each_call_of_a_module_gets_codes_that_hold_it(forward, flow, tmp_path):
    model = called_twice(forward)
    quantized = quantize_static(model, [ROWS], flow)
    assert sqnr(model(ROWS).detach(), quantized(ROWS)) > 25
    save(quantized, tmp_path / "model")
    for same in (load(tmp_path / "model", model), copy.deepcopy(quantized)):
        assert torch.equal(same(ROWS), quantized(ROWS))


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("forward", CALLED_TWICE)
def test_what_is_called_twice_trains_as_one(forward, flow):
    model = called_twice(forward)
    prepared = prepare_qat(model, ROWS, flow=flow)
    weights = dict(prepared.named_parameters(remove_duplicate=False))
    before = weights["first.weight"].clone()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(ROWS).square().mean().backward()
        optimizer.step()
    assert not torch.equal(before, weights["first.weight"])
    again = [w for name, w in weights.items() if name.startswith("first") and w.shape == before.shape]
    assert all(w is again[0] for w in again)
    copied = copy.deepcopy(prepared).eval()
    assert len([*copied.parameters()]) == len([*prepared.parameters()])
    filled = prepare_qat(model, ROWS, flow=flow)
    filled.load_state_dict(prepared.state_dict())
    assert torch.equal(filled.eval()(ROWS), copied(ROWS))
    assert sqnr(copied(ROWS).detach(), convert(prepared)(ROWS)) > 25


@pytest.mark.parametrize("forward", CALLED_TWICE[2:])
def test_what_is_kept_in_floats_stays_so_at_each_call(forward):
    model = called_twice(forward)
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantizationWarning)
        quantized = quantize_static(model, [ROWS], keep_float="first")
    assert sqnr(model(ROWS).detach(), quantized(ROWS)) > 25
    assert not any(hasattr(m, "set_weight_bias") for name, m in quantized.named_modules() if name.startswith("first"))


class KeepsAList(nn.Module):
    """Its layers stand under names too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 32)
        self.plain = {"all": [self.first, (self.second,)]}

    def forward(self, x):
        first, (second,) = self.plain["all"]
        return second(input=first(x).relu())


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
def test_layers_in_a_plain_list_are_quantized_there_too(convert, tmp_path):
    model, x = KeepsAList(), torch.randn(8, 64)
    quantized = convert(model)
    assert not torch.equal(quantized(x), model(x))
    assert sqnr(model(x).detach(), quantized(x).detach()) > 15
    assert quantized.plain["all"][0] is quantized.first
    torch.testing.assert_close(quantized(x[0]), quantized(x[:1])[0])
    if convert is quantize_dynamic:
        save(quantized, tmp_path / "model")
        assert torch.equal(load(tmp_path / "model", KeepsAList())(x), quantized(x))


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
def test_layers_in_a_plain_list_alone_are_named_with_a_way_that_holds(convert, tmp_path):
    make = lambda: Forward(lambda self, x: self.head(self.layers[0](x)), head=nn.Linear(64, 32))  # noqa: E731
    model, other, x = make(), make(), torch.randn(4, 64)
    model.layers, other.layers = [nn.Linear(64, 64)], [nn.Linear(64, 64)]
    with pytest.warns(QuantizationWarning, match="leaves the layers in layers as they are.*: make it an nn.ModuleList"):
        quantized = convert(model)
    if convert is quantize_dynamic:
        save(quantized, tmp_path / "model")
        assert torch.equal(load(tmp_path / "model", other)(x), quantized(x))
    model.layers = nn.ModuleList(model.layers)
    assert type(convert(model).layers[0]) is not nn.Linear


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
    scales = awq_scales(model[0].weight, x, group=64)
    model[0].weight.data *= scales
    assert sqnr(exact, quantize_weights(model)(x / scales).detach()) > 15


@pytest.mark.parametrize("flow", FLOWS)
def test_what_forward_computes_without_gradients_is_not_trained(flow):
    def forward(self, x):
        with torch.no_grad():
            x = self.first(x)
        return self.second(x)

    prepared = prepare_qat(two_layers(forward), ROWS, flow=flow)
    prepared(ROWS).sum().backward()
    trained = {name for name, parameter in prepared.named_parameters() if parameter.grad is not None}
    assert trained == {"second.weight", "second.bias"}


def test_no_runtime_changes_what_the_given_model_keeps():
    counts = Forward(lambda self, x: self.layer(x + 0 * self.steps.add_(1)), layer=nn.Linear(16, 4)).eval()
    counts.register_buffer("steps", torch.zeros(()))
    built = runtimes.build(counts, [ROWS], ["eager FP32"])["eager FP32"]
    assert torch.equal(built(ROWS), counts.layer(ROWS))
    assert counts.steps == 0


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


def test_traces_of_two_threads_leave_nothing_behind():
    begun, ended, before = threading.Event(), threading.Event(), (isinstance, torch.zeros)
    later = threading.Thread(
        target=lambda: find_fusions(two_layers(lambda self, x: (begun.set(), ended.wait(9))[0] or x))
    )
    find_fusions(two_layers(lambda self, x: (later.start(), begun.wait(0.3))[0] or x))
    ended.set()
    later.join()
    assert (isinstance, torch.zeros) == before
    assert not {"__getitem__", "expand"} & {*vars(torch.Tensor)}
    assert torch.zeros(3).new_tensor([torch.tensor(1.0), 2.0]).tolist() == [1.0, 2.0]  # C++ remembers a patch there


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.second(self.first(x).relu() * np.sqrt(2)),
        lambda self, x: self.second(np.sqrt(0.5) * (self.first(x) + x)),
        lambda self, x: self.second(self.first(x).view(-1, np.prod((4, 4)))) / np.float32(3),
        lambda self, x: self.second(np.int64(2) * self.first(x).T.T),
    ],
)
def test_numbers_of_numpy_are_taken_as_those_of_python(forward, trained):
    model = two_layers(forward)
    assert sqnr(model(ROWS).detach(), in_int8(model, ROWS, trained=trained)(ROWS).detach()) > 25


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.second(h.float() if (h := s.first(x)).dtype == torch.bfloat16 else h),
        lambda s, x: s.second(h / 99 if (h := s.first(x.relu() + x)).device.type in ("mps", "cuda") else h),
        lambda s, x: s.second(s.first(x if torch.is_floating_point(x) and not x.is_cuda else x.float() / 99)),
        lambda s, x: s.second(h.view(len(ROWS), -1) if (h := s.first(x).view(x.size(0), -1)).dtype == x.dtype else x),
        lambda s, x: s.second(s.first(x) / (1 if (s.norm(s.first(x)) + x).dtype == s.first.weight.dtype else 99)),
        lambda s, x: s.second(s.first(x)).masked_fill(x[:, :1] > 0, -torch.finfo(s.first(x).dtype).max),
        lambda s, x: s.second(s.first(x.to(s.first.weight.device)) * (x[:, :1] > 0).to(s.first.weight.dtype)),
        lambda s, x: s.second(s.first(x)).clamp(torch.finfo((s.first(x) @ x.t() / np.sqrt(4)).softmax(-1).dtype).min),
    ],
)
def test_who_asks_for_a_dtype_or_a_device_gets_the_answer_of_a_run(forward):
    model = two_layers(forward)
    model.norm = nn.LayerNorm(16)
    assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS])(ROWS)) > 25


def test_a_dtype_that_is_not_certain_is_not_guessed():
    for dtype in (lambda x: torch.erf(x).dtype, lambda x: ((x > 0).long() + 0.5).dtype, lambda x: x.to(x.dtype).dtype):
        model = two_layers(lambda s, x, of=dtype: s.second(s.first(x) / (1 if of(x) == torch.float32 else 99)))
        with pytest.raises(ValueError, match="Python decides there by a tensor's value, size or dtype"):
            quantize_static(model, [ROWS])
    model = two_layers(lambda s, x: s.second(s.first(x)).clamp(torch.finfo(torch.erf(x).dtype).min))
    with pytest.raises(
        ValueError, match=r"at .*finfo.*: Python needs a dtype there that no trace knows: write torch.f"
    ):
        quantize_static(model, [ROWS])


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
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: 1 \(\w+\): (it has hooks|no INT8 kernel)"):
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
            r"0 \(TransformerEncoder\): FX does not look inside",
            ("fx",),
        ),
        (
            lambda: Forward(lambda s, x: s.head(s.b(x, x)), b=nn.Bilinear(16, 16, 16), head=nn.Linear(16, 4)),
            r"b \(Bilinear\)",
            FLOWS,
        ),
        (lambda: multiplied(lambda x, w: torch.einsum("ti,ij->tj", x, w)), r"w \(Parameter\)", FLOWS),
        (lambda: multiplied(lambda x, w: x @ w.t()), r"w \(Parameter\)", FLOWS),
        (lambda: multiplied(lambda x, w: x @ w.chunk(1)[0]), r"w \(Parameter\)", FLOWS),
    ],
)
def test_weights_that_no_flow_rounds_are_named(make, kind, flows):
    torch.manual_seed(0)
    model = make().eval()
    for flow in flows:
        with pytest.warns(QuantizationWarning, match=f"leaves in floating point: {kind}$"):
            assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS], flow)(ROWS)) > 25


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
def test_weights_of_layers_of_ones_own_are_named(convert):
    model = multiplied(lambda x, w: x @ w)
    model.head, model.norm, model.both = nn.Linear(64, 16), nn.LayerNorm(16), nn.Bilinear(4, 4, 4)
    model.block = nn.Sequential(Conv1D(4, 8), nn.ReLU(), Conv1D(8, 4), nn.LSTM(4, 4))
    takes = "" if convert is quantize_dynamic else r", block.3 \(LSTM\)"
    stays = rf"w \(Parameter\), both \(Bilinear\), block.0 \(Conv1D\), block.2 \(Conv1D\){takes}$"
    with pytest.warns(QuantizationWarning, match=f"{convert.__name__} leaves in floating point: {stays}"):
        convert(model)


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


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("alter", ["hook", "forward"])
def test_pt2e_leaves_a_layer_in_floats_that_does_more_than_its_class(alter, trained, tmp_path):
    model = blocks()
    if alter == "hook":
        model.head.register_forward_hook(lambda block, given, output: 3 * output)
    else:
        model.head.forward = MethodType(scaled, model.head)
    with pytest.warns(
        QuantizationWarning, match=r"floating point: head \(Linear\): it has hooks or a forward of its own$"
    ):
        quantized = prepare_qat(model, ROWS, flow="pt2e") if trained else quantize_static(model, [ROWS], "pt2e")
    if trained:
        quantized(ROWS)
        quantized = convert(quantized)
    assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 25
    save(quantized, tmp_path / "model.qt")
    assert torch.equal(load(tmp_path / "model.qt", model)(ROWS), quantized(ROWS))


@pytest.mark.parametrize(
    "mapped", [lambda self, x: torch.vmap(self.first)(x), lambda self, x: torch.vmap(torch.sin)(x)]
)
def test_vmap_is_looked_through_or_named(mapped):
    model = two_layers(lambda self, x: self.second(mapped(self, x)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)
        quantized = quantize_static(model, [ROWS], "pt2e")
        prepared = prepare_qat(model, ROWS, flow="pt2e")
    prepared(ROWS)
    for other in (quantized, convert(prepared)):
        for x in (ROWS, ROWS[:3]):
            assert sqnr(model(x).detach(), other(x).detach()) > 25
    said = (
        r"at .*test_checks.py:\d+: `.*vmap.*: no trace looks into torch.vmap: call .* flow='pt2e' can take it as it is"
    )
    with pytest.raises(ValueError, match=said):
        quantize_static(model, [ROWS])


def test_autocast_in_forward_is_named():
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            x = self.first(x)
        return self.second(x.float())

    with pytest.raises(ValueError, match=r"autocast gets lost, here at .*test_checks.py:\d+: `with torch.autocast"):
        quantize_static(two_layers(forward), [ROWS])
    assert "noted" not in torch.autocast.__enter__.__qualname__


@pytest.mark.parametrize(
    ("layer", "give"),
    [
        (nn.Linear(16, 8), torch.as_tensor),
        (nn.GRU(16, 8), torch.as_tensor),
        (nn.GRU(16, 8), lambda x: pack_sequence([x, x[:2]])),
        (nn.LSTMCell(16, 8), lambda x: x[0]),
    ],
)
def test_dynamic_takes_what_autocast_gives(layer, give):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(give(x @ torch.eye(16)))

    model = Forward(forward, layer=layer).eval()
    given, other = (tree_leaves(each(ROWS)) for each in (model, quantize_dynamic(model)))
    exact = [y.data for y in given if y is not None]
    assert agreement(exact, [y.data for y in other if y is not None]) > 20


def test_whole_numbers_that_a_function_clamps_are_not_rounded_in_training():
    model = two_layers(lambda self, x: self.second(self.first(x + self.table((x > 0).long().clamp(max=1)).mean(1))))
    model.table = nn.Embedding(2, 16)
    with pytest.warns(QuantizationWarning, match=r"floating point: table \(Embedding\)$"):
        quantized = in_int8(model.eval(), ROWS, trained=True)
    assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 25


def test_a_few_large_samples_do_not_speak_for_their_batch():
    x = torch.cat([10 * ROWS[:2], 0.1 * torch.randn(200, 16, generator=torch.Generator().manual_seed(1))])
    model = two_layers()
    model.first.bias.data.zero_()
    model.second.bias.data.zero_()
    with pytest.warns(QuantizationWarning, match=r"to 1\d\.\d dB only, .*: first \(Linear\) hurts most"):
        quantized = quantize_static(model, [x])
    assert sqnr(model(x).detach(), quantized(x)) < 20 < sqnr(model(x[:2]).detach(), quantized(x[:2])) - 10


def test_what_training_has_to_make_good_is_said_before_it():
    model = two_layers()
    model.first.weight.data[0], model.first.bias.data[0], model.second.weight.data[:, 0] = 0, 300, 0
    with pytest.warns(QuantizationWarning, match=r"before it is trained, .* dB only: first \(Linear\) hurts most"):
        prepare_qat(model, ROWS)


def joined(self, x):
    x = self.first(x)
    return self.second(torch.cat([x, x.relu() / 8, -4 * x.relu()], 1))


@pytest.mark.parametrize("flow", FLOWS)
def test_what_goes_into_one_tensor_is_trained_in_the_range_of_all(flow, images):
    torch.manual_seed(0)
    model = Forward(joined, first=nn.Conv2d(3, 8, 3, padding=1), second=nn.Conv2d(24, 4, 1)).eval()
    prepared = prepare_qat(model, images[0], flow=flow)
    prepared(images[0])
    assert sqnr(model(images[0]).detach(), convert(prepared)(images[0]).detach()) > 25


def with_constant(constant):
    model = two_layers()
    model.second.bias.data += constant
    return model


@pytest.mark.parametrize("trained", [False, True])
def test_a_constant_that_hides_what_varies_is_told_of(trained):
    model = with_constant(1000)
    with pytest.warns(QuantizationWarning, match="an output stays far from zero"):
        quantized = prepare_qat(model, ROWS) if trained else quantize_static(model, [ROWS])
    assert sqnr(model(ROWS).detach(), quantized.eval()(ROWS).detach()) > 50
    assert sqnr(model(ROWS).detach() - 1000, quantized(ROWS).detach() - 1000) < 10
    kept = quantize_static(model, [ROWS], keep_float=["second"])
    assert sqnr(model(ROWS).detach() - 1000, kept(ROWS) - 1000) > 20
    found = diagnose(model, [ROWS], progress=False)
    assert any("far from zero" in note for note in found.notes)
    assert found.recommended.keep_float == ("second",)
    assert found.verdict.startswith("Recommended: ")


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
    with pytest.warns(QuantizationWarning, match=r"floating point: 1 \(TransformerEncoderLayer\): FX does not look"):
        prepared = prepare_qat(nn.Sequential(nn.Linear(16, 16), *layers), ROWS[None])
    for _ in range(5):
        prepared(ROWS[None])
    assert sqnr(prepared.eval()(ROWS[None]).detach(), convert(prepared)(ROWS[None]).detach()) > 25


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


def listed_plainly(self, x):
    return self.second(self.layers[0](x))


def with_list(kind):
    model = two_layers(listed_plainly)
    model.layers = kind([nn.Linear(16, 16)])
    return model.eval()


@pytest.mark.parametrize(
    ("refused", "message", "taken"),
    [
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x) * int(x[0, 0] * 9))),
            "keep it a tensor",
            lambda: two_layers(lambda self, x: self.second(self.first(x) * x[0, 0] * 9)),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x).view(int(x.shape[0] / 2), 2, -1))),
            r"write .* torch.sym_int\(x\) for int\(x\)",
            lambda: two_layers(lambda self, x: self.second(self.first(x).view(torch.sym_int(x.shape[0] / 2), 2, -1))),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x)) / float(x[0, 0])),
            r"torch.sym_float\(x\) for float\(x\)",
            lambda: two_layers(lambda self, x: self.second(self.first(x)) / torch.sym_float(x[0, 0])),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x) * np.sqrt(x.shape[1]))),
            "for NumPy there: compute it with torch, and numbers with math",
            lambda: two_layers(lambda self, x: self.second(self.first(x) * math.sqrt(x.shape[1]))),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(sum([self.first(x), x][: x.shape[0]]))),
            "a list is cut there to a size that an input has",
            lambda: two_layers(lambda self, x: self.second(self.first(x) + x)),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x)) / len(x)),
            r"write x.shape\[0\] for len\(x\)",
            lambda: two_layers(lambda self, x: self.second(self.first(x)) / x.shape[0]),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x)) + torch.Tensor(x.shape[0], 4).fill_(0)),
            r"as in torch.zeros\(\(n, 1\)\)",
            lambda: two_layers(lambda self, x: self.second(self.first(x)) + torch.zeros((x.shape[0], 4))),
        ),
        (lambda: with_list(list), "plain list", lambda: with_list(nn.ModuleList)),
    ],
)
def test_what_a_refusal_says_to_write_instead_is_taken(refused, message, taken):
    with pytest.raises(ValueError, match=message):
        quantize_static(refused(), [ROWS])
    assert sqnr(taken()(ROWS).detach(), quantize_static(taken(), [ROWS])(ROWS)) > 20


def packed(self, x, lengths, most=None):
    found, _ = self.memory(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return self.head(pad_packed_sequence(found, batch_first=True, total_length=most)[0])


def reads_packed(forward):
    torch.manual_seed(0)
    return Forward(forward, memory=nn.GRU(16, 8, batch_first=True), head=nn.Linear(8, 4)).eval()


@pytest.mark.parametrize(("flow", "said"), [("fx", "lengths of packed sequences"), ("pt2e", "a packed sequence")])
def test_lengths_of_sequences_are_named_with_what_takes_them(flow, said):
    model, inputs = reads_packed(partial(packed, most=5)), (torch.randn(3, 5, 16), torch.tensor([5, 2, 3]))
    with pytest.raises(ValueError, match=f"{said}.*, which no trace knows. quantize_dynamic.model. can take it"):
        quantize_static(model, [(inputs, None)], flow)
    assert sqnr(model(*inputs).detach(), quantize_dynamic(model)(*inputs).detach()) > 25


def test_packed_sequences_of_other_lengths_are_taken():
    model, batches = reads_packed(packed), [(torch.randn(8, 6, 16), torch.randint(1, 7, (8,))) for _ in range(8)]
    with pytest.warns(QuantizationWarning, match=r"floating point: memory \(GRU\): quantize_dynamic takes it$"):
        quantized = quantize_static(model, [(inputs, None) for inputs in batches])
    inputs = batches[0][0][:4, :5], torch.tensor([3, 4, 5, 1])
    assert sqnr(model(*inputs).detach(), quantized(*inputs).detach()) > 25


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


def test_what_data_parallel_wraps_is_named_with_a_way_that_holds():
    model = blocks()
    model.block = nn.DataParallel(model.block)
    said = r"block \(DataParallel\): FX does not look inside: write (.*) first"
    with pytest.warns(QuantizationWarning, match=said) as told:
        quantize_static(model, [ROWS])
    alone = Forward(lambda self, x: self.block(x), block=model.block).eval()
    with pytest.raises(ValueError, match=f"finds nothing to quantize.* What stays: {said}"):
        quantize_static(alone, [ROWS])
    exec(str(told[0].message).split("write ")[1].removesuffix(" first"), {"model": model})
    quantize_static(model, [ROWS])  # and nobody is told of anything


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("layer", [nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), nn.ReLU())])
def test_a_scripted_part_stays_in_floats_and_is_named(layer, tmp_path):
    make = lambda: nn.Sequential(torch.jit.script(copy.deepcopy(layer)), nn.Linear(16, 4)).eval()  # noqa: E731
    model, said = make(), r"leaves in floating point: 0 \(RecursiveScriptModule\): torch.jit made it: put the nn.Module"
    for quantize in (lambda: quantize_static(model, [ROWS]), lambda: quantize_dynamic(model)):
        with pytest.warns(QuantizationWarning, match=said):
            quantized = quantize()
        assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 25
        save(quantized, tmp_path / "model")
        assert torch.equal(load(tmp_path / "model", make())(ROWS), quantized(ROWS))
    with pytest.raises(ValueError, match=r"torch.jit made a part of it: .*flow='fx' can take it"):
        quantize_static(model, [ROWS], "pt2e")


def test_layers_in_several_precisions_are_refused_with_a_way_that_holds():
    model = two_layers(lambda self, x: self.second(self.first(x).to(self.precision)))
    model.precision, model.second = torch.float64, model.second.double()
    said = r"second.weight is torch.float64 .*float\(\), and take the casts to torch.float64 out of forward$"
    for quantize in (quantize_dynamic, lambda model: quantize_static(model, [ROWS])):
        with pytest.raises(ValueError, match=said):
            quantize(model)
    model.function = lambda self, x: self.second(self.first(x))
    mended = copy.deepcopy(model).cpu().float()
    assert sqnr(mended(ROWS).detach(), quantize_static(mended, [ROWS])(ROWS)) > 25


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


@pytest.mark.parametrize("form", [Output, Named])
def test_an_output_of_a_class_of_its_own_is_named_where_it_cannot_be_captured(form):
    model = two_layers(lambda self, x: form(logits=self.second(h := self.first(x).relu()), hidden=h))
    assert type(quantize_static(model, [ROWS])(ROWS)) is form
    with pytest.raises(ValueError, match=r"Forward: .* return a tuple or a dict. flow='fx' can take it as it is$"):
        quantize_static(model, [ROWS], "pt2e")
    model.function = lambda self, x: {"logits": self.second(self.first(x).relu())}
    assert sqnr(model(ROWS)["logits"].detach(), quantize_static(model, [ROWS], "pt2e")(ROWS)["logits"]) > 25


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


def test_a_refusal_names_dynamic_quantization_where_it_takes_the_model():
    reader = Forward(lambda self, x: self.memory(x)[0], memory=nn.LSTM(16, 8)).eval()
    with pytest.raises(ValueError, match=r"finds nothing .*\. quantize_dynamic\(model\) can take it as it is$"):
        quantize_static(reader, [ROWS])
    assert sqnr(reader(ROWS).detach(), quantize_dynamic(reader)(ROWS)) > 25
    with pytest.raises(ValueError, match=r"No other flow takes it as it is$"):
        quantize_static(nn.Sequential(nn.Flatten()), [ROWS])


@pytest.mark.parametrize("flow", FLOWS)
def test_rows_that_forward_chooses_by_value_are_chosen_behind_the_model(flow):
    torch.manual_seed(0)
    model, x = two_layers(lambda self, x: (y := self.second(self.first(x).relu()))[y[:, 0] > 0]), torch.randn(399, 16)
    with pytest.raises((ValueError, QuantizationWarning), match="return all of it and choose behind the model"):
        quantize_static(model, [x], flow)
    model.function = lambda self, x: self.second(self.first(x).relu())
    assert sqnr(model(x).detach(), quantize_static(model, [x], flow)(x)) > 20


def test_indices_are_compared_by_the_share_that_differs():
    torch.manual_seed(0)
    x = torch.randn(400, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)  # about a few that differ
        quantized = quantize_static(two_layers(lambda self, x: self.second(self.first(x).relu()).argmax(1)), [x])
    assert quantized(x).unique().numel() > 1
    exact = torch.tensor([0, 3, 3, 3])
    assert agreement([exact], [torch.tensor([1, 3, 3, 3])]) == pytest.approx(14.3, abs=0.1)  # as numbers
    assert agreement([exact], [torch.tensor([0, 3, 3, 0])]) == pytest.approx(6.02, abs=0.1)  # as choices


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


def test_keeping_the_layer_that_hurts_in_float_raises_what_is_said_of_it():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(2, 16)
    model[0].weight.data[:, 0], x[:, 0] = 1e-3, 100.0  # a feature that takes the whole range, and does nothing
    with pytest.warns(
        QuantizationWarning, match=r"0 \(Linear\) hurts most, .*: keep_float=\['0'\] would reach up to 4"
    ):
        quantize_static(model, [x])
    assert sqnr(model(x).detach(), quantize_static(model, [x], keep_float=["0"])(x)) > 30


@pytest.mark.parametrize("flow", FLOWS)
def test_a_training_that_diverged_is_refused(flow):
    prepared = prepare_qat(two_layers(), ROWS, flow=flow)
    prepared(ROWS)
    with torch.no_grad():
        next(prepared.parameters())[0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity, first in first\.weight: train anew"):
        convert(prepared)


def in_int8(model, x, flow="fx", trained=False):
    """What a flow makes of a model, at once or by way of training."""
    if not trained:
        return quantize_static(model, [(x, None)], flow)
    prepared = prepare_qat(model, x, flow=flow)
    prepared.train()(*x if isinstance(x, tuple) else (x,))
    return convert(prepared)


def attends(self, x):
    width, q, k, v = x.size(-1), self.first(x), 3 * x.flip(1), x
    return self.second(((q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(width))).softmax(-1) @ v)


def attends_with_a_finite_mask(self, x):
    mask = torch.full((6, 6), -1e9).triu(1)
    return self.second((torch.matmul(self.first(x), x.transpose(-2, -1)) * 0.25 + mask).softmax(-1) @ x)


def attends_to_what_is_given(self, x):
    mask = (1.0 - (x[:, :, 0] > -1).float())[:, None] * torch.finfo(torch.float32).min
    return self.second((torch.matmul(self.first(x), x.transpose(-2, -1)) * 0.25 + mask).softmax(-1) @ x)


def counts_positions(self, x):
    places = (x[..., 0] > -9).long().cumsum(-1) * 2 + 1
    return self.second(self.first(x) + self.table(places % 8))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (attends, ""),
        (attends_with_a_finite_mask, r"a mask as far out, which no scale holds, at .*25 \+ mask\)"),
        (attends_to_what_is_given, r"a mask as far out, which no scale holds, at .*25 \+ mask\)"),
        (counts_positions, r"floating point: table \(Embedding\)$"),
        (lambda self, x: self.second((self.first(x).double() * self.wide).float()), ""),
        (lambda self, x: self.second(torch.sigmoid(self.first(x) + -9)), r"large values beside small ones, at .*-9"),
        (lambda self, x: self.many(self.second(self.first(x))), r"many.1 \(Softmax\): no INT8 kernel does"),
        (lambda self, x: self.second(self.first(x) * x.shape[-1] ** -0.5), ""),
    ],
)
def test_what_no_scale_holds_is_computed_in_floats_and_the_rest_in_int8(forward, said, trained, tmp_path):
    def make():
        model = two_layers(forward)
        model.table, model.many = nn.Embedding(8, 16), nn.Sequential(nn.Linear(4, 1000), nn.Softmax(-1))
        model.register_buffer("wide", torch.arange(16.0, dtype=torch.float64))
        return model

    model, x = make(), torch.stack([ROWS, -ROWS])
    with pytest.warns(QuantizationWarning, match=said) if said else warnings.catch_warnings():
        quantized = in_int8(model, x, trained=trained)
    assert {"first", "second"} <= {n for n, m in quantized.named_modules() if isinstance(m, nnq.Linear)}
    assert sqnr(model(x).detach(), quantized(x).detach()) > 22
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", make())(x), quantized(x))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("convolve", "left"),
    [
        (lambda x, w: F.conv2d(x, w, padding=1), False),
        (lambda x, w: F.conv2d(x, w, None, 2), False),
        (lambda x, w: F.conv1d(x.flatten(2), w.flatten(2), padding=1), False),
        (lambda x, w: F.conv2d(x, w, padding="same"), True),
        (lambda x, w: F.conv2d(x, w[:, :1], groups=x.shape[1]), True),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2), True),
        (
            lambda x, w: torch.conv_tbc(
                x.flatten(2).permute(2, 0, 1).contiguous(), w[:, :, 0].permute(2, 1, 0), w[0, :, 0, 0]
            ),
            True,
        ),
    ],
)
def test_a_convolution_with_weights_of_its_own_takes_its_arguments_as_it_likes(convolve, left, trained, images):
    torch.manual_seed(0)
    model = Forward(lambda s, x: convolve(s.first(x), s.weight).relu(), first=nn.Conv2d(3, 8, 3)).eval()
    model.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)
    context = pytest.warns(QuantizationWarning, match=r"weight \(Parameter\)") if left else warnings.catch_warnings()
    with context:
        quantized = in_int8(model, images[0], trained=trained)
    assert sqnr(model(images[0]).detach(), quantized(images[0]).detach()) > 25


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


class NeverTrains(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False)


def test_a_norm_that_never_trains_stays_so_when_it_is_captured(images):
    model = two_convolutions(lambda self, x: drops(self, self.second(self.norm(self.first(x).relu()))))
    model.norm = NeverTrains(8).eval()
    prepared = prepare_qat(model, images[0], flow="pt2e")
    assert not torch.equal(prepared(images[0]), prepared(images[0]))
    assert torch.equal(prepared.norm.running_mean, model.norm.running_mean)


class Frozen(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        for module in self:
            if not isinstance(module, nn.Conv2d):
                module.eval()
        return self


@pytest.mark.parametrize("flow", FLOWS)
def test_what_the_train_of_a_model_keeps_in_eval_mode_stays_so_when_it_is_prepared(flow, images):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 1)
    model = Frozen(*layers).eval()
    model[1].running_mean += 1
    with pytest.warns(
        QuantizationWarning, match=r"train\(\) .* eval mode.*: 1 \(BatchNorm2d\), 3 \(BatchNorm2d\), 4 \(Dropout"
    ):
        prepared = prepare_qat(model, images[0], flow=flow)
    before = {name: value.clone() for name, value in prepared.named_buffers() if "running" in name}
    first = copy.deepcopy(prepared).train()(5 * images[0])
    assert torch.equal(first, copy.deepcopy(prepared).train()(5 * images[0]))
    prepared.train()(images[0])
    after = dict(prepared.named_buffers())
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert sqnr(model(images[0]).detach(), convert(prepared)(images[0]).detach()) > 25


@pytest.mark.parametrize("trained", [False, True])
def test_operators_of_the_dispatcher_are_taken_as_any_function(trained):
    model = two_layers(lambda self, x: self.second(torch.ops.aten.gelu(torch.ops.aten.relu.default(self.first(x)))))
    assert sqnr(model(ROWS).detach(), in_int8(model, ROWS, trained=trained)(ROWS).detach()) > 25


@pytest.mark.parametrize("trained", [False, True])
def test_whole_numbers_that_a_captured_model_computes_stay_whole(trained):
    model = two_layers(counts_positions)
    model.table, x = nn.Embedding(8, 16), ROWS[None]
    with pytest.warns(QuantizationWarning, match=r"floating point: table \(Embedding\)$"):
        quantized = in_int8(model, x, "pt2e", trained)
    assert sqnr(model(x).detach(), quantized(x).detach()) > 25


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


def test_where_nothing_is_quantized_it_is_said_what_stays_and_why():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    model = nn.Sequential(nn.Embedding(9, 16), encoder).eval()
    for quantize in (lambda x: quantize_static(model, [x]), lambda x: prepare_qat(model, x)):
        with pytest.raises(ValueError, match=r"What stays: 0 \(Embedding\); 1 \(TransformerEncoder\): FX does"):
            quantize(torch.arange(8)[None])


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", ["meta", "code", "graph"])
def test_a_name_that_torch_fx_has_for_itself_is_named(name, flow):
    model = Forward(lambda self, x: getattr(self, name)(x), **{name: nn.Linear(16, 4)}).eval()
    with pytest.raises(ValueError, match=f"under the name {name} in .*: give self.{name} another name"):
        quantize_static(model, [ROWS], flow)


def test_scores_that_come_out_masked_with_infinity_are_answered_with_where_to_mask():
    model = two_layers(lambda self, x: self.second(self.first(x)).masked_fill(torch.arange(4) < 1, -torch.inf))
    with pytest.raises(ValueError, match="where it is a mask, put that on behind the model"):
        quantize_static(model, [ROWS])


@pytest.mark.parametrize("trained", [False, True])
def test_reflection_in_three_dimensions_stays_in_floats(trained):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv3d(4, 2, 1)).eval()
    x = torch.randn(2, 3, 5, 5, 5)
    with pytest.warns(QuantizationWarning, match=r"floating point: 0 \(Conv3d\): no INT8 kernel does what it"):
        quantized = in_int8(model, x, trained=trained)
    assert sqnr(model(x).detach(), quantized(x).detach()) > 25


def hears_in_decibels(self, x):
    return self.second(self.first(torch.log(x.square() + 1e-6)))


def hears_what_is_loud(self, x):
    return self.second(self.first(x.square().transpose(-2, -1).clamp(min=1e-6).log10().transpose(-2, -1)))


def normalizes_rows(self, x):
    x = x * (x[:, :1] > 0)  # some rows are padding
    return self.second(self.first(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)))


def tells_the_time(self, x):
    angles = 500 * x * torch.logspace(0, -3, 16)
    return self.second(self.first(angles.sin() + angles.cos()))


def odds(self, x):
    return self.second((torch.sigmoid(8 * self.first(x)) + 1e-6).log())


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("forward", [hears_in_decibels, hears_what_is_loud, normalizes_rows, tells_the_time, odds])
def test_what_floats_need_no_codes_for_keeps_its_small_values(forward, trained, tmp_path):
    torch.manual_seed(0)
    make = lambda: Forward(forward, first=nn.Linear(16, 16), second=nn.Linear(16, 4)).eval()  # noqa: E731
    model, x = make(), torch.randn(64, 16)
    said = "sums, products, means, norms and functions between layers, where codes lose too much"
    with pytest.warns(QuantizationWarning, match=said) if forward is odds else warnings.catch_warnings():
        quantized = in_int8(model, x, trained=trained)
    assert {"first", "second"} == {n for n, m in quantized.named_modules() if isinstance(m, nnq.Linear)}
    assert sqnr(model(x).detach(), quantized(x).detach()) > 25
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", make())(x), quantized(x))


def boxes_and_scores(self, x):
    x = self.first(x)
    return torch.cat([self.boxes(x) * 100, self.scores(x)], 1)


def boxes_and_chances(self, x):
    x = self.first(x)
    return torch.stack([self.boxes(x).exp() * 100, self.scores(x).sigmoid()])


def boxes_and_chances_of_one_layer(self, x):
    boxes, scores = self.boxes(self.first(x)).chunk(2, 1)
    return torch.cat([boxes.sigmoid() * 640, scores.sigmoid()], 1)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("forward", "told"), [(boxes_and_scores, True), (boxes_and_chances, True), (boxes_and_chances_of_one_layer, False)]
)
def test_scores_that_are_joined_to_boxes_are_not_lost(forward, told, trained, flow, images):
    torch.manual_seed(0)
    layers = {name: nn.Conv2d(8, 4, 1) for name in ("boxes", "scores")}
    model = Forward(forward, first=nn.Conv2d(3, 8, 3), **layers).eval()
    said = r"what no one scale holds, as large values beside small ones, at .*torch\.(cat|stack)"
    with pytest.warns(QuantizationWarning, match=said) if told and flow == "fx" else warnings.catch_warnings():
        quantized = in_int8(model, images[0], flow, trained)
    few, whole = quantized(images[0]).detach(), model(images[0]).detach()
    for exact, found in zip(whole.flatten(0, -4).chunk(2, -3), few.flatten(0, -4).chunk(2, -3), strict=True):
        assert sqnr(exact, found) > 25


def best_boxes(self, x):
    x = self.first(x)
    found, places = self.scores(x).flatten(1).topk(20, 1)
    return found, self.boxes(x).flatten(2).gather(2, places[:, None].expand(-1, 4, -1))


@pytest.mark.parametrize("flow", FLOWS)
def test_what_is_chosen_by_value_is_told_from_a_layer_that_hurts(flow):
    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, 16, 3), "scores": nn.Conv2d(16, 1, 1), "boxes": nn.Conv2d(16, 4, 1)}
    model, images = Forward(best_boxes, **layers).eval(), torch.randn(4, 3, 40, 40)
    with pytest.raises(ValueError, match=r"chosen by value at .*topk.*: return all .*in floats \(keep_float\)\. No"):
        quantize_static(model, [images], flow)
    with pytest.warns(
        QuantizationWarning, match=r"something is chosen by value at .*: return all .* behind the model$"
    ):
        prepare_qat(model, images, flow=flow)
    kept = quantize_static(model, [images], flow, keep_float=["first", "scores"])
    assert agreement(outputs(model, (images,)), outputs(kept, (images,))) > 25


def gathered(self, x, places):
    out = torch.zeros(20, 16)
    out.index_add_(0, places, self.first(x))
    return self.second(out)


def placed(self, x, places):
    out = torch.zeros(20, 16)
    out[places] = self.first(x)
    return self.second(out)


def gathered_as_advised(self, x, places):
    out = x.new_zeros(20, 16)
    out.index_add_(0, places, self.first(x))
    return self.second(out)


def placed_as_advised(self, x, places):
    return self.second(x.new_zeros(20, 16).index_put((places,), self.first(x)))


@pytest.mark.parametrize(
    ("written", "advised", "line"),
    [(gathered, gathered_as_advised, r"index_add_\(0"), (placed, placed_as_advised, r"out\[places\] = ")],
)
def test_what_is_written_into_a_tensor_that_forward_makes_is_named(written, advised, line):
    torch.manual_seed(0)
    layers = {"first": nn.Linear(16, 16), "second": nn.Linear(16, 4)}
    x, places = torch.randn(12, 16), torch.randperm(20)[:12]
    with pytest.raises(ValueError, match=rf"{line}.*make it of an input, as x.new_zeros.*'pt2e' can take it"):
        quantize_static(Forward(written, **layers).eval(), [((x, places), None)])
    model = Forward(advised, **layers).eval()
    quantized = quantize_static(model, [((x, places), None)])
    assert sqnr(model(-x, places).detach(), quantized(-x, places)) > 25


class Reversed(torch.autograd.Function):
    """Adversarial training: the same value, and its gradient the other way."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def turned(x):
    return Reversed.apply(x)


torch.fx.wrap("turned")


@pytest.mark.parametrize("flow", FLOWS)
def test_a_backward_of_ones_own_is_kept_or_named(flow):
    def gradient(model):
        model(x).square().sum().backward()
        return dict(model.named_parameters())["first.weight"].grad

    model, x = two_layers(lambda self, x: self.second(Reversed.apply(self.first(x)))), torch.randn(64, 16)
    assert quantize_static(model, [x], flow)
    with pytest.raises(
        ValueError, match=r"would not go by the backward of Reversed\. Call it in a function at the top"
    ):
        prepare_qat(model, x, flow=flow)
    kept = two_layers(lambda self, x: self.second(turned(self.first(x))))
    if flow == "fx":
        assert sqnr(gradient(kept), gradient(prepare_qat(kept, x))) > 10  # -6 where it goes the other way
    else:
        with pytest.raises(ValueError, match=r"flow='fx' can take it as it is$"):
            prepare_qat(kept, x, flow=flow)
