"""`qtutor diagnose`: which layer of a model of the user's own quantization hurts."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from qtutor.cli.surroundings import GivenUp, needed

HELP = "say which layer of a model hurts"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="module:factory", help="a model, or a function that returns one")
    parser.add_argument(
        "--data", required=True, metavar="module:loader", help="batches, or a function that returns them"
    )
    parser.add_argument("--html", metavar="FILE", help="write a report, one page that opens offline")
    parser.add_argument("--json", metavar="FILE", help="write all numbers")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument(
        "--weights",
        choices=("tensor", "channel", "group"),
        default="tensor",
        help="what shares a scale; group rounds weights alone, 64 to a scale, and judges by KL",
    )
    parser.add_argument("--samples", type=int, default=1024, help="how many samples to read at most")


def run(arguments: Namespace) -> int:
    """Find out which layers quantization hurts most: a table here, and a page or JSON where asked for.

    Ctrl-C ends the measuring: what was measured until then is reported, and the exit code is 130.
    """
    with needed():
        from qtutor import diagnosis, plots
        from qtutor.diagnosis import writing

    in_groups = arguments.weights == "group"
    find = diagnosis.diagnose_weights if in_groups else diagnosis.diagnose
    names = ("bits", "samples") if in_groups else ("bits", "weights", "samples")
    options = {name: getattr(arguments, name) for name in names}
    try:
        with _importing_from_here():
            found = find(_made(arguments.model), _made(arguments.data), **options)
        print(found)
        if not in_groups:
            asked = ", ".join(f"{name}={value!r}" for name, value in options.items())
            way = "Apply it with diagnosis.apply()"
            if arguments.bits != 8:
                way = "INT8 has 8 bits: round so in floating point with diagnosis.simulate()"
            print(f"\n{writing.in_columns(found.steps)}")
            print(f"\n{found.verdict}\n{way} after diagnosis = diagnose(model, data, {asked}).")
        if arguments.html:
            plots.report(found, arguments.html)
        if arguments.json:
            found.to_json(arguments.json)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except (TypeError, ValueError, OSError) as error:
        raise GivenUp(str(error)) from error
    for path in filter(None, (arguments.html, arguments.json)):
        print(f"Written: {path}")
    return 130 if found.interrupted else 0


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """Find modules in this folder first, also those that a factory or `forward` imports when it runs."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):  # they may have taken it off
            sys.path.remove(here)


def _made(target: str) -> object:
    """What `module:name` names, called if it can be called and is not itself a model; a module may be a file."""
    import importlib

    module, _, name = target.rpartition(":")
    if not module or not name:
        raise ValueError(f"{target!r} names nothing: write module:function, for example mynet:build or mynet.py:build")
    try:
        home = _file(Path(module).resolve()) if module.endswith(".py") else importlib.import_module(module)
    except (ImportError, FileNotFoundError) as error:
        raise ValueError(f"{target!r}: {module} cannot be imported ({error})") from error
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
