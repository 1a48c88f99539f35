"""What the subcommands stand on: where the course is, the environment that Jupyter gets, and how a command gives up."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtutor import manifest


class GivenUp(Exception):
    """A command cannot go on; its text says why, and what helps."""


@contextmanager
def needed() -> Iterator[None]:
    """Import what a command needs.

    Raises:
        GivenUp: a package cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        raise GivenUp(
            f"{error.name or 'A package'} cannot be imported by {sys.executable} ({error}): "
            "run the line of the README that installed the course again."
        ) from error


@contextmanager
def new_file(name: str | Path) -> Iterator[Path]:
    """Yield the path of a file that is to be written.

    Raises:
        GivenUp: it is there already, or it cannot be written.
    """
    path = Path(name).expanduser()
    if path.exists():
        raise GivenUp(f"{path} is there already, and stays as it is: name another file.")
    try:
        yield path
    except OSError as error:
        raise GivenUp(f"{path} cannot be written: {error.strerror}.") from error


def course(command: str) -> Path:
    """Return the folder that holds the lessons.

    Raises:
        GivenUp: there is none.
    """
    try:
        return manifest.course()
    except FileNotFoundError as error:
        raise GivenUp(f"{error}: run qtutor {command} from the folder that you cloned.") from error


def use_own_kernel() -> None:
    """Have Jupyter run cells with this Python, and not with a kernel of the user's that has the same name."""
    prepend("JUPYTER_PATH", Path(sys.prefix, "share", "jupyter"))


def prepend(variable: str, folder: Path) -> None:
    """Put a folder first in a variable of the environment that lists folders."""
    os.environ[variable] = os.pathsep.join(filter(None, (str(folder), os.environ.get(variable))))
