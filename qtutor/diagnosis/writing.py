"""A diagnosis as text, and as JSON, which has neither NaN nor infinity."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtutor.words import in_digits

if TYPE_CHECKING:
    import pandas as pd


def rows(table: "pd.DataFrame") -> list[dict]:
    """Return the rows of a table, without configurations."""
    kept = table.drop(columns="configuration", errors="ignore")
    return json.loads(kept.to_json(orient="records", double_precision=15))


def skipped_table(skipped: Mapping[str, tuple[str, str]]) -> "pd.DataFrame":
    """Return what was not measured, by name with its class and the reason, as a table."""
    import pandas as pd

    return pd.DataFrame([(name, *why) for name, why in skipped.items()], columns=["layer", "kind", "reason"])


def skipped_lines(skipped: "pd.DataFrame") -> list[str]:
    """Return a line for each row of such a table."""
    return [f"{row.layer} ({row.kind}): {row.reason}" for row in skipped.itertuples()]


def in_columns(table: "pd.DataFrame") -> str:
    """Return a table to be printed, its numbers to three digits, without configurations."""
    kept = table.drop(columns="configuration", errors="ignore")
    return kept.to_string(index=False, float_format=in_digits)


def as_text(notes: Iterable[str], table: "pd.DataFrame", skipped: "pd.DataFrame") -> str:
    """Return notes, a table and what was skipped, line by line."""
    lines = [*notes, in_columns(table)]
    if len(skipped):
        lines += ["Skipped:", *(f"  {line}" for line in skipped_lines(skipped))]
    return "\n".join(lines)


def written(content: dict[str, Any], path: Path | str | None) -> str | None:
    """Return content as JSON, or write it where a path is given; NaN and infinity become null."""
    text = json.dumps(_clean(content), indent=2)
    if path is None:
        return text
    Path(path).write_text(text + "\n", encoding="utf-8")
    return None


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
