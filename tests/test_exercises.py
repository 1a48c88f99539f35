"""Every exercise of every lesson: its solution passes, each mistake gets its own hint, a blank is open."""

import ast
import functools
import json
import re
import traceback
from pathlib import Path

from qtutor import exercises, manifest
from qtutor.exercises import affine_mapping, progress
from qtutor.exercises.exercise import Exercise, Exercises, reveal
from qtutor.explorers import AffineExplorer

import nbformat
import numpy as np
import pytest
import torch
from IPython.lib.pretty import pretty

MODULES = {lesson.name: exercises.of(lesson) for lesson in manifest.LESSONS}
LESSONS = [module.exercises for module in MODULES.values()]
EXERCISES = [pytest.param(e, id=f"{lesson.name}-{e.name}") for lesson in LESSONS for e in lesson.by_name.values()]


@pytest.fixture(autouse=True)
def fresh_session(monkeypatch):
    monkeypatch.setattr(progress, "_session", {})


@functools.cache
def opened(lesson: str):
    """The explorer of a lesson, and how its controls stand at first."""
    explorer = exercises.opened(next(each for each in manifest.LESSONS if each.name == lesson))
    return explorer, {name: control.value for name, control in explorer.controls.items()}


def attempt(exercise: Exercise, answer):
    """Hand in `answer`; for a mission, in the explorer of the lesson, whose controls went from their first to these."""
    if not isinstance(answer, dict):
        return exercise.check(answer)
    explorer, first = opened(exercise.exercises.name)
    explorer.set(**first)
    explorer.forget()
    explorer.set(**answer)
    return exercise.check(explorer)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_solution_is_right(exercise):
    assert attempt(exercise, exercise.answer).outcome == "right"


@pytest.mark.parametrize("lesson", manifest.LESSONS, ids=lambda lesson: lesson.name)
def test_questions_stand_in_the_order_of_the_lesson(lesson):
    """In which its notes for instructors and its page have them; missions stand where their explorer does."""
    source = (Path(__file__).parent.parent / lesson.notebook).read_text(encoding="utf-8")
    module = MODULES[lesson.name].exercises
    played = {exercise.name for exercise in module.missions}
    asked = [name for name in re.findall(r"exercises\.(\w+)\.check\(", source) if name not in played]
    assert asked == [name for name in module.by_name if name not in played]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_each_mistake_is_wrong_with_its_own_hint(exercise):
    hints = [hint for _, hint in exercise.mistakes]
    assert len(hints) >= 2
    assert len({*hints}) == len(hints)
    for answer, hint in exercise.mistakes:
        feedback = attempt(exercise, answer)
        assert feedback.outcome == "wrong"
        assert hint in feedback.text


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_blank_is_not_attempted(exercise):
    assert exercise.check(...).outcome == "not attempted"


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_last_hint_stays_and_the_solution_explains(exercise):
    shown = [exercise.hint().text for _ in range(len(exercise.hints) + 1)]
    assert shown[-1] == shown[-2]
    assert exercise.because in exercise.solution().text


@pytest.mark.parametrize("exercise", EXERCISES)
def test_nothing_that_a_notebook_shows_unasked_gives_the_answer_away(exercise):
    shown = [pretty(exercise), pretty(exercise.check), pretty(vars(exercise.exercises)), str(exercise)]
    telling = [repr(exercise.answer), exercise.because, *exercise.hints, *(hint for _, hint in exercise.mistakes)]
    assert [tell for tell in telling if len(tell) > 2 and tell in "\n".join(shown)] == []


HANDED_OUT = [
    pytest.param(exercises, name, cell.source[: cell.source.index(f"exercises.{name}.check")], id=f"{path.stem}-{name}")
    for path in sorted((Path(__file__).parent.parent / "lessons").glob("*.ipynb"))
    for exercises in [lesson.by_name for lesson in LESSONS if lesson.name == path.stem]
    for cell in nbformat.read(path, 4).cells
    if cell.cell_type == "code"
    for name in re.findall(r"^exercises\.(\w+)\.check\((?:answer|\1)\)", cell.source, re.MULTILINE)
]


@pytest.mark.parametrize(("exercises", "name", "source"), HANDED_OUT)
def test_what_a_notebook_hands_out_is_not_attempted(exercises, name, source):
    kinds = (ast.FunctionDef, ast.Assign)
    parts = [part for part in ast.parse(source).body if isinstance(part, kinds)]
    cell = {"torch": torch}
    exec(compile(ast.Module(parts, []), name, "exec"), cell)
    assert exercises[name].check(cell.get(name, cell.get("answer"))).outcome == "not attempted"


@pytest.fixture
def lesson():
    return Exercises("a lesson")


@pytest.fixture
def double(lesson):
    @lesson.function(inputs=lambda g: (torch.randn(3, generator=g),), hints=["Twice."], because="Twice.")
    def double(x):
        return 2 * x

    return double


def test_a_function_left_empty_is_not_attempted(double):
    def dots(x): ...

    def documented(x):
        """Double x."""

    def passed(x):
        pass

    assert [double.check(f).outcome for f in (dots, documented, passed)] == ["not attempted"] * 3


def test_a_function_without_return_is_told_so(double):
    def forgets(x):
        x * 2

    feedback = double.check(forgets)
    assert (feedback.outcome, "return" in feedback.text) == ("wrong", True)


def test_an_interrupted_check_names_the_learners_line_and_shows_no_line_of_the_solution(lesson):
    @lesson.function(inputs=lambda g: (1,), hints=["Stop."], because="Stopped.")
    def stop(x):
        raise KeyboardInterrupt("in the solution")

    def endless(x):
        raise KeyboardInterrupt("by hand")

    with pytest.raises(KeyboardInterrupt, match=r'raise KeyboardInterrupt\("by hand"\)'):
        stop.check(endless)
    with pytest.raises(KeyboardInterrupt) as caught:
        stop.check(abs)
    assert 'raise KeyboardInterrupt("in' not in "".join(traceback.format_exception(caught.value))


def test_a_hard_coded_answer_does_not_pass(double):
    assert double.check(lambda x: torch.tensor([1.0, 2.0, 3.0])).outcome == "wrong"


def test_an_unforeseen_wrong_answer_is_shown_where_it_differs(double):
    feedback = double.check(lambda x: 3 * x)
    assert feedback.outcome == "wrong"
    assert "expected" in feedback.text


@pytest.mark.parametrize(
    "answer", [None, "text", 4, [1], lambda: 0, object(), torch.tensor([])], ids=lambda value: type(value).__name__
)
def test_checking_never_raises(double, lesson, answer):
    number = lesson.value("number", 5, hints=["Five."], mistakes={4: "One more.", 6: "One less."}, because="Five.")
    word = lesson.value("word", "b", hints=["B."], mistakes={"a": "No.", "c": "No, no."}, because="B.")
    for exercise in (double, number, word):
        assert exercise.check(answer).outcome in ("wrong", "error")


def test_an_error_names_the_learners_own_line(double):
    def breaks(x):
        y = x + 1
        return y / [][0]

    feedback = double.check(breaks)
    assert feedback.outcome == "error"
    assert "IndexError" in feedback.text
    assert "return y / [][0]" in feedback.text


def test_even_an_exit_is_only_an_error(double):
    def leaves(x):
        raise SystemExit(3)

    assert double.check(leaves).outcome == "error"


def test_a_learner_cannot_change_the_inputs_of_the_check(double):
    assert double.check(lambda x: x.mul_(2)).outcome == "right"


def test_true_is_not_one(lesson):
    one = lesson.value("one", 1, hints=["One."], mistakes={0: "More.", 2: "Less."}, because="One.")
    assert one.check(True).outcome == "wrong"


def test_progress_survives_a_restart(double, lesson, monkeypatch):
    assert lesson.line() == "0 of 1 right in this lesson."
    assert double.check(lambda x: x + x).footer == "1 of 1 right in this lesson."
    monkeypatch.setattr(progress, "_session", {})
    assert lesson.line() == "1 of 1 right in this lesson."
    progress.reset()
    assert lesson.line() == "0 of 1 right in this lesson."


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"\xff", b'{"a lesson": 4}', b'{"a lesson": null}'],
    ids=lambda value: type(value).__name__,
)
def test_a_corrupt_progress_file_counts_as_empty_and_is_replaced(double, lesson, content):
    progress.path().parent.mkdir(parents=True)
    progress.path().write_bytes(content)
    assert lesson.line() == "0 of 1 right in this lesson."
    assert double.check(double.answer).outcome == "right"
    assert json.loads(progress.path().read_bytes()) == {"a lesson": ["double"]}


def test_without_a_place_to_write_progress_lasts_for_the_session(double, lesson, tmp_path, monkeypatch):
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    monkeypatch.setenv("QTUTOR_HOME", str(blocked))
    assert double.check(double.answer).footer == "1 of 1 right in this lesson."


def test_feedback_escapes_what_a_learner_wrote(lesson):
    word = lesson.value("word", "b", hints=["B."], mistakes={"a": "No.", "c": "No, no."}, because="B.")
    assert "<script>" not in word.check("<script>")._repr_html_()


def test_reveal_takes_a_guess_or_none(capsys):
    reveal(..., 5)
    reveal(4, 5)
    assert capsys.readouterr().out == "You made no guess; the answer is 5.\nYou guessed 4; the answer is 5.\n"


def test_numpy_numbers_are_as_good_as_pythons():
    def derive(min_val, max_val, quant_min, quant_max):
        scale, zero_point = affine_mapping.derive_qparams.answer(min_val, max_val, quant_min, quant_max)
        return np.float64(scale), np.int64(zero_point)

    assert affine_mapping.derive_qparams.check(derive).outcome == "right"


def test_right_values_of_the_wrong_kind_are_told_so(double):
    for convert in (lambda y: y.tolist(), lambda y: y.numpy()):
        feedback = double.check(lambda x, convert=convert: convert(2 * x))
        assert feedback.outcome == "wrong"
        assert "values are right" in feedback.text
        assert "return a torch tensor" in feedback.text


@pytest.mark.parametrize(
    ("convert", "kind"),
    [(lambda y: (y, 0.5), "tuple"), (list, "list"), (str, "str"), (lambda y: {"codes": y}, "dict")],
    ids=["a tuple", "a list of tensors", "a word", "a dict"],
)
def test_what_is_no_tensor_is_told_so_and_is_no_error(double, convert, kind):
    feedback = double.check(lambda x: convert(2 * x))
    assert feedback.outcome == "wrong"
    assert feedback.text.endswith(f"ou return {kind}: return a torch tensor.")


def test_only_the_first_wrong_element_is_shown(double):
    feedback = double.check(lambda x: torch.where(torch.arange(3) == 1, 0.0, 2 * x))
    assert feedback.text.endswith("1 of 3 values differ.")
    assert "[" not in feedback.text


def test_a_mission_wants_its_explorer_and_its_values():
    mission = affine_mapping.reach_40_db
    for other in ((-2.6, 2.6), None, 2.6):
        feedback = mission.check(other)
        assert feedback.outcome == "wrong"
        assert "pass that" in feedback.text
    elsewhere = AffineExplorer(torch.zeros(5))
    elsewhere.set(bits=8)
    assert "AffineExplorer(normal)" in mission.check(elsewhere).text


def test_a_choice_may_be_written_as_it_stands_in_the_question(lesson):
    word = lesson.value("word", "b", hints=["B."], mistakes={"a": "No.", "c": "No, no."}, because="B.")
    assert [word.check(a).outcome for a in ("b", "B", "b)", "(b)", " b. ")] == ["right"] * 5
