"""What lessons say, as a strict reader would hold it against them: terms, needs, times, typed numbers, long cells."""

import math
import re

from qtutor.manifest import LESSONS

import nbformat
import pytest
import reading
from glossary import TERMS
from lab import COURSE

NOTEBOOKS = {lesson: nbformat.read(COURSE / lesson.notebook, 4) for lesson in LESSONS}
lessons = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)


def texts(lesson, start=1):
    """The cells of text after the head, without headings, programs and formulas, but with their links."""
    for cell in NOTEBOOKS[lesson].cells[start:]:
        if cell.cell_type == "markdown":
            source = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$\n]+\$", " ", cell.source, flags=re.DOTALL)
            yield re.sub(r"^#+ .*$|`[^`\n]*`", " ", source, flags=re.MULTILINE)


def explains(term, text):
    return re.search(rf"\*\*[^*]*{term.pattern}[^*]*\*\*", text, re.IGNORECASE)


def needed(lesson):
    """The names of the lessons that a lesson builds on."""
    found = set(lesson.needs)
    for other in LESSONS:
        if other.number in lesson.needs:
            found |= needed(other)
    return found


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_a_term_is_explained_where_a_reader_first_meets_it(term):
    """In reading order, and in what each lesson says it needs; a line that links to a lesson sends the reader there."""
    known = set()
    for lesson in LESSONS:
        for text in texts(lesson):
            if explains(term, text):
                known.add(lesson.number)
            elif known.isdisjoint({lesson.number, *needed(lesson)}):
                uses = [line for line in text.splitlines() if re.search(term.pattern, line) and "](" not in line]
                assert not uses, f"{lesson.name} uses {term.name!r} before it is explained: {uses[0].strip()}"
    assert known, f"{term.name!r} is explained nowhere"


def test_the_glossary_is_in_order():
    assert [term.name.lower() for term in TERMS] == sorted(term.name.lower() for term in TERMS)


@lessons
def test_the_times_are_those_of_the_estimate(lesson):
    """Rounded up to five minutes. Nobody was timed; `reading` says how it counts."""
    estimated = [reading.minutes(core) for core in reading.cores(NOTEBOOKS[lesson])]
    assert lesson.minutes == tuple(5 * math.ceil(minutes / 5) for minutes in estimated), estimated
    assert max(lesson.minutes) <= 45, "shorten the core, or end its first half with **Stop here.**"
    cells = [cell.source for core in reading.cores(NOTEBOOKS[lesson]) for cell in core if cell.cell_type == "code"]
    missions = sum(".check(explorer" in source for source in cells)
    others = sum(".check(" in source for source in cells) - missions
    assert lesson.exercises == reading.EXERCISE * others + reading.MISSION * missions


@lessons
def test_cells_are_for_reading(lesson):
    """The first cell of code lists what it imports, and may be longer."""
    cells = [cell.source for cell in NOTEBOOKS[lesson].cells if cell.cell_type == "code"]
    for source, most in zip(cells, (24, *(16,) * len(cells)), strict=False):
        lines = [line for line in source.splitlines() if line.strip()]
        assert len(lines) <= most, f"{len(lines)} lines:\n{source}"
        for clever in (r":=", r"register_forward", r"ExitStack", r"\[:\w*:-1\]", r"graph\.nodes", r"^\s*await "):
            assert not re.search(clever, source, re.MULTILINE), f"{clever} in\n{source}"


MEASURED = re.compile(
    r"(?<![\w.$-])(\d[\d,.]*\d|\d)\s?(?:dB|%|percent|points?|times|ms|MB|kB|GB|µs|(?:micro|milli)?seconds)\b"
)
GIVEN = re.compile(
    r"^(?:- )?\*\*(?:\d+\.|Mission)|^[a-e]\)|^\||\]\(http|arXiv|\?\s*$|<summary>|<details>", re.MULTILINE
)


@lessons
def test_no_number_of_a_measurement_is_typed(lesson):
    """It stands in what a cell prints or in its program, or the paragraph names a source, an exercise or a guess."""
    notebook = NOTEBOOKS[lesson]
    shown = " ".join(
        " ".join([cell.source, *(str(output.get("text", "")) for output in cell.outputs)])
        for cell in notebook.cells
        if cell.cell_type == "code"
    )
    numbers = {number.replace(",", "") for number in re.findall(r"\d[\d,.]*\d|\d", shown.replace("_", ""))}
    for text in texts(lesson):
        for paragraph in re.split(r"\n\n|\n(?=- )", text):
            if not GIVEN.search(paragraph):
                typed = [found for found in MEASURED.findall(paragraph) if found.replace(",", "") not in numbers]
                assert not typed, f"{typed} in: {paragraph.strip()}"


@lessons
def test_a_lesson_ends_with_three_questions_whose_answers_fold_out(lesson):
    recaps = [cell.source for cell in NOTEBOOKS[lesson].cells if re.search("^## Recap", cell.source, re.MULTILINE)]
    answers = re.findall(r"<details><summary>(.+?)</summary>(.+?)</details>", "".join(recaps), re.DOTALL)
    assert (len(recaps), len(answers)) == (1, 3), "one ## Recap, with three <details><summary>..?</summary>..</details>"
    assert all(question.strip().endswith(("?", ".")) and len(answer.split()) >= 5 for question, answer in answers)


RANKED = re.compile(
    r"\b(?:is|are|was|were|runs?|becomes?) (?:[\w*]+ ){0,3}"
    r"(?:faster|slower|quicker|the fastest|the slowest|as fast as)\b"
)
HEDGED = re.compile(r"[\"?]|\b(?:if|where|may|whether|no|not|until|can|say|says|said)\b", re.IGNORECASE)


@lessons
def test_no_ranking_by_speed_is_typed(lesson):
    """A cell says who is faster: a sentence of text asks, quotes, says when, or belongs to an exercise."""
    for text in texts(lesson):
        for paragraph in re.split(r"\n\n|\n(?=- )", text):
            for sentence in re.split(r"(?<=[.!?:])\s+", paragraph.replace("\n", " ")):
                given = GIVEN.search(paragraph) or HEDGED.search(sentence)
                assert given or not RANKED.search(sentence), sentence
