"""Measure in the real page how fast explorers answer: `python tests/benchmark_explorers.py`.

For each explorer, the time from a key press on a slider to the finished redraw in Chromium, beside its recording
on a page without a kernel, a bare FigureWidget that shows the same data, and (with the `bench` extra) matplotlib's
`interact`.
Presses are interleaved, so that a drift of the machine meets all alike. A measurement, not a test.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import ipywidgets
import nbformat
import plotly.graph_objects as go
from lab import Notebook, empty_page, jupyterlab

SETUP = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from benchmark_explorers import bare, with_matplotlib
from qtutor import explorers
from qtutor.exercises.affine_mapping import normal_weights
"""

EXPLORERS = {
    "AffineExplorer": ("explorers.AffineExplorer(normal_weights(), bits=6)", "bits"),
}

LISTEN = """
() => {
  window.pressed = 0;
  window.finished = 0;
  document.addEventListener("keydown", () => { window.pressed = performance.now(); }, { capture: true });
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    plot.on("plotly_afterplot", () => { window.finished = performance.now(); });
  }
  const output = document.querySelector(".matplotlib .widget-output, .matplotlib .jp-OutputArea");
  if (output) {
    new MutationObserver(() => {
      const image = output.querySelector("img");
      if (image) image.decode().then(() => { window.finished = performance.now(); });
    }).observe(output, { childList: true, subtree: true });
  }
}
"""


def frames(explorer, name):
    """What the explorer draws at each position of its slider, and a plain slider to choose one."""
    slider = explorer.controls[name]
    start, drawn = slider.value, {}
    for value in range(slider.min, slider.max + 1):
        explorer.set(**{name: value})
        drawn[value] = [{"x": t.x, "y": t.y, "text": t.text} for t in explorer.figure.data]
    explorer.set(**{name: start})
    return drawn, ipywidgets.IntSlider(start, slider.min, slider.max, description=slider.description)


def bare(explorer, name):
    """The same figure without an explorer: a slider, precomputed arrays, one `batch_update`."""
    drawn, slider = frames(explorer, name)
    figure = go.FigureWidget(explorer.figure)
    still = drawn[slider.value]
    moving = [i for i in range(len(still)) if any(str(frame[i]) != str(still[i]) for frame in drawn.values())]

    def redraw(change):
        with figure.batch_update():
            for i in moving:
                figure.data[i].update(drawn[change["new"]][i])

    slider.observe(redraw, names="value")
    return ipywidgets.VBox([slider, figure]).add_class("bare")


def with_matplotlib(explorer, name):
    """The same data drawn by matplotlib under ipywidgets' `interactive`."""
    import matplotlib.pyplot as plt

    drawn, slider = frames(explorer, name)
    layout = explorer.figure.layout
    titles = [annotation.text for annotation in layout.annotations]
    names = [str(number or "") for number in (None, *range(2, len(titles) + 1))]

    def redraw(value):
        _, axes = plt.subplots(1, len(titles), figsize=(11, 3.8), layout="constrained")
        for axis, name, title in zip(axes, names, titles, strict=True):
            axis.set(title=title, xlabel=layout[f"xaxis{name}"].title.text, ylabel=layout[f"yaxis{name}"].title.text)
            axis.grid()
        for trace, data in zip(explorer.figure.data, drawn[value], strict=True):
            axis = axes[names.index(trace.xaxis[1:])]
            if trace.type == "bar":
                axis.bar_label(axis.bar(data["x"], data["y"]), data["text"])
            elif trace.fill:
                axis.fill_between(data["x"], data["y"], step="post")
            else:
                axis.plot(data["x"], data["y"], drawstyle="steps-post")
        plt.show()

    return ipywidgets.interactive(redraw, value=slider).add_class("matplotlib")


def measure(make: str, slider: str, presses: int) -> dict[str, list[float]]:
    """Time `presses` key presses for each way to draw, in milliseconds."""
    cells = [SETUP, make, f"bare({make}, {slider!r})", f"{make}.save('recorded.html')"]
    ways = {"explorer": ".qtutor-explorer", "page without a kernel": ".qtutor-player", "bare FigureWidget": ".bare"}
    try:
        import matplotlib  # noqa: F401

        cells.append(f"with_matplotlib({make}, {slider!r})")
        ways["matplotlib interact"] = ".matplotlib"
    except ModuleNotFoundError:
        print("matplotlib is not installed: pip install -e '.[bench]' adds it to the comparison")
    with tempfile.TemporaryDirectory() as folder:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
        nbformat.write(notebook, Path(folder, "benchmark.ipynb"))
        with jupyterlab(Path(folder)) as address, empty_page(1360, 2200) as page:
            Notebook(page, address, "benchmark.ipynb").run_all()
            page.wait_for_timeout(3000)
            recorded = page.context.browser.new_page(viewport=page.viewport_size)
            recorded.set_default_timeout(120_000)
            begun = time.perf_counter()
            recorded.goto(Path(folder, "recorded.html").as_uri())
            recorded.wait_for_selector("[data-state]")
            print(f"the page without a kernel is ready after {time.perf_counter() - begun:.1f} s")
            for each in (page, recorded):
                each.evaluate(LISTEN)
            times: dict[str, list[float]] = {way: [] for way in ways}
            for i in range(presses + 3):
                for way, selector in ways.items():
                    shown = recorded if selector == ".qtutor-player" else page
                    shown.locator(f"{selector} :is(.noUi-handle, input[type=range])").first.focus()
                    shown.evaluate("window.finished = 0")
                    shown.keyboard.press("ArrowRight" if i % 4 < 2 else "ArrowLeft")
                    shown.wait_for_function("window.finished > 0", polling=10)
                    shown.wait_for_timeout(300)
                    if i >= 3:
                        times[way].append(shown.evaluate("window.finished - window.pressed"))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presses", type=int, default=30, help="key presses counted for each way to draw")
    presses = parser.parse_args().presses
    for name, (make, slider) in EXPLORERS.items():
        times = measure(make, slider, presses)
        base = statistics.median(times["explorer"])
        print(f"{name}: key press to finished redraw, {presses} presses each")
        for way, found in times.items():
            median, p95 = statistics.median(found), statistics.quantiles(found, n=20)[-1]
            print(f"  {way:21} median {median:6.1f} ms   p95 {p95:6.1f} ms   {median / base:5.2f} x the explorer")


if __name__ == "__main__":
    main()
