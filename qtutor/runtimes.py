"""One trained model in every CPU runtime that is installed, each as a callable that `benchmark.compare` takes.

    name                 what runs                                                 needs
    eager FP32           the model as it is                                        -
    channels-last        the same, its tensors laid out pixel by pixel             -
    BF16                 the same in 16 bits, channels-last                        -
    torch.compile        Inductor's fused float kernels                            a C++ compiler
    FX INT8              PyTorch's INT8 kernels                                    torch.ao
    PT2E INT8            Inductor's INT8 kernels                                   torchao, a C++ compiler
    ONNX Runtime FP32    ONNX Runtime on the exported graph                        the extra `runtimes`
    ONNX Runtime INT8    the same, quantized as its makers advise                  the extra `runtimes`
    OpenVINO FP32        OpenVINO on the converted graph                           the extra `runtimes`
    OpenVINO INT8        the same, quantized by NNCF                               the extra `runtimes`

A runtime that is not here, or cannot take the model, still gives an entry: calling it raises an error
that says why and how to get it, so its row in a comparison says so too.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Runtime:
    """A model in one runtime: call it with tensors as you would call the model; it returns tensors.

    ONNX Runtime and OpenVINO use as many threads as PyTorch has at the time of the call.

    Attributes:
        name: of `NAMES`, or your own.
        run: what a call runs.
        size_bytes: of the model as this runtime stores it, in a file.
        missing: why it cannot run here and what to do, or "".
    """

    name: str
    run: Callable[..., Any] | None = None
    size_bytes: int | None = None
    missing: str = ""

    def __call__(self, *inputs: Tensor) -> Any: ...


def build(
    model: nn.Module,
    calibration_data: Iterable,
    names: Iterable[str] | None = None,
    *,
    progress: Callable[[str], object] = lambda name: None,
) -> dict[str, Runtime]:
    """Bring `model` into each of the runtimes `names` (all of `NAMES` if None), in that order; see `Runtime`.

    Args:
        model: float32 on the CPU; it stays as it was.
        calibration_data: batches as `workflows.quantize_static` takes them; the first one gives the shapes.
        names: of `NAMES`.
        progress: called with each name before it is built.
    """
