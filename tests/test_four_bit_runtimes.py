"""4-bit linear layers: each kernel against a product with the weights that it is to have."""

import copy
import warnings

from qtutor.benchmark import size_bytes
from qtutor.lowbit import integers
from qtutor.models.running import agreement
from qtutor.runtimes import FOUR_BITS, build, quantize_onnx_weights
from qtutor.workflows import int4, quantize_dynamic, quantize_weights

import pytest
import torch
from torch import nn


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 64, bias=False), nn.Tanh(), nn.Linear(64, 10))


def rounded(model, group, places=(0, 2), scales=torch.bfloat16):
    """The model in float32, with the weights of some layers rounded."""
    changed = copy.deepcopy(model)
    for place in places:
        changed[place].weight.data = integers(4, group, scale_dtype=scales).round(changed[place].weight.data)
    return changed


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("shape", [(1, 192), (7, 192), (2, 3, 192)], ids=str)
def test_the_kernel_multiplies_by_the_weights_of_its_groups(model, group, shape):
    x = torch.randn(shape)
    with pytest.warns(
        UserWarning, match=r"leaves 1 of 3 linear layers as they are: 4 .Linear.: its 10 outputs are no multiple of 16"
    ):
        quantized = quantize_weights(model, group=group)
    with torch.no_grad():
        assert agreement([rounded(model, group)(x)], [quantized(x)]) > 35  # dB: bfloat16 keeps 8 binary digits
        assert quantized(x).shape == model(x).shape


def test_the_given_model_stays_and_the_new_one_takes_little_room(model):
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="leaves 1 of 3 linear"):
        quantized = quantize_weights(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert [type(layer).__name__ for layer in quantized][:3] == ["Int4Linear", "ReLU", "Int4Linear"]
    assert size_bytes(quantize_weights(nn.Linear(1024, 1024, bias=False))) < 0.16 * size_bytes(nn.Linear(1024, 1024))


def test_a_kernel_that_fails_without_a_word_leaves_its_layer_in_floats(monkeypatch):
    def fails(layer, group):
        raise NotImplementedError

    monkeypatch.setattr(int4, "Int4Linear", fails)
    with pytest.raises(ValueError, match=r"no linear layer can have 4-bit weights \(.*NotImplementedError"):
        quantize_weights(nn.Sequential(nn.Linear(64, 32)))


@pytest.mark.parametrize("lengths", [[5, 3, 7], [7, 7, 7]])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
def test_an_encoder_gives_zeros_for_padding_as_its_fast_path_does(convert, masked, lengths):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2, nn.LayerNorm(64))
    x, hidden = torch.randn(3, 7, 64), torch.arange(7) >= torch.tensor(lengths)[:, None]
    nn.init.uniform_(encoder.norm.bias)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UserWarning)
        quantized = convert(encoder.eval())
        for padding in (hidden, hidden.flip(1), hidden.flip(1).float().masked_fill(hidden.flip(1), -torch.inf)):
            given = {"mask": torch.zeros(7, 7) if masked else None, "src_key_padding_mask": padding}
            if masked and padding.dtype == torch.bool:
                given["mask"] = given["mask"].bool()
            assert agreement([encoder(x, **given)], [quantized(x, **given)]) > 25
    assert encoder.use_nested_tensor
    assert encoder.layers[0].activation_relu_or_gelu


def test_a_layer_that_two_places_share_is_shared_still():
    layer = nn.Linear(64, 64)
    quantized = quantize_weights(nn.Sequential(layer, nn.ReLU(), layer))
    assert quantized[0] is quantized[2]


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (nn.Conv2d(1, 2, 3), {}, ValueError, r"no linear layer can have 4-bit weights \(there is none\)"),
        (nn.Linear(60, 32), {}, ValueError, "this Linear: its 60 inputs are no multiple of 64"),
        (nn.Linear(64, 32), {"group": 48}, ValueError, "among 32, 64, 128 or 256 inputs, not 48"),
        (3, {}, TypeError, "needs a torch.nn.Module, got int"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(model, options, error, message):
    with pytest.raises(error, match=message):
        quantize_weights(model, **options)


@pytest.mark.slow
def test_both_runtimes_compute_the_model_with_rounded_weights(model):
    pytest.importorskip("onnxruntime")
    x = torch.randn(5, 192)
    with pytest.warns(UserWarning, match="leaves 1 of 3 linear"):
        built = build(model, [x], FOUR_BITS)
    wanted, onnx_wanted = rounded(model, 64), rounded(model, 64, (0, 2, 4), torch.float32)
    with torch.no_grad():
        assert agreement([wanted(x)], [built["INT4 weights"](x)]) > 35
        assert agreement([onnx_wanted(x)], [built["ONNX Runtime INT4"](x)]) > 30  # activations have 8 bits
        assert agreement([onnx_wanted(x[:2])], [built["ONNX Runtime INT4"](x[:2])]) > 30
    assert all(entry.size_bytes < 0.3 * size_bytes(model) for entry in built.values())


def in_floats(path):
    """Have MatMulNBits multiply in float32: accuracy level 1."""
    onnx = pytest.importorskip("onnx")
    written = onnx.load(str(path))
    (level,) = (a for node in written.graph.node for a in node.attribute if a.name == "accuracy_level")
    level.i = 1
    onnx.save(written, str(path))


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 96), (2, 5, 96)], ids=str)
def test_onnx_runtime_multiplies_in_floats_by_the_very_weights(tmp_path, shape, bias):
    pytest.importorskip("onnxruntime")
    from qtutor.runtimes import export_onnx, onnx_session

    layer, x = nn.Sequential(nn.Linear(96, 24, bias=bias)).eval(), torch.randn(shape)
    export_onnx(layer, (x,), tmp_path / "float.onnx")
    quantize_onnx_weights(tmp_path / "float.onnx", tmp_path / "int4.onnx", group=32)
    in_floats(tmp_path / "int4.onnx")
    wanted = rounded(layer, 32, (0,), torch.float32)
    with torch.no_grad():
        assert torch.allclose(onnx_session(tmp_path / "int4.onnx")(x)[0], wanted(x), atol=1e-5)
    with pytest.raises(ValueError, match="a power of two of inputs, 16 or more, not 12"):
        quantize_onnx_weights(tmp_path / "float.onnx", tmp_path / "int4.onnx", group=12)
    with pytest.raises(ValueError, match="no product with a constant matrix whose inputs are a multiple of 64"):
        quantize_onnx_weights(tmp_path / "float.onnx", tmp_path / "int4.onnx", group=64)


def test_a_weight_that_something_else_reads_stays_in_the_file(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from qtutor.runtimes import onnx_session

    weight = {"inner": torch.randn(64, 8), "given": torch.randn(64, 8), "alone": torch.randn(64, 8)}
    graph = onnx.parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>
        net (float[n, 64] x, bool sure) => (float[n, 8] y, float[64, 8] given, float[64, 8] chosen)
        {
            a = MatMul(x, inner)
            b = MatMul(x, given)
            c = MatMul(x, alone)
            y = Sum(a, b, c)
            chosen = If(sure) <
                then_branch = yes () => (float[64, 8] one) { one = Identity(inner) },
                else_branch = no () => (float[64, 8] other) { other = Neg(inner) }
            >
        }
        """
    )
    for name, values in weight.items():
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values.numpy(), name))
    onnx.save(graph, tmp_path / "float.onnx")
    quantize_onnx_weights(tmp_path / "float.onnx", tmp_path / "int4.onnx", group=64)
    written = onnx.load(tmp_path / "int4.onnx")
    kept = {tensor.name for tensor in written.graph.initializer}
    assert {"inner", "given"} <= kept
    assert "alone" not in kept
    assert [opset.domain for opset in written.opset_import].count("com.microsoft") == 1
    _, given, chosen = onnx_session(tmp_path / "int4.onnx")(torch.randn(3, 64), torch.tensor(True))
    assert torch.equal(given, weight["given"])
    assert torch.equal(chosen, weight["inner"])
