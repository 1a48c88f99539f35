"""What a neighbour does to PyTorch: the same work, in fresh processes, under each way in which threads can wait.

How threads wait is read once, when PyTorch loads, so each way needs a process of its own; and since the scheduler
draws anew for each process where its threads run, one process tells nothing of the odds. `qtutor.threads` says
what happens there. `python -m qtutor.lottery` draws all of it ten times, or as often as it is told, and prints what
`recorded_draws` holds.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qtutor import threads

if TYPE_CHECKING:
    import pandas as pd

WORK = ("training step", "INT8 image", "a million additions")
"""What is timed: a step on 16 images of 32 pixels, one image of 128 pixels, and one operation alone."""


def draw(way: str, neighbours: int = 0, works: Iterable[str] = WORK[:1], *, seconds: float = 0.3) -> dict[str, float]:
    """Time work in a fresh process, as `work` does; return the mean milliseconds of each kind.

    Args:
        way: of `threads.WAYS`.
        neighbours: how many processes that never rest run beside it.
        works: of `WORK`.
        seconds: for how long each kind of work is repeated; to build it takes a few seconds more.
    """
    asked = f"{neighbours!r}, {tuple(works)!r}, seconds={seconds!r}"
    code = f"import json; from qtutor.lottery import work; print(json.dumps(work({asked})))"
    environment = {**os.environ, **threads.WAYS[way]}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"the process that was to work ended with {finished.returncode}:\n{finished.stderr}")
    return json.loads(finished.stdout)


_NEVER_REST = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # nor outlive who started it


@contextlib.contextmanager
def restless(neighbours: int) -> Iterator[None]:
    """Run so many processes that never rest while the block does."""
    running = [subprocess.Popen([sys.executable, "-c", _NEVER_REST]) for _ in range(neighbours)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def recorded_draws() -> "pd.DataFrame":
    """Return draws of each way beside none, one and two neighbours, in ms, recorded on two cores of a cloud machine."""
    import pandas as pd

    return pd.read_csv(Path(__file__).with_suffix(".csv"))


def work(neighbours: int = 0, works: Iterable[str] = WORK[:1], *, seconds: float = 0.3) -> dict[str, float]:
    """Do some of `WORK` in this process, and return the mean milliseconds of each kind; `draw` has the arguments."""
    import torch

    builders = dict(zip(WORK, (_training_step, _int8_image, _additions), strict=True))
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        built = {name: builders[name]() for name in works}
        with restless(neighbours):
            return {name: _mean(run, seconds) for name, run in built.items()}


def _training_step() -> Callable[[], object]:
    from qtutor.samples import SlimResNet
    from qtutor.samples.training import step

    import torch

    student, images, labels = SlimResNet(), torch.rand(16, 3, 32, 32), torch.arange(16) % 10
    return partial(step, student, images, labels, torch.optim.AdamW(student.parameters(), 1e-3))


def _int8_image() -> Callable[[], object]:
    from qtutor.samples import SlimResNet
    from qtutor.workflows import hide_torch_notices, quantize_static

    import torch

    hide_torch_notices()
    image = torch.rand(1, 3, 128, 128)
    int8 = quantize_static(SlimResNet().eval(), [image])
    return torch.inference_mode()(lambda: int8(image))


def _additions() -> Callable[[], object]:
    import torch

    values = torch.rand(1_000_000)
    return lambda: values + values


def _mean(run: Callable[[], object], seconds: float) -> float:
    """The mean milliseconds of a run: a learner waits for every one of them, the slow ones too."""
    run()
    runs, start = 0, time.perf_counter()
    while runs < 2 or time.perf_counter() - start < seconds:
        run()
        runs += 1
    return 1e3 * (time.perf_counter() - start) / runs


def main(draws: int = 10) -> None:
    """Print as CSV what so many draws of each way beside each number of neighbours gave, in a random order."""
    print("waiting", "neighbours", *WORK, sep=",")
    for _ in range(draws):
        for way, neighbours in random.sample([(w, n) for w in threads.WAYS for n in (0, 1, 2)], 9):
            times = draw(way, neighbours, WORK)
            print(way, neighbours, *(f"{times[name]:.3g}" for name in WORK), sep=",", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
