"""Explorers on a page without a kernel: what Python computed, found again by the controls."""

import contextlib
import json
import random
from types import SimpleNamespace

from qtutor import cli, exercises
from qtutor.explorers import AffineExplorer
from qtutor.explorers.recording import DIGITS, _plain, _value, record
from qtutor.manifest import LESSONS

import pytest
import torch
from lab import CHROMIUM, WEBKIT, empty_page, webkit

LATE = ("01", "02", "03", "06", "10", "11")
"""Lessons whose explorers take longer than some seconds to record: these are left to the system tests."""

EXPLORERS = [
    pytest.param(lesson, id=lesson.name, marks=pytest.mark.system if lesson.number in LATE else ())
    for lesson in LESSONS
    if lesson.explorer
]


@pytest.fixture(scope="module", params=EXPLORERS)
def played(request):
    """An explorer and its recording, which takes seconds: once for all tests."""
    explorer, missions = exercises.opened(request.param), exercises.of(request.param).exercises.missions
    return SimpleNamespace(explorer=explorer, missions=missions, recording=record(explorer, missions=missions))


def chosen(recording, places):
    """The values of the controls at these places of the axes."""
    values = {}
    for axis, place in zip(recording.axes, places, strict=True):
        value = axis.values[place]
        values[axis.name] = value if axis.end is None else (*values.get(axis.name, ()), value)
    return values


def place(recording, values):
    """The number of the state in which the controls have these values, the others where the page opens."""
    number = 0
    for axis, where in zip(recording.axes, recording.start, strict=True):
        where = axis.values.index(_value(values, axis)) if axis.name in values else where
        number = number * len(axis.values) + where
    return number


def at_random(recording, count, seed=0):
    generator = random.Random(seed)
    for _ in range(count):
        yield [generator.randrange(len(axis.values)) for axis in recording.axes]


def drawn(explorer):
    """What Python draws and says where the controls stand."""
    figure = _plain(explorer.figure.to_plotly_json())
    for trace in figure["data"]:
        del trace["uid"]  # of the widget
    return explorer.sentence.text, figure["data"], figure["layout"]


def at(figure, path):
    for step in path:
        figure = figure[step] if isinstance(figure, list) else figure.get(step, {})
    return figure


def test_a_state_is_what_python_draws_and_says_there(played):
    explorer, recording = played.explorer, played.recording
    for places in at_random(recording, 10):
        values = chosen(recording, places)
        number = place(recording, values)
        explorer.forget()
        explorer.set(**values)
        said, data, layout = drawn(explorer)
        for path, (kinds, which) in recording.columns.items():
            assert kinds[which[number]] == at({"data": data, "layout": layout}, json.loads(path)), path
        kinds, which = recording.said["sentence"]
        assert kinds[which[number]] == said


def test_every_mission_can_be_solved_and_missed(played):
    assert played.missions
    for mission in played.missions:
        kinds, which = played.recording.said[mission.name]
        assert kinds[which[place(played.recording, mission.answer)]] == ["right", mission.because]
        assert any(outcome == "wrong" for outcome, _ in kinds)


def test_what_is_ticked_on_a_page_finds_its_choice(played):
    for axis in played.recording.axes:
        if axis.kind == "several":
            options = [*played.explorer.controls[axis.name]._options_values]
            ticked = [[option for i, option in enumerate(options) if mask & 2**i] for mask in axis.masks]
            assert ticked == [[option for option in options if option in chosen] for chosen in axis.values]
            assert len({*axis.masks}) == len(axis.values)


def test_a_recording_is_small(played):
    assert len(played.recording.packed()) < 1_000_000


def test_recording_leaves_the_explorer_as_it_was():
    explorer = AffineExplorer(torch.linspace(-1, 2, 50))
    before = explorer.state, explorer.sentence.text, json.loads(explorer.figure.to_json())
    record(explorer, {"bits": (2, 3)})
    assert before == (explorer.state, explorer.sentence.text, json.loads(explorer.figure.to_json()))


@pytest.mark.parametrize(
    ("stops", "how", "message"),
    [
        ({"bites": (2,)}, {}, "no control named bites: there are bits, clip"),
        ({"bits": (2, 3)}, {"presets": {"Clip": {"clip": (-1, 1)}}}, "moves clip: give stops for it too"),
        ({"value": [i / 1e5 for i in range(30_000)]}, {}, "30,001 states are too many"),
    ],
)
def test_what_cannot_be_recorded_is_said(stops, how, message):
    with pytest.raises(ValueError, match=message):
        record(AffineExplorer(torch.linspace(-1, 2, 50)), stops, **how)


def test_a_command_writes_a_page_and_never_over_another(tmp_path, capsys):
    page = tmp_path / "mine.html"
    assert cli.main(["explorer", "benchmark", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert 'class="qtutor-player"' in text
    assert "http://" not in text.partition("<script>")[0]
    assert cli.main(["explorer", "benchmark", str(page)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == text


SHOW = """
const player = document.querySelector(".qtutor-player").player;
return walk.map(places => {
    player.places = places;
    player.show(false);
    const { data, layout } = player.plot;
    return JSON.stringify([player.sentence.textContent, data, layout]);
});
"""


@contextlib.contextmanager
def in_chromium(file):
    with empty_page() as page:
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        page.context.set_offline(True)
        page.goto(file.as_uri())
        page.wait_for_selector("[data-state]")
        yield lambda walk: page.evaluate(f"walk => {{{SHOW}}}", walk)
        assert wrong == []


@contextlib.contextmanager
def in_webkit(file):
    with webkit(file.as_uri()) as run:
        while not run("return document.querySelectorAll('[data-state]').length"):
            pass
        yield lambda walk: run(f"const walk = arguments[0]; {SHOW}", walk)


ENGINES = [
    pytest.param(in_chromium, 10, marks=pytest.mark.browser, id="Chromium"),
    pytest.param(in_chromium, 100, marks=[pytest.mark.system, pytest.mark.browser], id="Chromium, a hundred states"),
    pytest.param(in_webkit, 100, marks=[pytest.mark.system, pytest.mark.browser], id="WebKit, a hundred states"),
]


@pytest.mark.parametrize(("engine", "count"), ENGINES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_page_shows_what_python_computes(played, engine, count, tmp_path):
    if (CHROMIUM if engine is in_chromium else WEBKIT) is None:
        pytest.skip("needs Chromium, or WebKitWebDriver and Xvfb (Debian: apt install webkit2gtk-driver xvfb)")
    recording, explorer = played.recording, played.explorer
    file = tmp_path / "page.html"
    file.write_text(recording.page(), encoding="utf-8")
    walk = list(at_random(recording, count))
    explorer.forget()
    explorer.state = None  # so that it draws where it stands, as the page does when it opens
    explorer.set(**chosen(recording, recording.start))
    with engine(file) as shown:
        for places, seen in zip(walk, shown(walk), strict=True):
            explorer.set(**chosen(recording, places))
            said, data, layout = json.loads(seen)
            wanted, wanted_data, wanted_layout = drawn(explorer)
            assert (said, data) == (wanted, wanted_data)
            for path in map(json.loads, recording.columns):
                if path[0] == "layout":
                    assert at(layout, path[1:]) == at(wanted_layout, path[1:]), path


def test_numbers_have_as_many_digits_as_a_page_shows():
    recording = record(AffineExplorer(torch.linspace(-1, 2, 50)), {"bits": (2, 3)})
    for kinds, _ in recording.columns.values():
        for number in (x for value in kinds if isinstance(value, list) for x in value if isinstance(x, float)):
            assert float(f"{number:.{DIGITS}g}") == number
