import re
from pathlib import Path

from qtutor.course import preflight

import pytest

COURSE = Path(__file__).resolve().parent.parent
README = (COURSE / "README.md").read_text(encoding="utf-8")
START, TEST = re.findall(r"^```sh\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)[:2]


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        (START, ["python3 -m venv .venv", ".venv/bin/python -m pip install -e .", ".venv/bin/qtutor lab"]),
        (TEST, ["python3 -m venv .venv", '.venv/bin/python -m pip install -e ".[test]"', ".venv/bin/pytest"]),
    ],
)
def test_each_line_makes_the_environment_installs_and_runs(line, steps):
    assert line.split(" && ") == steps


@pytest.mark.parametrize("line", [START, TEST])
def test_each_block_is_one_line_to_paste(line):
    assert "\n" not in line


def test_every_lesson_is_listed_once_and_no_other():
    listed = re.findall(r"^\| \[(\w+)\]\(lessons/(\w+)\.ipynb\) \| \d+ \|$", README, re.MULTILINE)
    assert all(name == target for name, target in listed)
    assert [name for name, _ in listed] == sorted(path.stem for path in (COURSE / "lessons").glob("*.ipynb"))


def test_the_minutes_are_those_that_doctor_tells():
    for name, minutes in re.findall(r"^\| \[(\w+)\].* \| (\d+) \|$", README, re.MULTILINE):
        assert preflight.expect(COURSE / "lessons" / f"{name}.ipynb", 1.0).startswith(f"{name}: {minutes} minutes")


def test_the_system_tests_have_a_line_of_their_own_and_the_test_command_leaves_them_out():
    assert '".[test,system]" && .venv/bin/pytest -m system' in README
    assert "-m 'not system'" in (COURSE / "pyproject.toml").read_text(encoding="utf-8")


def test_every_relative_link_leads_somewhere():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (COURSE / target).exists()] == []
