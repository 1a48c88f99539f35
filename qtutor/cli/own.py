"""`qtutor own`: a notebook for a model of the user's own."""

from argparse import ArgumentParser, Namespace

from qtutor.cli.surroundings import needed, new_file

HELP = "write a notebook for your own model"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="my_model.ipynb", help="a new file; my_model.ipynb if none is named")


def run(arguments: Namespace) -> int:
    """Write a notebook that diagnoses, repairs, ships and judges a model of your own: change one cell, run all."""
    with needed():
        from qtutor.course import own

    name = arguments.file
    with new_file(name if name.endswith(".ipynb") else f"{name}.ipynb") as path:
        own.write(path)
    print(f"Written: {path}\nOpen it in JupyterLab, change the cell under 'Bring it', and run all cells.")
    return 0
