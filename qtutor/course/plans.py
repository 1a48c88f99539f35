"""The timetables of the plans for instructors: half a day, and two days that hold every part of every lesson."""

from collections.abc import Iterable, Iterator

from qtutor.manifest import LESSONS

Row = tuple[int, str]
"""How many minutes something takes, and what it is."""

PARTS = {f"{lesson.number}, {part}": minutes for lesson in LESSONS for part, minutes in lesson.parts.items()}
"""The minutes of each part of each lesson, in order."""

HALF_A_DAY = ("00, core", "01, core", "03, core", "05, first half", "08, first half")
"""The parts for which half a day has time."""

_DAY_TWO = "06"  # its first lesson
_TEST_BEFORE, _TEST_AFTER = (10, "test, before (`qtutor teach test`)"), (10, "test, after")
_BREAK, _SHORT_BREAK = (15, "break"), (10, "break")


def timetables() -> dict[str, str]:
    """Return each timetable as a Markdown table, by the heading under which it stands in the page of plans."""
    share_out = "(`qtutor teach share_out`)"
    one, two = ([part for part in PARTS if (part < _DAY_TWO) is first] for first in (True, False))
    half_a_day = _with_pauses(HALF_A_DAY, {"01, core": _BREAK, "05, first half": _SHORT_BREAK})
    day_one = _with_pauses(
        one,
        {
            "01, discussion": _BREAK,
            "03, discussion": (60, "lunch"),
            "04, discussion": _BREAK,
            "05, first half": _SHORT_BREAK,
        },
    )
    day_two = _with_pauses(two, {"07, discussion": _BREAK, "08, discussion": (50, "lunch"), "09, discussion": _BREAK})
    welcome = (10, "welcome, `qtutor doctor` on every screen")
    loose_ends = (30, "loose ends: exercises still open, *Go deeper* by choice")
    own_model = (40, "a model of one's own, in pairs, to a report")
    together = (10, f"share-out, one report together {share_out}")
    return {
        "### The half day": _table(_TEST_BEFORE, *half_a_day, _TEST_AFTER, together),
        "### Day one": _table(welcome, _TEST_BEFORE, *day_one, loose_ends),
        "### Day two": _table(*day_two, own_model, (30, f"share-out {share_out}"), _TEST_AFTER),
    }


def _with_pauses(parts: Iterable[str], pauses: dict[str, Row]) -> Iterator[Row]:
    """Yield the row of each part, and what follows it."""
    for part in parts:
        yield PARTS[part], part
        if part in pauses:
            yield pauses[part]


def _table(*rows: Row) -> str:
    """Draw the rows of a day that begins at nine."""
    lines, clock = ["| from | minutes | what |", "| --- | --- | --- |"], 9 * 60
    for minutes, what in [*rows, (sum(minutes for minutes, _ in rows), "in all")]:
        lines.append(f"| {clock // 60:02}:{clock % 60:02} | {minutes} | {what} |")
        clock += minutes
    return "\n".join(lines)
