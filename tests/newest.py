"""Say which lessons break with the versions that are installed: `python tests/newest.py`.

`--packages` prints instead what the course needs, without its versions, for pip to bring up to date.
"""

import argparse
import re
import sys
from importlib import metadata
from pathlib import Path

COURSE = Path(__file__).resolve().parent.parent


def packages() -> list[str]:
    """The names of what the course needs, of which nothing may be here yet, not even what reads requirements."""
    needed = (line for line in metadata.requires("qtutor") or () if "extra ==" not in line)
    return [re.match(r"[\w.-]+", line)[0] for line in needed]


def broken(path: Path) -> str | None:
    """Run a lesson; return None, or what broke it."""
    from qtutor.course import notebooks
    from qtutor.words import first_line, named

    import nbformat
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    try:
        notebooks.run(nbformat.read(path, 4), timeout=1200)
    except CellExecutionError as error:
        return f"{error.ename}: {first_line(error.evalue)}"
    except (CellTimeoutError, DeadKernelError) as error:
        return named(error)
    return None


def main(arguments: list[str] | None = None) -> int:
    """Print a table; 1 if a lesson breaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", action="store_true", help="print the names of what the course needs")
    parser.add_argument("lessons", nargs="*", type=Path, help="by default all")
    chosen = parser.parse_args(arguments)
    if chosen.packages:
        print(*packages(), sep="\n")
        return 0
    print(", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "plotly", "jupyterlab")))
    print("\n| lesson | with these versions |\n| --- | --- |")
    faults = {}
    for path in chosen.lessons or sorted((COURSE / "lessons").glob("[0-9]*.ipynb")):
        faults[path] = broken(path)
        print(f"| {path.stem} | {'works' if faults[path] is None else f'breaks: {faults[path]}'} |", flush=True)
    return int(any(faults.values()))


if __name__ == "__main__":
    sys.exit(main())
