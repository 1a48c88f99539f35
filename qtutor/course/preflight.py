"""Whether a computer is ready for the course: what `qtutor doctor` says beside what the computer is.

Each check is a sentence; where it fails, it begins with `PROBLEM` and says what to do about it. How long a lesson
computes is what the manifest says, scaled by how fast this computer trains a small network.
"""

import os
import shutil
import socket
import statistics
import time
import webbrowser
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from qtutor import manifest, storage
from qtutor.machine import describe
from qtutor.manifest import Lesson
from qtutor.words import in_bytes

PROBLEM = "PROBLEM: "
"""How a sentence begins that keeps the course from running."""

NEEDED_MEMORY = 1_200_000_000
"""Bytes that the largest lesson may take."""

NEEDED_DISK = 200_000_000
"""Bytes that progress, trained models and a room to breathe take."""

REFERENCE_STEP = 6.2e-3
"""Seconds of one probed training step on the two-core computer on which the lessons' own figures were measured."""

_PORTS = range(8888, 8988)  # JupyterLab tries 8888, then others nearby


def preflight(lessons: tuple[Lesson, ...] = ()) -> Iterator[str]:
    """Look at everything in turn, and tell the time of each of `lessons`, which are those that are here."""
    machine = describe()
    for problem in machine.problems:
        yield PROBLEM + problem
    yield check_memory(machine.memory_available)
    yield from (check_place("Progress", storage.data_dir()), check_place("Trained models", storage.cache_dir()))
    yield check_caches(manifest.models())
    yield check_browser()
    yield check_ports(_PORTS)
    if lessons:
        slowness = probe() / REFERENCE_STEP
        for lesson in lessons:
            yield expect(lesson, slowness)


def check_memory(available: int | None) -> str:
    """Compare the free memory with what the largest lesson takes."""
    needed = in_bytes(NEEDED_MEMORY)
    if available is None:
        return f"How much memory is free is unknown; a lesson takes up to {needed}."
    if available < NEEDED_MEMORY:
        free = in_bytes(available)
        return f"{PROBLEM}Only {free} of memory are free and a lesson takes up to {needed}: close programs."
    return f"Memory suffices: a lesson takes up to {needed}."


def check_place(what: str, folder: Path) -> str:
    """Say whether files can be kept in `folder`, by keeping one."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        free = shutil.disk_usage(there).free
        storage.write_atomically(folder / "doctor", b"")
        (folder / "doctor").unlink()
    except OSError as error:
        return (
            f"{PROBLEM}{what} cannot be kept in {folder} ({error.strerror}): the lessons work, and forget. "
            "Set QTUTOR_HOME to a folder that can be written."
        )
    if free < NEEDED_DISK:
        return f"{PROBLEM}Only {in_bytes(free)} are free in {folder}: make room, or set QTUTOR_HOME."
    return f"{what} can be kept in {folder} ({in_bytes(free)} are free there)."


def check_caches(models: Iterable[str]) -> str:
    """Say which of the models that the lessons ask for are trained already."""
    from qtutor.samples import place

    missing = sorted(name for name in models if not os.path.exists(place(name)))
    if missing:
        return f"Still to be trained, at the first use or now with qtutor prepare: {', '.join(missing)}."
    return "Every model that the lessons ask for is trained."


def check_browser() -> str:
    """Say whether `qtutor lab` can open a browser by itself."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return "No browser was found here: open the address that qtutor lab prints in one."
    return f"A browser is here: {getattr(browser, 'name', type(browser).__name__)}."


def check_ports(ports: Iterable[int]) -> str:
    """Find a free port as JupyterLab does."""
    ports = list(ports)
    for port in ports:
        with socket.socket() as probing, suppress(OSError):
            probing.bind(("127.0.0.1", port))
            return f"JupyterLab can listen: port {port} is free."
    return f"{PROBLEM}Every port from {ports[0]} to {ports[-1]} is taken: use qtutor lab --port NUMBER."


def probe(steps: int = 40) -> float:
    """Return the median seconds of a training step of a small network on this computer."""
    from qtutor.samples import SmallCNN
    from qtutor.samples.training import step

    import torch

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        images, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
        model = SmallCNN()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        taken = []
        for _ in range(steps):
            start = time.perf_counter()
            step(model, images, labels, optimizer)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def expect(lesson: Lesson, slowness: float) -> str:
    """Say how many minutes a lesson takes, its computing scaled by `slowness`."""
    minutes = max(lesson.seconds * slowness / 60, 0.1)
    return f"{lesson.name}: {sum(lesson.minutes)} minutes, of which this computer computes about {minutes:.1f}."
