import errno
import os
import socket
import webbrowser
from collections import namedtuple
from dataclasses import replace

from qtutor import cli, manifest, storage
from qtutor.course import preflight
from qtutor.samples import place

import pytest


def test_a_computer_that_is_twice_as_slow_computes_twice_as_long():
    lesson = replace(manifest.LESSONS[1], minutes=(45, 45), seconds=180)
    assert preflight.expect(lesson, 1.0) == f"{lesson.name}: 90 minutes, of which this computer computes about 3.0."
    assert preflight.expect(lesson, 2.0).endswith("about 6.0.")


@pytest.mark.parametrize(("available", "ok"), [(None, True), (5e9, True), (1e9, False)])
def test_too_little_memory_is_a_problem(available, ok):
    assert preflight.check_memory(available).startswith(preflight.PROBLEM) is not ok


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    assert preflight.check_place("Progress", tmp_path).startswith(f"Progress can be kept in {tmp_path}")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    def refuse(path, data):
        raise storage.Unwritable(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(storage, "write_atomically", refuse)
    said = preflight.check_place("Progress", tmp_path / "not" / "there")
    assert said.startswith(preflight.PROBLEM)
    assert "Read-only file system" in said
    assert "QTUTOR_HOME" in said


def test_a_nearly_full_disk_is_a_problem(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage(10, 9, 1_000_000))
    assert preflight.check_place("Progress", tmp_path).startswith(preflight.PROBLEM)


def test_says_which_models_are_still_to_be_trained():
    models = ("digits_cnn", "digits_lstm")
    storage.cache_dir().mkdir(parents=True)
    place("digits_lstm").touch()
    assert preflight.check_caches(models).endswith(": digits_cnn.")
    place("digits_cnn").touch()
    assert "is trained" in preflight.check_caches(models)


def test_no_browser_is_said_and_is_no_problem(monkeypatch):
    def none():
        raise webbrowser.Error

    monkeypatch.setattr(webbrowser, "get", none)
    assert preflight.check_browser().startswith("No browser")


def test_finds_a_free_port_beside_a_taken_one_and_says_when_there_is_none():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert preflight.check_ports([port]).startswith(f"{preflight.PROBLEM}Every port from {port}")
        assert not preflight.check_ports([port, 0]).startswith(preflight.PROBLEM)


def test_the_probe_leaves_the_learners_random_numbers_alone():
    import torch

    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert 0 < preflight.probe(3) < 60
    assert torch.equal(before, torch.get_rng_state())


def test_doctor_tells_each_lessons_minutes_and_that_all_is_ready(capsys, monkeypatch):
    monkeypatch.setattr(preflight, "preflight", lambda lessons: iter([f"seen {len(lessons)}"]))
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith(f"  seen {len(manifest.LESSONS)}\nReady.\n")


def test_doctor_counts_the_problems_and_fails(capsys, monkeypatch):
    said = ["good", f"{preflight.PROBLEM}bad", f"{preflight.PROBLEM}worse"]
    monkeypatch.setattr(preflight, "preflight", lambda lessons: iter(said))
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "  good\n  PROBLEM: bad\n  PROBLEM: worse\nNot ready: 2 to mend" in said
