"""How PyTorch's threads wait for one another, and how many there are: settled once, before PyTorch loads.

PyTorch cuts an operation into one part for each core. A thread that is done waits for the others, by default
by spinning: it asks again and again, for milliseconds, and holds its core while it asks. When another program
wants that core, the thread that still has work may have to wait until the one that only asks has used up its
turn. Each operation then takes 10 to 50 times as long, or it does not: a lottery, drawn anew by every process.

Threads that spin for some microseconds and then sleep keep nearly all of the speed and do not play; those that sleep
at once do not either, and lose a little more. OpenMP, which runs the threads, reads how to wait from the environment
when PyTorch loads it and never again, so `import qtutor` writes it there first, for this process and for those that it
starts. What the user has set wins.
"""

import math
import os
import platform
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

WAYS = {
    "spinning": {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
    "with a short spin": {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"},
    "asleep": {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"},
}
"""Ways to wait, each with what asks for it: rounds of GNU's OpenMP (Linux), ms of LLVM's and Intel's (elsewhere).

The first is what they do unless they are told. A millisecond, the least that every version of LLVM's and Intel's can be
told to spin, is not short: beside two neighbours a training step took 1,000 ms with it, 200 without. So they sleep.
"""

SPINNING, SHORT_SPIN, ASLEEP = WAYS
ADVICE = (
    "on a busy computer that can make everything 10 to 50 times slower, so restart the kernel and import qtutor "
    "before torch, or open the course with qtutor lab"
)

VARIABLES = (*WAYS[SHORT_SPIN], "OMP_WAIT_POLICY")
"""What says how threads wait; one that is set is left alone."""

_BUSY = 0.5  # cores that others keep busy: from there on threads have to share

_late = False  # PyTorch was loaded before anybody could write anything


def quota(root: Path = Path("/")) -> float | None:
    """Return how many cores' worth of time this container may use; None where nothing limits it.

    The limit is that of cgroups, of either version, or JupyterHub's `CPU_LIMIT`.
    """
    limits, lines = [], []
    with suppress(ValueError):
        limits.append(float(os.environ.get("CPU_LIMIT") or math.inf))
    with suppress(OSError, ValueError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = base / path.lstrip("/")
        while group.is_relative_to(base):
            limits.append(_limit(group))
            group = group.parent
    least = min((limit for limit in limits if limit > 0), default=math.inf)
    return None if least == math.inf else least


def _limit(group: Path) -> float:
    """The cores' worth of time of one cgroup, of whichever version; infinite where it has no limit."""
    try:
        if (group / "cpu.max").exists():
            most, period = (group / "cpu.max").read_text().split()
        else:
            most, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if most.strip() in ("max", "-1") else int(most) / int(period)
    except (OSError, ValueError):
        return math.inf


def environment(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what to add to an environment, so that threads wait calmly and are no more than the cores they get."""
    added = {} if any(name in given for name in VARIABLES) else dict(WAYS[SHORT_SPIN])
    share = quota()
    if share is not None and "OMP_NUM_THREADS" not in given and share < (cores() or 1):
        added["OMP_NUM_THREADS"] = str(max(1, math.ceil(share)))
    return added


def settle(environ: MutableMapping[str, str] = os.environ) -> None:
    """Write `environment` where it is still read; where PyTorch was first and the computer is busy, say what to do."""
    global _late
    if "torch" not in sys.modules:
        environ.update(environment(environ))
    elif not any(name in environ for name in VARIABLES):
        _late = True
        if _others() > _BUSY and "ipykernel" in sys.modules:
            print(f"This computer is busy, and PyTorch's threads wait for one another {SPINNING}: {ADVICE}.")


def waiting(environ: Mapping[str, str] = os.environ) -> str:
    """Say how PyTorch's threads wait for one another in this process, for the end of a sentence.

    Example:
        >>> waiting({"OMP_WAIT_POLICY": "passive"}), waiting({"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"})
        ('asleep', 'spinning')
    """
    variable = "GOMP_SPINCOUNT" if platform.system() == "Linux" else "KMP_BLOCKTIME"
    value = environ.get(variable)
    if _late or value is None:
        return ASLEEP if environ.get("OMP_WAIT_POLICY", "").lower() == "passive" else SPINNING
    return next((way for way, asked in reversed(WAYS.items()) if asked[variable] == value), f"with {variable}={value}")


def cores() -> int | None:
    """Return how many logical cores this process may use; None where the system does not tell."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # Linux only
        return os.cpu_count()


def _others() -> float:
    """How many cores are busy while this process sleeps for a fifth of a second."""
    import psutil

    return psutil.cpu_percent(interval=0.2) / 100 * (psutil.cpu_count() or 1)
