import copy
from itertools import combinations

from qtutor.affine import choose_qparams, fake_quantize
from qtutor.diagnosis import Configuration, choose_float_layers, diagnose
from qtutor.repair import correct_bias, equalize
from qtutor.samples import DepthwiseNet, SlimResNet

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def warm(model, *shape):
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(shape))
    return model.eval()


def uneven(model):
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            factors = torch.logspace(-1, 1, len(layer.weight)).view(-1, *[1] * (layer.weight.dim() - 1))
            layer.weight.data *= factors
    return model


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4)), (5, 6)),
    "convolution, flatten, linear": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
        (5, 2, 8, 8),
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1)),
        (5, 2, 6, 6),
    ),
    "depthwise with batch norms": (DepthwiseNet, (16, 1, 8, 8)),
    "residual": (lambda: SlimResNet(8, classes=4), (8, 3, 16, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_equalizing_keeps_the_function_and_evens_out_the_ranges(name):
    make, shape = MODELS[name]
    model = warm(uneven(make()), *shape).double()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    even, x = equalize(model), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(even(x), model(x), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.dtype == torch.float64 for p in even.parameters())


def test_equalized_ranges_are_the_root_of_their_product():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    a, b = model[0].weight.abs().amax(dim=1), model[2].weight.abs().amax(dim=0)
    even = equalize(model)
    torch.testing.assert_close(even[0].weight.abs().amax(dim=1), (a * b).sqrt())
    torch.testing.assert_close(even[2].weight.abs().amax(dim=0), (a * b).sqrt())


def test_a_layer_whose_output_is_used_twice_or_clipped_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.a(x).relu()
            return self.c(nn.functional.relu6(self.b(x))) + x

    with pytest.raises(ValueError, match="no two layers in a row"):
        equalize(Twice().eval())


def test_a_hook_ends_what_is_equalized():
    for hooked in ("0", "1"):
        model = nn.Sequential(nn.Sequential(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 4)).eval()
        model.get_submodule(hooked).register_forward_hook(lambda layer, given, output: output + 1)
        with pytest.raises(ValueError, match="no two layers in a row"):
            equalize(model)


def test_a_bias_is_corrected_by_what_its_layer_gives_before_its_hooks():
    plain, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(8, 16)
    hooked = copy.deepcopy(plain)
    hooked[0].register_forward_hook(lambda layer, given, output: 3 * output)
    assert torch.equal(correct_bias(hooked, [x])[0].bias, correct_bias(plain, [x])[0].bias)


def test_a_bias_of_a_layer_that_reads_a_vector_is_corrected():
    layer, x = nn.Linear(16, 4).eval(), torch.randn(16)
    assert torch.equal(correct_bias(layer, [x]).bias, correct_bias(layer, [x[None]]).bias)


def test_equalize_refuses_what_it_cannot_take():
    with pytest.raises(TypeError, match="got str"):
        equalize("model")


def test_a_dead_channel_does_not_break_equalizing():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[:, 2] = 0
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(equalize(model)(x), model(x))


@pytest.mark.parametrize("bias", [True, False])
def test_correcting_biases_gives_the_mean_back(bias):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), nn.ReLU()).eval()
    data = [torch.rand(16, 3, 8, 8) for _ in range(2)]
    coarse = Configuration(bits=3)
    corrected = correct_bias(model, data, coarse)

    def mean_error(biased):
        weight, bias = biased[0].weight.detach(), biased[0].bias
        qparams = choose_qparams(weight.min(), weight.max(), quant_min=-4, quant_max=3, symmetric=True)
        rounded = torch.cat([nn.functional.conv2d(x, fake_quantize(weight, qparams), bias) for x in data])
        exact = torch.cat([model[0](x) for x in data])
        return (rounded - exact).mean(dim=(0, 2, 3)).abs().max()

    assert mean_error(model) > 1e-3
    assert mean_error(corrected) < 1e-5
    assert (model[0].bias is not None) == bias


def test_the_float_layers_are_as_few_as_brute_force_finds():
    model = uneven(nn.Sequential(*[part for _ in range(5) for part in (nn.Linear(8, 8), nn.Tanh())])).eval()
    diagnosis = diagnose(model, [torch.randn(64, 8)], bits=5, progress=False)
    names, everything = list(diagnosis.table["layer"]), diagnosis.all_rounded.sqnr
    for goal in (everything + 2, everything + 5, everything + 10):
        chosen = choose_float_layers(diagnosis, sqnr=goal)
        fewest = next(
            size
            for size in range(len(names) + 1)
            for kept in combinations(names, size)
            if diagnosis.measure(Configuration(bits=5, keep_float=kept)).sqnr >= goal
        )
        assert len(chosen) == fewest > 0
        assert diagnosis.measure(Configuration(bits=5, keep_float=chosen)).sqnr >= goal


def test_with_few_tries_the_choice_still_reaches_the_goal():
    model = nn.Sequential(*[part for _ in range(12) for part in (nn.Linear(8, 8), nn.Tanh())]).eval()
    diagnosis = diagnose(model, [torch.randn(64, 8)], bits=4, progress=False)
    goal = diagnosis.all_rounded.sqnr + 6
    chosen = choose_float_layers(diagnosis, sqnr=goal, tries=12)
    assert 0 < len(chosen) < 12
    assert diagnosis.measure(Configuration(bits=4, keep_float=chosen)).sqnr >= goal


def test_the_choice_accepts_what_the_diagnosis_does():
    model = nn.Sequential(*[part for _ in range(3) for part in (nn.Linear(8, 8), nn.Tanh())]).eval()
    diagnosis = diagnose(model, [torch.randn(64, 8)], metric=lambda *_: 1.0, bits=2, progress=False)
    assert diagnosis.all_rounded.metric == 1.0
    kept = choose_float_layers(diagnosis, metric=1.0)
    assert kept
    assert diagnosis.goal.reached(diagnosis.measure(Configuration(bits=2, keep_float=kept)))


def test_no_goal_and_an_impossible_one_are_refused():
    diagnosis = diagnose(nn.Sequential(nn.Linear(4, 4)), [(torch.randn(8, 4), torch.arange(8) % 4)], progress=False)
    with pytest.raises(ValueError, match="needs a goal"):
        choose_float_layers(diagnosis)
    with pytest.raises(ValueError, match=r"does not reach a metric of 1\.5 and 10 dB"):
        choose_float_layers(diagnosis, metric=1.5)


def test_equalization_follows_the_way_of_the_inputs_that_it_is_given():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x, y=None):
            x = self.first(x)
            return self.second(x if y is None else x + y)

    model, x, y = Optional().eval(), torch.randn(3, 4), torch.randn(3, 8)
    with pytest.raises(ValueError, match="no two layers in a row"):
        equalize(model, (x, y))
    torch.testing.assert_close(equalize(model, (x,))(x), model(x))
