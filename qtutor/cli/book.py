"""`qtutor book`: the course as a site to read."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from qtutor.cli.surroundings import GivenUp, course, needed, use_own_kernel

HELP = "build the course as a static site"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="the folder of the site: new, empty, or an earlier book")


def run(arguments: Namespace) -> int:
    """Build the course as a static site that opens from disk: lessons, figures, search and maths."""
    root = course("book")
    with needed():
        from qtutor.course.book import Unbuilt, build

    use_own_kernel()
    try:
        page = build(root / "lessons", Path(arguments.out).expanduser().absolute())
    except Unbuilt as error:
        raise GivenUp(str(error)) from error
    print(f"The book is built. Open {page}")
    return 0
