"""What every explorer shares: controls -> state -> result -> one batched figure update.

A subclass names its controls, computes a result from an immutable state, which has one field a control, with a pure
function, and draws a result into figure objects that already exist. Everything else stands here once.
"""

import asyncio
import functools
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import make_dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from qtutor import (
    quick,  # noqa: F401  before plotly
    storage,
)
from qtutor.explorers.figure import Figure

import anywidget
import ipywidgets
import plotly.graph_objects as go
import torch
import traitlets
from torch import Tensor

EXACT_UP_TO = 1_000_000
"""Of a tensor of more values than this, evenly spread ones are explored: every redraw visits them all."""

Stops = dict[str, Iterable]
"""Values of controls by name; of a control with two handles, those of either."""


class Sentence(anywidget.AnyWidget):
    """A line of text that screen readers announce politely, and what the page around it needs.

    ipywidgets leaves the handles of its sliders without an accessible name, and plotly fits a figure
    only when the window changes, not when its place does. This widget names the handles by their sliders'
    labels, says which toggle is pressed, has the line describe the figure, fits the figure to its explorer,
    and reports when the page has drawn an update.

    Attributes:
        number: the number of the update that the line and the figure show; raised last.
        drawn: the newest update that a page has drawn; -1 while there is no page.
    """

    _esm = Path(__file__).with_name("sentence.js")
    _css = Path(__file__).with_name("sentence.css")
    text = traitlets.Unicode().tag(sync=True)
    number = traitlets.Int(0).tag(sync=True)
    drawn = traitlets.Int(-1).tag(sync=True)


def slider_range(low: float, high: float, steps: int = 400) -> tuple[float, float, float]:
    """Return `(low, high, step)` for a slider over a range: a round step, and ends on multiples of it.

    The page moves a value that is not on a multiple of the step; so that a value set in Python stays
    what it was, steps are 1, 2 or 5 times a power of ten. The range grows outward to the next step.

    Example:
        >>> slider_range(-4.34, 4.56)
        (-4.34, 4.56, 0.02)
    """
    magnitude = 10.0 ** math.floor(math.log10((high - low) / steps))
    step = max(m * magnitude for m in (1, 2, 5) if m * magnitude * steps <= (high - low) * (1 + 1e-9))
    digits = max(0, -math.floor(math.log10(step)))
    return (
        round(math.floor(low / step + 1e-9) * step, digits),
        round(math.ceil(high / step - 1e-9) * step, digits),
        step,
    )


def toggles(description: str, options: Sequence, width: str) -> ipywidgets.ToggleButtons:
    """Return buttons of which one is pressed, each as wide as `width` says, the first pressed."""
    return ipywidgets.ToggleButtons(
        options=options, description=description, style={"button_width": width}, layout={"width": "max-content"}
    )


def button(description: str, press: Callable[[], object], **how: Any) -> ipywidgets.Button:
    """Return a button that does something when it is pressed; `how` it looks is said as to ipywidgets."""
    made = ipywidgets.Button(description=description, **how)
    made.on_click(lambda _: press())
    return made


def choices(names: Sequence, most: int) -> list[tuple]:
    """Return choices of several names: none, one, two, ... at once, while there are at most `most`, and all at once.

    Example:
        >>> choices("abc", 5)
        [(), ('a',), ('b',), ('c',), ('a', 'b', 'c')]
    """
    sizes, count = [len(names)], 1
    for size in range(len(names)):
        count += math.comb(len(names), size)
        if count > most:
            break
        sizes.append(size)
    return [chosen for size in sorted(sizes) for chosen in combinations(names, size)]


def every(count: int, most: int, through: int) -> tuple[Tensor, int]:
    """Return at most `most` evenly spread numbers below `count`, `through` among them, and its place there."""
    step = math.ceil(count / most)
    return torch.arange(through % step, count, step), through // step


@functools.cache
def _state_class(explorer: str, controls: tuple[str, ...]) -> type:
    """One class for all explorers of a kind, so that their states compare: `AffineState` of an `AffineExplorer`."""
    return make_dataclass(explorer.removesuffix("Explorer") + "State", controls, frozen=True)


def set_control(name: str, control: ipywidgets.Widget, value: Any) -> None:
    """Set one control.

    Raises:
        ValueError: it cannot take that value.
    """
    value = tuple(value) if isinstance(value, list) else value  # as a control keeps several values
    if value is None:  # which a control of several choices would take for none of them
        raise ValueError(f"{name} cannot be None")
    try:
        control.value = value
    except traitlets.TraitError as error:
        raise ValueError(f"{name} cannot be {value!r}: {error}") from None
    if control.value != value:  # a slider moves what it cannot take to the nearest value that it can
        raise ValueError(f"{name} cannot be {value!r}: it goes from {control.min:g} to {control.max:g}")


class Explorer(ipywidgets.VBox):
    """Controls above, a sentence that says the result in words, the figure below.

    A page's messages may come in a thread of their own while a cell sets controls too. One lock sees to it that the
    state, the figure and the sentence are those of one redraw.

    Attributes:
        state: the immutable state that the controls stand for, with their names for its fields.
        first_state: the state it opened in.
        result: what `compute` made of it.
        controls: the control widgets, by name.
        figure: the figure, updated in place.
        sentence: the result in words, as a widget; `sentence.text` is the text.
    """

    patience = 1.0
    """Seconds after which a redraw no longer waits for a page that does not answer."""

    def __init__(
        self,
        controls: dict[str, ipywidgets.Widget],
        figure: go.Figure,
        start: dict[str, Any] | None = None,
        buttons: Sequence = (),
    ):
        """Show controls, which may start elsewhere, by name; raises as `set`."""
        super().__init__()
        self.add_class("qtutor-explorer")
        self.controls = controls
        self._state = _state_class(type(self).__name__, tuple(controls))
        start = start or {}
        self._check_names(start)
        for name, value in start.items():
            set_control(name, controls[name], value)
        self.figure = Figure(figure.update_layout(autosize=True))
        self.figure._config = {**self.figure._config, "responsive": True, "displaylogo": False}
        self.sentence = Sentence()
        self.state: Any = None
        self.result: Any = None
        self._lock = threading.RLock()
        self._held = False
        self._sent = 0.0
        self._waiting = False
        for control in controls.values():
            control.observe(self._on_change, names="value")
        self.sentence.observe(self._resume, names="drawn")
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        drawing = ipywidgets.Box([self.figure]).add_class("qtutor-figure")  # scrolls where the page is narrower
        self.children = [ipywidgets.Box([*controls.values(), *buttons], layout=row), self.sentence, drawing]
        self._redraw()
        self.first_state: Any = self.state

    def _repr_mimebundle_(self, **kwargs: Any) -> dict:
        """Show the widget; where there is no kernel, such as in a saved notebook, its picture and sentence."""
        picture = {"application/vnd.plotly.v1+json": json.loads(self.figure.to_json())}
        return super()._repr_mimebundle_(**kwargs) | {"text/plain": self.sentence.text} | picture

    def compute(self, state: Any) -> Any:
        """Compute the result of a state."""
        raise NotImplementedError

    def say(self, state: Any, result: Any) -> str:
        """Say the result of a state in words."""
        raise NotImplementedError

    def draw(self, result: Any) -> None:
        """Write a result into the figure; runs inside one `batch_update`."""
        raise NotImplementedError

    def make_state(self, **values: Any) -> Any:
        """Make the immutable state from the controls' values."""
        return self._state(**values)

    def forget(self) -> None:
        """Forget what was tried, as if the explorer had been opened now; most remember nothing."""

    def stops(self) -> Stops:
        """The values of its controls for which a page without a kernel keeps what Python computed.

        By the name of a control; of one with two handles, those of either. A control that is not named stays as it is.
        """
        raise NotImplementedError

    def save(self, path: str | Path, **how: Any) -> Path:
        """Write a page of its own that plays this explorer in a browser, without a kernel and without a network.

        Args:
            path: of the page, such as "mine.html".
            how: of `recording.record`: which stops, missions and presets.

        Returns:
            The path.
        """
        from qtutor.explorers.recording import record

        path = Path(path)
        storage.write_atomically(path, record(self, **how).page().encode())
        return path

    def set(self, **values: Any) -> None:
        """Set several controls at once, with one redraw.

        Raises:
            ValueError: there is no control of that name, or it cannot take that value; nothing changes then.
        """
        self._check_names(values)
        with self._lock:
            before = {name: self.controls[name].value for name in values}
            self._held = True
            try:
                for name, value in values.items():
                    set_control(name, self.controls[name], value)
            except ValueError:
                for name, value in before.items():
                    self.controls[name].value = value
                raise
            finally:
                self._held = False
            self._redraw()

    def _check_names(self, values: dict[str, Any]) -> None:
        if unknown := values.keys() - self.controls.keys():
            raise ValueError(f"no control named {', '.join(sorted(unknown))}: there are {', '.join(self.controls)}")

    def _on_change(self, _change: dict) -> None:
        with self._lock:
            if not self._held:
                self._redraw()

    def _redraw(self) -> None:
        """Compute and draw the present state, or wait while the page still draws an earlier one.

        What changes meanwhile leaves only its last state behind: the states between are dropped, so a
        dragged slider is never followed by a queue of old pictures.
        """
        with self._lock:
            if self._page_is_drawing():
                if not self._waiting:
                    asyncio.get_running_loop().call_later(self.patience, self._resume)
                    self._waiting = True
                return
            state = self.make_state(**{name: control.value for name, control in self.controls.items()})
            if state == self.state:
                return
            result = self.compute(state)
            said = self.say(state, result)
            self.state, self.result = state, result
            with self.figure.batch_update():
                self.draw(result)
            with self.sentence.hold_sync():
                self.sentence.text = said
                self.sentence.number += 1
            self._sent = time.monotonic()

    def _page_is_drawing(self) -> bool:
        asked, drawn = self.sentence.number, self.sentence.drawn
        return 0 <= drawn < asked and time.monotonic() - self._sent < self.patience

    def _resume(self, _change: dict | None = None) -> None:
        with self._lock:
            if self._waiting and not self._page_is_drawing():
                self._waiting = False
                self._redraw()
