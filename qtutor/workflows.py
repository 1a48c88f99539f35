"""PyTorch's own quantization flows behind thin, stable names.

The only module that imports torch.ao or torchao, and only inside the functions that need them. Every
function returns a new model and leaves the given one, and PyTorch's quantized engine, as they were.

    flow        needs of the model                              runs on
    "eager"     QuantStub, DeQuantStub and FloatFunctional      the kernels of a quantized engine
    "fx"        a forward that torch.fx can trace               the kernels of a quantized engine
    "pt2e"      a forward that torch.export can capture,        Inductor; without `compile=True` as
                no ReLU or convolution that is called twice     a float simulation of the integers
"""

import copy
import dataclasses
import hashlib
import importlib
import importlib.metadata
import io
import itertools
import json
import logging
import os
import platform
import sysconfig
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import qtutor
from qtutor.affine import grid
from qtutor.fusion import find_fusions
from qtutor.machine import choose_engine
from qtutor.storage import write_atomically

REPLACEMENTS = {
    "torch.ao.quantization.quantize_dynamic": "torchao.quantization.quantize_",
    "torch.ao.quantization.default_dynamic_qconfig": "torchao.quantization.Int8DynamicActivationInt8WeightConfig",
    "torch.ao.quantization.get_default_qconfig_mapping": (
        "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer.get_default_x86_inductor_quantization_config"
    ),
    "torch.ao.quantization.QConfigMapping": (
        "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer.X86InductorQuantizer"
    ),
    "torch.ao.quantization.prepare": "torchao.quantization.pt2e.quantize_pt2e.prepare_pt2e",
    "torch.ao.quantization.quantize_fx.prepare_fx": "torchao.quantization.pt2e.quantize_pt2e.prepare_pt2e",
    "torch.ao.quantization.prepare_qat": "torchao.quantization.pt2e.quantize_pt2e.prepare_qat_pt2e",
    "torch.ao.quantization.quantize_fx.prepare_qat_fx": "torchao.quantization.pt2e.quantize_pt2e.prepare_qat_pt2e",
    "torch.ao.quantization.convert": "torchao.quantization.pt2e.quantize_pt2e.convert_pt2e",
    "torch.ao.quantization.quantize_fx.convert_fx": "torchao.quantization.pt2e.quantize_pt2e.convert_pt2e",
    "torch.ao.quantization.fuse_modules": "torchao.quantization.pt2e.quantize_pt2e.prepare_pt2e",
    "torch.ao.quantization.MinMaxObserver": "torchao.quantization.pt2e.MinMaxObserver",
    "torch.ao.quantization.HistogramObserver": "torchao.quantization.pt2e.HistogramObserver",
    "torch.ao.quantization.FakeQuantize": "torchao.quantization.pt2e.FakeQuantize",
}
"""What PyTorch retires, and what does its work in torchao (prepare_pt2e also fuses)."""

_NOTICES = (
    "torch.ao.quantization is deprecated",
    "Please use quant_min and quant_max to specify the range for observers",
    "torch.quantize_per_tensor, torch.quantize_per_channel and other quantized tensor creation functions",
    "TypedStorage is deprecated",
    "`torch.jit.script",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "The input of \\w+ is not quantized, skip annotate",
)
"""How the warnings begin that PyTorch raises about its own plans, not about what the learner did."""

_FLOWS = ("eager", "fx", "pt2e")
_INDUCTOR = {"x86_inductor": "X86", "arm_inductor": "Arm"}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_RECURRENT = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)
_FORMAT = b"qtutor model 1 "


class Unavailable(RuntimeError):
    """This computer, or the installed PyTorch, lacks what a flow needs; the message says what, in a sentence."""


def hide_torch_notices() -> None:
    """Stop PyTorch from repeating, for the rest of the session, that it plans to retire these flows.

    The lessons say it once, in a sentence. Every other warning still shows.
    """
    for notice in _NOTICES:
        warnings.filterwarnings("ignore", message=f"\\s*{notice}")


def quantize_static(
    model: nn.Module,
    calibration_data: Iterable,
    flow: str = "fx",
    *,
    engine: str | None = None,
    keep_float: Iterable[str] = (),
    compile: bool = False,
) -> nn.Module:
    """Quantize weights and activations to INT8, with activation ranges from `calibration_data`.

    A model in training mode is quantized as it is in eval mode.

    Args:
        model: float32 on the CPU.
        calibration_data: batches. One is a tensor, or a pair that is always `(inputs, labels)`; a model
            of several inputs takes `((a, b), labels)`, where the labels may be None.
        flow: "eager", "fx" or "pt2e": see the module's table.
        engine: of `torch.backends.quantized.supported_engines`; by default the best for this machine.
            PT2E has its own, "x86_inductor" and "arm_inductor".
        keep_float: names of modules to leave in floating point (not in eager mode).
        compile: lower the PT2E model with Inductor now, for the shapes of the first batch.

    Raises:
        TypeError: `model` or a batch is not of its type.
        ValueError: there is no batch, a batch is empty or not finite, or the flow cannot take the
            model; the message names the layer or line, the reason, and which flow could take it.
        Unavailable: no torch.ao, torchao, engine or C++ compiler, where one is needed.
    """
    batches = _batches(calibration_data)
    inputs = next(batches, None)
    if inputs is None:
        raise ValueError(
            "calibration_data holds no batch, and without one every scale would be 1: pass a few batches of "
            "training inputs, and make a new generator if this one is used up"
        )
    recipe = _new_recipe(model, flow, inputs, engine)
    recipe["keep_float"] = [keep_float] if isinstance(keep_float, str) else list(keep_float)
    if unknown := set(recipe["keep_float"]) - dict(model.named_modules()).keys():
        raise ValueError(f"keep_float names no module of the model: {', '.join(sorted(unknown))}")
    if recipe["keep_float"] and flow == "eager":
        raise ValueError(
            "keep_float needs flow='fx' or 'pt2e': in eager mode the model itself puts a DeQuantStub before and a "
            "QuantStub after what stays in floating point"
        )
    if compile and flow != "pt2e":
        raise ValueError(f"compile=True is for flow='pt2e': the kernels of flow={flow!r} are compiled already")
    with _quiet(), _using(recipe["engine"]):
        prepared = _prepare(model, recipe, inputs)
        with torch.no_grad():
            for batch in itertools.chain([inputs], batches):
                prepared(*batch)
        quantized = _convert(prepared, recipe, model, inputs)
        return _Compiled(quantized, inputs) if compile else quantized


def quantize_dynamic(model: nn.Module, *, engine: str | None = None) -> nn.Module:
    """Quantize the weights of linear and recurrent layers to INT8; activations get a range at each call.

    Raises:
        ValueError: the model has no such layer, so nothing would shrink.
        Unavailable: no torch.ao or no engine.
    """
    recipe = _new_recipe(model, "dynamic", (), engine)
    kinds = (nn.Linear, *_RECURRENT)
    if not any(type(module) in kinds for module in model.modules()):
        found = Counter(_kind(m) for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
        raise ValueError(
            f"nothing would shrink: quantize_dynamic takes {', '.join(kind.__name__ for kind in kinds)}, and this "
            f"model has {', '.join(f'{n} {kind}' for kind, n in found.items()) or 'no layer with weights'}. "
            "quantize_static takes convolutions"
        )
    for name, module in model.named_modules():
        if type(module) in (nn.LSTM, nn.GRU) and not (module.bias and module.proj_size == 0):
            raise ValueError(f"{name} ({_kind(module)}) has no bias, or a proj_size: PyTorch has no INT8 kernel for it")
    with _quiet(), _using(recipe["engine"]):
        return _remember(_dynamic(_float_copy(model)), recipe)


def prepare_qat(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    flow: str = "fx",
    bits: int = 8,
    edge_bits: int = 8,
    engine: str | None = None,
) -> nn.Module:
    """Return a model to train, in training mode, that rounds weights and activations as INT8 will.

    Narrower codes are still stored in 8 bits: fewer bits show what they cost, and save nothing.

    Args:
        example_input: what the model takes, as a batch; a tuple for several inputs.
        bits: width of weights and activations, 2 to 8; each scale stands for 2**bits codes.
        edge_bits: the same for the first and the last layer, which suffer most.

    Raises as `quantize_static`.
    """
    for name, width in (("bits", bits), ("edge_bits", edge_bits)):
        grid(width)
        if width > 8:
            raise ValueError(f"{name} must be from 2 to 8, got {width}: the codes are stored as 8-bit integers")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    _check_inputs(inputs, "example_input")
    recipe = _new_recipe(model, flow, inputs, engine) | {"trained": True, "prepared": True, "bits": bits}
    with _quiet(), _using(recipe["engine"]):
        if edge_bits != bits:
            layers = [*_calls(model, inputs, (*_CONVOLUTIONS, nn.Linear))]
            recipe["edges"] = dict.fromkeys([*layers[:1], *layers[-1:]], edge_bits)
        return _remember(_prepare(model, recipe, inputs), recipe)


def convert(model: nn.Module, *, compile: bool = False) -> nn.Module:
    """Turn what `prepare_qat` gave, once trained, into an INT8 model; the given one can train on.

    Raises:
        ValueError: `prepare_qat` did not make it, or it has seen no data.
        Unavailable: as in `quantize_static`.
    """
    recipe = _recipe(model)
    if not recipe.get("prepared"):
        raise ValueError(f"convert needs a model that prepare_qat made, got {_kind(model)}")
    if compile and recipe["flow"] != "pt2e":
        raise ValueError(f"compile=True is for flow='pt2e', and this model was prepared with {recipe['flow']!r}")
    with _quiet(), _using(recipe["engine"]):
        done = {name: value for name, value in recipe.items() if name != "prepared"}
        quantized = _convert(copy.deepcopy(model), done, model, _zeros(recipe))
        return _Compiled(quantized, _zeros(recipe)) if compile else quantized


def save(model: nn.Module, path: Path | str) -> None:
    """Write a quantized model, all tensors and no code, so that `load` gives it back bit for bit.

    The second line of the file says in JSON what is inside: flow, engine, versions.

    Raises:
        ValueError: no function of this module made the model, or it is not converted yet.
        storage.Unwritable: the file cannot be written.
    """
    model = model.model if isinstance(model, _Compiled) else model
    recipe = _recipe(model)
    if not recipe or recipe.get("prepared"):
        fix = "convert it first" if recipe else "quantize it with qtutor.workflows first"
        raise ValueError(f"save takes a quantized model, got {_kind(model)}: {fix}")
    content = io.BytesIO()
    with _quiet():
        torch.save({"state": _state(model), "numbers": [_numbers(node) for node in _codecs(model)]}, content)
    body = json.dumps(recipe | _versions()).encode() + b"\n" + content.getvalue()
    write_atomically(Path(path), _FORMAT + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def load(path: Path | str, float_model: nn.Module, *, compile: bool = False) -> nn.Module:
    """Read what `save` wrote, into a quantized copy of `float_model`; nothing in the file is executed.

    Args:
        float_model: the model before quantization; its weights do not matter.
        compile: lower a PT2E model, as in `quantize_static`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, of another format, version or engine, or of another model.
        Unavailable: as in `quantize_static`.
    """
    recipe, content = _read(Path(path))
    inputs = _zeros(recipe)
    with _quiet(), _using(recipe["engine"]):
        if recipe["flow"] == "dynamic":
            model = _remember(_dynamic(_float_copy(float_model)), recipe)
        else:
            prepared = _prepare(float_model, recipe, inputs)
            if recipe["flow"] == "pt2e":  # the shapes of its scales come from a run
                with torch.no_grad():
                    prepared.eval()(*inputs)
            model = _convert(prepared, recipe)
        try:
            content = torch.load(io.BytesIO(content), weights_only=True)
        except UnpicklingError as error:
            raise ValueError(f"{path} holds more than tensors, and nothing of it was executed: {error}") from None
        state, codecs = content["state"], _codecs(model)
        found, expected = ({n: _shapes(v) for n, v in s.items()} for s in (state, _state(model)))
        differ = [name for name in expected | found if expected.get(name) != found.get(name)]
        if differ or len(codecs) != len(content["numbers"]):
            raise ValueError(f"{path} holds another model than float_model: they differ in {', '.join(differ[:3])}")
        merged = model.state_dict()  # with the versions of its modules
        merged.update({name: _packed(value) for name, value in state.items()})
        model.load_state_dict(merged)
        for node, numbers in zip(codecs, map(iter, content["numbers"]), strict=True):
            node.args = tuple(next(numbers) if isinstance(arg, (int, float)) else arg for arg in node.args)
        if codecs:
            model.recompile()
        return _Compiled(model, inputs) if compile and recipe["flow"] == "pt2e" else model


class _Compiled(nn.Module):
    """A PT2E model that Inductor lowers, anew for each shape of the inputs; `model` is the one it came from."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]):
        super().__init__()
        self.model = model
        self.__dict__["_run"] = torch.compile(model, dynamic=False)  # not a second copy in the state dict
        try:
            self(*inputs)
        except Exception as error:
            if not any(name in f"{error!r}" for name in ("InvalidCxxCompiler", "CppCompileError")):
                raise
            raise Unavailable(
                "No working C++ compiler was found, and Inductor needs one: install g++ with Python's headers "
                "(or name another in CXX), or leave compile=False and get the same numbers, slowly."
            ) from error

    def forward(self, *inputs: Tensor) -> Any:
        from torch._inductor import config

        before, config.freezing = config.freezing, True  # without it the weights are not packed for INT8 kernels
        try:
            with torch.no_grad():
                return self._run(*inputs)
        finally:
            config.freezing = before


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        hide_torch_notices()
        warnings.filterwarnings("ignore", message="must run observer before calling")  # _convert names the layers
        warnings.filterwarnings("ignore", message="To copy construct from a tensor", module=r"torch\._inductor")
        yield


@contextmanager
def _using(engine: str) -> Iterator[None]:
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = before if engine in _INDUCTOR else engine
        yield
    finally:
        torch.backends.quantized.engine = before


def _torch_ao() -> ModuleType:
    try:
        importlib.import_module("torch.ao.quantization.quantize_fx")
        return importlib.import_module("torch.ao.quantization")
    except ImportError as error:
        raise Unavailable(
            f"PyTorch {torch.__version__} has no torch.ao.quantization, which eager, FX and dynamic quantization "
            "need: use flow='pt2e', which lives on in torchao."
        ) from error


def _torchao(*names: str) -> list[ModuleType]:
    try:
        with _unlogged("torchao", "torch.utils._pytree"):  # about missing kernels for GPUs
            return [importlib.import_module(f"torchao.quantization.pt2e{name}") for name in names]
    except ImportError as error:
        raise Unavailable(f"flow='pt2e' needs torchao, which cannot be imported here ({error}).") from error


@contextmanager
def _unlogged(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    try:
        for logger in loggers:
            logger.addFilter(_drop)
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_drop)


def _drop(_: logging.LogRecord) -> bool:
    return False


def _batches(data: Iterable) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of each batch, checked, without the labels."""
    if isinstance(data, (Tensor, dict)) or (isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor)):
        raise TypeError(f"calibration_data is an iterable of batches, got one batch ({_kind(data)}): put it in a list")
    for number, batch in enumerate(data):
        if isinstance(batch, (tuple, list)):
            if len(batch) not in (1, 2):
                raise TypeError(
                    f"batch {number} of calibration_data has {len(batch)} parts: a pair is (inputs, labels), and "
                    "several inputs are ((a, b), labels), where the labels may be None"
                )
            batch = batch[0]
        inputs = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        _check_inputs(inputs, f"batch {number} of calibration_data")
        yield inputs


def _check_inputs(inputs: tuple, name: str) -> None:
    for tensor in inputs:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: an input must be a tensor, got {_kind(tensor)}")
        if tensor.numel() == 0:
            raise ValueError(f"{name}: an input of shape {tuple(tensor.shape)} is empty")
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: an input of shape {tuple(tensor.shape)} holds NaN or infinity")


def _new_recipe(model: nn.Module, flow: str, inputs: tuple[Tensor, ...], engine: str | None) -> dict[str, Any]:
    """What `load` must know to build the same model again; also checks what was asked for."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a torch.nn.Module is needed, got {_kind(model)}")
    if flow not in (*_FLOWS, "dynamic"):
        raise ValueError(f"flow must be one of {', '.join(_FLOWS)}, got {flow!r}")
    engines = _engines(flow)
    if not engines:
        raise Unavailable("This PyTorch has no quantized engine, so INT8 models cannot run: install an official build.")
    if engine not in (None, *engines):
        raise ValueError(f"flow={flow!r} has the engines {', '.join(engines)} here, got {engine!r}")
    if engine is None and "fbgemm" in engines and any(isinstance(m, _TRANSPOSED) for m in model.modules()):
        engine = "fbgemm"  # the x86 engine of PyTorch 2.13 gives wrong results where channels in and out differ
    recipe = {"flow": flow, "engine": engine or engines[0], "keep_float": [], "trained": False, "bits": 8, "edges": {}}
    return recipe | {"inputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in inputs]}


def _engines(flow: str) -> list[str]:
    """The engines for a flow on this machine, the best first."""
    if flow == "pt2e":
        on_arm = platform.machine().lower().startswith(("arm", "aarch"))
        return ["arm_inductor" if on_arm else "x86_inductor"]
    engines = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    best = choose_engine(engines, platform.machine())
    return sorted(engines, key=lambda engine: engine != best) if best else []


def _float_copy(model: nn.Module, training: bool = False) -> nn.Module:
    if _recipe(model):
        raise ValueError(f"{_kind(model)} is quantized or prepared already: pass the floating-point model")
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            kind = f"{parameter.dtype} on {parameter.device}"
            raise ValueError(f"{name} is {kind}: PyTorch quantizes float32 on the CPU, so pass model.cpu().float()")
    return copy.deepcopy(model).train(training)


def _prepare(model: nn.Module, recipe: dict, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy of the model with observers, or with fake-quantizers if it is to be trained."""
    prepare = {"eager": _prepare_eager, "fx": _prepare_fx, "pt2e": _prepare_pt2e}[recipe["flow"]]
    return prepare(model, _float_copy(model, recipe["trained"]), recipe, inputs)


def _prepare_eager(given: nn.Module, model: nn.Module, recipe: dict, inputs: tuple[Tensor, ...]) -> nn.Module:
    ao = _torch_ao()
    stubs = (ao.QuantStub, ao.DeQuantStub)
    if missing := [s.__name__ for s in stubs if not any(isinstance(m, s) for m in model.modules())]:
        raise ValueError(
            f"flow='eager' needs a model that says where integers begin and end, and {_kind(model)} has no "
            f"{' and no '.join(missing)}: add `self.quant = QuantStub()` and `self.dequant = DeQuantStub()` of "
            f"torch.ao.quantization and call them in forward. {_alternatives(given, inputs, 'eager')}"
        )
    if "fused" not in recipe:
        recipe["fused"] = _fusable(given, inputs)
    prepare, fuse = (ao.prepare_qat, ao.fuse_modules_qat) if recipe["trained"] else (ao.prepare, ao.fuse_modules)
    if recipe["fused"]:
        model = fuse(model, recipe["fused"], inplace=True)
    mapping, edges = _qconfigs(ao, recipe)
    qconfigs = {kind: mapping.object_type_qconfigs.get(kind, mapping.global_qconfig) for kind in _CONVOLUTIONS}
    ao.propagate_qconfig_(model, {"": mapping.global_qconfig} | qconfigs | edges)
    return prepare(model, inplace=True)


def _fusable(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[list[str]]:
    """The modules to fuse in eager mode; none if the model cannot be traced, which quantizes without."""
    methods = importlib.import_module("torch.ao.quantization.fuser_method_mappings")
    model = _float_copy(model)
    try:
        fusions = [fusion for fusion in find_fusions(model) if fusion.accepted]
    except ValueError:
        return []
    calls, groups = _calls(model, inputs), []
    for fusion in fusions:
        # A functional ReLU is no module, and one that is called elsewhere too would be lost there.
        names = list(itertools.takewhile(lambda name: calls[name] == 1, fusion.names))
        while len(names) > 1:
            try:
                methods.get_fuser_method(tuple(type(model.get_submodule(name)) for name in names))
                groups.append(names)
                break
            except (AssertionError, NotImplementedError):
                names.pop()
    return groups


def _prepare_fx(given: nn.Module, model: nn.Module, recipe: dict, inputs: tuple[Tensor, ...]) -> nn.Module:
    ao = _torch_ao()
    prepare = ao.quantize_fx.prepare_qat_fx if recipe["trained"] else ao.quantize_fx.prepare_fx
    mapping, edges = _qconfigs(ao, recipe)
    for name, qconfig in (edges | dict.fromkeys(recipe["keep_float"])).items():
        mapping.set_module_name(name, qconfig)
    try:
        return prepare(model, mapping, inputs)
    except Exception as error:
        _refuse(given, inputs, "fx", error)


def _qconfigs(ao: ModuleType, recipe: dict) -> tuple[Any, dict[str, Any]]:
    """PyTorch's own qconfigs for the engine, narrowed to the bits; and those of the edges."""
    if not recipe["trained"]:
        return ao.get_default_qconfig_mapping(recipe["engine"]), {}

    def narrow(qconfig: Any, bits: int) -> Any:
        if bits == 8:
            return qconfig
        (low, high), (_, most) = grid(bits), grid(bits, signed=False)
        activation = qconfig.activation.with_args(quant_min=0, quant_max=most, reduce_range=False)
        return ao.QConfig(activation, qconfig.weight.with_args(quant_min=low, quant_max=high))

    mapping = ao.get_default_qat_qconfig_mapping(recipe["engine"])
    edges = {name: narrow(mapping.global_qconfig, bits) for name, bits in recipe["edges"].items()}
    mapping.set_global(narrow(mapping.global_qconfig, recipe["bits"]))
    for kind, qconfig in [*mapping.object_type_qconfigs.items()]:
        if kind in (*_CONVOLUTIONS, nn.Linear):
            mapping.set_object_type(kind, narrow(qconfig, recipe["bits"]))
    return mapping, edges


def _prepare_pt2e(given: nn.Module, model: nn.Module, recipe: dict, inputs: tuple[Tensor, ...]) -> nn.Module:
    kind = _INDUCTOR[recipe["engine"]]
    pt2e, flow, home = _torchao("", ".quantize_pt2e", f".quantizer.{kind.lower()}_inductor_quantizer")
    prepare = flow.prepare_qat_pt2e if recipe["trained"] else flow.prepare_pt2e
    default = getattr(home, f"get_default_{kind.lower()}_inductor_quantization_config")(is_qat=recipe["trained"])

    def narrow(bits: int) -> Any:
        if bits == 8:
            return default
        (low, high), (_, most) = grid(bits), grid(bits, signed=False)
        activation = dataclasses.replace(default.input_activation, quant_max=most)
        weight = dataclasses.replace(default.weight, quant_min=low, quant_max=high)
        return dataclasses.replace(default, input_activation=activation, output_activation=activation, weight=weight)

    quantizer = getattr(home, f"{kind}InductorQuantizer")().set_global(narrow(recipe["bits"]))
    for name, bits in recipe["edges"].items():
        quantizer.set_module_name_qconfig(name, narrow(bits))
    for name in recipe["keep_float"]:
        quantizer.set_module_name_qconfig(name, None)
    try:
        prepared = prepare(_export(model, inputs), quantizer)
    except Exception as error:
        calls = _calls(given, inputs, (nn.ReLU, *_CONVOLUTIONS))
        _refuse(given, inputs, "pt2e", error, [f"{name} ({n} times)" for name, n in calls.items() if n > 1])

    def train(mode: bool = True) -> nn.Module:
        (pt2e.move_exported_model_to_train if mode else pt2e.move_exported_model_to_eval)(prepared)
        return prepared

    prepared.train, prepared.eval = train, lambda: train(False)  # the captured ones refuse
    return prepared


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Capture the model for any batch size: export takes a size of 1 for a constant, so one row becomes two."""
    if all(x.dim() and len(x) == 1 for x in inputs):
        inputs = tuple(torch.cat([x, x]) for x in inputs)
    else:
        inputs = tuple(x.clone() for x in inputs)  # two inputs may be one tensor, and its size is noted by identity
    shapes = torch.export.ShapesCollection()
    for x in inputs:
        if x.dim():
            shapes[x] = {0: torch.export.Dim.AUTO}
    with _unlogged("torch.fx.experimental.symbolic_shapes"), redirect_stderr(io.StringIO()):  # the graph, on failure
        return torch.export.export(model, inputs, dynamic_shapes=shapes).module()


def _calls(model: nn.Module, inputs: tuple[Tensor, ...], kinds: tuple[type, ...] = (nn.Module,)) -> Counter[str]:
    """How often `forward` calls each module of some kinds, in the order of the first calls."""
    calls: Counter[str] = Counter()
    model = _float_copy(model)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.no_grad():
        model(*inputs)
    return calls


def _convert(
    prepared: nn.Module, recipe: dict, given: nn.Module | None = None, inputs: tuple[Tensor, ...] = ()
) -> nn.Module:
    """Turn a prepared model, which is used up, into a quantized one; checked if `given` says what it comes from."""
    observers = {n: m for n, m in prepared.named_modules() if isinstance(getattr(m, "min_val", None), Tensor)}
    blind = [n for n, m in observers.items() if not (m.min_val.numel() and m.min_val.isfinite().all())]
    if given is not None and blind and len(blind) == len(observers):
        raise ValueError("the prepared model has seen no data, so every scale would be 1: train it before convert")
    if recipe["flow"] == "pt2e":
        pt2e, quantize_pt2e = _torchao("", ".quantize_pt2e")
        model = quantize_pt2e.convert_pt2e(pt2e.move_exported_model_to_eval(prepared))
        used = {node.target for node in model.graph.nodes if node.op == "get_attr"}
        for name, _ in [*model.named_parameters(remove_duplicate=False)]:  # float weights that INT8 ones replaced
            if name not in used:
                owner, _, attribute = name.rpartition(".")
                delattr(model.get_submodule(owner), attribute)
        for name in ("train", "eval"):  # which refuse, and there is nothing left that they would change
            vars(model).pop(name, None)
        return _remember(model, recipe)
    ao = _torch_ao()
    if recipe["flow"] == "fx":
        model = ao.quantize_fx.convert_fx(prepared.eval())
    else:
        model = ao.convert(prepared.eval(), inplace=True)
        if given is not None:
            _run_eager(given, model, inputs)
            if layers := [n.partition(".activation_post_process")[0] for n in blind if ".activation_post" in n]:
                warnings.warn(f"no batch reached {', '.join(layers)}, which keep a scale of 1", stacklevel=3)
    if recipe["bits"] < 8 or recipe["edges"]:
        _clip_codes(model, recipe)
    return _remember(model, recipe)


def _clip_codes(model: nn.Module, recipe: dict) -> None:
    """Keep an eager or FX model on the narrow grids that it was trained on: convert and its kernels clip at 8 bits."""
    bits = {name: recipe["edges"].get(name, recipe["bits"]) for name, _ in model.named_modules()}
    for name, module in model.named_modules():
        if not hasattr(module, "scale"):
            continue
        low, high = grid(bits[name])
        if hasattr(module, "set_weight_bias"):  # by 7.5 steps, a weight at the end of its range, convert gives code 8
            weight, bias = module._weight_bias()
            codes = weight.int_repr().clamp(low, high)
            if weight.qscheme() == torch.per_tensor_affine:
                weight = torch._make_per_tensor_quantized_tensor(codes, weight.q_scale(), weight.q_zero_point())
            else:
                channels = (
                    weight.q_per_channel_scales(),
                    weight.q_per_channel_zero_points(),
                    weight.q_per_channel_axis(),
                )
                weight = torch._make_per_channel_quantized_tensor(codes, *channels)
            module.set_weight_bias(weight, bias)
        if not isinstance(model, GraphModule):
            source = getattr(module, "activation_post_process", module)  # through which a QFunctional passes its result
            source.register_forward_hook(lambda m, inputs, output, bits=bits[name]: _clip_output(output, bits))
    if not isinstance(model, GraphModule):
        return
    for node in [*model.graph.nodes]:
        if node.target is torch.quantize_per_tensor:  # for the layer that comes next
            width = bits.get(next(iter(node.users)).target, recipe["bits"])
        elif node.op == "call_module" and hasattr(model.get_submodule(node.target), "scale"):
            width = bits[node.target]
        elif str(node.target).startswith("quantized."):
            width = recipe["bits"]
        else:
            continue
        with model.graph.inserting_after(node):
            clipped = model.graph.call_function(_clip_output, (node, width))
        node.replace_all_uses_with(clipped, delete_user_cb=lambda user, clipped=clipped: user is not clipped)
    model.recompile()


def _clip_output(output: Tensor, bits: int) -> Tensor:
    _, most = grid(bits, signed=False)
    return output.clamp(max=(most - output.q_zero_point()) * output.q_scale()) if bits < 8 else output


def _dynamic(model: nn.Module) -> nn.Module:
    return _torch_ao().quantize_dynamic(model, {nn.Linear, *_RECURRENT}, dtype=torch.qint8, inplace=True)


def _run_eager(given: nn.Module, quantized: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Run it once: eager mode finds out only now what the stubs do not cover."""
    try:
        with torch.no_grad():
            quantized(*inputs)
    except (RuntimeError, NotImplementedError) as error:
        if "'quantized::" in str(error):
            reason = "it gets a floating-point tensor: call a QuantStub on what comes in"
        else:
            reason = (
                "it has no kernel for quantized tensors: a residual add, a product or a cat needs a FloatFunctional of "
                "torch.ao.nn.quantized (self.add.add(a, b)), anything else a DeQuantStub before it"
            )
        modules = {id(module): name for name, module in quantized.named_modules()}
        frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
        called = [modules[id(f["self"])] for f in frames if id(f.get("self")) in modules]
        raise ValueError(
            f"flow='eager' cannot run {called[-1] if called and called[-1] else 'forward'} of the quantized "
            f"{_kind(given)}{_where(error)}: {reason}. {_alternatives(given, inputs, 'eager')}"
        ) from error


def _refuse(given: nn.Module, inputs: tuple, flow: str, error: Exception, reused: Iterable[str] = ()) -> NoReturn:
    reason = f"{_where(error)}: {_kind(error)}: {str(error).strip().splitlines()[0]}" if str(error) else ""
    if reused:
        reason = f": it calls {', '.join(reused)} more than once. Give each call a module of its own"
    other = _alternatives(given, inputs, flow)
    raise ValueError(f"flow={flow!r} cannot take {_kind(given)}{reason}. {other}") from error


def _alternatives(model: nn.Module, inputs: tuple[Tensor, ...], refused: str) -> str:
    """Which of the other flows can at least capture the model, found out by trying."""
    able = []
    for flow, capture in (("fx", lambda m: torch.fx.symbolic_trace(m)), ("pt2e", lambda m: _export(m, inputs))):
        try:
            if flow != refused and capture(copy.deepcopy(model).eval()):
                able.append(f"flow={flow!r}")
        except Exception:
            continue
    if able:
        return f"{' or '.join(able)} can take it as it is"
    return "flow='eager' could, once the model calls stubs itself" if refused != "eager" else "No other flow takes it"


def _where(error: BaseException) -> str:
    """The innermost line that is neither PyTorch's nor Python's."""
    skipped = (os.path.dirname(torch.__file__), sysconfig.get_path("stdlib"), __file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.line and "torchao" not in f.filename]
    frames = [f for f in frames if not f.filename.startswith(skipped)]
    return f" at {frames[-1].filename}:{frames[-1].lineno}: `{frames[-1].line}`" if frames else ""


def _recipe(model: nn.Module) -> dict[str, Any]:
    model = model.model if isinstance(model, _Compiled) else model
    return model.meta.get("qtutor", {}) if isinstance(model, GraphModule) else vars(model).get("_qtutor", {})


def _remember(model: nn.Module, recipe: dict[str, Any]) -> nn.Module:
    if isinstance(model, GraphModule):  # copying one keeps this and no other attribute
        model.meta["qtutor"] = recipe
    else:
        model._qtutor = recipe
    return model


def _zeros(recipe: dict) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in recipe["inputs"])


def _codecs(model: nn.Module) -> list[torch.fx.Node]:
    """The nodes of a PT2E graph whose scales and zero points are numbers in its code."""
    nodes = model.graph.nodes if _recipe(model)["flow"] == "pt2e" else ()
    return [node for node in nodes if str(node.target).startswith("quantized_decomposed.")]


def _numbers(node: torch.fx.Node) -> list[int | float]:
    return [arg for arg in node.args if isinstance(arg, (int, float))]


def _state(model: nn.Module) -> dict[str, Any]:
    return {name: _unpacked(value) for name, value in model.state_dict().items()}


def _unpacked(value: Any) -> Any:
    """Recurrent layers keep objects of C++ in their state: take the tensors out."""
    if isinstance(value, torch.ScriptObject):
        return {value._type().name(): _unpacked(value.__getstate__()[0])}
    return type(value)(map(_unpacked, value)) if isinstance(value, (tuple, list)) else value


def _packed(value: Any) -> Any:
    match value:
        case {"LinearPackedParamsBase": (weight, bias)}:
            return torch.ops.quantized.linear_prepack(weight, bias)
        case {"CellParamsBase": (_, biases, _, (reduce_range,), weights)}:
            weights = map(_packed, weights)
            return torch.ops.quantized.make_quantized_cell_params_dynamic(*weights, *biases, bool(reduce_range))
    return value


def _shapes(value: Any) -> Any:
    if isinstance(value, (tuple, list, dict)):
        return [_shapes(part) for part in (value.values() if isinstance(value, dict) else value)]
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


def _versions() -> dict[str, str]:
    return {"qtutor": qtutor.__version__} | {name: importlib.metadata.version(name) for name in ("torch", "torchao")}


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    seal, _, body = path.read_bytes().partition(b"\n")
    if not seal.startswith(_FORMAT[:-2]):
        raise ValueError(f"{path} is not a model that qtutor saved")
    if not seal.startswith(_FORMAT):
        raise ValueError(f"{path} has a format that qtutor {qtutor.__version__} does not know")
    if seal != _FORMAT + hashlib.sha256(body).hexdigest().encode():
        raise ValueError(f"{path} is damaged: save the model again")
    header, _, content = body.partition(b"\n")
    recipe = json.loads(header)
    for name, here in _versions().items():
        there = recipe.pop(name)
        if there.split(".")[:2] != here.split(".")[:2] and not (name == "torchao" and recipe["flow"] != "pt2e"):
            raise ValueError(f"{path} was saved with {name} {there}, and {here} is installed here: quantize again")
    if recipe["engine"] not in _engines(recipe["flow"]):
        raise ValueError(
            f"{path} is for the engine {recipe['engine']}, and this machine has {', '.join(_engines(recipe['flow']))}"
        )
    return recipe, content


def _kind(value: object) -> str:
    return type(value).__name__
