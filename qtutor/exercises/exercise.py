"""The mechanism of an exercise: check an answer, hint, show the solution.

An exercise ships its solution and plausible wrong answers, each with the hint that fits it. The wrong
answers serve twice: an answer that behaves like one of them gets its hint, and a test sees each of
them rejected. Functions are judged on inputs drawn afresh at every check.

Checking never raises and tells four outcomes apart: not attempted, wrong, error, right.
"""

import dis
import html
import inspect
import linecache
import pprint
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qtutor.exercises import progress
from qtutor.exercises.comparison import difference, other_kind, same, show
from qtutor.models.tensors import copies
from qtutor.words import named

import torch

ROUNDS = 25
"""How many fresh inputs a function is checked on."""

_MARKS = {"right": "✓ Right", "wrong": "✗ Not yet", "error": "! Your code raised an error", "not attempted": "… Open"}
_COLOURS = {"right": "#00795A", "wrong": "#D55E00", "error": "#D55E00", "not attempted": "#5A6270", "note": "#0072B2"}


@dataclass(frozen=True)
class Feedback:
    """What a check, a hint or a solution says; a notebook shows it as a box, a terminal as text.

    Attributes:
        outcome: "right", "wrong", "error", "not attempted", or "note" for hints and solutions.
        text: what is said.
        code: code that belongs to it, or "".
        footer: the line of progress, or "".
    """

    outcome: str
    text: str
    code: str = ""
    footer: str = ""

    @property
    def _headed(self) -> str:
        return ". ".join(filter(None, (_MARKS.get(self.outcome, ""), self.text)))

    def __repr__(self) -> str:
        return "\n".join(filter(None, (self._headed, textwrap.indent(self.code, "    "), self.footer)))

    def _repr_html_(self) -> str:
        code = f"<pre style='margin:6px 0'><code>{html.escape(self.code)}</code></pre>" if self.code else ""
        footer = f"<div style='opacity:.8'>{html.escape(self.footer)}</div>" if self.footer else ""
        style = f"border-left:4px solid {_COLOURS[self.outcome]};padding:4px 12px;max-width:62em"
        return f"<div role='status' style='{style}'>{html.escape(self._headed)}{code}{footer}</div>"


@dataclass(eq=False, repr=False)
class Exercise:
    """One exercise of a lesson: `check(answer)` judges, `hint()` gives a nudge, `solution()` the answer.

    Attributes:
        exercises: those of its lesson.
        name: its name in the lesson's module.
        answer: the right answer: a value, a function, or for a mission the controls' values.
        hints: from a nudge to nearly all, shown one a call.
        mistakes: plausible wrong answers, each with the hint that fits it.
        because: why the right answer is right, shown with the solution.
        invitation: what to do first, said while the exercise is open.
        judge: None for a right answer, else the hint for the wrong one.
        is_blank: whether an answer is what the notebook leaves there.
        tolerance: of a value that is a number, for a page that judges it without Python.
    """

    exercises: "Exercises"
    name: str
    answer: Any
    hints: tuple[str, ...]
    judge: Callable[[Any], str | None]
    is_blank: Callable[[Any], bool]
    mistakes: list[tuple[Any, str]] = field(default_factory=list)
    because: str = ""
    invitation: str = "Replace the ... with your answer, then run the cell again."
    tolerance: float = 0.0
    _hinted: int = 0

    def __repr__(self) -> str:
        # A notebook shows it unasked, in tooltips too; the dataclass's own holds the answer.
        return f"Exercise {self.name}: call its check(...), hint() or solution()."

    def check(self, answer: Any) -> Feedback:
        """Judge an answer; never raises, unless it is interrupted."""
        try:
            if self.is_blank(answer):
                return self._feedback("not attempted", self.invitation)
            hint = self.judge(answer)
        except (Exception, SystemExit) as error:  # whatever a learner's code may do
            return self._feedback("error", _describe(error, answer))
        except KeyboardInterrupt as error:  # its traceback may show the lines of the solution
            raise KeyboardInterrupt(_own_line(error, answer)) from None
        if hint is not None:
            return self._feedback("wrong", hint)
        progress.record(self.exercises.name, self.name)
        return self._feedback("right", self.because)

    def hint(self) -> Feedback:
        """Show the next hint; after the last, the last again."""
        number = min(self._hinted, len(self.hints) - 1)
        self._hinted += 1
        return Feedback("note", f"Hint {number + 1} of {len(self.hints)}: {self.hints[number]}")

    def solution(self) -> Feedback:
        """Show the solution and why it is right."""
        if callable(self.answer):
            return Feedback("note", self.because, code=_source(self.answer))
        if isinstance(self.answer, dict):
            return Feedback("note", self.because, code=_settings(self.answer))
        return Feedback("note", f"{show(self.answer)}. {self.because}")

    def mistake(self, hint: str) -> Callable:
        """Decorate a plausible wrong function with the hint that fits it."""

        def add(function: Callable) -> Callable:
            self.mistakes.append((function, hint))
            return function

        return add

    def _feedback(self, outcome: str, text: str) -> Feedback:
        return Feedback(outcome, text, footer=self.exercises.line())


class Exercises:
    """The exercises of one lesson, in order."""

    def __init__(self, name: str):
        self.name = name
        self.by_name: dict[str, Exercise] = {}

    def line(self) -> str:
        """Return the line of progress."""
        done = progress.solved(self.name) & self.by_name.keys()
        return f"{len(done)} of {len(self.by_name)} right in this lesson."

    def value(
        self,
        name: str,
        answer: Any,
        *,
        hints: list[str],
        mistakes: dict[Any, str],
        because: str,
        tolerance: float = 0.0,
    ) -> Exercise:
        """Add an exercise whose answer is a number or a word.

        Args:
            name: its name in the module.
            answer: the right answer.
            hints: from a nudge to nearly all.
            mistakes: plausible wrong answers and the hint for each.
            because: why the answer is right.
            tolerance: by how much a number may differ, absolute or relative.
        """

        def judge(given: Any) -> str | None:
            if same(given, answer, tolerance):
                return None
            for wrong, hint in mistakes.items():
                if same(given, wrong, tolerance):
                    return hint
            if isinstance(given, str) != isinstance(answer, str):
                kind = "a word: write it in quotes" if isinstance(answer, str) else "a number: write it without quotes"
                return f"The answer is {kind}. {show(given)} is not."
            return f"{show(given)} is not it. {hints[0]}"

        wrong = list(mistakes.items())
        return self._add(
            Exercise(self, name, answer, tuple(hints), judge, _is_open, wrong, because, tolerance=tolerance)
        )

    def function(
        self,
        *,
        inputs: Callable[[torch.Generator], tuple],
        hints: list[str],
        because: str,
        given: Callable | None = None,
        tolerance: float = 0.0,
    ) -> Callable[[Callable], Exercise]:
        """Decorate the solution of an exercise whose answer is a function.

        Args:
            inputs: draws the arguments of one call.
            hints: from a nudge to nearly all.
            because: why the solution is right.
            given: the function that the notebook hands out to be mended; None where it hands out an empty one.
            tolerance: by how much a result may differ, absolute or relative.
        """

        def add(solution: Callable) -> Exercise:
            def untouched(answer: Any) -> bool:
                return _is_blank_function(answer) or (given is not None and _does(answer) == _does(given))

            def judge(answer: Any) -> str | None:
                if not callable(answer):
                    return f"The answer is a function, and {show(answer)} is not: pass its name without parentheses."
                generator = torch.Generator()
                generator.seed()
                cases = [inputs(generator) for _ in range(ROUNDS)]
                results = [answer(*copies(case)) for case in cases]
                expected = [solution(*copies(case)) for case in cases]
                wrong = [i for i in range(ROUNDS) if not same(results[i], expected[i], tolerance)]
                if not wrong:
                    return None
                if all(result is None for result in results):
                    return "Your function returns None: is its return statement missing?"
                for mistake, hint in exercise.mistakes:
                    if all(same(r, mistake(*copies(c)), tolerance) for r, c in zip(results, cases, strict=True)):
                        return hint
                first = wrong[0]
                names = inspect.signature(solution).parameters
                return other_kind(results[first], expected[first], tolerance) or difference(
                    names, cases[first], results[first], expected[first], tolerance
                )

            exercise = Exercise(self, solution.__name__, solution, tuple(hints), judge, untouched, because=because)
            if given is not None:
                exercise.invitation = "Change the function, then run the cell again."
            return self._add(exercise)

        return add

    def mission(
        self,
        name: str,
        goal: Callable[[Any], str | None],
        *,
        answer: dict[str, Any],
        hints: list[str],
        mistakes: list[tuple[dict[str, Any], str]],
        because: str,
    ) -> Exercise:
        """Add a mission: bring an explorer into a state that meets a goal.

        Args:
            name: its name in the module.
            goal: given the explorer, None where it is met, else what is missing.
            answer: values for the explorer's controls that meet the goal.
            hints: from a nudge to nearly all.
            mistakes: values that do not, and what `goal` says of each.
            because: what meeting the goal shows.
        """

        def untouched(explorer: Any) -> bool:
            return _is_open(explorer) or getattr(explorer, "state", None) == getattr(explorer, "first_state", False)

        def judge(explorer: Any) -> str | None:
            if not hasattr(explorer, "first_state"):
                return f"A mission is played in its explorer: pass that, not {show(explorer)}."
            return goal(explorer)

        invitation = "Move the explorer's controls, then run this cell again."
        return self._add(Exercise(self, name, answer, tuple(hints), judge, untouched, mistakes, because, invitation))

    @property
    def missions(self) -> list[Exercise]:
        """The exercises that are played in the lesson's explorer."""
        return [exercise for exercise in self.by_name.values() if isinstance(exercise.answer, dict)]

    def _add(self, exercise: Exercise) -> Exercise:
        self.by_name[exercise.name] = exercise
        return exercise


def reveal(guess: Any, truth: Any) -> None:
    """Print a guess beside the truth, without judging; a guess left blank passes."""
    said = "you made no guess" if guess is ... else f"you guessed {show(guess)}"
    print(f"{said[0].upper()}{said[1:]}; the answer is {show(truth)}.")


def _is_open(answer: Any) -> bool:
    return answer is ...


def _is_blank_function(answer: Any) -> bool:
    """Whether a function's body is nothing but `...`, `pass` or a docstring."""
    code = getattr(answer, "__code__", None)
    if code is None:
        return _is_open(answer)
    return all(
        step.opname in ("RESUME", "NOP", "RETURN_VALUE")
        or (step.opname in ("LOAD_CONST", "RETURN_CONST") and step.argval in (None, ...))
        for step in dis.get_instructions(code)
    )


def _does(function: Any) -> tuple | None:
    """What a function does, as bytecode; equal for equal source."""
    code = getattr(function, "__code__", None)
    return code and (code.co_code, code.co_consts, code.co_names)


def _describe(error: BaseException, answer: Any) -> str:
    """Name an error and the learner's own line that raised it."""
    return " ".join(filter(None, (named(error), _own_line(error, answer))))


def _own_line(error: BaseException, answer: Any) -> str:
    """The line of the learner's own code in which an error was raised, or ""."""
    own = getattr(getattr(answer, "__code__", None), "co_filename", "")
    lines = [f.lineno or 0 for f in traceback.extract_tb(error.__traceback__) if f.filename == own]
    if not lines:
        return ""
    text = linecache.getline(own, lines[-1]).strip()
    return f"(line {lines[-1]}: {text})" if text else f"(line {lines[-1]})"


def _settings(answer: dict[str, Any]) -> str:
    """The call that brings an explorer there, on several lines where one would be long."""
    values = {name: pprint.pformat(value, width=80).replace("'", '"') for name, value in answer.items()}
    call = f"explorer.set({', '.join(map('='.join, values.items()))})"
    if len(call) <= 100:
        return call
    lines = (f"    {name}=" + value.replace("\n", "\n" + " " * (5 + len(name))) for name, value in values.items())
    return "\n".join(["explorer.set(", *(f"{line}," for line in lines), ")"])


def _source(function: Callable) -> str:
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def "))
    return "\n".join(lines[start:])
