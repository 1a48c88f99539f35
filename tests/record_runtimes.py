"""Measure what `runtimes.recorded` shows: `python tests/record_runtimes.py WHERE`, which describes this computer."""

import dataclasses
import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from qtutor.benchmark import compare
from qtutor.runtimes import entries, exported, onnx_runtime
from qtutor.runtimes.recorded import FILE
from qtutor.samples import flowers, trained

WAYS = {
    "defaults": {"unsigned": False, "preprocessed": False},
    "pre-processed": {"unsigned": False, "preprocessed": True},
    "unsigned": {"unsigned": True, "preprocessed": False},
}
"""Ways to quantize for ONNX Runtime: its tool's defaults, and two changes, one at a time."""


def main(where: str) -> None:
    """Measure all of it here, and write the file."""
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
    FILE.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
