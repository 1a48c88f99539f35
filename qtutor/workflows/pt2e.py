"""The PT2E flow of torchao: torch.export captures the model, and Inductor can lower it."""

import copy
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

from qtutor.workflows.backends import INDUCTOR, needs_compiler, torchao
from qtutor.workflows.low_bits import narrow_config, trained_config
from qtutor.workflows.notices import unlogged
from qtutor.workflows.recipe import Recipe, recipe_of, remember

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

_PATTERNS: dict[tuple, GraphModule] = {}


class Compiled(nn.Module):
    """A PT2E model that Inductor lowers, anew for each shape of the inputs; `model` is the one it came from."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]):
        super().__init__()
        self.model = model
        remember(self, recipe_of(model))
        self.__dict__["_run"] = torch.compile(model, dynamic=False)  # not a second copy in the state dict
        with needs_compiler(", or leave compile=False and get the same numbers, slowly"):
            self(*inputs)

    def forward(self, *inputs: Tensor) -> Any:
        from torch._inductor import config

        # Without freezing the weights would not be packed for INT8 kernels. Inference mode is left, for each mode is
        # compiled anew.
        with torch.inference_mode(False), torch.no_grad(), config.patch(freezing=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="To copy construct from a tensor", module=r"torch\._inductor")
            return self._run(*inputs)


def export(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Capture a model with torch.export for any batch size, each call of a module told apart.

    torchao groups the operators of a graph by the name of their module. Of one that is called twice it
    would take both calls for one, and refuse it; so later calls get a name of their own besides.
    """
    if all(x.dim() and len(x) == 1 for x in inputs):  # export takes a size of 1 for a constant
        inputs = tuple(torch.cat([x, x]) for x in inputs)
    else:
        inputs = tuple(x.clone() for x in inputs)  # two inputs may be one tensor, and its size is noted by identity
    shapes = torch.export.ShapesCollection()
    for x in inputs:
        if x.dim():
            shapes[x] = {0: torch.export.Dim.AUTO}
    noisy = unlogged("torch.fx.experimental.symbolic_shapes"), unlogged("torch._subclasses.fake_tensor")
    with noisy[0], noisy[1], redirect_stderr(io.StringIO()):  # the graph, on failure
        captured = torch.export.export(model, inputs, dynamic_shapes=shapes).module()
    for node in captured.graph.nodes:
        stack = node.meta.get("nn_module_stack", {})
        if any("@" in call for call in stack):  # how torch.export marks a second call
            kind = [*stack.values()][-1][1]
            node.meta["nn_module_stack"] = stack | {"call": (" ".join(stack), kind)}
    return captured


def prepare(model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Return a captured model with observers, or with fake-quantizers if it is to be trained."""
    kind = INDUCTOR[recipe.engine]
    pt2e, flow, home = torchao("", ".quantize_pt2e", f".quantizer.{kind.lower()}_inductor_quantizer")
    observe = flow.prepare_qat_pt2e if recipe.trained else flow.prepare_pt2e
    options = {"is_qat": recipe.trained} | ({"reduce_range": True} if recipe.reduced else {})
    default = getattr(home, f"get_default_{kind.lower()}_inductor_quantization_config")(**options)
    if recipe.trained:
        default = trained_config(default, pt2e.FakeQuantize)
    quantizer = getattr(home, f"{kind}InductorQuantizer")().set_global(narrow_config(default, recipe.bits))
    for name, bits in recipe.edges.items():
        quantizer.set_module_name_qconfig(name, narrow_config(default, bits))
    for name in recipe.keep_float:
        quantizer.set_module_name_qconfig(name, None)
    with _few_patterns(recipe.trained):
        prepared = observe(export(model, inputs), quantizer)

    def train(mode: bool = True) -> nn.Module:
        (pt2e.move_exported_model_to_train if mode else pt2e.move_exported_model_to_eval)(prepared)
        return prepared

    prepared.train, prepared.eval = train, lambda: train(False)  # the captured ones refuse
    return prepared


@contextmanager
def _few_patterns(trained: bool) -> Iterator[None]:
    """Have torchao look only for patterns that can occur, and make each of them once in a process.

    Where a model has a batch norm it looks for 26 patterns of each of four kinds of convolution, and exports every
    one anew: half a minute to a minute, whether or not the model has such a convolution or was trained.
    """
    (qat,) = torchao(".qat_utils")
    names = ("_fuse_conv_bn_qat_helper", "_fold_conv_bn_qat_helper", "_get_aten_graph_module_for_pattern")
    fuse, fold, make = before = [getattr(qat, name) for name in names]

    def where_it_occurs(look: Callable) -> Callable:
        def sparing(model: GraphModule, convolution: Callable, *args: Any, **options: Any) -> GraphModule:
            occurs = any(f"aten.{convolution.__name__}." in str(node.target) for node in model.graph.nodes)
            return look(model, convolution, *args, **options) if trained and occurs else model

        return sparing

    def once(pattern: Any, inputs: tuple, is_cuda: bool = False, **options: Any) -> GraphModule:
        closure = inspect.getclosurevars(pattern.fn).nonlocals
        key = (pattern.fn.__qualname__, repr(closure), *sorted(options), *(x.shape for x in inputs), is_cuda)
        if key not in _PATTERNS:
            _PATTERNS[key] = make(pattern, inputs, is_cuda, **options)
        return copy.deepcopy(_PATTERNS[key])

    for name, function in zip(names, (where_it_occurs(fuse), where_it_occurs(fold), once), strict=True):
        setattr(qat, name, function)
    try:
        yield
    finally:
        for name, function in zip(names, before, strict=True):
            setattr(qat, name, function)


def convert(prepared: nn.Module, trained: bool) -> nn.Module:
    """Return the INT8 model, a graph; the prepared one is used up."""
    pt2e, quantize_pt2e = torchao("", ".quantize_pt2e")
    with _few_patterns(trained):
        model = quantize_pt2e.convert_pt2e(pt2e.move_exported_model_to_eval(prepared))
    used = {node.target for node in model.graph.nodes if node.op == "get_attr"}
    for name, _ in [*model.named_parameters(remove_duplicate=False)]:  # float weights that INT8 ones replaced
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(model.get_submodule(owner), attribute)
    for name in ("train", "eval"):  # which refuse, and there is nothing left that they would change
        vars(model).pop(name, None)
    return model
