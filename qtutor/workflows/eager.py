"""The eager flow: the model itself says with stubs where integers begin and end."""

import itertools

from qtutor.fusion import find_fusions
from qtutor.models.copying import eval_copy
from qtutor.models.operators import kind_of
from qtutor.models.running import count_calls
from qtutor.workflows.backends import TRANSPOSED, swapped, torch_ao
from qtutor.workflows.fx import qconfigs
from qtutor.workflows.recipe import Recipe
from qtutor.workflows.refusals import Refused

from torch import Tensor, nn


def fusable(model: nn.Module, inputs: tuple[Tensor, ...], trained: bool) -> tuple[tuple[str, ...], ...]:
    """Return the names of the modules to merge, group by group; none if the model cannot be traced.

    Of those that train, PyTorch merges no transposed convolution with its norm.

    Raises:
        Refused: the model has no stubs.
    """
    ao = torch_ao()
    stubs = (ao.QuantStub, ao.DeQuantStub)
    if missing := [s.__name__ for s in stubs if not any(isinstance(m, s) for m in model.modules())]:
        reason = (
            f"needs a model that says where integers begin and end, and {kind_of(model)} has no "
            f"{' and no '.join(missing)}: add `self.quant = QuantStub()` and `self.dequant = DeQuantStub()` of "
            "torch.ao.quantization and call them in forward"
        )
        raise Refused(reason)
    from torch.ao.quantization.fuser_method_mappings import get_fuser_method

    model = eval_copy(model)
    try:
        fusions = [
            fusion
            for fusion in find_fusions(model, inputs)
            if fusion.accepted and not (trained and isinstance(model.get_submodule(fusion.names[0]), TRANSPOSED))
        ]
    except ValueError:
        return ()
    calls, groups = count_calls(model, inputs), []
    for fusion in fusions:
        # A functional ReLU is no module, and one that is called elsewhere too would be lost there.
        names = [*itertools.takewhile(lambda name: calls[name] == 1, fusion.names)]
        while len(names) > 1:
            try:
                get_fuser_method(tuple(type(model.get_submodule(name)) for name in names))
                groups.append(tuple(names))
                break
            except AssertionError:
                names.pop()
    return tuple(groups)


def prepare(model: nn.Module, recipe: Recipe, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Put observers, or fake-quantizers if it is to be trained, into a model in place, and return it."""
    ao, model = torch_ao(), model.train(recipe.trained)
    prepare, fuse = (ao.prepare_qat, ao.fuse_modules_qat) if recipe.trained else (ao.prepare, ao.fuse_modules)
    if recipe.fused:
        model = fuse(model, [[*names] for names in recipe.fused], inplace=True)
    mapping = qconfigs(ao, recipe)
    kinds = {kind: mapping.object_type_qconfigs[kind] for kind in TRANSPOSED}
    ao.propagate_qconfig_(model, {"": mapping.global_qconfig} | kinds | mapping.module_name_qconfigs)
    return swapped(prepare, model)


def convert(prepared: nn.Module) -> nn.Module:
    """Return the INT8 model; the prepared one is used up."""
    return swapped(torch_ao().convert, prepared)
