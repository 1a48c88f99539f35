"""ONNX Runtime, in floating point and in INT8.

Source: the docstring of `onnxruntime.quantization.quantize_static`, "Choosing parameters for CPU inference" (unsigned
activations on x86, there with 7-bit weights where VNNI is missing; signed on ARM); to pre-process first:
onnxruntime.ai/docs/performance/model-optimizations/quantization.html, a page that calls signed activations the first
choice everywhere.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qtutor.machine import describe, on_arm
from qtutor.runtimes.exported import Batches, Exported, Folder, Session, by_name
from qtutor.workflows.notices import unlogged

import torch
from torch import Tensor


def fp32(exported: Exported) -> tuple[Callable, int]:
    return run_file(exported, exported.onnx)


def int8(exported: Exported) -> tuple[Callable, int]:
    path = exported.folder.path / "int8.onnx"
    quantize_onnx(exported.onnx, path, exported.batches)
    return run_file(exported, path)


def run_file(exported: Exported, path: Path) -> tuple[Callable, int]:
    """Return what runs a file as the model runs, and how large the file is."""
    session = onnx_session(path)
    return exported.like_the_model(session), session.size_bytes


def quantize_onnx(
    path: Path | str,
    quantized: Path | str,
    batches: Batches,
    *,
    unsigned: bool | None = None,
    preprocessed: bool = True,
) -> None:
    """Quantize an ONNX model with ONNX Runtime's own tools, weights per channel, calibrated by min-max.

    Args:
        path: the float model, from `export_onnx`.
        quantized: where to write the INT8 model.
        batches: to calibrate with; each the inputs of one call.
        unsigned: whether activations have codes from 0 on; else they have codes around 0, as is the tool's default.
            None: as the tool's docstring advises for this processor. On x86 without VNNI unsigned activations go
            with 7-bit weights, since products of two bytes saturate there.
        preprocessed: simplify the float model first, with the tool that its makers provide.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(batches)

        def get_next(self) -> dict | None:
            batch = next(self.left, None)
            return batch and {name: tensor.numpy() for name, tensor in by_name(batch).items()}

    unsigned = not on_arm() if unsigned is None else unsigned
    settings = {"activation_type": quantization.QuantType.QUInt8 if unsigned else quantization.QuantType.QInt8}
    settings["reduce_range"] = unsigned and describe().saturates
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, no_root_logging():
        if preprocessed:
            prepared = str(Path(folder, "prepared.onnx"))
            quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
            path = prepared
        quantization.quantize_static(str(path), str(quantized), Reader(), per_channel=True, **settings)


def onnx_session(path: Path | str) -> Session:
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

    return Session(start, Path(path).stat().st_size)


def onnx_operators(path: Path | str) -> dict[str, int]:
    """Count the operators that ONNX Runtime runs for a file, after its own optimizations; needs the package onnx."""
    import onnx
    import onnxruntime

    folder = Folder()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # One level below the highest, which would also choose layouts for this processor, under names of its own.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder.path / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    counts = Counter(node.op_type.replace("FusedConv", "Conv") for node in nodes)
    return dict(counts.most_common())


@contextmanager
def no_root_logging() -> Iterator[None]:
    """Silence ONNX Runtime's tools, which log by the root logger and so set it up to print everybody's messages."""
    before = logging.root.handlers[:]
    with unlogged("root"):
        try:
            yield
        finally:
            logging.root.handlers[:] = before
