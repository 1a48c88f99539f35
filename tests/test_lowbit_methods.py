"""AWQ, smoothing, rotation and caches: the function stays, the rounding error falls."""

import math

from qtutor.lowbit import (
    awq,
    awq_scales,
    cache_bytes,
    hadamard,
    hessian,
    integers,
    layer_loss,
    round_cache,
    smooth,
)

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=examples(20), deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), group=st.sampled_from([None, 8]), symmetric=st.booleans())
def test_awq_is_never_worse_than_rounding(seed, bits, group, symmetric):
    weight, x = numbers(12, 24, seed=seed), numbers(50, 24, seed=seed + 1) * numbers(24, seed=seed + 2).exp()
    form, curvature = integers(bits, group, symmetric), hessian(x)
    plain = layer_loss(weight, form.round(weight), curvature)
    assert layer_loss(weight, awq(weight, x, format=form), curvature) <= plain * (1 + 1e-9)


def test_awq_halves_the_loss_where_one_input_is_loud_and_does_nothing_where_none_is():
    weight, x, form = numbers(64, 64), numbers(500, 64, seed=1), integers(4)
    assert awq_scales(weight, x.sign(), format=form).tolist() == [1.0] * 64
    x[:, 5] *= 50
    scales = awq_scales(weight, x, format=form)
    assert scales.argmax() == 5
    assert float(scales.max() * scales.min()) == pytest.approx(1, rel=1e-5)
    plain = layer_loss(weight, form.round(weight), hessian(x))
    assert layer_loss(weight, awq(weight, x, format=form), hessian(x)) < plain / 2


def test_awq_of_tiny_inputs_is_that_of_large_ones():
    weight, inputs = torch.randn(4, 8), torch.randn(32, 8) * torch.tensor([20.0, *[1.0] * 7])
    tiny, large = (awq_scales(weight, x, format=integers(3)) for x in (inputs * 1e-18, inputs))
    torch.testing.assert_close(tiny, large)


def test_smoothing_keeps_the_function_and_shares_the_range_evenly_at_one_half():
    first, second, x = numbers(6, 10), numbers(4, 10, seed=1), numbers(30, 10, seed=2) * 10 ** numbers(10, seed=3)
    loud = x.abs().amax(dim=0)
    scales = smooth([first, second], loud, 0.5)
    for weight in (first, second):
        assert torch.allclose((x / scales) @ (weight * scales).T, x @ weight.T, rtol=1e-4, atol=1e-4)
    large = torch.cat([first, second]).abs().amax(dim=0)
    assert torch.allclose(loud / scales, large * scales, rtol=1e-5)
    assert torch.allclose(loud / smooth(first, loud, 1.0), torch.ones(10))
    assert torch.allclose(first.abs().amax(dim=0) * smooth(first, loud, 0.0), torch.ones(10))


def test_smoothing_leaves_silent_inputs_alone():
    weight = torch.tensor([[0.0, 2.0, 3.0]])
    assert smooth(weight, torch.tensor([1.0, 0.0, 12.0])).tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("n", [1, 2, 4, 8, 12, 20, 24, 28, 36, 64, 96, 256, 576, 768, 1536])
def test_a_hadamard_matrix_is_orthogonal_and_all_its_entries_are_equally_large(n):
    matrix = hadamard(n).double() * math.sqrt(n)
    assert torch.allclose(matrix.abs(), torch.ones(n, n, dtype=torch.float64), atol=1e-6)
    assert torch.equal(matrix.round() @ matrix.round().T, n * torch.eye(n, dtype=torch.float64))


def test_rotation_keeps_the_function_and_spreads_an_outlier():
    weight, x, turn = numbers(5, 48), numbers(20, 48, seed=1), hadamard(48)
    x[3, 7] = 500
    rotated = x @ turn
    assert torch.allclose(rotated @ (weight @ turn).T, x @ weight.T, rtol=1e-4, atol=1e-3)
    assert rotated.abs().max() < 1.2 * 500 / math.sqrt(48)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_cache_is_rounded_where_its_scales_say(bits):
    cache = numbers(2, 3, 10, 8) * 10 ** numbers(8, seed=1)
    for per, dim in (("token", -1), ("channel", -2)):
        rounded = round_cache(cache, bits, per)
        spread = cache.amax(dim, keepdim=True).clamp(min=0) - cache.amin(dim, keepdim=True).clamp(max=0)
        step = spread / (2**bits - 1)
        assert ((rounded - cache).abs() <= step * (1 + 1e-4)).all()  # half a step, and half for the zero point
        assert torch.equal(round_cache(cache[1:], bits, per), rounded[1:])
    whole = round_cache(cache, bits, "tensor")
    assert len(whole.unique()) <= 2**bits
    assert torch.equal(round_cache(cache, bits, "token", group=8), round_cache(cache, bits, "token"))


def test_per_channel_a_group_that_is_not_full_waits():
    keys = numbers(11, 6)
    rounded = round_cache(keys, 2, "channel", group=4)
    assert torch.equal(rounded[8:], keys[8:])
    assert torch.equal(rounded[:4], round_cache(keys[:4], 2, "channel"))
    assert torch.equal(round_cache(keys, 2, "channel", group=16), keys)


def test_bytes_of_a_cache_grow_with_the_context():
    assert cache_bytes(10, 2, 4, 64) == 10 * 2 * 2 * 4 * 64 * 2
    assert cache_bytes(10, 2, 4, 64, bits=3, group=32) == 10 * 2 * 2 * 4 * (64 * 3 + 2 * 16) // 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hadamard(6), "no matrix of order 6 can be made here"),
        (lambda: hadamard(0), "no matrix of order 0"),
        (lambda: smooth(torch.ones(2, 3), torch.ones(2)), r"weights \(2, 3\) do not read activations of shape \(2,\)"),
        (lambda: smooth(torch.ones(2, 3), torch.ones(3), 2), "strength must be from 0 to 1, got 2"),
        (lambda: smooth(torch.ones(1, 2), torch.tensor([1e300, 1.0], dtype=torch.double)), "1 of 2 values are NaN"),
        (lambda: smooth([], torch.ones(3)), "there is no weight"),
        (lambda: awq_scales(torch.ones(2, 3), torch.ones(4, 2), format=integers(4)), "has 3 inputs, and what it reads"),
        (lambda: round_cache(torch.ones(3), 4), r"a cache is \(..., tokens, channels\), got shape \(3,\)"),
        (lambda: round_cache(torch.ones(2, 3), 4, "head"), "per must be 'tensor', 'token' or 'channel', got 'head'"),
        (lambda: round_cache(torch.ones(2, 3), 4, "token", 2), "groups of 2 do not divide 3 inputs"),
        (lambda: round_cache(torch.full((2, 3), torch.inf), 4), "cache: 6 of 6 values are NaN or infinite"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
