"""What every explorer shares: controls -> state -> result -> one batched figure update.

A subclass names its controls, computes a result from an immutable state with a pure function, and
draws a result into figure objects that already exist. Everything else stands here once.
"""

import asyncio
import time
from typing import Any

import anywidget
import ipywidgets
import plotly.graph_objects as go
import traitlets


class Sentence(anywidget.AnyWidget):
    """A line of text that screen readers announce politely, and what the page around it needs.

    ipywidgets leaves the handles of its sliders without an accessible name, and a FigureWidget stays
    700 pixels wide until the window is resized. This widget names the handles by their sliders'
    labels, presents the figure as an image that the line describes, fits it to its explorer, and
    reports when the page has drawn an update.

    Attributes:
        text: the line.
        number: the number of the update that the line and the figure show; raised last.
        drawn: the newest update that a page has drawn; -1 while there is no page.
    """

    _esm = """
    let made = 0;
    function describe(explorer, line) {
      for (const slider of explorer.querySelectorAll(".widget-slider")) {
        const label = slider.querySelector(".widget-label").textContent;
        const handles = slider.querySelectorAll(".noUi-handle");
        handles.forEach((handle, i) => {
          const end = handles.length > 1 ? (i ? ", maximum" : ", minimum") : "";
          handle.setAttribute("aria-label", label + end);
        });
        slider.querySelector(".widget-readout").setAttribute("aria-label", label + ", type a value");
      }
      for (const plot of explorer.querySelectorAll(".js-plotly-plot")) {
        plot.setAttribute("role", "img");
        plot.setAttribute("aria-label", "Figure");
        plot.setAttribute("aria-describedby", line.id);
      }
    }
    function fit(explorer, line, tries) {
      if (tries && !explorer.querySelector(".js-plotly-plot .xaxislayer-above")) {
        setTimeout(() => fit(explorer, line, tries - 1), 100);
        return;
      }
      describe(explorer, line);
      window.dispatchEvent(new Event("resize"));
    }
    function render({ model, el }) {
      const line = document.createElement("p");
      line.id = `qtutor-sentence-${++made}`;
      line.className = "qtutor-sentence";
      line.setAttribute("role", "status");
      line.setAttribute("aria-live", "polite");
      const show = () => {
        line.textContent = model.get("text");
        const number = model.get("number");
        requestAnimationFrame(() => { model.set("drawn", number); model.save_changes(); });
      };
      show();
      model.on("change:number", show);
      el.appendChild(line);
      let width = 0;
      const watch = new ResizeObserver(([entry]) => {
        const explorer = el.closest(".qtutor-explorer");
        if (!explorer || entry.contentRect.width === width) return;
        width = entry.contentRect.width;
        fit(explorer, line, 50);
      });
      watch.observe(el);
      return () => { watch.disconnect(); model.off("change:number", show); };
    }
    export default { render };
    """
    _css = """
    .qtutor-sentence { margin: 4px 8px 8px; max-width: 62em; font-size: 14px; line-height: 1.5; }
    .qtutor-explorer .widget-slider { width: 340px; }
    .qtutor-explorer .widget-slider .widget-readout { min-width: 92px; }
    .qtutor-explorer .widget-checkbox { width: 130px; }
    """
    text = traitlets.Unicode().tag(sync=True)
    number = traitlets.Int(0).tag(sync=True)
    drawn = traitlets.Int(-1).tag(sync=True)


class Explorer(ipywidgets.VBox):
    """Controls above, a sentence that says the result in words, the figure below.

    Attributes:
        state: the immutable state that the controls stand for.
        first_state: the state it opened in.
        result: what `compute` made of it.
        controls: the control widgets by the name of their field in the state.
        figure: the figure, updated in place.
        sentence: the result in words, as a widget; `sentence.text` is the text.
    """

    patience = 1.0
    """Seconds after which a redraw no longer waits for a page that does not answer."""

    def __init__(self, controls: dict[str, ipywidgets.Widget], figure: go.FigureWidget, *, buttons: tuple = ()):
        super().__init__()
        self.add_class("qtutor-explorer")
        self.controls = controls
        self.figure = figure
        self.sentence = Sentence()
        self.state = self.result = None
        self._held = False
        self._sent = 0.0
        self._waiting = False
        for control in controls.values():
            control.observe(self._on_change, names="value")
        self.sentence.observe(self._resume, names="drawn")
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        self.children = [ipywidgets.Box([*controls.values(), *buttons], layout=row), self.sentence, figure]
        self._redraw()
        self.first_state = self.state

    def compute(self, state: Any) -> Any:
        """Compute the result of a state; its `sentence` says it in words."""
        raise NotImplementedError

    def draw(self, result: Any) -> None:
        """Write a result into the figure; runs inside one `batch_update`."""
        raise NotImplementedError

    def make_state(self, **values: Any) -> Any:
        """Make the immutable state from the controls' values."""
        raise NotImplementedError

    def set(self, **values: Any) -> None:
        """Set several controls at once, with one redraw.

        Raises:
            ValueError: there is no control of that name.
        """
        unknown = values.keys() - self.controls.keys()
        if unknown:
            raise ValueError(f"no control named {', '.join(sorted(unknown))}: there are {', '.join(self.controls)}")
        self._held = True
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self._held = False
        self._redraw()

    def _on_change(self, _change: dict) -> None:
        if not self._held:
            self._redraw()

    def _redraw(self) -> None:
        """Compute and draw the present state, or wait while the page still draws an earlier one.

        What changes meanwhile leaves only its last state behind: the states between are dropped, so a
        dragged slider is never followed by a queue of old pictures.
        """
        if self._page_is_drawing():
            if not self._waiting:
                self._waiting = True
                asyncio.get_running_loop().call_later(self.patience, self._resume)
            return
        state = self.make_state(**{name: control.value for name, control in self.controls.items()})
        if state == self.state:
            return
        self.state = state
        self.result = self.compute(state)
        with self.figure.batch_update():
            self.draw(self.result)
        with self.sentence.hold_sync():
            self.sentence.text = self.result.sentence
            self.sentence.number += 1
        self._sent = time.monotonic()

    def _page_is_drawing(self) -> bool:
        asked, drawn = self.sentence.number, self.sentence.drawn
        return 0 <= drawn < asked and time.monotonic() - self._sent < self.patience

    def _resume(self, _change: dict | None = None) -> None:
        if self._waiting and not self._page_is_drawing():
            self._waiting = False
            self._redraw()
