"""Small models drawn at random, of all that other people's models are made of; and what flows promise of them."""

import copy
import math
import re
import warnings
from dataclasses import dataclass, field

from qtutor.models.copying import copy_model
from qtutor.models.running import agreement, outputs
from qtutor.workflows import Unavailable, convert, prepare_qat, quantize_dynamic, quantize_static

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis import reject
from torch import nn
from torch.nn.utils import parametrizations, prune

USUAL, TOLD = (
    20.0,
    5.0,
)  # dB: what 8 bits give a model that bears them; and the least that may be given back with a warning
JARGON = re.compile(
    r"eval_with_key|reference node|prepack|\baten\b|::|Proxy|GraphModule|SymInt|KeyError|AssertionError"
)


class DropPath(nn.Module):
    """Stochastic depth: it draws in training, and does nothing in eval mode."""

    def forward(self, x):
        return 2 * x * (torch.rand_like(x) < 0.5).float() if self.training else x


@dataclass
class Step:
    """What a model does at one place: a name of `Drawn.STEPS`, its modules, and numbers that it reads."""

    name: str
    modules: dict = field(default_factory=dict)
    numbers: tuple = ()


class Drawn(nn.Module):
    """A model whose `forward` is a list of steps."""

    def __init__(self, steps, form, shape):
        super().__init__()
        self.steps, self.form, self.shape = steps, form, shape
        for i, step in enumerate(steps):
            for name, module in step.modules.items():
                self.add_module(f"{name}{i}", module)

    def forward(self, x, y=None, double=False):
        kept = x
        for i, step in enumerate(self.steps):
            x, kept = getattr(self, f"_{step.name}")(x, kept, i, step.numbers)
        if double:
            x = x * 2
        if y is not None:
            x = x + y.mean()
        return {"tensor": x, "tuple": (x, kept), "dict": {"out": x, "kept": kept}}[self.form]

    def _layer(self, x, kept, i, numbers):
        return getattr(self, f"a{i}")(x), kept

    def _keep(self, x, kept, i, numbers):
        return x, x

    def _twice(self, x, kept, i, numbers):
        return getattr(self, f"a{i}")(getattr(self, f"a{i}")(x)), kept

    def _tied(self, x, kept, i, numbers):
        return getattr(self, f"b{i}")(F.relu(getattr(self, f"a{i}")(x))), kept

    def _residual(self, x, kept, i, numbers):
        y = getattr(self, f"a{i}")(x)
        if numbers[0] == 0:
            return x + y, kept
        if numbers[0] == 1:
            y += x
            return y, kept
        return torch.add(y, x) if numbers[0] == 2 else y.add(x), kept

    def _gate(self, x, kept, i, numbers):
        return x * torch.sigmoid(getattr(self, f"a{i}")(x)), kept

    def _cat(self, x, kept, i, numbers):
        return torch.cat([x, getattr(self, f"a{i}")(x)], 1), kept

    def _chunk(self, x, kept, i, numbers):
        a, b = x.chunk(2, 1)
        return torch.cat([F.relu(b), a], 1), kept

    def _number(self, x, kept, i, numbers):
        kind, number = numbers
        return {"add": x + number, "mul": x * number, "minus": number - x, "div": x / number}[kind], kept

    def _relu(self, x, kept, i, numbers):
        kind = numbers[0]
        if kind == "assigned":
            x = getattr(self, f"a{i}")(x)
        elif kind == "in place":
            getattr(self, f"a{i}")(x)
        elif kind == "method":
            x.relu_()
        else:
            x = {"functional": F.relu, "leaky": F.leaky_relu, "gelu": F.gelu, "swish": F.hardswish, "tanh": torch.tanh}[
                kind
            ](x)
        return x, kept

    def _resize(self, x, kept, i, numbers):
        return F.interpolate(x, scale_factor=2, mode=numbers[0]), kept

    def _pool(self, x, kept, i, numbers):
        return {"max": F.max_pool2d, "avg": F.avg_pool2d}[numbers[0]](x, 2), kept

    def _flatten(self, x, kept, i, numbers):
        kind = numbers[0]
        if kind == "mean":
            x = x.mean((2, 3))
        elif kind == "view":
            x = F.adaptive_avg_pool2d(x, 2).view(x.size(0), -1)
        else:
            x = torch.flatten(F.adaptive_avg_pool2d(x, 2), 1)
        return getattr(self, f"a{i}")(x), kept

    def _recurrent(self, x, kept, i, numbers):
        return getattr(self, f"a{i}")(x)[0], kept

    def _attention(self, x, kept, i, numbers):
        return x + getattr(self, f"a{i}")(x, x, x, need_weights=False)[0], kept

    def _products(self, x, kept, i, numbers):
        weights = (getattr(self, f"a{i}")(x) @ getattr(self, f"b{i}")(x).transpose(1, 2) / x.size(-1) ** 0.5).softmax(
            -1
        )
        return x + weights @ x, kept

    def _branch(self, x, kept, i, numbers):
        return (x + 0.1 * torch.randn_like(x) if self.training else x), kept

    def _dropout(self, x, kept, i, numbers):
        return F.dropout(x, 0.2, self.training), kept


def parametrized(draw, layer):
    kind = draw(st.sampled_from(["plain"] * 6 + ["weight_norm", "old weight_norm", "spectral", "pruned"]))
    if kind == "weight_norm":
        return parametrizations.weight_norm(layer)
    if kind == "old weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nn.utils.weight_norm(layer)
    if kind == "spectral":
        return parametrizations.spectral_norm(layer)
    return prune.l1_unstructured(layer, "weight", 0.3) if kind == "pruned" else layer


@st.composite
def images(draw):
    """A model of images: `(Drawn, channels, size)`."""
    channels, size = draw(st.sampled_from([3, 4, 8])), draw(st.sampled_from([9, 12, 16]))
    shape = (draw(st.sampled_from([1, 2, 4])), channels, size, size)
    steps, now = [], channels

    def conv(out, kernel=3):
        groups = draw(st.sampled_from([g for g in (1, 1, 1, 2, 4, now) if now % g == 0 and out % g == 0]))
        padding = draw(st.sampled_from([kernel // 2, kernel // 2, "same"]))
        mode = draw(st.sampled_from(["zeros"] * 5 + ["circular", "reflect"]))
        layer = nn.Conv2d(now, out, kernel, padding=padding, groups=groups, bias=draw(st.booleans()), padding_mode=mode)
        return parametrized(draw, layer)

    def layer(module):
        steps.append(Step("layer", {"a": module}))

    for _ in range(draw(st.integers(4, 8))):
        kind = draw(st.sampled_from(_IMAGE_STEPS))
        if kind in ("conv", "conv", "norm"):
            out = draw(st.sampled_from([4, 8, 16]))
            if draw(st.integers(0, 9)) == 0:
                layer(nn.BatchNorm2d(now))
            layer(conv(out, draw(st.sampled_from([1, 3, 5]))))
            now = out
            for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2])) if kind == "norm" else 0):
                layer(
                    nn.BatchNorm2d(
                        now, eps=draw(st.sampled_from([1e-5, 1e-3])), momentum=draw(st.sampled_from([0.1, 0.01]))
                    )
                )
        elif kind == "strided":
            layer(nn.Conv2d(now, 8, 3, stride=2, padding=1, dilation=draw(st.sampled_from([1, 2]))))
            now = 8
        elif kind == "transposed":
            k, s = draw(st.sampled_from([(2, 2), (3, 1), (3, 2), (4, 2), (2, 1)]))
            groups = draw(st.sampled_from([g for g in (1, 1, 2) if now % g == 0]))
            out = draw(st.sampled_from([now, 8]))
            groups = groups if out % groups == 0 else 1
            if size < 40:
                layer(nn.ConvTranspose2d(now, out, k, s, groups=groups, output_padding=draw(st.integers(0, s - 1))))
                now, size = out, size * s
        elif kind == "relu":
            how = draw(
                st.sampled_from(["assigned", "in place", "method", "functional", "leaky", "gelu", "swish", "tanh"])
            )
            module = draw(
                st.sampled_from([nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardswish(), nn.PReLU(), nn.ELU()])
            )
            module = nn.ReLU(inplace=True) if how == "in place" else module
            steps.append(Step("relu", {"a": module}, (how,)))
        elif kind == "twice":
            steps.append(Step("twice", {"a": nn.Conv2d(now, now, 3, padding=1)}))
        elif kind == "tied":
            first, second = nn.Conv2d(now, now, 3, padding=1), nn.Conv2d(now, now, 3, padding=1)
            second.weight = first.weight
            steps.append(Step("tied", {"a": first, "b": draw(st.sampled_from([first, second]))}))
        elif kind == "residual":
            steps.append(Step("residual", {"a": conv(now)}, (draw(st.integers(0, 3)),)))
        elif kind == "gate":
            steps.append(Step("gate", {"a": nn.Conv2d(now, now, 1)}))
        elif kind == "cat" and now < 40:
            steps.append(Step("cat", {"a": conv(now)}))
            now *= 2
        elif kind == "chunk" and now % 2 == 0:
            steps.append(Step("chunk"))
        elif kind == "number":
            steps.append(
                Step(
                    "number",
                    {},
                    draw(st.sampled_from([("add", 3), ("mul", 0.5), ("minus", 1.0), ("div", 2.0), ("add", 0.25)])),
                )
            )
        elif kind == "resize" and size < 40:
            steps.append(Step("resize", {}, (draw(st.sampled_from(["nearest", "bilinear", "bicubic"])),)))
            size *= 2
        elif kind == "pool" and size > 8:
            steps.append(Step("pool", {}, (draw(st.sampled_from(["max", "avg"])),)))
            size //= 2
        elif kind == "random":
            name = draw(st.sampled_from(["branch", "dropout", "layer", "layer"]))
            steps.append(
                Step(name, {"a": draw(st.sampled_from([DropPath(), nn.Dropout2d(0.2)]))} if name == "layer" else {})
            )
        elif kind == "group norm":
            layer(nn.GroupNorm(draw(st.sampled_from([1, now])), now))
        elif kind == "keep":
            steps.append(Step("keep"))
    if draw(st.booleans()):
        how = draw(st.sampled_from(["mean", "view", "flatten"]))
        steps.append(Step("flatten", {"a": nn.Linear(now if how == "mean" else 4 * now, 5)}, (how,)))
    else:
        layer(nn.Conv2d(now, 4, 1))
    return Drawn(steps, draw(st.sampled_from(["tensor", "tensor", "tuple", "dict"])), shape)


_IMAGE_STEPS = (
    *(
        "conv",
        "conv",
        "norm",
        "norm",
        "norm",
        "strided",
        "transposed",
        "relu",
        "relu",
        "relu",
        "twice",
        "tied",
        "residual",
    ),
    *("residual", "gate", "cat", "chunk", "number", "resize", "pool", "random", "group norm", "keep"),
)


@st.composite
def sequences(draw):
    """A model of sequences or of tokens."""
    width, length = draw(st.sampled_from([8, 16])), draw(st.integers(3, 7))
    tokens = draw(st.booleans())
    shape = (draw(st.sampled_from([1, 2, 4])), length) if tokens else (draw(st.sampled_from([1, 2, 4])), length, width)
    steps = [Step("layer", {"a": nn.Embedding(50, width)})] if tokens else []
    for _ in range(draw(st.integers(3, 6))):
        kind = draw(
            st.sampled_from(
                [
                    "linear",
                    "linear",
                    "norm",
                    "relu",
                    "residual",
                    "recurrent",
                    "attention",
                    "products",
                    "encoder",
                    "tied",
                    "random",
                    "number",
                    "keep",
                ]
            )
        )
        if kind == "linear":
            steps.append(Step("layer", {"a": parametrized(draw, nn.Linear(width, width, bias=draw(st.booleans())))}))
        elif kind == "norm":
            steps.append(Step("layer", {"a": nn.LayerNorm(width)}))
        elif kind == "relu":
            steps.append(
                Step(
                    "relu",
                    {"a": nn.ReLU()},
                    (draw(st.sampled_from(["assigned", "method", "functional", "gelu", "tanh"])),),
                )
            )
        elif kind == "residual":
            steps.append(Step("residual", {"a": nn.Linear(width, width)}, (draw(st.integers(0, 3)),)))
        elif kind == "recurrent":
            module = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
            layers, bias = draw(st.integers(1, 2)), draw(st.booleans())
            steps.append(Step("recurrent", {"a": module(width, width, layers, bias=bias, batch_first=True)}))
        elif kind == "attention":
            steps.append(Step("attention", {"a": nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)}))
        elif kind == "products":
            steps.append(Step("products", {"a": nn.Linear(width, width), "b": nn.Linear(width, width)}))
        elif kind == "encoder":
            steps.append(
                Step(
                    "layer",
                    {
                        "a": nn.TransformerEncoderLayer(
                            width, 2, 2 * width, batch_first=True, norm_first=draw(st.booleans())
                        )
                    },
                )
            )
        elif kind == "tied":
            first, second = nn.Linear(width, width), nn.Linear(width, width)
            second.weight = first.weight
            steps.append(Step("tied", {"a": first, "b": second}))
        elif kind == "random":
            name = draw(st.sampled_from(["branch", "dropout", "layer"]))
            steps.append(
                Step(name, {"a": draw(st.sampled_from([DropPath(), nn.Dropout(0.2)]))} if name == "layer" else {})
            )
        elif kind == "number":
            steps.append(Step("number", {}, draw(st.sampled_from([("add", 3), ("mul", 0.5), ("minus", 1.0)]))))
        else:
            steps.append(Step("keep"))
    steps.append(Step("layer", {"a": nn.Linear(width, 5)}))
    return Drawn(steps, draw(st.sampled_from(["tensor", "tensor", "tuple", "dict"])), shape)


class Case:
    """A model that settled on data, and batches as its owner hands them in."""

    def __init__(self, model, batches, inputs):
        self.model, self.batches, self.inputs = model, batches, inputs

    def __repr__(self):
        lines = [f"  {s.name} {s.numbers or ''} {list(s.modules.values()) or ''}" for s in self.model.steps]
        return f"{self.model.form} of {[tuple(x.shape) for x in self.inputs]}:\n" + "\n".join(lines)


@st.composite
def cases(draw):
    """A case of a drawn model, with inputs in one of the forms that people use."""
    seed = draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    model = draw(st.one_of(images(), sequences(), images()))
    tokens = len(model.shape) == 2
    make = (lambda: torch.randint(0, 50, model.shape)) if tokens else (lambda: torch.randn(model.shape))
    data = [make() for _ in range(3)]
    if not tokens and len(model.shape) == 4 and draw(st.integers(0, 3)) == 0:
        data = [x.contiguous(memory_format=torch.channels_last) for x in data]
    model.train()
    try:
        with torch.no_grad():
            for i in range(12):
                model(data[i % 3].clone())
    except (RuntimeError, ValueError):  # the parts do not fit together
        reject()
    model.eval()
    form = draw(st.sampled_from(["alone", "alone", "labelled", "two", "named"]))
    second = torch.randn(model.shape[0], 3)
    batches = {
        "alone": data,
        "labelled": [(x, torch.zeros(len(x), dtype=torch.long)) for x in data],
        "two": [((x, second), None) for x in data],
        "named": [{"x": x} for x in data],
    }[form]
    inputs = (data[0], second) if form == "two" else (data[0],)
    if draw(st.integers(0, 3)) == 0:
        model.train()
    return Case(model, batches, inputs)


def static(flow):
    return lambda case: (quantize_static(case.model, case.batches, flow), outputs(in_eval(case.model), case.inputs))


def trained(flow):
    def make(case):
        prepared = prepare_qat(case.model, case.inputs, flow=flow)
        for _ in range(3):
            with torch.no_grad():
                prepared(*(x.clone() for x in case.inputs))
        quantized = convert(prepared)
        prepared.eval()
        for module in prepared.modules():
            if hasattr(module, "disable_observer"):
                module.disable_observer()
        return quantized, outputs(prepared, case.inputs)

    return make


def dynamic(case):
    return quantize_dynamic(case.model), outputs(in_eval(case.model), case.inputs)


WAYS = {
    "static fx": static("fx"),
    "static pt2e": static("pt2e"),
    "trained fx": trained("fx"),
    "trained pt2e": trained("pt2e"),
    "dynamic": dynamic,
}


def in_eval(model):
    return copy_model(model).eval()


def broken(way, case, advised=True):
    """Say how a flow breaks its promise for a case; "" where it keeps it, "refused" where it may refuse."""
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    modes = {name: module.training for name, module in case.model.named_modules()}
    engine = torch.backends.quantized.engine
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quantized, wanted = WAYS[way](case)
    except (ValueError, TypeError, Unavailable) as error:
        return _unclear(way, case, str(error), advised)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"[:300]
    if torch.backends.quantized.engine != engine:
        return "left another engine behind"
    if any(not torch.equal(value, before[name]) for name, value in case.model.state_dict().items()):
        return "changed the model"
    if modes != {name: module.training for name, module in case.model.named_modules()}:
        return "changed the mode of the model"
    try:
        first, second, copied = (outputs(m, case.inputs) for m in (quantized, quantized, copy.deepcopy(quantized)))
    except Exception as error:
        return f"cannot run: {type(error).__name__}: {error}"[:300]
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        return "does not repeat itself"
    if not all(torch.equal(a, b) for a, b in zip(first, copied, strict=True)):
        return "its copy computes something else"
    found, told = agreement(wanted, first), any(re.search(r"\d dB", str(each.message)) for each in caught)
    return "" if found >= (TOLD if told else USUAL) else f"{found:.1f} dB, {'told' if told else 'not told'}"


def _unclear(way, case, text, advised):
    if JARGON.search(text) or len(text) > 900:
        return f"unclear: {text[:300]}"
    others = [f"{way.split()[0]} {flow}" for flow in re.findall(r"flow='(\w+)'(?: or flow='\w+')? can take", text)]
    others += ["dynamic"] * bool(re.search(r"can quantize_dynamic|quantize_dynamic\(model\) can", text))
    for other in others if advised else ():
        if other in WAYS and other != way and (found := broken(other, case, advised=False)):
            return f"advises {other}, which is {found}"
    return "refused"


def finite(case):
    """Whether a case is fair: its output is finite, repeats itself, and is more than a constant."""
    model = in_eval(case.model)
    a, b = outputs(model, case.inputs), outputs(model, case.inputs)
    lively = all(x.isfinite().all() and torch.equal(x, y) for x, y in zip(a, b, strict=True))
    return (
        lively
        and math.isfinite(float(a[0].double().std()))
        and float(a[0].double().std()) > 1e-3 * float(a[0].abs().max())
    )
