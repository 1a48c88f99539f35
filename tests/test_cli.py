import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from argparse import Namespace
from functools import partial
from pathlib import Path

import qtutor
from qtutor import cli, manifest
from qtutor.cli import bench

import pytest
import torch
from lab import free_port, served

TOKEN = "a-token-for-the-tests"
START = manifest.LESSONS[0].notebook
NOTEBOOK = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def qtutor_command(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "qtutor.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, **options)


def run_python(script: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200)


@pytest.fixture
def launched(monkeypatch) -> list[list[str]]:
    """The arguments that JupyterLab would get, with the environment put back afterwards."""
    from jupyterlab.labapp import LabApp

    calls = []
    monkeypatch.setattr(LabApp, "launch_instance", calls.append)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return calls


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """A course beside the package, as in a checkout."""
    (tmp_path / "lessons").mkdir()
    (tmp_path / START).write_text(json.dumps(NOTEBOOK))
    shutil.copytree(Path(qtutor.__file__).parent, tmp_path / "qtutor", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(qtutor, "__file__", str(tmp_path / "qtutor" / "__init__.py"))
    return tmp_path


def test_help_needs_neither_torch_nor_jupyterlab():
    finished = run_python("""
import sys
sys.modules.update(dict.fromkeys(("torch", "psutil", "jupyterlab")))
from qtutor.cli import main
main(["--help"])
""")
    assert finished.returncode == 0, finished.stderr
    assert "lab" in finished.stdout
    assert "doctor" in finished.stdout


def test_version_is_the_package_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"qtutor {qtutor.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["labb"], "invalid choice: 'labb'"), ([], "required: command"), (["doctor", "--loud"], "does not take --loud")],
)
def test_a_wrong_command_is_named(arguments, complaint, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert complaint in capsys.readouterr().err


def test_lab_opens_the_first_lesson_of_the_course(launched, course):
    assert cli.main(["lab"]) == 0
    assert launched == [[f"--ServerApp.root_dir={course}", f"--LabApp.default_url=/lab/tree/{START}"]]


def test_lab_puts_this_environments_programs_first(launched, course):
    assert cli.main(["lab"]) == 0
    assert os.environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_lab_falls_back_to_the_current_directory(launched, course, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("site-packages") / "qtutor" / "__init__.py"
    monkeypatch.setattr(qtutor, "__file__", str(elsewhere))
    monkeypatch.chdir(course)
    assert cli.main(["lab"]) == 0
    assert launched[0][0] == f"--ServerApp.root_dir={course}"


def test_lab_without_lessons_says_where_it_looked(launched, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(qtutor, "__file__", str(tmp_path / "site-packages" / "qtutor" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["lab"]) == 1
    assert not launched
    complaint = capsys.readouterr().err
    assert str(tmp_path / "site-packages") in complaint
    assert f"current directory ({tmp_path})" in complaint


def test_lab_passes_arguments_on_unchanged_and_in_order(launched, course):
    given = ["--no-browser", "--port", "8899", "--allow-root", "--ServerApp.ip=127.0.0.1", "lessons", "--debug", "-y"]
    assert cli.main(["lab", *given]) == 0
    assert launched[0][-len(given) :] == given


@pytest.mark.parametrize("given", [["--ServerApp.root_dir=/x"], ["--ServerApp.root_dir", "/x"], ["--notebook-dir=/x"]])
def test_a_root_of_the_users_own_replaces_ours(given, launched, course):
    assert cli.main(["lab", *given]) == 0
    assert launched == [[f"--LabApp.default_url=/lab/tree/{START}", *given]]


@pytest.mark.parametrize(("command", "package"), [("doctor", "torch"), ("lab", "jupyterlab")])
def test_a_missing_package_is_named(command, package, course):
    finished = run_python(f"""
import sys
sys.modules[{package!r}] = None
import qtutor
from qtutor.cli import main
qtutor.__file__ = {str(course / "qtutor" / "__init__.py")!r}
sys.exit(main([{command!r}]))
""")
    assert finished.returncode == 1
    assert finished.stderr.startswith(package)
    assert f"cannot be imported by {sys.executable}" in finished.stderr
    assert "README" in finished.stderr


def test_doctor_prints_the_machine(capsys):
    from qtutor.machine import describe

    machine = describe()
    assert cli.main(["doctor"]) == bool(machine.problems)
    assert f"PyTorch {machine.torch}" in capsys.readouterr().out


def test_doctor_fails_without_a_quantized_engine(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"])
    assert cli.main(["doctor"]) == 1
    assert "no quantized engine" in capsys.readouterr().out


def fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=300) as response:
        return response.read().decode()


@pytest.mark.slow
def test_a_real_lab_is_quiet_uses_this_environment_and_keeps_its_token(course, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    shadow = home / "jupyter" / "kernels" / "python3"
    shadow.mkdir(parents=True)
    shadow.joinpath("kernel.json").write_text(json.dumps({"argv": ["other"], "display_name": "Other", "language": "c"}))
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(course),
        "HOME": str(home),
        "JUPYTER_DATA_DIR": str(home / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_PREFER_ENV_PATH": "0",
        "JUPYTER_TOKEN": TOKEN,
    }
    command = [sys.executable, "-m", "qtutor.cli", "lab", "--no-browser", "--port", port, "--allow-root"]
    address = f"http://127.0.0.1:{port}"
    with served(command, f"{address}/api", env=environment, cwd=home) as log:
        assert f"{address}/lab/tree/{START}?token=" in log.read_text()

        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(f"{address}/api/kernelspecs")
        assert "JupyterLab" in fetch(f"{address}/lab/tree/{START}?token={TOKEN}")

        kernels = json.loads(fetch(f"{address}/api/kernelspecs?token={TOKEN}"))
        assert kernels["default"] == "python3"
        assert kernels["kernelspecs"]["python3"]["spec"]["language"] == "python"

        plugin = "@jupyterlab/apputils-extension:notification"
        settings = json.loads(fetch(f"{address}/lab/api/settings/{plugin}?token={TOKEN}"))
        defaults = {name: entry["default"] for name, entry in settings["schema"]["properties"].items()}
        assert (defaults["fetchNews"], defaults["checkForUpdates"]) == ("false", False)
        assert settings["raw"] == "{}"
    assert not list((home / "config").rglob("*settings*"))


def test_prepare_says_what_was_built_and_what_was_found(monkeypatch, capsys):
    from qtutor import samples

    asked = []
    monkeypatch.setattr(samples, "prepare", lambda names: asked.append(names) or {"a": "built", "b": "found"})
    assert cli.main(["prepare"]) == 0
    assert cli.main(["prepare", "a", "b"]) == 0
    assert asked == [None, ["a", "b"]]
    assert capsys.readouterr().out == "a: built\nb: found\n" * 2


def test_prepare_names_the_models_there_are(capsys):
    assert cli.main(["prepare", "nothing"]) == 1
    assert "digits_cnn" in capsys.readouterr().err


def test_an_interrupted_prepare_says_that_it_can_go_on(monkeypatch, capsys):
    from qtutor import samples

    def interrupted(names):
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "prepare", interrupted)
    assert cli.main(["prepare"]) == 130
    assert "run it again" in capsys.readouterr().err


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    (tmp_path / "ownnet.py").write_text(
        "import torch\nfrom torch import nn\n"
        "torch.manual_seed(0)\n"
        "def build(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))\n"
        "def loader(): return [(torch.randn(8, 4), torch.arange(8) % 3)]\n"
        "def empty(): return []\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("ownnet", None)


@pytest.mark.parametrize("module", ["ownnet", "ownnet.py"])
def test_diagnose_prints_a_table_and_writes_a_page_and_json(module, own_network, capsys):
    assert (
        cli.main(["diagnose", f"{module}:build", "--data", f"{module}:loader", "--html", "r.html", "--json", "r.json"])
        == 0
    )
    said = capsys.readouterr().out
    assert "Recommended:" in said
    assert "alone accuracy" in said
    assert "<h1>Which layer hurts</h1>" in (own_network / "r.html").read_text(encoding="utf-8")
    assert {row["layer"] for row in json.loads((own_network / "r.json").read_text())["layers"]} == {"0", "2"}


@pytest.mark.parametrize(
    ("model", "data"),
    [("ownnet.py", "ownnet.py"), ("./ownnet.py", "ownnet.py"), ("ownnet", "ownnet.py"), ("ownnet.py", "ownnet")],
)
def test_a_file_of_model_and_data_runs_once(model, data, own_network, capsys):
    with (own_network / "ownnet.py").open("a") as file:
        file.write("print('it runs')\n")
    assert cli.main(["diagnose", f"{model}:build", "--data", f"{data}:loader"]) == 0
    assert capsys.readouterr().out.count("it runs") == 1


@pytest.mark.parametrize(
    ("options", "way", "asked"),
    [
        ((), "Apply it with diagnosis.apply()", "bits=8, weights='tensor', samples=1024"),
        (
            ("--bits", "4", "--weights", "channel"),
            "INT8 has 8 bits: round so in floating point with diagnosis.simulate()",
            "bits=4, weights='channel', samples=1024",
        ),
    ],
)
def test_what_is_recommended_comes_with_the_calls_that_give_it(options, way, asked, own_network, capsys):
    assert cli.main(["diagnose", "ownnet:build", "--data", "ownnet:loader", *options]) == 0
    assert f"\n{way} after diagnosis = diagnose(model, data, {asked}).\n" in capsys.readouterr().out


@pytest.mark.parametrize("late", ["build", "forward"])
def test_modules_beside_are_found_when_functions_import_them(late, own_network):
    (own_network / "beside.py").write_text("number = 8\n")
    importing = {"build": "pass", "forward": "pass", late: "import beside"}
    (own_network / "ownnet.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n"
        f"    def forward(self, x):\n        {importing['forward']}\n        return super().forward(x)\n"
        f"def build():\n    {importing['build']}\n    return Net(nn.Linear(4, 3))\n"
        "def loader(): return [torch.randn(8, 4)]\n"
    )
    before = [*sys.path]
    assert cli.main(["diagnose", "ownnet:build", "--data", "ownnet:loader"]) == 0
    assert sys.path == before
    del sys.modules["beside"]


INTERRUPTED = """
import os, signal, torch
from torch import nn

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it switched off
runs = 0

class Net(nn.Sequential):
    def forward(self, x):
        global runs
        runs += 1
        if runs == {at}:
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x)

def build():
    torch.manual_seed(0)
    return Net(*(nn.Linear(4, 4) for _ in range(9)))

def loader():
    return [torch.randn(8, 4)]
"""


def test_diagnose_ranks_weights_in_groups_and_writes_a_page_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "net", raising=False)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))\n"
        "def loader():\n    return [torch.randn(8, 64)]\n"
    )
    asked = ("diagnose", "net:build", "--data", "net:loader", "--weights", "group", "--bits", "4")
    assert cli.main([*asked, "--html", "d.html", "--json", "d.json"]) == 0
    found = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert [row["layer"] for row in found["layers"]] == ["0"]
    for written in (capsys.readouterr().out, (tmp_path / "d.html").read_text(encoding="utf-8")):
        assert found["finding"] in written
        assert "groups of 64 do not divide its 8 inputs" in written


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process")
@pytest.mark.parametrize(("at", "rows"), [pytest.param(3, 0, marks=pytest.mark.system), (14, range(1, 9))])
def test_an_interrupted_diagnosis_prints_what_it_has(at, rows, tmp_path):
    (tmp_path / "slownet.py").write_text(INTERRUPTED.format(at=at))
    finished = qtutor_command("diagnose", "slownet:build", "--data", "slownet:loader", "--json", "d.json", cwd=tmp_path)
    assert finished.returncode == 130, finished.stderr
    assert "Traceback" not in finished.stderr
    if not rows:
        assert "Interrupted" in finished.stderr
        return
    assert "Interrupted: the tables hold what was measured until then." in finished.stdout
    assert len(json.loads((tmp_path / "d.json").read_text())["layers"]) in rows


@pytest.mark.parametrize(
    ("model", "data", "complaint"),
    [
        ("ownnet", "ownnet:loader", "write module:function"),
        ("ownnet:nothing", "ownnet:loader", "ownnet has no nothing"),
        ("nowhere:build", "ownnet:loader", "nowhere cannot be imported"),
        ("nowhere.py:build", "ownnet:loader", "nowhere.py cannot be imported"),
        ("ownnet:build", "ownnet:empty", "holds no batch"),
        ("ownnet:loader", "ownnet:loader", "needs a torch.nn.Module, got list"),
    ],
)
def test_diagnose_says_what_is_wrong(model, data, complaint, own_network, capsys):
    assert cli.main(["diagnose", model, "--data", data]) == 1
    assert complaint in capsys.readouterr().err


@pytest.fixture
def small_networks(monkeypatch):
    """Networks and images that take a moment instead of minutes, and runtimes of which one is not there."""
    from qtutor import benchmark, samples
    from qtutor.runtimes import entries

    import torchvision.models

    once, random = partial(benchmark.compare, repeats=1), torch.rand
    monkeypatch.setattr(benchmark, "compare", once)
    monkeypatch.setattr(torch, "rand", lambda batch, channels, *size: random(batch, channels, *[32 for _ in size]))
    monkeypatch.setattr(samples, "ArticleNet", lambda size: samples.SmallCNN(8, 3))
    monkeypatch.setattr(torchvision.models, "resnet18", lambda: samples.SmallCNN(8, 3))
    monkeypatch.setattr(
        entries, "lacking", lambda name: "" if name in ("eager FP32", "FX INT8") else f"{name} needs more"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_bench_prints_fp32_against_int8_and_what_is_missing(small_networks, capsys):
    assert cli.main(["bench"]) == 0
    out = capsys.readouterr().out
    assert "resnet18, 224 px, batch 1    PyTorch, FX " in out
    assert "INT8 is faster by" in out
    assert "OpenVINO INT8 needs more" in out
    assert torch.__version__ in out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_bench_speaks_json(small_networks, capsys):
    assert cli.main(["bench", "--json"]) == 0
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert len(content["rows"]) == 8
    (row,) = (r for r in content["rows"] if r["runtime"] == "PyTorch, FX" and r["network"].startswith("resnet18"))
    assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    assert row["int8_mb"] < row["fp32_mb"] / 2
    assert content["machine"]["torch"] == torch.__version__


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_bench_leaves_out_what_does_not_fit_the_time(small_networks, capsys):
    assert bench.run(Namespace(json=True), seconds=0) == 0
    notes = [row["note"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert notes == ["", *["left out, because the time is up"] * 7]
