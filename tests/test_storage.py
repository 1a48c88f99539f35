import errno
import os
import subprocess
import sys
from pathlib import Path

from qtutor import storage

import filelock
import pytest

HOLD = """
import sys
from pathlib import Path
from qtutor import storage

with storage.lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def said():
    return []


def never():
    raise AssertionError("made again")


def full_disk(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def unwritable(tmp_path):
    """A folder that cannot be made, even by root: a file stands in its way."""
    (tmp_path / "file").write_bytes(b"")
    return tmp_path / "file" / "folder"


def test_qtutor_home_decides_where_things_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("QTUTOR_HOME", str(tmp_path))
    assert (storage.data_dir(), storage.cache_dir()) == (tmp_path, tmp_path / "cache")


def test_qtutor_home_may_name_the_home_folder_by_a_tilde(monkeypatch):
    monkeypatch.setenv("QTUTOR_HOME", "~")
    assert storage.data_dir() == Path.home()


@pytest.mark.parametrize("unset", [True, False])
def test_without_qtutor_home_data_and_cache_have_places_of_their_own(monkeypatch, unset):
    if unset:
        monkeypatch.delenv("QTUTOR_HOME", raising=False)
    else:
        monkeypatch.setenv("QTUTOR_HOME", "")
    assert storage.data_dir() != storage.cache_dir()
    for folder in (storage.data_dir(), storage.cache_dir()):
        assert folder.is_absolute()
        assert "qtutor" in folder.parts


def test_writing_makes_the_folder_and_replaces_the_content(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for content in (b"old and long", b"new"):
        storage.write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(monkeypatch, tmp_path, failure, step):
    path = tmp_path / "file"
    storage.write_atomically(path, b"old")

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(failure)) as caught:
        storage.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    if isinstance(failure, OSError):
        assert isinstance(caught.value, storage.Unwritable)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_class_can_read_what_its_teacher_prepared(tmp_path):
    storage.write_atomically(tmp_path / "file", b"for all")
    (tmp_path / "ordinary").write_bytes(b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_nothing_can_be_written_or_locked_where_a_folder_cannot_be_made(unwritable):
    with pytest.raises(storage.Unwritable):
        storage.write_atomically(unwritable / "file", b"")
    with pytest.raises(storage.Unwritable), storage.lock(unwritable / "file"):
        pass


def test_a_lock_is_awaited_and_freed_when_its_owner_dies(tmp_path):
    path = tmp_path / "file"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        waits = []

        def kill():
            waits.append(owner.poll())
            owner.kill()

        with storage.lock(path, kill):
            assert waits == [None]
            with pytest.raises(filelock.Timeout):
                filelock.FileLock(f"{path}.lock").acquire(timeout=0)


def test_a_lock_is_freed_by_an_error_and_taken_again_without_waiting(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), storage.lock(tmp_path / "file", never):
            raise KeyboardInterrupt


def test_an_error_inside_a_lock_is_not_taken_for_an_unwritable_folder(tmp_path):
    with pytest.raises(PermissionError), storage.lock(tmp_path / "file"):
        raise PermissionError


def test_once_makes_once_and_keeps(tmp_path, said):
    path = tmp_path / "folder" / "thing"
    assert storage.once(path, lambda: b"made\nhere", "thing", said.append) == b"made\nhere"
    assert storage.once(path, never, "thing", said.append) == b"made\nhere"
    assert said == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: b"",
        lambda kept: kept[:-1],
        lambda kept: kept + b"\0",
        lambda kept: kept[: len(kept) // 2],
        lambda kept: kept[:-3] + bytes([kept[-3] ^ 1]) + kept[-2:],
        lambda kept: bytes([kept[0] ^ 1]) + kept[1:],
        lambda kept: b"\xff" * len(kept),
    ],
)
def test_a_damaged_copy_is_made_again_and_said_in_one_line(tmp_path, said, damage):
    path = tmp_path / "thing"
    storage.once(path, lambda: b"first content", "thing", said.append)
    path.write_bytes(damage(path.read_bytes()))
    assert storage.once(path, lambda: b"second content", "thing", said.append) == b"second content"
    assert storage.once(path, never, "thing", said.append) == b"second content"
    assert len(said) == 1
    assert "thing is damaged" in said[0]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("of its own"), ValueError()])
def test_a_failure_while_making_passes_through_and_leaves_nothing(tmp_path, said, failure):
    path = tmp_path / "thing"

    def make():
        raise failure

    with pytest.raises(type(failure)) as caught:
        storage.once(path, make, "thing", said.append)
    assert caught.value is failure
    assert set(os.listdir(tmp_path)) <= {"thing.lock"}
    assert storage.once(path, lambda: b"made", "thing", said.append) == b"made"
    assert said == []


def test_what_a_killed_kernel_left_is_swept(tmp_path, said):
    (tmp_path / "thing.0a1b2c3d.tmp").write_bytes(b"ma")
    (tmp_path / "other.0a1b2c3d.tmp").write_bytes(b"another kernel's")
    storage.once(tmp_path / "thing", lambda: b"made", "thing", said.append)
    assert {name for name in os.listdir(tmp_path) if name.endswith(".tmp")} == {"other.0a1b2c3d.tmp"}


def test_where_nothing_can_be_kept_it_lasts_for_the_session_and_is_said_once(unwritable, said):
    for make in (lambda: b"made", never):
        assert storage.once(unwritable / "thing", make, "thing", said.append) == b"made"
    assert len(said) == 1
    assert "this session only" in said[0]


def test_a_full_disk_does_not_waste_what_was_made(monkeypatch, tmp_path, said):
    monkeypatch.setattr(os, "fsync", full_disk)
    calls = []
    for _ in range(2):
        assert storage.once(tmp_path / "thing", lambda: calls.append(1) or b"made", "thing", said.append) == b"made"
    assert calls == [1]
    assert len(said) == 1
    assert "No space left" in said[0]


def test_a_copy_in_a_folder_that_cannot_be_written_is_still_read(monkeypatch, tmp_path, said):
    storage.once(tmp_path / "thing", lambda: b"made", "thing", said.append)

    def read_only(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert storage.once(tmp_path / "thing", never, "thing", said.append) == b"made"
    assert said == []
