import importlib.metadata
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

from qtutor import machine
from qtutor.machine import choose_engine, describe, requirements

import psutil
import pytest
import torch


@pytest.fixture(scope="module")
def here() -> machine.Machine:
    return describe()


def fail(*args, **kwargs):
    raise OSError("cannot be found out")


def test_describes_this_python_and_this_torch(here):
    assert here.python == platform.python_version()
    assert here.torch == torch.__version__
    assert here.threads == torch.get_num_threads()
    assert set(here.engines) == set(torch.backends.quantized.supported_engines) - {"none"}


def test_lists_what_the_course_needs_and_not_what_its_tests_need(here):
    assert here.packages["jupyterlab"] == importlib.metadata.version("jupyterlab")
    assert "pytest" not in here.packages


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="an independent source on Linux only")
def test_instructions_agree_with_the_kernel(here):
    flags = set(Path("/proc/cpuinfo").read_text().split())
    names = {"avx2": "AVX2", "avx_vnni": "AVX-VNNI", "avx512_vnni": "AVX512-VNNI", "amx_int8": "AMX-INT8"}
    assert {name for flag, name in names.items() if flag in flags} == set(here.features) & set(names.values())


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("AVX2",), False),
        (("AVX2", "AVX-512"), False),
        (("AVX2", "AVX-VNNI"), True),
        (("NEON",), False),
        (("NEON", "NEON dot product"), True),
        (None, False),
    ],
)
def test_knows_which_instructions_add_up_8_bit_products(here, features, expected, monkeypatch):
    there = replace(here, features=features)
    assert there.has_int8_dot_product == expected
    for architecture in ("x86_64", "arm64"):
        monkeypatch.setattr(machine.platform, "machine", lambda architecture=architecture: architecture)
        assert there.saturates == (architecture == "x86_64" and not expected)
    assert ("adds up products of 8-bit integers in one instruction" in str(there)) == expected


def test_memory_is_never_more_than_the_host_has(here):
    assert 0 < here.memory_available <= here.memory_total <= psutil.virtual_memory().total


def test_a_containers_limit_is_its_memory(monkeypatch):
    gigabyte = 10**9
    files = {"/sys/fs/cgroup/memory.max": f"{2 * gigabyte}\n", "/sys/fs/cgroup/memory.current": f"{gigabyte // 2}\n"}
    monkeypatch.setattr(machine.Path, "read_text", lambda path: files[str(path)])
    host = type(psutil.virtual_memory())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: host(*[64 * gigabyte] * len(host._fields)))
    there = describe()
    assert (there.memory_total, there.memory_available) == (2 * gigabyte, 3 * gigabyte // 2)
    assert "Memory: 2 GB, of which 1.5 GB are free." in there.sentences()


@pytest.mark.parametrize(
    ("engines", "architecture", "expected"),
    [
        (["qnnpack", "onednn", "x86", "fbgemm"], "x86_64", "x86"),
        (["fbgemm", "onednn"], "AMD64", "onednn"),
        (["qnnpack", "fbgemm"], "x86_64", "fbgemm"),
        (["onednn", "qnnpack"], "aarch64", "qnnpack"),
        (["qnnpack"], "arm64", "qnnpack"),
        (["qnnpack", "onednn"], "ARM64", "qnnpack"),
        (["an engine of the future"], "x86_64", None),
        ([], "", None),
    ],
)
def test_the_best_engine_that_is_there_is_chosen(engines, architecture, expected):
    assert choose_engine(engines, architecture) == expected
    assert choose_engine(iter(engines), architecture) == expected


def test_the_chosen_engine_can_be_set_here(here):
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = here.engine
        assert torch.backends.quantized.engine == here.engine
    finally:
        torch.backends.quantized.engine = before


def test_what_cannot_be_found_out_is_said_in_words(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", fail)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", fail)
    monkeypatch.setattr(psutil, "virtual_memory", fail)
    monkeypatch.setattr(importlib.metadata, "requires", fail)
    machine._packages.cache_clear()
    monkeypatch.setattr(machine.shutil, "which", fail)
    monkeypatch.setattr(os, "sched_getaffinity", fail, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    for name in ("processor", "machine", "system"):
        monkeypatch.setattr(platform, name, lambda: "")
    words = str(describe())
    for sentence in (
        "An unknown system on an unknown processor",
        "Which of the course's packages are here could not be found out",
        "its name could not be found out",
        "an unknown number of cores",
        "Which INT8 instructions the processor has could not be found out.",
        "How much memory there is could not be found out.",
        "C++ compiler: none was found",
    ):
        assert sentence in words
    assert "None" not in words


def test_a_package_that_is_missing_or_of_another_version_and_a_missing_engine_are_problems(here, monkeypatch):
    needed = requirements(["torch>=2", "plotly>=6", "pytest<1 ; extra == 'test'", "tqdm<1 ; sys_platform == 'none'"])
    monkeypatch.setattr(machine, "requirements", lambda: needed)
    assert replace(here, packages={"torch": "2.13.0", "plotly": "6.1"}, engine="x86").problems == ()
    broken = replace(here, packages={"torch": "1.13.0", "plotly": None}, engines=(), engine=None)
    assert [problem.split(":")[0] for problem in broken.problems] == [
        "Not as the course needs them",
        "This PyTorch has no quantized engine, so INT8 models cannot run",
    ]
    assert "torch 1.13.0 (the course needs >=2), plotly (not installed)" in broken.problems[0]
    assert all(problem in str(broken) for problem in broken.problems)


@pytest.mark.parametrize(
    ("compiler", "python_headers", "expected"),
    [("g++", True, "C++ compiler: g++, so torch.compile works."), ("g++", False, "headers"), (None, True, "none")],
)
def test_says_whether_torch_compile_works_and_why_not(here, compiler, python_headers, expected):
    there = replace(here, compiler=compiler, python_headers=python_headers)
    assert there.can_compile == (compiler is not None and python_headers)
    assert expected in str(there)


def test_the_compiler_is_the_one_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    assert describe().compiler == sys.executable
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert describe().compiler is None


def test_jupyter_shows_one_point_for_each_sentence(here):
    assert here._repr_markdown_().replace("- ", "", 1).split("\n- ") == str(here).splitlines()
