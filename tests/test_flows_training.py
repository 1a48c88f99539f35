"""What training through a flow keeps: each kind gets a sound model, or a refusal that names it."""

import copy

from qtutor.affine import sqnr
from qtutor.diagnosis import diagnose
from qtutor.models.copying import copy_model
from qtutor.models.running import reads_of_training
from qtutor.workflows import (
    convert,
    prepare_qat,
    quantize_static,
)
from qtutor.workflows.telling import QuantizationWarning

import pytest
import torch
import torch.nn.functional as F
from people import (
    CALLED_TWICE,
    CONVERT,
    FLOWS,
    PYTORCH_RETIRES,
    ROWS,
    Forward,
    Remembers,
    called_twice,
    in_int8,
    trains_on_each,
    two_convolutions,
    two_layers,
)
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn.utils import parametrizations, prune

pytestmark = PYTORCH_RETIRES


class DropPath(nn.Module):
    def forward(self, x):
        return 2 * x * (torch.rand_like(x) < 0.5).float() if self.training else x


def test_a_training_branch_does_not_stay_and_its_line_is_named(images):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), DropPath(), nn.BatchNorm2d(8, eps=1e-2, momentum=0.3), nn.Conv2d(8, 4, 1))
    assert len(reads_of_training(model, (images[0],))) == 1
    for flow in FLOWS:
        with pytest.warns(QuantizationWarning, match="reads self.training: at .*test_flows_training.py"):
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


@pytest.mark.filterwarnings("ignore:.* agrees with the trained one without rounding")  # after so few steps
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


def test_whole_numbers_that_a_function_clamps_are_not_rounded_in_training():
    model = two_layers(lambda self, x: self.second(self.first(x + self.table((x > 0).long().clamp(max=1)).mean(1))))
    model.table = nn.Embedding(2, 16)
    with pytest.warns(QuantizationWarning, match=r"floating point: table \(Embedding\)$"):
        quantized = in_int8(model.eval(), ROWS, trained=True)
    assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 25


def test_what_training_has_to_make_good_is_said_before_it():
    model = two_layers()
    model.first.weight.data[0], model.first.bias.data[0], model.second.weight.data[:, 0] = 0, 300, 0
    with pytest.warns(QuantizationWarning, match=r"before it is trained, .* dB only: first \(Linear\) hurts most"):
        prepare_qat(model, ROWS)


def test_gains_of_zero_train_to_no_nan(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    nn.init.uniform_(model[1].bias)
    with torch.no_grad():
        model[1].weight[:3] = 0
    assert sqnr(model(images[0]).detach(), in_int8(model, images[0], trained=True)(images[0]).detach()) > 25


@pytest.mark.parametrize("trained", [False, True])
def test_a_norm_behind_each_call_of_one_layer_is_folded_into_it_once_at_most(trained, images):
    def forward(self, x):
        return self.second(sum(self.norm(self.first(part)).relu() for part in (x, -x, x.flip(1))))

    torch.manual_seed(0)
    model = two_convolutions(forward)
    model.norm = nn.BatchNorm2d(8).eval()
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    assert sqnr(model(images[0]).detach(), in_int8(model, images[0], "pt2e", trained)(images[0]).detach()) > 20


def test_how_far_training_leads_from_its_ranges_is_said_behind_it():
    prepared = prepare_qat(two_layers(), ROWS)
    prepared(ROWS)
    convert(prepared)
    prepared.first.weight.data *= 20
    with pytest.warns(QuantizationWarning, match=r"agrees with the trained one without rounding to .* dB only"):
        convert(prepared)


def rendered(self, x):  # as NeRF, whose last distance is as good as infinite
    far, density = torch.full_like(x[:, :1], 1e10), self.second(self.first(x)).relu()
    opaque = 1 - torch.exp(-density * torch.cat([x[:, :3].abs(), far], 1))
    return opaque * torch.cumprod(torch.cat([torch.ones_like(far), 1 - opaque + 1e-10], 1), 1)[:, :-1]


@pytest.mark.parametrize("trained", [False, True])
def test_what_gets_lost_between_layers_is_refused_before_training_too(trained):
    model = two_layers(rendered)
    with pytest.raises(ValueError, match=r"too far off: .*, so something between them gets lost\. flow='fx' can take"):
        in_int8(model, ROWS, "pt2e", trained)
    assert sqnr(model(ROWS).detach(), in_int8(model, ROWS, trained=trained)(ROWS).detach()) > 25


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


@pytest.mark.parametrize("flow", FLOWS)
def test_a_training_that_diverged_is_refused(flow):
    prepared = prepare_qat(two_layers(), ROWS, flow=flow)
    prepared(ROWS)
    with torch.no_grad():
        next(prepared.parameters())[0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity, first in first\.weight: train anew"):
        convert(prepared)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.* is deprecated")
@pytest.mark.parametrize("flow", FLOWS)
def test_a_part_that_torch_jit_made_trains_on_in_floats(flow):
    torch.manual_seed(0)
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), ROWS)
    model = nn.Sequential(scripted, nn.Linear(16, 4)).eval()
    if flow == "pt2e":
        with pytest.raises(ValueError, match=r"torch\.jit made.*flow='fx' can take it"):
            prepare_qat(model, ROWS, flow=flow)
        return
    with pytest.warns(QuantizationWarning, match=r"floating point: 0 \(.*\): torch\.jit made it"):
        prepared = prepare_qat(model, ROWS, flow=flow)
    prepared(ROWS).sum().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_class_that_an_infinite_bias_bans_stays_banned():
    model = two_layers(lambda self, x: self.second(F.relu(self.first(x))).softmax(-1))
    model.second.bias.data[1] = -torch.inf
    quantized = in_int8(model, ROWS, "pt2e", trained=True)
    assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 25
    with pytest.raises(ValueError, match=r"infinity, which is read at .*softmax.*flow='pt2e' can take it"):
        in_int8(model, ROWS, trained=True)


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


def test_a_transposed_convolution_trains_beside_its_batch_norm_in_eager_mode(images):
    model = nn.Sequential(
        QuantStub(), nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), DeQuantStub()
    )
    quantized = in_int8(model.eval(), images[0], "eager", trained=True)
    assert sqnr(model(images[0]).detach(), quantized(images[0]).detach()) > 20
