"""The committed notebooks: normalised, checked where they claim to be, and each starting alone."""

import ast
import re
from itertools import pairwise

from qtutor.manifest import LESSONS

import nbformat
import pytest
from generate import times
from lab import COURSE
from record import TAG, is_checked, normalise

notebooks = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)


@pytest.fixture
def path(lesson):
    return COURSE / lesson.notebook


@pytest.fixture
def notebook(path):
    return nbformat.read(path, 4)


def asked_for(cell: nbformat.NotebookNode) -> set[str]:
    """The models that a cell asks for, by `trained("name")`."""
    calls = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    return {call.args[0].value for call in calls if ast.unparse(call.func).split(".")[-1] == "trained"}


@notebooks
def test_is_stored_as_record_stores_it(path, notebook):
    nbformat.validate(notebook)
    text = path.read_text(encoding="utf-8")
    assert text == nbformat.writes(normalise(notebook)) + "\n", f"run: python tests/record.py {path}"


@notebooks
def test_a_cell_is_tagged_if_and_only_if_it_keeps_outputs_and_a_count(notebook):
    """nbval skips a tagged cell without them, silently."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            kept = (bool(cell.outputs), cell.execution_count is not None)
            assert kept == (is_checked(cell), is_checked(cell)), cell.source


@notebooks
def test_some_outputs_are_checked(lesson, notebook):
    least = 1 if lesson is LESSONS[0] else 5
    tagged = sum(map(is_checked, notebook.cells))
    assert tagged >= least, f"{tagged} cells are tagged {TAG}, a lesson needs {least}"


@notebooks
def test_checked_outputs_are_short_text(notebook):
    for cell in filter(is_checked, notebook.cells):
        for output in cell.outputs:
            text = output.text if output.output_type == "stream" else output.data["text/plain"]
            assert output.get("name") != "stderr"
            assert len(text) < 1500


@notebooks
def test_no_checked_cell_may_show_a_training(notebook):
    """On a computer that has trained nothing yet, `trained` draws a progress bar among the outputs."""
    found = set()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            asked = asked_for(cell)
            assert not (is_checked(cell) and asked - found), cell.source
            found |= asked


@notebooks
def test_opens_with_what_it_teaches_what_it_needs_and_how_long_it_takes(lesson, notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    for part in ("**You will be able to**", "**You need**", times(lesson)):
        assert part in first.source, "the first cell is as in the other lessons; the generate command writes the times"


@notebooks
def test_links_lead_to_lessons_that_exist(path, notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+\.ipynb)", cell.source):
                assert (path.parent / target).is_file(), target


@pytest.mark.parametrize(("lesson", "after"), [*pairwise(LESSONS)], ids=lambda lesson: lesson.number)
def test_a_lesson_leads_to_the_next(notebook, after):
    text = " ".join("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown").split())
    leads = re.findall(r"Next: \[(\d\d), [^]]+\]\((.+?)\)", text)
    assert leads == [(after.number, f"{after.name}.ipynb")], "a line such as Next: [NN, title](NN_name.ipynb)"


@notebooks
def test_the_manifest_names_the_models_that_a_lesson_asks_for(lesson, notebook):
    assert {*lesson.models} == set().union(*(asked_for(cell) for cell in notebook.cells if cell.cell_type == "code"))


@notebooks
def test_one_cell_opens_the_explorer_that_the_manifest_names(lesson, notebook):
    """In lines of their own, by which the page finds it, and the missions its name."""
    shown = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "Explorer(" in cell.source]
    assert len(shown) == bool(lesson.explorer)
    opens = re.compile(rf"^explorer = {lesson.explorer}\(.*^explorer$", re.MULTILINE | re.DOTALL)
    assert all(map(opens.search, shown))

    assert bool(lesson.explorer) == bool(lesson.sliders)


@notebooks
def test_every_verdict_is_shown(notebook):
    """A notebook shows what the last line of a cell gives, and nothing of the others."""
    for cell in notebook.cells:
        asks = [
            line for line in cell.source.splitlines() if re.search(r"^exercises\.\w+\.(check|hint|solution)\(", line)
        ]
        assert cell.cell_type == "markdown" or asks in ([], cell.source.splitlines()[-1:]), cell.source


@notebooks
def test_no_cell_fails_where_the_computer_is_busy(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not re.search(r"^\s*assert .*(speed|latency)", cell.source, re.MULTILINE), cell.source


@notebooks
def test_no_cell_silences_every_warning(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not re.search(r"(filterwarnings|simplefilter)\(.ignore.\)", cell.source)
