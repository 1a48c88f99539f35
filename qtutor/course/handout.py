"""The lessons that a wheel carries, laid into a folder of the learner's: never over work that is there."""

import hashlib
import json
from pathlib import Path

import qtutor
from qtutor import storage

SHIPPED = Path(qtutor.__file__).resolve().parent / "lessons"
"""Where a wheel has the lessons; a clone has them beside the package, and nothing here."""

_RECORD = ".qtutor.json"  # in the learner's folder: which version of each lesson was laid there


def lay_out(folder: Path, shipped: Path = SHIPPED, version: str = qtutor.__version__) -> list[str]:
    """Lay the lessons into a folder, and return what a learner should know of it, in sentences.

    A lesson that is missing is laid there. One that is there stays as it is: where the course has a newer version of
    it, that is laid beside it under a name of its own, once.

    Raises:
        storage.Unwritable: the folder is read-only, the disk is full, or the like.
    """
    record = folder / _RECORD
    laid = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    new, beside = [], []
    for lesson in sorted(shipped.glob("*.ipynb")):
        content, target = lesson.read_bytes(), folder / lesson.name
        mark = hashlib.sha256(content).hexdigest()
        if laid.get(lesson.name) == mark and target.exists():
            continue  # the learner works on this version
        if not target.exists():
            storage.write_atomically(target, content)
            new.append(lesson.name)
        elif target.read_bytes() != content:
            target = folder / f"{lesson.stem} (qtutor {version}).ipynb"
            if not target.exists():
                storage.write_atomically(target, content)
            beside.append(target.name)
        laid[lesson.name] = mark
    storage.write_atomically(record, json.dumps(laid, indent=1).encode())
    said = [f"Laid into {folder}: {', '.join(new)}."] if new else []
    if beside:
        said.append(f"Your lessons stay as they are; newer versions lie beside them: {', '.join(beside)}.")
    return said
