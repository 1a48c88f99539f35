"""What is generated is up to date, and a lesson that is added as CONTRIBUTING says is seen wherever lessons are."""

import json
import os
import shlex
import shutil
import subprocess
import sys

from qtutor.manifest import LESSONS

import generate
import nbformat
import pytest
from lab import COURSE

TOPIC = f"made_up_{len(LESSONS)}"
NAME = f"{len(LESSONS)}_{TOPIC}"
NUMBER = NAME[:2]

ENTRY = f'''
    Lesson(
        name="{NAME}",
        title="A made-up lesson",
        summary="what a test adds",
        needs=("05", "10"),
        minutes=(20,),
        exercises=14,
        seconds=600,
        first_seconds=70,
        models=("digits_wide",),
        explorer="OutlierExplorer",
        sliders=("Bits",),
    ),
)
"""In reading order."""
'''

EXERCISES = f'''
from qtutor.exercises.exercise import Exercises

exercises = Exercises("{NAME}")

count_bits = exercises.value(
    "count_bits",
    8,
    hints=["A byte."],
    mistakes={{4: "Half a byte.", 16: "Two bytes."}},
    because="A byte has eight bits.",
)


@exercises.function(inputs=lambda generator: (3,), hints=["Twice."], because="Twice is two times.")
def double(x):
    return 2 * x


@double.mistake("That is x.")
def _once(x):
    return x


@double.mistake("That is x squared.")
def _squared(x):
    return x * x


def _goal(explorer):
    return None if explorer.state.bits == 4 else f"It has {{explorer.state.bits}} bits."


halve = exercises.mission(
    "halve",
    _goal,
    answer={{"bits": 4}},
    hints=["Half of eight."],
    mistakes=[({{"bits": 6}}, "has 6 bits"), ({{"bits": 7}}, "has 7 bits")],
    because="Four bits are half of eight.",
)
'''

CELLS = [
    "# Anything\n\n**You will be able to** see it.\n**You need** nothing.\n**Reading and working:** .",
    'from qtutor.samples import trained\n\n\ndef model():\n    return trained("digits_wide")',
    "from qtutor.explorers import OutlierExplorer\n\nexplorer = OutlierExplorer()\nexplorer",
    f"from qtutor.exercises import {TOPIC} as exercises\n\nanswer = ...\nexercises.count_bits.check(answer)",
    "def double(x): ...\n\n\nexercises.double.check(double)",
    "exercises.halve.check(explorer)",
    *["1 + 1"] * 5,
    "## Recap\n\n- One.\n" + 3 * "\n<details><summary>What is it?</summary>\nIt is what the cell says.</details>\n",
]

NOTES = """# Anything

For instructors: this page holds the answers.

## Aims

- One.
- Two.
- Three.

## Minutes

| part | minutes | for |
| --- | --- | --- |
| core | 6 | all of it |
| core | 14 | exercises and missions |
| discussion | 10 | the two questions below |

## Where people stumble

- One.
- Two.
- Three.

## What to ask

- One?
- Two?
- Three?

## Answers

### Predictions

### Exercises

## For peer discussion

1. One? *A good answer holds:* this.
2. Two? *A good answer holds:* that.
"""


ASKED = """
import json, sys

sys.path.insert(0, "tests")
from qtutor import manifest, quick
from qtutor.course import preflight
from qtutor.exercises import progress
from test_browser import EXPLORERS

told = preflight.expect(manifest.LESSONS[-1], 1.0)
sliders = {lesson.name: lesson.sliders for lesson in EXPLORERS}
print(json.dumps([told, list(manifest.models()), progress.exercises(), sliders]))
"""


def test_what_is_generated_is_up_to_date():
    stale = [path for path, text in generate.contents().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python tests/generate.py"


def test_the_manifest_names_every_notebook_in_order():
    assert [COURSE / lesson.notebook for lesson in LESSONS] == sorted((COURSE / "lessons").glob("*.ipynb"))


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A copy of the course to which a lesson was added in the places that CONTRIBUTING names."""
    root = tmp_path_factory.mktemp("copy") / "course"
    shutil.copytree(COURSE, root, ignore=shutil.ignore_patterns("__pycache__", ".*", "node_modules"))
    shutil.copytree(COURSE / ".github", root / ".github")
    cells = [nbformat.v4.new_markdown_cell(CELLS[0], id="0")]
    cells += [nbformat.v4.new_code_cell(source, id=str(i)) for i, source in enumerate(CELLS[1:-1], 1)]
    cells += [nbformat.v4.new_markdown_cell(CELLS[-1], id="recap")]
    for cell in cells[6:-1]:
        cell.metadata["tags"], cell.execution_count = ["nbval-check-output"], 1
        cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
    metadata = nbformat.read(root / LESSONS[0].notebook, 4).metadata
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), root / "lessons" / f"{NAME}.ipynb")
    before = nbformat.read(root / LESSONS[-1].notebook, 4)
    (recap,) = [cell for cell in before.cells if "## Recap" in cell.source]
    recap.source += f"\n\nNext: [{NUMBER}, made up]({NAME}.ipynb)."
    nbformat.write(before, root / LESSONS[-1].notebook)

    teaching = root / "qtutor/course/teaching"
    (teaching / f"{NAME}.md").write_text(NOTES)
    plans = (teaching / "plans.md").read_text()
    said = f"\n- **{NUMBER}, in the share-out.** Nothing.\n"
    (teaching / "plans.md").write_text(plans.replace("\n\n## The whole course", f"{said}\n## The whole course"))

    keeping = root / "qtutor/samples/keeping.py"
    before, opening, recipes = keeping.read_text(encoding="utf-8").partition("RECIPES = {\n")
    recipe = '    "digits_wide": Recipe(lambda: MLP(hidden=512), digits, epochs=1),\n'
    keeping.write_text(before + opening + recipe + recipes, encoding="utf-8")
    manifest = root / "qtutor/manifest.py"
    entries, closing, _ = manifest.read_text(encoding="utf-8").rpartition("\n)\n")
    assert closing
    manifest.write_text(entries + ENTRY, encoding="utf-8")
    (root / "qtutor/exercises" / f"{TOPIC}.py").write_text(EXERCISES)
    run(root, *commands("A lesson")[0])
    return root


def commands(section):
    """What a section of CONTRIBUTING tells Python to run, for the made-up lesson."""
    text = (COURSE / ".github/CONTRIBUTING.md").read_text(encoding="utf-8").partition(f"\n## {section}\n")[2]
    lines = text.partition("\n## ")[0].partition("```sh\n")[2].partition("```")[0].splitlines()
    parts = [shlex.split(line.replace("NN_name", NAME).replace("NN", NUMBER)) for line in lines]
    how = {".venv/bin/python": [], ".venv/bin/pytest": ["-m", "pytest"]}
    return [[*how[program], *arguments] for program, *arguments in parts]


def run(root, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTEST_ADDOPTS": "-q -n0"}
    command = [sys.executable, *arguments]
    finished = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.slow
class TestAMadeUpLesson:
    def test_stands_in_what_is_generated(self, grown):
        def read(path):
            return (grown / path).read_text(encoding="utf-8")

        row = f"| [{NUMBER} A made-up lesson](lessons/{NAME}.ipynb) | what a test adds | 20 |"
        assert row in read("README.md").splitlines()
        opening = nbformat.read(grown / "lessons" / f"{NAME}.ipynb", 4).cells[0].source
        assert opening.startswith("# A made-up lesson\n")
        assert "**You need** lessons 05 and 10, and what they build on." in opening
        assert "**Reading and working:** 20 minutes, 14 of them for exercises (an estimate)." in opening
        assert "**Running:** about 600 seconds, 70 more the first time." in opening
        notes = read(f"qtutor/course/teaching/{NAME}.md")
        assert "- **count_bits**: 8. A byte has eight bits.\n- **double**: Twice is two times.\n" in notes
        assert "  def double(x):\n      return 2 * x\n" in notes
        plan = read("qtutor/course/teaching/plans.md").partition("### The days")[2]
        places = [
            plan.index(row) for row in (f"| 20 | {NUMBER}, core |", f"| 10 | {NUMBER}, discussion |", "| test, after")
        ]
        assert places == sorted(places)

    def test_is_trained_for_told_by_doctor_counted_and_opened_in_the_browser(self, grown):
        told, models, counted, sliders = json.loads(run(grown, "-c", ASKED))
        assert told == f"{NAME}: 20 minutes, of which this computer computes about 10.0."
        assert models[-1] == "digits_wide"
        assert counted[NAME] == ["count_bits", "double", "halve"]
        assert sliders[NAME] == ["Bits"]

    @pytest.mark.system
    @pytest.mark.parametrize("section", ["A lesson", "An exercise", "An explorer"])
    def test_passes_what_contributing_runs(self, section, grown):
        for command in commands(section):
            run(grown, *command)
