import os
import subprocess
import sys

from qtutor import cli
from qtutor.course import book
from qtutor.manifest import LESSONS

import nbformat
import pytest
from lab import CHROMIUM, COURSE, empty_page

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
    bundle = {book.PLOTLY: FIGURE, book.WIDGET: {"model_id": "x"}, "text/plain": "4 bits & no more."}
    (data,) = shown(nbformat.v4.new_notebook(cells=[cell(**bundle)]))
    assert data.keys() == {"text/html"}
    assert "<figcaption>4 bits &amp; no more.</figcaption>" in data["text/html"]


def test_progress_bars_are_left_out_and_an_explorer_that_has_nothing_to_show_still_says_so():
    bar = cell(**{book.WIDGET: {"model_id": "x"}, "text/plain": "HBox(children=(HTML(value=''),))"})
    empty = cell(**{book.WIDGET: {"model_id": "y"}, "text/plain": "The tensor is empty."})
    assert shown(nbformat.v4.new_notebook(cells=[bar, empty])) == [{"text/plain": "The tensor is empty."}]


def test_explorers_carry_their_picture_and_sentence_into_a_saved_notebook():
    from qtutor.explorers import AffineExplorer

    import torch

    explorer = AffineExplorer(torch.linspace(-1, 2, 50))
    bundle = explorer._repr_mimebundle_()
    assert bundle[book.WIDGET]["model_id"] == explorer.model_id
    assert bundle["text/plain"] == explorer.sentence.text
    assert len(bundle[book.PLOTLY]["data"]) == len(explorer.figure.data)
    assert book.PLOTLY not in AffineExplorer(torch.empty(0))._repr_mimebundle_()


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
        built = subprocess.run(command, cwd=COURSE, env=environment, capture_output=True, text=True, timeout=1500)
        assert built.returncode == 0, built.stderr
        assert built.stderr == ""
    assert "once" not in built.stdout
    return out


@pytest.fixture
def page(site):
    with empty_page() as page:
        page.context.set_offline(True)
        page.said = []
        page.on("console", lambda message: page.said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.said.append(request.url) if request.url.startswith("http") else None)
        yield page
        assert page.said == []


@pytest.mark.system
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestSite:
    @pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
    def test_a_lesson_opens_from_disk_with_figures_maths_and_links(self, page, site, lesson):
        page.goto((site / f"{lesson.name}.html").as_uri())
        page.wait_for_load_state("load")
        figures = page.locator(".qtutor-picture").count()
        assert figures
        page.wait_for_function(
            "n => document.querySelectorAll('.qtutor-picture .main-svg').length >= 2 * n", arg=figures
        )
        cells = nbformat.read(COURSE / lesson.notebook, 4).cells
        source = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
        if "$$" in source:
            page.wait_for_function("document.querySelectorAll('mjx-container svg').length > 3")
        assert page.locator("figcaption").count() >= bool(lesson.explorer)
        for link in page.locator("a[href]").all():
            target = link.get_attribute("href").partition("#")[0]
            if target and "://" not in target and not target.startswith("mailto:"):
                assert (site / target).exists(), target

    def test_contents_lead_to_every_lesson_and_search_finds_one(self, page, site):
        page.goto((site / "index.html").as_uri())
        assert {link.get_attribute("href") for link in page.locator(".toctree-l1 > a").all()} >= {
            f"{lesson.name}.html" for lesson in LESSONS
        }
        page.goto((site / "search.html").as_uri() + "?q=granularity")
        page.locator("ul.search li a", has_text="Granularity").first.wait_for()
