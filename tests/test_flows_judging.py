"""What is said of a result: how far it is off, what hurts, and which way holds."""

import copy
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

from qtutor import machine, runtimes
from qtutor.affine import sqnr
from qtutor.diagnosis.trials import Score
from qtutor.models.running import agreement, outputs
from qtutor.workflows import (
    convert,
    flows,
    load,
    prepare_qat,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
    recipe,
    save,
)
from qtutor.workflows.checks import RoundedLayers
from qtutor.workflows.telling import QuantizationWarning

import pytest
import torch
from people import (
    CONVERT,
    ENGINES,
    FLOWS,
    PYTORCH_RETIRES,
    ROWS,
    Forward,
    trains_on_each,
    two_convolutions,
    two_layers,
)
from torch import nn
from torch.nn.utils import parametrizations

pytestmark = PYTORCH_RETIRES


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


def test_an_eval_that_is_no_switch_is_named_and_what_it_needs_of_its_own_is_not():
    with pytest.raises(ValueError, match=r"eval of this Agent is not the eval\(\) of nn.Module"):
        quantize_dynamic(type("Agent", (nn.Sequential,), {"eval": trains_on_each})(nn.Linear(4, 4)))
    frozen = type("Frozen", (nn.Sequential,), {"train": lambda self, mode=True: nn.Module.train(self, False)})
    quantize_dynamic(frozen(nn.Linear(4, 4)))


def test_inference_mode_around_a_flow_changes_nothing():
    model = two_layers()
    with torch.inference_mode():
        quantized, prepared = quantize_static(model, [ROWS.clone()]), prepare_qat(model, ROWS.clone())
    assert sqnr(model(ROWS).detach(), quantized(ROWS)) > 25
    prepared(ROWS).sum().backward()


def test_dynamic_takes_flattened_and_parametrized_layers():
    reader = Forward(
        lambda self, x: self.memory.flatten_parameters() or self.memory(x)[0], memory=nn.LSTM(16, 8)
    ).eval()
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(16, 16))).eval()
    for float_model, x in ((reader, ROWS[None]), (model, ROWS)):
        quantized = quantize_dynamic(float_model)
        assert sqnr(float_model(x).detach(), quantized(x).detach()) > 25
        assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))


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


def test_no_runtime_changes_what_the_given_model_keeps():
    counts = Forward(lambda self, x: self.layer(x + 0 * self.steps.add_(1)), layer=nn.Linear(16, 4)).eval()
    counts.register_buffer("steps", torch.zeros(()))
    built = runtimes.build(counts, [ROWS], ["eager FP32"])["eager FP32"]
    assert torch.equal(built(ROWS), counts.layer(ROWS))
    assert counts.steps == 0


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


@pytest.mark.filterwarnings("ignore:activations have all 8 bits")  # where the processor adds up rightly
def test_keeping_the_layer_that_hurts_in_float_raises_what_is_said_of_it():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(2, 16)
    model[0].weight.data[:, 0], x[:, 0] = 1e-3, 200.0  # a feature that takes the whole range, and does nothing
    with pytest.warns(
        QuantizationWarning, match=r"0 \(Linear\) hurts most, .*: keep_float=\['0'\] would reach up to 4"
    ):
        quantize_static(model, [x])
    assert sqnr(model(x).detach(), quantize_static(model, [x], keep_float=["0"])(x)) > 30


@pytest.mark.skipif(machine.describe().saturates or "fbgemm" not in ENGINES, reason="no sums of 8 bits to compare")
def test_the_eighth_bit_is_taken_where_seven_are_too_few_and_the_processor_adds_up_rightly(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(64, 16)
    model[0].weight.data[:, 0], x[:, 0] = 1e-3, 50.0  # a feature that takes most of the range, and does nothing
    found = {}
    for saturates, said in (
        (True, "dB only, where 20 are usual"),
        (False, "all 8 bits here, where PyTorch keeps to 7"),
    ):
        monkeypatch.setattr(recipe, "describe", lambda saturates=saturates: SimpleNamespace(saturates=saturates))
        with pytest.warns(QuantizationWarning, match=said):
            quantized = quantize_static(model, [x], engine="fbgemm")
        found[saturates] = sqnr(model(x).detach(), quantized(x))
        save(quantized, tmp_path / "model")
        assert torch.equal(load(tmp_path / "model", model)(x), quantized(x))
    assert found[False] > found[True] + 2
    monkeypatch.setattr(flows, "describe", lambda: SimpleNamespace(saturates=True))
    with pytest.raises(ValueError, match="activations of 8 bits, for which this processor adds up products wrongly"):
        load(tmp_path / "model", model)


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


@pytest.mark.parametrize("quantize", [quantize_dynamic, quantize_weights])
def test_nan_in_a_norm_is_named_where_there_is_no_batch(quantize):
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Linear(64, 32)).eval()
    model[1].running_var[0] = math.nan
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) holds NaN or infinity in its running_var: mend that"):
        quantize(model)


def test_advice_keeps_what_is_kept_already():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 16), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        for layer in (model[0][0], model[1]):
            layer.weight[:, 0] = 60.0  # beside which the others are lost
    x = torch.randn(64, 16)
    x[:, 0] = 0
    kept = recipe.Recipe.of(model, "fx", (x,), None, keep_float=("0",))
    layers = RoundedLayers(model, (x,), kept)
    assert layers.explained > RoundedLayers(model, (x,), replace(kept, keep_float=())).explained
    assert "keep_float=['0', '1'] would reach" in layers.what_hurts(can_keep=True)
