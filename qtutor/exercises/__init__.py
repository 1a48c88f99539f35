"""Exercises: a question's check, hints and solution, and the learner's progress.

    from qtutor.exercises import affine_mapping as exercises
    exercises.predict_code.check(answer)

`exercise` holds the mechanism, `comparison` compares what was given with what was expected, `progress` what survives a
restart, every other module the exercises of one lesson.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from qtutor.manifest import Lesson

if TYPE_CHECKING:
    from qtutor.explorers.explorer import Explorer


def of(lesson: Lesson) -> ModuleType:
    """Return the module that holds the exercises of a lesson."""
    return import_module(f"{__name__}.{lesson.topic}")


def opened(lesson: Lesson) -> "Explorer":
    """Open the explorer that the missions of a lesson are played in: its module's, or one on an example of its own."""
    from qtutor import explorers

    return getattr(of(lesson), "explorer", getattr(explorers, lesson.explorer))()
