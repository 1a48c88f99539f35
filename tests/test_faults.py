"""Poor computers and bad luck: in each case a clear sentence or a working lesson, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from qtutor import manifest

import pytest
from lab import COURSE

pytestmark = [pytest.mark.system, pytest.mark.skipif(sys.platform != "linux", reason="breaks disks as Linux does")]

MODEL = "digits_cnn"
SAYS = "from qtutor.samples import trained; trained(NAME); print('works')".replace("NAME", repr(MODEL))


def unshared(setup: str, command: list[str]) -> list[str]:
    """Run `command` after `setup` in namespaces of its own, where mounts and networks are its own."""
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    return [
        "unshare",
        *mapped,
        "--mount",
        "--net",
        "sh",
        "-ec",
        f'ip link set lo up; {setup}; exec "$@"',
        "sh",
        *command,
    ]


def can_unshare() -> bool:
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    return subprocess.run(unshared("true", ["true"]), capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(
    sys.platform != "linux" or not can_unshare(), reason="needs unshare, ip and the right to use them (root has it)"
)


def python(code: str, *, setup: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code]
    if setup is not None:
        command = unshared(setup, command)
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory):
    """Where every model that the lessons ask for is trained, as after `qtutor prepare`."""
    home = tmp_path_factory.mktemp("heim ü x")
    made = python(f"from qtutor.samples import prepare; prepare({list(manifest.models())})", QTUTOR_HOME=str(home))
    assert made.returncode == 0, made.stderr
    return home


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@needs_namespaces
@pytest.mark.parametrize("lesson", manifest.LESSONS, ids=lambda lesson: lesson.name)
def test_a_lesson_works_on_a_poor_computer(lesson, trained_home, tmp_path):
    """No network, one core, an older processor, no compiler, LANG=C, and a path with spaces and an umlaut."""
    course = tmp_path / "mein Kurs ü"
    for folder in ("lessons", "qtutor"):
        shutil.copytree(COURSE / folder, course / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    elsewhere = tmp_path / "anderswo é"
    elsewhere.mkdir()
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "HOME": str(elsewhere),
        "QTUTOR_HOME": str(trained_home),
        "PYTHONPATH": str(course),
        "LC_ALL": "C",
        "LANG": "C",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    inner = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
    command = [
        *inner,
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "qtutor.course.notebooks",
        str(course / lesson.notebook),
    ]
    core = str(min(os.sched_getaffinity(0)))
    finished = subprocess.run(
        unshared("true", ["taskset", "-c", core, *command]), cwd=elsewhere, capture_output=True, text=True, timeout=1800
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert sorted(os.listdir(course / "lessons")) == sorted(
        path.name for path in (COURSE / "lessons").iterdir() if path.suffix
    )


@needs_namespaces
def test_a_read_only_home_is_said_once_and_the_model_works(home):
    setup = f"mount -t tmpfs -o ro tmpfs '{home}'"
    finished = python(SAYS, setup=setup, QTUTOR_HOME=str(home))
    assert finished.returncode == 0, finished.stderr
    assert "will last for this session only" in finished.stdout
    assert "Read-only file system" in finished.stdout
    assert finished.stdout.endswith("works\n")


@needs_namespaces
def test_doctor_names_a_read_only_home(home):
    finished = python(
        "import sys; from qtutor.cli import main; sys.exit(main(['doctor']))",
        setup=f"mount -t tmpfs -o ro tmpfs '{home}'",
        QTUTOR_HOME=str(home),
    )
    assert finished.returncode == 1
    assert "PROBLEM: Progress cannot be kept" in finished.stdout
    assert finished.stderr == ""


@needs_namespaces
def test_a_full_disk_costs_neither_the_model_nor_earlier_progress(home):
    code = f"""
from pathlib import Path
from qtutor.exercises import progress
progress.record("00_start_here", "bytes_of_weights")
{SAYS}
filler = open(progress.path().with_name("filler"), "wb", buffering=0)
try:
    while True:
        filler.write(bytes(4096))
except OSError:
    pass
progress.record("01_affine_mapping", "choose_bits")
print(progress.read(progress.path()), sorted(progress.solved("01_affine_mapping")))
print([path.name for path in Path(progress.path().parent).rglob("*.tmp")])
"""
    finished = python(code, setup=f"mount -t tmpfs -o size=64k tmpfs '{home}'", QTUTOR_HOME=str(home))
    assert finished.returncode == 0, finished.stderr
    assert "No space left on device" in finished.stdout
    assert "{'00_start_here': ['bytes_of_weights']} ['choose_bits']\n[]\n" in finished.stdout


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"\0" * len(data), lambda data: b""]
)
def test_a_corrupted_cache_is_said_and_made_again(trained_home, home, damage):
    shutil.copytree(trained_home / "cache", home / "cache")
    (kept,) = (home / "cache").glob(f"{MODEL}-*.pt")
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    finished = python(SAYS, QTUTOR_HOME=str(home))
    assert finished.returncode == 0, finished.stderr
    assert "damaged: making it again" in finished.stdout
    assert len(kept.read_bytes()) == pytest.approx(len(whole), rel=0.01)
    assert "damaged" not in python(SAYS, QTUTOR_HOME=str(home)).stdout


def test_of_two_kernels_one_trains_and_the_other_waits(home):
    code = f"{SAYS}; import hashlib; print(sum(float(p.sum()) for p in trained({MODEL!r}).parameters()))"
    command, environment = [sys.executable, "-c", code], {**os.environ, "QTUTOR_HOME": str(home)}
    kernels = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [kernel.communicate(timeout=600) for kernel in kernels]
    assert [kernel.returncode for kernel in kernels] == [0, 0], said
    assert len({out.split("works\n")[1] for out, _ in said}) == 1
    assert sum("Training" in err for _, err in said) == 1


def test_a_kernel_killed_in_training_leaves_nothing_that_harms(home):
    environment = {**os.environ, "QTUTOR_HOME": str(home)}
    with subprocess.Popen([sys.executable, "-c", SAYS], env=environment, stderr=subprocess.PIPE) as kernel:
        seen = b""
        while b"Training" not in seen:
            seen += kernel.stderr.read(1)
        time.sleep(0.3)
        kernel.send_signal(signal.SIGKILL)
        kernel.wait()
    assert not list((home / "cache").glob("*.pt"))
    assert python(SAYS, QTUTOR_HOME=str(home)).stdout.endswith("works\n")
    assert {path.suffix for path in (home / "cache").iterdir()} <= {".pt", ".lock"}


def test_without_a_quantized_engine_a_sentence_says_so():
    code = """
import sys, torch
type(torch.backends.quantized).supported_engines = ["none"]
from qtutor.cli import main
from qtutor.samples import digits, SmallCNN
from qtutor.workflows import Unavailable, quantize_static
try:
    quantize_static(SmallCNN().eval(), digits().train.batches()[:1])
except Unavailable as error:
    print(error)
sys.exit(main(["doctor"]))
"""
    finished = python(code)
    assert finished.returncode == 1
    assert finished.stdout.count("This PyTorch has no quantized engine, so INT8 models cannot run") == 2
    assert "Traceback" not in finished.stderr


@needs_namespaces
def test_a_download_without_a_network_is_one_sentence_that_names_what_needs_none(home):
    code = """
from qtutor.samples import flowers102, pretrained_resnet18
for fetch in (lambda: flowers102(download=True), pretrained_resnet18):
    try:
        fetch()
    except ConnectionError as error:
        print(error)
"""
    finished = python(code, setup="true", QTUTOR_HOME=str(home), TORCH_HOME=str(home))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("which needs no network") == 2


def test_saved_progress_survives_what_is_not_progress(home):
    (home / "progress.json").write_text("{broken")
    code = "from qtutor.exercises import progress; progress.record('a', 'b'); print(progress.solved('a'))"
    finished = python(code, QTUTOR_HOME=str(home))
    assert finished.stdout == "{'b'}\n"
    assert json.loads((home / "progress.json").read_text()) == {"a": ["b"]}
