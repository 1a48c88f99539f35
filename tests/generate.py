"""Write what the manifest and the exercises decide into the files that show it: `python tests/generate.py`.

README gets its table of lessons; the first cell of each lesson its title, what it needs and its times, lesson 10 its
glossary; the pages for instructors their titles, the answers to the exercises, and the timetables. All else in these
files is written by hand.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from qtutor import (
    exercises,
    quick,  # noqa: F401  before nbformat
)
from qtutor.exercises.exercise import Exercise
from qtutor.manifest import COURSE, LESSONS, TEACHING, Lesson

import nbformat
from glossary import TERMS
from plans import timetables


def contents() -> dict[Path, str]:
    """Return the text that each of these files should have.

    Raises:
        FileNotFoundError: a lesson of the manifest has no notebook or no notes.
        ValueError: a file lacks the heading under which something is written.
    """
    texts = {}
    for lesson in LESSONS:
        texts[COURSE / lesson.notebook] = _notebook(lesson)
        notes = TEACHING / f"{lesson.name}.md"
        _, _, body = notes.read_text(encoding="utf-8").partition("\n")
        texts[notes] = f"# Teaching {lesson.number}, {lesson.title}\n{body}"
    for path, heading, section in _sections():
        text = texts.get(path) or path.read_text(encoding="utf-8")
        before, found, rest = text.partition(f"\n{heading}\n")
        if not found:
            raise ValueError(f"{path} has no heading {heading!r}, under which something is to be written")
        _, following, after = rest.partition("\n#")
        texts[path] = f"{before}{found}\n{section}\n{following}{after}"
    return texts


def _notebook(lesson: Lesson) -> str:
    notebook = nbformat.read(COURSE / lesson.notebook, 4)
    lines = notebook.cells[0].source.split("\n")
    for opening, said in (("**You need**", prerequisites(lesson)), ("**Reading", times(lesson))):
        lines = [said if line.startswith(opening) else line for line in lines]
    notebook.cells[0].source = "\n".join([f"# {lesson.title}", *lines[1:]])
    for cell in notebook.cells:
        before, found, rest = cell.source.partition("## Glossary\n")
        if found:
            _, following, after = rest.partition("\n#")
            terms = "\n".join(f"- **{term.name}**: {term.says}." for term in TERMS)
            cell.source = f"{before}{found}\n{terms}\n{following}{after}".rstrip("\n")
    return nbformat.writes(notebook) + "\n"


def prerequisites(lesson: Lesson) -> str:
    """What a learner should have done before, as the lesson says it."""
    if not lesson.needs:
        return "**You need** a little Python and PyTorch: what a module, a tensor and a training loop are."
    first, last = lesson.needs[:-1], lesson.needs[-1]
    named = f"lesson{'s' if first else ''} {', '.join(first)}{' and ' if first else ''}{last}"
    builds = any(each.needs for each in LESSONS if each.number in lesson.needs)
    more = f", and what {'they build' if first else 'it builds'} on" if builds else ""
    return f"**You need** {named}{more}."


def times(lesson: Lesson) -> str:
    """How long it takes to read and to run, as it tells the learner."""
    reading = f"{' and '.join(map(str, lesson.minutes))} minutes"
    if len(lesson.minutes) > 1:
        reading += " with a stop between"
    if lesson.exercises:
        reading += f", {lesson.exercises} of them for exercises"
    running = f"about {lesson.seconds} seconds"
    if lesson.first_seconds:
        running += f", {lesson.first_seconds} more the first time"
    return f"**Reading and working:** {reading} (an estimate). **Running:** {running}."


def _sections() -> Iterator[tuple[Path, str, str]]:
    """Yield files, a heading in each, and what stands under it."""
    rows = [
        f"| [{lesson.number} {lesson.title}]({lesson.notebook}) | {lesson.summary} | {sum(lesson.minutes)} |"
        for lesson in LESSONS
    ]
    yield COURSE / "README.md", "## Lessons", "\n".join(["| lesson | about | minutes |", "| --- | --- | --- |", *rows])
    for heading, table in timetables().items():
        yield TEACHING / "plans.md", heading, table
    for lesson in LESSONS:
        source = (COURSE / lesson.notebook).read_text(encoding="utf-8")
        given = exercises.of(lesson).exercises.by_name.values()
        answers = map(_answer, sorted(given, key=lambda exercise: source.find(f"exercises.{exercise.name}.")))
        yield TEACHING / f"{lesson.name}.md", "### Exercises", "\n".join(answers)


def _answer(exercise: Exercise) -> str:
    """The solution of an exercise as an item of a list, in the order of the lesson."""
    solution = exercise.solution()
    text = textwrap.fill(f"- **{exercise.name}**: {solution.text}", 100, subsequent_indent="  ")
    code = textwrap.indent(f"```python\n{solution.code}\n```", "  ")
    return f"{text}\n\n{code}\n" if solution.code else text


def main() -> None:
    """Write the files that differ, and name them."""
    for path, text in contents().items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(COURSE)}")


if __name__ == "__main__":
    main()
