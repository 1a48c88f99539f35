"""Explorers on a page without a kernel: what Python computed, found again by the controls."""

import importlib
import json
import random

from qtutor import cli
from qtutor.explorers import AffineExplorer
from qtutor.explorers.recording import DIGITS, _leaves, record
from qtutor.manifest import LESSONS

import plotly.graph_objects as go
import pytest
import torch
from lab import CHROMIUM, empty_page

EXPLORERS = [lesson for lesson in LESSONS if lesson.explorer]


def recorded(lesson):
    module = importlib.import_module(f"qtutor.exercises.{lesson.topic}")
    explorer = module.explorer()
    return explorer, module.lesson.missions, record(explorer, missions=module.lesson.missions)


@pytest.fixture(scope="module", params=EXPLORERS, ids=lambda lesson: lesson.name)
def played(request):
    return recorded(request.param)


def chosen(recording, places):
    """The values of the controls at these places of the axes."""
    values = {}
    for axis, place in zip(recording.axes, places, strict=True):
        value = axis.values[place]
        values[axis.name] = value if axis.end is None else (*values.get(axis.name, ()), value)
    return values


def at_random(recording, count, seed=0):
    generator = random.Random(seed)
    for _ in range(count):
        yield [generator.randrange(len(axis.values)) for axis in recording.axes]


def test_a_state_is_what_python_draws_and_says_there(played):
    explorer, _, recording = played
    first = {name: control.value for name, control in explorer.controls.items()}
    live = explorer.figure
    for places in at_random(recording, 20):
        values = chosen(recording, places)
        number = recording.place(**values)
        explorer.figure = go.Figure(live)
        explorer.state = explorer.make_state(**(first | values))
        result = explorer.compute(explorer.state)
        explorer.draw(result)
        drawn = dict(_leaves(explorer.figure.to_plotly_json()))
        for path, (kinds, which) in recording.columns.items():
            assert (kinds[which[number]] if which[number] >= 0 else None) == drawn.get(path)
        kinds, which = recording.said["sentence"]
        assert kinds[which[number]] == result.sentence


def test_every_mission_can_be_solved_and_missed(played):
    _, missions, recording = played
    assert missions
    for mission in missions:
        kinds, which = recording.said[mission.name]
        assert kinds[which[recording.place(**mission.answer)]] == ["right", mission.because]
        assert any(outcome == "wrong" for outcome, _ in kinds)


def test_a_recording_is_small(played):
    assert len(played[2].packed()) < 1_000_000


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


def test_an_explorer_without_controls_has_nothing_to_record():
    with pytest.raises(ValueError, match="nothing to record: The tensor of shape"):
        record(AffineExplorer(torch.empty(0)))


def test_a_command_writes_a_page_and_never_over_another(tmp_path, capsys):
    page = tmp_path / "affine.html"
    assert cli.main(["explorer", "affine", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert 'class="qtutor-player"' in text
    assert "http://" not in text.partition("<script>")[0]
    assert cli.main(["explorer", "affine", str(page)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_page_shows_each_state_as_it_was_recorded(played, tmp_path):
    recording = played[2]
    file = tmp_path / "page.html"
    file.write_text(recording.page(), encoding="utf-8")
    with empty_page() as page:
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        page.context.set_offline(True)
        page.goto(file.as_uri())
        page.wait_for_selector("[data-state]")
        for places in at_random(recording, 100):
            number = recording.place(**chosen(recording, places))
            said, shown = page.evaluate(
                """places => {
                    const player = document.querySelector(".qtutor-player").player;
                    player.places = places;
                    player.show(false);
                    const { data, layout } = player.plot;
                    return [player.sentence.textContent, { data, layout }];
                }""",
                places,
            )
            kinds, which = recording.said["sentence"]
            assert said == kinds[which[number]]
            for path, (kinds, which) in recording.columns.items():
                value = shown
                for step in json.loads(path):
                    value = value[step] if isinstance(value, list) else (value or {}).get(step)
                assert value == (kinds[which[number]] if which[number] >= 0 else None), path
        assert wrong == []


def test_numbers_have_as_many_digits_as_a_page_shows():
    recording = record(AffineExplorer(torch.linspace(-1, 2, 50)), {"bits": (2, 3)})
    for kinds, _ in recording.columns.values():
        for number in (x for value in kinds if isinstance(value, list) for x in value if isinstance(x, float)):
            assert float(f"{number:.{DIGITS}g}") == number
