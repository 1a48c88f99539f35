"""How threads wait is settled before PyTorch loads, behind every door, and what the user has set wins."""

import ast
import os
import subprocess
import sys
from dataclasses import replace

from qtutor import lottery, threads
from qtutor.machine import describe

import nbformat
import psutil
import pytest
from lab import COURSE

LESSONS = sorted((COURSE / "lessons").glob("*.ipynb"))
SHORT = threads.WAYS[threads.SHORT_SPIN]
BARE = {name: value for name, value in os.environ.items() if name not in (*threads.VARIABLES, "OMP_NUM_THREADS")}

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks GNU's OpenMP, which Linux has")


def python(*arguments, **environment):
    return subprocess.run(
        [*arguments], env={**BARE, **environment}, cwd=COURSE, capture_output=True, text=True, timeout=300, check=True
    )


@pytest.mark.parametrize("given", [{}, *({name: "7"} for name in threads.VARIABLES)])
def test_threads_wait_with_a_short_spin_unless_the_user_has_said_how(given, monkeypatch):
    monkeypatch.setattr(threads, "quota", lambda: None)
    assert threads.environment(given) == ({} if given else SHORT)


@pytest.mark.parametrize(("share", "expected"), [(1.0, "1"), (0.25, "1"), (1.5, "2"), (8.0, None), (None, None)])
def test_there_are_no_more_threads_than_a_containers_quota_feeds(share, expected, monkeypatch):
    monkeypatch.setattr(threads, "quota", lambda: share)
    monkeypatch.setattr(threads, "cores", lambda: 8)
    assert threads.environment({}).get("OMP_NUM_THREADS") == expected
    assert "OMP_NUM_THREADS" not in threads.environment({"OMP_NUM_THREADS": "3"})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
            },
            2.0,
        ),
        (
            {  # version 1, in a container that sees its own group as the root
                "proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_reads_the_quota_of_cgroups_of_both_versions(files, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("CPU_LIMIT", raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert threads.quota(tmp_path) == expected
    monkeypatch.setenv("CPU_LIMIT", "0.75")
    assert threads.quota(tmp_path) == min(0.75, expected or 1)
    monkeypatch.setenv("CPU_LIMIT", "two cores")
    assert threads.quota(tmp_path) == expected


@pytest.mark.slow
def test_a_draw_that_fails_says_why():
    with pytest.raises(RuntimeError, match="KeyError: 'idling'"):
        lottery.draw(threads.SPINNING, works=["idling"])


@pytest.mark.slow
@linux
def test_openmp_itself_reads_what_was_settled():
    loaded = python(sys.executable, "-c", "import qtutor, torch", OMP_DISPLAY_ENV="VERBOSE").stderr
    assert f"GOMP_SPINCOUNT = '{SHORT['GOMP_SPINCOUNT']}'" in loaded
    loaded = python(sys.executable, "-c", "import qtutor, torch", OMP_DISPLAY_ENV="VERBOSE", GOMP_SPINCOUNT="77").stderr
    assert "GOMP_SPINCOUNT = '77'" in loaded


@pytest.mark.parametrize(
    ("set_up", "way"),
    [
        ({}, threads.SPINNING),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, threads.ASLEEP),
        *((asked, way) for way, asked in threads.WAYS.items()),
    ],
)
def test_the_doctor_says_how_threads_wait_and_what_to_do_where_they_spin(set_up, way):
    said = str(replace(describe(), threads=2, waiting=threads.waiting(set_up)))
    assert f"They wait for one another {way}" in said
    assert (threads.ADVICE in said) == (way == threads.SPINNING)


def test_a_way_of_the_users_own_is_named():
    assert threads.waiting(dict.fromkeys(SHORT, "70")).endswith("=70")


@pytest.mark.slow
@linux
def test_binders_kernels_are_started_calm():
    code = """
from qtutor.course import notebooks
import nbformat
cell = nbformat.v4.new_code_cell("print(open('/proc/self/environ').read().split(chr(0)))")
print(notebooks.run(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs[0].text)
"""
    command = (COURSE / "binder" / "start", sys.executable, "-W", "ignore", "-c", code)
    assert f"'GOMP_SPINCOUNT={SHORT['GOMP_SPINCOUNT']}'" in python(*command).stdout


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_every_lesson_imports_qtutor_before_torch(lesson):
    """So that its kernel is calm whatever started it, such as an editor or a plain `jupyter lab`."""
    (setup, *_) = (cell.source for cell in nbformat.read(lesson, 4).cells if cell.cell_type == "code")
    imported = [
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.parse(setup).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert imported.index("qtutor") < imported.index("torch")


@pytest.mark.parametrize(("busy", "given"), [(0.0, {}), (100.0, {}), (100.0, {"GOMP_SPINCOUNT": "5"})])
def test_a_kernel_that_loaded_torch_first_is_told_what_to_do_if_the_computer_is_busy(busy, given, monkeypatch, capsys):
    assert "torch" in sys.modules
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: busy)
    monkeypatch.setattr(threads, "_late", False)
    monkeypatch.setitem(sys.modules, "ipykernel", pytest)
    environment = dict(given)
    threads.settle(environment)
    assert environment == given
    assert (threads.ADVICE in capsys.readouterr().out) == (busy > 50 and not given)
    assert threads.waiting(environment) == ("with GOMP_SPINCOUNT=5" if given else threads.SPINNING)


def test_how_busy_the_others_are_is_measured_in_cores(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 50.0)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    assert threads._others() == 2.0
