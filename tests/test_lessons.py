"""The committed notebooks: normalised, checked where they claim to be, and each starting alone."""

import re
from pathlib import Path

import nbformat
import pytest
from record import TAG, is_checked, normalise

LESSONS = sorted((Path(__file__).parent.parent / "lessons").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


@pytest.fixture
def notebook(path):
    return nbformat.read(path, 4)


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
def test_some_outputs_are_checked(path, notebook):
    least = 1 if path.stem.startswith("00") else 5
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
            asked = set(re.findall(r"trained\((.*?)\)", cell.source))
            assert not (is_checked(cell) and asked - found), cell.source
            found |= asked


@notebooks
def test_opens_with_a_title_what_it_teaches_what_it_needs_and_how_long_it_takes(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# [A-Z][^\n]*[^.\n]\n", first.source)
    for part in ("**You will be able to**", "**You need**", "**Reading:**", "**Running:**"):
        assert part in first.source


@notebooks
def test_links_lead_to_lessons_that_exist(path, notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+\.ipynb)", cell.source):
                assert (path.parent / target).is_file(), target


def test_binder_trains_ahead_what_the_lessons_ask_for():
    lessons = " ".join(path.read_text(encoding="utf-8") for path in LESSONS)
    post_build = LESSONS[0].parent.parent / "binder" / "postBuild"
    trained = re.search(r"cli prepare (.*)", post_build.read_text(encoding="utf-8"))[1].split()
    assert set(trained) == set(re.findall(r'trained\(\\"(\w+)', lessons))


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
def test_no_cell_is_long_or_silences_every_warning(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 24, cell.source
            assert not re.search(r"(filterwarnings|simplefilter)\(.ignore.\)", cell.source)
