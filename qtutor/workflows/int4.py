"""Linear layers with 4-bit weights: PyTorch's kernel that unpacks them while it multiplies, in bfloat16.

Weights alone are rounded: asymmetric, one scale for a group of inputs. What is read from memory for a token shrinks to
a quarter of bfloat16's, and that is what a batch of one waits for. With many rows the arithmetic decides, and a
processor without instructions for bfloat16 may take longer than in float32: `benchmark.compare` says it of yours.

PyTorch has more 4-bit kernels for CPUs than this: the same in float32 and float16, and `_dyn_quant_matmul_4bit`, which
is meant for ARM. Where they were measured, on x86, they gave the right results slower than float32.
"""

import math

from qtutor.affine import sqnr
from qtutor.lowbit import integers
from qtutor.models.bytecode import bound_by_code
from qtutor.models.copying import check_loaded, check_weights, eval_copy, through_layers
from qtutor.models.operators import called, check_module, kind_of
from qtutor.simulation.layers import with_weights
from qtutor.words import said_by
from qtutor.workflows.limits import CLEAR
from qtutor.workflows.telling import listed, tell, tell_what_is_hidden

import torch
from torch import Tensor, nn

GROUPS = (32, 64, 128, 256)
"""What the kernel can share a scale among."""

_MANY = 0.25  # of the groups have to be coarse before a layer is told of
_ROWS = 16  # it takes so many outputs at a time
_CLOSE = 0.01  # bfloat16 keeps 8 binary digits; a sum of products is a few times better than the worst of these


class Int4Linear(nn.Module):
    """A linear layer with 4-bit weights; activations are rounded to bfloat16 for the product.

    Attributes:
        packed: `(out, in / 2)` uint8, two codes a byte in the kernel's order.
        scales: `(in / group, out, 2)` bfloat16: the scale of a group, and the value of its code 8.
        bias: `(out,)` or None.
        group: how many inputs share a scale.
        kept: `in / group` numbers: SQNR in dB of the weights of each group's median input, NaN where they are all zero.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, group: int):
        super().__init__()
        self.in_features, self.out_features, self.group = layer.in_features, layer.out_features, group
        codes = integers(4, group, scale_dtype=torch.bfloat16).encode(layer.weight.detach().float())
        assert codes.scales.shift is not None
        scale = codes.scales.scale.float()
        middle = (8 - codes.scales.shift.float()) * scale
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.values.int(), 1)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", torch.stack([scale.T, middle.T], dim=-1).bfloat16().contiguous())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        scale, middle = (part.float().T[..., None] for part in self.scales.unbind(-1))
        grouped = codes.values.float().unflatten(1, (-1, group))
        weight, rounded = layer.weight.detach().float(), ((grouped - 8) * scale + middle).flatten(1)
        self._check(rounded)
        kept = torch.as_tensor(sqnr(weight, rounded, axis=1)).masked_fill(~weight.any(0), math.nan)
        self.kept = kept.unflatten(0, (-1, group)).nanmedian(1).values.tolist()

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scales)
        output = product.to(input.dtype).view(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias.to(input.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, group={self.group}"

    def _check(self, weight: Tensor) -> None:
        """Compare the kernel with a product of the weights that it is to have.

        Raises:
            ValueError: they differ by more than bfloat16 does.
        """
        x = torch.randn(3, self.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
        wanted = x.float() @ weight.T
        got = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, self.group, self.scales).float()
        if not (got - wanted).norm() <= _CLOSE * wanted.norm():
            raise ValueError("PyTorch's 4-bit kernel gives wrong products on this processor")


def quantize_weights(model: nn.Module, *, group: int = 64) -> nn.Module:
    """Give a model's linear layers 4-bit weights, where the kernel can; the others stay, and a notice says why.

    The model is not changed. Each layer is checked against a product with the weights that it is to have.

    Args:
        model: any module, in float32 or bfloat16 on the CPU.
        group: 32, 64, 128 or 256: how many inputs share a scale.

    Raises:
        TypeError: `model` is not a module.
        ValueError: another group, or no layer that the kernel can take.

    Example:
        >>> model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32))
        >>> quantize_weights(model)[2]
        Int4Linear(in_features=64, out_features=32, group=64)
    """
    check_module(model, "quantize_weights")
    if group not in GROUPS:
        raise ValueError(f"PyTorch's 4-bit kernel shares a scale among 32, 64, 128 or 256 inputs, not {group!r}")
    check_loaded(model)
    check_weights(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    obstacles = {name: reason for name, layer in layers.items() if (reason := _obstacle(layer, group))}
    kept = bound_by_code(model, layers) | obstacles
    replaced: dict[int, nn.Module] = {}
    for name, layer in layers.items():
        if name not in kept:
            try:
                replaced[id(layer)] = made = Int4Linear(layer, group)
                _tell_of_lost_inputs(called(name, layer), made)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                kept[name] = said_by(error)
    said = listed(model, {name: kept[name] for name in layers if name in kept})
    if not replaced:
        raise ValueError(f"no linear layer can have 4-bit weights ({said or 'there is none'})")
    changed = replaced[id(model)].eval() if id(model) in replaced else eval_copy(model, replaced)
    if kept:
        tell(f"quantize_weights leaves {len(kept)} of {len(layers)} linear layers as they are: {said}")
    modules = dict(model.named_modules())
    spared = (nn.Linear, nn.Embedding, nn.EmbeddingBag)  # named above, or read row by row
    if others := [name for name in with_weights(model) if not isinstance(modules.get(name), spared)]:
        tell(f"quantize_weights leaves in floating point: {listed(model, dict.fromkeys(others, ''))}")
    tell_what_is_hidden(changed, "quantize_weights")
    through_layers(changed)
    return changed


def _tell_of_lost_inputs(name: str, layer: Int4Linear) -> None:
    lost = [kept for kept in layer.kept if kept < CLEAR]
    if len(lost) >= _MANY * len(layer.kept):
        smaller = f"a group smaller than {layer.group} confines that, and " if layer.group > min(GROUPS) else ""
        tell(
            f"{name} keeps the weights of most inputs in {len(lost)} of its {len(layer.kept)} groups to "
            f"{min(lost):.1f} dB only, as a few have far larger ones: {smaller}qtutor.lowbit.awq_scales chooses "
            "numbers to multiply the weights of inputs by, and to divide the inputs by before the layer"
        )


def _obstacle(layer: nn.Linear, group: int) -> str:
    if type(layer) is not nn.Linear:
        return f"it is a {kind_of(layer)}"
    if "weight" not in layer._parameters:
        return "its weight is computed anew at each call"
    if layer.out_features % _ROWS:
        return f"its {layer.out_features} outputs are no multiple of {_ROWS}"
    if layer.in_features % group:
        fits = [each for each in GROUPS if layer.in_features % each == 0]
        return f"its {layer.in_features} inputs are no multiple of {group}" + (
            f": group={fits[-1]} would do" if fits else ""
        )
    return ""
