"""What a forward does that a trace may lose: it is kept, or the line is named."""

import copy
import math
import threading
import warnings
from functools import partial

from qtutor.affine import sqnr
from qtutor.fusion import find_fusions
from qtutor.models.running import at_line
from qtutor.workflows import (
    convert,
    prepare_qat,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
)
from qtutor.workflows.telling import QuantizationWarning

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from people import (
    CONVERT,
    ENGINES,
    FLOWS,
    PYTORCH_RETIRES,
    ROWS,
    Asks,
    AsksForTheType,
    Forward,
    in_int8,
    packed,
    scaled,
    two_convolutions,
    two_layers,
    with_forward,
)
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub

pytestmark = PYTORCH_RETIRES


def assigned_nowhere(self, x):
    x = self.first(x)
    F.relu(x, inplace=True)
    return self.second(x)


def written_through_a_view(self, x):
    x = self.first(x)
    x.view(-1).relu_()
    return self.second(x)


def written_in_part(self, x):
    x = self.first(x)
    x[:, :4] = 0
    return self.second(x)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("between", "refused"),
    [(assigned_nowhere, ()), (written_through_a_view, ("fx",)), (written_in_part, ("fx",))],
)
@pytest.mark.parametrize("flow", FLOWS)
def test_what_is_written_in_place_is_kept_or_the_line_is_named(flow, between, refused, trained, images):
    model = two_convolutions(between)

    def quantize():
        if not trained:
            return quantize_static(model, images, flow)
        prepared = prepare_qat(model, images[0], flow=flow)
        prepared(images[0])
        return convert(prepared)

    if flow in refused:
        with pytest.raises(ValueError, match=r"x\.view\(-1\)\.relu_\(\)|x\[:, :4\] = 0") as caught:
            quantize()
        assert str(caught.value).endswith("flow='pt2e' can take it as it is, fast only with compile=True")
    else:
        assert sqnr(model(images[0]), quantize()(images[0])) > 25


@pytest.mark.parametrize("flow", ["eager", "fx"])
@pytest.mark.parametrize("function", [False, True])
def test_a_leaky_relu_in_place_prints_nothing(function, flow, images, capfd):
    act = partial(F.leaky_relu, negative_slope=0.2, inplace=True) if function else nn.LeakyReLU(0.2, inplace=True)
    model = two_convolutions(lambda self, x: self.leave(self.second(self.act(self.first(self.enter(x))))))
    model.act, model.enter, model.leave = act, QuantStub(), DeQuantStub()
    for quantized in (quantize_static(model, images, flow), in_int8(model, images[0], flow, trained=True)):
        assert sqnr(model(images[0]), quantized(images[0])) > 25
    assert capfd.readouterr() == ("", "")


SUBCLASSES = []


class Registered(nn.Module):
    """Keeps account of its subclasses, each of which must say its name."""

    def __init_subclass__(cls, *, called, **kwargs):
        super().__init_subclass__(**kwargs)
        SUBCLASSES.append(called)


class Registering(Registered, called="this one"):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x):
        return self.layer(x).relu() if self.training else self.layer(x)


class RegisteredLinear(Registered, nn.Linear, called="a layer"):
    pass


def test_who_keeps_account_of_subclasses_finds_no_new_one():
    with pytest.warns(QuantizationWarning, match="reads self.training: at .*test_flows_tracing.py"):
        prepare_qat(Registering().eval(), ROWS)
    hooked = nn.Sequential(nn.Linear(16, 16), RegisteredLinear(16, 4)).eval()
    hooked[1].register_forward_hook(lambda layer, given, output: 3 * output)
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: 1 \(RegisteredLinear\)"):
        quantized = quantize_static(hooked, [ROWS])
    assert sqnr(hooked(ROWS).detach(), quantized(ROWS)) > 20
    assert SUBCLASSES == ["this one", "a layer"]
    assert "training" not in vars(nn.Module)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(nn.Linear(3, 3)), "pass the nn.Module that it was made of"),
        (lambda: nn.DataParallel(nn.Linear(3, 3)), r"pass model\.module"),
        (lambda: nn.Sequential(nn.Linear(3, 3), Forward(lambda s, x: x + torch.rand(()))), "another output each time"),
        (lambda: nn.Sequential(nn.Linear(3, 3), Forward(lambda s, x: x / 0)), r"NaN or infinity \(first in 1, Forward"),
        (lambda: nn.Sequential(nn.Flatten()), "finds nothing to quantize"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_that_nobody_can_compare_or_quantize_is_refused_at_once(make, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        quantize_static(model, [torch.randn(4, 3)])
    with pytest.raises(ValueError, match=message):
        prepare_qat(model, torch.randn(4, 3))


@pytest.mark.parametrize("flow", ["pt2e"])
def test_what_is_computed_without_gradients_is_quantized_and_what_is_in_other_precision_named(flow):
    def without(self, x):
        with torch.no_grad():
            x = self.first(x)
        return self.second(x.relu())

    def with_autocast(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.first(x).relu()
        return self.second(x)

    def with_one_layer(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.first(x)
        return self.second(x.relu())

    for forward in (without, torch.no_grad()(lambda self, x: self.second(self.first(x).relu()))):
        with warnings.catch_warnings():
            warnings.simplefilter("error", QuantizationWarning)
            quantized = quantize_static(two_layers(forward), [ROWS], flow)
        assert sqnr(two_layers()(ROWS).detach(), quantized(ROWS).detach()) > 25
    with pytest.warns(QuantizationWarning, match=r"leaves in floating point: first \(Linear\)$"):
        quantize_static(two_layers(with_autocast), [ROWS], flow)
    with pytest.raises(ValueError, match=r"as under torch.autocast: take it out of the block. flow='fx' can take it"):
        quantize_static(two_layers(with_one_layer), [ROWS], flow)


@pytest.mark.parametrize("convert", CONVERT)
@pytest.mark.parametrize(
    "make", [lambda m: m[2].forward, lambda m: partial(scaled, m[2]), lambda m: lambda x, layer=m[2]: scaled(layer, x)]
)
def test_a_forward_that_runs_another_module_is_refused(make, convert):
    with pytest.raises(ValueError, match=r"the forward of 0 \(Linear\) was replaced by a function that knows a module"):
        CONVERT[convert](with_forward(make), torch.randn(8, 64))


class Runs:
    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return AsksForTheType.forward(self.model, x)


def test_a_forward_without_code_lets_no_layer_go():
    model = nn.Sequential(nn.Linear(64, 64), Asks()).eval()
    model[1].forward = Runs(model[1])
    with pytest.warns(QuantizationWarning, match=r"1\.head \(Linear\).*: forward of Asks has no code to read"):
        quantized = quantize_weights(model)
    assert type(quantized[0]) is not nn.Linear


def test_traces_of_two_threads_leave_nothing_behind():
    begun, ended, before = threading.Event(), threading.Event(), (isinstance, torch.zeros)
    later = threading.Thread(
        target=lambda: find_fusions(two_layers(lambda self, x: (begun.set(), ended.wait(9))[0] or x))
    )
    find_fusions(two_layers(lambda self, x: (later.start(), begun.wait(0.3))[0] or x))
    ended.set()
    later.join()
    assert (isinstance, torch.zeros) == before
    assert not {"__getitem__", "expand"} & {*vars(torch.Tensor)}
    assert torch.zeros(3).new_tensor([torch.tensor(1.0), 2.0]).tolist() == [1.0, 2.0]  # C++ remembers a patch there


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.second(self.first(x).relu() * np.sqrt(2)),
        lambda self, x: self.second(np.sqrt(0.5) * (self.first(x) + x)),
        lambda self, x: self.second(self.first(x).view(-1, np.prod((4, 4)))) / np.float32(3),
        lambda self, x: self.second(np.int64(2) * self.first(x).T.T),
    ],
)
def test_numbers_of_numpy_are_taken_as_those_of_python(forward, trained):
    model = two_layers(forward)
    assert sqnr(model(ROWS).detach(), in_int8(model, ROWS, trained=trained)(ROWS).detach()) > 25


def test_a_dtype_that_is_not_certain_is_not_guessed():
    for dtype in (lambda x: torch.erf(x).dtype, lambda x: ((x > 0).long() + 0.5).dtype, lambda x: x.to(x.dtype).dtype):
        model = two_layers(lambda s, x, of=dtype: s.second(s.first(x) / (1 if of(x) == torch.float32 else 99)))
        with pytest.raises(ValueError, match="Python decides there by a tensor's value, size or dtype"):
            quantize_static(model, [ROWS])
    model = two_layers(lambda s, x: s.second(s.first(x)).clamp(torch.finfo(torch.erf(x).dtype).min))
    with pytest.raises(
        ValueError, match=r"at .*finfo.*: Python needs a dtype there that no trace knows: write torch.f"
    ):
        quantize_static(model, [ROWS])


@pytest.mark.parametrize(
    "mapped", [lambda self, x: torch.vmap(self.first)(x), lambda self, x: torch.vmap(torch.sin)(x)]
)
def test_vmap_is_looked_through_or_named(mapped):
    model = two_layers(lambda self, x: self.second(mapped(self, x)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)
        quantized = quantize_static(model, [ROWS], "pt2e")
        prepared = prepare_qat(model, ROWS, flow="pt2e")
    prepared(ROWS)
    for other in (quantized, convert(prepared)):
        for x in (ROWS, ROWS[:3]):
            assert sqnr(model(x).detach(), other(x).detach()) > 25
    said = r"at .*_tracing.py:\d+: `.*vmap.*: no trace looks into torch.vmap: call .* flow='pt2e' can take it as it is"
    with pytest.raises(ValueError, match=said):
        quantize_static(model, [ROWS])


def listed_plainly(self, x):
    return self.second(self.layers[0](x))


def with_list(kind):
    model = two_layers(listed_plainly)
    model.layers = kind([nn.Linear(16, 16)])
    return model.eval()


@pytest.mark.parametrize(
    ("refused", "message", "taken"),
    [
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x) * int(x[0, 0] * 9))),
            "keep it a tensor",
            lambda: two_layers(lambda self, x: self.second(self.first(x) * x[0, 0] * 9)),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x).view(int(x.shape[0] / 2), 2, -1))),
            r"write .* torch.sym_int\(x\) for int\(x\)",
            lambda: two_layers(lambda self, x: self.second(self.first(x).view(torch.sym_int(x.shape[0] / 2), 2, -1))),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x)) / float(x[0, 0])),
            r"torch.sym_float\(x\) for float\(x\)",
            lambda: two_layers(lambda self, x: self.second(self.first(x)) / torch.sym_float(x[0, 0])),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x) * np.sqrt(x.shape[1]))),
            "for NumPy there: compute it with torch, and numbers with math",
            lambda: two_layers(lambda self, x: self.second(self.first(x) * math.sqrt(x.shape[1]))),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(sum([self.first(x), x][: x.shape[0]]))),
            "a list is cut there to a size that an input has",
            lambda: two_layers(lambda self, x: self.second(self.first(x) + x)),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x)) / len(x)),
            r"write x.shape\[0\] for len\(x\)",
            lambda: two_layers(lambda self, x: self.second(self.first(x)) / x.shape[0]),
        ),
        (
            lambda: two_layers(lambda self, x: self.second(self.first(x)) + torch.Tensor(x.shape[0], 4).fill_(0)),
            r"as in torch.zeros\(\(n, 1\)\)",
            lambda: two_layers(lambda self, x: self.second(self.first(x)) + torch.zeros((x.shape[0], 4))),
        ),
        (lambda: with_list(list), "plain list", lambda: with_list(nn.ModuleList)),
    ],
)
def test_what_a_refusal_says_to_write_instead_is_taken(refused, message, taken):
    with pytest.raises(ValueError, match=message):
        quantize_static(refused(), [ROWS])
    assert sqnr(taken()(ROWS).detach(), quantize_static(taken(), [ROWS])(ROWS)) > 20


@pytest.mark.parametrize(
    "parts",
    [
        lambda x: torch.chunk(x, 2, dim=1),
        lambda x: x.chunk(chunks=2, dim=1),
        lambda x: torch.split(x, [16, 16], 1),
        lambda x: x.split(split_size=[16, 16], dim=1),
    ],
)
def test_a_loop_over_so_many_parts_is_followed(parts):
    model = two_layers(lambda self, x: self.second(sum(self.first(part) for part in parts(torch.cat([x, -x], 1)))))
    assert sqnr(model(ROWS).detach(), quantize_static(model, [ROWS])(ROWS)) > 25


@pytest.mark.parametrize("trained", [False, True])
def test_a_module_without_weights_may_be_made_in_forward(trained):
    model = two_layers(lambda self, x: nn.Softmax(dim=1)(self.second(nn.ReLU()(self.first(x)))))
    assert sqnr(model(ROWS).detach(), in_int8(model, ROWS, trained=trained)(ROWS).detach()) > 25


def test_a_distribution_is_captured_without_its_checks():
    def forward(self, x):
        chosen = torch.distributions.Normal(self.second(self.first(x).tanh()), torch.ones(4))
        return chosen.mean, chosen.log_prob(x[:, :4])

    model = two_layers(forward)
    assert sqnr(model(ROWS)[1].detach(), quantize_static(model, [ROWS], "pt2e")(ROWS)[1]) > 25


def test_of_a_long_line_its_beginning_is_shown():
    assert at_line("model.py", 3, "return x") == " at model.py:3: `return x`"
    assert at_line("model.py", 3, "x" * 500) == f" at model.py:3: `{'x' * 120} ...`"


def test_a_loop_over_fewer_parts_than_asked_for_is_refused_quietly(capsys):
    model = two_layers(lambda self, x: self.second(sum(self.first(part) for part in torch.chunk(x, 7))))
    with pytest.raises(ValueError, match=r"fewer parts there than it is asked for\. flow='pt2e' can take it as it is"):
        quantize_static(model, [ROWS])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flow", FLOWS)
def test_a_plain_list_is_named_by_each_flow(flow, images):
    model = two_convolutions(lambda self, x: self.second(self.hidden[0](self.first(x))))
    model.hidden = [nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).eval()]
    with pytest.raises(ValueError, match="the layer is in a plain list"):
        quantize_static(model, [images[0]], flow)


def test_a_flow_is_advised_that_takes_all_sizes():
    def forward(self, x):
        return self.second(self.first(x) if x.shape[0] > 5 else self.first(x).relu())

    batches = [ROWS, ROWS, ROWS[:4]]
    with pytest.raises(ValueError, match=r"Python decides there by .*size.* flow='pt2e' can take it as it is"):
        quantize_static(two_layers(forward), batches[:2])
    with pytest.raises(ValueError, match=r"Python decides there by .*size.*\. quantize_dynamic.model. can take it"):
        quantize_static(two_layers(forward), batches)


def test_a_flow_that_trains_is_advised_only_where_it_takes_longer_inputs():
    def forward(self, x):
        return self.second(torch.stack([self.first(x[:, step]).relu() for step in range(x.shape[1])], 1).mean(1))

    with pytest.raises(ValueError, match="as far as an input is long") as refused:
        prepare_qat(two_layers(forward), torch.randn(4, 5, 16))
    assert "flow='pt2e' can take it" not in str(refused.value)
    assert prepare_qat(two_layers(forward), torch.randn(4, 5, 16), flow="pt2e")


def reads_packed(forward):
    torch.manual_seed(0)
    return Forward(forward, memory=nn.GRU(16, 8, batch_first=True), head=nn.Linear(8, 4)).eval()


@pytest.mark.parametrize(("flow", "said"), [("fx", "lengths of packed sequences"), ("pt2e", "a packed sequence")])
def test_lengths_of_sequences_are_named_with_what_takes_them(flow, said):
    model, inputs = reads_packed(partial(packed, most=5)), (torch.randn(3, 5, 16), torch.tensor([5, 2, 3]))
    with pytest.raises(ValueError, match=f"{said}.*, which no trace knows. quantize_dynamic.model. can take it"):
        quantize_static(model, [(inputs, None)], flow)
    assert sqnr(model(*inputs).detach(), quantize_dynamic(model)(*inputs).detach()) > 25


def test_packed_sequences_of_other_lengths_are_taken():
    model, batches = reads_packed(packed), [(torch.randn(8, 6, 16), torch.randint(1, 7, (8,))) for _ in range(8)]
    with pytest.warns(QuantizationWarning, match=r"floating point: memory \(GRU\): quantize_dynamic takes it$"):
        quantized = quantize_static(model, [(inputs, None) for inputs in batches])
    inputs = batches[0][0][:4, :5], torch.tensor([3, 4, 5, 1])
    assert sqnr(model(*inputs).detach(), quantized(*inputs).detach()) > 25


def test_layers_in_several_precisions_are_refused_with_a_way_that_holds():
    model = two_layers(lambda self, x: self.second(self.first(x).to(self.precision)))
    model.precision, model.second = torch.float64, model.second.double()
    said = r"second.weight is torch.float64 .*float\(\), and take the casts to torch.float64 out of forward$"
    for quantize in (quantize_dynamic, lambda model: quantize_static(model, [ROWS])):
        with pytest.raises(ValueError, match=said):
            quantize(model)
    model.function = lambda self, x: self.second(self.first(x))
    mended = copy.deepcopy(model).cpu().float()
    assert sqnr(mended(ROWS).detach(), quantize_static(mended, [ROWS])(ROWS)) > 25


def test_a_refusal_names_dynamic_quantization_where_it_takes_the_model():
    reader = Forward(lambda self, x: self.memory(x)[0], memory=nn.LSTM(16, 8)).eval()
    with pytest.raises(ValueError, match=r"finds nothing .*\. quantize_dynamic\(model\) can take it as it is$"):
        quantize_static(reader, [ROWS])
    assert sqnr(reader(ROWS).detach(), quantize_dynamic(reader)(ROWS)) > 25
    with pytest.raises(ValueError, match=r"No other flow takes it as it is$"):
        quantize_static(nn.Sequential(nn.Flatten()), [ROWS])


@pytest.mark.parametrize("flow", FLOWS)
def test_rows_that_forward_chooses_by_value_are_chosen_behind_the_model(flow):
    torch.manual_seed(0)
    model, x = two_layers(lambda self, x: (y := self.second(self.first(x).relu()))[y[:, 0] > 0]), torch.randn(399, 16)
    with pytest.raises((ValueError, QuantizationWarning), match="return all of it and choose behind the model"):
        quantize_static(model, [x], flow)
    model.function = lambda self, x: self.second(self.first(x).relu())
    assert sqnr(model(x).detach(), quantize_static(model, [x], flow)(x)) > 20


@pytest.mark.parametrize("trained", [False, True])
def test_operators_of_the_dispatcher_are_taken_as_any_function(trained):
    model = two_layers(lambda self, x: self.second(torch.ops.aten.gelu(torch.ops.aten.relu.default(self.first(x)))))
    assert sqnr(model(ROWS).detach(), in_int8(model, ROWS, trained=trained)(ROWS).detach()) > 25


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", ["meta", "code", "graph", "parameters"])
def test_a_name_that_pytorch_has_for_itself_is_named(name, flow):
    model = Forward(lambda self, x: self._modules[name](x)).eval()
    setattr(model, name, nn.Linear(16, 4))
    with pytest.raises(ValueError, match=f"under the name {name} in .*: give self.{name} another name"):
        quantize_static(model, [ROWS], flow)


def gathered(self, x, places):
    out = torch.zeros(20, 16)
    out.index_add_(0, places, self.first(x))
    return self.second(out)


def placed(self, x, places):
    out = torch.zeros(20, 16)
    out[places] = self.first(x)
    return self.second(out)


def gathered_as_advised(self, x, places):
    out = x.new_zeros(20, 16)
    out.index_add_(0, places, self.first(x))
    return self.second(out)


def placed_as_advised(self, x, places):
    return self.second(x.new_zeros(20, 16).index_put((places,), self.first(x)))


@pytest.mark.parametrize(
    ("written", "advised", "line"),
    [(gathered, gathered_as_advised, r"index_add_\(0"), (placed, placed_as_advised, r"out\[places\] = ")],
)
def test_what_is_written_into_a_tensor_that_forward_makes_is_named(written, advised, line):
    torch.manual_seed(0)
    layers = {"first": nn.Linear(16, 16), "second": nn.Linear(16, 4)}
    x, places = torch.randn(12, 16), torch.randperm(20)[:12]
    with pytest.raises(ValueError, match=rf"{line}.*make it of an input, as x.new_zeros.*'pt2e' can take it"):
        quantize_static(Forward(written, **layers).eval(), [((x, places), None)])
    model = Forward(advised, **layers).eval()
    quantized = quantize_static(model, [((x, places), None)])
    assert sqnr(model(-x, places).detach(), quantized(-x, places)) > 25


def names_the_axis(self, x):
    return self.second(torch.cat([torch.relu(self.first(x)), self.first(x)], axis=1)[:, 4:12])


def says_along_which_before_how_many(self, x):
    return self.second(torch.cat([part * (i + 1) for i, part in enumerate(self.first(x).chunk(dim=1, chunks=2))], 1))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("between", [names_the_axis, says_along_which_before_how_many])
def test_arguments_may_be_given_by_name_and_in_another_order(between, trained, images):
    model = two_convolutions(between)
    assert sqnr(model(images[0]).detach(), in_int8(model, images[0], trained=trained)(images[0]).detach()) > 25


def test_a_layer_a_parameter_and_an_input_may_be_called_view():
    def forward(self, view):
        return self.second(self.view(self.first(view)).view(-1, 16) * self.parameter.view)

    model = two_layers(forward)
    model.view, model.parameter = nn.Unflatten(1, (4, 4)), nn.Module()
    model.parameter.view = nn.Parameter(torch.rand(16) + 0.5)
    assert sqnr(model(ROWS).detach(), in_int8(model, ROWS)(ROWS).detach()) > 25


def test_two_threads_convert_one_after_the_other_and_leave_nothing_behind(images):
    engine, fast = torch.backends.quantized.engine, torch.backends.mha.get_fastpath_enabled()
    begun, ended, order = threading.Event(), threading.Event(), []

    def waits(self, x):
        begun.set()
        ended.wait(0.3)
        order.append("first")
        return self.second(self.first(x))

    def later():
        begun.wait(9)
        quantize_static(two_convolutions(lambda s, x: (order.append("later"), s.second(s.first(x)))[1]), images)

    other = threading.Thread(target=later)
    other.start()
    quantize_static(two_convolutions(waits), images, engine=ENGINES[-1])
    ended.set()
    other.join()
    assert order == sorted(order)
    assert (torch.backends.quantized.engine, torch.backends.mha.get_fastpath_enabled()) == (engine, fast)
