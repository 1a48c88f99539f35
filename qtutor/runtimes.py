"""One trained model in every CPU runtime that is here, each as a callable that `benchmark.compare` takes.

    name                 what runs                                                 needs
    eager FP32           the model as it is                                        nothing more
    channels-last        the same, its images laid out pixel by pixel              nothing more
    BF16                 the same in 16 bits                                       nothing more
    torch.compile        Inductor's float kernels, with frozen weights             a C++ compiler
    FX INT8              PyTorch's INT8 kernels, with no Python between them       torch.ao
    PT2E INT8            Inductor's INT8 kernels                                   torchao, a C++ compiler
    ONNX Runtime FP32    ONNX Runtime, on the exported graph                       the extra `runtimes`
    ONNX Runtime INT8    the same, quantized as its makers advise                  the extra `runtimes`
    OpenVINO FP32        OpenVINO, on the exported graph                           the extra `runtimes`
    OpenVINO INT8        the same, quantized by NNCF                               the extra `runtimes`

A runtime that is not here, or that cannot take the model, still gets an entry: calling it raises an
error that says why and what to do, and so its row in a comparison says it too.

Source: onnxruntime.ai/docs/performance/model-optimizations/quantization.html (pre-process; U8S8 and
7-bit weights on x86); docs.openvino.ai, "Basic Quantization Flow".
"""

import importlib
import importlib.util
import logging
import os
import platform
import shutil
import tempfile
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from qtutor.batches import inputs_of
from qtutor.benchmark import size_bytes
from qtutor.capture import unlogged
from qtutor.machine import describe
from qtutor.models.copying import copy_model
from qtutor.workflows import Unavailable, hide_torch_notices, needs_compiler, quantize_static

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

Batches = Sequence[tuple[Tensor, ...]]

NAMES = (
    "eager FP32",
    "channels-last",
    "BF16",
    "torch.compile",
    "FX INT8",
    "PT2E INT8",
    "ONNX Runtime FP32",
    "ONNX Runtime INT8",
    "OpenVINO FP32",
    "OpenVINO INT8",
)
"""The runtimes, in the order in which `build` gives them."""

_EXTRA = {  # onnx, because PyTorch's exporter reads what it wrote
    "ONNX Runtime FP32": ("onnxruntime", "onnx"),
    "ONNX Runtime INT8": ("onnxruntime", "onnx"),
    "OpenVINO FP32": ("openvino", "onnx"),
    "OpenVINO INT8": ("openvino", "nncf", "onnx"),
}
_NOTICES = (
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed",
    "To copy construct from a tensor",
)
_COMPILED = ("torch.compile", "PT2E INT8")


@dataclass(frozen=True, eq=False)
class Runtime:
    """A model in one runtime: call it with tensors, as you would the model; it returns tensors.

    ONNX Runtime and OpenVINO use as many threads as PyTorch has at the time of the call.

    Attributes:
        name: of `NAMES`.
        run: what a call runs; None where it cannot.
        size_bytes: what the model takes in a file of this runtime; None where there is none.
        missing: why it cannot run here and what to do, or "".
    """

    name: str
    run: Callable[..., Any] | None = None
    size_bytes: int | None = None
    missing: str = ""

    def __call__(self, *inputs: Tensor) -> Any:
        if self.run is None:
            raise Unavailable(self.missing)
        with torch.no_grad():
            return self.run(*inputs)


def missing() -> dict[str, str]:
    """Return which runtimes are not on this computer, each with what to do; builds nothing, so it answers at once."""
    absent = {name: _lacks(name) for name in NAMES}
    return {name: reason for name, reason in absent.items() if reason}


def build(
    model: nn.Module,
    calibration_data: Iterable,
    names: Iterable[str] | None = None,
    *,
    progress: Callable[[str], object] = lambda name: None,
) -> dict[str, Runtime]:
    """Bring a model into each runtime; one that is not here, or fails, gets an entry that says why.

    A model in training mode is taken as it is in eval mode. What compiles does so here, for the shapes
    of the first batch, and again when it meets others.

    Args:
        model: float32 on the CPU; it stays as it was, and the entries that need no change use it itself.
        calibration_data: batches as `workflows.quantize_static` takes them.
        names: of `NAMES`, in the order wanted; all of them if None.
        progress: called with each name before it is built; what it raises ends the building.

    Raises:
        TypeError: `model` is not an `nn.Module`, or these are not batches.
        ValueError: there is no batch, or no runtime of some name.

    Example:
        >>> list(build(nn.Linear(8, 8), [torch.rand(4, 8)], ["eager FP32", "BF16"]))
        ['eager FP32', 'BF16']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"build needs an nn.Module, got {type(model).__name__}")
    names = [names] if isinstance(names, str) else list(NAMES if names is None else names)
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"there is no runtime {', '.join(map(repr, unknown))}: choose from {', '.join(NAMES)}")
    batches = [*inputs_of(calibration_data)]
    if not batches:
        raise ValueError("calibration_data holds no batch: pass a few batches of training inputs")
    if any(module.training for module in model.modules()):
        model = copy_model(model).eval()
    exported = _Exported(model, batches)
    built = {}
    for name in names:
        progress(name)
        reason = _lacks(name)
        if not reason:
            try:
                built[name] = Runtime(name, *_BUILDERS[name](exported))
                continue
            except Exception as error:
                said = str(error).strip().partition("\n")[0]
                reason = (
                    said if isinstance(error, Unavailable) else f"{name} cannot take this model: {said or repr(error)}"
                )
        built[name] = Runtime(name, missing=reason)
    return built


def export_onnx(model: nn.Module, inputs: tuple[Tensor, ...], path: Path | str) -> None:
    """Write a model as ONNX, for any batch size.

    By tracing: the newer exporter needs one more package, and refuses PyTorch's INT8 models.

    Args:
        model: in eval mode, float or quantized by FX.
        inputs: one batch; in the file they are called input0, input1, ...
        path: of the file.
    """
    given = [f"input{i}" for i in range(len(inputs))]
    with torch.no_grad():
        outputs = [f"output{i}" for i in range(len(tree_flatten(model(*inputs))[0]))]
        axes = {name: {0: "batch"} for name in (*given, *outputs)}
        names = {"input_names": given, "output_names": outputs, "dynamic_axes": axes}
        with _no_notices():
            torch.onnx.export(model, inputs, str(path), dynamo=False, **names)


def quantize_onnx(path: Path | str, quantized: Path | str, batches: Batches, *, advised: bool = True) -> None:
    """Quantize an ONNX model with ONNX Runtime's own tools, weights per channel, calibrated by min-max.

    Args:
        path: the float model, from `export_onnx`.
        quantized: where to write the INT8 model.
        batches: to calibrate with; each the inputs of one call.
        advised: as its makers advise: pre-process first, which makes each bias a constant that can be
            folded into an integer kernel; on x86 unsigned activations, as VNNI multiplies unsigned by
            signed bytes; and 7-bit weights where there is no VNNI, whose predecessor saturates. False:
            quantize_static with its defaults.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(batches)

        def get_next(self) -> dict | None:
            batch = next(self.left, None)
            return batch and {f"input{i}": tensor.numpy() for i, tensor in enumerate(batch)}

    settings = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _no_root_logging():
        if advised:
            prepared = str(Path(folder, "prepared.onnx"))
            quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
            path = prepared
            if not _on_arm():
                settings = {
                    "activation_type": quantization.QuantType.QUInt8,
                    "weight_type": quantization.QuantType.QInt8,
                    "reduce_range": not describe().has_int8_dot_product,
                }
        quantization.quantize_static(str(path), str(quantized), Reader(), per_channel=True, **settings)


def onnx_session(path: Path | str) -> Callable[..., list[Tensor]]:
    """Return a function that runs an ONNX file in ONNX Runtime, on as many threads as PyTorch has."""
    import onnxruntime

    def start(threads: int) -> Callable[..., list[Tensor]]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Its threads would go on spinning after a run, on the cores that the next entry is measured on.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def run(*inputs: Tensor) -> list[Tensor]:
            feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
            return [torch.from_numpy(output) for output in session.run(None, feed)]

        return run

    run = _per_threads(start)
    run.size_bytes = Path(path).stat().st_size
    return run


def onnx_operators(path: Path | str) -> dict[str, int]:
    """Count the operators that ONNX Runtime runs for a file, after its own optimizations; needs the package onnx."""
    import onnx
    import onnxruntime

    folder = _Folder()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # One level below the highest, which would also choose layouts for this processor, under names of its own.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder.path / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    counts = Counter(node.op_type.replace("FusedConv", "Conv") for node in nodes)
    return dict(counts.most_common())


class _Folder:
    """A folder that lasts as long as something refers to this."""

    def __init__(self):
        self.path = Path(tempfile.mkdtemp(prefix="qtutor-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class _Exported:
    """A model and its batches, and the ONNX file that several runtimes share, written when first asked for."""

    def __init__(self, model: nn.Module, batches: Batches):
        self.model, self.batches = model, batches
        self.folder = _Folder()

    @property
    def onnx(self) -> Path:
        path = self.folder.path / "float.onnx"
        if not path.exists():
            export_onnx(self.model, self.batches[0], path)
        return path

    def like_the_model(self, run: Callable[..., list[Tensor]]) -> Callable[..., Any]:
        """Give outputs the structure that the model's have, and keep the files while they may be read again."""
        with torch.no_grad():
            structure = tree_flatten(self.model(*self.batches[0]))[1]

        def restructured(*inputs: Tensor) -> Any:
            return tree_unflatten(run(*inputs), structure)

        restructured.folder = self.folder
        return restructured


def _eager(exported: _Exported) -> tuple[Callable, int]:
    return exported.model, size_bytes(exported.model)


def _channels_last(exported: _Exported) -> tuple[Callable, int]:
    model = _by_pixels(copy_model(exported.model))
    return lambda *inputs: model(*map(_by_pixel, inputs)), size_bytes(model)


def _bf16(exported: _Exported) -> tuple[Callable, int]:
    model = _by_pixels(copy_model(exported.model).to(torch.bfloat16))

    def cast(tree: Any, come_from: torch.dtype, to: torch.dtype) -> Any:
        leaves, structure = tree_flatten(tree)
        cast = [x.to(to) if isinstance(x, Tensor) and x.dtype == come_from else x for x in leaves]
        return tree_unflatten(cast, structure)

    def run(*inputs: Tensor) -> Any:
        narrow = cast([_by_pixel(x) for x in inputs], torch.float32, torch.bfloat16)
        return cast(model(*narrow), torch.bfloat16, torch.float32)

    run(*exported.batches[0])
    return run, size_bytes(model)


def _compiled(exported: _Exported) -> tuple[Callable, int]:
    from torch._inductor import config

    with _no_notices():
        compiled = torch.compile(exported.model, dynamic=False)

    def run(*inputs: Tensor) -> Any:
        with torch.no_grad(), config.patch(freezing=True):
            return compiled(*inputs)

    run = _quiet_where_new(run)
    with needs_compiler():
        run(*exported.batches[0])
    return run, size_bytes(exported.model)


def _fx(exported: _Exported) -> tuple[Callable, int]:
    model = quantize_static(exported.model, _unlabelled(exported.batches))
    return _traced(model, exported.batches[0]), size_bytes(model)


def _pt2e(exported: _Exported) -> tuple[Callable, int]:
    model = quantize_static(exported.model, _unlabelled(exported.batches), flow="pt2e", compile=True)
    return _quiet_where_new(model), size_bytes(model)


def _onnx_float(exported: _Exported) -> tuple[Callable, int]:
    return exported.like_the_model(onnx_session(exported.onnx)), exported.onnx.stat().st_size


def _onnx_int8(exported: _Exported) -> tuple[Callable, int]:
    path = exported.folder.path / "int8.onnx"
    quantize_onnx(exported.onnx, path, exported.batches)
    return exported.like_the_model(onnx_session(path)), path.stat().st_size


def _openvino_float(exported: _Exported) -> tuple[Callable, int]:
    import openvino

    return _openvino(exported, openvino.Core().read_model(exported.onnx), "float")


def _openvino_int8(exported: _Exported) -> tuple[Callable, int]:
    import openvino

    nncf = _quiet_nncf()
    batches = [{f"input{i}": tensor.numpy() for i, tensor in enumerate(batch)} for batch in exported.batches]
    model = openvino.Core().read_model(exported.onnx)
    options = {}
    if not (describe().has_int8_dot_product or _on_arm()):  # sums of two products overflow 16 bits, as in ONNX Runtime
        options["advanced_parameters"] = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    with _no_progress_bars():
        model = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches), **options)
    return _openvino(exported, model, "int8")


def _openvino(exported: _Exported, model: Any, name: str) -> tuple[Callable, int]:
    import openvino

    path = exported.folder.path / f"{name}.xml"
    openvino.save_model(model, path, compress_to_fp16=False)

    def start(threads: int) -> Callable[..., list[Tensor]]:
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # or "FP32" would be BF16 where the processor has it
            "ENABLE_CPU_PINNING": False,
        }
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        request = compiled.create_infer_request()

        def run(*inputs: Tensor) -> list[Tensor]:
            outputs = request.infer({i: tensor.numpy() for i, tensor in enumerate(inputs)}, share_inputs=True)
            return [torch.from_numpy(outputs[place].copy()) for place in compiled.outputs]

        return run

    size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
    return exported.like_the_model(_per_threads(start)), size


_BUILDERS: dict[str, Callable[[_Exported], tuple[Callable, int]]] = dict(
    zip(
        NAMES,
        (
            _eager,
            _channels_last,
            _bf16,
            _compiled,
            _fx,
            _pt2e,
            _onnx_float,
            _onnx_int8,
            _openvino_float,
            _openvino_int8,
        ),
        strict=True,
    )
)


def _lacks(name: str) -> str:
    """What a runtime needs and this computer has not, and what to do; "" if nothing."""
    absent = [package for package in _EXTRA.get(name, ()) if importlib.util.find_spec(package) is None]
    if absent:
        return f'{name} needs {" and ".join(absent)}: run pip install -e ".[runtimes]" in the folder of the course'
    machine = describe()
    if name in _COMPILED and not machine.can_compile:
        lacking = "Python's headers (Debian: python3-dev)" if machine.compiler else "a C++ compiler (Debian: g++)"
        return f"{name} needs {lacking}: install it and start again"
    return ""


def _per_threads(start: Callable[[int], Callable[..., list[Tensor]]]) -> Callable[..., list[Tensor]]:
    """Start a session when it is first called, and again when PyTorch's number of threads has changed."""
    threads, session = 0, None

    def run(*inputs: Tensor) -> list[Tensor]:
        nonlocal threads, session
        if threads != torch.get_num_threads():
            session = None  # first give its memory back
            threads = torch.get_num_threads()
            session = start(threads)
        return session(*(tensor.detach().contiguous() for tensor in inputs))

    return run


def _traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """The operators of a model without the Python between them; the model itself where it cannot be traced."""
    try:
        with torch.no_grad(), _no_notices():
            return torch.jit.freeze(torch.jit.trace(model, inputs, check_trace=False, strict=False))
    except Exception:
        return model


def _quiet_where_new(run: Callable[..., Any]) -> Callable[..., Any]:
    """Hide notices where Inductor compiles, which is where it meets new shapes."""
    seen = set()

    def quiet(*inputs: Tensor) -> Any:
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes in seen:
            return run(*inputs)
        with _no_notices():
            outputs = run(*inputs)
        seen.add(shapes)
        return outputs

    return quiet


@contextmanager
def _no_notices() -> Iterator[None]:
    """Hide what PyTorch says about its own plans; what tracing takes for a constant shows when shapes disagree."""
    with warnings.catch_warnings():
        hide_torch_notices()
        for notice in _NOTICES:
            warnings.filterwarnings("ignore", message=notice)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


def _quiet_nncf() -> ModuleType:
    """NNCF, which otherwise reports each use over the network and writes to the notebook."""
    with _environment(NNCF_CI="1"):
        nncf = importlib.import_module("nncf")
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Silence NNCF's bars, which rich draws."""
    import rich

    console = rich.get_console()
    before = vars(console).copy()
    rich.reconfigure(quiet=True, force_jupyter=False)
    try:
        yield
    finally:
        vars(console).update(before)


@contextmanager
def _no_root_logging() -> Iterator[None]:
    """Silence ONNX Runtime's tools, which log by the root logger and so set it up to print everybody's messages."""
    before = logging.root.handlers[:]
    with unlogged("root"):
        try:
            yield
        finally:
            logging.root.handlers[:] = before


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _by_pixel(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _by_pixels(model: nn.Module) -> nn.Module:
    """Lay out the weights of convolutions of images so that their kernels need not; in place."""
    for parameter in model.parameters():
        parameter.data = _by_pixel(parameter.data)
    return model


def _unlabelled(batches: Batches) -> list[tuple]:
    return [(batch, None) for batch in batches]


def _on_arm() -> bool:
    return platform.machine().lower().startswith(("arm", "aarch"))
