"""`qtutor progress`: which exercises are solved, by one learner or by a room."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from qtutor.cli.surroundings import GivenUp, needed

HELP = "see, reset or collect solved exercises"


def add(parser: ArgumentParser) -> None:
    actions = ["show", "reset", "collect"]
    parser.add_argument("action", nargs="?", choices=actions, default="show", help="by default show")
    parser.add_argument("folder", nargs="?", help="to collect: the folder of the learners' files")
    parser.add_argument("--csv", metavar="FILE", help="to collect: write the table to this file too")


def run(arguments: Namespace) -> int:
    """See which exercises are solved, forget them, or collect a folder of learners' files into one table."""
    with needed():
        from qtutor.exercises import progress

    if arguments.action == "collect":
        return _collect(arguments.folder, arguments.csv)
    if arguments.action == "reset":
        progress.reset()
        print(f"Progress is forgotten: {progress.path()}" + (" cannot be removed." if progress.path().exists() else ""))
        return int(progress.path().exists())
    for lesson, (done, of) in progress.count(progress.read(progress.path()) or {}).items():
        print(f"{lesson:28} {done} of {of}")
    print(f"Kept in {progress.path()}; to hand it in, send that file under your name.")
    return 0


def _collect(folder: str | None, csv: str | None) -> int:
    from qtutor.exercises import progress

    if folder is None or not Path(folder).is_dir():
        raise GivenUp(f"{folder or 'qtutor progress collect'}: name a folder of progress files.")
    table, unreadable = progress.collect(Path(folder).rglob("*.json"))
    for file in unreadable:
        print(f"{file} is not a progress file: left out.", file=sys.stderr)
    if not table:
        raise GivenUp(f"There is no progress file in {folder}.")
    print(_table(table, csv))
    return 1 if unreadable else 0


def _table(table: dict[str, dict[str, tuple[int, int]]], csv: str | None) -> str:
    import pandas as pd

    frame = pd.DataFrame({name: {lesson: done for lesson, (done, _) in row.items()} for name, row in table.items()}).T
    frame["solved"] = frame.sum(axis=1)
    frame.index.name = "learner"
    if csv is not None:
        frame.to_csv(csv)
    most = {lesson: of for lesson, (_, of) in next(iter(table.values())).items()}
    frame.columns = [f"{name[:2]} (of {most[name]})" if name in most else name for name in frame.columns]
    return frame.to_string()
