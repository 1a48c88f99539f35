"""What one scale cannot hold is computed in floats, or named."""

import copy
import math
import re
import warnings
from types import SimpleNamespace

from qtutor.affine import sqnr
from qtutor.diagnosis import diagnose
from qtutor.models.batches import Batch
from qtutor.simulation import Configuration, Simulation
from qtutor.workflows import (
    convert,
    fx,
    load,
    prepare_qat,
    quantize_dynamic,
    quantize_static,
    recipe,
    save,
)
from qtutor.workflows.floats import Left
from qtutor.workflows.telling import QuantizationWarning

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F
from people import (
    CALLED_TWICE,
    FLOWS,
    PYTORCH_RETIRES,
    ROWS,
    Forward,
    Named,
    called_twice,
    in_int8,
    two_convolutions,
    two_layers,
)
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub

pytestmark = PYTORCH_RETIRES


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("between", [lambda s, x: s.second(s.first(x) + 3), lambda s, x: s.second(0.1 * s.first(x))])
def test_what_is_computed_with_a_number_has_a_range_of_its_own(flow, between, images):
    model = two_convolutions(between)
    assert sqnr(model(images[0]), quantize_static(model, images, flow)(images[0])) > 25
    prepared = prepare_qat(model, images[0], flow=flow)
    prepared(images[0])
    assert sqnr(prepared.eval()(images[0]), convert(prepared)(images[0])) > 25


@pytest.mark.parametrize("flow", ["fx", "pt2e"])
@pytest.mark.parametrize("trained", [False, True])
def test_small_weights_and_activations_keep_all_their_bits(flow, trained):
    model = two_layers()
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight /= 64
            layer.bias.zero_()
    assert sqnr(model(ROWS).detach(), in_int8(model, ROWS, flow, trained)(ROWS).detach()) > 30


def pooled_in_two_ways(self, x):
    x = self.first(x)
    return self.second(torch.cat([F.adaptive_max_pool1d(x, 1), F.adaptive_avg_pool1d(x, 1)], 1)[..., 0])


def test_codes_of_several_scales_are_joined_without_a_warning():
    torch.manual_seed(0)
    model = Forward(pooled_in_two_ways, first=nn.Conv1d(3, 8, 3), second=nn.Linear(16, 4)).eval()
    x = torch.randn(8, 3, 32)
    quantized = in_int8(model, x, trained=True)
    joins = [node for node in quantized.graph.nodes if node.target is fx.joined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = quantized(x)
    assert joins
    assert sqnr(model(x).detach(), got.detach()) > 25


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
    # In training, what is computed with a number is a float already.
    with pytest.warns(QuantizationWarning, match=told) if told and not trained else warnings.catch_warnings():
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


def test_a_recurrent_layer_that_one_scale_cannot_hold_is_not_sent_to_equalize():
    model = nn.Sequential(nn.GRU(8, 8)).eval()
    model[0].weight_hh_l0.data[0] = 100
    with pytest.warns(QuantizationWarning, match="GRU") as told:
        quantized = quantize_dynamic(model)
    (way,) = re.findall(r"rest: (.*\)) keeps them", f"{told[0].message}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        halved = eval(way, {"torch": torch, "model": model})
    x = torch.randn(5, 2, 8)
    expected, advised, given = (each(x)[0].detach() for each in (model, halved, quantized))
    assert sqnr(expected, advised) > max(50, sqnr(expected, given) + 10)


def test_a_slice_of_what_a_layer_gives_is_not_rounded_again():
    model = Forward(lambda self, x: self.b(self.a(x)[:, :4]), a=nn.Linear(16, 8), b=nn.Linear(4, 2)).eval()
    layers = Simulation.of(model, Batch((ROWS,))).layers
    assert (layers["b"].reads, layers["b"].source) == (False, "a")


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("forward", CALLED_TWICE)
def test_each_call_of_a_module_gets_codes_that_hold_it(forward, flow, tmp_path):
    model = called_twice(forward)
    quantized = quantize_static(model, [ROWS], flow)
    assert sqnr(model(ROWS).detach(), quantized(ROWS)) > 25
    save(quantized, tmp_path / "model")
    for same in (load(tmp_path / "model", model), copy.deepcopy(quantized)):
        assert torch.equal(same(ROWS), quantized(ROWS))


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
    floats = trained and said.endswith((r"mask\)", "-9"))  # what is computed with a number, in training
    with pytest.warns(QuantizationWarning, match=said) if said and not floats else warnings.catch_warnings():
        quantized = in_int8(model, x, trained=trained)
    assert {"first", "second"} <= {n for n, m in quantized.named_modules() if isinstance(m, nnq.Linear)}
    assert sqnr(model(x).detach(), quantized(x).detach()) > 22
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", make())(x), quantized(x))


@pytest.mark.parametrize("trained", [False, True])
def test_whole_numbers_that_a_captured_model_computes_stay_whole(trained):
    model = two_layers(counts_positions)
    model.table, x = nn.Embedding(8, 16), ROWS[None]
    with pytest.warns(QuantizationWarning, match=r"floating point: table \(Embedding\)$"):
        quantized = in_int8(model, x, "pt2e", trained)
    assert sqnr(model(x).detach(), quantized(x).detach()) > 25


def test_scores_that_come_out_masked_with_infinity_are_answered_with_where_to_mask():
    model = two_layers(lambda self, x: self.second(self.first(x)).masked_fill(torch.arange(4) < 1, -torch.inf))
    with pytest.raises(ValueError, match="where it is a mask, put that on behind the model"):
        quantize_static(model, [ROWS])


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
def test_what_floats_need_no_codes_for_keeps_its_small_values(forward, trained, tmp_path, monkeypatch):
    torch.manual_seed(0)
    make = lambda: Forward(forward, first=nn.Linear(16, 16), second=nn.Linear(16, 4)).eval()  # noqa: E731
    model, x = make(), torch.randn(64, 16)
    said = "sums, products, means, norms and functions between layers, where codes lose too much"
    monkeypatch.setattr(recipe, "describe", lambda: SimpleNamespace(saturates=not trained))  # 7 bits, or 8
    with (
        pytest.warns(QuantizationWarning, match=said) if forward is odds and not trained else warnings.catch_warnings()
    ):
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


def boxes_and_scores_to_be_viewed(self, x):
    x = self.first(x)
    return torch.cat([self.boxes(x) * 100, self.scores(x)], 1).transpose(2, 3)


def boxes_and_chances_of_one_layer(self, x):
    boxes, scores = self.boxes(self.first(x)).chunk(2, 1)
    return torch.cat([boxes.sigmoid() * 640, scores.sigmoid()], 1)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (boxes_and_scores, True),
        (boxes_and_chances, True),
        (boxes_and_chances_of_one_layer, False),
        (boxes_and_scores_to_be_viewed, True),
    ],
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


def test_half_of_a_value_keeps_a_scale_of_its_own_and_is_joined_in_floats(images):
    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, 4, 3), "third": nn.Conv2d(4, 4, 1), "second": nn.Conv2d(8, 4, 1)}
    model = Forward(lambda s, x: s.second(torch.cat([h := 0.5 * s.first(x), s.third(h)], 1)), **layers).eval()
    with pytest.warns(
        QuantizationWarning, match=r"what no one scale holds, as large values beside small ones, at .*cat"
    ):
        quantized = quantize_static(model, images)
    assert sqnr(model(images[0]).detach(), quantized(images[0])) > 25


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.second(0.05 * self.first(x)),
        lambda self, x: self.second(torch.cat([(h := self.first(x)) * h, h + h], 1)[:, :8]),
        lambda self, x: self.second(nn.functional.interpolate(self.first(x), size=(x.shape[2] * 2, x.shape[3] // 2))),
    ],
)
def test_what_loses_nothing_stays_in_int8_without_a_word(forward, images):
    torch.manual_seed(0)
    model = two_convolutions(forward)
    quantized = quantize_static(model, images)
    assert sqnr(model(images[0]).detach(), quantized(images[0])) > 20
    assert "in_floats" not in quantized.code


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 4, 3)],
        lambda: [nn.Conv1d(3, 8, 3), nn.Dropout1d(), nn.ReLU(), nn.Flatten()],
    ],
)
def test_a_relu_is_merged_behind_what_stands_between_in_one_dimension(layers, trained):
    torch.manual_seed(0)
    model, x = nn.Sequential(*layers()).eval(), torch.randn(4, 3, 16)
    quantized = in_int8(model, x, trained=trained)
    assert sqnr(model(x).detach(), quantized(x).detach()) > 25
    relus = [m for m in quantized.modules() if isinstance(m, nn.ReLU) or "ReLU" in type(m).__name__]
    assert not any(isinstance(m, Left) for m in relus)


def test_a_norm_that_comes_first_reads_floats():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)), 1000 + torch.randn(4, 3, 12, 12)
    for _ in range(99):
        model(x)
    assert sqnr(model.eval()(x).detach(), quantize_static(model, [x])(x)) > 25
