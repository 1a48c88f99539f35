"""The pages for instructors: complete, in step with the lessons, and out of the learner's way."""

import itertools
import math
import re
import zipfile
from dataclasses import replace
from pathlib import Path

from qtutor import cli
from qtutor.benchmark.comparison import _outcome
from qtutor.course import example, notebooks, reference
from qtutor.diagnosis import diagnose
from qtutor.manifest import LESSONS, TEACHING
from qtutor.roofline import Peaks
from qtutor.samples import trained

import nbformat
import plans
import pytest
import torch
from hatchling.builders.wheel import WheelBuilder
from lab import COURSE

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEACHING.glob("*.md"))}
OTHERS = {"board", "plans", "reference", "share_out", "test", "test_answers"}
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


def test_the_pages_are_notes_for_each_lesson_and_six_more():
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
        assert sum(line.startswith("- ") for line in section(lesson.name, heading)) >= 3, f"three items under {heading}"
    asked = " ".join(section(lesson.name, "## For peer discussion"))
    assert asked.count("*A good answer holds:*") == 2, "two questions, each with *A good answer holds:*"


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


def drawn_days():
    """The rows of each table that the page of plans shows."""
    tables = "\n\n".join(plans.timetables().values()).split("| from |")[1:]
    return [rows(f"| from |{table}".splitlines()) for table in tables]


def minutes_of_a_lesson(lesson, core):
    """The lesson with cores of so many minutes."""
    return replace(lesson, minutes=(core,) * len(lesson.minutes))


COURSES = {
    "as it is": LESSONS,
    "short": tuple(minutes_of_a_lesson(lesson, 20) for lesson in LESSONS),
    "long": tuple(minutes_of_a_lesson(lesson, 45) for lesson in LESSONS),
    "mixed": tuple(minutes_of_a_lesson(lesson, 20 + 5 * (i % 6)) for i, lesson in enumerate(LESSONS)),
    "one lesson": LESSONS[:1],
    "more lessons": tuple(replace(lesson, name=f"{i:02}_x") for i, lesson in enumerate(LESSONS + LESSONS[-3:])),
}
courses = pytest.mark.parametrize("course", COURSES.values(), ids=COURSES)


def test_what_a_plan_begins_follows_what_it_ends():
    for *planned, (end, total, _) in drawn_days():
        clock = 9 * 60
        for begins, minutes, _ in planned:
            assert begins == f"{clock // 60:02}:{clock % 60:02}"
            clock += int(minutes)
        assert (end, int(total)) == (f"{clock // 60:02}:{clock % 60:02}", clock - 9 * 60)


def test_the_page_holds_the_half_day_and_each_day_of_the_whole_course():
    half_day, *days = ([(int(minutes), what) for _, minutes, what in day[:-1]] for day in drawn_days())
    assert (half_day, days) == (plans.half_a_day(), plans.whole_course())
    for table in plans.timetables().values():
        assert table in PAGES["plans"]


@courses
def test_the_whole_course_holds_every_part_of_every_lesson_in_order(course):
    parts = [f"{lesson.number}, {part}" for lesson in course for part in lesson.parts]
    assert [what for day in plans.whole_course(course) for _, what in day if what in parts] == parts


@courses
def test_nobody_sits_too_long_and_every_day_has_slack(course):
    half_day = plans.half_a_day(course) if len(course) == len(LESSONS) else []
    days = plans.whole_course(course)
    for day in filter(None, [half_day, *days]):
        for paused, stretch in itertools.groupby(day, lambda row: row[1] in plans.PAUSES):
            rows = list(stretch)
            assert len(rows) == 1 if paused else sum(minutes for minutes, _ in rows) <= plans.LONGEST
        assert day[0][1] not in plans.PAUSES
        assert day[-1][1] not in plans.PAUSES
        assert [minutes >= 10 for minutes, what in day if what.startswith("slack")] == [True]
    for day in days:
        length, lunches = sum(minutes for minutes, _ in day), [what for _, what in day].count("lunch")
        assert length <= 8.75 * 60
        assert lunches == (length > 4.5 * 60)
    assert "welcome" in days[0][0][1]


@courses
def test_days_are_alike(course):
    """No other day that begins elsewhere makes them more so: none is twice as long as another."""
    worked = [sum(minutes for minutes, what in day if what not in plans.PAUSES) for day in plans.whole_course(course)]
    assert max(worked) < 2 * min(worked)


def test_half_a_day_welcomes_and_holds_its_parts_in_order():
    said = [what for _, what in plans.half_a_day()]
    assert said[0].startswith("welcome")
    planned = [
        (what.partition(", one mission")[0], minutes) for minutes, what in plans.half_a_day() if what[0].isdigit()
    ]
    assert [part for part, _ in planned] == list(plans.HALF_A_DAY)
    whole = {f"{lesson.number}, {part}": minutes for lesson in LESSONS for part, minutes in lesson.parts.items()}
    assert all(minutes <= whole[part] for part, minutes in planned)


def test_half_a_day_takes_exercises_home_only_where_a_core_has_more_than_one_of_each():
    full = [
        replace(lesson, minutes=(45,) * len(lesson.minutes), exercises=23 * len(lesson.minutes)) for lesson in LESSONS
    ]
    shortened = {what[:2]: (minutes, what) for minutes, what in plans.half_a_day(full) if what[0].isdigit()}
    assert shortened["00"] == (45, "00, core")  # it has no missions
    assert shortened["01"] == (35, "01, core, one mission, one exercise")
    assert shortened["08"] == (35, "08, first half, one mission, one exercise")
    few = [replace(lesson, exercises=9) for lesson in LESSONS]
    assert not any("one mission" in what for _, what in plans.half_a_day(few))


def test_what_half_a_day_leaves_out_is_said_before_it_is_needed():
    taught = [part[:2] for part in plans.HALF_A_DAY]
    said = "\n".join(section("plans", "### What to say of lessons left out"))
    for lesson in LESSONS:
        if lesson.number in taught:
            for needed in {*lesson.needs} - {*taught}:
                assert f"**{needed}, before {lesson.number}.**" in said
        else:
            item = rf"^- \*\*[^*]*{lesson.number}"
            assert re.search(item, said, re.MULTILINE), f"plans.md has no item - **{lesson.number}, in the share-out.**"


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
    more = f"\nWhat its cells printed on one computer: qtutor teach reference {name[:2]}\n" if name[0].isdigit() else ""
    assert capsys.readouterr().out == PAGES[name] + more


def test_the_reference_run_is_printed_by_lesson(capsys):
    assert cli.main(["teach", "reference", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("## 01 ")
    assert printed in PAGES["reference"] + "\n"
    assert printed.count("\n## ") == 0
    assert cli.main(["teach", "reference", "77"]) == 1
    assert capsys.readouterr().err.startswith("The reference run has no lesson '77': it has 00, ")
    assert cli.main(["teach", "plans", "05"]) == 1
    assert capsys.readouterr().err == "Only the page `reference` is in lessons: qtutor teach reference 05.\n"


OUTPUTS = {
    "guess = ...": [("stream", {"name": "stdout", "text": "You made no guess; the answer is 3.6.\n"})],
    "table": [("execute_result", {"data": {"text/plain": "   a × b\n0    −12", "text/html": "<table>"}})],
    "plots.lines()": [("display_data", {"data": {"application/vnd.plotly.v1+json": {}, "text/html": "<div>"}})],
    "for _ in tqdm(range(3)): pass": [
        ("display_data", {"data": {notebooks.WIDGET: {}, "text/plain": "Training:   0%|   "}}),
        ("stream", {"name": "stderr", "text": "a notice"}),
    ],
    "explorer": [("display_data", {"data": {notebooks.WIDGET: {}, "text/plain": "4 bits, SQNR 15.3 dB."}})],
    "exercises.one.check(answer)": [
        ("execute_result", {"data": {"text/plain": "… Open. Replace the ...\n0 of 7 right in this lesson."}})
    ],
    "exercises.one.hint()": [("execute_result", {"data": {"text/plain": "Hint 1 of 2: think."}})],
    "many": [("stream", {"name": "stdout", "text": "".join(f"line {i}\n" for i in range(30))})],
}


def test_a_section_of_the_reference_run_holds_what_cells_print_under_its_headings():
    cells = [nbformat.v4.new_markdown_cell("# Title\n\n## First\n\ntext"), nbformat.v4.new_markdown_cell("## Second")]
    for source, outputs in OUTPUTS.items():
        made = [nbformat.v4.new_output(kind, **content) for kind, content in outputs]
        cells.append(nbformat.v4.new_code_cell(source, outputs=made))
    said = reference.section(LESSONS[5], nbformat.v4.new_notebook(cells=cells), "Run here.")
    assert said.startswith(f"## 05 {LESSONS[5].title}\n\nRun here.\n\n### Second\n\n    The answer is 3.6.\n\n")
    shown = [paragraph.strip() for paragraph in said.split("\n\n")[3:]]
    assert shown[:3] == ["The answer is 3.6.", "a x b\n    0    -12", "4 bits, SQNR 15.3 dB."]
    assert len(shown) == 4
    assert shown[3].endswith("line 23\n    ... and 6 lines more")
    assert said.isascii()


def test_running_one_lesson_leaves_the_rest_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "PAGE", tmp_path / "reference.md")
    monkeypatch.setattr(notebooks, "run", lambda notebook: notebook)
    assert reference.main(["05", "01"]) == 0
    written = reference.PAGE.read_text().replace(LESSONS[1].title, "Kept")
    reference.PAGE.write_text(written)
    assert reference.main(["03"]) == 0
    page = reference.PAGE.read_text()
    assert page.startswith(reference.OPENING)
    assert list(reference.sections(page)) == ["01", "03", "05"]
    assert "## 01 Kept\n\nRun on 2" in page
    assert f"torch {torch.__version__}" in page.replace("\n", " ")
    assert reference.main(["77"]) == 1
    assert capsys.readouterr().err == "There is no lesson 77.\n"


def test_the_reference_run_says_where_it_ran_under_headings_of_the_lessons():
    """A lesson whose headings have changed since is to be run again: python -m qtutor.course.reference NN."""
    assert PAGES["reference"].startswith(reference.OPENING)
    held = reference.sections(PAGES["reference"])
    assert list(held) == sorted(held)
    for lesson in LESSONS:
        if lesson.number in held:
            text = held[lesson.number]
            assert text.startswith(f"## {lesson.number} {lesson.title}\n\nRun on 20")
            sources = [cell.source for cell in nbformat.read(COURSE / lesson.notebook, 4).cells]
            headings = re.findall("^##? (.+)$", "\n".join(sources), re.MULTILINE)
            assert [
                heading for heading in re.findall("^### (.+)$", text, re.MULTILINE) if heading not in headings
            ] == []


def test_the_reference_run_holds_every_lesson():
    held = list(reference.sections(PAGES["reference"]))
    assert held == [lesson.number for lesson in LESSONS], "run: python -m qtutor.course.reference NN"


def test_the_sketch_of_the_interval_is_right():
    table = rows(section("board", "## The interval: why eight coins are enough"))
    for rounds, left_out, spans in table:
        tail = sum(math.comb(int(rounds), heads) for heads in range(int(left_out) + 1)) / 2 ** int(rounds)
        assert spans == f"{1 - 2 * tail:.1%}"
    assert "6" not in [rounds for rounds, *_ in table]  # the first exercise
    for outcome in (_outcome(1.1, 1.2, 0.99), _outcome(0.8, 0.9, 0.99), _outcome(0.9, 1.1, 0.99)):
        assert f"  {outcome}\n" in PAGES["board"]


def test_the_sketch_of_the_roof_is_right():
    """Four columns are a factor of 2, and so is a row, and both slopes rise with the intensity."""
    roofs = Peaks(bandwidth=20e9, float_rate=100e9, int8_rate=400e9).roofs
    lines = {
        line[:5].strip(): line[7:]
        for line in section("board", "## The roof: what a layer waits for")
        if line[6:7] == "|"
    }
    for name, corners in (("float", {25: 7, 50: 11, 100: 15}), ("int8", {25: 0, 50: 3, 100: 7, 200: 11, 400: 15})):
        rate, bandwidth = roofs[name]
        for height, column in corners.items():
            assert lines[str(height)][column] in ".'"
            assert math.isclose(math.log2(height * 1e9 / bandwidth), math.log2(5) + (column - 15) / 4, abs_tol=0.3)
        assert max(corners) * 1e9 == rate


SHELLS = re.findall(
    r"^```sh\n(.*?)\n```\n(.*?)^```powershell\n(.*?)\n```$", PAGES["share_out"], re.MULTILINE | re.DOTALL
)


@pytest.mark.slow
def test_the_report_of_the_share_out_is_made_by_its_command(home_of_the_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QTUTOR_HOME", str(home_of_the_run))
    monkeypatch.chdir(tmp_path)
    ((line, _, windows),) = SHELLS
    assert windows == line.replace(".venv/bin/", ".venv\\Scripts\\")
    program, *arguments = line.split()
    assert program == ".venv/bin/qtutor"
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("Written: report.html\n")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    places = [
        page.index(words)
        for words in ("Recommended: 8 bits, weights per channel", "the most harmful first", "Repairs in turn")
    ]
    assert places == sorted(places)
    found = diagnose(example.build(), example.loader(), progress=False)
    assert len(found.table) == 10  # as the page counts them
    assert (found.table["alone_sqnr"] < 3).sum() == 4
    assert list(found.steps["step"]) == ["as diagnosed", "a scale for each channel"]
    assert found.table["finding"].str.contains(r"its weights are \d{3} times as wide").sum() == 4


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["features.0.conv", "features.2.conv", "features.4.conv", "features.5.conv"])
def test_the_spoilt_network_computes_what_it_did_and_the_diagnosis_names_the_layer(layer, home_of_the_run, monkeypatch):
    monkeypatch.setenv("QTUTOR_HOME", str(home_of_the_run))
    images = torch.cat([images for images, _ in example.loader()])
    spoilt = example.spoilt(layer)
    with torch.no_grad():
        assert torch.allclose(spoilt(images), trained("digits_cnn")(images), atol=1e-3)
    table = diagnose(spoilt, example.loader(), progress=False).table
    assert (table["layer"][0], table["finding"][0][:14]) == (layer, "uneven weights")


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


def test_the_reference_run_names_no_folder_of_the_computer_that_ran_it():
    output = nbformat.v4.new_output("stream", name="stdout", text=f"refused at {COURSE / 'qtutor' / 'samples.py'}:50\n")
    cells = [nbformat.v4.new_markdown_cell("## Part"), nbformat.v4.new_code_cell("1", outputs=[output])]
    said = reference.section(LESSONS[5], nbformat.v4.new_notebook(cells=cells), "Run here.")
    assert f"refused at {Path('qtutor') / 'samples.py'}:50" in said
    assert not re.search(r"(?<![\w.:/])/(?:home|root|tmp|work|Users)/", PAGES["reference"])
