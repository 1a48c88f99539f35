"""The timetables of the plans for instructors: half a day, and the whole course in as many days as it takes.

Nobody sits longer than `LONGEST` minutes: where the next part would not fit, a break comes before it, whatever the
manifest says that parts take. Every day has slack, which also rounds its end.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise

from qtutor.course.reading import EXERCISE, MISSION
from qtutor.manifest import LESSONS, Lesson

Row = tuple[int, str]
"""How many minutes something takes, and what it is."""

Together = Sequence[Row]
"""What no break comes between."""

LONGEST = 75
"""The most minutes from one break to the next."""

PAUSES = ("break", "lunch")
"""What ends a stretch."""

PARTS = {f"{lesson.number}, {part}": minutes for lesson in LESSONS for part, minutes in lesson.parts.items()}
"""The minutes of each part of each lesson, in order."""

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
    half_day = [[_WELCOME], [_TEST_BEFORE], *([_shortened(part)] for part in HALF_A_DAY)]
    half_day = _with_slack(half_day, _SLACK, [_TEST_AFTER, _ONE_REPORT], least=10, ends_on=15)
    days = whole_course()
    drawn = [f"**Day {day} of {len(days)}**\n\n{_table(rows)}" for day, rows in enumerate(days, 1)]
    return {"### The half day": _table(half_day), "### The days": "\n\n".join(drawn)}


def whole_course(lessons: Sequence[Lesson] = LESSONS) -> list[list[Row]]:
    """Return the rows of each day, on as few days as end in time, and these as equally long as can be."""
    for days in range(1, len(lessons) + 1):
        plans = [_days(cuts, lessons) for cuts in combinations(range(1, len(lessons)), days - 1)]
        best = min(plans, key=lambda plan: sum(_work(rows) ** 2 for rows in plan))
        if _NINE + max(map(_length, best)) <= _DAY_ENDS_BY:
            break
    return best


def _days(cuts: Sequence[int], lessons: Sequence[Lesson]) -> list[list[Row]]:
    """Return the rows of each day; `cuts` are the places of the lessons that begin the second day and each later one."""
    planned = []
    for first, after in pairwise((0, *cuts, len(lessons))):
        opening = [[_WELCOME], [_TEST_BEFORE]] if first == 0 else []
        closing = [_SHARE_OUT, _TEST_AFTER] if after == len(lessons) else []
        own = [[_OWN_MODEL]] if closing else []
        held = [together for lesson in lessons[first:after] for together in _lesson(lesson)]
        day = [*opening, *held, *own]
        rows = _with_slack(day, _LOOSE_ENDS, closing, least=20, ends_on=15)
        if _NINE + _length(rows) > _HOME_FOR_LUNCH:
            rows = _with_slack(day, _LOOSE_ENDS, closing, least=20, ends_on=15, lunch=True)
        planned.append(rows)
    return planned


def _lesson(lesson: Lesson) -> list[Together]:
    """Return the parts of a lesson; its discussion follows what it discusses without a break, if that is not too long."""
    *parts, core, discussion = ((minutes, f"{lesson.number}, {part}") for part, minutes in lesson.parts.items())
    apart = core[0] + discussion[0] > LONGEST
    return [*([part] for part in parts), *([[core], [discussion]] if apart else [[core, discussion]])]


def _shortened(part: str) -> Row:
    """A part in half a day: one mission and one exercise are done, and the others taken home, where that saves time."""
    (lesson,) = (lesson for lesson in LESSONS if lesson.number == part[:2])
    exercises = lesson.exercises * PARTS[part] / sum(lesson.minutes) if lesson.explorer else 0
    saved = int(exercises - MISSION - EXERCISE) // 5 * 5
    return (PARTS[part] - saved, f"{part}, one mission, one exercise") if saved > 0 else (PARTS[part], part)


def _with_slack(
    units: Sequence[Together], slack: str, closing: Together, *, least: int, ends_on: int, lunch: bool = False
) -> list[Row]:
    """Pace a day whose slack, of so many minutes or more, lets it end on a full part of an hour."""
    plans = [_paced([*units, [(minutes, slack)], closing], lunch) for minutes in range(least, least + 2 * ends_on, 5)]
    return min((rows for rows in plans if _length(rows) % ends_on == 0), key=_length)


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
