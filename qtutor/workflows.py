"""PyTorch's own quantization flows behind thin, stable names.

The only module that imports torch.ao or torchao, and only inside the functions that need them. Every
function returns a new model and leaves the given one, and PyTorch's quantized engine, as they were.

    flow        needs of the model                              runs on
    "eager"     QuantStub, DeQuantStub and FloatFunctional      the kernels of a quantized engine
    "fx"        a forward that torch.fx can trace               the kernels of a quantized engine
    "pt2e"      a forward that torch.export can capture         Inductor; without `compile=True` as
                                                                a float simulation of the integers
"""

import copy
import importlib
import inspect
import itertools
import logging
import platform
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from qtutor import capture, saved
from qtutor.affine import grid
from qtutor.batches import check_inputs, inputs_of
from qtutor.fusion import find_fusions
from qtutor.machine import choose_engine, describe
from qtutor.models.copying import copy_model
from qtutor.models.operators import Trait, target_of, traits
from qtutor.narrow import (
    clip_codes,
    keep_trained_scales,
    narrow_config,
    narrow_qconfig,
    reduced_qconfig,
    trained_config,
    trained_qconfig,
)

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvNd

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
    "`torch.jit.",
    "You are using the legacy TorchScript-based ONNX export",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "The input of \\w+ is not quantized, skip annotate",
    "\\w+ does not implement _stable_hash_for_caching",
)
"""How the warnings begin that PyTorch raises about its own plans, not about what the learner did."""

_LOGGERS = {"torchao": "Failed to load", "torch.utils._pytree": "is an Enum subclass"}
"""Who logs when torchao is imported, and what: that kernels for other hardware are missing, and plans again."""

_FLOWS = ("eager", "fx", "pt2e")
_INDUCTOR = {"x86_inductor": "X86", "arm_inductor": "Arm"}
_SATURATING = ("x86", "fbgemm", "onednn", "x86_inductor")
"""Engines that, without an INT8 dot product, add two products of 8-bit codes in 16 bits, which cannot hold them."""

_PATTERNS: dict[tuple, GraphModule] = {}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_DYNAMIC = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)


class Unavailable(RuntimeError):
    """This computer, or the installed PyTorch, lacks what a flow needs; the message says what, in a sentence."""


def hide_torch_notices() -> None:
    """Stop PyTorch from repeating, for the rest of the session, that it plans to retire these flows.

    The lessons say it once, in a sentence. Every other warning still shows.
    """
    for notice in _NOTICES:
        warnings.filterwarnings("ignore", message=f"\\s*{notice}")
    for logger in _LOGGERS:
        logging.getLogger(logger).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return _LOGGERS[record.name] not in record.getMessage()


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
    batches = inputs_of(calibration_data)
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
    _check_compile(compile, flow)
    with _at_work(recipe["engine"]):
        prepared = _prepare(model, recipe, inputs)
        for batch in itertools.chain([inputs], batches):
            _calibrate(prepared, batch, recipe, model)
        return _finish(prepared, recipe, model, inputs, compile)


def quantize_dynamic(model: nn.Module, *, engine: str | None = None) -> nn.Module:
    """Quantize the weights of linear and recurrent layers to INT8; activations get a range at each call.

    One range for the whole input of a layer: a row's result depends on the other rows of its batch.

    Raises:
        ValueError: the model has no such layer, so nothing would shrink, or one that has no INT8 kernel.
        Unavailable: no torch.ao or no engine.
    """
    recipe = _new_recipe(model, "dynamic", (), engine)
    if not any(type(module) in _DYNAMIC for module in model.modules()):
        found = Counter(_kind(m) for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
        raise ValueError(
            f"nothing would shrink: quantize_dynamic takes {', '.join(kind.__name__ for kind in _DYNAMIC)}, and this "
            f"model has {', '.join(f'{n} {kind}' for kind, n in found.items()) or 'no layer with weights'}. "
            "quantize_static takes convolutions"
        )
    for name, module in model.named_modules():
        if type(module) is nn.LSTM and module.proj_size:
            layer = f"{name} ({_kind(module)})" if name else f"this {_kind(module)}"
            raise ValueError(
                f"{layer} has a proj_size, and PyTorch has no INT8 kernel for it in any flow: project with a linear "
                "layer behind an LSTM without proj_size instead"
            )
    with _at_work(recipe["engine"]):
        return _dynamic(model, recipe)


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

    Narrower codes are still stored in 8 bits: fewer bits show what they cost, and save nothing. Activations of
    8 bits keep to 7, as PyTorch's default does, only where two products of 8 bits overflow: on the engines x86
    and fbgemm, where the processor has no INT8 dot product.

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
    check_inputs(inputs, "example_input")
    recipe = _new_recipe(model, flow, inputs, engine) | {"trained": True, "prepared": True, "bits": bits}
    with _at_work(recipe["engine"]):
        if edge_bits != bits:
            layers = [*capture.count_calls(_float_copy(model), inputs, (_ConvNd, nn.Linear))]
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
    _check_compile(compile, recipe["flow"])
    done = {name: value for name, value in recipe.items() if name != "prepared"}
    with _at_work(recipe["engine"]):
        return _finish(copy_model(model), done, model, _zeros(recipe), compile)


def save(model: nn.Module, path: Path | str) -> None:
    """Write a quantized model, tensors and no code, so that `load` gives it back bit for bit.

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
    with _at_work(recipe["engine"]):
        saved.write(Path(path), recipe, model)


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
    recipe, content = saved.read(Path(path))
    recipe = {"reduced": False} | recipe  # files of before every flow noted it
    flow, engine, inputs = recipe["flow"], recipe["engine"], _zeros(recipe)
    if engine not in _engines(flow):
        raise ValueError(f"{path} is for the engine {engine}, and this machine has {', '.join(_engines(flow))}")
    with _at_work(engine):
        if flow == "dynamic":
            model = _dynamic(float_model, recipe)
        else:
            prepared = _prepare(float_model, recipe, inputs)
            if flow == "pt2e":  # the shapes of its scales come from a run
                with torch.no_grad():
                    prepared.eval()(*inputs)
            model = _convert(prepared, recipe)
        saved.fill(model, content, Path(path))
        return _Compiled(model, inputs) if compile and flow == "pt2e" else model


class _Skipped(nn.Identity):
    """An Identity that torch.fx does not see, so that what it stands between can be merged."""


class _FloatPReLU(nn.PReLU):
    """A PReLU that torch.fx leaves in floats: its kernel, as of PyTorch 2.13, scales positive codes too."""


class _Compiled(nn.Module):
    """A PT2E model that Inductor lowers, anew for each shape of the inputs; `model` is the one it came from."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]):
        super().__init__()
        self.model = model
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


@contextmanager
def needs_compiler(otherwise: str = "") -> Iterator[None]:
    """Turn Inductor's error about a missing C++ compiler into `Unavailable`, which says what to do, `otherwise` too."""
    try:
        yield
    except Exception as error:
        if not any(name in f"{error!r}" for name in ("InvalidCxxCompiler", "CppCompileError")):
            raise
        raise Unavailable(
            "No working C++ compiler was found, and Inductor needs one: install g++ with Python's headers "
            f"(or name another in CXX){otherwise}."
        ) from error


@contextmanager
def _at_work(engine: str) -> Iterator[None]:
    """Use a quantized engine, without PyTorch's notices; Inductor is none, and leaves the engine as it is."""
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        hide_torch_notices()
        warnings.filterwarnings("ignore", message="must run observer before calling")  # _finish names the layers
        try:
            torch.backends.quantized.engine = before if engine in _INDUCTOR else engine
            yield
        finally:
            torch.backends.quantized.engine = before


def _torch_ao(instead: str = "use flow='pt2e', which lives on in torchao") -> ModuleType:
    try:
        importlib.import_module("torch.ao.quantization.quantize_fx")
        return importlib.import_module("torch.ao.quantization")
    except ImportError as error:
        raise Unavailable(
            f"PyTorch {torch.__version__} has no torch.ao.quantization, which eager, FX and dynamic quantization "
            f"need: {instead}."
        ) from error


def _torchao(*names: str) -> list[ModuleType]:
    try:
        with capture.unlogged("torchao"), capture.unlogged("torch.utils._pytree"):  # about missing kernels for GPUs
            return [importlib.import_module(f"torchao.quantization.pt2e{name}") for name in names]
    except ImportError as error:
        raise Unavailable(f"flow='pt2e' needs torchao, which cannot be imported here ({error}).") from error


def _check_compile(compile: bool, flow: str) -> None:
    if compile and flow != "pt2e":
        raise ValueError(f"compile=True is for flow='pt2e': the kernels of flow={flow!r} are compiled already")


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
        engine = "fbgemm"
    _check_transposed(model, engine)
    recipe = {"flow": flow, "engine": engine or engines[0], "keep_float": [], "trained": False, "bits": 8, "edges": {}}
    recipe["reduced"] = recipe["engine"] in _SATURATING and not describe().has_int8_dot_product
    return recipe | {"inputs": [[list(x.shape), str(x.dtype).removeprefix("torch.")] for x in inputs]}


def _check_transposed(model: nn.Module, engine: str | None) -> None:
    """Refuse the engines that compute a transposed convolution wrongly, without an error, as of PyTorch 2.13."""
    for name, module in model.named_modules():
        channels_differ = isinstance(module, _TRANSPOSED) and module.in_channels != module.out_channels
        if (engine in ("x86", "onednn") and channels_differ) or (
            engine == "qnnpack" and isinstance(module, nn.ConvTranspose3d)
        ):
            raise ValueError(f"engine={engine!r} computes {name} ({_kind(module)}) wrongly: leave it to choose another")


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
    return copy_model(model).train(training)


def _dynamic(model: nn.Module, recipe: dict) -> nn.Module:
    quantize = _torch_ao("use torchao.quantization.quantize_ instead, for linear layers").quantize_dynamic
    holder = nn.Sequential(_float_copy(model))  # PyTorch replaces the children of a module, never the module itself
    for module in holder.modules():
        if type(module) in _DYNAMIC[1:] and not module.bias:  # the kernels need biases, and zero is one
            for name, weight in [*module.named_parameters(recurse=False)]:
                setattr(module, name.replace("weight", "bias"), nn.Parameter(torch.zeros(len(weight))))
            module.bias = True
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # or it reads the float weights of linear layers that have none now
    return _remember(_swap(quantize, holder, {*_DYNAMIC}, dtype=torch.qint8)[0], recipe)


def _swap(swap: Callable[..., nn.Module], model: nn.Module, *args: Any, **options: Any) -> nn.Module:
    """Let PyTorch swap layers in place; of a layer with several names it would leave all but the first as they were."""
    places = defaultdict(list)
    for owner in model.modules():
        for name, layer in owner._modules.items():
            if layer is not None:
                places[layer].append((owner, name))
    model = swap(model, *args, inplace=True, **options)
    for (first, name), *others in places.values():
        for owner, other in others:
            setattr(owner, other, getattr(first, name))
    return model


def _prepare(given: nn.Module, recipe: dict, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy of the model with observers, or with fake-quantizers if it is to be trained."""
    model = _float_copy(given, recipe["trained"])
    if recipe["flow"] == "eager":
        return _prepare_eager(model, recipe, inputs)
    try:
        return (_prepare_fx if recipe["flow"] == "fx" else _prepare_pt2e)(model, recipe, inputs)
    except Unavailable:
        raise
    except Exception as error:
        raise _refusal(given, inputs, recipe, error) from error


def _refusal(given: nn.Module, inputs: tuple[Tensor, ...], recipe: dict, error: Exception) -> Exception:
    with torch.no_grad():
        _float_copy(given)(*inputs)  # if the model itself cannot take the inputs, its own error says why
    return capture.trace_refusal(given, inputs, recipe["flow"], error)


def _prepare_eager(model: nn.Module, recipe: dict, inputs: tuple[Tensor, ...]) -> nn.Module:
    ao = _torch_ao()
    stubs = (ao.QuantStub, ao.DeQuantStub)
    if missing := [s.__name__ for s in stubs if not any(isinstance(m, s) for m in model.modules())]:
        reason = (
            f"needs a model that says where integers begin and end, and {_kind(model)} has no "
            f"{' and no '.join(missing)}: add `self.quant = QuantStub()` and `self.dequant = DeQuantStub()` of "
            "torch.ao.quantization and call them in forward"
        )
        raise capture.refusal(model, inputs, "eager", reason)
    if "fused" not in recipe:
        recipe["fused"] = _fusable(model, inputs)
    prepare, fuse = (ao.prepare_qat, ao.fuse_modules_qat) if recipe["trained"] else (ao.prepare, ao.fuse_modules)
    if recipe["fused"]:
        model = fuse(model, recipe["fused"], inplace=True)
    mapping = _qconfigs(ao, recipe)
    kinds = {nn.PReLU: None} | {kind: mapping.object_type_qconfigs[kind] for kind in _TRANSPOSED}
    ao.propagate_qconfig_(model, {"": mapping.global_qconfig} | kinds | mapping.module_name_qconfigs)
    return _swap(prepare, model)


def _fusable(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[list[str]]:
    """The modules to fuse in eager mode; none if the model cannot be traced, which quantizes without."""
    from torch.ao.quantization.fuser_method_mappings import get_fuser_method

    model = copy_model(model).eval()
    try:
        fusions = [fusion for fusion in find_fusions(model) if fusion.accepted]
    except ValueError:
        return []
    calls, groups = capture.count_calls(model, inputs), []
    for fusion in fusions:
        # A functional ReLU is no module, and one that is called elsewhere too would be lost there.
        names = [*itertools.takewhile(lambda name: calls[name] == 1, fusion.names)]
        while len(names) > 1:
            try:
                get_fuser_method(tuple(type(model.get_submodule(name)) for name in names))
                groups.append(names)
                break
            except AssertionError:
                names.pop()
    return groups


def _prepare_fx(model: nn.Module, recipe: dict, inputs: tuple[Tensor, ...]) -> nn.Module:
    ao = _torch_ao()
    for module in model.modules():
        if type(module) is nn.Identity:  # as where `fuse` folded a batch norm
            module.__class__ = _Skipped
        elif type(module) is nn.PReLU:
            module.__class__ = _FloatPReLU
    prepare = ao.quantize_fx.prepare_qat_fx if recipe["trained"] else ao.quantize_fx.prepare_fx
    return prepare(model, _qconfigs(ao, recipe), inputs)


def _qconfigs(ao: ModuleType, recipe: dict) -> Any:
    """PyTorch's own qconfig mapping for the engine, narrowed to the bits."""
    get_default = ao.get_default_qat_qconfig_mapping if recipe["trained"] else ao.get_default_qconfig_mapping
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Default qconfig of oneDNN backend with reduce_range of false")  # see below
        mapping = get_default(recipe["engine"])
    if recipe["trained"]:
        mapping.set_global(trained_qconfig(mapping.global_qconfig, ao.FakeQuantize))
    if recipe["reduced"]:
        mapping.set_global(reduced_qconfig(mapping.global_qconfig))
    for name, bits in recipe["edges"].items():
        mapping.set_module_name(name, narrow_qconfig(mapping.global_qconfig, bits))
    for name in recipe["keep_float"]:
        mapping.set_module_name(name, None)
    for kind in _TRANSPOSED:  # whose weights no engine takes per channel, though onednn's mapping says so
        weight = ao.default_weight_fake_quant if recipe["trained"] else ao.default_weight_observer
        mapping.set_object_type(kind, narrow_qconfig(mapping.global_qconfig._replace(weight=weight), recipe["bits"]))
    return mapping.set_global(narrow_qconfig(mapping.global_qconfig, recipe["bits"]))


def _prepare_pt2e(model: nn.Module, recipe: dict, inputs: tuple[Tensor, ...]) -> nn.Module:
    kind = _INDUCTOR[recipe["engine"]]
    pt2e, flow, home = _torchao("", ".quantize_pt2e", f".quantizer.{kind.lower()}_inductor_quantizer")
    prepare = flow.prepare_qat_pt2e if recipe["trained"] else flow.prepare_pt2e
    options = {"is_qat": recipe["trained"]} | ({"reduce_range": True} if recipe["reduced"] else {})
    default = getattr(home, f"get_default_{kind.lower()}_inductor_quantization_config")(**options)
    if recipe["trained"]:
        default = trained_config(default, pt2e.FakeQuantize)
    quantizer = getattr(home, f"{kind}InductorQuantizer")().set_global(narrow_config(default, recipe["bits"]))
    for name, bits in recipe["edges"].items():
        quantizer.set_module_name_qconfig(name, narrow_config(default, bits))
    for name in recipe["keep_float"]:
        quantizer.set_module_name_qconfig(name, None)
    with _few_patterns(recipe["trained"]):
        prepared = prepare(capture.export(model, inputs), quantizer)

    def train(mode: bool = True) -> nn.Module:
        (pt2e.move_exported_model_to_train if mode else pt2e.move_exported_model_to_eval)(prepared)
        return prepared

    prepared.train, prepared.eval = train, lambda: train(False)  # the captured ones refuse
    return prepared


def _calibrate(prepared: nn.Module, batch: tuple[Tensor, ...], recipe: dict, given: nn.Module) -> None:
    with torch.no_grad():
        try:
            prepared(*batch)
        except Exception as error:
            raise _refusal(given, batch, recipe, error) from error


def _finish(
    prepared: nn.Module, recipe: dict, given: nn.Module, inputs: tuple[Tensor, ...], compile: bool
) -> nn.Module:
    """Convert a prepared model, which is used up, and check that it saw data and that it runs."""
    observers = {n: m for n, m in prepared.named_modules() if isinstance(getattr(m, "min_val", None), Tensor)}
    blind = [n for n, m in observers.items() if not (m.min_val.numel() and m.min_val.isfinite().all())]
    if blind and len(blind) == len(observers):
        raise ValueError("the prepared model has seen no data, so every scale would be 1: train it before convert")
    model = _convert(prepared, recipe)
    nodes = model.graph.nodes if recipe["flow"] == "pt2e" and not recipe["keep_float"] else ()
    if nodes and not any("quantize_per" in str(node.target) for node in nodes):
        reason = f"finds nothing to quantize in {_kind(given)}: it takes linear layers and Conv1d and Conv2d"
        raise capture.refusal(given, inputs, "pt2e", reason)
    if recipe["flow"] == "eager":
        try:
            with torch.no_grad():
                model(*inputs)
        except RuntimeError as error:  # only now does eager mode find out what the stubs do not cover
            raise capture.stub_refusal(given, inputs, model, error) from error
        if layers := [n.partition(".activation_post_process")[0] for n in blind if ".activation_post" in n]:
            warnings.warn(f"no batch reached {', '.join(layers)}, which keep a scale of 1", stacklevel=3)
    return _Compiled(model, inputs) if compile else model


def _convert(prepared: nn.Module, recipe: dict) -> nn.Module:
    keep_trained_scales(prepared)
    if recipe["flow"] == "pt2e":
        return _remember(_convert_pt2e(prepared, recipe["trained"]), recipe)
    ao = _torch_ao()
    prepared.eval()
    model = ao.quantize_fx.convert_fx(prepared) if recipe["flow"] == "fx" else _swap(ao.convert, prepared)
    if recipe["engine"] == "qnnpack":
        _straighten(model)
    if recipe["trained"] and (recipe["bits"] < 8 or recipe["edges"] or recipe["reduced"]):
        clip_codes(model, recipe["bits"], recipe["edges"], recipe["reduced"])
    return _remember(model.eval(), recipe)  # conversion makes new modules, in training mode


def _straighten(model: nn.Module) -> None:
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


@contextmanager
def _few_patterns(trained: bool) -> Iterator[None]:
    """Have torchao look only for patterns that can occur, and make each of them once in a process.

    Where a model has a batch norm it looks for 26 patterns of each of four kinds of convolution, and exports every
    one anew: half a minute to a minute, whether or not the model has such a convolution or was trained.
    """
    (qat,) = _torchao(".qat_utils")
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


def _convert_pt2e(prepared: nn.Module, trained: bool) -> nn.Module:
    pt2e, quantize_pt2e = _torchao("", ".quantize_pt2e")
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


def _kind(value: object) -> str:
    return type(value).__name__
