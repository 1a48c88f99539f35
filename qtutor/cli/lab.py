"""`qtutor lab`: JupyterLab on the first lesson."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import qtutor
from qtutor.cli.surroundings import GivenUp, course, needed, prepend, use_own_kernel
from qtutor.course.handout import RECORD, SHIPPED, lay_out
from qtutor.manifest import LESSONS

HELP = "open the course; JupyterLab gets every other argument"


def add(parser: ArgumentParser) -> None:
    parser.usage = "qtutor lab [JupyterLab arguments]"
    parser.epilog = "Every argument goes to JupyterLab unchanged, for example --no-browser --port 8899."


def run(arguments: Namespace) -> int:
    """Open JupyterLab on the first lesson, with the kernel of this environment.

    Installed from a wheel, it first lays the lessons into a folder `lessons` here, never over work that is there.
    """
    in_clone = (Path.cwd() / "qtutor" / "__init__.py").is_file()
    root = _workplace() if SHIPPED.is_dir() and not in_clone else course("lab")
    with needed():
        from qtutor import quick  # noqa: F401  before JupyterLab

        from jupyterlab.labapp import LabApp

    use_own_kernel()
    jupyter = Path(qtutor.__file__).resolve().parent / "course" / "jupyter"
    # labextensions/ there names figures for screen readers.
    prepend("JUPYTER_PATH", jupyter)
    # labconfig/ there switches off the questions about news and updates.
    prepend("JUPYTER_CONFIG_PATH", jupyter)
    # As in an activated environment, for `!python` in a cell and for terminals.
    prepend("PATH", Path(sys.executable).parent)
    # JupyterLab refuses an option that is given twice.
    ours = {
        f"--ServerApp.root_dir={root}": ("--ServerApp.root_dir", "--notebook-dir"),
        f"--LabApp.default_url=/lab/tree/{LESSONS[0].notebook}": ("--LabApp.default_url",),
    }
    given = arguments.rest
    missing = [option for option, names in ours.items() if not any(word.startswith(names) for word in given)]
    LabApp.launch_instance([*missing, *given])
    return 0


def _workplace() -> Path:
    """The folder in which `lessons` is: the current one, or its parent where the current one is `lessons` itself."""
    here = Path.cwd()
    folder = here if here.name == "lessons" and (here / RECORD).is_file() else here / "lessons"
    try:
        for sentence in lay_out(folder):
            print(sentence, flush=True)
    except OSError as error:
        trouble = f"{folder} cannot take the lessons: {error.strerror}."
        if not (folder.parent / LESSONS[0].notebook).is_file():
            raise GivenUp(f"{trouble} Run qtutor lab in another folder.") from error
        print(f"{trouble} Those that are there open as they are.", file=sys.stderr)
    return folder.parent
