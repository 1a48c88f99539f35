"""The timetables of the plans for instructors: half a day, and the whole course in as many days as it takes.

Nobody sits longer than `LONGEST` minutes: where the next part would not fit, a break comes before it, whatever the
manifest says that parts take. Every day has slack, which rounds its end where it can.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise

from qtutor.manifest import LESSONS, Lesson

from reading import EXERCISE, MISSION

Row = tuple[int, str]
"""How many minutes something takes, and what it is."""

Together = Sequence[Row]
"""What no break comes between."""

LONGEST = 75
"""The most minutes from one break to the next."""

PAUSES = ("break", "lunch")
"""What ends a stretch."""

HALF_A_DAY = ("00, core", "01, core", "03, core", "05, first half", "08, first half")
"""The parts for which half a day has time."""

_NINE, _LUNCH_BEGINS_BY, _HOME_FOR_LUNCH, _DAY_ENDS_BY = 9 * 60, 12 * 60 + 45, 13 * 60 + 30, 17 * 60 + 45
_WELCOME = (10, "welcome, `qtutor doctor` on every screen")
_TEST_BEFORE, _TEST_AFTER = (10, "test, before (`qtutor teach test`)"), (10, "test, after")
_OWN_MODEL = (40, "a model of one's own, in pairs, to a report")
_SHARE_OUT = (30, "share-out (`qtutor teach share_out`)")
_ONE_REPORT = (10, "share-out, one report together (`qtutor teach share_out`)")
_SLACK = "slack: what the room still has open"
_LOOSE_ENDS = "slack: exercises still open, *Go deeper* by choice"


def timetables() -> dict[str, str]:
    """Return the timetables as Markdown, by the heading under which they stand in the page of plans."""
    days = whole_course()
    drawn = [f"**Day {day} of {len(days)}**\n\n{_table(rows)}" for day, rows in enumerate(days, 1)]
    return {"### The half day": _table(half_a_day()), "### The days": "\n\n".join(drawn)}


def half_a_day(lessons: Sequence[Lesson] = LESSONS) -> list[Row]:
    """Return the rows of half a day, which does a part of the exercises."""
    parts = [
        _shortened(lesson, part) for lesson in lessons for part in lesson.parts if _name(lesson, part) in HALF_A_DAY
    ]
    day = [[_WELCOME], [_TEST_BEFORE], *([part] for part in parts)]
    return _with_slack(day, _SLACK, [_TEST_AFTER, _ONE_REPORT], least=10)


def whole_course(lessons: Sequence[Lesson] = LESSONS) -> list[list[Row]]:
    """Return the rows of each day, on as few days as end in time, and these as equally long as can be."""
    for days in range(1, len(lessons) + 1):
        plans = [_days(cuts, lessons) for cuts in combinations(range(1, len(lessons)), days - 1)]
        best = min(plans, key=lambda plan: sum(_work(rows) ** 2 for rows in plan))
        if _NINE + max(map(_length, best)) <= _DAY_ENDS_BY:
            break
    return best


def _days(cuts: Sequence[int], lessons: Sequence[Lesson]) -> list[list[Row]]:
    """Return the rows of each day; `cuts` are the places of the lessons that begin the second day and later ones."""
    planned = []
    for first, after in pairwise((0, *cuts, len(lessons))):
        opening = [[_WELCOME], [_TEST_BEFORE]] if first == 0 else []
        closing = [_SHARE_OUT, _TEST_AFTER] if after == len(lessons) else []
        own = [[_OWN_MODEL]] if closing else []
        held = [together for lesson in lessons[first:after] for together in _lesson(lesson)]
        day = [*opening, *held, *own]
        rows = _with_slack(day, _LOOSE_ENDS, closing, least=20)
        if _NINE + _length(rows) > _HOME_FOR_LUNCH:
            rows = _with_slack(day, _LOOSE_ENDS, closing, least=20, lunch=True)
        planned.append(rows)
    return planned


def _lesson(lesson: Lesson) -> list[Together]:
    """Return the parts of a lesson; no break comes before its discussion, where that is not too long."""
    *parts, core, discussion = ((minutes, _name(lesson, part)) for part, minutes in lesson.parts.items())
    apart = core[0] + discussion[0] > LONGEST
    return [*([part] for part in parts), *([[core], [discussion]] if apart else [[core, discussion]])]


def _name(lesson: Lesson, part: str) -> str:
    return f"{lesson.number}, {part}"


def _shortened(lesson: Lesson, part: str) -> Row:
    """A part in half a day: one mission and one exercise are done, and the others taken home, where that saves time."""
    minutes, name = lesson.parts[part], _name(lesson, part)
    exercises = lesson.exercises * minutes / sum(lesson.minutes) if lesson.explorer else 0
    saved = int(exercises - MISSION - EXERCISE) // 5 * 5
    return (minutes - saved, f"{name}, one mission, one exercise") if saved > 0 else (minutes, name)


def _with_slack(
    units: Sequence[Together], slack: str, closing: Together, *, least: int, lunch: bool = False
) -> list[Row]:
    """Pace a day whose slack, of so many minutes or more, costs no further break and may round its end to a quarter."""
    after = [closing] if closing else []
    plans = [_paced([*units, [(minutes, slack)], *after], lunch) for minutes in range(least, least + 30, 5)]
    return min(plans, key=lambda rows: (len(rows), _length(rows) % 15 != 0, _length(rows)))


def _paced(units: Sequence[Together], lunch: bool) -> list[Row]:
    """Put breaks between, where the next would be too long without one; and lunch, once, about noon."""
    rows: list[Row] = []
    since = 0
    for unit in units:
        length, clock = _length(unit), _NINE + _length(rows)
        at_lunch = lunch and clock + length > _LUNCH_BEGINS_BY
        if at_lunch or since + length > LONGEST:
            rows.append((60, "lunch") if at_lunch else (15 if since >= 60 else 10, "break"))
            since, lunch = 0, lunch and not at_lunch
        rows += unit
        since += length
    return rows


def _work(rows: Sequence[Row]) -> int:
    return sum(minutes for minutes, what in rows if what not in PAUSES)


def _length(rows: Sequence[Row]) -> int:
    return sum(minutes for minutes, _ in rows)


def _table(rows: Sequence[Row]) -> str:
    """Draw the rows of a day."""
    lines, clock = ["| from | minutes | what |", "| --- | --- | --- |"], _NINE
    for minutes, what in [*rows, (_length(rows), "in all")]:
        lines.append(f"| {clock // 60:02}:{clock % 60:02} | {minutes} | {what} |")
        clock += minutes
    return "\n".join(lines)
