"""`qtutor doctor`: what this computer is, and whether it is ready."""

from argparse import ArgumentParser, Namespace

from qtutor.cli.surroundings import GivenUp, course, needed
from qtutor.manifest import LESSONS

HELP = "say what this computer is and what is missing"


def add(parser: ArgumentParser) -> None:
    """It takes no arguments."""


def run(arguments: Namespace) -> int:
    """Print what this computer is and whether it is ready for the course; 1 if something is missing."""
    with needed():
        from qtutor.course import preflight
        from qtutor.machine import describe

    print("This computer", *describe().sentences(), sep="\n  ")
    try:
        course("doctor")
        lessons = LESSONS
    except GivenUp:
        lessons = ()
    print("The course on it")
    problems = 0
    for said in preflight.preflight(lessons):
        print(f"  {said}", flush=True)
        problems += said.startswith(preflight.PROBLEM)
    print(f"Not ready: {problems} to mend, marked PROBLEM above." if problems else "Ready.")
    return int(problems > 0)
