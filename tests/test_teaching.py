"""The pages for instructors: complete, in step with the lessons, and out of the learner's way."""

import zipfile

from qtutor import cli
from qtutor.course import plans
from qtutor.manifest import LESSONS, TEACHING

import nbformat
import pytest
from hatchling.builders.wheel import WheelBuilder
from lab import COURSE

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEACHING.glob("*.md"))}
OTHERS = {"plans", "share_out", "test", "test_answers"}
HEADINGS = [
    "## Aims",
    "## Minutes",
    "## Where people stumble",
    "## What to ask",
    "## Answers",
    "### Predictions",
    "### Exercises",
    "## For peer discussion",
]
lessons = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)


@pytest.fixture
def cells(lesson):
    return nbformat.read(COURSE / lesson.notebook, 4).cells


def section(name: str, heading: str) -> list[str]:
    """The lines of a page under a heading, down to the next heading of any rank."""
    lines = PAGES[name].splitlines()
    lines = lines[lines.index(heading) + 1 :]
    return lines[: next((i for i, line in enumerate(lines) if line.startswith("#")), None)]


def rows(lines: list[str]) -> list[list[str]]:
    """The cells of a table without its head."""
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]


def test_the_pages_are_notes_for_each_lesson_and_four_more():
    assert PAGES.keys() == {lesson.name for lesson in LESSONS} | OTHERS


@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints_on_any_terminal(name):
    text = PAGES[name]
    assert text.isascii()
    assert text.startswith("# ")
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


@lessons
def test_notes_have_their_parts_in_order(lesson):
    assert [line for line in PAGES[lesson.name].splitlines() if line.startswith("##")] == HEADINGS
    for heading in ("## Aims", "## Where people stumble", "## What to ask"):
        assert sum(line.startswith("- ") for line in section(lesson.name, heading)) >= 3
    assert " ".join(section(lesson.name, "## For peer discussion")).count("*A good answer holds:*") == 2


@lessons
def test_the_minutes_of_the_notes_are_those_of_the_manifest(lesson):
    parts, exercises = {}, 0
    for part, minutes, what in rows(section(lesson.name, "## Minutes")):
        parts[part] = parts.get(part, 0) + int(minutes)
        exercises += int(minutes) * what.lower().startswith("exercises")
    parts.pop("go deeper", None)
    assert (parts, exercises) == (lesson.parts, lesson.exercises)


@lessons
def test_the_sections_that_notes_name_are_those_of_the_lesson(lesson, cells):
    markdown = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown").splitlines()
    headings = {line.lstrip("# ") for line in markdown if line.startswith(("# ", "## "))}
    named = [title for *_, what in rows(section(lesson.name, "## Minutes")) for title in what.split("; ")]
    assert [title for title in named if title[0].isupper() and title not in headings] == []


@lessons
def test_every_prediction_of_a_lesson_is_answered(lesson, cells):
    answers = [line for line in section(lesson.name, "### Predictions") if line.startswith("- **")]
    assert len(answers) == sum(cell.source.startswith("guess = ...") for cell in cells)


@pytest.mark.parametrize("heading", plans.timetables())
def test_what_a_plan_begins_follows_what_it_ends(heading):
    *planned, (end, total, _) = rows(plans.timetables()[heading].splitlines())
    clock = 9 * 60
    for begins, minutes, _ in planned:
        assert begins == f"{clock // 60:02}:{clock % 60:02}"
        clock += int(minutes)
    assert (end, int(total)) == (f"{clock // 60:02}:{clock % 60:02}", clock - 9 * 60)


def test_two_days_hold_every_part_of_every_lesson_in_order():
    _, *days = plans.timetables().values()
    planned = [row[2] for day in days for row in rows(day.splitlines())]
    assert [what for what in planned if what in plans.PARTS] == list(plans.PARTS)


def test_the_test_has_ten_questions_of_five_choices_and_no_answers():
    _, *questions = PAGES["test"].split("\n**")
    assert [question.partition(".")[0] for question in questions] == [str(number) for number in range(1, 11)]
    for question in questions:
        assert all(f"{letter}) " in question for letter in "abcd")
        assert question.rstrip(".\n").endswith("e) I do not know")
    assert "lesson" not in PAGES["test"]
    assert "answers" not in PAGES["test"]


def test_each_question_has_an_answer_and_a_lesson_and_half_a_day_asks_what_it_taught():
    answers = rows(PAGES["test_answers"].partition("## Reading")[0].splitlines())
    assert [number for number, *_ in answers] == [str(number) for number in range(1, 11)]
    taught = {part[:2] for part in plans.HALF_A_DAY}
    for number, letter, lesson, half_a_day in answers:
        assert letter in "abcd"
        assert lesson in {lesson.number for lesson in LESSONS}
        assert half_a_day == "no" or lesson in taught, number
        assert f"\n{number}. " in PAGES["test_answers"]


@lessons
def test_no_lesson_leads_to_the_answers_or_shows_a_solution(cells):
    for cell in cells:
        assert "qtutor teach" not in cell.source
        assert "teaching/" not in cell.source
        assert cell.cell_type != "code" or ".solution(" not in cell.source


def test_without_a_page_the_command_lists_them_and_says_that_they_hold_answers(capsys):
    assert cli.main(["teach"]) == 0
    printed = capsys.readouterr().out
    assert "answers" in printed.splitlines()[0]
    assert [line.split()[0] for line in printed.splitlines()[1:]] == list(PAGES)


BY_NUMBER = dict.fromkeys(("03", "3", "03_observers"), "03_observers") | {"10": "10_your_own_model"}


@pytest.mark.parametrize(("asked", "name"), [*BY_NUMBER.items(), *((name, name) for name in sorted(OTHERS))])
def test_a_page_is_printed_by_number_or_name_and_no_other_with_it(asked, name, capsys):
    assert cli.main(["teach", asked]) == 0
    assert capsys.readouterr().out == PAGES[name]


@pytest.mark.parametrize("asked", ["99", "te", "observers", "", "../cli"])
def test_an_unknown_page_gets_one_sentence(asked, capsys):
    assert cli.main(["teach", asked]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"There is no page {asked!r}: qtutor teach alone lists those there are.\n"


def test_pages_are_copied_to_a_folder_and_copying_again_changes_nothing(tmp_path, capsys):
    folder = tmp_path / "a room" / "notes"
    for _ in range(2):
        assert cli.main(["teach", "--out", str(folder)]) == 0
        assert {path.stem: path.read_text() for path in folder.iterdir()} == PAGES
    assert str(folder) in capsys.readouterr().out


def test_one_page_alone_can_be_copied(tmp_path):
    assert cli.main(["teach", "test", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["test.md"]


def test_a_page_that_was_changed_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "plans.md").write_text("my own plan")
    assert cli.main(["teach", "--out", str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["plans.md"]
    assert (tmp_path / "plans.md").read_text() == "my own plan"
    assert "nothing is written" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["teach", "--out", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_the_wheel_holds_all_that_the_package_reads(tmp_path):
    wheel = next(iter(WheelBuilder(str(COURSE)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(wheel) as archive:
        held = {*archive.namelist()}
    package = {path for path in (COURSE / "qtutor").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path.relative_to(COURSE).as_posix() for path in package} <= held
