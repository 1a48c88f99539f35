"""How fast this machine could be at most, and where each layer of a model sits below that.

A layer can be no faster than its arithmetic at the peak rate, and no faster than its bytes at the
memory's bandwidth. Which of the two binds says its intensity, the operations for each byte moved. INT8
moves a quarter of the bytes and has a peak of its own, so both limits give a ceiling for its speed-up.

    time >= max(operations / peak, bytes / bandwidth)

Source: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtutor.benchmark import compare
from qtutor.machine import describe
from qtutor.models.running import passing
from qtutor.models.tensors import as_tuple
from qtutor.words import in_bytes, in_digits
from qtutor.workflows.backends import at_work

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Peaks:
    """What the best kernels that were tried reach here, with PyTorch's threads; `str` of it is a sentence.

    Attributes:
        bandwidth: bytes a second between memory and processor.
        float_rate: float32 operations a second; a multiplication and an addition are two.
        int8_rate: the same for 8-bit integers, added up in 32 bits.
    """

    bandwidth: float
    float_rate: float
    int8_rate: float

    @property
    def roofs(self) -> dict[str, tuple[float, float]]:
        """The most operations a second, and bytes as FP32 has them: of INT8's quarter, four times as many."""
        return {"float": (self.float_rate, self.bandwidth), "int8": (self.int8_rate, 4 * self.bandwidth)}

    def __str__(self) -> str:
        return (
            f"Memory {in_bytes(self.bandwidth)}/s, FP32 {in_digits(self.float_rate / 1e9)} and INT8 "
            f"{in_digits(self.int8_rate / 1e9)} billion operations a second, "
            f"{self.int8_rate / self.float_rate:.2g} times."
        )


def measure_peaks(*, size: int = 512, megabytes: int = 128, seconds: float = 0.3) -> Peaks:
    """Measure the peaks: by copying more than a cache holds, and by products of square matrices.

    Each peak of arithmetic is that of the quicker of two kernels, one of which is slow on some processors: in FP32
    PyTorch's own product and oneDNN's, in INT8 PyTorch's own and the linear layer of the quantized engine.

    Args:
        size: of the matrices, a multiple of 8.
        megabytes: what is copied.
        seconds: for each of them.
    """
    source, target = torch.zeros(2, megabytes * 250_000)
    matrix = torch.rand(size, size)
    copy, engine = {"copy": lambda _: target.copy_(source)[:0]}, describe().engine
    with at_work(engine):
        products = {"float": _float_products(matrix), "int8": _int8_products(size, engine)}
        timed = compare(copy | products["float"] | products["int8"], matrix, seconds=seconds)
    best = timed.times.min() / 1e3  # a peak is the best case
    rates = {kind: 2 * size**3 / best[best.index.intersection([*kernels])].min() for kind, kernels in products.items()}
    return Peaks(2 * source.nbytes / best["copy"], rates["float"], rates["int8"])


def _float_products(matrix: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Products of a square matrix with itself, by each kernel that may be the quickest here."""
    found = {"FP32": lambda _: (matrix @ matrix)[0, :0]}
    if torch.backends.mkldnn.is_available():
        with suppress(AttributeError, RuntimeError):  # not every PyTorch and processor has it
            linear = torch.ops.mkldnn._linear_pointwise
            packed = torch.ops.mkldnn._reorder_linear_weight(matrix, len(matrix))
            found["FP32 by oneDNN"] = lambda _: linear(matrix, packed, None, "none", [], "")[0, :0]
    return found


def _int8_products(size: int, engine: str | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Products of square INT8 matrices, by each kernel that may be the quickest here."""
    codes = torch.randint(-127, 128, (size, size), dtype=torch.int8)
    nothing = torch.zeros(0)

    def by_torch(_: Tensor) -> Tensor:
        torch._int_mm(codes, codes)
        return nothing

    if engine is None:
        return {"INT8": by_torch}
    weight = torch.quantize_per_tensor(torch.rand(size, size) - 0.5, 1 / 256, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    activations = torch.quantize_per_tensor(torch.rand(size, size), 1 / 128, 0, torch.quint8)

    def by_engine(_: Tensor) -> Tensor:
        torch.ops.quantized.linear(activations, packed, 0.1, 64)
        return nothing

    return {"INT8": by_torch, "INT8 by the engine": by_engine}


def layers(model: nn.Module, example_input: Tensor | tuple[Tensor, ...], *, seconds: float = 0.1) -> "pd.DataFrame":
    """Return a table of the convolutions and linear layers that one call of a float model runs, each timed alone.

    Its columns are `operations`, `bytes` (inputs, weights and outputs, each moved once), `intensity`
    (operations for each byte) and `latency_ms`; its index is the layers' qualified names.

    Raises:
        ValueError: the model calls no such layer.
    """
    import pandas as pd

    inputs = as_tuple(example_input)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    names = [name for name, layer in model.named_modules() if isinstance(layer, kinds)]
    rows, runs = {}, {}
    for name, ((x, *_), y) in passing(model, names, inputs).items():
        layer = model.get_submodule(name)
        weight = layer.get_parameter("weight")
        operations = 2 * y.numel() * (weight.numel() // len(weight))  # each output is a filter's sum
        moved = x.nbytes + y.nbytes + weight.nbytes
        rows[name] = {"operations": operations, "bytes": moved, "intensity": operations / moved}
        runs[name] = lambda _, layer=layer, x=x: layer(x).flatten()[:0]
    if not rows:
        raise ValueError(f"{type(model).__name__} calls no convolution and no linear layer: there is nothing to place")
    timed = compare(runs, inputs, seconds=seconds).table["latency_ms"]
    return pd.DataFrame.from_dict(rows, orient="index").assign(latency_ms=timed).rename_axis("layer")


def limits(peaks: Peaks, table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the least time of each layer in ms, `float_ms` and `int8_ms`: what the machine allows, not what runs."""
    import pandas as pd

    def least(rate: float, bandwidth: float) -> "pd.Series":
        return 1e3 * (table["operations"] / rate).combine(table["bytes"] / bandwidth, max)

    return pd.DataFrame({f"{numbers}_ms": least(*roof) for numbers, roof in peaks.roofs.items()})
