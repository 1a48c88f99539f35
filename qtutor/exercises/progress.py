"""Which exercises a learner has solved: one small file that survives a kernel restart.

Progress is a comfort, never a condition: a file that cannot be read counts as empty, and one that
cannot be written is remembered for the session only.
"""

import contextlib
import json
from pathlib import Path

from qtutor import storage

_session: dict[str, list[str]] = {}


def path() -> Path:
    """Return where progress is kept."""
    return storage.data_dir() / "progress.json"


def solved(lesson: str) -> set[str]:
    """Return the names of the exercises of `lesson` that have been answered right."""
    return set(_read().get(lesson, [])) | set(_session.get(lesson, []))


def record(lesson: str, exercise: str) -> None:
    """Remember that `exercise` has been answered right."""
    _session.setdefault(lesson, []).append(exercise)
    everything = _read()
    if exercise not in everything.get(lesson, []):
        everything[lesson] = sorted({*everything.get(lesson, []), exercise})
        with contextlib.suppress(OSError):
            storage.write_atomically(path(), json.dumps(everything, indent=1).encode())


def reset() -> None:
    """Forget all progress."""
    _session.clear()
    with contextlib.suppress(OSError):
        path().unlink(missing_ok=True)


def _read() -> dict[str, list[str]]:
    try:
        content = json.loads(path().read_bytes())
        return {lesson: [str(name) for name in names] for lesson, names in content.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
