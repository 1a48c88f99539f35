"""Which exercises a learner has solved: one small file that survives a kernel restart.

Progress is a comfort, never a condition: a file that holds something else counts as empty, and where the file cannot
be read or written, progress is remembered for the session only.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from qtutor import storage
from qtutor.manifest import LESSONS

_PATIENCE = 2.0  # seconds for another kernel that writes
_session: dict[str, list[str]] = {}


def path() -> Path:
    """Return where progress is kept."""
    return storage.data_dir() / "progress.json"


def solved(lesson: str) -> set[str]:
    """Return the names of the exercises of `lesson` that have been answered right."""
    kept = read(path()) or {}
    return {*kept.get(lesson, []), *_session.get(lesson, [])}


def record(lesson: str, exercise: str) -> None:
    """Remember that `exercise` has been answered right."""
    _session.setdefault(lesson, []).append(exercise)
    with contextlib.suppress(OSError), storage.lock(path(), patience=_PATIENCE):
        everything = _solved_in(path().read_bytes() if path().exists() else b"") or {}
        if exercise not in everything.get(lesson, []):
            everything[lesson] = sorted({*everything.get(lesson, []), exercise})
            storage.write_atomically(path(), json.dumps(everything, indent=1).encode())


def reset() -> None:
    """Forget all progress."""
    _session.clear()
    with contextlib.suppress(OSError), storage.lock(path(), patience=_PATIENCE):
        path().unlink(missing_ok=True)


def exercises() -> dict[str, tuple[str, ...]]:
    """Return the names of every exercise, by lesson, in the order of the course."""
    from qtutor.exercises import of

    return {lesson.name: tuple(of(lesson).exercises.by_name) for lesson in LESSONS}


def count(solved_by_lesson: dict[str, list[str]]) -> dict[str, tuple[int, int]]:
    """Return, for each lesson, how many of its exercises are solved and how many there are."""
    found = exercises().items()
    return {lesson: (len({*names} & {*solved_by_lesson.get(lesson, ())}), len(names)) for lesson, names in found}


def collect(files: Iterable[Path]) -> tuple[dict[str, dict[str, tuple[int, int]]], list[Path]]:
    """Read many learners' progress files.

    A learner is named by the file, `ana.json`, or by its folder, `ana/progress.json`.

    Returns:
        The counts by learner, and the files that are no progress files.
    """
    table, unreadable = {}, []
    for file in sorted(files):
        content = read(file)
        if content is None:
            unreadable.append(file)
            continue
        name = file.parent.name if file.stem == "progress" else file.stem
        table[name if name not in table else str(file)] = count(content)
    return table, unreadable


def read(file: Path) -> dict[str, list[str]] | None:
    """Return the solved exercises that a progress file names, by lesson; None where it is no such file."""
    try:
        return _solved_in(file.read_bytes())
    except OSError:
        return None


def _solved_in(content: bytes) -> dict[str, list[str]] | None:
    try:
        return {lesson: [str(name) for name in names] for lesson, names in json.loads(content).items()}
    except (ValueError, AttributeError, TypeError):
        return None
