"""README: its three commands, of which GitHub and `.ci/run` run one too, and its links."""

import re
from importlib import metadata

import pytest
from lab import COURSE

README = (COURSE / "README.md").read_text(encoding="utf-8")
WHEEL, CLONE, TEST = [block.partition("\n```")[0] for block in README.split("```sh\n")[1:4]]
PAGES = ["README.md", ".github/CONTRIBUTING.md", "binder/workshop.md", "binder/hub/README.md"]


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        (WHEEL, ["python3 -m venv .venv", ".venv/bin/python -m pip install qtutor-*.whl", ".venv/bin/qtutor lab"]),
        (CLONE, ["python3 -m venv .venv", ".venv/bin/python -m pip install -e .", ".venv/bin/qtutor lab"]),
        (TEST, ["python3 -m venv .venv", '.venv/bin/python -m pip install -e ".[test]"', ".venv/bin/pytest"]),
    ],
)
def test_each_is_one_line_that_makes_the_environment_installs_and_runs(line, steps):
    assert line.split(" && ") == steps


def test_the_first_link_is_a_picture_that_leads_to_the_site():
    picture, site = re.search(r"\[!\[.+?\]\((.+?)\)\]\((.+?)\)", README).groups()
    assert README.index("](") == README.index(f"]({picture})")
    assert (COURSE / picture).is_file()
    owner, name = metadata.metadata("qtutor")["Project-URL"].rpartition("github.com/")[2].split("/")
    assert site == f"https://{owner}.github.io/{name}/"


def test_the_test_command_leaves_the_system_tests_out(pytestconfig):
    assert "not system" in pytestconfig.getini("addopts")


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    path = COURSE / page
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []
