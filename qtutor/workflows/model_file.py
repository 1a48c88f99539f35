"""A quantized model as a file that holds tensors and numbers, and no code.

    line 1    magic words, the number of the format, and the SHA-256 of all that follows
    line 2    a header in JSON: how to build the model again, and the versions that built it
    the rest  what torch.save makes of the tensors and numbers by name, to be read with weights_only

Packed weights of recurrent layers are objects of C++, and are stored as the tensors inside. Scales and
zero points of a PT2E model are numbers in its code, as is what `item()` gave where a model was traced: the
numbers of a graph are stored under the names of its nodes. Tensors that modules keep outside of their state
are stored under the names of the attributes.
"""

import hashlib
import importlib.metadata
import io
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import qtutor
from qtutor.models.copying import hidden_in
from qtutor.models.tensors import tensors_in
from qtutor.storage import write_atomically
from qtutor.workflows.numbers import calls, numbers_of
from qtutor.workflows.telling import tell

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_map

_FORMAT = b"qtutor model 1 "
_OWN = {*vars(nn.Module()), "meta", "_qtutor_example", "_qtutor_masks"}
"""What each module holds, and what flows note."""


def write(path: Path, header: dict[str, Any], model: nn.Module) -> None:
    """Write a model with a header, to which the versions of what is installed are added.

    Raises:
        storage.Unwritable: the file cannot be written.
    """
    content = io.BytesIO()
    torch.save(_contents(model, calls(model)) | _kept(model), content)
    body = json.dumps(header | _versions()).encode() + b"\n" + content.getvalue()
    write_atomically(path, _seal(body) + b"\n" + body)


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header and the content, for `fill`, of a file that is whole and of these versions.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or of another format or version.
    """
    seal, _, body = path.read_bytes().partition(b"\n")
    if not seal.startswith(_FORMAT[:-2]):
        raise ValueError(f"{path} is not a model that qtutor saved")
    if not seal.startswith(_FORMAT):
        raise ValueError(f"{path} has a format that qtutor {qtutor.__version__} does not know")
    if seal != _seal(body):
        raise ValueError(f"{path} is damaged: save the model again")
    line, _, content = body.partition(b"\n")
    header = json.loads(line)
    for name, here in _versions().items():
        there = header.pop(name)
        if there.split(".")[:2] != here.split(".")[:2] and (name != "torchao" or header["flow"] == "pt2e"):
            raise ValueError(f"{path} was saved with {name} {there}, and {here} is installed here: quantize again")
    return header, content


def fill(model: nn.Module, content: bytes, path: Path) -> None:
    """Put the content of a file, which errors name by `path`, into a model that was built as the header says.

    Raises:
        ValueError: the content belongs to another model, or is more than tensors and numbers.
    """
    try:
        found = torch.load(io.BytesIO(content), weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, and nothing of it was executed: {error}") from None
    kept = _kept(model) if any(name.endswith("=") for name in found) else {}
    _put(kept, {name: found.pop(name) for name in [*found] if name.endswith("=")})
    nodes = calls(model) if any(name.endswith("()") for name in found) else {}  # files of FX had none once
    here, there = (
        {name: tree_map(_form, value) for name, value in c.items()} for c in (_contents(model, nodes), found)
    )
    if differ := [name for name in here | there if here.get(name) != there.get(name)]:
        raise ValueError(f"{path} holds another model than float_model: they differ in {', '.join(differ[:3])}")
    state = model.state_dict()  # with the versions of its modules
    state.update({name: _packed(found[name]) for name in state})
    if nodes:
        state._metadata[""]["numbers"] = {name: found[name] for name in nodes}
    model.load_state_dict(state)


def _seal(body: bytes) -> bytes:
    return _FORMAT + hashlib.sha256(body).hexdigest().encode()


def _versions() -> dict[str, str]:
    return {"qtutor": qtutor.__version__} | {name: importlib.metadata.version(name) for name in ("torch", "torchao")}


def _kept(model: nn.Module) -> dict[str, list[Tensor]]:
    """The tensors that a state dict leaves out, by names that nothing in one can have."""
    kept: dict[str, list[Tensor]] = {}
    for path, module in model.named_modules():
        attributes = {name: value for name, value in vars(module).items() if name not in _OWN}
        attributes |= {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        kept |= {
            f"{path}.{name}".removeprefix("."): tensors_in(value, records=False) for name, value in attributes.items()
        }
    for name, modules in hidden_in(model).items():
        kept[name] += [each for module in modules for each in (*module.parameters(), *module.buffers())]
    return {f"{name}=": tensors for name, tensors in kept.items() if tensors}


def _put(here: dict[str, list[Tensor]], there: dict[str, list[Tensor]]) -> None:
    """Fill tensors, in place; those that have other shapes, as what the last run left behind may, stay and are told."""
    alike = {name for name in here if [*map(_form, here[name])] == [*map(_form, there.get(name, ()))]}
    for name in alike:
        for tensor, stored in zip(here[name], there[name], strict=True):
            tensor.data = stored
    if differ := [name.removesuffix("=") for name in (here.keys() & there.keys()) - alike]:
        tell(f"load leaves {', '.join(differ)} as float_model has it: the file holds tensors of other shapes there")


def _contents(model: nn.Module, nodes: dict[str, Node]) -> dict[str, Any]:
    state = {name: tree_map(_unpacked, value) for name, value in model.state_dict().items()}
    return state | {name: numbers_of(node) for name, node in nodes.items()}


def _unpacked(value: Any) -> Any:
    if isinstance(value, torch.ScriptObject):
        return {value._type().name(): tree_map(_unpacked, value.__getstate__()[0])}
    return value


def _packed(value: Any) -> Any:
    match value:
        case {"LinearPackedParamsBase": (weight, bias)}:
            return torch.ops.quantized.linear_prepack(weight, bias)
        case {"CellParamsBase": (_, biases, _, (reduce_range,), weights)}:
            weights = map(_packed, weights)
            return torch.ops.quantized.make_quantized_cell_params_dynamic(*weights, *biases, bool(reduce_range))
    return value


def _form(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)
