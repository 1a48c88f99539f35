"""The `qtutor` command: open the course, say what this computer is, or which layer of a model hurts.

One module a subcommand: its `HELP`, the arguments that it adds, and how it runs. Each imports what it needs when it
runs, so that `qtutor --help` answers at once and `qtutor doctor` can say that PyTorch is missing.
"""

import argparse
import sys

import qtutor
from qtutor.cli import bench, book, diagnose, doctor, explorer, lab, own, prepare, progress, teach
from qtutor.cli.surroundings import GivenUp


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes the process's own.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="qtutor", description="A JupyterLab course on neural-network quantization.")
    parser.add_argument("--version", action="version", version=f"qtutor {qtutor.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for module in (lab, doctor, prepare, diagnose, own, book, explorer, progress, bench, teach):
        name = module.__name__.rpartition(".")[2]
        subcommand = commands.add_parser(name, help=module.HELP, description=module.run.__doc__)
        subcommand.set_defaults(run=module.run)
        module.add(subcommand)
    arguments, arguments.rest = parser.parse_known_args(argv)
    if arguments.rest and arguments.command != "lab":
        parser.error(f"{arguments.command} does not take {' '.join(arguments.rest)}")
    try:
        return arguments.run(arguments)
    except GivenUp as error:
        print(error, file=sys.stderr)
        return 1
