import math
import re

from qtutor.affine import (
    EPS,
    QParams,
    QuantizationError,
    choose_qparams,
    dequantize,
    fake_quantize,
    grid,
    measure_error,
    quantize,
    sqnr,
)

import numpy
import onnx.reference.ops.op_dequantize_linear as onnx_dequantize
import onnx.reference.ops.op_quantize_linear as onnx_quantize
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples
from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

nan, inf = math.nan, math.inf
int32 = torch.iinfo(torch.int32)
same_integer = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}

thorough = settings(max_examples=examples(200))
brief = settings(thorough, max_examples=examples(100))
seeds = st.integers(0, 2**32)
grids = st.builds(lambda bits, signed: grid(bits, signed=signed), st.integers(2, 16), st.booleans())
float_dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
any_scale = st.floats(math.ldexp(1, -126), math.ldexp(1, 100), width=32)
fair_scale = st.floats(math.ldexp(1, -20), math.ldexp(1, 20), width=32)
power_of_two = st.integers(-20, 20).map(lambda exponent: math.ldexp(1, exponent))
moderate_float = st.floats(-(2.0**100), 2.0**100, width=32)
any_float = st.floats(allow_nan=False, allow_infinity=False, width=32)
kinds = st.sampled_from(["per tensor", "per channel", "per group"])


@st.composite
def qparams_for(draw, shape, kind, scales=any_scale):
    """QParams that broadcast against `shape`: unequal scales and zero points wherever there are several."""
    quant_min, quant_max = draw(grids)
    keep = {
        "per tensor": (),
        "per channel": (draw(st.integers(0, len(shape) - 1)),),
        "per group": range(len(shape) - 1),
    }[kind]
    size = tuple(n if axis in keep else 1 for axis, n in enumerate(shape)) if kind != "per tensor" else ()
    count = math.prod(size)
    scale = torch.tensor(draw(st.lists(scales, min_size=count, max_size=count)), dtype=torch.float32)
    zero_point = torch.tensor(draw(st.lists(st.integers(quant_min, quant_max), min_size=count, max_size=count)))
    return QParams(scale.reshape(size), zero_point.reshape(size), quant_min, quant_max)


def make_values(shape, qparams, seed, extra=(), dtype=torch.float32):
    """Values in and around the grid, with ties, both zeros, denormals and huge ones, all with |x / scale| < 2**62."""
    generator = torch.Generator().manual_seed(seed)
    span = qparams.quant_max - qparams.quant_min
    spread = torch.randn(shape, generator=generator) * span * qparams.scale
    codes = torch.randint(-span - 2, span + 3, shape, generator=generator)
    ties = (codes + 0.5) * qparams.scale
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-39, 2.0**61, -(2.0**61), *extra], dtype=torch.float32)
    special = special[torch.randint(len(special), shape, generator=generator)]
    limit = (qparams.scale.double() * 2.0**62).clamp(max=float(torch.finfo(dtype).max))
    choice = torch.randint(4, shape, generator=generator)
    x = torch.where(choice == 0, special, torch.where(choice == 1, ties, spread)).double()
    return x.clamp(-limit, limit).to(dtype)


def torch_fake_quantize(x, qparams):
    """PyTorch's kernels: per tensor or, with the axes that vary brought to the front and flattened, per channel."""
    limits = (qparams.quant_min, qparams.quant_max)
    if qparams.scale.dim() == 0:
        return torch.fake_quantize_per_tensor_affine(x, float(qparams.scale), int(qparams.zero_point), *limits)
    varying = [axis for axis, n in enumerate(qparams.scale.shape) if n > 1]
    front = x.movedim(varying, tuple(range(len(varying))))
    flat = front.reshape(qparams.scale.numel(), -1)
    out = torch.fake_quantize_per_channel_affine(
        flat, qparams.scale.flatten(), qparams.zero_point.flatten(), 0, *limits
    )
    return out.reshape(front.shape).movedim(tuple(range(len(varying))), varying)


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    view = same_integer.get(actual.dtype, torch.int64)
    different = actual.contiguous().view(view) != expected.contiguous().view(view)
    assert not different.any(), (actual[different], expected[different])


def assert_equals_torch(x, qparams, seed=0):
    ours, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.dtype)
    out, expected = fake_quantize(ours, qparams), torch_fake_quantize(theirs, qparams)
    # On float64 the kernel per tensor rounds its result to float32; the kernel per channel does not.
    rounded = x.dtype == torch.float64 and qparams.scale.dim() == 0
    assert_same_bits(out.detach().float().double() if rounded else out.detach(), expected.detach())
    out.backward(grad)
    expected.backward(grad)
    assert_same_bits(ours.grad, theirs.grad)
    assert_same_bits(fake_quantize(x, qparams), out.detach())


# fake_quantize against PyTorch's kernels


@settings(thorough, max_examples=examples(400))
@given(st.data(), kinds, float_dtypes, seeds, st.lists(any_float, max_size=8))
def test_fake_quantize_equals_torch_bit_for_bit(data, kind, dtype, seed, extra):
    shape = (2, 3, 5)
    qparams = data.draw(qparams_for(shape, kind))
    assert_equals_torch(make_values(shape, qparams, seed, extra, dtype), qparams, seed)


@thorough
@given(st.data(), kinds, seeds)
def test_fake_quantize_equals_torch_at_ties(data, kind, seed):
    shape = (2, 3, 5)
    qparams = data.draw(qparams_for(shape, kind, power_of_two))
    span = qparams.quant_max - qparams.quant_min
    steps = torch.randint(-span - 2, span + 3, shape, generator=torch.Generator().manual_seed(seed)) + 0.5
    assert_equals_torch(steps * qparams.scale, qparams, seed)


@brief
@given(st.floats(3e-39, 1e-38), st.integers(0, 255), seeds)
def test_fake_quantize_equals_torch_for_denormal_scales(scale, zero_point, seed):
    qparams = QParams(scale, zero_point, 0, 255)
    assert_equals_torch(make_values((4, 5), qparams, seed), qparams)


@pytest.mark.parametrize("kernel", ["per tensor", "per channel"])
def test_where_the_ratio_leaves_int64_only_ours_clips_and_keeps_nan(kernel):
    qparams = QParams(1.0, 0, -128, 127) if kernel == "per tensor" else QParams([[1.0]], [[0]], -128, 127)
    x = torch.tensor([[-inf, -1e30, 1e30, inf, nan]], requires_grad=True)
    out = fake_quantize(x, qparams)
    assert out[0, :4].tolist() == [-128, -128, 127, 127]
    assert out[0, 4].isnan()
    out.sum().backward()
    assert x.grad.tolist() == [[0.0] * 5]


# fake_quantize however a tensor lies in memory

layouts = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[..., :1].expand(x.shape),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
}


@pytest.mark.parametrize("layout", layouts)
@pytest.mark.parametrize(
    ("shape", "qparams_shape"),
    [
        ((700_001,), ()),
        ((700_001,), (1,)),
        ((3, 262_145), (3, 1)),
        ((3, 262_145), (1, 262_145)),
        ((262_145, 3), (262_145, 3)),
        ((7, 5, 131, 127), (5, 1, 1)),
        ((7, 5, 131, 127), (1, 1, 131, 1)),
        ((1, 1, 1, 600_000), (1, 1, 1, 1)),
    ],
)
def test_every_layout_in_memory_equals_the_plain_formula(layout, shape, qparams_shape):
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(qparams_shape, generator=generator) + 0.5
    zero_point = torch.randint(-8, 8, qparams_shape, generator=generator)
    x = layouts[layout](torch.randn(shape, generator=generator) * 6).requires_grad_()

    steps = (x.detach() * (1 / scale)).round() + zero_point
    expected = (steps.clamp(-8, 7) - zero_point) * scale
    out = fake_quantize(x, QParams(scale, zero_point, -8, 7))
    assert torch.equal(out.detach(), expected)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, ((steps >= -8) & (steps <= 7)).float())
    assert torch.equal(quantize(x, QParams(scale, zero_point, -8, 7)), steps.detach().clamp(-8, 7).to(torch.int8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_tensors_keep_their_shape(shape, dtype):
    x = torch.full(shape, 0.3, dtype=dtype, requires_grad=True)
    qparams = QParams(0.25, 4, 0, 15)
    out = fake_quantize(x, qparams)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert (out == 0.25).all()
    out.sum().backward()
    assert (x.grad == 1).all()
    codes = quantize(x, qparams)
    assert (codes.shape, dequantize(codes, qparams).shape) == (x.shape, x.shape)


def test_gradients_reach_through_to_second_order():
    x = torch.tensor([0.3, 9.0], requires_grad=True)
    (first,) = torch.autograd.grad(fake_quantize(x, QParams(0.25, 4, 0, 15)).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.tolist() == [2.0, 0.0]


# quantize and dequantize against ONNX

onnx_types = {(8, True): "int8", (8, False): "uint8", (16, True): "int16", (16, False): "uint16"}


@thorough
@given(st.data(), st.sampled_from(list(onnx_types)), st.sampled_from([None, 0, 1, 2]), seeds)
def test_quantize_and_dequantize_equal_onnx_for_power_of_two_scales(data, kind, axis, seed):
    (quant_min, quant_max), shape = grid(kind[0], signed=kind[1]), (2, 3, 5)
    size = [n if i == axis else 1 for i, n in enumerate(shape)] if axis is not None else []
    count = math.prod(size)
    scale = torch.tensor(data.draw(st.lists(power_of_two, min_size=count, max_size=count)), dtype=torch.float32)
    zero_point = data.draw(st.lists(st.integers(quant_min, quant_max), min_size=count, max_size=count))
    qparams = QParams(scale.reshape(size), torch.tensor(zero_point).reshape(size), quant_min, quant_max)
    # The reference casts to int32 before it clips, so values beyond that are no oracle.
    x = make_values(shape, qparams, seed).clamp(-(2.0**30) * qparams.scale, 2.0**30 * qparams.scale)

    flat = scale.numpy() if axis is not None else scale[0].numpy()
    zeros = (
        numpy.array(zero_point, dtype=onnx_types[kind])
        if axis is not None
        else numpy.array(zero_point[0], dtype=onnx_types[kind])
    )
    codes = onnx_quantize.QuantizeLinear_21.eval(x.numpy(), flat, zeros, axis=axis or 0)
    values = onnx_dequantize.DequantizeLinear_21.eval(codes, flat, zeros, axis=axis or 0)
    ours = quantize(x, qparams)
    assert ours.tolist() == codes.tolist()
    assert_same_bits(dequantize(ours, qparams), torch.from_numpy(values))


def test_a_half_step_differs_from_onnx_where_the_reciprocal_rounds():
    # 45.5 / 7 is 6.5 exactly, a tie that goes to 6. float32's 1 / 7 is too large, so 45.5 * (1 / 7) is beyond the tie.
    x, qparams = torch.tensor([45.5]), QParams(7.0, 0, -128, 127)
    assert quantize(x, qparams).tolist() == [7]
    assert onnx_quantize.QuantizeLinear_21.eval(x.numpy(), numpy.float32(7), numpy.int8(0), axis=0).tolist() == [6]
    assert torch_fake_quantize(x, qparams).tolist() == [49.0]


# choose_qparams against PyTorch's observers


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max")
@thorough
@given(
    st.integers(2, 16),
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(moderate_float, moderate_float), min_size=1, max_size=4),
    st.booleans(),
)
def test_choose_qparams_equals_min_max_observers(bits, signed, symmetric, bounds, per_channel):
    quant_min, quant_max = grid(bits, signed=signed or symmetric)
    bounds = torch.tensor(bounds if per_channel else bounds[:1]).sort(-1).values
    observer = (PerChannelMinMaxObserver if per_channel else MinMaxObserver)(
        dtype=torch.int32,
        qscheme=getattr(
            torch, f"per_{'channel' if per_channel else 'tensor'}_{'symmetric' if symmetric else 'affine'}"
        ),
        quant_min=quant_min,
        quant_max=quant_max,
    )
    observer(bounds)
    scale, zero_point = observer.calculate_qparams()
    chosen = choose_qparams(*bounds.unbind(-1), quant_min=quant_min, quant_max=quant_max, symmetric=symmetric)
    ulps = chosen.scale.view(torch.int32) - scale.view(torch.int32)
    assert ulps.abs().max() <= 1
    assert chosen.zero_point.tolist() == zero_point.tolist()


def test_choose_qparams_never_falls_below_the_eps_of_the_observers():
    assert choose_qparams(0.0, 0.0).scale.item() == EPS == float(MinMaxObserver(dtype=torch.qint8).eps)


@pytest.mark.parametrize(("bounds", "widened"), [((3.0, 5.0), (0.0, 5.0)), ((-5.0, -3.0), (-5.0, 0.0))])
def test_choose_qparams_widens_the_range_to_hold_zero(bounds, widened):
    qparams = choose_qparams(*bounds)
    assert qparams == choose_qparams(*widened)
    assert (qparams.low.item(), qparams.high.item()) == pytest.approx(widened, rel=1e-6)


@pytest.mark.parametrize("quant_range", [(0, 15), (0, 255), (-15, -1)])
def test_a_symmetric_range_on_a_one_sided_grid_is_centred(quant_range):
    qparams = choose_qparams(-1.0, 0.5, quant_min=quant_range[0], quant_max=quant_range[1], symmetric=True)
    assert abs(qparams.zero_point.item() - sum(quant_range) / 2) <= 0.5


# Properties


@thorough
@given(st.data(), kinds, seeds)
def test_error_inside_the_range_is_at_most_half_a_step(data, kind, seed):
    shape = (2, 3, 5)
    qparams = data.draw(qparams_for(shape, kind, fair_scale))
    position = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = qparams.low.double(), qparams.high.double()
    x = (low + position * (high - low)).float()
    error = (fake_quantize(x, qparams).double() - x.double()).abs()
    # Three float32 roundings of up to eps / 2 each, of the reciprocal, x / s and x_hat: near a tie they may
    # move x to the other side by 3 / 2 eps |x|, and x_hat itself by eps / 2.
    slack = 2 * EPS * torch.maximum(x.abs().double(), qparams.scale.double())
    assert (error <= qparams.scale.double() / 2 + slack).all()


@thorough
@given(st.data(), kinds, seeds)
def test_fake_quantize_is_exact_at_zero_idempotent_and_equal_to_the_round_trip(data, kind, seed):
    shape = (2, 3, 5)
    qparams = data.draw(qparams_for(shape, kind, fair_scale))
    x = make_values(shape, qparams, seed)
    codes, once = quantize(x, qparams), fake_quantize(x, qparams)
    assert codes.dtype == qparams.code_dtype
    assert ((codes.long() >= qparams.quant_min) & (codes.long() <= qparams.quant_max)).all()
    assert_same_bits(dequantize(codes, qparams), once)
    assert_same_bits(fake_quantize(once, qparams), once)
    assert (fake_quantize(torch.zeros(shape), qparams) == 0).all()
    assert (quantize(torch.zeros(shape), qparams).long() == qparams.zero_point).all()


@thorough
@given(st.data(), seeds, st.lists(any_float, max_size=8))
def test_quantize_and_fake_quantize_are_monotonic(data, seed, extra):
    qparams = data.draw(qparams_for((40,), "per tensor"))
    x = make_values((40,), qparams, seed, (*extra, -inf, inf)).sort().values
    assert (quantize(x, qparams).long().diff() >= 0).all()
    assert (fake_quantize(x, qparams).diff() >= 0).all()


@brief
@given(grids, st.integers(-8, 8))
def test_every_code_of_a_grid_survives_the_round_trip(quant_range, exponent):
    codes = torch.arange(quant_range[0], quant_range[1] + 1)
    qparams = QParams(3 * 2.0**exponent / 7, quant_range[0] + len(codes) // 3, *quant_range)
    assert torch.equal(quantize(dequantize(codes, qparams), qparams).long(), codes)


def test_infinities_clip_to_the_ends():
    qparams = QParams(0.25, 4, 0, 15)
    x = torch.tensor([-inf, inf])
    assert quantize(x, qparams).tolist() == [0, 15]
    assert fake_quantize(x, qparams).tolist() == [-1.0, 2.75]


@pytest.mark.parametrize(
    ("quant_range", "dtype"),
    [
        ((0, 1), torch.uint8),
        ((0, 255), torch.uint8),
        ((-1, 127), torch.int8),
        ((-128, 127), torch.int8),
        ((-1, 128), torch.int16),
        ((0, 256), torch.int16),
        ((-32768, 32767), torch.int16),
        ((0, 32768), torch.int32),
        ((int32.min, int32.max), torch.int32),
    ],
)
def test_codes_take_the_smallest_dtype_that_holds_the_grid(quant_range, dtype):
    qparams = QParams(1.0, quant_range[0], *quant_range)
    assert quantize(torch.tensor([-inf, inf]), qparams).tolist() == list(quant_range)
    assert quantize(torch.zeros(1), qparams).dtype == dtype


# Wide grids: biases are int32 at scale s_x * s_w


@pytest.mark.parametrize(
    ("dtype", "quant_range"),
    [(torch.uint8, (-128, 127)), (torch.int8, (0, 255)), (torch.int16, (0, 2**31 - 1)), (torch.uint16, (0, 255))],
    ids=str,
)
def test_a_zero_point_of_a_narrow_dtype_may_lie_on_a_grid_beyond_it(dtype, quant_range):
    qparams = QParams(0.5, torch.tensor([3], dtype=dtype), *quant_range)
    assert qparams.zero_point.dtype == torch.int32
    assert qparams.zero_point.tolist() == [3]


def test_a_zero_point_just_beyond_int32_is_off_the_grid():
    with pytest.raises(ValueError, match="must lie on the grid"):
        QParams(0.5, torch.tensor(2.0**31), int32.min, int32.max)


@pytest.mark.parametrize("zero_point", [int32.min, -5, 0, 7, int32.max])
def test_an_int32_grid_is_right_at_both_ends(zero_point):
    qparams = QParams(2.0**-10, zero_point, int32.min, int32.max)
    x = torch.tensor([-inf, -1e20, 0.0, 1e20, inf])
    codes = [int32.min, int32.min, zero_point, int32.max, int32.max]
    values = [(code - zero_point) * 2.0**-10 for code in codes]
    assert quantize(x, qparams).tolist() == codes
    assert dequantize(torch.tensor(codes), qparams).tolist() == torch.tensor(values).tolist()
    assert fake_quantize(x, qparams).tolist() == torch.tensor(values).tolist()
    assert (qparams.low.item(), qparams.high.item()) == (
        torch.tensor(values[0]).item(),
        torch.tensor(values[-1]).item(),
    )


@brief
@given(st.integers(-(2**31), 2**31 - 256), st.integers(0, 255), st.integers(-300, 300))
def test_a_short_grid_far_from_zero_keeps_every_code(quant_min, offset, steps):
    qparams = QParams(0.5, quant_min + offset, quant_min, quant_min + 255)
    x, kept = torch.tensor([steps * 0.5]), min(max(steps, -offset), 255 - offset)
    assert quantize(x, qparams).tolist() == [quant_min + offset + kept]
    assert fake_quantize(x, qparams).tolist() == [kept * 0.5]


@brief
@given(st.floats(-1e6, 0, width=32), st.floats(0, 1e6, width=32))
def test_a_range_on_an_int32_grid_keeps_its_place(low, high):
    qparams = choose_qparams(low, high, quant_min=int32.min, quant_max=int32.max)
    expected = int32.min - low / float(qparams.scale)
    # low / s is a float32 quotient below 2**32: its last bit is worth 256 codes.
    assert abs(int(qparams.zero_point) - min(max(expected, int32.min), int32.max)) <= 256


# QParams


def test_qparams_keep_their_values_when_the_callers_tensors_change():
    scale, zero_point = torch.tensor([1.0, 2.0]), torch.tensor([0, 1], dtype=torch.int32)
    qparams = QParams(scale, zero_point, 0, 15)
    scale.mul_(-1)
    zero_point.add_(99)
    assert qparams == QParams([1.0, 2.0], [0, 1], 0, 15)


def test_qparams_compare_by_value():
    assert QParams(0.25, 4, 0, 15) == QParams(torch.tensor(0.25), 4.0, 0, 15)
    for other in (QParams(0.5, 4, 0, 15), QParams(0.25, 5, 0, 15), QParams(0.25, 4, 0, 16), QParams([0.25], 4, 0, 15)):
        assert QParams(0.25, 4, 0, 15) != other
    assert QParams(0.25, 4, 0, 15) != 3


# Error measures


@thorough
@given(st.data(), kinds, seeds)
def test_measure_error_equals_the_float64_formulas(data, kind, seed):
    shape = (2, 3, 5)
    qparams = data.draw(qparams_for(shape, kind, power_of_two))
    x = make_values(shape, qparams, seed)
    scale, zero_point = qparams.scale.double().numpy(), qparams.zero_point.numpy()
    values = x.double().numpy()
    codes = numpy.rint(values / scale) + zero_point
    clipped = (codes < qparams.quant_min) | (codes > qparams.quant_max)
    squared = (values - (codes.clip(qparams.quant_min, qparams.quant_max) - zero_point) * scale) ** 2

    error = measure_error(x, qparams)
    close = {"rel": 1e-9, "abs": 0}
    assert (error.count, error.clipped) == (30, clipped.sum())
    assert error.signal == pytest.approx((values**2).sum(), **close)
    assert error.rounding == pytest.approx(squared[~clipped].sum(), **close)
    assert error.clipping == pytest.approx(squared[clipped].sum(), **close)
    assert error.total == pytest.approx(squared.sum(), **close)
    assert error.sqnr == pytest.approx(sqnr(x, fake_quantize(x, qparams)), rel=1e-9, abs=1e-9)


def test_measure_error_is_the_same_however_the_tensor_lies_in_memory():
    x = torch.randn(700, 900, generator=torch.Generator().manual_seed(2))
    qparams = QParams(torch.rand(700, 1, generator=torch.Generator().manual_seed(3)) / 20 + 0.01, 3, -128, 127)
    plain, turned = measure_error(x, qparams), measure_error(x.mT.contiguous().mT, qparams)
    squared = (x.double() - fake_quantize(x, qparams).double()).square()
    assert turned == plain
    assert plain.total == pytest.approx(float(squared.sum()), rel=1e-9)


@thorough
@given(st.lists(st.tuples(any_float, any_float), min_size=1, max_size=9))
def test_sqnr_equals_the_float64_formula(pairs):
    reference, approximation = torch.tensor(pairs).unbind(-1)
    signal = sum(a**2 for a in reference.tolist())
    noise = sum((a - b) ** 2 for a, b in zip(reference.tolist(), approximation.tolist(), strict=True))
    expected = inf if noise == 0 else -inf if signal == 0 else 10 * math.log10(signal / noise)
    assert sqnr(reference, approximation) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@brief
@given(st.integers(-3, 2), seeds)
def test_sqnr_along_an_axis_is_that_of_each_channel_alone(axis, seed):
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    channels = zip(x.unbind(axis), (x + noise).unbind(axis), strict=True)
    each = [10 * math.log10(float((a**2).sum() / ((a - b) ** 2).sum())) for a, b in channels]
    assert sqnr(x, x + noise, axis=axis).tolist() == pytest.approx(each, rel=1e-4, abs=1e-4)


def test_a_channel_of_zeros_kept_exactly_has_infinite_sqnr():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert sqnr(x, torch.tensor([[0.0, 0.0], [0.0, 0.0]]), axis=0).tolist() == [inf, 0.0]


def test_halving_the_error_adds_six_decibels():
    x, noise = (torch.randn(1000, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
    gain = sqnr(x, x + noise / 2) - sqnr(x, x + noise)
    assert gain == pytest.approx(20 * math.log10(2), abs=1e-6)


@pytest.mark.parametrize(("signal", "rounding", "expected"), [(1.0, 0.0, inf), (0.0, 0.0, inf), (0.0, 1.0, -inf)])
def test_sqnr_is_infinite_without_error_or_without_signal(signal, rounding, expected):
    assert QuantizationError(1, signal, rounding, 0.0, 0).sqnr == expected


def test_sqnr_compares_integers_and_booleans_as_numbers():
    assert sqnr(torch.tensor([1, 3], dtype=torch.uint8), torch.tensor([True, True])) == pytest.approx(
        10 * math.log10(10 / 4)
    )


# Errors

one = QParams(1.0, 0, -128, 127)
rows = QParams(torch.ones(3, 1), 0, -128, 127)
x3 = torch.zeros(3)
refusals = [
    (lambda: QParams(0.0, 0, 0, 15), ValueError, "scale must be positive and finite, got 0"),
    (lambda: QParams([1.0, -2.0], 0, 0, 15), ValueError, "scale must be positive and finite, got -2"),
    (lambda: QParams(nan, 0, 0, 15), ValueError, "scale must be positive and finite, got nan"),
    (lambda: QParams(inf, 0, 0, 15), ValueError, "scale must be positive and finite, got inf"),
    (lambda: QParams(2.9e-39, 0, 0, 15), ValueError, "1 / scale overflows float32"),
    (lambda: QParams(None, 0, 0, 15), TypeError, "scale must be a number or a tensor, got NoneType"),
    (lambda: QParams(1j, 0, 0, 15), TypeError, "scale must be real, got a tensor of torch.complex"),
    (lambda: QParams(1.0, 16, 0, 15), ValueError, r"zero_point must lie on the grid \[0, 15\], got 16"),
    (lambda: QParams(1.0, -1, 0, 15), ValueError, r"zero_point must lie on the grid \[0, 15\], got -1"),
    (lambda: QParams(1.0, 2**40, 0, 15), ValueError, "zero_point must lie on the grid"),
    (lambda: QParams(1.0, inf, 0, 15), ValueError, "zero_point must lie on the grid"),
    (lambda: QParams(1.0, 0.5, 0, 15), TypeError, "zero_point must be a whole number, got 0.5"),
    (lambda: QParams(1.0, nan, 0, 15), TypeError, "zero_point must be a whole number, got nan"),
    (lambda: QParams(1.0, "a", 0, 15), TypeError, "zero_point must be a number or a tensor, got str"),
    (lambda: QParams([1.0, 2.0], [0, 0, 0], 0, 15), ValueError, r"scale has shape \(2,\) and zero_point \(3,\)"),
    (lambda: QParams(1.0, 0, 15, 15), ValueError, "quant_min must be below quant_max, got 15 and 15"),
    (lambda: QParams(1.0, 0, 0.0, 15), TypeError, "quant_min and quant_max must be whole numbers"),
    (lambda: QParams(1.0, 0, 0, 2**31), ValueError, "at most 32-bit signed"),
    (lambda: grid(1), ValueError, "bits must be from 2 to 32, got 1"),
    (lambda: grid(33), ValueError, "bits must be from 2 to 32, got 33"),
    (lambda: grid(32, signed=False), ValueError, "bits must be from 2 to 31, got 32"),
    (lambda: grid(7.5), TypeError, "bits must be a whole number, got 7.5"),
    (lambda: choose_qparams(nan, 1.0), ValueError, "min_val must be finite, got nan"),
    (lambda: choose_qparams(0.0, inf), ValueError, "max_val must be finite, got inf"),
    (lambda: choose_qparams(1.0, -1.0), ValueError, "min_val must not exceed max_val, got 1 and -1"),
    (
        lambda: choose_qparams(torch.zeros(2), torch.zeros(3)),
        ValueError,
        r"min_val has shape \(2,\) and max_val \(3,\)",
    ),
    (lambda: choose_qparams(-3e38, 3e38), ValueError, "wider than float32 can hold"),
    (lambda: choose_qparams(0.0, 1.0, quant_min=7, quant_max=7), ValueError, "quant_min must be below quant_max"),
    (lambda: choose_qparams(None, 1.0), TypeError, "min_val must be a number or a tensor, got NoneType"),
    (lambda: choose_qparams(0.0, torch.tensor(1j)), TypeError, "max_val must be real"),
    (lambda: quantize(torch.tensor([1.0, nan]), one), ValueError, "quantize: 1 of 2 values are NaN"),
    (lambda: dequantize(x3, one), TypeError, "integer codes, got a tensor of torch.float32"),
    (lambda: dequantize(x3.bool(), one), TypeError, "integer codes, got a tensor of torch.bool"),
    (lambda: dequantize([1], one), TypeError, "integer codes, got list"),
    (lambda: dequantize(torch.tensor([0, 128]), one), ValueError, r"codes must lie on the grid \[-128, 127\], got 128"),
    (lambda: dequantize(torch.tensor([0, 2**40]), one), ValueError, "codes must lie on the grid"),
    (lambda: dequantize(torch.zeros(2, dtype=torch.int8), rows), ValueError, r"shape \(3, 1\) do not broadcast"),
    (lambda: sqnr([1.0], x3), TypeError, "reference must be a tensor of real numbers, got list"),
    (lambda: sqnr(x3, torch.zeros(3, dtype=torch.complex64)), TypeError, "approximation must be a tensor of real"),
    (lambda: sqnr(x3, torch.zeros(4)), ValueError, r"one shape, got \(3,\) and \(4,\)"),
    (lambda: sqnr(torch.zeros(0), torch.zeros(0)), ValueError, "is empty"),
    (lambda: sqnr(x3, x3, axis=1), ValueError, r"axis=1 is not an axis of a tensor of shape \(3,\)"),
    (lambda: sqnr(x3, x3, axis=-2), ValueError, "axis=-2 is not an axis"),
    (lambda: sqnr(x3, torch.tensor([0.0, nan, inf])), ValueError, "approximation: 2 of 3 values are NaN or infinite"),
    (lambda: measure_error(torch.zeros(2, 0), one), ValueError, r"shape \(2, 0\) is empty"),
    (lambda: measure_error(torch.tensor([0.0, nan]), one), ValueError, "1 of 2 values are NaN or infinite"),
    (lambda: measure_error(torch.tensor([0.0, inf]), one), ValueError, "1 of 2 values are NaN or infinite"),
]
for function in (quantize, fake_quantize, measure_error):
    name = function.__name__
    for argument, given_as in (
        (torch.zeros(3, dtype=torch.int64), "a tensor of torch.int64"),
        (torch.zeros(3, dtype=torch.complex64), "a tensor of torch.complex64"),
        (torch.zeros(3, dtype=torch.float8_e5m2), "a tensor of torch.float8_e5m2"),
        ([1.0], "list"),
    ):
        message = f"{name} needs a floating-point tensor, got {given_as}"
        refusals.append((lambda f=function, a=argument: f(a, one), TypeError, message))
    refusals += [
        (lambda f=function: f(x3, 0.5), TypeError, f"{name} needs QParams, got float"),
        (lambda f=function: f(torch.zeros(4, 2), rows), ValueError, rf"{name}: qparams of shape \(3, 1\) do not broad"),
        (lambda f=function: f(x3, rows), ValueError, rf"{name}: qparams of shape \(3, 1\) do not broadcast"),
        (lambda f=function: f(x3, QParams([[1.0]], 0, 0, 1)), ValueError, r"shape \(1, 1\) do not broadcast"),
    ]


@pytest.mark.parametrize(("call", "kind", "message"), refusals, ids=[re.sub(r"\W+", "-", r[2]) for r in refusals])
def test_bad_input_is_refused_with_a_reason(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
