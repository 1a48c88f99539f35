"""The PT2E flow of torchao: torch.export captures the model, and Inductor can lower it."""

import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from itertools import islice
from types import CodeType, ModuleType
from typing import Any
from unittest import mock

from qtutor.affine import grid
from qtutor.fusion import fuse
from qtutor.models.copying import kept_in_eval
from qtutor.models.running import at_line, no_fast_attention, outputs, reads_of_training
from qtutor.models.tensors import copies, tensors_in
from qtutor.models.tracing import calling_line, is_altered
from qtutor.workflows.backends import INDUCTOR, needs_compiler, torchao
from qtutor.workflows.floats import left
from qtutor.workflows.inductor import lower
from qtutor.workflows.notices import unlogged
from qtutor.workflows.recipe import Recipe, recipe_of, remember

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.sym_node import SymNode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
_FOLDING = ("_fuse_conv_bn_", "_fuse_linear_bn_", "_fuse_conv_bn_qat", "_fold_conv_bn_qat")
_LONGEST = 300
"""Terms of what is made of a size, which PyTorch simplifies: 152 in a DenseNet, more than a thousand in a Swin."""
_WITH_NUMBER = {each.Tensor: each.Scalar for each in (_aten.add, _aten.sub, _aten.mul)}


class Compiled(nn.Module):
    """A PT2E model that Inductor lowers, anew for each shape of the inputs; `model` is the one it came from."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]):
        super().__init__()
        self.model = model
        remember(self, recipe_of(model))
        self._writes, given = False, copies(inputs)
        with needs_compiler(", or leave compile=True out: the same numbers, slowly"):
            self(*given)
        # Inductor adds what a layer gives to an input in place, as of PyTorch 2.13; forward may write into one too.
        self._writes = not all(map(torch.equal, tensors_in(given), tensors_in(inputs)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_run"}  # a copy runs its own model

    def forward(self, *inputs: Tensor) -> Any:
        if "_run" not in vars(self):
            vars(self)["_run"] = lower(self.model)  # not a second copy in the state dict
        try:
            return self._run(*(copies(inputs) if self._writes else inputs))
        except AssertionError:
            self.model(*inputs)  # it says in words which sizes it takes
            raise


def export(model: nn.Module, inputs: tuple[Tensor, ...], functional: bool = False) -> GraphModule:
    """Capture a model with torch.export for any sizes that forward leaves free, each call of a module told apart.

    Where what forward makes of sizes gets so long that PyTorch would simplify it for hours, as windows of
    windows of an image do, or is more than it can solve, the number of samples alone is free.

    torchao groups the operators of a graph by the name of their module. Of one that is called twice it
    would take both calls for one, and refuse it; so later calls get a name of their own besides.

    Args:
        model: in eval mode.
        functional: rewrite what works in place.
    """
    if all(x.dim() and len(x) == 1 for x in tensors_in(inputs)):  # export takes a size of 1 for a constant
        with suppress(Exception):  # where the first axis is none of samples, two are other inputs
            captured = _captured(model, tree_map_only(Tensor, lambda x: torch.cat([x, x]), inputs), functional)
            pairs = zip(outputs(model, inputs), outputs(captured, inputs), strict=True)
            if all(torch.allclose(x, y, 1e-3, 1e-3, equal_nan=True) for x, y in pairs):
                return captured
    return _captured(model, copies(inputs), functional)  # two may be one tensor, and its size is noted by identity


class _TooLong(Exception):
    """What is made of a size has more than `_LONGEST` terms."""


@contextmanager
def _in_few_terms() -> Iterator[None]:
    """Give up where what is made of a size gets long."""
    from sympy import preorder_traversal

    original = SymNode.__init__

    def init(self: SymNode, expr: Any, *others: Any, **named: Any) -> None:
        if sum(1 for _ in islice(preorder_traversal(expr), _LONGEST)) == _LONGEST:
            raise _TooLong
        original(self, expr, *others, **named)

    with mock.patch.object(SymNode, "__init__", init):
        yield


def _captured(model: nn.Module, inputs: tuple[Tensor, ...], functional: bool) -> GraphModule:
    try:
        with _in_few_terms():
            return _captured_for(model, inputs, functional, range)
    except (_TooLong, NotImplementedError):
        return _captured_for(model, inputs, functional, lambda dimensions: [0])


def _captured_for(
    model: nn.Module, inputs: tuple[Tensor, ...], functional: bool, free: Callable[[int], Iterable[int]]
) -> GraphModule:
    """Capture a model for any sizes along the axes that are `free` of so many dimensions."""
    shapes = torch.export.ShapesCollection()
    for x in tensors_in(inputs):
        if x.dim():
            shapes[x] = dict.fromkeys(free(x.dim()), torch.export.Dim.AUTO)
    names = "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor", "torch._export.non_strict_utils"
    quiet = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())  # the graph, on failure
    unchecked = mock.patch.object(Distribution, "_validate_args", False)  # which decides by values
    # Without gradients: what forward computes without them, in a block, would become a graph of its own.
    with ExitStack() as stack:
        for context in (*map(unlogged, names), *quiet, unchecked, no_fast_attention(), torch.no_grad()):
            stack.enter_context(context)
        program = torch.export.export(model, inputs, dynamic_shapes=shapes)
        nested = any(getattr(n.target, "__module__", "").startswith("torch._functorch") for n in program.graph.nodes)
        # A vmap that stays in the graph cannot be observed, and a call that fails in it would leave it entered.
        captured = (program.run_decompositions({}) if functional or nested else program).module()
    if nested:
        _disown_rewritten(captured)
    if hasattr(captured, "_guards_fn"):
        captured._guards_fn = _Sizes(captured._guards_fn)
    for node in captured.graph.nodes:
        if len(node.all_input_nodes) == 1 and node.target in _WITH_NUMBER:  # which the quantizer takes for two tensors
            node.target = _WITH_NUMBER[node.target]
            for name in ("source_fn_stack", "torch_fn"):
                node.meta.pop(name, None)
        stack = node.meta.get("nn_module_stack", {})
        if any("@" in call for call in stack):  # how torch.export marks a second call
            kind = [*stack.values()][-1][1]
            node.meta["nn_module_stack"] = stack | {"call": (" ".join(stack), kind)}
    return captured


def _disown_rewritten(captured: GraphModule) -> None:
    """Have what a layer was rewritten to, as in a vmap, no longer stand for that layer, in place."""
    calls = [(node, *node.meta["torch_fn"]) for node in captured.graph.nodes if "torch_fn" in node.meta]
    whole = {call for node, call, name in calls if getattr(node.target, "_opname", "") == name.rpartition(".")[2]}
    for node, call, _ in calls:
        if call not in whole:
            del node.meta["torch_fn"]
            node.meta.pop("nn_module_stack", None)


class OtherSizes(ValueError):
    """A captured model got inputs of sizes for which it was not captured."""


class _Sizes(nn.Module):
    """The first that a captured model calls: it refuses inputs of sizes for which it was not captured."""

    _is_impure = True  # as torch.fx calls what must stay though nobody reads its output

    def __init__(self, guards: nn.Module):
        super().__init__()
        self.guards = guards

    def forward(self, *inputs: Tensor | None) -> None:
        try:
            self.guards(*inputs)
        except AssertionError as error:
            wanted = str(error).removeprefix("Guard failed: ")
            given = ", ".join(str(tuple(x.shape)) for x in tensors_in(inputs))
            raise OtherSizes(
                f"forward was captured where {wanted}, and got {given}: it turns that size into a number, so quantize "
                "the float model for each such size"
            ) from None


def takes(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a captured model takes inputs of these sizes."""
    with suppress(OtherSizes):
        getattr(model, "_guards_fn", lambda *inputs: None)(*inputs)
        return True
    return False


def prepare(model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Return a captured model with observers, or with fake-quantizers if it is to be trained.

    It is captured in eval mode with its batch norms folded, for training too: torchao's own patterns for batch norms
    that train know one eps only, and take half a minute. A batch norm that cannot be folded trains as it is.
    """
    kind = INDUCTOR[recipe.engine]
    pt2e, flow, home, utils = torchao("", ".quantize_pt2e", f".quantizer.{kind.lower()}_inductor_quantizer", ".utils")
    observe = flow.prepare_qat_pt2e if recipe.trained else flow.prepare_pt2e
    options = {"is_qat": recipe.trained} | ({"reduce_range": True} if recipe.reduced else {})
    default = getattr(home, f"get_default_{kind.lower()}_inductor_quantization_config")(**options)
    config = partial(_config, default, pt2e.FakeQuantize if recipe.trained else None)
    quantizer = getattr(home, f"{kind}InductorQuantizer")().set_global(config(recipe.bits))
    for name, bits in recipe.edges.items():
        quantizer.set_module_name_qconfig(name, config(bits))
    for name in (*recipe.keep_float, *recipe.left_float):
        quantizer.set_module_name_qconfig(name, None)
    quantizer.annotate = partial(_annotate_floats, quantizer.annotate)
    frozen = kept_in_eval(model) if recipe.trained else []
    asking = {read.forward for read in reads_of_training(model, inputs)} if recipe.trained else set()
    with suppress(ValueError):  # one that torch.fx cannot trace is folded below, as far as torchao can
        model = fuse(model, inputs)
    for module in model.modules():
        if next(module.children(), None) is None and is_altered(module):
            module.__class__ = left(type(module))
    captured = export(model, inputs, recipe.functional)
    _fold_norms(captured, utils)
    with _folded_already():
        prepared = observe(captured, quantizer)
    for node in prepared.graph.nodes:
        kept = any(path in frozen for path, _ in [*node.meta.get("nn_module_stack", {}).values()][-1:])
        if kept or not _asks(node, asking):
            node.meta["switch"] = None
    switchable = Prepared(prepared, prepared.graph)
    switchable.meta |= prepared.meta
    return switchable.train(recipe.trained)


def _config(default: Any, fake_quantize: Any, bits: int) -> Any:
    """Return a QuantizationConfig of torchao for `bits`, with scales as small as those of the other flows.

    Its own are 2**-12 at least, so what stays below 0.03 in magnitude loses bits.

    Args:
        fake_quantize: the class that is not fused, as in `trained_qconfig`; None if nothing is to be trained.
    """

    def ours(name: str) -> Any:
        spec = getattr(default, name)
        given = spec.observer_or_fake_quant_ctr.p
        make = (fake_quantize or given.func).with_args(**given.keywords | {"eps": torch.finfo(torch.float32).eps})
        low = grid(bits)[0] if name == "weight" else spec.quant_min
        high = min(spec.quant_max, low + 2**bits - 1)
        return dataclasses.replace(spec, quant_min=low, quant_max=high, observer_or_fake_quant_ctr=make)

    names = "input_activation", "output_activation", "weight"
    return dataclasses.replace(default, **{name: ours(name) for name in names})


def _annotate_floats(annotate: Callable, captured: GraphModule) -> GraphModule:
    """Have a quantizer annotate a captured model, and spare what computes with whole numbers or float64."""
    annotate(captured)
    for node in captured.graph.nodes:
        sources = getattr(node.meta.get("quantization_annotation"), "input_qspec_map", ())
        if any(getattr(source.meta.get("val"), "dtype", torch.float32) != torch.float32 for source in sources):
            del node.meta["quantization_annotation"]
    return captured


def _fold_norms(captured: GraphModule, utils: ModuleType) -> None:
    """Fold batch norms as torchao does, in place, but into layers that are called once, and go on to one."""
    for name, fold in (("_is_conv_or_conv_transpose_node", "_fuse_conv_bn_"), ("_is_linear_node", "_fuse_linear_bn_")):
        is_layer, apart = getattr(utils, name), set[Node]()
        calls = [node for node in captured.graph.nodes if is_layer(node)]
        times = Counter(node.args[1].target for node in calls)  # at each torchao would fold into the weight again
        for node in calls:
            norms = [utils._is_bn_node(user) and user.args[3] for user in node.users]  # one may have no statistics
            behind = {norm.target if norm else f"{norm}" for norm in norms}
            if times[node.args[1].target] > 1 or len(behind) > 1 or "None" in behind:
                apart.add(node)
        with mock.patch.object(
            utils, name, lambda node, is_layer=is_layer, apart=apart: node not in apart and is_layer(node)
        ):
            getattr(utils, fold)(captured)


class Prepared(GraphModule):
    """A captured model that can be switched between training and eval mode, its copies too."""

    def __init__(self, root: nn.Module, graph: Graph, class_name: str = "Prepared"):
        super().__init__(root, graph, class_name)
        for node in self.graph.nodes:
            arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
            for place, argument in enumerate(arguments[: len(node.args)]):
                if argument.name in ("train", "training") and node.args[place] is False:  # such as dropout
                    node.meta.setdefault("switch", place)  # or None, where it is not to be switched

    def train(self, mode: bool = True) -> "Prepared":
        """Switch the whole model."""
        for node in self.graph.nodes:
            if (place := node.meta.get("switch")) is not None:
                node.args = (*node.args[:place], mode, *node.args[place + 1 :])
        self.recompile()
        return super().train(mode)


def lines_that_switch(prepared: nn.Module) -> Counter[str]:
    """Count the calls at each " at file:line: `code`" that `Prepared.train` switches, but for those of PyTorch."""
    calls = [calling_line(n) for n in prepared.graph.nodes if n.meta.get("switch") is not None]
    return Counter(at_line(*call) for call in calls if call)


def _asks(node: Node, forwards: Collection[CodeType]) -> bool:
    """Whether the forward that makes a call is among those that ask if the model is in training, or PyTorch's."""
    if not (call := calling_line(node)):
        return True
    file, number, _ = call
    spans = [[line for *_, line in f.co_lines() if line] for f in forwards if f.co_filename == file]
    return any(min(span) <= number <= max(span) for span in spans)


def _folded_already() -> AbstractContextManager:
    """Keep torchao from looking for batch norms to fold: it would export a hundred patterns, one by one."""
    (flow,) = torchao(".quantize_pt2e")
    return mock.patch.multiple(flow, **dict.fromkeys(_FOLDING, lambda model: model))


def convert(prepared: nn.Module) -> nn.Module:
    """Return the INT8 model, a graph; the prepared one is used up."""
    (flow,) = torchao(".quantize_pt2e")
    with _folded_already():
        model = flow.convert_pt2e(prepared.eval())
    for node in model.graph.nodes:
        node.meta.pop("switch", None)
    used = {node.target for node in model.graph.nodes if node.op == "get_attr"}
    for name, _ in [*model.named_parameters(remove_duplicate=False)]:  # float weights that INT8 ones replaced
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(model.get_submodule(owner), attribute)
    for name in ("train", "eval"):  # which refuse, and there is nothing left that they would change
        vars(model).pop(name, None)
    return model
