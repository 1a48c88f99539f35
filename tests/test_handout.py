"""A wheel's lessons reach a learner's folder, and nothing of the learner's is lost."""

import zipfile

from qtutor.course.handout import lay_out
from qtutor.manifest import LESSONS

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
    assert lay_out(mine, shipped, "1.0") == [f"Laid into {mine}: 00_a.ipynb, 01_b.ipynb."]
    assert (mine / "01_b.ipynb").read_text() == "01_b as it was"
    assert lay_out(mine, shipped, "1.0") == []


def test_work_stays_and_a_newer_version_is_laid_beside_it_once(shipped, tmp_path):
    mine = tmp_path / "mine"
    lay_out(mine, shipped, "1.0")
    (mine / "00_a.ipynb").write_text("my answers")
    assert lay_out(mine, shipped, "1.0") == []
    (shipped / "00_a.ipynb").write_text("00_a, better")
    said = "Your lessons stay as they are; newer versions lie beside them: 00_a (qtutor 1.1).ipynb."
    assert lay_out(mine, shipped, "1.1") == [said]
    assert lay_out(mine, shipped, "1.1") == []
    assert (mine / "00_a.ipynb").read_text() == "my answers"
    assert (mine / "00_a (qtutor 1.1).ipynb").read_text() == "00_a, better"


def test_a_file_of_the_same_name_that_was_there_before_is_kept(shipped, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "00_a.ipynb").write_text("something else")
    assert len(lay_out(mine, shipped, "1.0")) == 2
    assert (mine / "00_a.ipynb").read_text() == "something else"


def test_a_lesson_that_was_thrown_away_comes_back(shipped, tmp_path):
    mine = tmp_path / "mine"
    lay_out(mine, shipped, "1.0")
    (mine / "01_b.ipynb").unlink()
    assert lay_out(mine, shipped, "1.0") == [f"Laid into {mine}: 01_b.ipynb."]


def test_the_wheel_holds_the_lessons(tmp_path):
    wheel = next(iter(WheelBuilder(str(COURSE)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {f"qtutor/{lesson.notebook}" for lesson in LESSONS} <= {*names}
    assert all(f"qtutor/explorers/player.{kind}" in names for kind in ("js", "css", "html"))
