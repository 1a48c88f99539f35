"""Do what repo2docker does with `binder/`, without a container: `python tests/replay_binder.py FOLDER`.

The same files in the same order: the Python of runtime.txt, the checkout as home, requirements.txt, then
postBuild, with none of the caller's environment; then each lesson on one core under a hard limit of
memory. `--without-index` leaves out the line that names the index of CPU builds, where that index
cannot be reached.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from limits import limited

COURSE = Path(__file__).resolve().parent.parent
INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"
MOST = 1_200_000_000


def clean(work: Path) -> dict[str, str]:
    """The environment of an image: repo2docker's variables, and pip's settings for where packages come from."""
    home, prefix = work / "home", work / "prefix"
    return {
        "HOME": str(home),
        "USER": "jovyan",
        "LANG": "C.UTF-8",
        "NB_PYTHON_PREFIX": str(prefix),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),  # an image begins with nothing compiled
        "PATH": f"{prefix / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "http", "no_proxy"))},
    }


def python_of(runtime: str) -> str:
    """The interpreter that runtime.txt names."""
    version = runtime.strip().removeprefix("python-")
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None:
        raise SystemExit(f"runtime.txt asks for Python {version}, which is not here")
    return found


def build(work: Path, without_index: bool) -> None:
    """Build the image's two folders, `home` and `prefix`, in `work`."""
    home, prefix, environment = work / "home", work / "prefix", clean(work)
    subprocess.run([python_of((COURSE / "binder/runtime.txt").read_text()), "-m", "venv", prefix], check=True)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=COURSE, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(COURSE / name, home / name)
    requirements = home / "binder" / "requirements.txt"
    if without_index:
        text = requirements.read_text()
        assert text.count(INDEX) == 1
        requirements = work / "requirements.txt"
        requirements.write_text(text.replace(INDEX, "").replace("+cpu", ""))

    def run(*command: object) -> None:
        print("$", *command, flush=True)
        subprocess.run([str(part) for part in command], cwd=home, env=environment, check=True, stdin=subprocess.DEVNULL)

    run(prefix / "bin/python", "-m", "pip", "install", "--quiet", "--no-cache-dir", "-r", requirements)
    assert os.access(home / "binder/postBuild", os.X_OK), "repo2docker runs postBuild only if it is executable"
    run(home / "binder/postBuild")


def run_lesson(work: Path, lesson: str) -> bool:
    """Run a lesson on one core in at most `MOST` bytes; say how that went, and return whether it ran."""
    command = [str(work / "prefix/bin/python"), "-W", "ignore", "-m", "qtutor.course.notebooks", lesson]
    with limited(MOST, cores=1) as limit:
        finished = subprocess.run(
            command, cwd=work / "home/lessons", env=clean(work), preexec_fn=limit.enter, capture_output=True, text=True
        )
        peak = limit.peak()
    if finished.returncode:
        print(f"{lesson} did not run in {MOST / 1e9} GB on one core ({limit.how}):\n{finished.stderr[-2000:]}")
        return False
    print(f"{lesson}: ran on one core, peak {'under the limit' if peak is None else f'{peak / 1e9:.2f} GB'}")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder for the image")
    parser.add_argument("--without-index", action="store_true", help="leave out the index of CPU builds")
    arguments = parser.parse_args()
    work = arguments.folder.absolute()
    work.mkdir(parents=True)
    build(work, arguments.without_index)
    lessons = sorted(path.name for path in (work / "home/lessons").glob("[0-9]*.ipynb"))
    failed = [lesson for lesson in lessons if not run_lesson(work, lesson)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
