"""Learned scales against PyTorch's own kernels, and against autograd in float64."""

import math

from qtutor import affine
from qtutor.affine import LearnedFakeQuantizer, learned_fake_quantize

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples
from torch import nn


def gradients(function, x, scale):
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    out = function(x, scale)
    weights = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x)
    (out * weights).sum().backward()
    return out.detach(), x.grad, scale.grad


def by_autograd(x, scale, low, high, factor):
    """Round passes the gradient on; the rest is differentiated as it stands."""
    scale = scale * factor + (scale * (1 - factor)).detach()
    steps = x / scale
    rounded = steps + (steps.round() - steps).detach()
    return rounded.clamp(low, high) * scale


grids = st.sampled_from([(-2, 1), (-4, 3), (-128, 127), (0, 3), (0, 255)])


@settings(max_examples=examples(60))
@given(seed=st.integers(0, 10_000), ends=grids, scale=st.floats(0.01, 2.0))
def test_per_tensor_equals_torchs_kernel_values_and_gradients(seed, ends, scale):
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)) * 2
    factor = 1 / math.sqrt(x.numel() * ends[1])

    def theirs(x, s):
        zero_point = torch.zeros(1)
        return torch._fake_quantize_learnable_per_tensor_affine(x, s, zero_point, *ends, factor)

    given_scale = torch.tensor([scale], dtype=torch.float32)
    expected = gradients(theirs, x, given_scale)
    actual = gradients(lambda x, s: learned_fake_quantize(x, s, quant_min=ends[0], quant_max=ends[1]), x, given_scale)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_per_channel_equals_torchs_kernel(axis):
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
    scale = torch.rand(x.shape[axis], generator=torch.Generator().manual_seed(2)) + 0.1
    shape = [-1 if i == axis else 1 for i in range(3)]
    factor = 1 / math.sqrt(x.numel() / len(scale) * 3)
    zeros = torch.zeros(len(scale))
    expected = gradients(
        lambda x, s: torch._fake_quantize_learnable_per_channel_affine(x, s, zeros, axis, -4, 3, factor), x, scale
    )
    actual = gradients(lambda x, s: learned_fake_quantize(x, s.view(shape), quant_min=-4, quant_max=3), x, scale)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (5, 1), (1, 4)])
@pytest.mark.parametrize("ends", [(-2, 1), (0, 7)])
def test_equals_autograd_in_float64(shape, ends):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    scale = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.2
    options = {"quant_min": ends[0], "quant_max": ends[1], "gradient_scale": 0.3}
    actual = gradients(lambda x, s: learned_fake_quantize(x, s, **options), x, scale)
    expected = gradients(lambda x, s: by_autograd(x, s, *ends, 0.3), x, scale)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_values_are_those_of_fake_quantize():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    qparams = affine.QParams(0.1, 0, -5, 10)
    actual = affine.learned_fake_quantize(x, qparams.scale, quant_min=-5, quant_max=10)
    assert torch.equal(actual, affine.fake_quantize(x, qparams))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.arange(3)}, TypeError, "x needs a floating-point tensor, got a tensor of torch.int64"),
        ({"scale": 0.5}, TypeError, "scale needs a floating-point tensor, got float"),
        ({"scale": torch.tensor(0.0)}, ValueError, "positive and finite"),
        ({"scale": torch.tensor(-1.0)}, ValueError, "positive and finite"),
        ({"scale": torch.tensor(torch.nan)}, ValueError, "positive and finite"),
        ({"scale": torch.ones(2)}, ValueError, r"shape \(2,\) does not broadcast against \(3,\)"),
        ({"quant_min": 3, "quant_max": 3}, ValueError, "quant_min must be below quant_max"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        learned_fake_quantize(**({"x": torch.ones(3), "scale": torch.tensor(0.5)} | arguments))


def test_the_module_starts_from_its_first_batch_and_learns_its_scale():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    quantizer = LearnedFakeQuantizer(-2, 1)
    assert len(quantizer(x).unique()) <= 4
    assert quantizer.scale.item() == pytest.approx(2 * float(x.abs().mean()))
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.5)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (quantizer(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < errors[0]


def test_per_channel_and_as_a_parametrization_of_a_weight():
    layer = nn.Conv2d(3, 5, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", LearnedFakeQuantizer(-2, 1, axis=0, channels=5))
    layer(torch.randn(1, 3, 4, 4)).sum().backward()
    assert all(len(channel.unique()) <= 4 for channel in layer.weight)
    assert layer.parametrizations.weight[0].scale.grad.shape == (5,)


def test_a_dead_tensor_keeps_a_positive_scale():
    quantizer = LearnedFakeQuantizer(0, 3)
    assert quantizer(torch.zeros(4)).tolist() == [0.0] * 4
    assert quantizer.scale.item() > 0


def test_a_module_needs_axis_and_channels_together_and_a_grid_with_zero():
    with pytest.raises(ValueError, match="together"):
        LearnedFakeQuantizer(-2, 1, axis=0)
    with pytest.raises(ValueError, match="hold zero"):
        LearnedFakeQuantizer(1, 4)
