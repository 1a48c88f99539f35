"""A network with every rounding in it to be seen, and which of them round."""

from qtutor.models.running import layer_outputs
from qtutor.samples import SmallCNN
from qtutor.workflows import reference_form, rounding_pairs

import pytest
import torch
from torch import nn


@pytest.fixture
def images():
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_what_chooses_among_codes_rounds_nothing_and_fusion_takes_two_pairs_a_block(images):
    torch.manual_seed(0)
    model = SmallCNN()
    for _ in range(5):
        model(images)  # in training mode, so that its batch norms do something
    model.eval()
    apart, fused = (rounding_pairs(reference_form(model, images, fused=fused), images) for fused in (False, True))
    blocks = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(apart) - len(fused) == 2 * blocks
    behind_relu = apart.filter(like="relu", axis="index")
    assert len(behind_relu) == blocks
    assert not behind_relu.moved.any()
    assert (apart.moved > 0).sum() - (fused.moved > 0).sum() == blocks
    assert fused.moved.between(0, 1).all()


def test_the_outputs_of_named_layers_are_those_of_the_layers_and_no_hook_stays(images):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU()))
    seen = layer_outputs(model, ["0", "1.0"], images)
    torch.testing.assert_close(seen["0"], model[0](images))
    torch.testing.assert_close(seen["1.0"], model(images))
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(AttributeError):
        layer_outputs(model, ["2"], images)
