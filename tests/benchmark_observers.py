"""Measure HistogramObserver against PyTorch's: `python tests/benchmark_observers.py`.

A stream of ten batches, from the first to the qparams, in turns with PyTorch's observer; then the squared
error of both ranges over the whole stream. A measurement, not a test.
"""

import warnings

from qtutor.affine import QParams, measure_error
from qtutor.benchmark import compare
from qtutor.observers import HistogramObserver

import torch
from torch import Tensor
from torch.ao.quantization.observer import HistogramObserver as PyTorchsHistogramObserver

SIZES = 10_000, 100_000, 1_000_000


def streams(size: int) -> dict[str, Tensor]:
    """`(10, size)` values by the name of their distribution."""
    generator = torch.Generator().manual_seed(0)
    normal, other = (torch.randn(10, size, generator=generator) for _ in range(2))
    uniform = torch.rand(10, size, generator=generator)
    outliers = normal.clone()
    outliers[:, :3] = 50
    return {
        "normal": normal,
        "Laplace": other.sign() * uniform.log(),
        "ReLU": normal.relu(),
        "heavy tails": normal / uniform.log().neg().sqrt(),  # Student's t with two degrees of freedom
        "outliers": outliers,
    }


def theirs(stream: Tensor) -> QParams:
    observer = PyTorchsHistogramObserver(dtype=torch.qint8, qscheme=torch.per_tensor_affine)
    for batch in stream:
        observer(batch)
    scale, zero_point = observer.calculate_qparams()
    return QParams(scale[0], zero_point[0], -128, 127)


def ours(stream: Tensor) -> QParams:
    observer = HistogramObserver()
    for batch in stream:
        observer.observe(batch)
    return observer.qparams()


def main() -> None:
    warnings.simplefilter("ignore")  # PyTorch's own plans for its observers
    for size in SIZES:
        for name, stream in streams(size).items():
            row = compare({"PyTorch": theirs, "qtutor": ours}, stream, seconds=2).table.loc["qtutor"]
            errors = [measure_error(stream, observe(stream)).total for observe in (ours, theirs)]
            print(
                f"ten batches of {size:>9,} values, {name:11} {row.speedup:5.2f} times as fast "
                f"({row.speedup_low:.2f} to {row.speedup_high:.2f}), error {errors[0] / errors[1]:.4f} of PyTorch's",
                flush=True,
            )


if __name__ == "__main__":
    main()
