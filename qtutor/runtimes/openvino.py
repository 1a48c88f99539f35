"""OpenVINO, in floating point and, quantized by NNCF, in INT8.

Source: docs.openvino.ai, "Basic Quantization Flow".
"""

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

from qtutor.machine import describe
from qtutor.runtimes.exported import Exported, Session, by_name

import torch
from torch import Tensor


def fp32(exported: Exported) -> tuple[Callable, int]:
    import openvino

    return _openvino(exported, openvino.Core().read_model(exported.onnx), "float")


def int8(exported: Exported) -> tuple[Callable, int]:
    import openvino

    nncf = _quiet_nncf()
    batches = [{name: tensor.numpy() for name, tensor in by_name(batch).items()} for batch in exported.batches]
    model = openvino.Core().read_model(exported.onnx)
    options = {}
    if describe().saturates:
        options["advanced_parameters"] = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    with _no_progress_bars():
        model = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches), **options)
    return _openvino(exported, model, "int8")


def _openvino(exported: Exported, model: Any, name: str) -> tuple[Callable, int]:
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
    return exported.like_the_model(Session(start, size)), size


def _quiet_nncf() -> ModuleType:
    """NNCF, which otherwise reports each use over the network and writes to the notebook."""
    with mock.patch.dict(os.environ, NNCF_CI="1"):
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
