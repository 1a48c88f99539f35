"""A hard limit on memory and cores for a child process and all that it starts."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


class Limit:
    """How a child comes under the limit, and what it took.

    Attributes:
        enter: for `subprocess.Popen(preexec_fn=...)`.
        peak: bytes at the highest; None where only the limit itself is known to have held.
        how: what sets the limit.
    """

    def __init__(self, enter: Callable[[], None], peak: Callable[[], int | None], how: str):
        self.enter, self.peak, self.how = enter, peak, how


@contextlib.contextmanager
def limited(memory: int, cores: int = 1) -> Iterator[Limit]:
    """Limit memory by a cgroup where one can be made, else by the size of the data segment (as prlimit --data).

    Args:
        memory: bytes for all processes together (cgroup), or for each of them.
        cores: how many of the cores that this process may use.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    group = _make_group(memory)

    def enter() -> None:
        os.sched_setaffinity(0, allowed)
        if group is None:
            import resource  # not on Windows

            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        else:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def peak() -> int | None:
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if group is not None and (group / name).exists():
                return int((group / name).read_text())
        return None

    try:
        yield Limit(enter, peak, "prlimit --data" if group is None else f"cgroup {group}")
    finally:
        for _ in range(100 * (group is not None)):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def _make_group(memory: int) -> Path | None:
    old, new = CGROUPS / "memory", CGROUPS
    parent, name = (old, "memory.limit_in_bytes") if (old / "cgroup.procs").exists() else (new, "memory.max")
    group = parent / f"qtutor-{os.getpid()}-{time.monotonic_ns()}"
    try:
        group.mkdir()
        (group / name).write_text(str(memory))
        (group / "cgroup.procs").read_text()
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        return None
    return group
