"""The FX flow: torch.fx traces the model, and PyTorch puts observers where integers can be."""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any
from unittest import mock

from qtutor.fusion import fuse
from qtutor.models.copying import kept_in_eval
from qtutor.models.operators import KINDS, Trait, target_of, traits
from qtutor.models.running import no_fast_attention
from qtutor.models.tensors import copies, tensors_in
from qtutor.models.tracing import Call, changes, clear_hooks, has_hooks, is_altered, line_of, norm_dims
from qtutor.workflows.backends import TRANSPOSED, torch_ao
from qtutor.workflows.calls import call_apart, copies_of, share_ranges
from qtutor.workflows.floats import Frozen, Left, left
from qtutor.workflows.low_bits import narrow_qconfig
from qtutor.workflows.recipe import Recipe
from qtutor.workflows.rewriting import is_constant, rewrite, settle_dtypes, takes_weights
from qtutor.workflows.training import trained_qconfig

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_FOLDED = (*KINDS, _BatchNorm)
"""What is folded where it stays in floats too."""


class _Skipped(nn.Identity):
    """An Identity that torch.fx does not see, so that what it stands between can be merged."""


def prepare(model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Return a traced model with observers, or fake-quantizers if it is to be trained; the given one is used up.

    Both are traced in eval mode: a trace knows one branch only of what depends on `self.training`.
    """
    ao = torch_ao()
    if recipe.trained:
        model = _freeze(model, inputs)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not module.affine and not is_altered(module):
            _scale_by_one(module)
        kept = recipe.keeps(name)
        if type(module) is nn.Identity and not is_altered(module):  # as where `fuse` folded a batch norm
            module.__class__ = _Skipped
        elif kept and next(module.children(), None) is None and (is_altered(module) or not isinstance(module, _FOLDED)):
            module.__class__ = left(type(module))
    if any(has_hooks(module) or isinstance(module, Left) for module in model.modules()):
        with suppress(Exception), torch.inference_mode():  # which marks what the run leaves behind
            model.eval()(*copies(inputs))
    for name in passed_by(model):
        clear_hooks(model.get_submodule(name))
    mapping = qconfigs(ao, recipe)
    for name, module in model.named_modules():
        if name and _closed(module):  # in training PyTorch would swap the layers inside, and convert them by half
            mapping.set_module_name(name, None)
    prepare = ao.quantize_fx.prepare_qat_fx if recipe.trained else ao.quantize_fx.prepare_fx
    with _tracing(model, inputs, recipe):
        prepared = prepare(model.train(recipe.trained), mapping, inputs)
    share_ranges(prepared)
    return prepared


def _freeze(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Return the model with batch norms and dropouts that its own train() keeps in eval mode folded, or fixed."""
    frozen = {*kept_in_eval(model)}
    with suppress(ValueError):  # one that cannot be traced is refused soon
        model = fuse(model, inputs, frozen) if frozen else model
    for name in frozen:
        module = model.get_submodule(name)
        if isinstance(module, _BatchNorm):
            module.__class__ = left(type(module), Frozen)
        elif not isinstance(module, nn.Identity):
            module.__class__ = _Skipped
    return model


def _scale_by_one(norm: nn.Module) -> None:
    """Give a batch norm without gains, which PyTorch does not merge, gains of one that do not train; in place."""
    norm.affine = True
    norm.weight, norm.bias = (
        nn.Parameter(values(norm.num_features), requires_grad=False) for values in (torch.ones, torch.zeros)
    )


def _closed(module: nn.Module) -> bool:
    """Whether a block is one of PyTorch's own, which a trace does not step into, such as an encoder."""
    inside = next(module.children(), None) is not None
    return inside and type(module).__module__.startswith("torch.nn") and not isinstance(module, _CONTAINERS)


def passed_by(model: nn.Module) -> list[str]:
    """Return the names of the blocks with hooks, the model itself among them: a trace steps into them without these."""
    hooked = {name: module for name, module in model.named_modules() if has_hooks(module)}
    return [n for n, m in hooked.items() if not n or (next(m.children(), None) is not None and not _closed(m))]


@contextmanager
def _tracing(model: nn.Module, inputs: tuple[Tensor, ...], recipe: Recipe) -> Iterator[None]:
    """Have PyTorch trace for a call with these inputs, and repair what its own trace would lose."""
    from torch.ao.quantization import quantize_fx

    before, dims = quantize_fx.QuantizationTracer, norm_dims(model, inputs)

    class Tracer(Call, before):  # type: ignore[valid-type]
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, (Left, ScriptModule)) or super().is_leaf_module(m, module_qualified_name)

        def create_node(self, kind: str, target: Any, args: tuple, *others: Any, **named: Any) -> Node:
            """Let a node stand for each constant in the output, such as a name: the converter would refuse it."""
            if kind == "output":
                constant = functools.partial(self.create_node, "call_function", as_it_is, kwargs={})
                args = map_aggregate(args, lambda each: each if isinstance(each, Node | None) else constant((each,)))
            return super().create_node(kind, target, args, *others, **named)

        def create_arg(self, a: Any) -> Any:
            _refuse_left_behind(a)
            return super().create_arg(a)

        def trace(self, root: nn.Module, concrete_args: Any = None) -> fx.Graph:  # type: ignore[override]
            self.inputs = inputs
            root.eval()
            with _Watching({id(each) for each in (*root.parameters(), *root.buffers())}):
                graph = super().trace(root, concrete_args)
            settle_dtypes(graph, root, inputs)
            root.train(recipe.trained)
            rewrite(graph, root, recipe, dims)
            call_apart(graph, root, _FOLDED, Left)
            return graph

    with mock.patch.object(quantize_fx, "QuantizationTracer", Tracer):
        yield


class _Watching(TorchFunctionMode):
    """Watches what is computed without stand-ins while a model is traced, of whose own tensors the ids are given."""

    def __init__(self, own: Collection[int]):
        super().__init__()
        self.own = own

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for each in tensors_in((args, kwargs)):
            _refuse_left_behind(each)
        made = bool(args) and isinstance(args[0], Tensor) and id(args[0]) not in self.own
        if made and changes(func.__name__) and any(isinstance(x, fx.Proxy) for x in tree_leaves((args, kwargs))):
            raise ValueError(
                "a trace takes a tensor that forward makes for a constant, and loses what is written into it: make it "
                "of an input, as x.new_zeros(20, 16) does, and write out.index_put((i,), y) for out[i] = y"
            )
        return func(*args, **(kwargs or {}))


def _refuse_left_behind(value: Any) -> None:
    """Refuse to take for a constant what a run before the trace has left behind, which hooks may do."""
    if isinstance(value, Tensor) and value.is_inference():
        raise ValueError(
            "what is read there was left behind by the run before, as by a hook, and no hook runs in a trace: compute "
            "it in forward"
        )


def as_it_is(value: Any) -> Any:
    """Return a constant."""
    return value


class _Watched(fx.Interpreter):
    """Runs a model and knows at which node it is."""

    node: Node

    def run_node(self, n: Node) -> Any:
        self.node = n
        return super().run_node(n)


def failing(model: GraphModule, inputs: tuple[Tensor, ...]) -> Node:
    """Return the node at which a model fails for a batch."""
    watched = _Watched(model)
    watched.extra_traceback = False
    try:
        with torch.no_grad(), no_fast_attention():
            watched.run(*copies(inputs))
    except Exception:
        return watched.node
    raise AssertionError("it does not fail")


def line_of_failing(model: nn.Module | None, inputs: tuple[Tensor, ...]) -> str:
    """Return " at file:line: `code`" where a traced model fails, or for what is read there; "" where none is known."""
    with suppress(AssertionError, AttributeError):  # it fails before its first node, or not again
        if isinstance(model, GraphModule):
            node = failing(model, inputs)
            return next(filter(None, map(line_of, (node, *node.all_input_nodes))), "")
    return ""


def qconfigs(ao: ModuleType, recipe: Recipe) -> Any:
    """Return PyTorch's own qconfig mapping for the engine, narrowed to the bits."""
    get_default = ao.get_default_qat_qconfig_mapping if recipe.trained else ao.get_default_qconfig_mapping
    mapping = get_default(recipe.engine)
    if recipe.trained:
        mapping.set_global(trained_qconfig(mapping.global_qconfig, ao.FakeQuantize))
    activation = mapping.global_qconfig.activation.with_args(reduce_range=recipe.seven)
    mapping.set_global(mapping.global_qconfig._replace(activation=activation))
    own = {name: narrow_qconfig(mapping.global_qconfig, bits) for name, bits in recipe.edges.items()}
    for name, qconfig in (own | dict.fromkeys((*recipe.keep_float, *recipe.left_float))).items():
        mapping.set_module_name(name, qconfig).set_module_name_regex(copies_of(name), qconfig)
    if recipe.trained:
        for kind in (nn.Embedding, nn.EmbeddingBag):  # which PyTorch would train in another precision, or not at all
            mapping.set_object_type(kind, None)
    for kind in TRANSPOSED:  # whose weights no engine takes per channel, though onednn's mapping says so
        weight = ao.default_weight_fake_quant if recipe.trained else ao.default_weight_observer
        mapping.set_object_type(kind, narrow_qconfig(mapping.global_qconfig._replace(weight=weight), recipe.bits))
    return mapping.set_global(narrow_qconfig(mapping.global_qconfig, recipe.bits))


def convert(prepared: nn.Module) -> nn.Module:
    """Return the INT8 model; the prepared one is used up."""
    _fold_constants(prepared)
    return torch_ao().quantize_fx.convert_fx(prepared)


def _fold_constants(model: GraphModule) -> None:
    """Put a weight or bias that forward computes of parameters alone, as by a cast, in their place.

    As of PyTorch 2.13, the converter loses the way from a weight to its parameters where that is no straight line.
    """
    graph, copied = fx.Graph(), dict[Node, Node]()
    for node in model.graph.nodes:
        if is_constant(node, copied):
            copied[node] = graph.node_copy(node, copied.__getitem__)
    found = [node for node in copied if node.op != "get_attr" and _is_weight(node)]
    graph.output([copied[node] for node in found])
    for node, value in zip(found, GraphModule(model, graph)(), strict=True):
        model.register_buffer(name := f"folded_{node.name}", value.detach())
        with model.graph.inserting_before(node):
            node.replace_all_uses_with(model.graph.get_attr(name))
    for node in [*copied][::-1]:
        if not node.users:
            model.graph.erase_node(node)
    model.recompile()


def _is_weight(node: Node) -> bool:
    """Whether a function that convolves or is a linear layer takes what a node gives, by an observer or without."""
    observed = [user for user in node.users if user.op == "call_module"]
    users = {*node.users}.union(*(user.users for user in observed))
    return any(takes_weights(user) and node not in user.args[:1] for user in users)


def quiet(model: nn.Module) -> None:
    """Have no INT8 operator warn of what does no harm, in place.

    A leaky ReLU gives a tensor of its own, and warns unless it is asked to. A cat takes over the scale of its first
    input, and warns where another has another.
    """
    from torch.ao.nn.quantized import LeakyReLU

    for module in model.modules():
        if isinstance(module, LeakyReLU):
            module.inplace = False
    if isinstance(model, GraphModule):
        for node in model.graph.nodes:
            if node.target is torch.ops.quantized.leaky_relu:
                node.kwargs = node.kwargs | {"inplace": False}
            if node.target is torch.cat:
                node.target = joined
        model.recompile()


def joined(tensors: Sequence[Tensor], *dim: int, **named: int) -> Tensor:
    """Join tensors as torch.cat does, whose dim may be called axis: codes on the grid of the first."""
    first = tensors[0]
    if not first.is_quantized or len({(x.q_scale(), x.q_zero_point()) for x in tensors}) == 1:
        return torch.cat([*tensors], *dim, **named)
    whole = torch.cat([x.dequantize() for x in tensors], *dim, **named)
    return torch.quantize_per_tensor(whole, first.q_scale(), first.q_zero_point(), first.dtype)


def straighten(model: nn.Module) -> None:
    """Undo channels-last before each clamp, in place: as of PyTorch 2.13, QNNPACK would mix the codes up."""
    from torch.ao.nn.quantized import ReLU6

    def clamps(target: Any) -> bool:
        return target is ReLU6 or Trait.CLAMPS in traits(target)

    if not isinstance(model, GraphModule):
        for module in model.modules():
            if clamps(type(module)):
                module.register_forward_pre_hook(lambda module, inputs: inputs[0].contiguous())
        return
    for node in model.graph.nodes:
        if clamps(target_of(node, model)) and node.args:
            with model.graph.inserting_before(node):
                node.args = (model.graph.call_method("contiguous", node.args[:1]), *node.args[1:])
    model.recompile()
