"""Where qtutor keeps things, and how it keeps them whole.

A file is either absent or complete: it is written beside its place and moved there in one step. What
is slow to make is made once, even when several kernels ask at the same moment, and a file that was
damaged since is made again. Where nothing can be written (a read-only home, a full disk), the same
bytes are made and only last for the session.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs


class Unwritable(OSError):
    """Nothing can be kept at `filename`; the caller can carry on without."""


_session: dict[Path, bytes] = {}  # what could not be kept


def data_dir() -> Path:
    """Return the folder of what the learner makes or fetches: `$QTUTOR_HOME`, else the system's place for it."""
    home = os.environ.get("QTUTOR_HOME")
    return Path(home).expanduser().absolute() if home else Path(platformdirs.user_data_dir("qtutor", appauthor=False))


def cache_dir() -> Path:
    """Return the folder of what can be made again: `$QTUTOR_HOME/cache`, else the system's place for it."""
    if os.environ.get("QTUTOR_HOME"):
        return data_dir() / "cache"
    return Path(platformdirs.user_cache_dir("qtutor", appauthor=False))


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, finds the old content or the new, never a part.

    Makes the folder where it is missing.

    Raises:
        Unwritable: the folder is read-only, the disk is full, or the like. The old content still stands.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with _unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def lock(path: Path, on_wait: Callable[[], None] = lambda: None, *, patience: float = -1) -> Iterator[None]:
    """Hold `path` for one kernel at a time; the operating system lets go when the holder dies.

    Args:
        path: what is guarded. The lock itself is the file `<path>.lock` beside it.
        on_wait: called once if another kernel holds the lock, before waiting for it.
        patience: seconds to wait for another kernel; -1 for as long as it takes.

    Raises:
        Unwritable: it cannot be made, or another kernel holds it for longer.
    """
    from filelock import FileLock, Timeout

    guard = Path(path).with_name(f"{Path(path).name}.lock")
    with _unwritable(guard):
        guard.parent.mkdir(parents=True, exist_ok=True)
        guard.open("ab").close()  # on Windows filelock takes a folder without access for a held lock
        held = FileLock(guard)
        try:
            held.acquire(timeout=0)
        except Timeout:
            on_wait()
            held.acquire(timeout=patience)
    try:
        yield
    finally:
        held.release()


def once(path: Path, make: Callable[[], bytes], what: str, say: Callable[[str], None] = print) -> bytes:
    """Return the bytes kept at `path`; the first time, make and keep them.

    Several kernels may ask at once: one makes, the others wait. An error or an interrupt in `make`
    leaves nothing behind. Bytes are stored under their SHA-256, so damage is noticed and repaired.

    Args:
        path: where they are kept.
        make: takes its time; called at most once.
        what: a name for it, to say to the learner.
        say: gets one sentence when the bytes are awaited, damaged, or cannot be kept.
    """
    path = Path(path)
    kept = _read_sealed(path)
    if kept is not None:
        return kept
    if path in _session:
        return _session[path]
    made = None
    try:
        with lock(path, lambda: say(f"Another kernel is making {what}: waiting for it.")):
            kept = _read_sealed(path)
            if kept is not None:
                return kept
            if os.path.exists(path):
                say(f"The kept copy of {what} is damaged: making it again.")
            for left in path.parent.glob(f"{path.name}.*.tmp"):  # of a kernel killed while it held the lock
                with suppress(OSError):
                    left.unlink()
            made = make()
            write_atomically(path, hashlib.sha256(made).hexdigest().encode() + b"\n" + made)
            return made
    except Unwritable as error:
        say(f"Cannot write in {path.parent} ({error.strerror}): {what} will last for this session only.")
    _session[path] = make() if made is None else made
    return _session[path]


def _read_sealed(path: Path) -> bytes | None:
    """The bytes at `path`, or None if they are absent, unreadable or not those that were written."""
    try:
        seal, _, data = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return data if seal == hashlib.sha256(data).hexdigest().encode() else None


@contextmanager
def _unwritable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unwritable(error.errno, error.strerror or str(error), str(path)) from error
