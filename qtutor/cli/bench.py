"""`qtutor bench`: FP32 against INT8 on this computer, in each runtime that is installed."""

import dataclasses
import json
import math
import sys
import time
from argparse import ArgumentParser, Namespace

from qtutor.cli.surroundings import needed
from qtutor.words import in_digits, in_interval

_PAIRS = {
    "PyTorch, FX": ("eager FP32", "FX INT8"),
    "torch.compile, PT2E": ("torch.compile", "PT2E INT8"),
    "ONNX Runtime": ("ONNX Runtime FP32", "ONNX Runtime INT8"),
    "OpenVINO": ("OpenVINO FP32", "OpenVINO INT8"),
}
_ROOMY = 5e9  # bytes: exporting and quantizing 70 million parameters takes copies of them


HELP = "time FP32 against INT8 in each runtime"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: Namespace, seconds: float = 200) -> int:
    """Time FP32 against INT8 in each runtime that is installed, for two networks; takes less than five minutes."""
    with needed():
        from qtutor import benchmark, runtimes, vision  # noqa: F401  vision makes torchvision importable
        from qtutor.machine import describe
        from qtutor.samples import ArticleNet

        import torch
        from torchvision.models import resnet18  # isort: skip

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
            measured = benchmark.compare(pair, images, seconds=3)
            confidence = min(confidence, measured.confidence)
            row |= _numbers(measured)
    if arguments.json:
        machine, versions = dataclasses.asdict(measured.machine), dict(measured.versions)
        print(json.dumps({"rows": rows, "machine": machine, "versions": versions}, indent=2))
        return 0
    print(_table(rows))
    print(
        f"Medians, with {confidence:.3g} confidence intervals, in {time.monotonic() - start:.0f} s. {measured.setting}"
    )
    return 0


def _numbers(measured) -> dict[str, float | None]:
    """What a comparison of FP32 with INT8 says, by column; None for what was not measured, as NaN is not JSON."""
    fp32, int8 = (found for _, found in measured.table.iterrows())
    found = {
        f"{kind}_{unit}": row[column]
        for kind, row in (("fp32", fp32), ("int8", int8))
        for unit, column in (("ms", "latency_ms"), ("mb", "size_mb"))
    }
    found |= int8[["speedup", "speedup_low", "speedup_high"]].to_dict()
    return {name: None if value != value else value for name, value in found.items()}


def _table(rows: list[dict]) -> str:
    """The rows as a table, and below it the notes on them."""
    lines = [("network", "runtime", "FP32, ms", "INT8, ms", "INT8 is faster by", "FP32, MB", "INT8, MB")]
    for row in rows:
        fp32_ms, int8_ms, fp32_mb, int8_mb = (
            "–" if row.get(name) is None else in_digits(row[name])
            for name in ("fp32_ms", "int8_ms", "fp32_mb", "int8_mb")
        )
        ratio = "–"
        if row.get("speedup") is not None:
            ratio = in_interval(row["speedup"], row["speedup_low"], row["speedup_high"])
        lines.append((row["network"], row["runtime"], fp32_ms, int8_ms, ratio, fp32_mb, int8_mb))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join((*table, *dict.fromkeys(row["note"] for row in rows if row["note"])))
