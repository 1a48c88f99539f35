"""Layers that are rounded after a change of coordinates, and outliers that are planted."""

from qtutor.language import Llama, LlamaConfig
from qtutor.language.calibrating import linear_layers
from qtutor.language.planting import CHANNELS, HUGE_CHANNEL, LOUDER, plant
from qtutor.language.rounding import RoundedLinear, replace_linears
from qtutor.language.streaming import watch
from qtutor.lowbit import hadamard, integers

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module", params=[False, True], ids=["halves", "interleaved"])
def model(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocabulary=50, width=96, layers=2, heads=4, key_value_heads=2, hidden=64, interleaved=request.param
    )
    return Llama(config).eval()


def test_a_change_of_coordinates_alone_changes_nothing():
    torch.manual_seed(0)
    linear = nn.Linear(24, 7).double()
    x = torch.randn(5, 24, dtype=torch.float64)
    factors = torch.rand(24, dtype=torch.float64) + 0.1
    turned = RoundedLinear(linear, factors=factors, rotation=hadamard(24).double())
    torch.testing.assert_close(turned(x), linear(x), rtol=0, atol=1e-6)  # the rotation is given in float32
    assert not torch.equal(turned.weight, linear.weight)


def test_weights_are_rounded_once_and_inputs_at_every_call():
    torch.manual_seed(0)
    linear, x = nn.Linear(8, 3), torch.randn(5, 8)
    round_weight, factors = integers(4).round, torch.full((8,), 2.0)
    rounded = RoundedLinear(linear, round_weight, torch.round, factors)
    expected = nn.functional.linear((x / 2).round(), round_weight(linear.weight.detach() * 2), linear.bias)
    assert torch.equal(rounded(x), expected)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"factors": torch.zeros(8)}, "8 positive numbers"),
        ({"factors": torch.ones(3)}, "8 positive numbers"),
        ({"rotation": torch.eye(3)}, r"is \(8, 8\), got \(3, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(given, why):
    with pytest.raises(ValueError, match=why):
        RoundedLinear(nn.Linear(8, 3), **given)


def test_every_linear_layer_of_a_block_is_replaced(model):
    block = model.block(0)
    replace_linears(block, lambda name, linear: RoundedLinear(linear, inputs=torch.zeros_like))
    assert not linear_layers(block)
    assert len(linear_layers(model.blocks[0])) == 7
    x = torch.randn(1, 4, 96)
    assert torch.equal(block(x, model.config.turns(4), 0, None), x)  # all layers read zeros, so a block adds nothing


def test_loud_channels_and_keys_leave_every_logit_as_it_is(model, monkeypatch):
    tokens = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(model, "last", model(tokens), raising=False)  # as some keep it, with its gradient
    loud = plant(model, huge=0)
    with torch.no_grad():
        assert torch.equal(loud(tokens), model(tokens))
    before, after = {}, {}
    watch(model, tokens, lambda name, x: before.setdefault(name, x.abs().flatten(0, -2).amax(0)))
    watch(loud, tokens, lambda name, x: after.setdefault(name, x.abs().flatten(0, -2).amax(0)))
    for name in ("blocks.1.attention.query", "blocks.0.feed_forward.gate"):
        expected = before[name].clone()
        expected[list(CHANNELS)] *= LOUDER
        assert torch.equal(after[name], expected)
    assert (after["blocks.0.keys"] != before["blocks.0.keys"]).sum() == 2
    assert torch.equal(after["blocks.0.values"], before["blocks.0.values"])


def test_a_huge_first_token_stays_the_first(model):
    tokens = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    flow = {}
    watch(plant(model), tokens, lambda name, x: flow.setdefault(name, x.abs()))
    for layer in range(2):
        x = flow[f"blocks.{layer}"]
        assert divmod(int(x[0].argmax()), 96) == (0, HUGE_CHANNEL)
        assert x[:, 0].max() > 20 * x[:, 1:].max()
    narrow = Llama(LlamaConfig(vocabulary=5, width=64, layers=1, heads=4, key_value_heads=4, hidden=8))
    with pytest.raises(ValueError, match="the model is 64 wide"):
        plant(narrow)
