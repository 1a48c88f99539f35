"""`qtutor prepare`: the models of the lessons, trained ahead."""

import sys
from argparse import Namespace

from qtutor import manifest
from qtutor.cli.surroundings import GivenUp, needed


def add(commands) -> None:
    parser = commands.add_parser("prepare", help="train the lessons' models ahead", description=run.__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="a model; all of them if none is named")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Train ahead the models that the lessons use, so that no lesson waits; only what is missing is made."""
    with needed():
        from qtutor import samples

    try:
        outcomes = samples.prepare(arguments.names or manifest.models())
    except ValueError as error:
        raise GivenUp(str(error)) from error
    except KeyboardInterrupt:
        print("Interrupted: what was finished is kept, run it again for the rest.", file=sys.stderr)
        return 130
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}")
    return 0
