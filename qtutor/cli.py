"""The `qtutor` command: open the course, say what this computer is, or which layer of a model hurts.

Each subcommand imports what it needs when it runs, so that `qtutor --help` answers at once and
`qtutor doctor` can say that PyTorch is missing.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import qtutor

START = "lessons/00_start_here.ipynb"
TEACHING = Path(__file__).with_name("teaching")

_PAIRS = {
    "PyTorch, FX": ("eager FP32", "FX INT8"),
    "torch.compile, PT2E": ("torch.compile", "PT2E INT8"),
    "ONNX Runtime": ("ONNX Runtime FP32", "ONNX Runtime INT8"),
    "OpenVINO": ("OpenVINO FP32", "OpenVINO INT8"),
}
_ROOMY = 5e9  # bytes: exporting and quantizing 70 million parameters takes copies of them


def lab(arguments: list[str]) -> int:
    """Open JupyterLab on the first lesson, with the kernel of this environment."""
    package = Path(qtutor.__file__).resolve().parent
    course = _course("lab")
    if course is None:
        return 1
    try:
        from jupyterlab.labapp import LabApp
    except ImportError as error:
        return _not_installed(error)

    _use_own_kernel()
    # labextensions/ there names figures for screen readers.
    _prepend("JUPYTER_PATH", package)
    # labconfig/ there switches off the questions about news and updates.
    _prepend("JUPYTER_CONFIG_PATH", package)
    # As in an activated environment, for `!python` in a cell and for terminals.
    _prepend("PATH", Path(sys.executable).parent)
    # JupyterLab refuses an option that is given twice.
    ours = {
        f"--ServerApp.root_dir={course}": ("--ServerApp.root_dir", "--notebook-dir"),
        f"--LabApp.default_url=/lab/tree/{START}": ("--LabApp.default_url",),
    }
    missing = [option for option, names in ours.items() if not any(given.startswith(names) for given in arguments)]
    LabApp.launch_instance([*missing, *arguments])
    return 0


def doctor() -> int:
    """Print what this computer is and whether it is ready for the course; 1 if something is missing."""
    try:
        from qtutor.machine import describe
        from qtutor.preflight import preflight
    except ImportError as error:
        return _not_installed(error)

    machine = describe()
    print("This computer", *machine.sentences(), sep="\n  ")
    course = next((folder for folder in _places() if (folder / START).is_file()), None)
    print("The course on it")
    problems = []
    for check in preflight(course and course / "lessons"):
        print(f"  {'' if check.ok else 'PROBLEM: '}{check.sentence}", flush=True)
        if not check.ok:
            problems.append(check.sentence)
    print(f"Not ready: {len(problems)} to mend, marked PROBLEM above." if problems else "Ready.")
    return 1 if problems else 0


def progress(action: str, folder: str | None, csv: str | None) -> int:
    """See which exercises are solved, forget them, or collect a folder of learners' files into one table."""
    try:
        from qtutor.exercises import progress
    except ImportError as error:
        return _not_installed(error)

    if action == "reset":
        progress.reset()
        print(f"Progress is forgotten: {progress.path()}" + (" cannot be removed." if progress.path().exists() else ""))
        return int(progress.path().exists())
    if action == "show":
        for lesson, (done, of) in progress.count(progress.read(progress.path()) or {}).items():
            print(f"{lesson:28} {done} of {of}")
        print(f"Kept in {progress.path()}; to hand it in, send that file under your name.")
        return 0
    if folder is None or not Path(folder).is_dir():
        print(f"{folder or 'qtutor progress collect'}: name a folder of progress files.", file=sys.stderr)
        return 1
    table, unreadable = progress.collect(Path(folder).rglob("*.json"))
    for file in unreadable:
        print(f"{file} is not a progress file: left out.", file=sys.stderr)
    if not table:
        print(f"There is no progress file in {folder}.", file=sys.stderr)
        return 1
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


def prepare(names: list[str]) -> int:
    """Train ahead the models that the lessons use, so that no lesson waits; only what is missing is made."""
    try:
        from qtutor import samples
    except ImportError as error:
        return _not_installed(error)

    try:
        outcomes = samples.prepare(names or None)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: what was finished is kept, run it again for the rest.", file=sys.stderr)
        return 130
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}")
    return 0


def diagnose(model: str, data: str, **options: object) -> int:
    """Find out which layers quantization hurts most: a table here, and a page or JSON where asked for.

    Ctrl-C ends the measuring: what was measured until then is reported, and the exit code is 130.
    """
    try:
        from qtutor import diagnosis, plots
    except ImportError as error:
        return _not_installed(error)

    page, text = options.pop("html"), options.pop("json")
    try:
        found = diagnosis.diagnose(_made(model), _made(data), **options)
        print(found)
        print(f"\n{found.steps.drop(columns='configuration').to_string(index=False)}")
        print(f"\n{found.verdict}\nApply it with diagnosis.apply() after diagnosis = diagnose(model, data).")
        if page:
            plots.report(found, page)
        if text:
            found.to_json(text)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except (TypeError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for path in filter(None, (page, text)):
        print(f"Written: {path}")
    return 130 if found.interrupted else 0


def _made(target: str) -> object:
    """What `module:name` names, called if it can be called and is not itself a model; a module may be a file."""
    import importlib

    module, _, name = target.rpartition(":")
    if not module or not name:
        raise ValueError(f"{target!r} names nothing: write module:function, for example mynet:build or mynet.py:build")
    sys.path.insert(0, os.getcwd())
    try:
        home = _file(Path(module).resolve()) if module.endswith(".py") else importlib.import_module(module)
    except (ImportError, FileNotFoundError) as error:
        raise ValueError(f"{target!r}: {module} cannot be imported ({error})") from error
    finally:
        sys.path.remove(os.getcwd())
    try:
        found = getattr(home, name)
    except AttributeError:
        raise ValueError(f"{target!r}: {module} has no {name}") from None
    import torch

    return found() if callable(found) and not isinstance(found, torch.nn.Module) else found


def _file(path: Path) -> ModuleType:
    """The module that a file is, which runs once however often it is named."""
    import importlib.util

    home = sys.modules.get(path.stem)
    if home is None or Path(getattr(home, "__file__", None) or "").resolve() != path:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        home = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(home)
        except BaseException:
            del sys.modules[path.stem]
            raise
    return home


def book(out: str) -> int:
    """Build the course as a static site that opens from disk: lessons, figures, search and maths."""
    course = _course("book")
    if course is None:
        return 1
    try:
        from qtutor.book import Unbuilt, build
    except ImportError as error:
        return _not_installed(error)

    _use_own_kernel()
    try:
        page = build(course / "lessons", Path(out).expanduser().absolute())
    except Unbuilt as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The book is built. Open {page}")
    return 0


def bench(as_json: bool, seconds: float = 200) -> int:
    """Time FP32 against INT8 in each runtime that is installed, for two networks; takes less than five minutes."""
    try:
        from qtutor import benchmark, runtimes, vision  # noqa: F401  vision makes torchvision importable
        from qtutor.machine import describe
        from qtutor.samples import ArticleNet

        import torch
        from torchvision.models import resnet18  # isort: skip
    except ImportError as error:
        return _not_installed(error)

    start, size = time.monotonic(), 224
    if (describe().memory_available or math.inf) < _ROOMY:
        size = 112
        print(f"Little memory is free: the article's network gets images of {size} pixels.", file=sys.stderr)
    networks = {
        f"article A, {size} px, batch 32": (lambda: ArticleNet(size), torch.rand(32, 3, size, size)),
        "resnet18, 224 px, batch 1": (resnet18, torch.rand(1, 3, 224, 224)),
    }
    rows, measured, confidence = [], None, 1.0
    for runtime, names in _PAIRS.items():
        for network, (make, images) in networks.items():
            row = {"network": network, "runtime": runtime, "note": "left out, because the time is up"}
            rows.append(row)
            if measured and time.monotonic() - start > seconds:
                continue
            print(f"{runtime}, {network} ...", file=sys.stderr)
            calibration = [torch.rand(4, *images.shape[1:]) for _ in range(2)]
            pair = runtimes.build(make().eval(), calibration, names)  # two models in memory, and no more
            row["note"] = "; ".join(entry.missing for entry in pair.values() if entry.missing)
            if not any(entry.run for entry in pair.values()):
                continue
            comparison = benchmark.compare(pair, images, seconds=3)
            measured, confidence = comparison, min(confidence, comparison.confidence)
            for kind, (_, found) in zip(("fp32", "int8"), comparison.table.iterrows(), strict=True):
                row |= {f"{kind}_ms": found["latency_ms"], f"{kind}_mb": found["size_mb"]}
            row |= found[["speedup", "speedup_low", "speedup_high"]].to_dict()
    rows = [{name: None if value != value else value for name, value in row.items()} for row in rows]  # NaN is not JSON
    if as_json:
        machine, versions = dataclasses.asdict(measured.machine), dict(measured.versions)
        print(json.dumps({"rows": rows, "machine": machine, "versions": versions}, indent=2))
        return 0
    print(_headline(rows))
    print(
        f"Medians, with {confidence:.3g} confidence intervals, in {time.monotonic() - start:.0f} s. {measured.setting}"
    )
    return 0


def _headline(rows: list[dict]) -> str:
    """The rows as a table, and below it what they say in words."""
    lines = [("network", "runtime", "FP32, ms", "INT8, ms", "INT8 is faster by", "FP32, MB", "INT8, MB")]
    for row in rows:
        fp32_ms, int8_ms, fp32_mb, int8_mb = (
            "–" if row.get(name) is None else f"{row[name]:.3g}"
            for name in ("fp32_ms", "int8_ms", "fp32_mb", "int8_mb")
        )
        ratio = "–"
        if row.get("speedup") is not None:
            ratio = f"{row['speedup']:.3g} ({row['speedup_low']:.3g} to {row['speedup_high']:.3g})"
        lines.append((row["network"], row["runtime"], fp32_ms, int8_ms, ratio, fp32_mb, int8_mb))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join((*table, *dict.fromkeys(row["note"] for row in rows if row["note"])))


def teach(name: str | None, out: str | None) -> int:
    """Print a page for instructors, list the pages, or copy them to a folder. The pages hold the answers."""
    pages = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEACHING.glob("*.md"))}
    if name is not None:
        found = [page for page in pages if name == page or (name.isdecimal() and name.zfill(2) == page[:2])]
        if not found:
            print(f"There is no page {name!r}: qtutor teach alone lists those there are.", file=sys.stderr)
            return 1
        pages = {page: pages[page] for page in found}
    if out is not None:
        return _copy(pages, Path(out).expanduser())
    if name is not None:
        print(*pages.values(), sep="\n", end="")
        return 0
    print("For instructors; these pages hold the answers. qtutor teach 03 prints one, --out DIR copies all.")
    for page, text in pages.items():
        print(f"  {page:32} {text.splitlines()[0].removeprefix('# ')}")
    return 0


def _copy(pages: dict[str, str], folder: Path) -> int:
    """Write pages into a folder; none of them if one would replace a page that somebody has changed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = {folder / f"{page}.md": text for page, text in pages.items()}
        changed = [file for file, text in files.items() if file.exists() and file.read_text(encoding="utf-8") != text]
        if changed:
            print(f"{changed[0]} is not as it was copied: nothing is written, name another folder.", file=sys.stderr)
            return 1
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        print(f"The pages cannot be copied to {folder}: {error}", file=sys.stderr)
        return 1
    print(f"{len(files)} page{'s'[: len(files) > 1]} in {folder}")
    return 0


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
    commands.add_parser(
        "lab",
        help="open the course; JupyterLab gets every other argument",
        usage="qtutor lab [JupyterLab arguments]",
        description=lab.__doc__,
        epilog="Every argument goes to JupyterLab unchanged, for example --no-browser --port 8899.",
    )
    commands.add_parser("doctor", help="say what this computer is and what is missing", description=doctor.__doc__)

    making = commands.add_parser("prepare", help="train the lessons' models ahead", description=prepare.__doc__)
    making.add_argument("names", nargs="*", metavar="name", help="a model; all of them if none is named")

    hurting = commands.add_parser("diagnose", help="say which layer of a model hurts", description=diagnose.__doc__)
    hurting.add_argument("model", metavar="module:factory", help="a model, or a function that returns one")
    hurting.add_argument(
        "--data", required=True, metavar="module:loader", help="batches, or a function that returns them"
    )
    hurting.add_argument("--html", metavar="FILE", help="write a report, one page that opens offline")
    hurting.add_argument("--json", metavar="FILE", help="write all numbers")
    hurting.add_argument("--bits", type=int, default=8)
    hurting.add_argument("--weights", choices=("tensor", "channel"), default="tensor", help="what shares a scale")
    hurting.add_argument("--samples", type=int, default=1024, help="how many samples to read at most")
    reading = commands.add_parser("book", help="build the course as a static site", description=book.__doc__)
    reading.add_argument("out", metavar="OUT", help="the folder of the site: new, empty, or an earlier book")

    solved = commands.add_parser(
        "progress", help="see, reset or collect solved exercises", description=progress.__doc__
    )
    actions = ["show", "reset", "collect"]
    solved.add_argument("action", nargs="?", choices=actions, default="show", help="by default show")
    solved.add_argument("folder", nargs="?", help="to collect: the folder of the learners' files")
    solved.add_argument("--csv", metavar="FILE", help="to collect: write the table to this file too")
    timing = commands.add_parser("bench", help="time FP32 against INT8 in each runtime", description=bench.__doc__)
    timing.add_argument("--json", action="store_true", help="print JSON instead of a table")

    teaching = commands.add_parser("teach", help="notes, plans and a test for instructors", description=teach.__doc__)
    teaching.add_argument("page", nargs="?", help="a lesson's number, or a name from the list")
    teaching.add_argument("--out", metavar="DIR", help="copy to this folder instead of printing")

    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "lab":
        return lab(rest)
    if rest:
        parser.error(f"{arguments.command} does not take {' '.join(rest)}")
    if arguments.command == "diagnose":
        return diagnose(**{name: value for name, value in vars(arguments).items() if name != "command"})
    if arguments.command == "prepare":
        return prepare(arguments.names)
    if arguments.command == "book":
        return book(arguments.out)
    if arguments.command == "progress":
        return progress(arguments.action, arguments.folder, arguments.csv)
    if arguments.command == "bench":
        return bench(arguments.json)
    if arguments.command == "teach":
        return teach(arguments.page, arguments.out)
    return doctor()


def _course(command: str) -> Path | None:
    """The folder that holds the lessons, or None once it was said that there is none."""
    for folder in _places():
        if (folder / START).is_file():
            return folder
    beside, here = _places()
    print(
        f"There is no {START} beside the package ({beside}) or in the current directory ({here}): "
        f"run qtutor {command} from the folder that you cloned.",
        file=sys.stderr,
    )
    return None


def _places() -> tuple[Path, Path]:
    return Path(qtutor.__file__).resolve().parent.parent, Path.cwd()


def _use_own_kernel() -> None:
    # Before the user's own kernels: another environment's may be called python3 too.
    _prepend("JUPYTER_PATH", Path(sys.prefix, "share", "jupyter"))


def _prepend(variable: str, folder: Path) -> None:
    os.environ[variable] = os.pathsep.join(filter(None, (str(folder), os.environ.get(variable))))


def _not_installed(error: ImportError) -> int:
    print(
        f"{error.name or 'A package'} cannot be imported by {sys.executable} ({error}): "
        "run the first line of the README, which installs all that the course needs.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
