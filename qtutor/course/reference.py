"""The reference run: what the cells of each lesson print on one computer, as a page for instructors.

`python -m qtutor.course.reference` runs every lesson once and writes the page, some minutes; with numbers behind, such
as `05 08`, only these lessons are run, and the rest of the page stays as it is.
"""

import datetime
import os
import re
import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata

from qtutor.course import notebooks
from qtutor.manifest import COURSE, LESSONS, TEACHING, Lesson, course

import nbformat

PAGE = TEACHING / "reference.md"

OPENING = """\
# Reference run

For instructors: what the cells of each lesson printed on one computer. Where the notes say "the cell prints it", the
figure is here, under the heading that the notes name. Sizes, accuracies and decibels will be yours to a digit or two;
times and speed-ups are that computer's alone, so quote what the screen in front of you says.

`qtutor teach reference 05` prints one lesson of this page; `python -m qtutor.course.reference 05` runs it here and
puts the figures of your own computer in its place.
"""

_LINES, _WIDTH = 24, 112  # of one output

# Text as `print` shows it, and a table on one row where a terminal has room.
_PLAINLY = """
import pandas

pandas.set_option("display.width", 108, "display.max_columns", None)
for module, name in (
    ("qtutor.benchmark.comparison", "Comparison"),
    ("qtutor.diagnosis.result", "Diagnosis"),
    ("qtutor.machine", "Machine"),
):
    get_ipython().display_formatter.formatters["text/plain"].for_type_by_name(
        module, name, lambda shown, printer, cycle: printer.text(str(shown))
    )
"""

_ASCII = str.maketrans({"…": "...", "×": "x", "–": "-", "−": "-", "·": "*", "≥": ">=", "≤": "<=", "∞": "inf"})


def sections(page: str) -> dict[str, str]:
    """Return the text of each lesson in a page, by its number."""
    return {text[:2]: f"## {text.rstrip()}\n" for text in page.split("\n## ")[1:]}


def section(lesson: Lesson, notebook: nbformat.NotebookNode, setting: str) -> str:
    """Return what the cells of an executed notebook printed, under the headings of the lesson."""
    parts: list[str] = [f"## {lesson.number} {lesson.title}", textwrap.fill(setting, _WIDTH)]
    heading, said = "", ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = [heading, *re.findall(r"^##? (.+)$", cell.source, re.MULTILINE)][-1]
            continue
        lines = [line for output in cell.get("outputs", []) for line in _lines(output)]
        if lines and ".hint(" not in cell.source:
            if heading != said:
                parts.append(f"### {heading}")
                said = heading
            parts.append(textwrap.indent("\n".join(lines), "    "))
    return "\n\n".join(parts) + "\n"


def _lines(output: nbformat.NotebookNode) -> Iterator[str]:
    """Yield the lines of what a cell printed or showed as text; no picture, address, progress or open exercise."""
    if output.output_type == "stream":
        text = output.text if output.name == "stdout" else ""
    else:
        text = "" if notebooks.is_progress(output) else output.get("data", {}).get("text/plain", "")
    text = text.replace(f"{COURSE}{os.sep}", "")  # no folder of a computer is named in the page
    unread = r"^… Open\..*\n?|^\d+ of \d+ right in this lesson\.\n?|^<\S+( object)? at 0x\w+>\n?"
    text = re.sub(unread, "", text, flags=re.MULTILINE)
    text = text.replace("You made no guess; the answer is", "The answer is").translate(_ASCII)
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    lines = [line.rstrip() for line in text.strip("\n").splitlines()] if text.strip() else []
    for line in lines[:_LINES]:
        wrapped = textwrap.wrap(line, _WIDTH, subsequent_indent="    ", drop_whitespace=False)
        yield from map(str.rstrip, wrapped or [""])
    if len(lines) > _LINES:
        yield f"... and {len(lines) - _LINES} lines more"


def _setting(seconds: float) -> str:
    """When and on what a lesson ran."""
    from qtutor.machine import describe

    machine = describe()
    versions = {"Python": machine.python}
    for name in ("torch", "torchvision", "torchao", "onnxruntime", "openvino"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return f"Run on {datetime.date.today()} in {seconds:.0f} seconds, {machine.system}: {machine.setting(versions)}"


def main(numbers: list[str]) -> int:
    """Run lessons, all if none is named, and write what they print into the page, each as soon as it has run."""
    unknown = {*numbers} - {lesson.number for lesson in LESSONS}
    if unknown:
        print(f"There is no lesson {', '.join(sorted(unknown))}.", file=sys.stderr)
        return 1
    try:
        root = course()
    except FileNotFoundError as error:
        print(f"{error}: run this in the folder that you cloned.", file=sys.stderr)
        return 1
    for lesson in LESSONS:
        if numbers and lesson.number not in numbers:
            continue
        print(f"{lesson.name} ...", flush=True)
        notebook = nbformat.read(root / lesson.notebook, 4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(_PLAINLY))
        began = time.monotonic()
        notebooks.run(notebook)
        said = section(lesson, notebook, _setting(time.monotonic() - began))
        held = sections(PAGE.read_text(encoding="utf-8") if PAGE.exists() else "") | {lesson.number: said}
        kept = [held[lesson.number] for lesson in LESSONS if lesson.number in held]
        PAGE.write_text("\n".join([OPENING, *kept]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
