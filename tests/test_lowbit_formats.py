"""Formats of few bits: against the package gguf, torchao, QLoRA's formula and PyTorch's own rounding."""

import math
import warnings

from qtutor.lowbit import (
    E2M1_LEVELS,
    FORMATS,
    MXFP4,
    NF4_LEVELS,
    NVFP4,
    Q4_K,
    Codes,
    Scales,
    StoredFormat,
    integers,
    pack,
    unpack,
)

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

STORED = [form for form in FORMATS.values() if isinstance(form, StoredFormat)]
ENCODED = [form for form in STORED if form.name in ("Q4_0", "Q4_1", "Q5_0", "Q8_0")]  # gguf encodes no others, or MXFP4
by_name = {"ids": lambda form: form.name}


def weights(*shape, seed=0):
    """Of a different size in every row, one of them all zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(*shape, generator=generator) * 10 ** torch.empty(*shape[:-1], 1).uniform_(
        -3, 2, generator=generator
    )
    weight[0] = 0
    return weight


def in_gguf(form):
    return gguf.GGMLQuantizationType[form.name]


def as_bits(values):
    return values.contiguous().view(torch.int32)


@pytest.mark.parametrize("form", STORED, **by_name)
def test_decoding_equals_gguf_on_every_bit(form):
    """100,000 random blocks: scales are every float16 there is, with NaN, infinity and denormal numbers."""
    data = np.random.default_rng(0).integers(0, 256, (100_000, form.block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(data, in_gguf(form)))
    ours = form.read(torch.from_numpy(data))
    assert ours.shape == expected.shape == (100_000, form.stored_block)
    number = ~expected.isnan()
    assert torch.equal(ours.isnan(), ~number)
    assert torch.equal(as_bits(ours)[number], as_bits(expected)[number])
    assert (~number).any() or form in (MXFP4, NVFP4)


@pytest.mark.parametrize("form", ENCODED, **by_name)
def test_encoding_equals_gguf_on_every_byte(form):
    weight = weights(300, 4 * form.stored_block)
    expected = torch.from_numpy(gguf.quants.quantize(weight.numpy(), in_gguf(form)))
    ours, theirs = form.encode(weight), form.from_bytes(expected)
    assert torch.equal(ours.values, theirs.values)
    assert expected.numel() * 8 == form.bits_per_weight * weight.numel()
    for part, other in zip(vars(ours.scales).values(), vars(theirs.scales).values(), strict=True):
        assert part is other is None or torch.equal(part.view(torch.int16), other.view(torch.int16))


def test_mxfp4_equals_torchao():
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    weight = weights(200, 256)
    other = MXTensor.to_mx(weight, torch.float4_e2m1fn_x2, block_size=32)
    codes = MXFP4.encode(weight)
    assert torch.equal(codes.scales.scale.view(torch.uint8), other.scale.view(torch.uint8))
    assert torch.equal(MXFP4.decode(codes), other.dequantize(torch.float32))
    unknown = torch.full_like(other.scale.view(torch.uint8), 255).view(torch.float8_e8m0fnu)
    codes = Codes(codes.values, Scales(unknown))
    assert MXFP4.decode(codes).isnan().all()  # as the standard says


def test_nvfp4_equals_torchao():
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    weight = weights(200, 256)
    outer = per_tensor_amax_to_scale(weight.abs().max())
    other = NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=outer)
    codes = NVFP4.encode(weight)
    assert torch.equal(codes.scales.scale.float(), other.scale.float())
    assert torch.equal(NVFP4.decode(codes), other.dequantize(torch.float32))
    fixed = NVFP4.for_tensor(weight)
    assert torch.equal(fixed.round(weight[3:5]), NVFP4.round(weight)[3:5])


def test_what_a_tensor_shares_is_chosen_without_its_history():
    weight = torch.randn(2, 64, requires_grad=True)
    assert NVFP4.for_tensor(weight).outer == NVFP4.for_tensor(weight.detach()).outer


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, None])
def test_integers_are_those_of_pytorch_group_by_group(bits, symmetric, group):
    weight = weights(40, 96) + 0.1
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group or 96)
    form = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
    observer = torch.ao.quantization.PerChannelMinMaxObserver(
        ch_axis=0, dtype=torch.qint8, qscheme=form, quant_min=low, quant_max=high
    )
    observer(groups)
    scale, zero_point = observer.calculate_qparams()
    expected = torch.fake_quantize_per_channel_affine(groups, scale, zero_point.int(), 0, low, high)
    assert torch.equal(integers(bits, group, symmetric).round(weight), expected.view_as(weight))


def test_nf4_holds_the_quantiles_of_a_normal_distribution():
    """QLoRA's equation 4 as their program computes it: 8 quantiles above 0, 7 below, scaled to 1."""
    offset = 0.9677083
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([above, [0], below])) / above.max()
    np.testing.assert_allclose(NF4_LEVELS.numpy(), expected, rtol=0, atol=2e-7)  # they were published in float32


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_rounding_finds_the_nearest_value_that_a_block_has(form):
    """Of a block with a single scale; where codes are chosen by a scale before it is stored, within its rounding."""
    if form.name in ("Q4_K", "Q6_K"):
        with pytest.raises(ValueError, match="several scales"):
            form.values(torch.randn(3, form.block))
        return
    block = weights(6, form.block, seed=1)[1:]
    form = form.for_tensor(block)
    values = form.values(block)
    least = (block[..., None] - values[:, None]).abs().amin(dim=-1)
    error = (block - form.round(block)).abs()
    widest = block.abs().amax(dim=-1, keepdim=True)
    assert (error <= least + 2**-10 * widest).all()
    assert values.shape == (5, 2**form.bits)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_zeros_stay_zeros_and_a_weight_that_is_rounded_is_rounded_already(form):
    zeros = torch.zeros(2, 256)
    assert torch.equal(form.round(zeros), zeros)
    once = form.round(weights(20, 256))
    again = form.round(once)
    assert (again - once).abs().max() <= 0.05 * once.abs().max()


@pytest.mark.parametrize("name", ["NVFP4", "MXFP4", "NF4", "Q4_0", "Q4_1"])
def test_the_smallest_weights_round_to_none_that_is_far(name):
    weight = torch.linspace(-1, 1, 64)[None] * 1e-36
    rounded = FORMATS[name].round(weight)
    assert rounded.isfinite().all()
    assert (rounded - weight).abs().max() <= 1e-36


def test_what_a_type_cannot_hold_is_refused_and_what_it_can_stays():
    for name, value in (("Q4_1", 1e5), ("Q4_K", -5e6)):
        with pytest.raises(ValueError, match="stores a scale as"):
            FORMATS[name].round(torch.full((1, 256), value))
    with pytest.raises(ValueError, match="NaN or infinite"):
        FORMATS["MXFP4"].round(torch.full((1, 32), 1e300, dtype=torch.float64))
    assert integers(4, 64).round(torch.full((1, 64), 65504.0).half()).isfinite().all()
    assert integers(4, 64).round(torch.ones(1, 64, dtype=torch.float64)).tolist() == [[1.0] * 64]
    assert FORMATS["Q4_0"].read(torch.zeros(19, dtype=torch.uint8)[1:]).tolist() == [0.0] * 32


def test_k_quants_beat_the_first_formats_for_the_same_bits():
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    loss = {name: float((form.round(weight) - weight).square().mean()) for name, form in FORMATS.items()}
    assert loss["Q4_K"] < loss["Q4_0"]
    assert loss["Q8_0"] < loss["Q6_K"] < loss["Q5_0"]
    assert FORMATS["Q4_K"].bits_per_weight == FORMATS["Q4_0"].bits_per_weight == 4.5


def test_bits_per_weight_counts_the_scales():
    expected = {"INT8": 8.375, "INT4": 4.3125, "INT3": 3.296875, "INT2": 2.28125, "E2M1": 4.5, "NF4": 4.25}
    expected |= {"MXFP4": 4.25, "NVFP4": 4.5, "Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q8_0": 8.5}
    expected |= {"Q4_K": 4.5, "Q6_K": 6.5625}
    assert {name: form.bits_per_weight for name, form in FORMATS.items()} == expected
    assert (integers(4).bits_per_weight, integers(4, 64).bits_per_weight) == (4, 4.5625)
    assert len(E2M1_LEVELS) == len(NF4_LEVELS) == 16


@given(st.data())
def test_codes_come_out_of_bytes_as_they_went_in(data):
    bits, count = data.draw(st.integers(1, 8)), data.draw(st.integers(0, 40))
    codes = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=2 * count, max_size=2 * count)))
    codes = codes.to(torch.uint8).reshape(2, count)
    packed = pack(codes, bits)
    assert packed.shape == (2, math.ceil(count * bits / 8))
    assert torch.equal(unpack(packed, bits, count), codes)
    row = sum(int(code) << (bits * place) for place, code in enumerate(codes[1]))  # the definition, on one long integer
    assert bytes(packed[1].tolist()) == row.to_bytes(packed.shape[-1], "little")


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: FORMATS["INT4"].round(torch.ones(2, 100)), "blocks of 64 weights, and 100"),
        (lambda: FORMATS["NF4"].round(torch.full((1, 64), math.nan)), "64 of 64 values are NaN"),
        (lambda: FORMATS["NF4"].round(torch.full((1, 64), 1e30)), "stores a scale as torch.float16"),
        (lambda: Q4_K.round(torch.ones(2, 256, dtype=torch.int)), "rounds a tensor of real numbers"),
        (lambda: Q4_K.round(torch.ones(())), "single number"),
        (lambda: Q4_K.read(torch.zeros(3, 143, dtype=torch.uint8)), "a block of Q4_K has 144 bytes"),
        (lambda: integers(9), "from 2 to 8 bits"),
        (lambda: integers(4, group=0), "a group is a number of weights"),
        (lambda: pack(torch.tensor([16]), 4), "codes of 4 bits are from 0 to 15"),
        (lambda: unpack(torch.zeros(3, dtype=torch.uint8), 4, 7), "7 codes of 4 bits take 4 bytes, got 3"),
        (lambda: pack(torch.tensor([1]), 9), "from 1 to 8 bits"),
    ],
)
def test_what_cannot_be_rounded_is_refused_in_words(call, why):
    with warnings.catch_warnings(), pytest.raises((TypeError, ValueError), match=why):
        call()
