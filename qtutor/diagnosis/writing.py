"""A diagnosis as JSON, which has neither NaN nor infinity."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def rows(table: "pd.DataFrame") -> list[dict]:
    """Return the rows of a table, without configurations."""
    kept = table.drop(columns="configuration", errors="ignore")
    return json.loads(kept.to_json(orient="records", double_precision=15))


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
