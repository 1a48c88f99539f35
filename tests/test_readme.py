"""README: its two commands, which GitHub and `.ci/run` run too, and its links."""

import re

import pytest
from lab import COURSE

README = (COURSE / "README.md").read_text(encoding="utf-8")
START, TEST = [block.partition("\n```")[0] for block in README.split("```sh\n")[1:3]]
PAGES = ["README.md", ".github/CONTRIBUTING.md", "binder/workshop.md", "binder/hub/README.md"]


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        (START, ["python3 -m venv .venv", ".venv/bin/python -m pip install -e .", ".venv/bin/qtutor lab"]),
        (TEST, ["python3 -m venv .venv", '.venv/bin/python -m pip install -e ".[test]"', ".venv/bin/pytest"]),
    ],
)
def test_each_is_one_line_that_makes_the_environment_installs_and_runs(line, steps):
    assert line.split(" && ") == steps


def test_the_test_command_leaves_the_system_tests_out(pytestconfig):
    assert "not system" in pytestconfig.getini("addopts")


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    path = COURSE / page
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []
