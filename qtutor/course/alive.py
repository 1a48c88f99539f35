"""What makes a page answer without a kernel: recorded explorers, fields for guesses, exercises that check a value."""

import base64
import copy
import json
import re

from qtutor import exercises
from qtutor.exercises.exercise import Exercise
from qtutor.explorers.explorer import Explorer
from qtutor.explorers.recording import record
from qtutor.manifest import Lesson

import nbformat

RECORDING = "qtutor-recording"
"""The id of the cell that records."""

_OPENS = re.compile(r"^(\w+) = (?:\w*Explorer\(|exercises\.explorer\()", re.MULTILINE)
_CHECKS = re.compile(r"^exercises\.(\w+)\.check\(", re.MULTILINE)

NOTEBOOK = """

This page is for reading. <a href="_static/{name}.ipynb">The notebook</a> is for working."""
"""What the head of a page says of its notebook."""

GUESS = """<form class="qtutor-form qtutor-guess" hidden>
<label>Your guess <input type="text" autocomplete="off"></label> <button>See the answer</button>
</form>"""

_EXERCISE = """<form class="qtutor-form qtutor-exercise" data-exercise="{content}" hidden>
<label>Your answer <input type="text" autocomplete="off"></label>
<button>Check</button> <button type="button" name="hint">Hint</button>
<p role="status"></p>
</form>"""

_MISSION = '<p class="qtutor-form">This mission is played and checked in the explorer above.</p>'
_CODE = '<p class="qtutor-form">This exercise is code: do it in <a href="_static/{name}.ipynb">the notebook</a>.</p>'


def recorded(notebook: nbformat.NotebookNode, lesson: Lesson | None) -> nbformat.NotebookNode:
    """Return a copy with a cell behind the one that opens the explorer: it records what the explorer shows."""
    notebook = copy.deepcopy(notebook)
    sources = [cell.source if cell.cell_type == "code" else "" for cell in notebook.cells]
    place = next((i for i, source in enumerate(sources) if _OPENS.search(source)), None)
    if lesson and lesson.explorer and place is not None:
        name = _OPENS.search(sources[place])[1]
        set_later = re.search(rf"^{name}\.set\((.*)\)$", "\n".join(sources), re.MULTILINE)
        presets = f"{{'A misleading setting': dict({set_later[1]})}}" if set_later else "{}"
        imports = f"from qtutor.course.alive import play\nfrom qtutor.exercises import {lesson.topic} as exercises"
        source = f"{imports}\n\nplay({name}, exercises.exercises.missions, {presets})"
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source, id=RECORDING))
    return notebook


def play(explorer: Explorer, missions: list[Exercise], presets: dict[str, dict]) -> None:
    """Display the recording of a lesson's explorer, with its missions; a page plays it."""
    from IPython.display import HTML, display

    display(HTML(record(explorer, missions=missions, presets=presets).element()))


def form(source: str, lesson: Lesson | None) -> str:
    """Return what a cell needs on a page: a field for a guess or an answer, what to do instead, or nothing.

    Fields stay hidden where the page's program does not run; then nothing is hidden behind them either.
    """
    if source.startswith("guess = ..."):
        return GUESS
    asked = _CHECKS.search(source)
    if not asked or lesson is None:
        return ""
    exercise = exercises.of(lesson).exercises.by_name[asked[1]]
    if isinstance(exercise.answer, dict):
        return _MISSION
    if not isinstance(exercise.answer, (str, int, float)):
        return _CODE.format(name=lesson.name)
    content = {"words": isinstance(exercise.answer, str)}
    content |= {name: getattr(exercise, name) for name in ("answer", "mistakes", "hints", "because", "tolerance")}
    return _EXERCISE.format(content=base64.b64encode(json.dumps(content).encode()).decode())
