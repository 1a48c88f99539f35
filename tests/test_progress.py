import csv
import errno
import json
import threading
from pathlib import Path

from qtutor import cli, storage
from qtutor.exercises import progress

import pytest


@pytest.fixture
def room(tmp_path):
    """Three learners' files, as they come in, and one that is no progress file."""
    solved = {"00_start_here": ["bytes_of_weights"], "01_affine_mapping": ["choose_bits", "renamed_since"]}
    (tmp_path / "ana").mkdir()
    (tmp_path / "ana" / "progress.json").write_text(json.dumps(solved))
    (tmp_path / "bo é.json").write_text(json.dumps({"00_start_here": ["bytes_of_weights"]}))
    (tmp_path / "cy.json").write_text("{}")
    (tmp_path / "broken.json").write_text("[1")
    return tmp_path


def test_every_lesson_with_exercises_is_counted_in_order():
    found = progress.exercises()
    assert list(found) == sorted(found)
    assert found["00_start_here"] == ("bytes_of_weights",)
    assert all(found.values())


def test_show_counts_what_is_solved_and_says_where_it_is_kept(capsys):
    progress.record("00_start_here", "bytes_of_weights")
    assert cli.main(["progress"]) == 0
    said = capsys.readouterr().out
    assert "00_start_here                1 of 1" in said
    assert str(progress.path()) in said


def test_reset_forgets(capsys):
    progress.record("00_start_here", "bytes_of_weights")
    assert cli.main(["progress", "reset"]) == 0
    assert not progress.path().exists()
    assert not progress.solved("00_start_here")
    assert "forgotten" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_for_now_is_not_written_over(monkeypatch):
    progress.record("a lesson", "first")

    def fails(path):
        raise OSError(errno.EIO, "the network drive does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fails)
        progress.record("a lesson", "second")
        assert progress.solved("a lesson") == {"first", "second"}
    assert progress.read(progress.path()) == {"a lesson": ["first"]}


def test_two_kernels_do_not_write_over_each_other():
    with storage.lock(progress.path()):
        other = threading.Thread(target=progress.record, args=("a lesson", "mine"))
        other.start()
        other.join(0.2)
        progress.path().write_text(json.dumps({"a lesson": ["theirs"]}))
    other.join()
    assert progress.read(progress.path()) == {"a lesson": ["mine", "theirs"]}


def test_a_folder_is_collected_into_one_table_by_learner(room, tmp_path, capsys):
    out = tmp_path / "table.csv"
    assert cli.main(["progress", "collect", str(room), "--csv", str(out)]) == 1  # one file could not be read
    rows = {row["learner"]: row for row in csv.DictReader(out.read_text(encoding="utf-8").splitlines())}
    assert rows.keys() == {"ana", "bo é", "cy"}
    assert [rows[name]["solved"] for name in ("ana", "bo é", "cy")] == ["2", "1", "0"]
    assert rows["ana"]["01_affine_mapping"] == "1"  # what is no exercise any more does not count
    said = capsys.readouterr()
    assert "broken.json is not a progress file" in said.err
    assert "bo é" in said.out


def test_two_learners_of_one_name_are_both_kept(room):
    (room / "second").mkdir()
    (room / "second" / "ana.json").write_text("{}")
    table, _ = progress.collect(room.rglob("*.json"))
    assert len(table) == 4


@pytest.mark.parametrize("where", [[], ["no-such-folder"], ["."]])
def test_nothing_to_collect_is_said_in_a_sentence(where, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["progress", "collect", *where]) == 1
    assert "progress file" in capsys.readouterr().err
