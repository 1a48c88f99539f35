"""`qtutor own`: a notebook for a model of the user's own."""

from argparse import Namespace
from pathlib import Path

from qtutor.cli.surroundings import GivenUp, needed


def add(commands) -> None:
    parser = commands.add_parser("own", help="write a notebook for your own model", description=run.__doc__)
    parser.add_argument("file", nargs="?", default="my_model.ipynb", help="a new file; my_model.ipynb if none is named")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Write a notebook that diagnoses, repairs, ships and judges a model of your own: change one cell, run all."""
    with needed():
        from qtutor.course import own

    path = Path(arguments.file).expanduser()
    path = path if path.suffix == ".ipynb" else path.with_name(f"{path.name}.ipynb")
    try:
        own.write(path)
    except FileExistsError:
        raise GivenUp(f"{path} is there already, and stays as it is: name another file.") from None
    except OSError as error:
        raise GivenUp(f"{path} cannot be written: {error.strerror}.") from error
    print(f"Written: {path}\nOpen it in JupyterLab, change the cell under 'Bring it', and run all cells.")
    return 0
