"""A wheel's lessons reach a learner's folder, and nothing of the learner's is lost."""

import errno
import os
import zipfile
from pathlib import Path

import qtutor
from qtutor import cli, storage
from qtutor.course import handout
from qtutor.course.handout import lay_out
from qtutor.manifest import LESSONS, course

import pytest
from hatchling.builders.wheel import WheelBuilder
from lab import COURSE


@pytest.fixture
def shipped(tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    for name in ("00_a", "01_b"):
        (folder / f"{name}.ipynb").write_text(f"{name} as it was")
    return folder


def test_an_empty_folder_gets_every_lesson_and_a_second_time_nothing(shipped, tmp_path):
    mine = tmp_path / "mine"
    assert lay_out(mine, shipped, "1.0") == [f"Lessons laid into {mine}: 2, of qtutor 1.0."]
    assert (mine / "01_b.ipynb").read_text() == "01_b as it was"
    assert lay_out(mine, shipped, "1.0") == []


def test_work_stays_and_a_newer_version_is_laid_beside_it_once(shipped, tmp_path):
    mine = tmp_path / "mine"
    lay_out(mine, shipped, "1.0")
    (mine / "00_a.ipynb").write_text("my answers")
    assert lay_out(mine, shipped, "1.0") == []
    (shipped / "00_a.ipynb").write_text("00_a, better")
    said = "What you have worked on stays as it is; its new version lies beside it: 00_a (qtutor 1.1).ipynb."
    assert lay_out(mine, shipped, "1.1") == [said]
    assert lay_out(mine, shipped, "1.1") == []
    assert (mine / "00_a.ipynb").read_text() == "my answers"
    assert (mine / "00_a (qtutor 1.1).ipynb").read_text() == "00_a, better"


def test_another_lesson_under_the_same_version_does_not_replace_work_on_the_first(shipped, tmp_path):
    mine = tmp_path / "mine"
    lay_out(mine, shipped, "1.0")
    for name, text in (("00_a", "my answers"), ("00_a (qtutor 1.0)", "my other answers")):
        (mine / f"{name}.ipynb").write_text(text)
    (shipped / "00_a.ipynb").write_text("00_a, mended")
    lay_out(mine, shipped, "1.0")
    assert sorted(path.read_text() for path in mine.glob("00*")) == ["00_a, mended", "my answers", "my other answers"]


def test_a_lesson_that_nobody_has_touched_is_brought_up_to_date(shipped, tmp_path):
    mine = tmp_path / "mine"
    lay_out(mine, shipped, "1.0")
    (shipped / "01_b.ipynb").write_text("01_b, better")
    assert lay_out(mine, shipped, "1.1") == [f"Lessons laid into {mine}: 1, of qtutor 1.1."]
    assert {path.name: path.read_text() for path in mine.glob("*.ipynb")} == {
        "00_a.ipynb": "00_a as it was",
        "01_b.ipynb": "01_b, better",
    }


@pytest.mark.parametrize("record", [None, "{broken", "[]"])
def test_where_nothing_is_recorded_every_lesson_counts_as_work(record, shipped, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "00_a.ipynb").write_text("something else")
    if record is not None:
        (mine / handout.RECORD).write_text(record)
    assert len(lay_out(mine, shipped, "1.0")) == 2
    assert (mine / "00_a.ipynb").read_text() == "something else"
    assert lay_out(mine, shipped, "1.0") == []


def test_a_lesson_that_was_thrown_away_comes_back(shipped, tmp_path):
    mine = tmp_path / "mine"
    lay_out(mine, shipped, "1.0")
    (mine / "01_b.ipynb").unlink()
    assert lay_out(mine, shipped, "1.0") == [f"Lessons laid into {mine}: 1, of qtutor 1.0."]


def test_what_was_laid_before_the_disk_was_full_is_known_afterwards(shipped, tmp_path, monkeypatch):
    mine, write = tmp_path / "mine", storage.write_atomically

    def full(path, data):
        if path.name.startswith("01"):
            raise storage.Unwritable(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(storage, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        lay_out(mine, shipped, "1.0")
    monkeypatch.undo()
    (mine / "00_a.ipynb").write_text("my answers")
    assert lay_out(mine, shipped, "1.0") == [f"Lessons laid into {mine}: 1, of qtutor 1.0."]
    assert (mine / "00_a.ipynb").read_text() == "my answers"


class TestLab:
    """`qtutor lab` of a wheel, in folders of all kinds; JupyterLab itself is not started."""

    @pytest.fixture
    def lab(self, shipped, tmp_path, monkeypatch, capsys):
        from jupyterlab.labapp import LabApp

        (shipped / "00_a.ipynb").rename(shipped / Path(LESSONS[0].notebook).name)
        opened = []
        monkeypatch.setattr(LabApp, "launch_instance", opened.append)
        monkeypatch.setattr(os, "environ", os.environ.copy())
        monkeypatch.setattr(qtutor, "__file__", str(tmp_path / "site-packages" / "qtutor" / "__init__.py"))
        monkeypatch.setattr("qtutor.cli.lab.SHIPPED", shipped)
        monkeypatch.setattr("qtutor.cli.lab.lay_out", lambda folder: lay_out(folder, shipped, "1.0"))

        def start(folder):
            folder.mkdir(exist_ok=True)
            monkeypatch.chdir(folder)
            code, said = cli.main(["lab"]), capsys.readouterr()
            return code, said.out + said.err, opened.pop()[0].partition("=")[2] if opened else None

        return start

    def test_opens_what_it_laid_and_from_within_it_too(self, lab, tmp_path):
        mine = tmp_path / "mine"
        assert lab(mine) == (0, f"Lessons laid into {mine / 'lessons'}: 2, of qtutor 1.0.\n", str(mine))
        assert lab(mine / "lessons") == (0, "", str(mine))

    def test_in_a_clone_opens_the_clone_and_lays_nothing(self, lab, tmp_path):
        clone = tmp_path / "clone"
        for name in ("qtutor/__init__.py", LESSONS[0].notebook):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).touch()
        assert lab(clone) == (0, "", str(clone))
        assert len([*clone.rglob("*.ipynb")]) == 1

    def test_a_file_in_the_way_is_one_sentence(self, lab, tmp_path):
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "lessons").write_text("my notes")
        said = f"{mine / 'lessons'} cannot take the lessons: it is a file. Run qtutor lab in another folder.\n"
        assert lab(mine) == (1, said, None)
        assert (mine / "lessons").read_text() == "my notes"

    @pytest.mark.parametrize("earlier", [False, True])
    def test_on_a_full_disk_opens_the_lessons_that_are_there(self, earlier, lab, shipped, tmp_path, monkeypatch):
        mine = tmp_path / "mine"
        if earlier:
            lab(mine)
            (shipped / "01_b.ipynb").write_text("01_b, better")

        def full(path, data):
            raise storage.Unwritable(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(storage, "write_atomically", full)
        trouble = f"{mine / 'lessons'} cannot take the lessons: No space left on device."
        if earlier:
            assert lab(mine) == (0, f"{trouble} Those that are there open as they are.\n", str(mine))
        else:
            assert lab(mine) == (1, f"{trouble} Run qtutor lab in another folder.\n", None)


def test_the_wheel_holds_the_lessons(tmp_path):
    wheel = next(iter(WheelBuilder(str(COURSE)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {f"qtutor/{lesson.notebook}" for lesson in LESSONS} <= {*names}
    assert all(f"qtutor/explorers/player.{kind}" in names for kind in ("js", "css", "html"))


def test_the_lessons_in_the_package_are_the_course_where_there_is_no_clone(tmp_path, monkeypatch):
    package = tmp_path / "qtutor"
    (package / LESSONS[0].notebook).parent.mkdir(parents=True)
    monkeypatch.setattr(qtutor, "__file__", str(package / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="beside the package"):
        course()
    (package / LESSONS[0].notebook).touch()
    assert course() == package
