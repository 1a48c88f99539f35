"""What another computer measured, for those that lack a runtime; says so wherever it is shown.

`python -m qtutor.runtimes.recorded WHERE` measures it anew, on the computer that WHERE describes, and writes the file.
"""

import dataclasses
import datetime
import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtutor.benchmark import Comparison, compare
from qtutor.benchmark.comparison import summarize
from qtutor.machine import Machine
from qtutor.runtimes import entries, exported, onnx_runtime

if TYPE_CHECKING:
    import pandas as pd

_FILE = Path(__file__).with_suffix(".json")
RECORDED = ("ONNX Runtime", "every runtime")
"""The comparisons that there are."""

WAYS = {
    "defaults": {"unsigned": False, "preprocessed": False},
    "pre-processed": {"unsigned": False, "preprocessed": True},
    "unsigned": {"unsigned": True, "preprocessed": False},
}
"""Ways to quantize for ONNX Runtime: its tool's defaults, and two changes, one at a time."""


def recorded(name: str) -> Comparison:
    """Return a comparison that was recorded: its sentences say where and when.

    Args:
        name: of `RECORDED`: lesson 08's ONNX Runtime in four ways, or its network in every runtime.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> recorded("every runtime").recorded.split()[0]
        'on'
    """
    import pandas as pd

    if name not in RECORDED:
        raise ValueError(f"there is no record {name!r}: choose from {', '.join(map(repr, RECORDED))}")
    file, found = _read(), _read()[name]
    times = pd.DataFrame(found["times"]).rename_axis("round")
    table, confidence = summarize(times, times.columns, found["confidence"], found["extras"])
    table["error"] = ""
    when = f"on {file['when']}, on {file['where']}"
    return Comparison(table, times, confidence, Machine(**file["machine"]), found["versions"], when)


def recorded_operators() -> "pd.DataFrame":
    """Return how many operators of each kind ONNX Runtime ran there, for the float file and for those of `WAYS`."""
    import pandas as pd

    return pd.DataFrame(_read()["operators"]).fillna(0).astype(int)


@cache
def _read() -> dict[str, Any]:
    return json.loads(_FILE.read_text(encoding="utf-8"))


def main(where: str) -> None:
    """Measure all of it here, and write the file."""
    from qtutor.samples import flowers, trained

    data, network = flowers(), trained("flowers_resnet")
    photos, calibration = data.test.images[:20], [images for images, _ in data.train.batches(20)[:5]]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        files = {name: Path(folder, f"{name}.onnx") for name in ("float", *WAYS)}
        exported.export_onnx(network, (photos,), files["float"])
        for name, how in WAYS.items():
            onnx_runtime.quantize_onnx(files["float"], files[name], [(images,) for images in calibration], **how)
        sessions = {name: onnx_runtime.onnx_session(file) for name, file in files.items()}
        found = {"ONNX Runtime": compare(sessions, photos, seconds=3)}
        operators = {name: onnx_runtime.onnx_operators(file) for name, file in files.items()}
    built = entries.build(network, calibration)
    found["every runtime"] = compare(built, photos, seconds=3, loader=data.test.batches(20)[:25])
    record: dict[str, Any] = {"where": where, "when": datetime.date.today().isoformat(), "operators": operators}
    machine = next(iter(found.values())).machine
    record["machine"] = {**dataclasses.asdict(machine), "packages": None}
    for name, comparison in found.items():
        extras = comparison.table.columns.intersection(["size_mb", "accuracy"])
        record[name] = {
            "times": {entry: [round(float(time), 4) for time in times] for entry, times in comparison.times.items()},
            "confidence": 0.99,
            "extras": {extra: comparison.table[extra].to_dict() for extra in extras},
            "versions": dict(comparison.versions),
        }
        print(comparison, file=sys.stderr)
    _FILE.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
