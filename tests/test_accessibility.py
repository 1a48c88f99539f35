"""Every lesson's output in a real JupyterLab: names, keyboard, contrast, themes, zoom and narrow pages."""

import inspect
import shutil

from qtutor import explorers, plots
from qtutor.manifest import LESSONS

import pytest
from lab import CHROMIUM, COURSE, Notebook, empty_page, jupyterlab

pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

THEMES = ("JupyterLab Light", "JupyterLab Dark")
EVERYTHING = [name for name, found in inspect.getmembers(explorers, inspect.isclass) if name.endswith("Explorer")]
OUTPUTS = ".jp-OutputArea-output"
FIGURES = f"{OUTPUTS} .js-plotly-plot, {OUTPUTS}.js-plotly-plot"


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`; WCAG 2.2."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("name", ["BLUE", "VERMILLION", "GREEN", "PURPLE", "GREY", "INK"])
def test_colours_of_text_have_contrast_on_the_opaque_white_of_every_figure(name):
    layout = plots.TEMPLATE.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "white"
    least = 3 if name == "VERMILLION" else 4.5  # it marks and never writes: WCAG asks 3 of graphics
    assert 1.05 / (luminance(getattr(plots, name)) + 0.05) >= least


def test_every_explorer_stands_in_a_lesson_so_the_tests_below_see_it():
    assert {lesson.explorer for lesson in LESSONS} - {""} == {*EVERYTHING}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(COURSE / "lessons", root / "lessons", ignore=shutil.ignore_patterns(".*"))
    with jupyterlab(root) as address:
        yield address


@pytest.fixture(scope="module", params=LESSONS, ids=lambda lesson: lesson.name)
def page(request, address):
    """A lesson run to its end, with every output attached to the page."""
    with empty_page() as page:
        notebook = Notebook(page, address, request.param.notebook)
        notebook.run_all()
        page.evaluate(
            """() => {
                const notebook = jupyterapp.shell.currentWidget.content;
                notebook.notebookConfig = { ...notebook.notebookConfig, windowingMode: "none" };
                return jupyterapp.shell.collapseLeft();
            }"""
        )
        page.wait_for_timeout(2000)
        page.explorers = int(bool(request.param.explorer))
        yield page


@pytest.fixture(params=THEMES)
def themed(request, page):
    page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", request.param)
    page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=request.param)
    page.wait_for_timeout(500)
    yield page
    page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", THEMES[0])


@pytest.fixture(params=[(680, 500), (400, 800)], ids=["zoom of 200%", "400 px"])
def narrow(request, page):
    """A window of half the width and height is what 200% zoom leaves."""
    width, height = request.param
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(1500)
    yield page
    page.set_viewport_size({"width": 1360, "height": 1000})


@pytest.mark.system
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
class TestInJupyterLab:
    def test_axe_finds_no_fault_in_what_the_lesson_shows(self, themed):
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(themed, context={"include": [[OUTPUTS]]}).response["violations"]
        assert [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in found] == []

    def test_figures_look_alike_in_both_themes(self, themed):
        backgrounds = themed.eval_on_selector_all(
            ".js-plotly-plot .main-svg:first-child",
            "drawings => drawings.map(d => getComputedStyle(d).backgroundColor)",
        )
        assert set(backgrounds) <= {"rgb(255, 255, 255)"}

    def test_every_figure_has_a_name_and_tools_that_need_no_mouse(self, page):
        for plot in page.locator(".js-plotly-plot").all():
            assert plot.get_attribute("role") == "figure"
            described = plot.get_attribute("aria-describedby")
            name = page.locator(f"#{described}").inner_text() if described else plot.get_attribute("aria-label")
            assert len(name) > 8
            tools = plot.get_by_role("toolbar").get_by_role("button")
            tools.first.focus()
            page.keyboard.press("ArrowRight")
            assert tools.nth(1).evaluate("tool => tool === document.activeElement")

    def test_every_explorer_is_named_speaks_politely_and_is_reached_by_tab(self, page):
        found = page.locator(".qtutor-explorer")
        assert found.count() == page.explorers
        for explorer in found.all():
            status = explorer.get_by_role("status")
            assert status.get_attribute("aria-live") == "polite"
            assert len(status.inner_text()) > 20
            controls = explorer.locator("[role=slider], select, input, button:not(.modebar-btn)").all()
            assert controls
            for control in controls:
                assert control.evaluate("e => e.tabIndex") >= 0 or control.is_disabled()
            for handle in explorer.get_by_role("slider").all():
                assert handle.get_attribute("aria-label")

    def test_printed_lines_break_between_words(self, page):
        breaks = "lines => lines.map(line => getComputedStyle(line).wordBreak)"
        assert set(page.eval_on_selector_all(".jp-RenderedText pre", breaks)) == {"normal"}

    def test_nothing_is_cut_off_or_out_of_reach(self, narrow):
        for explorer in narrow.locator(".qtutor-explorer").all():
            right = explorer.evaluate("e => e.getBoundingClientRect().right")
            for control in explorer.locator("[role=slider], select, input, button, [role=status]").all():
                if not control.evaluate("e => Boolean(e.closest('.qtutor-figure'))"):
                    assert control.evaluate("e => e.getBoundingClientRect().right") <= right + 1
        for plot in narrow.locator(FIGURES).all():
            # A figure may be wider than the page: then what holds it scrolls, and by keyboard too.
            assert plot.evaluate(
                """plot => {
                    const box = plot.closest(".qtutor-figure, .jp-OutputArea-output");
                    return box.scrollWidth <= box.clientWidth + 1
                        || (["auto", "scroll"].includes(getComputedStyle(box).overflowX) && box.tabIndex === 0);
                }"""
            )
