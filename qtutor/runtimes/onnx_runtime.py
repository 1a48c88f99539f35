"""ONNX Runtime, in floating point and in INT8.

Source: onnxruntime.ai/docs/performance/model-optimizations/quantization.html (pre-process; U8S8 and
7-bit weights on x86).
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qtutor.machine import describe, on_arm
from qtutor.runtimes.exported import Batches, Exported, Folder, Session
from qtutor.workflows.notices import unlogged

import torch
from torch import Tensor


def fp32(exported: Exported) -> tuple[Callable, int]:
    return exported.like_the_model(onnx_session(exported.onnx)), exported.onnx.stat().st_size


def int8(exported: Exported) -> tuple[Callable, int]:
    path = exported.folder.path / "int8.onnx"
    quantize_onnx(exported.onnx, path, exported.batches)
    return exported.like_the_model(onnx_session(path)), path.stat().st_size


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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, no_root_logging():
        if advised:
            prepared = str(Path(folder, "prepared.onnx"))
            quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
            path = prepared
            if not on_arm():
                settings = {
                    "activation_type": quantization.QuantType.QUInt8,
                    "weight_type": quantization.QuantType.QInt8,
                    "reduce_range": not describe().has_int8_dot_product,
                }
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
