import json
import os
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path

from qtutor.machine import requirements
from qtutor.manifest import LESSONS

import limits
import pytest
from packaging.requirements import Requirement

COURSE = Path(__file__).resolve().parent.parent
POST_BUILD = COURSE / "binder" / "postBuild"
PACKAGE = metadata.metadata("qtutor")
LINES = [
    line
    for line in (COURSE / "binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
PINS = {pin.name: pin for pin in (Requirement(line) for line in LINES if not line.startswith("-"))}
DECLARED = {each.name: each for each in requirements()}


def test_every_dependency_comes_with_the_course_itself():
    assert "-e ." in LINES  # pip resolves it against the directory it runs in: the root, on Binder


@pytest.mark.parametrize("name", ["torch", "torchvision"])
def test_pins_are_cpu_builds_that_the_course_accepts(name):
    (pin,) = PINS[name].specifier
    assert (pin.operator, pin.version.partition("+")[2]) == ("==", "cpu")
    assert DECLARED[name].specifier.contains(pin.version)
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in LINES


def test_nothing_else_is_pinned_so_the_two_lists_cannot_disagree():
    assert set(PINS) == {"torch", "torchvision"}
    assert DECLARED.keys() >= PINS.keys()


def test_no_cuda():
    assert not {word for word in ("cuda", "nvidia", "whl/cu", "+cu") if word in "\n".join(LINES).lower()}


def test_the_python_of_binder_is_one_that_the_course_accepts():
    name, version = (COURSE / "binder" / "runtime.txt").read_text().strip().split("-")
    assert name == "python"
    assert Requirement(f"python{PACKAGE['Requires-Python']}").specifier.contains(version)


@pytest.mark.system
@pytest.mark.skipif(sys.platform == "win32", reason="Binder runs Linux")
def test_post_build_runs_twice_and_silences_the_questions(tmp_path, home_of_the_run):
    assert os.access(POST_BUILD, os.X_OK)
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "QTUTOR_HOME": str(home_of_the_run),  # where the lessons' models are trained once, by whoever comes first
        "NB_PYTHON_PREFIX": str(tmp_path / "prefix"),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    for _ in range(2):
        subprocess.run([POST_BUILD], cwd=COURSE, env=environment, check=True, capture_output=True, timeout=900)
    written = {path.relative_to(tmp_path / "prefix") for path in (tmp_path / "prefix").rglob("*") if path.is_file()}
    assert written == {
        Path("etc/jupyter/labconfig/default_setting_overrides.json"),
        Path("share/jupyter/labextensions/qtutor/package.json"),
        Path("share/jupyter/labextensions/qtutor/static/figures.js"),
    }


def test_the_settings_exist_in_this_jupyterlab():
    overrides = json.loads((COURSE / "qtutor/course/jupyter/labconfig/default_setting_overrides.json").read_text())
    schemas = Path(sys.prefix, "share/jupyter/lab/schemas")
    for plugin, values in overrides.items():
        schema = json.loads(schemas.joinpath(f"{plugin.replace(':', '/')}.json").read_text())
        assert values.keys() <= schema["properties"].keys()
    assert overrides["@jupyterlab/apputils-extension:notification"] == {"checkForUpdates": False, "fetchNews": "false"}


def test_the_badge_leads_to_the_first_lesson_of_this_repository():
    repository = PACKAGE["Project-URL"].partition("https://github.com/")[2]
    link = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/{LESSONS[0].notebook}"
    readme = (COURSE / "README.md").read_text(encoding="utf-8")
    assert f"[![Binder](https://mybinder.org/badge_logo.svg)]({link})" in readme


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="Binder runs Linux")
def test_the_image_builds_and_every_lesson_runs_on_one_core_in_its_memory(tmp_path):
    command = [sys.executable, COURSE / "tests" / "replay_binder.py", tmp_path / "image"]
    try:
        with urllib.request.urlopen("https://download.pytorch.org/whl/cpu/", timeout=20):
            pass
    except OSError:
        command.append("--without-index")
    replayed = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    print(replayed.stdout)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert replayed.stdout.count("ran on one core") == len(LESSONS)


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_the_limit_on_memory_is_a_hard_one():
    with limits.limited(300_000_000) as limit:
        ends = [
            subprocess.run(
                [sys.executable, "-c", f"b'1' * {size}"], preexec_fn=limit.enter, capture_output=True
            ).returncode
            for size in (9_000_000, 900_000_000)
        ]
    assert ends[0] == 0
    assert ends[1] != 0
