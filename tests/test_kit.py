"""The offline kit of binder/workshop.md: built once, then installed and used with no network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from qtutor.manifest import LESSONS

import pytest
from lab import COURSE
from test_faults import needs_namespaces, unshared

WORKSHOP = (COURSE / "binder" / "workshop.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```sh\n(.*?)\n```\n\n```powershell\n(.*?)\n```$", WORKSHOP, re.MULTILINE | re.DOTALL)
KIT, ROOM, LATER, COLLECT = [unix for unix, _ in COMMANDS]


@pytest.mark.system
@needs_namespaces
def test_a_room_is_installed_and_used_with_no_network(tmp_path):
    stick, room = tmp_path / "clone", tmp_path / "room é"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=COURSE, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        (stick / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(COURSE / name, stick / name)
    python = tmp_path / "bin"
    python.mkdir()
    python.joinpath("python3").symlink_to(os.path.realpath(sys.executable))
    online = {**os.environ, "PATH": f"{python}:{os.environ['PATH']}"}
    online.pop("PYTHONPATH", None)
    subprocess.run(["bash", "-ec", KIT], cwd=stick, env=online, check=True, capture_output=True, timeout=1500)
    assert list((stick / "kit").glob("qtutor-*.whl"))
    assert sum(wheel.stat().st_size for wheel in (stick / "kit").iterdir()) < 600e6, "the page says how large it is"
    shutil.copytree(stick / "kit", room / "kit")
    shutil.rmtree(stick)

    # None of pip's settings: what is not in the kit cannot come from elsewhere.
    offline = {"PATH": f"{python}:/usr/bin:/bin", "HOME": str(tmp_path), "QTUTOR_HOME": str(tmp_path / "home")}
    offline |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "LANG": "C.UTF-8"}

    def in_room(*command: str) -> str:
        finished = subprocess.run(
            unshared("true", list(command)), cwd=room, env=offline, capture_output=True, text=True, timeout=1500
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    assert in_room("bash", "-ec", ROOM).endswith("Ready.\n")
    asked = (
        "from qtutor import runtimes; print(sorted({'ONNX Runtime INT8', 'OpenVINO INT8'} & runtimes.missing().keys()))"
    )
    assert in_room(str(room / ".venv/bin/python"), "-c", asked) == "[]\n"
    assert "built" in in_room("bash", "-ec", f"{LATER.splitlines()[0]} digits_cnn")
    in_room("bash", "-ec", f"{LATER.splitlines()[1]} --version")  # lays the lessons, and starts no server
    lesson = room / LESSONS[1].notebook
    in_room(str(room / ".venv/bin/python"), "-W", "ignore", "-m", "qtutor.course.notebooks", str(lesson))


def test_the_wheels_are_those_of_the_course_and_of_every_runtime():
    assert KIT.endswith('pip wheel --wheel-dir kit ".[runtimes]"')
    assert 'pip install --no-index --find-links kit "qtutor[runtimes]"' in ROOM


@pytest.mark.parametrize(("unix", "windows"), COMMANDS)
def test_windows_is_told_the_same_as_unix(unix, windows):
    there = (
        unix.replace(" && ", "; ").replace(".venv/bin/", ".venv\\Scripts\\").replace("python3 -m venv", "py -m venv")
    )
    assert windows == there
    assert WORKSHOP.count("```sh\n") == WORKSHOP.count("```powershell\n") == len(COMMANDS)


def test_the_commands_are_those_of_the_course():
    assert LATER.splitlines()[1] == ".venv/bin/qtutor lab"
    assert COLLECT.split()[:4] == [".venv/bin/qtutor", "progress", "collect", "room"]
    assert Path(ROOM.split("&& ")[-1].split()[0]).name == "qtutor"
