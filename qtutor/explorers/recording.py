"""An explorer as a page that needs no kernel: what Python computed for every stop of its controls.

The page holds no formula. `record` runs the explorer's own `compute` and `draw` over a lattice of its controls and
keeps what changes: the data of the figure, the sentence, and what each mission says. `player.js` shows the recorded
state that the controls stand for.
"""

import base64
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtutor.words import in_number

import ipywidgets
import numpy as np
from plotly.offline import get_plotlyjs

DIGITS = 6
"""Significant digits of what is drawn: more than a page has pixels."""
MOST = 20_000
"""States of one recording."""


@dataclass(frozen=True)
class Axis:
    """One recorded control.

    Attributes:
        name: of the control.
        label: what stands beside it.
        kind: "slider", "choice" (one of a few), "switch" (on or off) or "several" (any of a few).
        values: what was recorded, in order; of "several", tuples of options.
        texts: how a reader sees each value; of "several", the options.
        all: whether the control has no other values.
        end: of a control with two handles, 0 for the lower, 1 for the upper; None for one value.
        masks: of "several", what the page finds a choice by: the sum of 2**i over its options.
    """

    name: str
    label: str
    kind: str
    values: tuple
    texts: tuple[str, ...]
    all: bool
    end: int | None = None
    masks: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Recording:
    """What a page needs to play an explorer.

    Attributes:
        name: of the explorer's class.
        axes: the controls, in the order in which states are counted, the last the fastest.
        start: the place on each axis where the page opens.
        figure: the figure in that state.
        columns: what changes, by its path in the figure: its different values, and which of them each state has.
        said: the sentence, and what each mission says, in the same form.
        presets: what a button does: the place on each axis, by what stands on it.
    """

    name: str
    axes: tuple[Axis, ...]
    start: tuple[int, ...]
    figure: dict
    columns: dict[str, tuple[list, list[int]]]
    said: dict[str, tuple[list, list[int]]]
    presets: dict[str, tuple[int, ...]]

    def packed(self) -> str:
        """All of it as text: JSON, deflated, in base64."""
        axes = [{name: value for name, value in vars(axis).items() if name != "values"} for axis in self.axes]
        content = vars(self) | {"axes": axes}
        del content["name"]
        compact = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return base64.b64encode(zlib.compress(compact.encode(), 9)).decode()

    def element(self) -> str:
        """A piece of HTML that `player.js` brings to life."""
        return f'<div class="qtutor-player"><script type="application/octet-stream">{self.packed()}</script></div>'

    def page(self) -> str:
        """A page of its own, which needs no other file and no network."""
        import jinja2

        player = Path(__file__).with_name("player.html")
        html, css, js = (player.with_suffix(kind).read_text(encoding="utf-8") for kind in (".html", ".css", ".js"))
        page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(html)
        name = self.name.replace("Explorer", " explorer")
        return page.render(name=name, plotly=get_plotlyjs(), player=self.element(), css=css, js=js)


@dataclass
class _Column:
    """The different values of one thing, and which of them each state has."""

    values: list = field(default_factory=list)
    which: list[int] = field(default_factory=list)
    known: dict[Any, int] = field(default_factory=dict)

    def add(self, value: Any) -> None:
        key = _key(value)
        if key not in self.known:
            plain = _plain(value)
            same = json.dumps(plain)  # what differs only in digits that are not kept
            if same not in self.known:
                self.known[same] = len(self.values)
                self.values.append(plain)
            self.known[key] = self.known[same]
        self.which.append(self.known[key])


class _Sheet:
    """Takes the place of a figure, or of a part of it, and keeps what a drawing writes on it, by its path.

    Plotly checks and copies what is written, which takes ten times as long as to compute it.
    """

    def __init__(self, shown: Mapping, written: dict[tuple, Any], path: tuple = ()):
        vars(self).update(_shown=shown, _written=written, _path=path)

    def __getattr__(self, name: str) -> Any:
        shown, path = self._shown.get(name, {}), (*self._path, name)
        if isinstance(shown, list) and all(isinstance(part, dict) for part in shown):
            return [_Sheet(part, self._written, (*path, place)) for place, part in enumerate(shown)]
        return _Sheet(shown, self._written, path) if isinstance(shown, dict) else shown

    def __setattr__(self, name: str, value: Any) -> None:
        self._written[(*self._path, name)] = value


def record(
    explorer: Any,
    stops: Mapping[str, Iterable] | None = None,
    *,
    missions: Sequence[Any] = (),
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Recording:
    """Run an explorer over a lattice of its controls; it stands afterwards where it stood.

    Args:
        explorer: an `Explorer` with controls.
        stops: by the name of a control, the values to record; None for the explorer's own choice, `explorer.stops()`. A
            control that is not named keeps its value and is not on the page.
        missions: exercises that are played in this explorer; what they say is recorded, and their answers are stops.
        presets: by what stands on a button, values of controls.

    Raises:
        ValueError: there is no control of that name, or there are more than `MOST` states.
    """
    presets = {"Start again": {}, **(presets or {})}
    needed = [*presets.values(), *(mission.answer for mission in missions)]
    axes = _lattice(explorer, explorer.stops() if stops is None else stops, needed)
    first = {name: control.value for name, control in explorer.controls.items()}
    start = tuple(axis.values.index(_value(first, axis)) for axis in axes)

    figure = _plain(explorer.figure.to_plotly_json())
    for trace in figure["data"]:
        trace.pop("uid", None)  # a widget's, another one each time
    columns, said = _played(explorer, axes, first, figure, missions)
    changing = {json.dumps(path): (c.values, c.which) for path, c in columns.items() if len(set(c.which)) > 1}
    places = {
        label: tuple(
            axis.values.index(_value(values, axis)) if axis.name in values else place
            for axis, place in zip(axes, start, strict=True)
        )
        for label, values in presets.items()
    }
    heard = {name: (column.values, column.which) for name, column in said.items()}
    return Recording(type(explorer).__name__, axes, start, figure, changing, heard, places)


def _played(
    explorer: Any, axes: tuple[Axis, ...], first: dict[str, Any], figure: dict, missions: Sequence[Any]
) -> tuple[dict[tuple, _Column], dict[str, _Column]]:
    """What the figure shows in each state, by its path, and what is said; controls without an axis stay as at `first`.

    `figure` gets what is drawn where the explorer stands.
    """
    before = dict(vars(explorer))
    written: dict[tuple, Any] = {}
    columns: dict[tuple, _Column] = {}
    said = {name: _Column() for name in ("sentence", *(mission.name for mission in missions))}
    explorer.figure = _Sheet(figure, written)
    try:
        for number, values in enumerate(itertools.product(*(axis.values for axis in axes))):
            explorer.forget()
            explorer.state = explorer.make_state(**(first | _chosen(axes, values)))
            explorer.result = explorer.compute(explorer.state)
            explorer.draw(explorer.result)
            for path, value in written.items():
                column = columns.setdefault(path, _Column())
                column.which += [-1] * (number - len(column.which))  # it was not there before
                column.add(value)
            said["sentence"].add(explorer.say(explorer.state, explorer.result))
            for mission in missions:
                hint = mission.judge(explorer)
                said[mission.name].add(["right", mission.because] if hint is None else ["wrong", hint])
        explorer.forget()
        explorer.state = before["state"]
        explorer.draw(before["result"])  # controls too stand as they stood
        for path, value in written.items():
            _put(figure, path, _plain(value))
    finally:
        vars(explorer).update(before)
    return columns, said


def _lattice(explorer: Any, stops: Mapping[str, Iterable], needed: Sequence[Mapping[str, Any]]) -> tuple[Axis, ...]:
    """What moves on the page: the axes of the controls that have stops, which hold what is needed too."""
    if unknown := stops.keys() - explorer.controls.keys():
        raise ValueError(f"no control named {', '.join(sorted(unknown))}: there are {', '.join(explorer.controls)}")
    if left := {name for each in needed for name in each} - stops.keys():
        raise ValueError(f"a preset or a mission moves {', '.join(sorted(left))}: give stops for it too")
    found = [axis for name in stops for axis in _axes(name, explorer.controls[name], stops[name], needed)]
    axes = tuple(axis for axis in found if len(axis.values) > 1 or axis.end is not None)  # one stop moves nothing
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST:
        sizes = " x ".join(f"{len(axis.values)} {axis.name}" for axis in axes)
        raise ValueError(f"{count:,} states are too many ({sizes}): at most {MOST:,}, give fewer stops")
    return axes


def _chosen(axes: Sequence[Axis], values: Sequence) -> dict[str, Any]:
    """The values of controls at one state: two axes make the value of a control with two handles."""
    chosen: dict[str, Any] = {}
    for axis, value in zip(axes, values, strict=True):
        chosen[axis.name] = value if axis.end is None else (*chosen.get(axis.name, ()), value)
    return chosen


def _value(values: Mapping[str, Any], axis: Axis) -> Any:
    """What a control's value is on one axis."""
    value = _kept(values[axis.name])
    if axis.kind == "several":  # in whichever order
        return next((each for each in axis.values if {*each} == {*value}), value)
    return value if axis.end is None else value[axis.end]


def _axes(name: str, control: Any, values: Any, needed: Sequence[Mapping]) -> Iterable[Axis]:
    """The recorded values of a control: those that are asked for, where it stands, and what missions need."""
    if isinstance(control, ipywidgets.FloatRangeSlider):
        for end, side in enumerate(("minimum", "maximum")):
            more = (control.value[end], *(each[name][end] for each in needed if name in each))
            kept = tuple(sorted({float(f"{value:.12g}") for value in (*values[end], *more)}))
            texts = tuple(map(in_number, kept))
            yield Axis(name, f"{control.description}, {side}", "slider", kept, texts, False, end)
        return
    offered = _offered(control)
    asked = [*map(_kept, values), _kept(control.value), *(_kept(each[name]) for each in needed if name in each)]
    kept = [value for value in offered if value in asked] if offered else sorted(set(asked))
    if isinstance(control, ipywidgets.Checkbox):
        kind, texts = "switch", ("off", "on")
    elif isinstance(control, ipywidgets.SelectMultiple):
        kind, texts = "several", tuple(offered.values())
        sets = {tuple(each for each in offered if each in value) for value in asked}
        kept = sorted(sets, key=lambda value: (len(value), value))
    else:
        kind = "choice" if isinstance(control, (ipywidgets.ToggleButtons, ipywidgets.Dropdown)) else "slider"
        texts = tuple(offered[value] if offered else in_number(value) for value in kept)
    places = {value: 2**i for i, value in enumerate(offered)} if kind == "several" else {}
    masks = tuple(sum(places[each] for each in value) for value in kept) if places else ()
    everything = len(kept) == (2 ** len(texts) if kind == "several" else len(offered)) if offered else False
    yield Axis(name, control.description, kind, tuple(kept), texts, everything, masks=masks)


def _offered(control: Any) -> dict[Any, str]:
    """All values of a control with their texts, or none where they are too many to list."""
    if isinstance(control, ipywidgets.Checkbox):
        return {False: "off", True: "on"}
    if hasattr(control, "_options_labels"):
        labels = map(str, control._options_labels)
        return dict(zip(map(_kept, control._options_values), labels, strict=True))
    if isinstance(control, ipywidgets.IntSlider):
        return {value: str(value) for value in range(control.min, control.max + 1, control.step)}
    return {}


def _kept(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _put(target: Any, path: tuple, value: Any) -> None:
    for step in path[:-1]:
        target = target[step] if isinstance(target, list) else target.setdefault(step, {})
    target[path[-1]] = value


def _key(value: Any) -> Any:
    """What two values have in common only if they are equal."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return repr(value)


def _plain(value: Any) -> Any:
    """As JSON has it: lists, and numbers of `DIGITS` digits, where NaN and infinity are nothing."""
    if isinstance(value, dict) and "bdata" in value:  # as plotly writes arrays
        shape = [int(size) for size in str(value.get("shape", "-1")).split(",")]
        value = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"]).reshape(shape)
    if isinstance(value, dict):
        return {name: _plain(below) for name, below in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(below) for below in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
