"""What a flow says to the owner of a model that it cannot take: their line or layer, and a reason in plain words."""

import re
import traceback

from qtutor.models.tracing import where
from qtutor.words import first_line

from torch import nn
from torch.nn.utils import rnn


class Refused(ValueError):
    """A flow cannot take a model, or would give back another function; the text says what is in the way.

    Attributes:
        inputs: of the batch that it cannot take, where it is one that matters; None otherwise.
    """

    def __init__(self, said: str, inputs: tuple | None = None):
        super().__init__(said)
        self.inputs = inputs


class Untraced(Refused):
    """A flow cannot follow forward, or loses a part of it: eager mode, which does not read it, may do."""


_MEANINGS = (
    (r"range of \[[^]]*(nan|inf)[^]]*\] is not finite", "NaN or infinity is computed there, and no scale holds it"),
    (
        r"not implemented for '(Long|Int|Short|Char|Byte|Bool)'|but found (Long|Int)",
        "whole numbers are computed there, and only floats can be rounded: call .float() on them first",
    ),
    (r"used as inputs to control flow", "Python decides there by a tensor's value, size or dtype"),
    (r"GuardOnDataDependent|[Dd]ata-dependent", "Python needs a tensor's value there, to decide or as a plain number"),
    (
        r"cannot be interpreted as an integer",
        "Python counts there as far as an input is long, and a trace knows no length; flow='pt2e' captures one length "
        "only, quantize_dynamic all",
    ),
    (
        r"must be a string|list indices|'len' is not|__len__|len\(\) of a|cannot be interpreted|"
        r"'(float|int)' object has|__round__|__format__",
        "Python needs a plain number there: keep it a tensor, or write x.shape[0] for len(x), torch.sym_int(x) for "
        "int(x), torch.sym_float(x) for float(x)",
    ),
    (
        r"ndarray|\.numpy\(\)|__array_struct__|ufuncs|expected a sequence of integers",
        "forward leaves PyTorch for NumPy there: compute it with torch, and numbers with math",
    ),
    (
        r"not installed as a submodule|'lifted_tensor_\d+' already exists",
        "the layer is in a plain list or made in forward, where PyTorch does not find it: put it into an nn.ModuleList",
    ),
    (r"tuple index out of range", "a call gives fewer parts there than it is asked for"),
    (r"vmap", "no trace looks into torch.vmap: call what it maps on the whole batch"),
    (r"for 'Complex", "complex numbers have no range, and no INT8 kernel takes them"),
    (r"cannot be iterated", "Python loops there over a tensor or its shape, or unpacks it"),
    (
        r"does not support item (assignment|deletion)",
        "a part of a tensor is written there: torch.where or torch.cat can do that",
    ),
    (
        r"^getitem is not an aten",
        "a layer stands in a block that PyTorch captures apart, as under torch.autocast: take it out of the block",
    ),
    (
        r"is not an aten conv|padding_mode|Expected a value of type 'List\[int\]' for argument 'padding'",
        "no INT8 kernel pads like that",
    ),
    (
        r"^(zeros|ones|empty|rand|randn)\(\) |invalid combination of arguments - got \([^)]*Proxy",
        "a tensor is made there in a size that an input has: give the sizes as a tuple, as in torch.zeros((n, 1))",
    ),
    (
        r"^slice indices must be integers",
        "a list is cut there to a size that an input has, which no trace knows, or a part of a tensor is written: "
        "torch.where or torch.cat can do that",
    ),
    (
        r"__cuda_array_interface__|not 'Proxy'",
        "a number that an input gives is made a float or a tensor there: compute with it as it is",
    ),
    (r"'NoneType' object has no attribute 'named_children'", "its train() returns nothing: let it return self"),
    (
        r"found type 'Proxy'[\s\S]*Declaration: \w+\(",
        "torch.jit.script made the function that is called there: call the one that it was made of",
    ),
    (r"ints, ?but got FakeTensor", "a size is a value there, as that of a packed sequence, which no trace knows"),
    (r"instance of torch.nn.Parameter", "torch.jit made a part of it: put the nn.Module there that it was made of"),
    (r"in output, which is not a known type", "forward returns a class of its own there: return a tuple or a dict"),
    (
        r"does not require grad|differentiated Tensor",
        "forward differentiates there, which no trace does",
    ),
    (r"requires_grad|cannot assign .* as parameter", "a parameter is computed there at each call"),
)
_JARGON = re.compile(
    r"eval_with_key|[Rr]eference node|prepack|\baten\b|::|Proxy|histogram_cpu|^\s*$|AssertionError|IndexError|KeyError|"
    r"RecursiveScriptModule|-?nan|inequality|GraphModule|SymInt|0x[0-9a-f]+|fake_quant|_call_function|\bnode\b|\bNode\b|"
    r"C\+\+|torch\.ops|[Uu]nsupported|not supported|list index out"
)


_PACKING = (rnn.pack_padded_sequence.__code__, rnn.pad_packed_sequence.__code__)


def reason_of(error: BaseException) -> str:
    """Say in plain words why PyTorch failed."""
    said = f"{error}".strip()
    if any(frame.f_code in _PACKING for frame, _ in traceback.walk_tb(error.__traceback__)):
        return "the lengths of packed sequences are values there, which no trace knows"
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, said):
            return meaning
    first = first_line(said)
    if not first or len(first) > 200 or _JARGON.search(first):
        return "PyTorch cannot follow what is done there"
    return first.rstrip(".")


def stub_reason(quantized: nn.Module, error: Exception) -> str:
    """Say what an eager model met that its stubs do not cover, and where."""
    modules = {id(module): name for name, module in quantized.named_modules()}
    frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
    *_, innermost = ("", *(modules[id(f["self"])] for f in frames if id(f.get("self")) in modules))
    if "'quantized::" in str(error):
        reason = "it gets a floating-point tensor: call a QuantStub on what comes in"
        reason += (
            f", or keep the layer in float with model.get_submodule({innermost!r}).qconfig = None" if innermost else ""
        )
    elif "unexpected keyword argument" in str(error):
        reason = "the INT8 layer has other names for its inputs: give them by place"
    else:
        reason = (
            "it has no kernel for quantized tensors: a residual add, a product or a cat needs a FloatFunctional of "
            "torch.ao.nn.quantized (self.add.add(a, b)), anything else a DeQuantStub before it and a QuantStub behind"
        )
    return f"cannot run {innermost or 'forward'} of the quantized {type(quantized).__name__}{where(error)}: {reason}"
