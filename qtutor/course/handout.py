"""The lessons that a wheel carries, laid into a folder of the learner's: never over work that is there."""

import errno
import hashlib
import json
from pathlib import Path

import qtutor
from qtutor import storage

SHIPPED = Path(qtutor.__file__).resolve().parent / "lessons"
"""Where a wheel has the lessons; a clone has them beside the package, and nothing here."""

RECORD = ".qtutor.json"
"""In the learner's folder: which version of each lesson was laid there last."""


def lay_out(folder: Path, shipped: Path = SHIPPED, version: str = qtutor.__version__) -> list[str]:
    """Lay the lessons into a folder, and return what a learner should know of it, in sentences.

    A lesson that is missing is laid there, and one that nobody has touched since it was laid is brought up to date. Any
    other stays as it is: where the course has another version of it, that is laid beside it under a name of its own,
    once.

    Raises:
        OSError: the folder is read-only, the disk is full, or the like. What was there still stands.
    """
    if folder.exists() and not folder.is_dir():
        raise storage.Unwritable(errno.ENOTDIR, "it is a file", str(folder))
    laid = _read(folder / RECORD)
    before, new, beside = dict(laid), 0, []
    try:
        for lesson in sorted(shipped.glob("[0-9]*.ipynb")):
            content, target = lesson.read_bytes(), folder / lesson.name
            there, mark = target.read_bytes() if target.exists() else None, _mark(content)
            if there is not None and (there == content or laid.get(lesson.name) == mark):
                pass  # the learner works on this version
            elif there is None or laid.get(lesson.name) == _mark(there):
                storage.write_atomically(target, content)
                new += 1
            else:
                target = folder / f"{lesson.stem} (qtutor {version}).ipynb"
                if target.exists() and target.read_bytes() != content:
                    target = folder / f"{lesson.stem} (qtutor {version}, {mark[:6]}).ipynb"
                storage.write_atomically(target, content)
                beside.append(target.name)
            laid[lesson.name] = mark
    finally:
        if laid != before:
            storage.write_atomically(folder / RECORD, json.dumps(laid, indent=1).encode())
    said = [f"Lessons laid into {folder}: {new}, of qtutor {version}."] if new else []
    if beside:
        said.append(f"What you have worked on stays as it is; its new version lies beside it: {', '.join(beside)}.")
    return said


def _read(record: Path) -> dict[str, str]:
    """What was laid; nothing where that is unknown, and then no lesson counts as untouched."""
    try:
        laid = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return laid if isinstance(laid, dict) else {}


def _mark(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
