"""What stays in floats does so, and is named."""

import copy
import functools
import itertools
import warnings
from dataclasses import dataclass
from functools import partial
from types import MethodType

from qtutor.affine import sqnr
from qtutor.diagnosis import diagnose
from qtutor.models.running import agreement
from qtutor.workflows import (
    convert,
    load,
    prepare_qat,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
    save,
)
from qtutor.workflows.telling import QuantizationWarning

import numpy as np
import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F
from people import (
    CALLED_TWICE,
    CONVERT,
    ENGINES,
    PYTORCH_RETIRES,
    ROWS,
    Asks,
    AsksForTheType,
    Forward,
    Named,
    called_twice,
    in_int8,
    scaled,
    two_convolutions,
    two_layers,
    with_forward,
)
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

pytestmark = PYTORCH_RETIRES


def test_what_stays_in_floats_is_said(images):
    model = Forward(
        lambda s, x: s.h(s.g(x.flatten(2))[0]), g=nn.GRU(144, 8, batch_first=True), h=nn.Linear(8, 4)
    ).eval()
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: g \(GRU\): quantize_dynamic takes it$"):
        quantize_static(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_static(model, images, keep_float=["g"])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_that_no_kernel_has_stays_in_floats(images):
    layers = [nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.Conv2d(8, 8, 4, padding="same")]
    model = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d(8, 4, 1)).eval()
    with pytest.warns(
        QuantizationWarning, match=r"floating point: 0 \(Conv2d\), 1 \(Conv2d\): no INT8 kernel does what it does here$"
    ):
        quantized = quantize_static(model, images)
    assert sqnr(model(images[0]), quantized(images[0])) > 25
    with pytest.raises(ValueError, match="no INT8 kernel pads like that\\. flow='fx' can take it as it is"):
        quantize_static(model, images, "pt2e")


def test_an_operator_without_a_kernel_stays_in_floats(images):
    model = two_convolutions(lambda s, x: s.second(F.interpolate(s.first(x), scale_factor=2, mode="bicubic")))
    with pytest.warns(QuantizationWarning, match="no INT8 kernel for torch.nn.functional.interpolate"):
        quantized = quantize_static(model, images)
    assert sqnr(model(images[0]), quantized(images[0])) > 25


class CountsInPython(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        for place in range(x.shape[1]):
            x = x + self.layer(x[:, place : place + 1])
        return x


@pytest.mark.parametrize("flow", ["pt2e"])
def test_a_captured_model_takes_all_sizes_that_forward_leaves_free(flow, tmp_path):
    torch.manual_seed(0)
    model = two_layers(lambda self, x: self.second(self.first(x).relu()).sum(1) / x.shape[1])
    short, long = torch.randn(4, 12, 16), torch.randn(3, 20, 16)
    for data in ([short], [short, long]):
        quantized = quantize_static(model, data, flow)
        for x in (short, long):
            assert sqnr(model(x).detach(), quantized(x).detach()) > 20
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", two_layers(model.function))(long), quantized(long))
    counts, wanted = CountsInPython().eval(), r"captured where x.size\(\)\[1\] == 2, and got \(4, 3, 16\): it turns"
    few, more = short[:, :2], short[:, :3]
    with pytest.raises(ValueError, match=wanted):
        quantize_static(counts, [few], flow)(more)
    with pytest.raises(ValueError, match=f"flow='pt2e' cannot take all batches: forward was {wanted}"):
        quantize_static(counts, [few, more], flow)
    for batch_first in (True, False):
        reader = Forward(lambda s, x: s.out(s.memory(s.first(x))[0]), first=nn.Linear(16, 8), out=nn.Linear(8, 4))
        reader.memory = nn.GRU(8, 8, batch_first=batch_first)
        assert (
            sqnr(
                reader.eval()(short).detach(),
                quantize_static(reader, [short], flow, keep_float=["memory"])(short).detach(),
            )
            > 20
        )


def test_a_hook_stays_in_every_flow_that_takes_it():
    model = two_layers()
    model.first.register_forward_hook(lambda layer, given, output: 3 * output)
    with pytest.warns(QuantizationWarning, match="leaves in floating point: first"):
        assert sqnr(model(ROWS), quantize_static(model, [ROWS])(ROWS)) > 25
    model.first.register_forward_pre_hook(lambda layer, given, named: (given, named), with_kwargs=True)
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: first \(Linear\): it has hooks"):
        assert sqnr(model(ROWS), quantize_dynamic(model)(ROWS)) > 25


@pytest.mark.parametrize("convert", CONVERT)
@pytest.mark.parametrize("make", [lambda m: MethodType(scaled, m[0]), lambda m: partial(scaled, m[0])])
def test_a_layer_with_a_forward_of_its_own_stays(make, convert):
    model, x = with_forward(make), torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(QuantizationWarning, match=r"leaves .*: 0 \(Linear\)"):
        assert sqnr(model(x), CONVERT[convert](model, x)(x)) > 15


class AsksForTheClass(Asks):
    def forward(self, x):
        for layer in (*self.layers, self.head):
            x = layer(x)
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer is not self.head:
                x = F.relu(x)
        return x


class ReadsAWeight(Asks):
    def forward(self, x):
        return self.head(F.linear(self.layers[1](x), self.layers[0].weight).relu())


class ReadsByAProperty(Asks):
    def forward(self, x):
        return self.head(self.layers[1](x.to(self.dtype)))


class CallsAHelper(Asks):
    def forward(self, x):
        return self.head(self.project(x))

    def project(self, x):
        for layer in self.layers:
            x = scaled(layer, x)
        return x


class ReadsNothing(Asks):
    def initialize(self, layer: nn.Linear):
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)

    def forward(self, x: "nn.Linear | torch.Tensor"):
        layer: nn.Linear = self.head
        return layer(x) + self.layers[0](x)[:, :32]


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
@pytest.mark.parametrize(
    ("kind", "stays", "why"),
    [
        (ReadsAWeight, {"layers.0"}, "forward of ReadsAWeight reads its weight itself"),
        (ReadsByAProperty, {"layers.0"}, "dtype of ReadsByAProperty reads its weight itself"),
        (ReadsNothing, set(), ""),
    ],
)
def test_what_a_forward_reads_of_a_layer_itself_stays(kind, stays, why, convert):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(8, 64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quantized = convert(model)
    assert {name for name, layer in quantized.named_modules() if type(layer) is nn.Linear} == stays
    assert [why in str(each.message) for each in told if each.category is QuantizationWarning] == [True] * bool(stays)
    assert sqnr(model(x), quantized(x)) > 15


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (AsksForTheClass, "forward of AsksForTheClass branches on the class Linear, and a quantized layer has another"),
        (AsksForTheType, "forward of AsksForTheType branches on the class Linear, and a quantized layer has another"),
        (CallsAHelper, "project of CallsAHelper reads its weight itself"),
    ],
)
def test_all_layers_that_a_forward_may_ask_stay(kind, why, convert):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), kind()).eval(), torch.randn(8, 64)
    with pytest.warns(QuantizationWarning, match=why):
        quantized = convert(model)
    assert type(quantized[0]) is not nn.Linear
    assert type(quantized[1].head) is nn.Linear
    assert sqnr(model(x), quantized(x)) > 15
    with pytest.raises(ValueError, match=f"head .Linear.: {why}"):
        convert(model[1])


TYPED = """
class Typed(Asks):
    def forward(self, x):
        return self.head(x).relu() if {asked} else self.head(x)
"""


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("isinstance(self.head, (nn.Conv2d, nn.Linear))", "branches on the class Linear"),
        ("type(self.head).__name__ in ('Linear', 'Conv2d')", "branches on the class Linear"),
        ("any(layer.weight.isnan().any() for layer in self.layers)", "reads its weight itself"),
        ("(lambda layer: layer.weight.dim())(self.head)", "reads its weight itself"),
        ("getattr(self.head, 'weight').dim()", "reads its weight itself"),
        ("[p for layer in self.layers for p in layer.parameters()]", "reads its parameters itself"),
        ("torch.autograd.grad(self.head(x).sum(), x)[0].any()", "differentiates"),
        ("torch.func.functional_call(self.head, {}, x).any()", "gives layers other weights by functional_call"),
    ],
)
def test_what_a_forward_asks_is_read_where_there_is_no_source(asked, what, convert):
    names = {"Asks": Asks, "nn": nn, "torch": torch}
    exec(TYPED.format(asked=asked), names)
    with pytest.raises(ValueError, match=f"forward of Typed {what}"):
        convert(names["Typed"]().eval())


def with_numbers(numbers, forward):
    model = two_layers(forward)
    model.numbers = nn.Parameter(numbers, requires_grad=False)
    return model


def test_parameters_that_are_complex_or_whole_stay_as_they_are():
    chosen = with_numbers(torch.tensor([2, 0]), lambda self, x: self.second(self.first(x))[:, self.numbers])
    turned = with_numbers(
        torch.tensor([1j + 2]), lambda self, x: torch.view_as_real(self.second(self.first(x))[..., None] * self.numbers)
    )
    trains, captures = partial(in_int8, x=ROWS, trained=True), partial(in_int8, x=ROWS, flow="pt2e")
    ways = quantize_dynamic, partial(in_int8, x=ROWS), trains, captures
    for model, quantize in itertools.product((chosen, turned), ways):
        assert sqnr(model(ROWS).detach(), quantize(model)(ROWS).detach()) > 25
    with pytest.raises(
        ValueError, match=r"weight is torch.float64 on cpu: .* pass copy.deepcopy\(model\).cpu\(\).float\(\)"
    ):
        quantize_dynamic(two_layers().double())


def test_dynamic_says_what_stays_in_floats_and_which_layer_is_not_finite():
    layers = {f"conv{n}": nn.Conv1d(16, 16, 1) for n in range(8)} | {"embed": nn.Embedding(4, 16)}
    model = Forward(lambda s, x: s.out(s.attention(x, x, x)[0]), attention=nn.MultiheadAttention(16, 2), **layers)
    model.out = nn.Linear(16, 16)
    stays = r"leaves in floating point: attention \(MultiheadAttention\), all 8 Conv1d, embed \(Embedding\)$"
    with pytest.warns(QuantizationWarning, match=stays):
        quantize_dynamic(model)
    parametrizations.weight_norm(model.out).parametrizations.weight.original0.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"out \(Linear\) holds NaN or infinity in its weight: mend that"):
        quantize_dynamic(model)


@pytest.mark.parametrize("forward", CALLED_TWICE[2:])
def test_what_is_kept_in_floats_stays_so_at_each_call(forward):
    model = called_twice(forward)
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantizationWarning)
        quantized = quantize_static(model, [ROWS], keep_float="first")
    assert sqnr(model(ROWS).detach(), quantized(ROWS)) > 25
    assert not any(hasattr(m, "set_weight_bias") for name, m in quantized.named_modules() if name.startswith("first"))


class KeepsAList(nn.Module):
    """Its layers stand under names too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 32)
        self.plain = {"all": [self.first, (self.second,)]}

    def forward(self, x):
        first, (second,) = self.plain["all"]
        return second(input=first(x).relu())


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
def test_layers_in_a_plain_list_are_quantized_there_too(convert, tmp_path):
    model, x = KeepsAList(), torch.randn(8, 64)
    quantized = convert(model)
    assert not torch.equal(quantized(x), model(x))
    assert sqnr(model(x).detach(), quantized(x).detach()) > 15
    assert quantized.plain["all"][0] is quantized.first
    torch.testing.assert_close(quantized(x[0]), quantized(x[:1])[0])
    if convert is quantize_dynamic:
        save(quantized, tmp_path / "model")
        assert torch.equal(load(tmp_path / "model", KeepsAList())(x), quantized(x))


@pytest.mark.parametrize("convert", [quantize_dynamic, quantize_weights])
def test_layers_in_a_plain_list_alone_are_named_with_a_way_that_holds(convert, tmp_path):
    make = lambda: Forward(lambda self, x: self.head(self.layers[0](x)), head=nn.Linear(64, 32))  # noqa: E731
    model, other, x = make(), make(), torch.randn(4, 64)
    model.layers, other.layers = [nn.Linear(64, 64)], [nn.Linear(64, 64)]
    with pytest.warns(QuantizationWarning, match="leaves the layers in layers as they are.*: make it an nn.ModuleList"):
        quantized = convert(model)
    if convert is quantize_dynamic:
        save(quantized, tmp_path / "model")
        assert torch.equal(load(tmp_path / "model", other)(x), quantized(x))
    model.layers = nn.ModuleList(model.layers)
    assert type(convert(model).layers[0]) is not nn.Linear


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.second(h.float() if (h := s.first(x)).dtype == torch.bfloat16 else h),
        lambda s, x: s.second(h / 99 if (h := s.first(x.relu() + x)).device.type in ("mps", "cuda") else h),
        lambda s, x: s.second(s.first(x if torch.is_floating_point(x) and not x.is_cuda else x.float() / 99)),
        lambda s, x: s.second(h.view(len(ROWS), -1) if (h := s.first(x).view(x.size(0), -1)).dtype == x.dtype else x),
        lambda s, x: s.second(s.first(x) / (1 if (s.norm(s.first(x)) + x).dtype == s.first.weight.dtype else 99)),
        lambda s, x: s.second(s.first(x)).masked_fill(x[:, :1] > 0, -torch.finfo(s.first(x).dtype).max),
        lambda s, x: s.second(s.first(x.to(s.first.weight.device)) * (x[:, :1] > 0).to(s.first.weight.dtype)),
        lambda s, x: s.second(s.first(x)).clamp(torch.finfo((s.first(x) @ x.t() / np.sqrt(4)).softmax(-1).dtype).min),
    ],
)
def test_who_asks_for_a_dtype_or_a_device_gets_the_answer_of_a_run(forward):
    model = two_layers(forward)
    model.norm = nn.LayerNorm(16)
    assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS])(ROWS)) > 25


LEFT_ALONE = {
    "statistics": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "a hook": lambda: tripled(nn.Hardswish()),
    "a hook on a norm": lambda: tripled(nn.BatchNorm2d(8)),
    "PReLU": nn.PReLU,
}


def tripled(layer):
    layer.register_forward_hook(lambda layer, given, output: 3 * output)
    return layer


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_a_layer_that_no_kernel_computes_stays_in_floats_and_is_named(kind, trained, images, tmp_path):
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), LEFT_ALONE[kind](), nn.ReLU(), nn.Conv2d(8, 4, 1))  # noqa: E731
    model = make()
    for _ in range(30):
        model(images[0])
    model.eval()
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: 1 \(\w+\): (it has hooks|no INT8 kernel)"):
        quantized = prepare_qat(model, images[0]) if trained else quantize_static(model, images)
    if trained:
        for _ in range(5):
            quantized(images[0])
        expected, quantized = quantized.eval(), convert(quantized)
    for x in (images[0], 0.3 * images[0]):
        assert sqnr((expected if trained else model)(x).detach(), quantized(x).detach()) > 20
    x = images[0]
    assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", make())(x), quantized(x))


def test_what_is_to_stay_in_floats_does_though_a_kernel_stands(images):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 4, 1)).eval()
    quantized = quantize_static(model, images, keep_float=["1"])
    assert isinstance(quantized.get_submodule("1"), nn.Hardswish)
    assert not isinstance(quantized.get_submodule("1"), nnq.Hardswish)
    assert sqnr(model(images[0]), quantized(images[0])) > 25


def blocks():
    torch.manual_seed(0)
    return Forward(
        lambda self, x: self.head(self.block(x)),
        block=nn.Sequential(nn.Linear(16, 16), nn.ReLU()),
        head=nn.Linear(16, 4),
    ).eval()


@pytest.mark.parametrize("name", ["block", ""])
def test_a_hook_of_a_block_is_told_of_where_it_watches_and_refused_where_it_changes(name):
    model, seen = blocks(), []
    handle = model.get_submodule(name).register_forward_hook(lambda block, given, output: seen.append(output))
    said = name or "the model itself"
    with pytest.warns(QuantizationWarning, match=f"leaves out the hooks of {said}, which change nothing"):
        assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS])(ROWS)) > 20
    assert {*map(type, seen)} == {torch.Tensor}
    handle.remove()
    model.get_submodule(name).register_forward_pre_hook(lambda block, given: (given[0] / 10,))
    for quantize in (lambda: quantize_static(model, [ROWS]), lambda: prepare_qat(model, ROWS)):
        with pytest.raises(ValueError, match=rf"hooks of {said} get lost.*handle.remove\(\). flow='pt2e' can take it"):
            quantize()


def test_a_hook_that_holds_the_given_model_is_refused():
    model = blocks()
    model.seen = []
    hooks = (
        lambda block, given, output: model.seen.append(output),
        lambda block, given, output, model=model: model.seen.append(output),
        functools.partial(lambda extra, block, given, output: model.seen.append(output), 1),
    )
    for hook in hooks:
        handle = model.block.register_forward_hook(hook)
        for quantize in (
            quantize_dynamic,
            lambda model: quantize_static(model, [ROWS]),
            lambda model: diagnose(model, [ROWS], progress=False),
        ):
            with pytest.raises(ValueError, match=r"a hook of block \(Sequential\) holds a module"):
                quantize(model)
        handle.remove()
    assert not model.seen


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("alter", ["hook", "forward"])
def test_pt2e_leaves_a_layer_in_floats_that_does_more_than_its_class(alter, trained, tmp_path):
    model = blocks()
    if alter == "hook":
        model.head.register_forward_hook(lambda block, given, output: 3 * output)
    else:
        model.head.forward = MethodType(scaled, model.head)
    with pytest.warns(
        QuantizationWarning, match=r"floating point: head \(Linear\): it has hooks or a forward of its own$"
    ):
        quantized = prepare_qat(model, ROWS, flow="pt2e") if trained else quantize_static(model, [ROWS], "pt2e")
    if trained:
        quantized(ROWS)
        quantized = convert(quantized)
    assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 25
    save(quantized, tmp_path / "model.qt")
    assert torch.equal(load(tmp_path / "model.qt", model)(ROWS), quantized(ROWS))


def test_autocast_in_forward_is_named():
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            x = self.first(x)
        return self.second(x.float())

    with pytest.raises(ValueError, match=r"autocast gets lost, here at .*_floats.py:\d+: `with torch.autocast"):
        quantize_static(two_layers(forward), [ROWS])
    assert "noted" not in torch.autocast.__enter__.__qualname__


@pytest.mark.parametrize(
    ("layer", "give"),
    [
        (nn.Linear(16, 8), torch.as_tensor),
        (nn.GRU(16, 8), torch.as_tensor),
        (nn.GRU(16, 8), lambda x: pack_sequence([x, x[:2]])),
        (nn.LSTMCell(16, 8), lambda x: x[0]),
    ],
)
def test_dynamic_takes_what_autocast_gives(layer, give):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(give(x @ torch.eye(16)))

    model = Forward(forward, layer=layer).eval()
    given, other = (tree_leaves(each(ROWS)) for each in (model, quantize_dynamic(model)))
    exact = [y.data for y in given if y is not None]
    assert agreement(exact, [y.data for y in other if y is not None]) > 20


def test_layers_inside_a_block_of_pytorch_are_not_half_converted():
    torch.manual_seed(0)
    layers = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), nn.Linear(16, 4)
    with pytest.warns(QuantizationWarning, match=r"floating point: 1 \(TransformerEncoderLayer\): FX does not look"):
        prepared = prepare_qat(nn.Sequential(nn.Linear(16, 16), *layers), ROWS[None])
    for _ in range(5):
        prepared(ROWS[None])
    assert sqnr(prepared.eval()(ROWS[None]).detach(), convert(prepared)(ROWS[None]).detach()) > 25


def test_what_data_parallel_wraps_is_named_with_a_way_that_holds():
    model = blocks()
    model.block = nn.DataParallel(model.block)
    said = r"block \(DataParallel\): FX does not look inside: write (.*) first"
    with pytest.warns(QuantizationWarning, match=said) as told:
        quantize_static(model, [ROWS])
    alone = Forward(lambda self, x: self.block(x), block=model.block).eval()
    with pytest.raises(ValueError, match=f"finds nothing to quantize.* What stays: {said}"):
        quantize_static(alone, [ROWS])
    exec(str(told[0].message).split("write ")[1].removesuffix(" first"), {"model": model})
    quantize_static(model, [ROWS])  # and nobody is told of anything


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("layer", [nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), nn.ReLU())])
def test_a_scripted_part_stays_in_floats_and_is_named(layer, tmp_path):
    make = lambda: nn.Sequential(torch.jit.script(copy.deepcopy(layer)), nn.Linear(16, 4)).eval()  # noqa: E731
    model, said = make(), r"leaves in floating point: 0 \(RecursiveScriptModule\): torch.jit made it: put the nn.Module"
    for quantize in (lambda: quantize_static(model, [ROWS]), lambda: quantize_dynamic(model)):
        with pytest.warns(QuantizationWarning, match=said):
            quantized = quantize()
        assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 25
        save(quantized, tmp_path / "model")
        assert torch.equal(load(tmp_path / "model", make())(ROWS), quantized(ROWS))
    with pytest.raises(ValueError, match=r"torch.jit made a part of it: .*flow='fx' can take it"):
        quantize_static(model, [ROWS], "pt2e")


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


@pytest.mark.parametrize("form", [Output, Named])
def test_an_output_of_a_class_of_its_own_is_named_where_it_cannot_be_captured(form):
    model = two_layers(lambda self, x: form(logits=self.second(h := self.first(x).relu()), hidden=h))
    assert type(quantize_static(model, [ROWS])(ROWS)) is form
    with pytest.raises(ValueError, match=r"Forward: .* return a tuple or a dict. flow='fx' can take it as it is$"):
        quantize_static(model, [ROWS], "pt2e")
    model.function = lambda self, x: {"logits": self.second(self.first(x).relu())}
    assert sqnr(model(ROWS)["logits"].detach(), quantize_static(model, [ROWS], "pt2e")(ROWS)["logits"]) > 25


def joined_bias(self, x):  # as BEiT
    return self.second(F.linear(self.first(x), self.weight, torch.cat([self.bias[:8], 0 * self.bias[8:]])))


def computed_twice(self, x):  # as SincNet
    half = torch.sin(self.bias[:, None] @ self.bias[None, :8])
    return self.second(F.linear(self.first(x), torch.cat([half, 2 * half.flip(1)], 1) / 4))


def cast(self, x):  # as Whisper
    return self.second(F.linear(self.first(x), self.weight.to(x.dtype), self.bias.to(x.device)))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("read", [lambda s, x: s.first.bias.sum(), lambda s, x: x @ s.second.weight.t()])
def test_a_layer_is_rounded_whose_parameters_are_read_beside_it(read, trained):
    model = two_layers(lambda self, x: self.second(F.relu(self.first(x))) + read(self, x))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* leaves in floating point: second .Linear.$")
        quantized = in_int8(model, ROWS, trained=trained)
    assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 25
    assert not any(isinstance(module, nn.Linear) for module in quantized.modules())


@pytest.mark.parametrize(
    "between",
    [torch.relu, lambda x: x.relu(), lambda x: torch.max_pool2d(x, 2), lambda x: x.add(x), lambda x: x.mul(x)],
)
def test_operators_stay_in_codes_however_they_are_spelled(between, images):
    model = two_convolutions(lambda self, x: self.second(between(self.first(x))))
    quantized = in_int8(model, images[0])
    assert sum("quantize" in node.name for node in quantized.graph.nodes) == 2, "floats go in and come out alone"
    assert sqnr(model(images[0]).detach(), quantized(images[0])) > 25


@pytest.mark.parametrize("flow", ["fx", "pt2e"])
def test_one_number_does_for_all_axes_of_a_convolution(flow):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=[2], padding=[1]), nn.ReLU(), nn.Conv2d(8, 4, 3, dilation=[2]))
    x = torch.randn(2, 3, 16, 16)
    assert sqnr(model.eval()(x).detach(), in_int8(model, x, flow)(x)) > 25


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("forward", [joined_bias, computed_twice, cast])
def test_weights_that_are_computed_of_parameters_are_rounded(forward, trained, tmp_path):
    model = two_layers(forward)
    model.weight, model.bias = nn.Parameter(torch.randn(16, 16) / 4), nn.Parameter(torch.randn(16))
    quantized = in_int8(model, ROWS, trained=trained)
    assert sqnr(model(ROWS).detach(), quantized(ROWS).detach()) > 25
    assert "torch.ops.quantized.linear" in quantized.code
    save(quantized, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", model)(ROWS), quantized(ROWS))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("convolve", "left"),
    [
        (lambda x, w: F.conv2d(x, w, padding=1), False),
        (lambda x, w: F.conv2d(x, w, None, 2), False),
        (lambda x, w: F.conv1d(x.flatten(2), w.flatten(2), padding=1), False),
        (lambda x, w: F.conv2d(x, w, padding="same"), True),
        (lambda x, w: F.conv2d(x, w[:, :1], groups=x.shape[1]), True),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2), True),
        (
            lambda x, w: torch.conv_tbc(
                x.flatten(2).permute(2, 0, 1).contiguous(), w[:, :, 0].permute(2, 1, 0), w[0, :, 0, 0]
            ),
            True,
        ),
    ],
)
def test_a_convolution_with_weights_of_its_own_takes_its_arguments_as_it_likes(convolve, left, trained, images):
    torch.manual_seed(0)
    model = Forward(lambda s, x: convolve(s.first(x), s.weight).relu(), first=nn.Conv2d(3, 8, 3)).eval()
    model.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)
    context = pytest.warns(QuantizationWarning, match=r"weight \(Parameter\)") if left else warnings.catch_warnings()
    with context:
        quantized = in_int8(model, images[0], trained=trained)
    assert sqnr(model(images[0]).detach(), quantized(images[0]).detach()) > 25


def test_where_nothing_is_quantized_it_is_said_what_stays_and_why():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    model = nn.Sequential(nn.Embedding(9, 16), encoder).eval()
    for quantize in (lambda x: quantize_static(model, [x]), lambda x: prepare_qat(model, x)):
        with pytest.raises(ValueError, match=r"What stays: 0 \(Embedding\); 1 \(TransformerEncoder\): FX does"):
            quantize(torch.arange(8)[None])


@pytest.mark.parametrize("trained", [False, True])
def test_reflection_in_three_dimensions_stays_in_floats(trained):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv3d(4, 2, 1)).eval()
    x = torch.randn(2, 3, 5, 5, 5)
    with pytest.warns(QuantizationWarning, match=r"floating point: 0 \(Conv3d\): no INT8 kernel does what it"):
        quantized = in_int8(model, x, trained=trained)
    assert sqnr(model(x).detach(), quantized(x).detach()) > 25


@pytest.mark.parametrize(
    ("kind", "shape", "kernel"),
    [(nn.Conv1d, (64,), 31), (nn.Conv2d, (3, 64), (1, 15)), (nn.Conv3d, (2, 3, 64), (1, 1, 14))],
)
@pytest.mark.skipif("onednn" not in ENGINES, reason="the fault is of the engine onednn")
def test_a_kernel_that_never_returns_is_not_called(kind, shape, kernel):
    model = nn.Sequential(kind(4, 8, 1), kind(8, 8, kernel, groups=8), kind(8, 4, 1)).eval()
    x = torch.randn(2, 4, *shape)
    with pytest.warns(QuantizationWarning, match=rf"floating point: 1 \({kind.__name__}\): no INT8 kernel"):
        quantized = quantize_static(model, [x], engine="onednn")
    assert sqnr(model(x).detach(), quantized(x).detach()) > 25


@pytest.mark.skipif("qnnpack" not in ENGINES, reason="the fault is of the engine qnnpack")
@pytest.mark.parametrize("kind", [nn.Conv3d, nn.ConvTranspose3d])
def test_what_qnnpack_could_not_copy_stays_in_floats_there(kind):
    model, x = nn.Sequential(kind(3, 4, 2), nn.Flatten(), nn.Linear(4, 2)).eval(), torch.randn(8, 3, 2, 2, 2)
    if kind is nn.ConvTranspose3d:
        model[2] = nn.Linear(108, 2)
    with pytest.warns(QuantizationWarning, match=rf"floating point: 0 \({kind.__name__}\): no INT8 kernel"):
        quantized = copy.deepcopy(quantize_static(model, [x], engine="qnnpack"))
    assert sqnr(model(x).detach(), quantized(x).detach()) > 25


def test_a_captured_convolution_that_stays_in_floats_is_named_with_the_reason():
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(), nn.Linear(48, 4)).eval()
    said = r"0 \(Conv1d\): torchao quantizes Conv2d alone of the convolutions$"
    with pytest.warns(QuantizationWarning, match=said):
        quantize_static(model, [torch.randn(4, 3, 8)], "pt2e")
