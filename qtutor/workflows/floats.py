"""The names, as the owner gave them, of what a flow has left in floating point. What that is,

the owner says          keep_float
`without_kernel` says   before anything runs, of the layers that kernels of eager mode and FX compute wrongly, or never
`fx` and `pt2e`         of layers with hooks or a forward of their own, and of what else stays and is not to be merged
`rewriting`             of what PyTorch's converter does not know, or gains nothing by codes, or loses too much by them
`judging.cannot_run`    where the INT8 model fails
`infinity.spared`       where infinity is read, or what no one scale holds
`kernels.mend`          of INT8 layers whose kernel computes something else, on their INT8 weights
`dynamic` and `int4`    of what their kernels do not take, with `bytecode.bound_by_code`
"""

import functools
from collections.abc import Collection, Iterator

from qtutor.models.operators import KINDS, Trait, function_name, multiplies, traits
from qtutor.models.tracing import is_altered
from qtutor.workflows import dynamic
from qtutor.workflows.calls import given_name
from qtutor.workflows.recipe import SCRIPTED, Recipe, scripted

from torch import nn
from torch.fx import GraphModule, Node
from torch.jit import ScriptModule
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

_WEIGHTED = (*KINDS, nn.Bilinear)
_ONEDNN = ("x86", "onednn")
_WRAPPED = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Left(nn.Module):
    """A layer that stays in floats, with its hooks: PyTorch and torchao, which go by classes, do not know its own."""

    def __init_subclass__(cls) -> None:
        """Ask no class of the owner's, which may keep account of their subclasses."""

    def __reduce__(self) -> tuple:
        """Let a file name the class of the owner's, for it cannot find this one by its name."""
        how, kind = type(self).__bases__
        return _blank, (kind, how), vars(self)


class Frozen(Left):
    """A layer that stays in eval mode, too."""

    def train(self, mode: bool = True) -> "Frozen":
        """Stay as it is."""
        return self


@functools.cache
def left(kind: type[nn.Module], how: type[Left] = Left) -> type[nn.Module]:
    """Return the class that a layer of some class gets which stays in floats."""
    return type(kind.__name__, (how, kind), {})


def _blank(kind: type[nn.Module], how: type[Left]) -> nn.Module:
    return left(kind, how).__new__(left(kind, how))


def without_kernel(model: nn.Module, engine: str | None) -> tuple[str, ...]:
    """Return the names of layers for which no INT8 kernel stands: for how they pad or norm, or what was put on them.

    As of PyTorch 2.13 the kernel of an InstanceNorm knows no running statistics, that of a PReLU scales positive
    codes too, QNNPACK cannot give back the weights of a convolution of three axes, and oneDNN's for a depthwise one of
    few channels and a wide kernel may never return.
    """

    def has_none(module: nn.Module) -> bool:
        if isinstance(module, _ConvNd):
            return _convolves_without(module, engine)
        return type(module) is nn.PReLU or (isinstance(module, _InstanceNorm) and module.running_mean is not None)

    def altered(name: str, module: nn.Module) -> bool:
        return bool(name) and next(module.children(), None) is None and is_altered(module)

    return tuple(name for name, module in model.named_modules() if has_none(module) or altered(name, module))


def _convolves_without(module: _ConvNd, engine: str | None) -> bool:
    three = len(module.kernel_size) == 3
    modes = ("zeros",) if three else ("zeros", "reflect")
    pads = module.padding_mode not in modes or isinstance(module.padding, str)
    return pads or (engine in _ONEDNN and _hangs(module)) or (engine == "qnnpack" and three)


def _hangs(module: _ConvNd) -> bool:
    """Whether oneDNN's INT8 kernel of a layer never returns where the output is 29 wide or more.

    On AVX-512 with VNNI. Of 11,630 random shapes of all kinds, each in a process of its own, 291 hung: all are such.
    """
    if module.transposed:
        return False
    depthwise = 1 < module.groups == module.in_channels == module.out_channels
    dense = module.stride[-1] == module.dilation[-1] == 1
    return depthwise and dense and module.groups <= 16 and module.kernel_size[-1] >= 14


def left_in_floats(given: nn.Module, model: GraphModule, left: Collection[str]) -> list[str]:
    """Return the names of layers with float weights, and of parameters that are multiplied as they are.

    Args:
        given: what `model` was made of.
        left: names of modules that were left in floats, with weights or without.
    """
    modules = dict(given.named_modules(remove_duplicate=False))
    called = {node.target for node in model.graph.nodes if node.op == "call_module"}
    made_by_jit = scripted(model)
    names = [
        name
        for name, module in model.named_modules()
        if name in called
        and (given_name(name) in left or name in made_by_jit or any(isinstance(m, _WEIGHTED) for m in module.modules()))
    ]
    for parameter in _multiplied(model):
        owner, _, name = parameter.rpartition(".")
        path = [*given_name(owner).split("."), name]
        owners = (".".join(path[:end]) for end in range(len(path)))
        names.append(next((name for name in owners if isinstance(modules.get(name), _WEIGHTED)), parameter))
    return [*dict.fromkeys(map(given_name, names))]


def why_left(model: nn.Module, names: Collection[str], recipe: Recipe) -> dict[str, str]:
    """Return names of a model's modules and parameters that stay, each with the reason, as far as it is known."""
    modules = dict(model.named_modules(remove_duplicate=False))

    def reason(name: str) -> str:
        module = modules.get(name)
        if module is None:
            return ""
        if dynamic.takes(module) and isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            return "quantize_dynamic takes it"
        if isinstance(module, ScriptModule):
            return SCRIPTED
        if is_altered(module):
            return "it has hooks or a forward of its own"
        if isinstance(module, _WRAPPED):
            way = f"model.set_submodule({name!r}, model.get_submodule({name!r}).module)"
            return f"FX does not look inside: write {way} first"
        if recipe.flow == "fx" and next(module.children(), None) is not None:
            return "FX does not look inside"
        if recipe.flow == "pt2e" and isinstance(module, _ConvNd) and not isinstance(module, nn.Conv2d):
            return "torchao quantizes Conv2d alone of the convolutions"
        return "no INT8 kernel does what it does here" if name in recipe.left_float else ""

    return {name: reason(name) for name in names}


def _multiplied(model: GraphModule) -> Iterator[str]:
    """The names of the parameters that go into a product, in the order of the products."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for node in model.graph.nodes:
        if multiplies(_called(node)):
            for source in node.all_input_nodes:
                while Trait.KEEPS_RANGE in traits(_called(source)):
                    source = source.all_input_nodes[0]
                if source.op == "get_attr" and source.target in parameters and parameters[source.target].dim() > 1:
                    yield source.target


def _called(node: Node) -> str:
    if node.op not in ("call_function", "call_method"):
        return ""
    name = getattr(node.target, "_opname", function_name(node))
    return (node.args[0].rpartition(".")[2] if name == "in_floats" else name).strip("_")
