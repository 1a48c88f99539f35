"""GPTQ against least squares, brute force and torchao's own."""

import inspect
import itertools
import types

from qtutor.lowbit import FORMATS, gptq, gptq_steps, hessian, integers, layer_loss

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples


def layer(seed, out=12, inputs=24, samples=200):
    """A weight, and inputs that go together and differ in loudness."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    loud = (2 * torch.rand(inputs, generator=generator)).exp()
    x = torch.randn(samples, inputs, generator=generator) @ mix * loud
    return torch.randn(out, inputs, generator=generator), x


def test_the_hessian_is_that_of_all_inputs_and_its_loss_that_of_the_outputs():
    weight, x = layer(0, samples=3000)
    curvature = hessian(x)
    assert torch.allclose(curvature, x.double().T @ x.double() / len(x), rtol=1e-5, atol=1e-6)
    assert torch.allclose(hessian(x.view(40, 75, 24)), curvature, rtol=1e-5, atol=1e-6)
    rounded = integers(3, 8).round(weight)
    outputs = x.double() @ (weight - rounded).double().T
    assert layer_loss(weight, rounded, curvature) == pytest.approx(float(outputs.square().sum(1).mean()), rel=1e-5)


@pytest.mark.parametrize("order", [False, True])
def test_after_each_column_the_others_stand_where_least_squares_puts_them(order):
    weight, x = layer(1)
    curvature = hessian(x)
    steps = gptq_steps(weight, curvature, format=integers(3, 8), damping=0, order=order)
    for count in (1, 5, 23):
        now, done, rest = steps.after(count), steps.turn[:count], steps.turn[count:]
        assert torch.equal(now[:, done], steps.rounded[:, done])
        lost = (steps.rounded - weight).double()[:, done]
        mended = weight.double()[:, rest] - lost @ curvature[done][:, rest] @ curvature[rest][:, rest].inverse()
        assert torch.allclose(now[:, rest].double(), mended, atol=1e-5)
        assert torch.allclose(now[:, rest[0]], steps.met[:, rest[0]], atol=1e-6)
    assert torch.equal(steps.after(24), steps.rounded)


def test_every_value_is_one_of_its_groups_grid():
    weight, x = layer(2)
    form = integers(2, 6, symmetric=True)
    rounded = gptq_steps(weight, hessian(x), format=form, order=True).rounded
    codes = rounded.unflatten(1, (4, 6)) / form.encode(weight).scales.scale[..., None]
    assert torch.allclose(codes, codes.round(), atol=1e-5)
    assert codes.round().unique().tolist() == [-2, -1, 0, 1]


def test_it_comes_close_to_the_best_of_all_roundings():
    ratios = []
    for seed in range(20):
        weight, x = layer(seed, out=1, inputs=6)
        curvature, form = hessian(x), integers(2)
        every = torch.tensor([*itertools.product(form.values(weight)[0].tolist(), repeat=6)])
        lost = (every - weight).double()
        best = float((lost @ curvature * lost).sum(1).min())
        found = layer_loss(weight, gptq(weight, curvature, format=form, damping=0), curvature)
        plain = layer_loss(weight, form.round(weight), curvature)
        assert best * (1 - 1e-6) <= found <= plain
        ratios.append((found / best, plain / best))
    fed, plain = torch.tensor(ratios).median(dim=0).values.tolist()
    assert fed < 1.5 < 1.7 < plain


@settings(max_examples=examples(25), deadline=None)
@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 8),
    group=st.sampled_from([None, 1, 4, 12]),
    symmetric=st.booleans(),
    order=st.booleans(),
    samples=st.sampled_from([5, 30, 300]),
)
def test_it_is_never_worse_than_rounding(seed, bits, group, symmetric, order, samples):
    weight, x = layer(seed, samples=samples)
    curvature, form = hessian(x), integers(bits, group, symmetric)
    rounded = gptq(weight, curvature, format=form, order=order)
    plain = layer_loss(weight, form.round(weight), curvature)
    assert layer_loss(weight, rounded, curvature) <= plain * (1 + 1e-9)


@settings(max_examples=examples(25), deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), group=st.sampled_from([None, 3, 12]), order=st.booleans())
def test_where_no_input_can_mend_another_it_is_rounding(seed, bits, group, order):
    weight, _ = layer(seed)
    loud = torch.rand(24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    form = integers(bits, group)
    rounded = gptq_steps(weight, loud.diag(), format=form, order=order).rounded
    off, nearest = ((each - weight).abs() for each in (rounded, form.round(weight)))  # of two as near, either
    torch.testing.assert_close(off, nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["INT3", "E2M1", "NF4", "MXFP4", "NVFP4", "Q4_0", "Q4_1", "Q5_0"])
def test_a_format_rounds_the_columns_of_its_blocks(name):
    form = FORMATS[name]
    weight, x = layer(5, inputs=128, samples=900)
    curvature = hessian(x)
    loss, plain = (layer_loss(weight, w, curvature) for w in (gptq(weight, curvature, format=form), form.round(weight)))
    assert loss < 0.8 * plain
    nearest = gptq_steps(weight, x.square().mean(0).diag(), format=form).rounded
    if name.startswith("Q"):  # GGUF's codes are chosen before the scale is stored in 16 bits: not always the nearest
        assert (nearest - weight).square().sum() <= (form.round(weight) - weight).square().sum()
    else:
        assert torch.equal(nearest, form.round(weight))
    again = gptq_steps(weight, curvature, format=form, order=True).rounded
    assert layer_loss(weight, again, curvature) < 0.8 * plain


def test_a_format_with_several_scales_in_a_block_is_refused():
    with pytest.raises(ValueError, match="Q4_K has several scales"):
        gptq(torch.randn(2, 256), torch.eye(256), format=FORMATS["Q4_K"])


def test_more_columns_than_a_chunk_are_as_good_as_one_by_one():
    weight, x = layer(3, out=3, inputs=300, samples=2000)
    curvature = hessian(x)
    steps = gptq_steps(weight, curvature, format=integers(4, 150))
    assert torch.allclose(steps.after(299)[:, 299], steps.met[:, 299], atol=1e-6)
    left, factor = weight.double(), steps.factor  # without chunks, by the rule alone
    for j in range(300):
        left[:, j + 1 :] -= (left[:, j] - steps.rounded[:, j])[:, None] / factor[j, j] * factor[j, j + 1 :]
    assert torch.allclose(left.float(), steps.met, atol=1e-5)


def torchaos(weight, curvature, group):
    """torchao's GPTQ with its refusal of CPUs taken out, and for a kernel that it lacks here our scales."""
    from torchao.prototype.gptq import api
    from torchao.quantization import Int4WeightOnlyConfig

    source = inspect.getsource(api.gptq_quantize)
    for line in ('assert device.type == "cuda", "GPTQ only supports CUDA currently"', "torch.cuda.synchronize()"):
        assert line in source
        source = source.replace(line, "")

    def scales(block, size):
        chosen = integers(4, size).encode(block).scales
        return None, chosen.scale.T, (-(chosen.shift.int() - 8) * chosen.scale).T

    space = {**vars(api), "int4_row_quantize_zp": scales, "pack_int4": lambda codes: codes}
    space["Int4Tensor"] = lambda **parts: types.SimpleNamespace(**parts)
    exec(source, space)
    config = types.SimpleNamespace(percdamp=0.01, gptq_quantize_block_size=4 * group)
    config.base_config = Int4WeightOnlyConfig(group_size=group)
    found = space["gptq_quantize"](curvature.float(), weight.clone(), config)
    scale, shift = (x.view(-1, len(weight)).T[..., None] for x in (found.scale, found.zero_point))
    return (found.qdata.unflatten(1, (-1, group)) * scale + shift).flatten(1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
def test_it_loses_no_more_than_torchaos(seed):
    weight, x = layer(seed, out=48, inputs=256, samples=700)
    curvature = hessian(x)
    theirs = layer_loss(weight, torchaos(weight, curvature, 32), curvature)
    ours = layer_loss(weight, gptq(weight, curvature, format=integers(4, 32)), curvature)
    assert ours <= 1.001 * theirs  # float32 there


@pytest.mark.parametrize(
    ("weight", "curvature", "options", "error", "message"),
    [
        (torch.ones(2, 3), torch.eye(2), {}, ValueError, r"shape \(2, 3\) needs a Hessian \(3, 3\), got \(2, 2\)"),
        (torch.ones(3), torch.eye(3), {}, ValueError, r"weight must be a matrix, got shape \(3,\)"),
        (torch.ones(2, 3).int(), torch.eye(3), {}, TypeError, "weight needs a floating-point tensor, got a"),
        (torch.ones(2, 3) * torch.nan, torch.eye(3), {}, ValueError, "weight: 6 of 6 values are NaN or infinite"),
        (torch.ones(2, 3), torch.eye(3), {"format": integers(4, 2)}, ValueError, "groups of 2 do not divide 3 inputs"),
        (torch.ones(2, 3), torch.eye(3), {"damping": -1}, ValueError, "damping must not be negative, got -1"),
        (torch.ones(2, 3), torch.ones(3, 3), {"damping": 0}, ValueError, "has no Cholesky factor with damping=0"),
    ],
)
def test_bad_input_is_refused_with_a_reason(weight, curvature, options, error, message):
    with pytest.raises(error, match=message):
        gptq(weight, curvature, **{"format": integers(4), **options})


@pytest.mark.parametrize("inputs", [torch.tensor([torch.nan, 1.0]), torch.tensor([]), torch.tensor([1, 2])])
def test_a_single_row_of_inputs_is_checked_too(inputs):
    with pytest.raises((TypeError, ValueError), match="hessian: inputs"):
        hessian(inputs)


def test_silent_inputs_cost_nothing():
    weight, x = layer(4)
    x[:, 3:9] = 0
    form = integers(3, 8)
    rounded = gptq(weight, hessian(x), format=form)
    assert rounded.isfinite().all()
    assert torch.equal(gptq(weight, torch.zeros(24, 24), format=form), form.round(weight))
