"""The INT8 kernels of a converted model, each compared with what its own weights and codes give in floats.

Engines compute some layers wrongly for some shapes, without an error: as of PyTorch 2.13 a transposed convolution with
a kernel of 2 and a stride of 2 on fbgemm; one whose channels differ on x86; rare depthwise shapes. Some give other
weights back than they were given, as for a kernel of 2 on fbgemm, so that a copy or a file would compute something
else. No list of them is complete, so each layer of each model is tried.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

from qtutor.models.operators import kind_of
from qtutor.models.running import outputs
from qtutor.workflows.backends import torch_ao

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = Mapping[nn.Module, tuple[Tensor, Tensor | None]]
"""The codes and the bias that a layer was given, by the layer."""

_STRAY = 0.01  # of the codes may be off by more than one step: a kernel adds up in another order, and rounds ties away


class InFloats(nn.Module):
    """An INT8 layer whose kernel is wrong for what it is given: the same weights and codes, computed in floats."""

    def __init__(self, layer: nn.Module, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("scale", torch.tensor(float(layer.scale)))
        self.register_buffer("zero_point", torch.tensor(int(layer.zero_point)))
        kind = kind_of(layer)
        self.relu, self.function, self.options, self.pads = "ReLU" in kind, "linear", {}, ()
        if hasattr(layer, "kernel_size"):
            transposed = "Transpose" in kind
            self.function = f"conv{'_transpose' if transposed else ''}{len(layer.kernel_size)}d"
            names = ("stride", "padding", "groups", "dilation", *(["output_padding"] if transposed else []))
            self.options = {name: getattr(layer, name) for name in names}
            if layer.padding_mode != "zeros":
                self.pads = tuple(each for each in reversed(layer.padding) for _ in range(2))
                self.options["padding"] = 0

    def forward(self, input: Tensor) -> Tensor:
        weight, real = self.weight.dequantize(), input.dequantize()
        if self.pads:
            real = F.pad(real, self.pads, mode="reflect")
        real = getattr(F, self.function)(real, weight, self.bias, **self.options)
        if self.relu:
            real = real.relu()
        return torch.quantize_per_tensor(real, float(self.scale), int(self.zero_point), torch.quint8)


@contextmanager
def noting_weights() -> Iterator[Weights]:
    """Note in the block which weights the INT8 layers that are made get."""
    import torch.ao.nn.quantized as nnq

    torch_ao()
    noted: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}

    def noting(take: Callable) -> Callable:
        def taking(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
            noted[layer] = weight, None if bias is None else bias.detach()
            take(layer, weight, bias)

        return taking

    kinds = {kind for kind in vars(nnq).values() if isinstance(kind, type) and "set_weight_bias" in vars(kind)}
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(mock.patch.object(kind, "set_weight_bias", noting(kind.set_weight_bias)))
        yield noted


def mend(model: nn.Module, weights: Weights, inputs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """Replace the kernels that compute something else for a batch, or would once copied; return their layers' names.

    One at a time, in the order of the calls: what a wrong kernel hands on may be more than others can add up.
    """
    names: list[str] = []
    while name := _first_wrong(model, weights, inputs):
        compute_in_floats(model, weights, [name])
        names.append(name)
    return tuple(names)


def compute_in_floats(model: nn.Module, weights: Weights, names: Iterable[str]) -> None:
    """Replace the kernels of some layers, in place."""
    for name in names:
        layer = model.get_submodule(name)
        if layer not in weights:  # it is left in floats by now
            continue
        in_floats = InFloats(layer, *weights[layer])
        in_floats._forward_hooks = layer._forward_hooks  # which clip to fewer bits
        model.set_submodule(name, in_floats)


def _first_wrong(model: nn.Module, weights: Weights, inputs: tuple[Tensor, ...]) -> str:
    wrong: list[str] = []

    def compare(name: str, layer: nn.Module, args: tuple, named: dict, output: Tensor) -> None:
        if not wrong:
            expected = InFloats(layer, *weights[layer]).forward(*args, *named.values())
            strays = (output.int_repr().int() - expected.int_repr().int()).abs() > 1
            given_back = torch.equal(layer.weight().int_repr(), weights[layer][0].int_repr())
            if strays.double().mean() > _STRAY or not given_back:
                wrong.append(name)

    with ExitStack() as hooks:
        for name, layer in model.named_modules():
            if layer in weights and hasattr(layer, "scale"):
                see = partial(compare, name)
                hooks.enter_context(layer.register_forward_hook(see, prepend=True, with_kwargs=True))
        outputs(model, inputs)
    return wrong[0] if wrong else ""
