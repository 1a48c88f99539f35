"""What PyTorch says of its own plans, which the lessons say once, in a sentence."""

import logging
import warnings
from contextlib import AbstractContextManager
from unittest import mock

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
    "Not fusing linear\\+bn for node",
    "Default qconfig of oneDNN backend with reduce_range of false",  # the flows reduce it where that is needed
)
"""How the warnings begin that PyTorch raises about its own plans, not about what the learner did."""

_LOGGERS = {"torchao": "Failed to load", "torch.utils._pytree": "is an Enum subclass"}
"""Who logs when torchao is imported, and what: that kernels for other hardware are missing, and plans again."""


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


def unlogged(name: str) -> AbstractContextManager:
    """Silence one logger for a while."""
    return mock.patch.object(logging.getLogger(name), "disabled", True)
