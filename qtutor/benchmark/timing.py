"""One run of one entry: that it runs, how long it takes, how much memory."""

import ctypes
import math
import os
import re
import sys
import timeit
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from qtutor.benchmark.predictions import Model, check_eval
from qtutor.benchmark.size import size_bytes
from qtutor.models.tensors import shape_of, tensors_in

from torch import Tensor, nn
from torch.utils.benchmark import timer

_TURN = 0.01  # seconds of one entry's turn, if it is fast: short beside what disturbs a machine
_LONG = 0.02  # seconds of a run that needs no other before it to fill the caches again


def share() -> float:
    """How much of its time a measurement takes: `QTUTOR_MEASURE`, for runs whose figures nobody reads, else 1."""
    return float(os.environ.get("QTUTOR_MEASURE", 1))


def first_run(entry: Model, inputs: tuple[Tensor, ...]) -> Any:
    """Run the entry once, where compilers compile and a misfit shows; return the shape of what it returns."""
    check_eval(entry)
    if isinstance(entry, nn.Module):
        homes = {str(tensor.device) for tensor in chain(entry.parameters(), entry.buffers())}
        for tensor in tensors_in(inputs):
            if homes and str(tensor.device) not in homes:
                home = ", ".join(sorted(homes))
                raise ValueError(f"the model is on {home}, an input on {tensor.device}: move one with .to(device)")
    return shape_of(entry(*inputs))


def warm_up(run: Callable[[], Any], seconds: float) -> int:
    """Run until five runs in a row bring no gain, or time is up; return how many runs make a turn."""
    start, fastest, stale = timer(), math.inf, 0
    while stale < 5 and timer() - start < seconds:
        (time,) = timeit.Timer(run, timer=timer).repeat(1, number=1)
        stale = 0 if time < 0.95 * fastest else stale + 1
        fastest = min(fastest, time)
    return 1 if fastest > _LONG else min(max(2, round(_TURN / max(fastest, 1e-9))), 1000)


def turn(run: Callable[[], Any], runs: int) -> float:
    """Seconds for a run: the median of one turn, without the run that refills the caches, if there are more."""
    start = timer()
    times: list[float] = []
    # A neighbour that stops a run for long would stop a full turn for many times as long: cut the turn short.
    while len(times) < min(runs, 2) or (len(times) < runs and timer() - start < 4 * _TURN):
        times += timeit.Timer(run, timer=timer).repeat(1, number=1)
    return median(times[1:] or times)


def peak_bytes(run: Callable[[], Any]) -> float:
    """How much the resident memory of this process grows during a run, at its highest."""
    process = Path("/proc/self")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else the run would get memory that an earlier one gave back
        (process / "clear_refs").write_text("5")  # forgets the highest value so far
    except (AttributeError, OSError, TypeError):
        return math.nan
    before = _status_bytes(process, "VmRSS")
    run()
    return max(0, _status_bytes(process, "VmHWM") - before)


def _status_bytes(process: Path, name: str) -> int:
    (kilobytes,) = re.findall(rf"^{name}:\s+(\d+) kB$", (process / "status").read_text(), re.MULTILINE)
    return 1024 * int(kilobytes)


def megabytes(entry: Model) -> float:
    size = size_bytes(entry) if isinstance(entry, nn.Module) else getattr(entry, "size_bytes", None)
    return size / 1e6 if isinstance(size, int) else math.nan


def versions() -> dict[str, str]:
    """The runtimes that this process has loaded, each with its version."""
    names = {
        "torch": "PyTorch",
        "torchao": "torchao",
        "onnxruntime": "ONNX Runtime",
        "openvino": "OpenVINO",
        "nncf": "NNCF",
    }
    loaded = {title: getattr(sys.modules.get(name), "__version__", None) for name, title in names.items()}
    return {title: str(version).partition("-")[0] for title, version in loaded.items() if version}
