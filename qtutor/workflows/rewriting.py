"""What a trace has recorded, rewritten into words that PyTorch's converter knows, and what gains nothing by codes."""

import functools
import importlib
import inspect
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from qtutor.fusion.folding import along_channels, foldable_kind
from qtutor.models.operators import Trait, target_of, traits
from qtutor.models.running import no_fast_attention
from qtutor.models.tensors import copies
from qtutor.models.tracing import works_in_place
from qtutor.workflows.backends import TRANSPOSED, torch_ao
from qtutor.workflows.calls import beside
from qtutor.workflows.floats import Left, left
from qtutor.workflows.recipe import Recipe

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

_SPELLED = {
    **dict.fromkeys((torch.relu, "relu"), nn.functional.relu),
    torch.max_pool2d: nn.functional.max_pool2d,
    "add": operator.add,
    "mul": operator.mul,
}
"""What the converter knows, by functions and methods that compute the same, and that it does not, or does not merge."""
_TENSORS = ("input", "weight", "bias")
_ARGUMENTS = {"linear": _TENSORS, "add": ("input", "other"), "mul": ("input", "other")}
_CONVOLUTION = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
"""The arguments behind these of a function that convolves with weights of the caller's, with their defaults."""
_CONVOLVING = {f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3)}

_EPSILON = 1e-3
"""A number below it is added, or clamped at, for what is near zero: codes do not hold it."""
_NORMS = ("_norm", "norm", "norm1d", "norm2d", "norm3d")
"""Ends of the names of norms."""


def rewrite(graph: fx.Graph, root: nn.Module, recipe: Recipe, dims: Mapping[str, int]) -> None:
    """Have a graph compute what the model does, in words that the converter knows; in place.

    Args:
        dims: of what each batch norm gets.
    """
    _read_beside(graph, root)
    _repair(graph, root, recipe)
    _join_in_floats(graph, root)
    _keep_apart(graph, root, dims, recipe.trained)


def settle_dtypes(graph: fx.Graph, root: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Put the dtype or device that a tensor has in the place of asking for it, since codes have another; in place."""
    asked = {node for node in graph.nodes if node.target is getattr and node.args[1] in ("dtype", "device")}
    found: dict[Node, Any] = {}

    class Noting(fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n in asked:
                found[n] = result
            return result

    if asked:
        with torch.no_grad(), no_fast_attention():
            Noting(root, graph=graph).run(*copies(inputs))
    for user in {user for node in asked for user in node.users}:
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda node: found.get(node, node))
    for node in asked:
        graph.erase_node(node)


def _read_beside(graph: fx.Graph, root: nn.Module) -> None:
    """Read the parameters of a layer that is called too from where another layer cannot take its place, in place."""
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    for node in graph.nodes:
        owner, _, name = str(node.target).rpartition(".")
        if node.op == "get_attr" and owner in called and name in root.get_submodule(owner)._parameters:
            node.target = beside(root, owner, name)


def _repair(graph: fx.Graph, root: nn.Module, recipe: Recipe) -> None:
    coded, constant, gains = set[Node](), set[Node](), dict[str, bool]()
    for place, node in enumerate(nodes := [*graph.nodes]):
        if node.op in ("call_function", "call_method") and node.target in _SPELLED:
            node.op, node.target = "call_function", _SPELLED[node.target]
        views = node.op == "call_method" and node.target == "view"
        if views and not any(isinstance(arg, torch.dtype) for arg in node.args):
            node.target = "reshape"  # what an INT8 kernel gives lies in memory in another order
        elif _convolves(node):
            _convolve(node)
        elif node.kwargs and node.op == "call_function":
            _pass_by_place(node, _ARGUMENTS.get(getattr(node.target, "__name__", ""), ()))
        elif node.kwargs and node.op == "call_module":
            first = next(iter(inspect.signature(root.get_submodule(node.target).forward).parameters.values()))
            _pass_by_place(node, [first.name] if first.kind is first.POSITIONAL_OR_KEYWORD else [])
        if works_in_place(node, root):  # who reads what it changed reads its result
            later = set(nodes[place + 1 :])
            for user in [user for user in node.all_input_nodes[0].users if user in later]:
                user.replace_input_with(node.all_input_nodes[0], node)
        if gives_size(node):
            continue
        if is_constant(node, constant):
            constant.add(node)  # computed of parameters alone, and once
            if kernel_of(node, root):
                _leave(node)
            continue
        gain = _gains(node, root, recipe, coded)
        if node.op == "call_module":
            gains[node.target] = gain is not False or gains.get(node.target, False)
            if gain is None and _passes(root.get_submodule(node.target)) and coded.intersection(node.all_input_nodes):
                coded.add(node)
        elif gain is False or _stays(node, root, recipe):
            _leave(node)
            continue
        coded |= {node} if gain else set()
    for name in (name for name, gain in gains.items() if not gain):
        module = root.get_submodule(name)
        module.__class__ = left(type(module))


def _passes(module: nn.Module) -> bool:
    """Whether a module without a kernel may stand between two with one: merged, or with the range of its input."""
    keeps = Trait.KEEPS_RANGE in traits(type(module))
    return (isinstance(module, _BatchNorm) or keeps) and not isinstance(module, Left)


def _stays(node: Node, root: nn.Module, recipe: Recipe) -> bool:
    """Whether what a function or method gives is computed in floats whatever it gets."""
    kind = traits(target_of(node, root))
    terms = node.args if Trait.ARITHMETIC in kind else ()
    # In training PyTorch would give what is computed with a number the range of its input.
    with_number = recipe.trained and len(node.all_input_nodes) == 1 and len(terms) == 2
    numbers = (x for x in (*node.args, *node.kwargs.values()) if isinstance(x, float))
    epsilon = (Trait.ARITHMETIC | Trait.CLAMPS) & kind and any(0 < abs(x) < _EPSILON for x in numbers)
    named = node.name in (*recipe.infinite, *recipe.unrounded, *recipe.uneven)
    named = named or name_of(node) in recipe.float_operators
    return bool(named or with_number or epsilon or (terms and node.kwargs))  # add(x, y, alpha=2) has no kernel


def _gains(node: Node, root: nn.Module, recipe: Recipe, coded: Collection[Node]) -> bool | None:
    """Whether a node is worth rounding: it multiplies by weights or norms, or reads codes; None where no kernel is.

    What lies between floats, as x + 1e-6 before a logarithm, gains nothing by being rounded.
    """
    kernel, kind = kernel_of(node, root), traits(target_of(node, root))
    if kernel is None or not node.all_input_nodes or (node.op == "call_module" and recipe.keeps(node.target)):
        return None
    merged = node.op == "call_module" and isinstance(root.get_submodule(node.target), _BatchNorm)
    keeps = merged or (Trait.KEEPS_RANGE in kind and Trait.AVERAGES not in kind)
    if recipe.between and not (kernel.multiplies or keeps):
        return False
    if recipe.clipped and Trait.AVERAGES in kind:
        return False  # a mean of few codes is often a tie, which the kernels break in another way than training
    return kernel.begins or any(each in coded for each in node.all_input_nodes)


def is_constant(node: Node, constant: Collection[Node]) -> bool:
    """Whether a node reads a parameter, or calls a function or method with tensors that are all among constants."""
    calls = node.op in ("call_function", "call_method") and bool(node.all_input_nodes)
    return node.op == "get_attr" or (calls and all(each in constant for each in node.all_input_nodes))


class Kernel(NamedTuple):
    """What is known of an INT8 kernel.

    Attributes:
        multiplies: whether it multiplies by weights, or two matrices.
        begins: whether it is worth rounding floats for: it multiplies, or is a norm that is merged into no layer.
        scale: of what it gives, where PyTorch fixes that.
        shares: whether what it gives is on the scale of what it gets.
    """

    multiplies: bool
    begins: bool
    scale: float | None
    shares: bool


@functools.cache
def _kernels() -> dict[Any, Kernel]:
    """The kernels that give codes, by what a node calls."""
    torch_ao()
    from torch.ao.quantization.backend_config import ObservationType, get_native_backend_config

    found: dict[Any, Kernel] = {}
    for each in get_native_backend_config().configs:
        if isinstance(each.pattern, type) and issubclass(each.pattern, nn.RNNBase | nn.RNNCellBase):
            continue  # whose kernels take floats, and give floats
        ways = [way for way in each.dtype_configs if way.input_dtype == torch.quint8]
        if each.pattern is not None and ways and each.observation_type is not ObservationType.INPUT_OUTPUT_NOT_OBSERVED:
            name = getattr(each.pattern, "__name__", "").lower()
            multiplies = name == "matmul" or any(way.weight_dtype == torch.qint8 for way in ways)
            begins = multiplies or (name.endswith(_NORMS) and not name.startswith("batchnorm"))
            scale = ways[0].output_dtype_with_constraints.scale_exact_match
            shares = each.observation_type is ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT
            found[each.pattern] = Kernel(multiplies, begins, scale, shares)
    return found


def kernel_of(node: Node, root: nn.Module) -> Kernel | None:
    """Return the kernel for what a node calls, if there is one that gives codes."""
    return _kernels().get(target_of(node, root))


def gives_size(node: Node) -> bool:
    """Whether a node gives a size of a tensor, or what Python computes of such."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    plain = node.op == "call_function" and getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
    return plain and bool(node.all_input_nodes) and all(map(gives_size, node.all_input_nodes))


def operands(node: Node) -> list[Node]:
    """Return the tensors that a node adds, multiplies or computes with, one twice where it stands there twice."""
    return [each for each in node.args if isinstance(each, Node) and not gives_size(each)]


def _join_in_floats(graph: fx.Graph, root: nn.Module) -> None:
    """Let torch.cat join floats where it is given a view of what was made of numbers or computed in floats, in place.

    As of PyTorch 2.13, the converter would look behind that for a tensor with a range, and fail.
    """

    def made(node: Node) -> bool:
        first = node
        while first.args and isinstance(first.args[0], Node):
            if kernel_of(first, root):
                return False
            first = first.args[0]
        return first is not node and first.op == "call_function" and bool(first.args)

    for node in graph.nodes:
        if node.target is torch.cat and any(map(made, node.all_input_nodes)):
            _leave(node)


def _leave(node: Node) -> None:
    """Have what a node calls be computed in floats, in place."""
    node.op, node.target, node.args = "call_function", in_floats, (name_of(node), *node.args)


def _keep_apart(graph: fx.Graph, root: nn.Module, dims: Mapping[str, int], trained: bool) -> None:
    """Keep PyTorch from folding batch norms that it cannot fold, in place.

    These have no statistics, or normalize along another axis than their layer's; of those that train, PyTorch merges
    none with a transposed convolution, and divides by their gains, which zeros must not be among.
    """
    for node in graph.nodes:
        norm = root.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(norm, _BatchNorm) and not isinstance(norm, Left) and node.all_input_nodes[0].op == "call_module":
            layer = root.get_submodule(node.all_input_nodes[0].target)
            other = type(norm) is nn.BatchNorm1d and not along_channels(layer, dims.get(node.target, 0))
            undivided = norm.weight is not None and not norm.weight.all()
            unmerged = norm.running_mean is None or (trained and (undivided or isinstance(layer, TRANSPOSED)))
            if foldable_kind(layer) and (unmerged or (other and node.target in dims)):
                norm.__class__ = left(type(norm))


def _convolves(node: Node) -> bool:
    return node.op == "call_function" and name_of(node).rpartition(".")[2] in _CONVOLVING


def takes_weights(node: Node) -> bool:
    """Whether a node calls a function that is a convolution or a linear layer, with weights of the caller's."""
    return _convolves(node) or node.target is nn.functional.linear


def _pass_by_place(node: Node, names: Sequence[str]) -> None:
    """Pass arguments by place, as the converter expects them: not `linear(input=x, weight=w)`."""
    for name in names[len(node.args) :]:
        if name not in node.kwargs:
            break
        node.args = (*node.args, node.kwargs[name])
        node.kwargs = {other: value for other, value in node.kwargs.items() if other != name}


def _convolve(node: Node) -> None:
    """Pass a convolution with weights of the caller's all arguments by place, and a size for each axis.

    One that is transposed stays in floats, for as of PyTorch 2.13 its kernel reads what nobody wrote; so does one with
    an argument that is no number.
    """
    kind, names = node.target.__name__, (*_TENSORS, *_CONVOLUTION)
    given = {"bias": None} | _CONVOLUTION | dict(zip(names, node.args, strict=False)) | node.kwargs
    if "transpose" in kind or any(isinstance(given[name], str | Node) for name in _CONVOLUTION):
        _leave(node)
        return
    axes = int(kind[-2])
    wide = {name: (given[name],) * axes for name in _CONVOLUTION if name != "groups" and isinstance(given[name], int)}
    node.args, node.kwargs = tuple((given | wide)[name] for name in names), {}


def in_floats(name: str, *operands: Any, **options: Any) -> Any:
    """Call a function or method by its name; the converter does not know it, and gives it floats."""
    function = _function(name)
    return getattr(operands[0], name)(*operands[1:], **options) if function is None else function(*operands, **options)


def name_of(node: Node) -> str:
    """Return the name by which `in_floats` calls what a node calls; "" where there is none."""
    if node.op == "call_method":
        return str(node.target)
    home = getattr(node.target, "__module__", "") or ""
    if node.op != "call_function" or not home.startswith(("torch", "_operator")):
        return ""
    name = f"{home}.{node.target.__name__}"
    return name if _function(name) is node.target else ""


def _function(name: str) -> Callable | None:
    home, _, attribute = name.rpartition(".")
    with suppress(ImportError):  # as of operators below torch.ops
        return getattr(importlib.import_module(home), attribute, None) if home else None
    return None
