"""A diagnosis: which layer hurts, what each repair gives, and both as a page to pass on."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtutor.plots import look
from qtutor.words import in_decibels, in_digits

import plotly.graph_objects as go

if TYPE_CHECKING:
    from qtutor.diagnosis import Diagnosis, WeightDiagnosis

    import pandas as pd

_MOST = 40  # layers that are drawn


def sensitivity(table: "pd.DataFrame", title: str) -> go.Figure:
    """Draw what rounding each layer alone, and all but it, does to the output; the most harmful on top.

    Args:
        table: of a `diagnosis.Diagnosis`.
    """
    shown = table.head(_MOST)
    drawn = look.figure(title, "SQNR of the output, dB", "", height=150 + 26 * len(shown))
    names = _short(shown["layer"])
    finite = [sqnr for sqnr in (*shown["alone_sqnr"], *shown["all_but_sqnr"]) if math.isfinite(sqnr)]
    edge = max(finite, default=0.0) + 6  # where a layer without error stands
    for column, name, colour, symbol in (
        ("alone_sqnr", "only this layer rounded", look.BLUE, "circle"),
        ("all_but_sqnr", "all rounded but this layer", look.VERMILLION, "diamond-open"),
    ):
        values = [None if math.isnan(sqnr) else min(sqnr, edge) for sqnr in shown[column]]
        marker = {"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}}
        drawn.add_scatter(x=values, y=names, mode="markers", name=name, marker=marker)
    return drawn.update_yaxes(autorange="reversed", automargin=True)


def harms(table: "pd.DataFrame", title: str) -> go.Figure:
    """Draw what rounding the weight of each layer alone does to the output's distribution; the most harmful on top.

    Args:
        table: of a `diagnosis.WeightDiagnosis`.
    """
    shown = table.head(_MOST)
    drawn = look.figure(title, "KL of the output, bits, ± 2 standard errors", "", height=150 + 26 * len(shown))
    spread = {"array": list(2 * shown["error"].fillna(0)), "color": look.BLUE, "thickness": 1}
    marker = {"color": look.BLUE, "size": 11}
    drawn.add_scatter(x=list(shown["harm"]), y=_short(shown["layer"]), mode="markers", marker=marker, error_x=spread)
    return drawn.update_yaxes(autorange="reversed", automargin=True)


def repairs(steps: "pd.DataFrame", metric_name: str, title: str) -> go.Figure:
    """Draw what each repair in turn gives, top to bottom; one that did not help is an open cross.

    Args:
        steps: of a `diagnosis.Diagnosis`.
        metric_name: the column to draw, or "" for the SQNR of the output.
    """
    column = metric_name or "sqnr"
    shown = steps[steps[column].notna()]
    drawn = look.figure(title, metric_name or "SQNR of the output, dB", "", height=170 + 40 * len(shown))
    written = "{:.1%}".format if metric_name == "accuracy" else in_digits
    drawn.add_scatter(
        x=list(shown[column]),
        y=[f"{i}. {step}" for i, step in enumerate(shown["step"])],
        mode="markers+text",
        text=[f"  {written(value)}" for value in shown[column]],
        textposition="middle right",
        marker={
            "color": [look.BLUE if kept else look.VERMILLION for kept in shown["kept"]],
            "symbol": ["circle" if kept else "x" for kept in shown["kept"]],
            "size": 13,
        },
        cliponaxis=False,
    )
    if metric_name == "accuracy":
        drawn.update_xaxes(range=[-0.03, 1.12], tickformat=".0%", tickvals=[0, 0.2, 0.4, 0.6, 0.8, 1])
    return drawn.update_yaxes(autorange="reversed", automargin=True).update_layout(showlegend=False)


def report(diagnosis: "Diagnosis | WeightDiagnosis", path: Path | str | None = None) -> str:
    """Return a diagnosis as one HTML page that needs no network, and write it where a path is given.

    Args:
        diagnosis: of `diagnosis.diagnose`.
        path: of the file, or None.
    """
    from qtutor.diagnosis import WeightDiagnosis

    import jinja2

    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined)
    templates.filters["cell"] = _cell
    content = _of_weights(diagnosis) if isinstance(diagnosis, WeightDiagnosis) else _of_layers(diagnosis)
    page = templates.get_template("report.html").render(diagnosis=diagnosis, look=look, **content)
    if path is not None:
        Path(path).write_text(page, encoding="utf-8")
    return page


def _of_layers(diagnosis: "Diagnosis") -> dict[str, Any]:
    """What the page says where weights and activations were rounded."""
    table, steps, rounded = diagnosis.table, diagnosis.steps, diagnosis.all_rounded
    facts = f"All layers rounded ({diagnosis.configuration}): SQNR of the output {in_decibels(rounded.sqnr)}"
    if diagnosis.metric_name:
        facts += f", {diagnosis.metric_name} {rounded.metric:.4g} against {diagnosis.float_metric:.4g} in float"
    return {
        "facts": facts,
        "picture": _embedded(sensitivity(table, "The further left a dot, the more its layer hurts"), script=True),
        "ranked": table[["layer", "kind", "harm", "finding", "suggestion"]],
        "ranked_by": "Layers, the most harmful first",
        "steps": steps.drop(columns="configuration"),
        "given": "; ".join(f"{row.step}: SQNR {in_decibels(row.sqnr)}" for row in steps.itertuples()),
        "repairs": _embedded(repairs(steps, diagnosis.metric_name, "What each repair gives"), script=False),
        "numbers": table.drop(columns=["kind", "finding", "suggestion", "harm"]),
    }


def _of_weights(diagnosis: "WeightDiagnosis") -> dict[str, Any]:
    """What the page says where weights alone were rounded."""
    return {
        "facts": f"Weights alone were rounded, to {diagnosis.bits} bits with a scale for {diagnosis.group} inputs; "
        f"rows of the output that were compared: {diagnosis.rows:,}",
        "picture": _embedded(harms(diagnosis.table, "The further right a dot, the more its layer hurts"), script=True),
        "ranked": diagnosis.table,
        "ranked_by": "Layers, the most harmful first: the KL of the output in bits with only this layer rounded, its "
        "standard error, and its share of the sum; the SQNR of the weight and of its worst row in dB; and whether "
        "another layer reads the same weight, which stays as it is there",
        "steps": None,
    }


def _short(layers: "pd.Series") -> list[str]:
    """Names that fit beside a picture."""
    return [name if len(name) <= 34 else f"…{name[-33:]}" for name in layers]


def _cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else "∞" if value == math.inf else in_digits(value)


def _embedded(drawn: go.Figure, *, script: bool) -> str:
    """A figure as a part of a page; the first of a page brings the script that draws all."""
    settings = {"displaylogo": False, "responsive": True}
    return drawn.to_html(full_html=False, include_plotlyjs=script, config=settings)
