"""The course as a site to read: executed notebooks in, static pages out, no network now or later.

A notebook that was saved after a full run is taken as it is; any other is run once, and the run is
kept until the lesson or qtutor changes. Figures stay live plotly figures; an explorer, which needs a
kernel, is recorded where its lesson opens it, and the page plays the recording. A value exercise is checked on the
page, and what answers a guess waits until the reader has made one.
"""

import copy
import hashlib
import html
import json
import shutil
import sys
import tempfile
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import qtutor
from qtutor import explorers, storage
from qtutor.course import alive, notebooks
from qtutor.manifest import LESSONS, Lesson

import nbformat

PLOTLY = "application/vnd.plotly.v1+json"

_MARK = ".qtutor-book"  # in a folder that a book may replace

_CONFIGURATION = """
project = "qtutor"
html_title = "qtutor: neural-network quantization"
extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
html_theme = "furo"
html_static_path = ["_static"]
html_js_files = ["plotly.js", "player.js", "reader.js"]
html_css_files = ["book.css", "player.css"]
html_show_search_summary = False  # a page opened from disk may not fetch another
html_copy_source = html_show_sourcelink = False
mathjax_path = "mathjax.js"
"""


class Unbuilt(Exception):
    """The book could not be built; its text says why."""


def build(lessons: Path, out: Path) -> Path:
    """Build the site of the notebooks in `lessons`, and return its first page.

    Raises:
        Unbuilt: an extra is missing, `out` holds something else, a lesson fails, or Sphinx does.
    """
    lacking = [name for name in ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline") if find_spec(name) is None]
    if lacking:
        raise Unbuilt(
            f"qtutor book needs {', '.join(lacking)}: install the book extra, "
            f'{sys.executable} -m pip install "qtutor[book]".'
        )
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / _MARK).is_file())):
        raise Unbuilt(f"{out} is there already and is not a book: name a folder that is new or empty.")
    paths = sorted(lessons.glob("[0-9]*.ipynb"))
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "source"), Path(folder, "built")
        (source / "_static").mkdir(parents=True)
        for path in paths:
            nbformat.write(readable(executed(path), _lesson(path)), source / path.name)
            shutil.copyfile(path, source / "_static" / path.name)
        _furnish(source, paths)
        _run_sphinx(source, built)
        (built / _MARK).touch()
        try:
            if out.exists():
                shutil.rmtree(out)
            shutil.copytree(built, out)
        except OSError as error:
            raise Unbuilt(f"{out} cannot be written: {error.strerror}.") from None
    return out / "index.html"


def executed(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with all its outputs: as saved, as kept from an earlier run, or by running it now.

    Raises:
        Unbuilt: a cell of it fails.
    """
    notebook = nbformat.read(path, 4)
    if all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()):
        return notebook
    fingerprint = hashlib.sha256(json.dumps([cell.source for cell in notebook.cells]).encode())
    for module in sorted(Path(qtutor.__file__).parent.rglob("*.py")):
        fingerprint.update(module.read_bytes())
    place = storage.cache_dir() / "book" / f"{path.stem}-{fingerprint.hexdigest()[:12]}"
    played = alive.recorded(notebook, _lesson(path))
    kept = storage.once(place, lambda: nbformat.writes(_run(played, path.name)).encode(), f"the run of {path.stem}")
    return nbformat.reads(kept.decode(), 4)


def _lesson(path: Path) -> Lesson | None:
    return next((lesson for lesson in LESSONS if lesson.name == path.stem), None)


def readable(notebook: nbformat.NotebookNode, lesson: Lesson | None = None) -> nbformat.NotebookNode:
    """Return a copy whose outputs need neither JupyterLab nor a kernel."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    titles = 0
    if lesson:
        notebook.cells[0].source += alive.NOTEBOOK.format(name=lesson.name)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            titles, cell.source = _with_one_title(cell.source, titles)
        if cell.cell_type == "code":
            outputs = [_readable(output, f"figure-{number}-{i}") for i, output in enumerate(cell.outputs)]
            cell.outputs = [output for output in outputs if output is not None]
            if form := alive.form(cell.source, lesson):
                place = 0 if form == alive.GUESS else len(cell.outputs)
                cell.outputs.insert(place, nbformat.v4.new_output("display_data", {"text/html": form}))
    for before, cell in pairwise(notebook.cells):
        if cell.get("id") == alive.RECORDING:
            before.outputs = cell.outputs
    notebook.cells = [cell for cell in notebook.cells if cell.get("id") != alive.RECORDING]
    return notebook


def _with_one_title(text: str, titles: int) -> tuple[int, str]:
    """Move what follows a second title a level down: a page has one. `titles` counts those of the cells before."""
    lines, fenced = [], False
    for line in text.split("\n"):
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            titles += line.startswith("# ")
            line = "#" + line if titles > 1 else line
        lines.append(line)
    return titles, "\n".join(lines)


def _readable(output: nbformat.NotebookNode, place: str) -> nbformat.NotebookNode | None:
    if output.output_type == "stream" and output.name == "stderr":
        return None  # progress bars
    if output.output_type not in ("display_data", "execute_result"):
        return output
    data = output.data
    if data.get("text/html", "").startswith("<div role='status'"):
        return None  # an exercise that waits for an answer
    if PLOTLY in data:
        caption = data.get("text/plain", "") if notebooks.WIDGET in data else ""
        output.data = {"text/html": _picture(data[PLOTLY], caption, place)}
    elif notebooks.is_progress(output):
        return None
    output.data.pop(notebooks.WIDGET, None)
    return output


def _picture(figure: dict, caption: str, place: str) -> str:
    layout = figure.get("layout", {})
    title = (layout.get("title") or {}).get("text") or ". ".join(
        annotation.get("text", "") for annotation in layout.get("annotations", [])
    )
    drawing = json.dumps({"data": figure["data"], "layout": layout}).replace("</", "<\\/")
    told = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="qtutor-picture" tabindex="0" aria-label="{html.escape(title or "Figure")}">'
        f'<div id="{place}"></div>{told}</figure><script>addEventListener("DOMContentLoaded", () => {{ '
        f'const figure = {drawing}; Plotly.newPlot("{place}", figure.data, figure.layout, '
        f"{{responsive: true, displayModeBar: false}}); }});</script>"
    )


def _run(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    from nbclient.exceptions import CellExecutionError

    print(f"Running {name} once ...", flush=True)
    try:
        return notebooks.run(notebook, timeout=1200)
    except CellExecutionError as error:
        raise Unbuilt(f"{name} cannot be run to its end: {error.ename}: {error.evalue}") from None


def _furnish(source: Path, paths: list[Path]) -> None:
    """Write what stands around the lessons: the first page, Sphinx's settings, plotly and MathJax."""
    static = source / "_static"
    mathjax = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg-full.js"
    shutil.copyfile(mathjax, static / "mathjax.js")
    shutil.copyfile(Path(find_spec("plotly").origin).parent / "package_data" / "plotly.min.js", static / "plotly.js")
    players = [(explorers.__file__, name) for name in ("player.js", "player.css")]
    for module, name in (*players, (__file__, "reader.js"), (__file__, "book.css")):
        shutil.copyfile(Path(module).with_name(name), static / name)
    source.joinpath("conf.py").write_text(_CONFIGURATION, encoding="utf-8")
    entries = "\n".join(path.stem for path in paths)
    source.joinpath("index.md").write_text(
        "# Neural-network quantization\n\nA course to run in JupyterLab, here to read: every output was measured when "
        "the lessons ran. The explorers move: each shows what Python computed for the stops of its controls.\n\n"
        f"```{{toctree}}\n:maxdepth: 2\n\n{entries}\n```\n",
        encoding="utf-8",
    )


def _run_sphinx(source: Path, built: Path) -> None:
    from sphinx.cmd.build import main

    if main(["-q", "-b", "html", "-d", str(source.parent / "trees"), str(source), str(built)]):
        raise Unbuilt("Sphinx could not build the pages; what it said stands above.")
