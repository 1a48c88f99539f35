"""`qtutor explorer`: one explorer as a page of its own."""

from argparse import ArgumentParser, Namespace

from qtutor.cli.surroundings import needed, new_file
from qtutor.manifest import LESSONS
from qtutor.words import in_bytes

NAMES = {lesson.explorer.removesuffix("Explorer").lower(): lesson for lesson in LESSONS if lesson.explorer}
"""The lesson of each explorer, by the explorer's name."""


HELP = "write one explorer as a page"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("out", metavar="OUT.html", help="a new file")


def run(arguments: Namespace) -> int:
    """Write an explorer, with its lesson's missions, as one page that opens from disk, without a kernel or a network.

    For a tensor or a model of your own, in a notebook: AffineExplorer(x).save("mine.html").
    """
    with needed():
        from qtutor import exercises

    lesson = NAMES[arguments.name]
    with new_file(arguments.out) as path:
        exercises.opened(lesson).save(path, missions=exercises.of(lesson).exercises.missions)
    print(f"Written: {path} ({in_bytes(path.stat().st_size)})")
    return 0
