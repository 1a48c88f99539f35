import os
import re
import subprocess
import sys
from unittest.mock import Mock

from qtutor import cli, exercises
from qtutor.course import alive, book, notebooks
from qtutor.exercises.exercise import Feedback
from qtutor.manifest import LESSONS

import nbformat
import pytest
from lab import CHROMIUM, COURSE, empty_page
from playwright.sync_api import expect

FIGURE = {"data": [{"y": [1, 2], "type": "scatter"}], "layout": {"title": {"text": "Two </script> points"}}}


def cell(source="1", **bundle):
    output = nbformat.v4.new_output("display_data", {key.replace("_", "/", 1): value for key, value in bundle.items()})
    return nbformat.v4.new_code_cell(source, outputs=[output] if bundle else [], execution_count=1)


def shown(notebook):
    return [output.data for each in book.readable(notebook).cells for output in each.get("outputs", [])]


def test_a_figure_becomes_html_that_cannot_close_its_script_early():
    (data,) = shown(nbformat.v4.new_notebook(cells=[cell(**{book.PLOTLY: FIGURE})]))
    assert data.keys() == {"text/html"}
    assert data["text/html"].count("</script>") == 1
    assert 'aria-label="Two &lt;/script&gt; points"' in data["text/html"]


def test_an_explorer_becomes_its_picture_and_its_sentence():
    bundle = {book.PLOTLY: FIGURE, notebooks.WIDGET: {"model_id": "x"}, "text/plain": "4 bits & no more."}
    (data,) = shown(nbformat.v4.new_notebook(cells=[cell(**bundle)]))
    assert data.keys() == {"text/html"}
    assert "<figcaption>4 bits &amp; no more.</figcaption>" in data["text/html"]


def test_progress_bars_are_left_out_and_an_explorer_that_has_nothing_to_show_still_says_so():
    bar = cell(**{notebooks.WIDGET: {"model_id": "x"}, "text/plain": "HBox(children=(HTML(value=''),))"})
    empty = cell(**{notebooks.WIDGET: {"model_id": "y"}, "text/plain": "The tensor is empty."})
    assert shown(nbformat.v4.new_notebook(cells=[bar, empty])) == [{"text/plain": "The tensor is empty."}]


def test_a_guess_stands_before_what_answers_it_and_an_exercise_in_place_of_its_blank_check():
    printed = nbformat.v4.new_output("stream", text="You made no guess; the answer is 5.")
    guess = nbformat.v4.new_code_cell("guess = ...\n\nreveal(guess, 5)", outputs=[printed], execution_count=1)
    said = Feedback("not attempted", "Replace the ...")._repr_html_()
    asked = cell("answer = ...\n\nexercises.predict_code.check(answer)", text_html=said)
    lesson = LESSONS[1]
    first, second = book.readable(nbformat.v4.new_notebook(cells=[guess, asked]), lesson).cells
    assert "Your guess" in first.outputs[0].data["text/html"]
    assert first.outputs[1] == printed
    (field,) = second.outputs
    assert "Your answer" in field.data["text/html"]


def test_explorers_carry_their_picture_and_sentence_into_a_saved_notebook():
    from qtutor.explorers import AffineExplorer

    import torch

    explorer = AffineExplorer(torch.linspace(-1, 2, 50))
    bundle = explorer._repr_mimebundle_()
    assert bundle[notebooks.WIDGET]["model_id"] == explorer.model_id
    assert bundle["text/plain"] == explorer.sentence.text
    assert len(bundle[book.PLOTLY]["data"]) == len(explorer.figure.data)


def test_the_explorer_of_a_lesson_is_recorded_with_its_missions_by_a_cell_behind_it(monkeypatch):
    asked = []
    monkeypatch.setattr(alive, "record", lambda *given, **how: asked.append((given, how)) or Mock())
    for name in ("HTML", "display"):
        monkeypatch.setattr(f"IPython.display.{name}", lambda shown: None)
    lesson = next(lesson for lesson in LESSONS if lesson.explorer == "AffineExplorer")
    notebook = nbformat.v4.new_notebook(cells=[cell("explorer = exercises.explorer()"), cell("explorer.set(bits=2)")])
    recorded = alive.recorded(notebook, lesson).cells
    assert [each.get("id") == alive.RECORDING for each in recorded] == [False, True, False]
    names = {"exercises": exercises.of(lesson)}
    for each in recorded:
        exec(each.source, names)
    missions = names["exercises"].exercises.missions
    presets = {"A misleading setting": {"bits": 2}}
    assert asked == [((names["explorer"],), {"missions": missions, "presets": presets})]


def test_a_page_keeps_one_title_and_code_keeps_its_comments():
    sources = ["# Title\n\n## Part", "text\n\n# Go deeper\n\n## More\n\n```sh\n# a comment\n```"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source) for source in sources])
    changed = [each.source for each in book.readable(notebook).cells]
    assert changed == ["# Title\n\n## Part", "text\n\n## Go deeper\n\n### More\n\n```sh\n# a comment\n```"]
    assert [each.source for each in notebook.cells] == sources


def test_a_notebook_that_was_saved_after_a_full_run_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "_run", lambda *_: pytest.fail("run again"))
    path = tmp_path / "01_lesson.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell("1/0")]), path)
    assert book.executed(path).cells[0].execution_count == 1


def test_a_lesson_that_was_not_run_is_run_once(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(book, "_run", lambda notebook, name: runs.append(name) or notebook)
    path = tmp_path / "01_lesson.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
    assert book.executed(path) == book.executed(path)
    assert runs == ["01_lesson.ipynb"]


def test_without_the_extra_one_sentence_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(book, "find_spec", lambda name: None if name == "myst_nb" else object())
    assert cli.main(["book", str(tmp_path / "site")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("qtutor book needs myst_nb: install the book extra, ")
    assert said.endswith('-m pip install "qtutor[book]".\n')
    assert not (tmp_path / "site").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(book, "find_spec", lambda name: object())
    (tmp_path / "thesis.tex").touch()
    assert cli.main(["book", str(tmp_path)]) == 1
    assert "is not a book" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("myst_nb")
    out = tmp_path_factory.mktemp("books") / "with a space é"
    environment = {**os.environ, "QTUTOR_HOME": str(tmp_path_factory.mktemp("home"))}
    command = [sys.executable, "-m", "qtutor.cli", "book", str(out)]
    for _ in range(2):  # the second replaces the first
        built = subprocess.run(command, cwd=COURSE, env=environment, capture_output=True, text=True, timeout=7200)
        assert built.returncode == 0, built.stderr
        assert built.stderr == ""
    assert "once" not in built.stdout
    return out


expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser():
    with empty_page() as page:
        page.context.set_offline(True)
        page.said = []
        page.on("console", lambda message: page.said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.said.append(request.url) if request.url.startswith("http") else None)
        yield page


@pytest.fixture
def page(browser):
    browser.said.clear()
    browser.set_viewport_size({"width": 1200, "height": 900})
    yield browser
    assert browser.said == []


@pytest.fixture(params=LESSONS, ids=lambda lesson: lesson.name)
def lesson(request, page, site):
    """A lesson whose page is open, with all that moves in it."""
    page.goto((site / f"{request.param.name}.html").as_uri())
    page.wait_for_load_state("load")
    assert page.locator(".qtutor-player").count() == bool(request.param.explorer)
    if request.param.explorer:
        page.wait_for_selector(".qtutor-player[data-state]")
    return request.param


@pytest.fixture
def opened(page, lesson):
    """A lesson, with nothing that waits for a guess."""
    for button in page.get_by_role("button", name="See the answer").all():
        button.press("Enter")
    page.wait_for_function(
        "document.querySelectorAll('.qtutor-picture .main-svg').length"
        " >= 2 * document.querySelectorAll('.qtutor-picture').length"
    )
    return lesson


def text_of(control, value):
    """How the page names a value of a control."""
    if hasattr(control, "_options_labels"):
        return str(control._options_labels[control._options_values.index(value)])
    return f"{value:.3g}"


def move(page, name, control, value):
    """Bring one control of the page to a value, by keyboard."""
    label, player = control.description, page.locator(".qtutor-player")
    if isinstance(value, tuple) and not hasattr(control, "options"):
        for side, end in zip(("minimum", "maximum"), value, strict=True):
            slide(player.get_by_role("slider", name=f"{label}, {side}", exact=True), f"{end:.3g}")
    elif isinstance(value, bool):
        box = player.get_by_role("checkbox", name=label, exact=True)
        if box.is_checked() != value:
            box.press("Space")
    elif isinstance(value, tuple):
        wanted = [text_of(control, each) for each in value]
        for option in player.get_by_role("group", name=label).get_by_role("checkbox").all():
            if option.is_checked() != (option.evaluate("e => e.labels[0].textContent") in wanted):
                option.press("Space")
    elif player.get_by_role("slider", name=label, exact=True).count():
        slide(player.get_by_role("slider", name=label, exact=True), text_of(control, value))
    else:
        group = player.get_by_role("group", name=label)
        while not group.get_by_role("radio", name=text_of(control, value), exact=True).is_checked():
            group.get_by_role("radio", checked=True).press("ArrowRight")
            page.evaluate("() => new Promise(requestAnimationFrame)")


def slide(slider, text):
    for key in ("Home", *["ArrowRight"] * int(slider.get_attribute("max"))):
        slider.press(key)
        slider.page.evaluate("() => new Promise(requestAnimationFrame)")  # the page answers once a frame
        if slider.get_attribute("aria-valuetext") == text:
            break
    assert slider.get_attribute("aria-valuetext") == text


@pytest.mark.system
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestSite:
    def test_a_lesson_opens_from_disk_with_figures_maths_and_links(self, page, site, opened):
        assert page.locator(".qtutor-picture").count()
        cells = nbformat.read(COURSE / opened.notebook, 4).cells
        source = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
        if "$$" in source:
            page.wait_for_function("document.querySelectorAll('mjx-container svg').length > 3")
        links = {link.get_attribute("href").partition("#")[0] for link in page.locator("a[href]").all()}
        for target in links:
            assert not target or "://" in target or target.startswith("mailto:") or (site / target).exists(), target
        assert links >= {f"_static/{opened.name}.ipynb", *(f"{each.name}.html" for each in LESSONS if each != opened)}

    def test_no_progress_bar_and_no_name_of_a_widget_is_left(self, page, opened):
        text = page.locator("main, article").first.inner_text()
        assert not re.search(r"\d+%\|| (it|step|s)/(s|it|step)\b|\w+(Box|Widget|Explorer)\(children", text)

    def test_what_answers_a_guess_waits_for_it(self, page, lesson):
        told = page.get_by_text("You made no guess;")
        hidden = told.count()
        assert hidden
        assert not any(each.is_visible() for each in told.all())
        field = page.get_by_label("Your guess").first
        field.fill("12")
        field.press("Enter")
        expect(page.get_by_text("You guessed 12;")).to_be_visible()
        for button in page.get_by_role("button", name="See the answer").all()[1:]:
            button.press("Enter")
        assert told.count() == hidden - 1
        assert all(each.is_visible() for each in told.all())

    def test_the_explorer_moves_by_keyboard_and_its_figure_and_sentence_follow(self, page, opened):
        player = page.locator(".qtutor-player")
        for slider in player.get_by_role("slider").all() if opened.explorer else ():
            before = player.get_attribute("data-state"), slider.get_attribute("aria-valuetext")
            drawing = player.locator(".plot-container").inner_html()
            at_its_end = slider.input_value() == slider.get_attribute("max")
            for _ in range(3):
                slider.press("ArrowLeft" if at_its_end else "ArrowRight")
            expect(player).not_to_have_attribute("data-state", before[0])
            expect(slider).not_to_have_attribute("aria-valuetext", before[1])
            # A group's size is of no use per tensor, nor is a strength where nothing is smoothed.
            if not slider.evaluate("e => /^(Group size|Strength)/.test(e.labels[0].textContent)"):
                assert player.locator(".plot-container").inner_html() != drawing
        assert player.get_by_role("status").count() == 2 * bool(opened.explorer)

    def test_each_mission_can_be_solved_by_keyboard(self, page, opened):
        if not opened.explorer:
            return
        module, player = exercises.of(opened), page.locator(".qtutor-player")
        controls = exercises.opened(opened).controls
        for mission in module.exercises.missions:
            player.get_by_role("button", name="Start again").press("Enter")
            check = player.get_by_role("button", name=f"Check mission: {mission.name.replace('_', ' ')}")
            for name, value in mission.answer.items():
                move(page, name, controls[name], value)
            page.evaluate("() => new Promise(requestAnimationFrame)")
            check.press("Enter")
            expect(player.get_by_text("✓ Right")).to_have_text(f"✓ Right. {mission.because}")
        misleading = player.get_by_role("button", name="A misleading setting")
        if misleading.count():
            said = player.get_by_role("status").first.inner_text()
            misleading.press("Enter")
            expect(player.get_by_role("status").first).not_to_have_text(said)

    def test_a_value_is_checked_with_the_hints_of_its_exercise(self, page, opened):
        module = exercises.of(opened)
        asked = [e for e in module.exercises.by_name.values() if isinstance(e.answer, (str, int, float))]
        forms = page.locator(".qtutor-exercise").all()
        assert len(forms) == len(asked)
        for form, exercise in zip(forms, asked, strict=True):
            field, said = form.get_by_label("Your answer"), form.get_by_role("status")
            for given, hint in [*exercise.mistakes, (exercise.answer, exercise.because)]:
                field.fill(str(given))
                field.press("Enter")
                expect(said).to_have_text(f"{'✓ Right' if given == exercise.answer else '✗ Not yet'}. {hint}")
            form.get_by_role("button", name="Hint").press("Enter")
            expect(said).to_have_text(f"Hint 1 of {len(exercise.hints)}: {exercise.hints[0]}")

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_axe_finds_no_fault(self, page, opened, theme):
        from axe_playwright_python.sync_playwright import Axe

        page.emulate_media(color_scheme=theme)
        page.wait_for_timeout(500)
        found = Axe().run(page, options={"preload": False}).response["violations"]  # else it fetches style sheets
        assert [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in found] == []

    def test_a_phone_shows_it_without_scrolling_sideways(self, page, opened):
        assert page.evaluate("document.documentElement.scrollWidth") <= 1200
        page.set_viewport_size({"width": 375, "height": 700})
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        for element in page.locator(".qtutor-player :is(input, button, output), .qtutor-form *").all():
            box = element.bounding_box()
            assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= 375)

    def test_contents_lead_to_every_lesson_and_search_finds_one(self, page, site):
        page.goto((site / "index.html").as_uri())
        assert {link.get_attribute("href") for link in page.locator(".toctree-l1 > a").all()} >= {
            f"{lesson.name}.html" for lesson in LESSONS
        }
        page.goto((site / "search.html").as_uri() + "?q=granularity")
        page.locator("ul.search li a", has_text="Granularity").first.wait_for()
