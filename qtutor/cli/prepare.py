"""`qtutor prepare`: the models of the lessons, trained ahead."""

import sys
from argparse import ArgumentParser, Namespace

from qtutor.cli.surroundings import GivenUp, needed

HELP = "train the lessons' models ahead"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="name", help="a model; all of them if none is named")


def run(arguments: Namespace) -> int:
    """Train ahead the models that the lessons use, so that no lesson waits; only what is missing is made."""
    with needed():
        from qtutor import samples

    try:
        outcomes = samples.prepare(arguments.names or None)
    except ValueError as error:
        raise GivenUp(str(error)) from error
    except KeyboardInterrupt:
        print("Interrupted: what was finished is kept, run it again for the rest.", file=sys.stderr)
        return 130
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}")
    return 0
