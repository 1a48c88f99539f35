"""What another computer measured, for those that lack a runtime; says so wherever it is shown.

`tests/record_runtimes.py` measures it anew and writes the file.
"""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtutor.benchmark import Comparison
from qtutor.benchmark.comparison import summarize
from qtutor.machine import Machine

if TYPE_CHECKING:
    import pandas as pd

FILE = Path(__file__).with_suffix(".json")
RECORDED = ("ONNX Runtime", "every runtime")
"""The comparisons that there are."""


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
    file = _read()
    found = file[name]
    times = pd.DataFrame(found["times"]).rename_axis("round")
    table, confidence = summarize(times, times.columns, found["confidence"], found["extras"])
    table["error"] = ""
    when = f"on {file['when']}, on {file['where']}"
    return Comparison(table, times, confidence, Machine(**file["machine"]), found["versions"], when)


def recorded_operators() -> "pd.DataFrame":
    """Return how many operators of each kind ONNX Runtime ran there, for the float file and three INT8 files."""
    import pandas as pd

    return pd.DataFrame(_read()["operators"]).fillna(0).astype(int)


@cache
def _read() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))
