"""The one way to copy a model, and what a copy whose layers are replaced needs."""

import copy
import dis
import inspect
import traceback
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, MutableSet
from contextlib import suppress
from functools import partial
from pickle import PickleError
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from qtutor.models.operators import called, kind_of
from qtutor.models.tensors import tensors_in

import torch
from torch import Tensor, nn
from torch.jit import ScriptFunction, ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

_PLAIN = {*vars(nn.Module())}
"""What each module holds."""
_FILLED = (MutableMapping, MutableSequence, MutableSet)
M = TypeVar("M", bound=nn.Module)


def copy_model(model: M, replacements: dict[int, Any] | None = None) -> M:
    """Deep-copy a model, with some modules (by id) replaced wherever the model refers to them.

    What a model keeps of a run that had gradients, such as its last activation or the weight that weight_norm
    computed, is copied as a plain tensor: `copy.deepcopy` refuses it.

    Raises:
        ValueError: the model holds what cannot be copied, or a copy would go on to use the given model.
    """
    _check_compiled(model)
    _check_functions(model)
    memo = dict(replacements or {})
    for name, module in model.named_modules():
        kept = tensors_in(vars(module), records=False)
        memo |= {id(x): x.detach().clone() for x in kept if not x.is_leaf and id(x) not in memo}
        memo |= {id(x): x for value in vars(module).values() for x in _inside(value) if isinstance(x, ScriptFunction)}
        if _runs_another(vars(module).get("forward"), module):  # a copy would go on to run the given one
            raise ValueError(
                f"the forward of {called(name, module)} was replaced by a function that knows a module, which a copy "
                "would share: write it into a subclass"
            )
    try:
        with torch.no_grad():  # or TorchScript's would go on to belong to the given ones
            copied = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, PickleError) as error:
        raise ValueError(f"{kind_of(model)} holds what cannot be copied ({error}): keep it elsewhere") from error
    shared = {*copied.modules()} & {*model.modules()} - {x for x in memo.values() if isinstance(x, nn.Module)}
    if shared:
        raise ValueError(f"{kind_of(shared.pop())} gives itself in place of a copy (__deepcopy__): it must be copied")
    for name, module in copied.named_modules():
        if isinstance(module, ScriptModule):
            for parameter, given in zip(module.parameters(), model.get_submodule(name).parameters(), strict=True):
                parameter.requires_grad_(given.requires_grad)
    return copied


def eval_copy(model: nn.Module, replacements: dict[int, Any] | None = None) -> nn.Module:
    """Copy a model into eval mode; encoders hide padding without their fast path.

    Raises:
        ValueError: as `check_loaded` and `copy_model`, or train or eval of a module do something else than PyTorch's.
    """
    check_loaded(model)
    copied = copy_model(model, replacements)
    _switch_to_eval(copied)
    _hide_padding(copied)
    return copied


def _switch_to_eval(model: nn.Module) -> None:
    """Switch a model to eval mode by its own methods, which may return nothing."""
    own = [(name, module, "train") for name, module in model.named_modules() if _overrides(module, "train")]
    own += [("", model, "eval")] if _overrides(model, "eval") else []
    blamed = [each for each in own if not _takes(getattr(each[1], each[2]), (False,) if each[2] == "train" else ())]
    if not blamed:
        try:
            model.eval()
            blamed = [each for each in own if each[1].training]
        except Exception as error:
            inside = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
            blamed = [each for each in own if any(each[1] is one for one in inside)][::-1]
            if not blamed:
                raise
    for name, module, method in blamed:
        usual = "train(mode)" if method == "train" else "eval()"
        raise ValueError(
            f"{method} of {called(name, module)} is not the {usual} of nn.Module, which switches to eval mode: give it "
            "another name"
        )


def _overrides(module: nn.Module, method: str) -> bool:
    return not f"{getattr(type(module), method).__module__}.".startswith("torch.")


def _takes(method: Callable, given: tuple) -> bool:
    try:
        inspect.signature(method).bind(*given)
    except TypeError:
        return False
    return True


def kept_in_eval(model: nn.Module) -> list[str]:
    """Return the names of batch norms and dropouts that a model's own train() keeps in eval mode; it is left there."""
    model.train()
    names = [n for n, m in model.named_modules() if isinstance(m, (_BatchNorm, _DropoutNd)) and not m.training]
    model.eval()
    return names


def check_loaded(model: nn.Module) -> None:
    """Refuse a model that has weights without values yet.

    Raises:
        ValueError: a layer is lazy, or on the meta device; the message names it.
    """
    for name, module in model.named_modules():
        kept = [x for x in (*module._parameters.values(), *module._buffers.values()) if x is not None]
        if any(map(is_lazy, kept)):
            raise ValueError(
                f"{called(name, module)} has no weights yet: run the model once on a batch, which makes them"
            )
        if any(x.is_meta for x in kept):
            raise ValueError(
                f"{called(name, module)} is on the meta device and holds no values: load the weights first"
            )


def _filled_by(function: FunctionType) -> list[Any]:
    """What a function knows and may put something into."""
    known = _known_to(function)
    sets = known and any(step.opname == "STORE_ATTR" for step in dis.get_instructions(function))
    return [each for each in known if isinstance(each, _FILLED) or (sets and hasattr(each, "__dict__"))]


def _check_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules:
            way = f"write model.set_submodule({name!r}, model.get_submodule({name!r})._orig_mod) first"
            raise ValueError(
                f"{name or 'this model'} is wrapped by torch.compile: {way if name else 'pass model._orig_mod'}"
            )


def _check_functions(model: nn.Module) -> None:
    """Refuse functions, as hooks or attributes, that know a module or what it keeps: those of a copy would use that."""
    mine = {*model.modules()}
    kept = {id(value): name for module in mine for name, value in vars(module).items() if name not in _PLAIN}
    for name, module in model.named_modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        for function in _functions_in(hooks):
            if any(map(_is_module, _known_to(function))):
                raise ValueError(
                    f"a hook of {called(name, module)} holds a module, and a copy would go on to use it: take it off "
                    "first, with handle.remove()"
                )
            if shared := [kept[id(each)] for each in _filled_by(function) if id(each) in kept]:
                raise ValueError(
                    f"a hook of {called(name, module)} fills {shared[0]} of the given model, and a copy would read its "
                    f"own, which stays as it is: register a method of the model that fills self.{shared[0]}"
                )
        for attribute in vars(module).keys() - {"forward", *_PLAIN}:
            for function in _functions_in(vars(module)[attribute]):
                if any(getattr(each, "__self__", each) in mine for each in _known_to(function) if _is_module(each)):
                    raise ValueError(
                        f"{attribute} of {called(name, module)} is or holds a function that knows the model, and a "
                        "copy would go on to use the given one: write it as a method of the class"
                    )


def _functions_in(tree: Any) -> Iterator[FunctionType]:
    """The functions in nested containers, partials and methods."""
    return (each for each in _inside(tree) if isinstance(each, FunctionType))


def _inside(tree: Any, around: tuple[int, ...] = ()) -> Iterator[Any]:
    """What stands in nested containers, and the functions of partials and methods."""
    while isinstance(tree, (MethodType, partial)):
        tree = tree.__func__ if isinstance(tree, MethodType) else tree.func
    if not isinstance(tree, (tuple, list, dict)):
        yield tree
    elif id(tree) not in around:  # a container may hold itself
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _inside(each, (*around, id(tree)))


def hidden_in(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the modules with weights in plain lists and the like, where PyTorch finds none, by the attribute."""
    mine, found = {*model.modules()}, {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            hidden = [each for each in _inside(value) if isinstance(each, nn.Module) and each not in mine]
            if name not in _PLAIN and (hidden := [each for each in hidden if [*each.parameters()]]):
                found[f"{path}.{name}".removeprefix(".")] = hidden
    return found


def _is_module(each: Any) -> bool:
    return isinstance(getattr(each, "__self__", each), nn.Module)


def _runs_another(forward: Any, module: nn.Module | None) -> bool:
    """Whether a forward that was put on a module knows another module, or a method of one.

    A copy takes the module along where a method is bound to it, or a partial holds it. It does not change what a
    function knows: by its closure, its defaults or global names.
    """
    if isinstance(forward, MethodType):
        return _runs_another(forward.__self__, module) or _runs_another(forward.__func__, None)
    if isinstance(forward, partial):
        held = (forward.func, *forward.args, *forward.keywords.values())
        return any(_runs_another(each, module) for each in held)
    if isinstance(forward, FunctionType):
        return any(map(_is_module, _known_to(forward)))
    return isinstance(forward, nn.Module) and forward is not module


def _known_to(function: FunctionType) -> list[Any]:
    """What a function can use beside its arguments."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]  # one may be empty still
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    read = {step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"}
    return [*cells, *defaults, *(value for name, value in function.__globals__.items() if name in read)]


def through_layers(model: nn.Module) -> None:
    """Let encoders call their linear layers, whose weights PyTorch's fast path would read."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


def _hide_padding(model: nn.Module) -> None:
    """Let encoders give zeros where a padding mask hides an input, as their fast path does, without that path."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            module.use_nested_tensor = False
            module.layers[-1].register_forward_hook(_give_zeros, with_kwargs=True)


def _give_zeros(layer: nn.Module, inputs: tuple, named: dict[str, Any], output: Tensor) -> Tensor:
    """Set to zero what a padding mask hides where the fast path does: behind all that is not hidden."""
    mask = named.get("src_key_padding_mask")
    if mask is None or named.get("src_mask") is not None or output.dim() != 3:
        return output
    hidden = mask != 0
    behind = ~(hidden[:, :-1] & ~hidden[:, 1:]).any()
    return output.masked_fill((hidden & behind).unsqueeze(-1), 0.0)


def plain_attributes(model: nn.Module) -> dict[str, Any]:
    """Return copies of what a model or its class keeps beside layers, tensors and functions, such as class names.

    Left out are names that begin with an underscore, and what holds any of these, as far as is seen at once.
    """
    kept: dict[str, Any] = {}
    for holder in (*type(model).__mro__[::-1], model):
        if f"{getattr(holder, '__module__', '')}.".startswith(("torch.", "builtins.")) and holder is not model:
            continue
        for name, value in vars(holder).items():
            with suppress(Exception):  # of what cannot be copied
                inside = [each for part in _inside(value) for each in (part, *getattr(part, "__dict__", {}).values())]
                if not (name.startswith("_") or name in _PLAIN or any(map(_is_no_datum, inside))):
                    kept[name] = copy.deepcopy(value)
    return kept


def _is_no_datum(value: Any) -> bool:
    return callable(value) or hasattr(value, "__get__") or bool(tensors_in(value))


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of pruned parameters, 1 where a weight stays, by the names that these have in a plain copy."""
    return {
        f"{path}.{hook._tensor_name}".removeprefix("."): getattr(module, f"{hook._tensor_name}_mask")
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    }


def held(model: nn.Module) -> list[str]:
    """Return the names of modules with a weight that is held to something at each call, such as a norm.

    One that weight_norm computes can be any, and a mask is told of by `masks_of`.
    """

    def holds(module: nn.Module) -> bool:
        lists = module.parametrizations.values() if parametrize.is_parametrized(module) else ()
        steps = [step for steps in lists for step in steps]
        return any(not isinstance(step, _WeightNorm) for step in steps) or any(
            isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()
        )

    return [name for name, module in model.named_modules() if holds(module)]


def check_weights(model: nn.Module) -> None:
    """Refuse a model with a parameter that is not finite, or NaN in a buffer, which may hold infinity: ValueError."""
    for owner, module in model.named_modules():
        bad = [path for path, each in module.named_parameters(recurse=False) if not each.isfinite().all()]
        bad += [path for path, each in module.named_buffers(recurse=False) if each.isnan().any()]
        for path in bad:
            what = f"{called(owner, module)} holds NaN or infinity in its {path}"
            raise ValueError(f"{what}: mend that before you quantize it")


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a model in eval mode, with what is computed anew at each call (weight_norm, pruning ...) made permanent."""
    copied = eval_copy(model)
    for module in copied.modules():
        if parametrize.is_parametrized(module):  # by a class that the original shares: nothing of it may be removed
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
        for hook in [*module._forward_pre_hooks.values()]:
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
    return copied
