"""Folding against running both layers in float64; refusals against what a naive folding would compute."""

import copy
import linecache

import qtutor.vision  # noqa: F401  makes torchvision importable
from qtutor.fusion import Fusion, OperatorTraffic, find_fusions, fold_batch_norm, fuse, traffic
from qtutor.workflows import quantize_static

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples
from torch import nn
from torch.nn.utils import parametrizations, prune

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
BLOCK_INPUT = torch.linspace(-2, 3, 2 * 3 * 5 * 5, dtype=torch.float64).sin().view(2, 3, 5, 5)


def season(model, seed=0):
    """Give every batch norm statistics and affine parameters that leave nothing to chance."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        if tensor is not None:
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            uniform(module.running_mean, -0.5, 0.5)
            uniform(module.running_var, 0.5, 2.0)
            uniform(module.weight, 0.5, 1.5)
            uniform(module.bias, -0.5, 0.5)
    return model


def ready(model):
    return season(model).double().eval()


def relative_error(result, expected):
    return float(((result - expected).abs().max() / expected.abs().max()).detach())


# Folding


@st.composite
def layers(draw):
    """A layer of any kind that can be folded, and a float64 input for it."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    bias = draw(st.booleans())
    dims = draw(st.sampled_from([0, 1, 2, 3]))
    if dims == 0:
        inputs, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        return nn.Linear(inputs, outputs, bias=bias), torch.randn(3, inputs, dtype=torch.float64), 1
    groups = draw(st.integers(1, 3))
    inputs, outputs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel, stride, dilation = (tuple(draw(st.integers(1, top)) for _ in range(dims)) for top in (3, 2, 2))
    options = {
        "stride": stride,
        "padding": draw(st.integers(0, 2)),
        "dilation": dilation,
        "groups": groups,
        "bias": bias,
    }
    if draw(st.booleans()):
        options["output_padding"] = tuple(max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
        cls = getattr(nn, f"ConvTranspose{dims}d")
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        cls = getattr(nn, f"Conv{dims}d")
    return cls(inputs, outputs, kernel, **options), torch.randn(2, inputs, *(7, 6, 5)[:dims], dtype=torch.float64), dims


@given(case=layers(), affine=st.booleans(), sync=st.booleans(), eps=st.sampled_from([1e-5, 1e-3]))
@settings(max_examples=examples(150))
def test_folded_layer_computes_layer_then_batch_norm(case, affine, sync, eps):
    layer, x, dims = case
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    norm = nn.SyncBatchNorm if sync else NORMS[dims]
    layer, bn = layer.double(), ready(norm(channels, eps=eps, affine=affine))
    folded = fold_batch_norm(layer, bn)
    assert type(folded) is type(layer)
    assert not folded.training
    assert relative_error(folded(x), bn(layer(x))) < 1e-11


def test_folding_leaves_its_arguments_alone():
    layer, bn = nn.Conv2d(3, 4, 3, bias=False), season(nn.BatchNorm2d(4)).eval()
    layer.last = layer(torch.rand(1, 3, 3, 3))  # as some keep it, with its gradient
    before = copy.deepcopy((layer.state_dict(), bn.state_dict()))
    folded = fold_batch_norm(layer, bn)
    for module, state in zip((layer, bn), before, strict=True):
        assert module.state_dict().keys() == state.keys()
        assert all(torch.equal(module.state_dict()[key], value) for key, value in state.items())
    assert layer.bias is None
    assert layer.training
    assert folded.weight.untyped_storage().data_ptr() != layer.weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_layer_is_like_the_layer(dtype, trainable, bias):
    layer = nn.Conv2d(4, 4, 3, bias=bias, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_(trainable)
    folded = fold_batch_norm(layer, season(nn.BatchNorm2d(4)).eval())
    for parameter in (folded.weight, folded.bias):
        assert isinstance(parameter, nn.Parameter)
        assert parameter.dtype == dtype
        assert parameter.requires_grad == trainable
        assert parameter.is_leaf
    assert folded.weight.is_contiguous(memory_format=torch.channels_last)


def test_float32_folding_rounds_only_once():
    layer, bn = nn.Linear(7, 5), season(nn.BatchNorm1d(5)).eval()
    folded = fold_batch_norm(layer, bn)
    exact = fold_batch_norm(copy.deepcopy(layer).double(), copy.deepcopy(bn).double())
    assert torch.equal(folded.weight, exact.weight.float())
    assert torch.equal(folded.bias, exact.bias.float())


@pytest.mark.parametrize(
    ("layer", "bn", "error", "message"),
    [
        (nn.Linear(2, 3), nn.BatchNorm1d(3), ValueError, r"training mode.*call \.eval\(\)"),
        (nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False).eval(), ValueError, "no running statistics"),
        (nn.Conv2d(2, 3, 1), nn.BatchNorm2d(2).eval(), ValueError, "normalizes 2 channels .* gives 3"),
        (nn.Conv2d(2, 3, 1), nn.BatchNorm1d(3).eval(), TypeError, "got BatchNorm1d and Conv2d"),
        (nn.Linear(2, 3), nn.BatchNorm2d(3).eval(), TypeError, "got BatchNorm2d and Linear"),
        (nn.Bilinear(2, 2, 3), nn.BatchNorm1d(3).eval(), TypeError, "got BatchNorm1d and Bilinear"),
        (nn.Conv2d(2, 3, 1), nn.InstanceNorm2d(3).eval(), TypeError, "got InstanceNorm2d and Conv2d"),
        (nn.BatchNorm2d(3).eval(), nn.Conv2d(2, 3, 1), TypeError, "got Conv2d and BatchNorm2d"),
        (nn.LazyConv2d(3, 1), nn.BatchNorm2d(3).eval(), ValueError, "UninitializedParameter"),
        (parametrizations.weight_norm(nn.Linear(2, 3)), nn.BatchNorm1d(3).eval(), ValueError, "computed anew"),
    ],
)
def test_what_cannot_be_folded_is_named(layer, bn, error, message):
    with pytest.raises(error, match=message):
        fold_batch_norm(layer, bn)


# Refusals: each of these models computes something else once its batch norm is folded naively


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class UsedTwice(Block):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class ChangedInPlace(Block):
    def forward(self, x):
        y = self.conv(x)
        y.mul_(2)
        return self.bn(y)


class SharedConv(Block):
    def forward(self, x):
        return self.conv(self.bn(self.conv(x)))


class SharedNorm(Block):
    def forward(self, x):
        return self.bn(self.bn(self.conv(x)))


class ReadsWeight(Block):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv.weight.mean()


class Tied(Block):
    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.other.weight = self.conv.weight

    def forward(self, x):
        return self.other(self.bn(self.conv(x)))


class Squared(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).square()


class OwnForward(Block):
    def __init__(self):
        super().__init__()
        self.conv = Squared(3, 3, 3)


class Wrapped(Block):
    """The convolution is the last in a block, and the batch norm comes after that block."""

    def __init__(self):
        super().__init__()
        self.wrap = nn.Sequential(self.conv)

    def forward(self, x):
        return self.bn(self.wrap(x))


class WithoutStatistics(Block):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3, track_running_stats=False)


class NormFirst(Block):
    def forward(self, x):
        return self.conv(self.bn(x))


def with_hook(model, name):
    model.get_submodule(name).register_forward_hook(lambda module, args, output: output.clamp(min=0.1))
    return model


def with_weight(change):
    model = Block()
    change(model.conv)
    return model


def in_training():
    model = ready(Block())
    model.bn.train()
    return model


def naive(model):
    """Write the folded values into the convolution, whatever else depends on it."""
    conv, bn = model.conv, model.bn
    mean = torch.zeros(3) if bn.running_mean is None else bn.running_mean
    var = torch.ones(3) if bn.running_var is None else bn.running_var
    with torch.no_grad():
        scale = bn.weight / (var + bn.eps).sqrt()
        shift = bn.bias - mean * scale
        if isinstance(model, NormFirst):
            conv.bias += (conv.weight * shift.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
            conv.weight.mul_(scale.view(1, -1, 1, 1))
        else:
            conv.weight.mul_(scale.view(-1, 1, 1, 1))
            conv.bias.copy_(conv.bias * scale + shift)
    model.bn = nn.Identity()
    return model


REFUSED = {
    "used twice": (lambda: ready(UsedTwice()), "the output of conv is also used by add()"),
    "changed in place": (lambda: ready(ChangedInPlace()), "the output of conv is also used by mul_()"),
    "shared convolution": (lambda: ready(SharedConv()), "conv is called 2 times"),
    "shared batch norm": (lambda: ready(SharedNorm()), "bn is called 2 times"),
    "weight read by forward": (lambda: ready(ReadsWeight()), "forward itself reads a parameter or buffer of conv"),
    "tied weight": (lambda: ready(Tied()), "conv and other share a parameter"),
    "forward of its own": (lambda: ready(OwnForward()), "conv is Squared with a forward of its own"),
    "hook on the convolution": (lambda: with_hook(ready(Block()), "conv"), "conv has a hook"),
    "hook on the batch norm": (lambda: with_hook(ready(Block()), "bn"), "bn has a hook"),
    "hook on a block": (lambda: with_hook(ready(Wrapped()), "wrap"), "a hook on a block sees the output of conv"),
    "weight_norm": (lambda: ready(with_weight(parametrizations.weight_norm)), "weight_norm"),
    "spectral_norm": (lambda: ready(with_weight(parametrizations.spectral_norm)), "spectral_norm"),
    "pruning": (lambda: ready(with_weight(lambda m: prune.random_unstructured(m, "weight", 0.5))), "pruning"),
    "old spectral_norm": (lambda: ready(with_weight(nn.utils.spectral_norm)), "spectral_norm"),
    "training mode": (in_training, "bn is in training mode"),
    "no running statistics": (lambda: ready(WithoutStatistics()), "bn has no running statistics"),
    "batch norm first": (lambda: ready(NormFirst()), "bn follows x: only a batch norm right after its layer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_naive_folding_would_change_what_is_refused(case):
    make, reason = REFUSED[case]
    model = make()
    refused = [fusion for fusion in find_fusions(model) if "BN" in fusion.kind]
    assert refused
    assert not any(fusion.accepted for fusion in refused)
    assert any(reason in fusion.reason for fusion in refused)
    expected = make()(BLOCK_INPUT)
    assert relative_error(naive(make())(BLOCK_INPUT), expected) > 1e-3
    torch.testing.assert_close(fuse(model)(BLOCK_INPUT), expected, rtol=1e-12, atol=1e-12)


def test_the_naive_folding_is_right_where_fusion_is_accepted():
    model = ready(Block())
    assert relative_error(naive(copy.deepcopy(model))(BLOCK_INPUT), model(BLOCK_INPUT)) < 1e-12


def test_a_batch_norm_whose_statistics_forward_reads_is_left_in_place():
    class ReadsStatistics(Block):
        def forward(self, x):
            return self.bn(self.conv(x)) * self.bn.running_var.sum()

    model = ready(ReadsStatistics())
    assert [fusion.reason for fusion in find_fusions(model)] == ["forward itself reads a parameter or buffer of bn"]
    assert torch.equal(fuse(model)(BLOCK_INPUT), model(BLOCK_INPUT))


def test_padding_is_blamed_only_where_zeros_pad_the_next_layer():
    def reason(*layers):
        (fusion,) = find_fusions(nn.Sequential(*layers).eval())
        return fusion.reason

    norm = nn.BatchNorm2d(2)
    assert "zeros that pad the input of 1" in reason(norm, nn.Conv2d(2, 2, 3, padding=1))
    assert "zeros that pad the input of 1" in reason(norm, nn.Conv2d(2, 2, 3, padding="same"))
    for padding in ({}, {"padding": "valid"}, {"padding": 1, "padding_mode": "circular"}):
        assert "zeros" not in reason(norm, nn.Conv2d(2, 2, 3, **padding))
    assert "zeros" not in reason(norm, nn.ConvTranspose2d(2, 2, 3, padding=1))
    assert "zeros" not in reason(nn.BatchNorm1d(2), nn.Linear(2, 2))


def test_one_batch_norm_after_another_is_folded_too():
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()))
    (fusion,) = find_fusions(model)
    assert (fusion.kind, fusion.norms) == ("Conv-BN-BN-ReLU", ("1", "2"))
    fused = fuse(model)
    assert relative_error(fused(BLOCK_INPUT), model(BLOCK_INPUT)) < 1e-12
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    model[2].train()
    accepted, refused = find_fusions(model)
    assert (accepted.norms, refused.norms, "training mode" in refused.reason) == (("1",), ("1", "2"), True)


def test_a_relu_that_is_not_alone_refuses_only_the_relu():
    class Branches(Block):
        def forward(self, x):
            y = self.bn(self.conv(x))
            return F.relu(y) + y

    model = ready(Branches())
    norm, relu = find_fusions(model)
    assert norm == Fusion("Conv-BN", ("conv", "bn"))
    assert (relu.kind, relu.reason) == ("Conv-BN-ReLU", "the output of bn is also used by add()")
    assert relative_error(fuse(model)(BLOCK_INPUT), model(BLOCK_INPUT)) < 1e-12


# What is found, and what a fused model keeps


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU(), "2"),
        (nn.ReLU(inplace=True), "2"),
        (nn.ReLU6(), "2"),
        (F.relu, "2.relu()"),
        (F.relu6, "2.relu6()"),
        (lambda x: F.relu(x, inplace=True), "2.relu()"),
        (torch.relu, "2.relu()"),
        (torch.relu_, "2.relu_()"),
        (lambda x: x.relu(), "2.relu()"),
        (lambda x: x.relu_(), "2.relu_()"),
    ],
)
def test_every_spelling_of_relu_is_found(activation, name):
    class Call(nn.Module):
        def forward(self, x):
            return activation(x)

    last = activation if isinstance(activation, nn.Module) else Call()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), last).eval()
    assert find_fusions(model) == (Fusion("Linear-BN-ReLU", ("0", "1", name)),)
    assert find_fusions(fuse(model)) == (Fusion("Linear-ReLU", ("0", name)),)


def test_what_the_model_also_returns_is_not_folded_away():
    class Both(Block):
        def forward(self, x):
            y = self.conv(x)
            return self.bn(y), y

    (fusion,) = find_fusions(ready(Both()))
    assert fusion.reason == "the output of conv is also used by the output of the model"


def test_kinds_are_named_by_their_roles():
    layers = [nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.Tanh(), nn.Conv1d(2, 2, 1), nn.ReLU()]
    layers += [
        nn.ReLU(),
        nn.ConvTranspose1d(2, 2, 1),
        nn.SyncBatchNorm(2),
        nn.Tanh(),
        nn.BatchNorm1d(2),
        nn.Conv1d(2, 2, 1),
    ]
    found = find_fusions(nn.Sequential(*layers).eval())
    assert [fusion.kind for fusion in found] == ["Conv-BN", "Conv-ReLU", "ConvTranspose-BN", "BN-Conv"]
    assert [fusion.accepted for fusion in found] == [True, True, True, False]


def test_an_argument_with_a_default_is_taken_at_its_default():
    class Optional(Block):
        def forward(self, x, mask=None, *, raw=False):
            y = self.conv(x)
            if mask is not None:
                return y * mask
            return y if raw else self.bn(y)

    model = ready(Optional())
    assert [fusion.kind for fusion in find_fusions(model)] == ["Conv-BN"]
    assert [row.kind for row in traffic(model, (BLOCK_INPUT, BLOCK_INPUT[:, :1])).rows] == ["Conv2d", "mul"]
    assert [row.kind for row in traffic(model, (BLOCK_INPUT, None)).rows] == ["Conv2d", "BatchNorm2d"]


class Kept(Block):
    """Holds what a rewritten graph would lose: a class, an attribute, a buffer, a second way to its modules."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.tensor(2.0))
        self.steps, self.label, self.last = [self.conv, self.bn], "kept", None

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        self.last = x * torch.tensor([1.0])
        return x + self.offset


def test_a_fused_model_keeps_classes_hooks_buffers_and_attributes():
    outputs = []
    model = nn.Sequential(ready(Kept()), nn.Tanh())
    model[0].register_forward_hook(lambda module, args, output: outputs.append(output.detach().sum().item()))
    fused = fuse(model)
    assert outputs == []
    torch.testing.assert_close(fused(BLOCK_INPUT), model(BLOCK_INPUT), rtol=1e-12, atol=1e-12)
    assert outputs[0] == pytest.approx(outputs[1], rel=1e-12)
    kept = fused[0]
    assert (type(kept), type(kept.bn), kept.label, float(kept.offset)) == (Kept, nn.Identity, "kept", 2.0)
    assert (kept.steps[0], kept.steps[1]) == (kept.conv, kept.bn)


@pytest.mark.parametrize("call", [find_fusions, fuse, lambda model: traffic(model, BLOCK_INPUT)])
def test_the_given_model_is_untouched(call):
    model = ready(Kept())
    model(BLOCK_INPUT)
    modules, attributes = list(model.modules()), [dict(vars(module)) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    call(model)
    assert list(model.modules()) == modules
    for module, before in zip(modules, attributes, strict=True):
        assert vars(module).keys() == before.keys()
        assert all(vars(module)[name] is value for name, value in before.items())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_a_batch_norm_in_training_mode_is_not_updated_by_traffic():
    model = Block()
    traffic(model, BLOCK_INPUT.float())
    assert int(model.bn.num_batches_tracked) == 0


@pytest.mark.parametrize("call", [find_fusions, fuse, lambda model: traffic(model, torch.ones(2, 2))])
def test_the_line_that_breaks_tracing_is_named(call):
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    number = Branch.forward.__code__.co_firstlineno + 1
    with pytest.raises(ValueError, match=r"torch\.where") as caught:
        call(nn.Sequential(nn.Linear(2, 2), Branch()))
    assert f"{__file__}:{number}: `{linecache.getline(__file__, number).strip()}`" in str(caught.value)


def test_the_line_that_breaks_tracing_is_named_without_its_code():
    typed = "class Typed(Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x"
    names = {"__name__": "__main__", "Module": nn.Module}
    exec(compile(typed, "<stdin>", "exec"), names)
    with pytest.raises(ValueError, match=r"cannot trace Typed at <stdin>:3\n"):
        fuse(names["Typed"]())


def test_a_line_of_pytorch_is_named_where_there_is_no_other():
    with pytest.raises(ValueError, match=r"cannot trace MultiheadAttention at .*activation\.py:\d+: `"):
        fuse(nn.MultiheadAttention(8, 2))


@pytest.mark.parametrize("call", [find_fusions, fuse, lambda model: traffic(model, torch.ones(1))])
def test_only_modules_are_accepted(call):
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Module, got function"):
        call(lambda x: x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet", "densenet121"],
)
def test_torchvision_models_fuse_exactly_and_as_far_as_pytorch_fuses_them(name):
    from torch.fx.experimental import optimization
    from torchvision import models

    torch.manual_seed(0)
    model = ready(models.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {})))
    fused, x = fuse(model), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) < 1e-10

    def norms_left(graph_module):
        called = [node.target for node in graph_module.graph.nodes if node.op == "call_module"]
        return sum(isinstance(graph_module.get_submodule(target), nn.BatchNorm2d) for target in called)

    assert norms_left(torch.fx.symbolic_trace(fused)) <= norms_left(optimization.fuse(model))


# Traffic


def test_traffic_is_the_bytes_of_the_tensors():
    conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
    model = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 5, 6)).eval()
    result = traffic(model, torch.ones(2, 3, 8, 10))
    conv_out = 4 * 2 * 8 * 4 * 5
    assert result.rows == (
        OperatorTraffic("0", "Conv2d", 4 * 2 * 3 * 8 * 10, 4 * (8 * 3 * 9 + 8), conv_out),
        OperatorTraffic("1", "BatchNorm2d", conv_out, 4 * 4 * 8, conv_out),
        OperatorTraffic("2", "ReLU", conv_out, 0, conv_out),
        OperatorTraffic("3", "Flatten", 0, 0, 0),
        OperatorTraffic("4", "Linear", conv_out, 4 * (160 * 6 + 6), 4 * 2 * 6),
    )
    assert result.total == sum(row.read + row.parameters + row.written for row in result.rows)


def test_a_fused_pattern_writes_nothing_between_its_parts():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()
    ).eval()
    x = torch.ones(2, 3, 6, 6)
    apart, together = traffic(model, x), traffic(model, x, fused=True)
    activation = 4 * 2 * 8 * 4 * 4
    assert [row.kind for row in together.rows] == ["Conv-BN-ReLU", "Linear-ReLU"]
    assert together.rows[0] == OperatorTraffic("0 + 1 + 2", "Conv-BN-ReLU", 4 * 2 * 3 * 36, 4 * (216 + 8), activation)
    assert apart.total - together.total == 6 * activation + 4 * 4 * 8 - 4 * 8
    assert traffic(fuse(model), x).totals == together.totals
    assert traffic(copy.deepcopy(fuse(model)), x).totals == together.totals
    assert [row.kind for row in traffic(fuse(model), x, fused=False).rows][:3] == ["Conv2d", "Identity", "ReLU"]


def test_what_moves_no_data_is_free():
    class Views(nn.Module):
        def forward(self, x):
            first, second = x.flatten(1).chunk(2, dim=1)
            y = F.dropout(first.t().unsqueeze(0).expand(3, -1, -1), training=self.training)
            return y.contiguous() + second.shape[0]

    rows = traffic(nn.Sequential(nn.Identity(), nn.Dropout(), Views()).eval(), torch.ones(2, 4, 5)).rows
    moving = {row.kind: (row.read, row.written) for row in rows if row.total}
    assert len(rows) > 7
    assert moving == {"contiguous": (4 * 2 * 20, 4 * 3 * 20), "add": (4 * 3 * 20, 4 * 3 * 20)}


def test_an_operator_in_place_reads_and_writes():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.add_(1).relu_()

    x = torch.zeros(2, 5)
    assert [(row.read, row.written) for row in traffic(InPlace(), x).rows] == [(40, 40), (40, 40)]
    assert not x.any()


def test_several_inputs_come_as_a_tuple_and_one_given_twice_is_read_once():
    class Add(nn.Module):
        def forward(self, x, y, twice):
            return x + y if not twice else x + x

    x, y = torch.ones(2, 3), torch.ones(3, dtype=torch.float64)
    assert traffic(Add(), (x, y, False)).rows == (OperatorTraffic("add()", "add", 24 + 24, 0, 48),)
    assert traffic(Add(), (x, y, True)).rows == (OperatorTraffic("add()", "add", 24, 0, 24),)
    with pytest.raises(TypeError, match="missing a required argument: 'twice'"):
        traffic(Add(), (x, y))


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (torch.ones(1, 4, 8, 8), ValueError, "operator 0.conv fails on this input: .* 3 channels, but got 4"),
        (torch.ones(1, 3, 8, 8, dtype=torch.long), ValueError, "operator 0.conv fails on this input"),
        (None, TypeError, "operator 0.conv fails on this input: conv2d"),
        (torch.ones(1, 3, 8, 8).numpy(), TypeError, "traffic needs tensors, got ndarray"),
    ],
)
def test_an_input_that_the_model_cannot_take_is_refused_with_the_operator(example, error, message):
    with pytest.raises(error, match=message):
        traffic(nn.Sequential(Block().eval()), example)


def test_parameters_are_told_apart_from_inputs_wherever_they_are_used():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3))

        def forward(self, x):
            return F.linear(x, self.weight[:2])

    rows = traffic(Functional(), torch.ones(5, 3)).rows
    assert [(row.kind, row.read, row.parameters, row.written) for row in rows if row.total] == [("linear", 60, 24, 40)]


def test_an_embedding_reads_only_the_rows_it_is_asked_for():
    (row,) = traffic(nn.Sequential(nn.Embedding(1000, 4)), torch.tensor([3, 3, 9])).rows
    assert (row.read, row.parameters, row.written) == (3 * 8, 3 * 4 * 4, 3 * 4 * 4)


def test_bytes_per_element_can_stand_for_a_quantized_model():
    model, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.ones(5, 3)
    int8 = traffic(model, x, activation_bytes=1, weight_bytes=1)
    assert 4 * int8.total == traffic(model, x).total
    assert traffic(model, x, weight_bytes=0.5).totals == OperatorTraffic("total", "model", 100, 4, 80)
    for wrong in (0, -1, float("nan"), float("inf"), "1"):
        with pytest.raises(ValueError, match="activation_bytes must be positive"):
            traffic(model, x, activation_bytes=wrong)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_a_quantized_model_moves_the_bytes_of_its_codes_and_packed_weights():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.randn(2, 3, 6, 6)
    rows = traffic(quantize_static(model.eval(), [x]), x).rows
    elements, activations = x.numel(), 2 * 8 * 4 * 4
    assert [(row.kind, row.read, row.written) for row in rows] == [
        ("quantize_per_tensor", 4 * elements, elements),
        ("ConvReLU2d", elements, activations),
        ("dequantize", activations, 4 * activations),
    ]
    assert 8 * 27 + 4 * 8 <= rows[1].parameters < 8 * 27 + 4 * 8 + 32  # a scale and a zero point


def test_traffic_runs_in_inference_mode():
    model, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True)), torch.ones(5, 3)
    with torch.inference_mode():
        assert traffic(model, torch.ones(5, 3)) == traffic(model, x)
    assert traffic(model, x).rows[1].total == 80
