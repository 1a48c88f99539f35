"""Copies that round while they train, and sentences about several trainings."""

import asyncio

from qtutor.affine import LearnedFakeQuantizer
from qtutor.benchmark import seed_by_seed, spread
from qtutor.explorers import LiveTraining
from qtutor.models.running import input_and_output
from qtutor.samples.data import Split
from qtutor.simulation import round_in_training
from qtutor.simulation.training import MinMaxFakeQuantizer

import pytest
import torch
from torch import nn

WAYS = ("min-max", "LSQ", "LSQ's start")


def network():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    body = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), conv, nn.BatchNorm2d(6), nn.ReLU()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * 16, 3))


@pytest.fixture
def images():
    return torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("scales", WAYS)
def test_inner_layers_and_relus_take_as_many_values_as_there_are_codes(images, scales, bits):
    model = network()
    model.last = model(images)  # as some keep it, with its gradient
    rounded = round_in_training(model, images, bits, scales)
    assert all(len(channel.unique()) <= 2**bits for channel in rounded[3].weight)
    for name, codes in (("5", 2**bits), ("2", None)):
        _, given = input_and_output(rounded, name, images)
        assert codes is None or len(given.unique()) <= codes
        assert codes is not None or len(given.unique()) > 2**bits
    for edge in (0, 7):
        assert torch.equal(rounded[edge].weight, network()[edge].weight)


def test_a_range_of_weights_follows_them_and_that_of_activations_moves_in_training_only(images):
    of_weight = MinMaxFakeQuantizer(-2, 1, axis=0)
    weight = torch.tensor([[1.5, 0.2], [3.0, 0.1]])
    torch.testing.assert_close(of_weight(weight), torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    torch.testing.assert_close(of_weight(2 * weight), torch.tensor([[2.0, 0.0], [4.0, 0.0]]))
    of_activation = MinMaxFakeQuantizer(0, 3).eval()
    of_activation(torch.tensor([0.0, 3.0]))
    assert of_activation(torch.tensor([6.0])).item() == 3.0
    of_activation.train()(torch.tensor([0.0, 6.0]))
    assert of_activation.observer.qparams().scale.item() == pytest.approx(1.01)


def test_lsq_learns_its_scales_its_start_holds_them_and_both_begin_alike(images):
    learned, held = (round_in_training(network(), images, 2, scales) for scales in WAYS[1:])
    torch.testing.assert_close(learned(images), held(images))
    for model, moves in ((learned, True), (held, False)):
        before = [m.scale.clone() for m in model.modules() if isinstance(m, LearnedFakeQuantizer)]
        train(model, images)
        after = [m.scale for m in model.modules() if isinstance(m, LearnedFakeQuantizer)]
        assert len(after) == 2
        assert all(torch.equal(a, b) != moves for a, b in zip(before, after, strict=True))


def test_an_unknown_way_is_refused(images):
    with pytest.raises(ValueError, match="got 'mse'"):
        round_in_training(network(), images, 2, "mse")


def train(model, images, **options):
    """Fit a model for two epochs, and return the curve."""
    live = LiveTraining("Training", 2, "a")
    data = Split(images, torch.arange(len(images)) % 3)

    async def run():
        async with live:
            return await live.fit("a", model, data, epochs=2, **options)

    assert asyncio.run(run()) is model
    assert live.finished
    return live.points["a"]


def test_fit_trains_measures_and_calls_before_the_last_epoch(images):
    model, called = network(), []
    before = model[0].weight.detach().clone()
    points = train(model, images, measure=lambda model: 1.0, last=lambda model: called.append(model.training))
    assert points == [(1, 1.0), (2, 1.0)]
    assert called == [True]
    assert not torch.equal(before, model[0].weight)


def test_fit_gives_the_same_weights_for_the_same_seed(images):
    first, again, other = (network() for _ in range(3))
    many = torch.cat([images] * 3)  # two batches, so that their order matters
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        live = LiveTraining("Training", 2, "a")
        asyncio.run(live.fit("a", model, Split(many, torch.arange(len(many)) % 3), epochs=1, seed=seed))
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_what_goes_into_a_layer_and_comes_out_leaves_no_hook(images):
    model = network().eval()
    into, out = input_and_output(model, "1", images)
    torch.testing.assert_close(model[1](into), out)
    assert not model[1]._forward_hooks
    assert not model[1]._forward_pre_hooks
    model.forward = lambda x: x
    with pytest.raises(ValueError, match="does not call '1'"):
        input_and_output(model, "1", images)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([3, 4, 5, 6, 7], [2, 2, 2, 2, 2], "a gain."),
        ([1, 1, 1, 1, 1], [2, 2, 2, 2, 2], "a loss."),
        ([1, 3, 1, 3, 1], [2, 2, 2, 2, 2], "no difference that these seeds can tell."),
        ([9, 9, 9, 9], [2, 2, 2, 2], "too few seeds to tell."),
    ],
)
def test_seeds_are_compared_in_pairs_and_no_more_is_said_than_they_tell(ours, theirs, verdict):
    assert seed_by_seed("A", ours, "B", theirs).endswith(f": {verdict}")


def test_seeds_that_do_not_pair_and_none_at_all_are_refused():
    with pytest.raises(ValueError, match="got 1 of A and 2 of B"):
        seed_by_seed("A", [1], "B", [1, 2])
    with pytest.raises(ValueError, match="no result"):
        spread([])
