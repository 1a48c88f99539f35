"""The pages for instructors: complete, in step with the lessons and their exercises, and out of the learner's way."""

import ast
import importlib
import inspect
import pkgutil
import re
import zipfile
from pathlib import Path

import qtutor.exercises
from qtutor import cli

import nbformat
import pytest
from hatchling.builders.wheel import WheelBuilder

COURSE = Path(__file__).resolve().parent.parent
LESSONS = sorted((COURSE / "lessons").glob("*.ipynb"))
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(cli.TEACHING.glob("*.md"))}
NOTES = {name: text for name, text in PAGES.items() if name[0].isdecimal()}
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
EXERCISES = [
    pytest.param(exercise, id=f"{module.lesson.name}-{exercise.name}")
    for info in pkgutil.iter_modules(qtutor.exercises.__path__)
    if hasattr(module := importlib.import_module(f"qtutor.exercises.{info.name}"), "lesson")
    for exercise in module.lesson.exercises.values()
]
notes = pytest.mark.parametrize("name", NOTES)
lessons = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def section(name: str, heading: str) -> str:
    """What stands in a page under a heading, down to the next of the same rank or a higher one."""
    assert name in PAGES, f"write qtutor/teaching/{name}.md, with the headings of the others"
    rank = heading.split()[0]
    _, text = PAGES[name].split(f"\n{heading}\n")
    return re.split(rf"^#{{1,{len(rank)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def items(text: str) -> list[str]:
    """The points of a list, each on one line."""
    return [" ".join(item.split()) for item in re.split(r"^(?:- |\d+\. )", text, flags=re.MULTILINE)[1:]]


def rows(text: str) -> list[list[str]]:
    """The cells of a table without its head."""
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [row for row in table if any(cell.isdecimal() for cell in row)]


def squeezed(code: str) -> str:
    return "".join(code.split())


def minutes(name: str) -> dict[str, int]:
    """How long each part of a lesson takes, by its notes."""
    found: dict[str, int] = {}
    for part, length, _ in rows(section(name, "## Minutes")):
        found[part] = found.get(part, 0) + int(length)
    return found


def test_the_pages_are_notes_for_each_lesson_and_four_more():
    assert PAGES.keys() - NOTES.keys() == OTHERS
    assert [*NOTES] == [path.stem for path in LESSONS]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints_on_any_terminal(name):
    text = PAGES[name]
    assert text.isascii()
    assert text.startswith("# ")
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


@notes
def test_notes_have_their_parts_in_order(name):
    assert re.findall(r"^##+ .*$", PAGES[name], re.MULTILINE) == HEADINGS
    for heading in ("## Aims", "## Where people stumble", "## What to ask"):
        assert len(items(section(name, heading))) >= 3


@notes
def test_two_questions_for_discussion_say_what_a_good_answer_holds(name):
    questions = items(section(name, "## For peer discussion"))
    assert len(questions) == 2
    for question in questions:
        asked, holds = question.split("*A good answer holds:*")
        assert "?" in asked or asked.rstrip().endswith(".")
        assert len(holds.split()) > 10


@lessons
def test_the_minutes_of_a_core_are_those_that_the_lesson_promises(path):
    found = minutes(path.stem)
    promised = re.search(r"\*\*Reading:\*\*(.*?)\*\*Running", nbformat.read(path, 4).cells[0].source, re.DOTALL)[1]
    cores = [length for part, length in found.items() if part not in ("discussion", "go deeper")]
    assert {str(length) for length in cores} == {*re.findall(r"\d+", promised)}
    assert len(cores) == (2 if "two" in promised else 1)


@lessons
def test_the_sections_that_notes_name_are_those_of_the_lesson(path):
    markdown = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    headings = {*re.findall(r"^##? (.*)$", "\n".join(markdown), re.MULTILINE)}
    named = [title for *_, what in rows(section(path.stem, "## Minutes")) for title in what.split("; ")]
    assert [title for title in named if title[0].isupper() and title not in headings] == []


@lessons
def test_every_prediction_of_a_lesson_is_answered(path):
    guesses = [cell for cell in nbformat.read(path, 4).cells if cell.source.startswith("guess = ...")]
    answers = [item for item in items(section(path.stem, "### Predictions")) if item.startswith("**")]
    assert len(answers) == len(guesses)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_every_exercise_is_answered_right(exercise):
    found = [i for i in items(section(exercise.lesson.name, "### Exercises")) if i.startswith(f"**{exercise.name}**")]
    assert len(found) == 1, f'answer "- **{exercise.name}**" in teaching/{exercise.lesson.name}.md, "### Exercises"'
    noted = re.findall(r"`(.+?)`", found[0])
    if callable(exercise.answer):
        solution = squeezed(inspect.getsource(exercise.answer))
        assert [code for code in noted if squeezed(code) not in solution] == []
        assert len(found[0].split()) > 4
    elif isinstance(exercise.answer, dict) and "features." in str(exercise.answer):
        assert all(any(code in layer for layer in str(exercise.answer).split(", ")) for code in noted)
    elif isinstance(exercise.answer, dict):
        call = ast.parse(f"set({noted[0]})", mode="eval").body
        assert {word.arg: ast.literal_eval(word.value) for word in call.keywords} == exercise.answer
    else:
        assert exercise.judge(ast.literal_eval(noted[0])) is None


@notes
def test_notes_answer_no_exercise_that_is_gone(name):
    known = {p.values[0].name for p in EXERCISES if p.values[0].lesson.name == name}
    if known:
        answered = re.findall(r"^- \*\*(\w+)\*\*", section(name, "### Exercises"), re.MULTILINE)
        assert sorted(answered) == sorted(known)


def days(plan: str) -> list[list[list[str]]]:
    """The rows of each table of a plan."""
    return [found for block in re.split(r"\n\n", section("plans", plan)) if (found := rows(block))]


PLANS = re.findall(r"^## (?:Half a day|Two days): \d+ minutes$", PAGES["plans"], re.MULTILINE)


def test_there_are_two_plans():
    assert [plan.split(":")[0] for plan in PLANS] == ["## Half a day", "## Two days"]


@pytest.mark.parametrize("plan", PLANS)
def test_the_minutes_of_a_plan_add_up(plan):
    total = 0
    for day in days(plan):
        hours, start = map(int, day[0][0].split(":"))
        clock = 60 * hours + start
        for begins, length, _ in day:
            assert begins == f"{clock // 60:02}:{clock % 60:02}"
            clock += int(length)
            total += int(length)
    assert total == int(plan.split()[-2])


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_takes_the_minutes_of_its_lessons_from_their_notes(plan):
    by_number = {name[:2]: minutes(name) for name in NOTES}
    for day in days(plan):
        for _, length, what in day:
            if match := re.fullmatch(r"(\d\d), (.+)", what):
                assert int(length) == by_number[match[1]][match[2]], what


def parts(plan: str) -> list[str]:
    return [what for day in days(plan) for *_, what in day if what[0].isdecimal()]


def test_half_a_day_holds_three_cores_and_two_halves():
    assert parts(PLANS[0]) == ["00, core", "01, core", "03, core", "05, first half", "08, first half"]


def test_two_days_hold_every_core_and_every_discussion_in_order():
    wanted = [f"{name[:2]}, {part}" for name in NOTES for part in minutes(name) if part != "go deeper"]
    assert parts(PLANS[1]) == wanted, "each part of a lesson's notes has a row in the plan for two days in plans.md"


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_tests_before_and_after_and_ends_with_the_share_out_near(plan):
    whats = [what for day in days(plan) for *_, what in day]
    assert [what.split(" (")[0] for what in whats if what.startswith("test")] == ["test, before", "test, after"]
    assert any(what.startswith("share-out") for what in whats[-2:])


def test_the_test_has_ten_questions_of_five_choices_and_no_answers():
    questions = re.split(r"^\*\*\d+\.\*\*", PAGES["test"], flags=re.MULTILINE)[1:]
    assert len(questions) == 10
    for question in questions:
        assert re.findall(r"\b([a-e])\) ", question) == ["a", "b", "c", "d", "e"]
        assert question.rstrip(".\n").endswith("e) I do not know")
    assert "lesson" not in PAGES["test"]
    assert "answers" not in PAGES["test"]


def test_each_question_has_an_answer_a_reason_and_a_lesson():
    table = rows(PAGES["test_answers"].split("## Reading")[0])
    assert [row[0] for row in table] == [str(number) for number in range(1, 11)]
    assert {letter for _, letter, *_ in table} == {*"abcd"}
    assert {row[2] for row in table} <= {name[:2] for name in NOTES}
    assert len(items(PAGES["test_answers"].split("## Reading")[0])) == 10


def test_questions_of_half_a_day_are_those_of_its_lessons():
    taught = {what[:2] for what in parts(PLANS[0])}
    for question, _, lesson, half_a_day in rows(PAGES["test_answers"].split("## Reading")[0]):
        assert half_a_day in ("yes", "no")
        assert half_a_day == "no" or lesson in taught, question


@lessons
def test_no_lesson_leads_to_the_answers_or_shows_a_solution(path):
    for cell in nbformat.read(path, 4).cells:
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


def test_the_wheel_holds_the_pages(tmp_path):
    wheel = next(iter(WheelBuilder(str(COURSE)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name).stem for name in archive.namelist() if name.startswith("qtutor/teaching/")}
    assert held == PAGES.keys()


def test_the_readme_names_the_command():
    assert "qtutor teach" in (COURSE / "README.md").read_text(encoding="utf-8")
