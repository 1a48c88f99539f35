"""`qtutor book`: the course as a site to read."""

from argparse import Namespace
from pathlib import Path

from qtutor.cli.surroundings import GivenUp, course, needed, use_own_kernel


def add(commands) -> None:
    parser = commands.add_parser("book", help="build the course as a static site", description=run.__doc__)
    parser.add_argument("out", metavar="OUT", help="the folder of the site: new, empty, or an earlier book")
    parser.set_defaults(run=run)


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
