"""What is known of the values that pass through a trace before anybody computes them: their dtypes, and the CPU."""

import operator
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qtutor.models.operators import PRODUCTS, Trait, function_name, target_of, traits

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

_ELSEWHERE = ("is_cuda", "is_mps", "is_xpu", "is_meta")
_SAME_DTYPE = Trait.ARITHMETIC | Trait.KEEPS_RANGE | Trait.PASSES_SCALE
_OPERATORS = (operator.matmul, operator.sub, operator.truediv, torch.matmul, torch.bmm, torch.softmax, "softmax")


class Known(fx.Tracer):
    """Answers Python where it decides by a dtype or a device, as far as that is certain.

    Attributes:
        dtypes: of the inputs that are tensors, by name.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.dtypes: dict[str, torch.dtype] = {}

    def gives_tensor(self, node: fx.Node) -> bool:
        """Whether a node is known to give a tensor: an input that is one, or a layer of one output."""
        if node.op == "call_module":
            return isinstance(self.root.get_submodule(str(node.target)), (*PRODUCTS, _BatchNorm))
        return node.op == "placeholder" and node.target in self.dtypes

    def _owner(self, node: fx.Node) -> tuple[nn.Module, str]:
        path, _, name = str(node.target).rpartition(".")
        return self.root.get_submodule(path), name

    def in_layer(self, node: fx.Node) -> bool:
        """Whether a node takes a tensor from a layer that is called as a whole."""
        return self.is_leaf_module(self._owner(node)[0], str(node.target).rpartition(".")[0])

    def of_known(self, original: Callable, *dtype: Any) -> Any:
        """Call what takes a dtype, such as torch.finfo, where that is known."""
        try:
            return original(*(self.known(each.node) if isinstance(each, fx.Proxy) else each for each in dtype))
        except LookupError:
            raise ValueError("Python needs a dtype there that no trace knows: write torch.float32") from None

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer Python where it decides by a dtype or a device that is known."""
        with suppress(LookupError):
            return bool(self.known(obj.node))
        return super().to_bool(obj)

    def known(self, value: Any) -> Any:
        """Return what a node gives, as far as that follows from dtypes and from the CPU, where a model is traced.

        Raises:
            LookupError: it does not follow.
        """
        if not isinstance(value, fx.Node):
            return value
        name = value.target if value.op == "call_method" else function_name(value)
        if name in ("is_floating_point", "is_complex"):
            return getattr(self.dtype_of(value.args[0]), name)
        if value.target in (operator.eq, operator.ne):
            return value.target(*map(self.known, value.args))
        if value.target is not getattr:
            raise LookupError(value)
        of, name = value.args
        if name == "dtype":
            return self.dtype_of(of)
        if name == "device":
            return torch.device("cpu")
        return False if name in _ELSEWHERE else getattr(self.known(of), name)

    def dtype_of(self, value: Any) -> torch.dtype:
        """Return the dtype of the tensor that a node gives.

        Raises:
            LookupError: it is not certain.
        """
        if not isinstance(value, fx.Node):
            raise LookupError(value)
        if value.op == "placeholder":
            return self.dtypes[value.target]
        if value.op == "get_attr":
            owner, name = self._owner(value)
            return {**vars(owner), **owner._parameters, **owner._buffers}[name].dtype
        target, layer = target_of(value, self.root), False
        if value.op == "call_module":
            module = self.root.get_submodule(str(value.target))
            layer = type(module).__module__.startswith("torch.nn.") or self.gives_tensor(value)
            if layer and (weight := next(module.parameters(), None)) is not None:
                return weight.dtype
        same = traits(target) & _SAME_DTYPE and target not in ("to", "float", "max")
        if layer or ((same or target in _OPERATORS) and not value.kwargs):
            sources = value.all_input_nodes[: 1 if layer or Trait.KEEPS_RANGE in traits(target) else None]
            dtypes = {self.dtype_of(each) for each in sources}
            if len(dtypes) == 1 and (dtype := dtypes.pop()).is_floating_point:
                return dtype
        raise LookupError(value)
