"""The lessons in a real JupyterLab, in Chromium, as a learner meets them."""

import contextlib
import shutil
import sys
from pathlib import Path

from qtutor.manifest import LESSONS

import nbformat
import pytest
from lab import CHROMIUM, COURSE, Notebook, empty_page, jupyterlab
from playwright.sync_api import expect

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)"),
    # A pipe to the browser or the server may be closed while the interpreter collects what used it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

expect.set_options(timeout=60_000)  # a busy computer takes longer, and nothing else

GATHERED = "explorers.ipynb"
EXPLORERS = [lesson for lesson in LESSONS if lesson.explorer]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The lessons, and a notebook that opens the explorer of each, as its missions do."""
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(COURSE / "lessons", root / "lessons", ignore=shutil.ignore_patterns(".*"))
    inherited = "import os; print(os.path.exists('/proc') and open('/proc/self/environ').read().split(chr(0)))"
    cells, kernel = [nbformat.v4.new_code_cell(inherited)], nbformat.read(root / LESSONS[0].notebook, 4).metadata
    opening = "from qtutor import exercises, manifest\n\nexercises.opened(manifest.LESSONS[{}])"
    cells += [nbformat.v4.new_code_cell(opening.format(LESSONS.index(lesson))) for lesson in EXPLORERS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / GATHERED)
    return root


@pytest.fixture(scope="module")
def address(course, home_of_the_run):
    with jupyterlab(course, QTUTOR_HOME=str(home_of_the_run)) as address:
        yield address


@pytest.fixture(scope="module")
def page():
    with empty_page() as page:
        yield page


@contextlib.contextmanager
def opened(request, page, address, path):
    """A notebook that was opened and run to its end; leaves a screenshot when a test on it fails."""
    notebook = Notebook(page, address, path)
    failed, finished = request.session.testsfailed, False
    try:
        notebook.run_all()
        finished = True
        yield notebook
        notebook.close()
    finally:
        if not finished or request.session.testsfailed > failed:
            screenshots = COURSE / "screenshots"
            screenshots.mkdir(exist_ok=True)
            page.screenshot(path=screenshots / f"{Path(path).stem}.png")


@pytest.fixture(scope="module")
def explorers(request, page, address):
    with opened(request, page, address, GATHERED) as notebook:
        yield notebook


@pytest.fixture(params=LESSONS, ids=lambda lesson: lesson.name, scope="module")
def whole_lesson(request, page, address):
    with opened(request, page, address, request.param.notebook) as notebook:
        yield notebook


def check_ran_in_peace(notebook, course):
    """Every cell ran without error or warning, and the page shows no dialog, no news and an empty console."""
    code = [cell for cell in nbformat.read(course / notebook.path, 4).cells if cell.cell_type == "code"]
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error", f"{cell.source}\n{output.get('evalue')}"
            assert output.get("name") != "stderr", f"{cell.source}\n{output.text}"
    assert all(cell.execution_count for cell in code)
    assert notebook.page.locator(".jp-Dialog").count() == 0
    assert notebook.page.locator(".Toastify__toast").count() == 0
    assert notebook.errors == []


@pytest.mark.system
def test_a_whole_lesson_runs_in_peace(whole_lesson, course):
    check_ran_in_peace(whole_lesson, course)


def test_every_explorer_opens_in_peace(explorers, course):
    check_ran_in_peace(explorers, course)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what a process inherited as Linux tells it")
def test_the_threads_of_its_kernels_wait_calmly(explorers, course):
    assert "'GOMP_SPINCOUNT=1000'" in nbformat.read(course / GATHERED, 4).cells[0].outputs[0].text


@pytest.mark.parametrize("lesson", EXPLORERS, ids=lambda lesson: lesson.name)
def test_each_slider_moves_by_keyboard_and_figure_and_sentence_follow(lesson, explorers, course):
    page, place = explorers.page, 1 + EXPLORERS.index(lesson)
    for name in lesson.sliders:
        explorers.show(place)
        explorer = explorers.explorer()
        sentence = explorer.get_by_role("status")
        drawing = explorer.locator(".js-plotly-plot .plot-container")
        before = sentence.inner_text(), drawing.inner_html()
        handle = explorer.get_by_role("slider", name=name, exact=True)
        at_its_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.focus()
        page.evaluate("addEventListener('keydown', event => { window.kept = event.defaultPrevented; }, true)")
        for _ in range(2):
            page.keyboard.press("ArrowLeft" if at_its_end else "ArrowRight")
        assert page.evaluate("window.kept"), "Notebook 7 hears keys first, and would take the arrows"
        expect(sentence).not_to_have_text(before[0])
        page.wait_for_function(
            "([plot, before]) => plot.innerHTML !== before", arg=[drawing.element_handle(), before[1]]
        )
    if lesson.explorer == "GranularityExplorer":
        explorer.get_by_role("button", name="channel").press("Enter")
        axes = explorer.get_by_role("combobox", name="Scale axis")
        expect(axes).to_be_enabled()
        axes.focus()
        for key, value in (("Home", "0 (size 64)"), ("ArrowDown", "1 (size 32)")):
            page.keyboard.press(key)
            expect(axes).to_have_value(value)
    page.wait_for_function(
        "places => Math.abs(places[0].clientWidth - places[1].clientWidth) <= 20",
        arg=[explorer.element_handle(), drawing.element_handle()],
    )
    tools = explorer.locator(".modebar-btn").evaluate_all("tools => tools.map(tool => tool.dataset.title)")
    assert tools
    assert not [tool for tool in tools if "share" in tool.lower()]
