"""`qtutor teach`: the pages for instructors."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from qtutor.cli.surroundings import GivenUp
from qtutor.manifest import TEACHING
from qtutor.words import counted

HELP = "notes, plans and a test for instructors"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("page", nargs="?", help="a lesson's number, or a name from the list")
    parser.add_argument("lesson", nargs="?", help="of the page `reference`: one lesson of it, by its number")
    parser.add_argument("--out", metavar="DIR", help="copy to this folder instead of printing")


def run(arguments: Namespace) -> int:
    """Print a page for instructors, list the pages, or copy them to a folder. The pages hold the answers."""
    pages = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEACHING.glob("*.md"))}
    name = arguments.page
    if name is not None:
        pages = {p: text for p, text in pages.items() if name == p or (name.isdecimal() and name.zfill(2) == p[:2])}
        if not pages:
            raise GivenUp(f"There is no page {name!r}: qtutor teach alone lists those there are.")
    if arguments.lesson is not None:
        pages = _one_lesson(pages, arguments.lesson)
    if arguments.out is not None:
        _copy(pages, Path(arguments.out).expanduser())
    elif name is not None:
        print(*pages.values(), sep="\n", end="")
        if name[:1].isdecimal():
            (page,) = pages
            print(f"\nWhat its cells printed on one computer: qtutor teach reference {page[:2]}")
    else:
        print("For instructors; these pages hold the answers. Begin with qtutor teach plans; --out DIR copies all.")
        for page, text in pages.items():
            print(f"  {page:32} {text.splitlines()[0].removeprefix('# ')}")
    return 0


def _one_lesson(pages: dict[str, str], number: str) -> dict[str, str]:
    """Cut one lesson out of the reference run."""
    from qtutor.course.reference import sections

    if [*pages] != ["reference"]:
        raise GivenUp("Only the page `reference` is in lessons: qtutor teach reference 05.")
    lessons = sections(pages["reference"])
    if number.zfill(2) not in lessons:
        raise GivenUp(f"The reference run has no lesson {number!r}: it has {', '.join(lessons)}.")
    return {f"reference_{number.zfill(2)}": lessons[number.zfill(2)]}


def _copy(pages: dict[str, str], folder: Path) -> None:
    """Write pages into a folder; none of them if one would replace a page that somebody has changed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = {folder / f"{page}.md": text for page, text in pages.items()}
        changed = [file for file, text in files.items() if file.exists() and file.read_text(encoding="utf-8") != text]
        if changed:
            raise GivenUp(f"{changed[0]} is not as it was copied: nothing is written, name another folder.")
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GivenUp(f"The pages cannot be copied to {folder}: {error}") from error
    print(f"{counted(len(files), 'page')} in {folder}")
