"""Each lesson that times something, run where every time is noise: no sentence says more than its own table."""

import re

from qtutor.course import notebooks
from qtutor.manifest import LESSONS

import nbformat
import pytest
from lab import COURSE

NOISE = """
import random
from qtutor.benchmark import timing

def turn(run, runs, generator=random.Random(0)):
    run()
    return 1e-3 * generator.lognormvariate(0, 4)

timing.turn = turn
"""

FOUND = re.compile(r"\((?P<low>[\d.e+-]+) to (?P<high>[\d.e+-]+)\)")
CLAIMED = re.compile(r": a (gain|loss)\b|: (HOLDS|LARGER HERE|SMALLER HERE|CONTRADICTED)\.")


def timed():
    for lesson in LESSONS:
        notebook = nbformat.read(COURSE / lesson.notebook, 4)
        if any("compare(" in cell.source for cell in notebook.cells if cell.cell_type == "code"):
            yield pytest.param(notebook, id=lesson.name)


def printed(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield from str(output.get("text", "")).splitlines()


@pytest.mark.system
@pytest.mark.parametrize("notebook", list(timed()))
def test_no_sentence_is_contradicted_by_its_interval(notebook):
    """Where an interval spans a factor of two and holds "no difference", nothing may be said to be faster."""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NOISE))
    wide = 0
    for line in printed(notebooks.run(notebook)):
        for found in FOUND.finditer(line):
            low, high = float(found["low"]), float(found["high"])
            if low < 1 < high and high > 2 * low:
                wide += 1
                assert not CLAIMED.search(line), line
    assert wide
