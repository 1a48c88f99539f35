"""The lessons in a real JupyterLab, in Chromium, as a learner meets them."""

import shutil
from pathlib import Path

import nbformat
import pytest
from lab import CHROMIUM, COURSE, Notebook, chromium, jupyterlab
from playwright.sync_api import expect

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)"),
    # A pipe to the browser or the server may be closed while the interpreter collects what used it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LESSONS = sorted(path.name for path in (COURSE / "lessons").glob("*.ipynb"))
EXPLORERS = {
    "01_affine_mapping.ipynb": ["Bits", "Clip range, minimum", "Clip range, maximum", "Follow x"],
    "02_granularity.ipynb": ["Bits", "Turn up ×"],
    "03_observers.ipynb": ["Hot value", "Hot batch", "Batches", "Bits"],
    "04_dynamic_quantization.ipynb": ["Neighbour", "Shift", "Bits", "Your row"],
    "05_static_quantization.ipynb": ["Sample", "Channel", "Row", "Column"],
    "06_quantization_aware_training.ipynb": ["Step", "Target", "Rate", "Bits"],
    "07_fusion.ipynb": ["Operator"],
    "08_benchmarking.ipynb": ["Runs each", "Batch size"],
    "10_your_own_model.ipynb": ["Look at"],
}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A copy of the lessons, so that running them changes nothing in the repository."""
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(COURSE / "lessons", root / "lessons", ignore=shutil.ignore_patterns(".*"))
    return root


@pytest.fixture(scope="module")
def address(course, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QTUTOR_HOME", str(tmp_path_factory.mktemp("home")))
        with jupyterlab(course) as address:
            yield address


@pytest.fixture(params=LESSONS, scope="module")
def lesson(request, address):
    """A lesson that was opened and run to its end; leaves a screenshot when a test on it fails."""
    with chromium() as page:
        notebook = Notebook(page, address, f"lessons/{request.param}")
        failed, finished = request.session.testsfailed, False
        try:
            notebook.run_all()
            finished = True
            yield notebook
        finally:
            if not finished or request.session.testsfailed > failed:
                screenshots = COURSE / "screenshots"
                screenshots.mkdir(exist_ok=True)
                page.screenshot(path=screenshots / f"{Path(request.param).stem}.png")


def test_every_cell_runs_without_error_or_warning(lesson, course):
    notebook = nbformat.read(course / lesson.path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error", f"{cell.source}\n{output.get('evalue')}"
            assert output.get("name") != "stderr", f"{cell.source}\n{output.text}"
    assert all(cell.execution_count for cell in code)


def test_no_dialog_no_news_and_nothing_on_the_console(lesson):
    assert lesson.page.locator(".jp-Dialog").count() == 0
    assert lesson.page.locator(".Toastify__toast").count() == 0
    assert lesson.errors == []


def test_each_slider_moves_by_keyboard_and_figure_and_sentence_follow(lesson, course):
    names = EXPLORERS.get(lesson.path.name, [])
    cells = nbformat.read(course / lesson.path, 4).cells
    found = [i for i, cell in enumerate(cells) if "Explorer(" in cell.get("source", "") and cell.cell_type == "code"]
    assert len(found) == bool(names), "one cell shows the lesson's explorer, and EXPLORERS names its sliders"
    for name in names:
        lesson.show(found[0])
        explorer = lesson.explorer()
        sentence = explorer.get_by_role("status")
        drawing = explorer.locator(".js-plotly-plot .plot-container")
        before = sentence.inner_text(), drawing.inner_html()
        handle = explorer.get_by_role("slider", name=name, exact=True)
        at_its_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.focus()
        for _ in range(6):
            lesson.page.keyboard.press("ArrowLeft" if at_its_end else "ArrowRight")
        expect(sentence).not_to_have_text(before[0])
        lesson.page.wait_for_function(
            "([plot, before]) => plot.innerHTML !== before", arg=[drawing.element_handle(), before[1]]
        )
    if lesson.path.name == "02_granularity.ipynb":
        axes = explorer.get_by_role("combobox", name="Scale axis")
        axes.focus()
        for key, value in (("Home", "0 (size 64)"), ("ArrowDown", "1 (size 32)")):
            lesson.page.keyboard.press(key)
            expect(axes).to_have_value(value)
    if names:
        width = explorer.evaluate("e => e.getBoundingClientRect().width")
        assert drawing.evaluate("e => e.getBoundingClientRect().width") == pytest.approx(width, abs=20)
        tools = explorer.locator(".modebar-btn").evaluate_all("tools => tools.map(tool => tool.dataset.title)")
        assert tools
        assert not [tool for tool in tools if "share" in tool.lower()]
