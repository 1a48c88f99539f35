"""What GitHub runs is what the README says, and what a scheduled job would say of a broken lesson."""

import json
from importlib import metadata

import qtutor
from qtutor.manifest import LESSONS

import nbformat
import newest
import pytest
import yaml
from lab import COURSE
from test_readme import CLONE, TEST

WORKFLOWS = COURSE / ".github" / "workflows"


def steps(name, job):
    return [step.get("run", "") for step in yaml.safe_load((WORKFLOWS / name).read_text())["jobs"][job]["steps"]]


def test_github_runs_the_test_command_of_the_readme_on_three_systems_and_four_pythons():
    assert TEST in steps("test.yml", "test")
    matrix = yaml.safe_load((WORKFLOWS / "test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert [system.split("-")[0] for system in matrix["system"]] == ["ubuntu", "macos", "windows"]
    (windows,) = (step for step in steps("test.yml", "test") if "Scripts" in step)
    there = windows.replace("; ", " && ").replace("\\Scripts\\", "/bin/").replace("python -m venv", "python3 -m venv")
    assert there == TEST


def test_the_newest_versions_are_tried_on_a_schedule():
    workflow = yaml.safe_load((WORKFLOWS / "newest.yml").read_text())
    assert workflow[True]["schedule"]  # YAML reads the key `on` as true
    assert {"torch", "torchvision", "plotly", "jupyterlab"} <= {*newest.packages()}


def test_the_container_installs_as_a_clone_does_and_opens_the_first_lesson():
    container = json.loads((COURSE / ".devcontainer/devcontainer.json").read_text())
    made, installed, opened = CLONE.split(" && ")
    assert container["postCreateCommand"] == f"{made} && {installed.removesuffix('.')}'.[runtimes]'"
    assert container["postAttachCommand"].startswith(opened)
    assert container["customizations"]["codespaces"]["openFiles"] == [LESSONS[0].notebook]


def test_the_site_is_published_by_the_command_of_the_readme():
    *_, built, upload, _ = yaml.safe_load((WORKFLOWS / "site.yml").read_text())["jobs"]["site"]["steps"]
    assert built["run"].endswith(f".venv/bin/qtutor book {upload['with']['path']}")


@pytest.mark.slow
def test_a_lesson_that_breaks_is_named_with_its_error(tmp_path, capsys):
    paths = []
    for name, source in (("01_good", "1"), ("02_bad", "import no_such_module")):
        paths.append(tmp_path / f"{name}.ipynb")
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), paths[-1])
    assert newest.main([str(path) for path in paths]) == 1
    said = capsys.readouterr().out
    assert "| 01_good | works |" in said
    assert "| 02_bad | breaks: ModuleNotFoundError: No module named 'no_such_module' |" in said
    assert newest.main([str(paths[0])]) == 0


def test_the_packages_are_printed_for_pip(capsys):
    assert newest.main(["--packages"]) == 0
    assert "torch\n" in capsys.readouterr().out


@pytest.mark.parametrize("field", ["title", "authors", "license", "repository-code", "cff-version", "message"])
def test_the_citation_says_what_the_package_says(field):
    citation = yaml.safe_load((COURSE / "CITATION.cff").read_text())
    package = metadata.metadata("qtutor")
    assert citation[field]
    assert citation["version"] == qtutor.__version__
    assert citation["license"] == package["License-Expression"]
    assert package["Project-URL"] == f"Repository, {citation['repository-code']}"
