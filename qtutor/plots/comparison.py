"""Things side by side: ratios, numbers in rows, series, and what each entry of a benchmark trades."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qtutor.plots.look import BLUE, GREEN, GREY, INK, LOOKS, ONE_TWO_FIVE, PALE, VERMILLION, figure, ticks
from qtutor.words import in_digits

import plotly.graph_objects as go

if TYPE_CHECKING:
    from qtutor.benchmark import Comparison


def ratios(values: dict[str, float], title: str) -> go.Figure:
    """Draw how many times better one thing is than another, on a log axis around 1.

    Args:
        values: the ratio of each quantity; above 1 is better, below 1 is worse.
    """
    drawn = figure(title, "times better (log scale)", "", height=120 + 50 * len(values))
    for name, value in reversed(values.items()):
        if value >= 1:
            word, colour, symbol, side = "better", BLUE, "circle", "middle right"
        else:
            word, colour, symbol, side = "worse", VERMILLION, "x", "middle left"
        drawn.add_scatter(
            x=[1, value],
            y=[name, name],
            mode="lines+markers+text",
            text=["", f"  {value:.2f}x {word}  "],
            textposition=side,
            line={"color": colour, "width": 4},
            marker={"size": [0, 14], "symbol": symbol},
            cliponaxis=False,
        )
    worst, best = min(values.values()), max(values.values())
    least, most = worst / 3 if worst < 1 else 1 / 1.3, max(best, 1) * 3
    shown = [tick for tick in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if least <= tick <= most]
    drawn.add_vline(x=1, line={"color": INK, "width": 1})
    drawn.update_xaxes(type="log", range=[math.log10(least), math.log10(most)], **ticks(shown))
    return drawn.update_yaxes(automargin=True).update_layout(showlegend=False)


def dots(rows: dict[str, dict[str, float]], title: str, x: str, *, share: bool = False) -> go.Figure:
    """Draw a few numbers a row as dots on one axis, joined by a thin line.

    Args:
        rows: by the name of the row, top to bottom, its numbers by the name of the series.
        x: what the numbers are, with their unit.
        share: whether the numbers are shares from 0 to 1, to be written as percent.
    """
    drawn = figure(title, x, "", height=130 + 34 * len(rows))
    for name, row in rows.items():
        ends = [min(row.values()), max(row.values())]
        drawn.add_scatter(x=ends, y=[name, name], mode="lines", line={"color": PALE}, showlegend=False)
    # The first series is what the others are held against.
    looks = ((INK, "line-ns-open", 3), (VERMILLION, "x", 0), (BLUE, "circle", 0), (GREEN, "square", 0))
    for series, (colour, symbol, stroke) in zip(next(iter(rows.values())), looks, strict=False):
        marker = {"color": colour, "symbol": symbol, "size": 11, "line": {"width": stroke}}
        values = [row[series] for row in rows.values()]
        drawn.add_scatter(x=values, y=list(rows), mode="markers", name=series, marker=marker)
    if share:
        drawn.update_xaxes(range=[-0.03, 1.03], tickformat=".0%")
    return drawn.update_yaxes(autorange="reversed", automargin=True)


def lines(x: Sequence[float], series: dict[str, Sequence[float]], title: str, x_title: str, y_title: str) -> go.Figure:
    """Draw a few named series over one axis, each with its own colour, dash and marker.

    Args:
        x: `n` places.
        series: by name, `n` values.
        x_title: what `x` is, with its unit.
        y_title: what the values are, with their unit.
    """
    drawn = figure(title, x_title, y_title)
    for (name, values), look in zip(series.items(), LOOKS, strict=False):
        place = {"x": list(x), "y": list(values), "mode": "lines+markers"}
        drawn.add_scatter(name=name, line=look.line(2), marker=look.marker(), **place)
    few = len(x) <= 10 and all(float(each).is_integer() for each in x)  # there is no block 0.5
    return drawn.update_xaxes(**ticks(x, "{:,}")) if few else drawn


def pareto(comparison: "Comparison", title: str = "") -> go.Figure:
    """Draw what each entry of a comparison trades: accuracy, or else size, against latency; area says size.

    The entries that no other beats in both are filled, and joined by a line. What failed is left out.

    Args:
        comparison: from `benchmark.compare`; with a `loader` it has accuracies.
        title: what the picture shows; by default which trade it is.

    Raises:
        ValueError: no entry has both a latency and an accuracy or size.
    """
    graded = "accuracy" in comparison.table
    quantity, kind, unit = ("accuracy", "accuracy", "") if graded else ("size_mb", "size", ", MB")
    table = comparison.table.dropna(subset=["latency_ms", quantity])
    if table.empty:
        raise ValueError(
            f"no entry has a latency and a {quantity}: pass compare a loader, or models, which have a size"
        )
    table = table.assign(beaten=beaten(table["latency_ms"], table[quantity] if graded else -table[quantity]))
    title = title or f"What each trades: {kind} against latency"
    drawn = figure(title, "latency, ms (log scale)", kind + unit, height=440)
    front = table[~table["beaten"]].sort_values("latency_ms")
    place = {"x": front["latency_ms"].tolist(), "y": front[quantity].tolist(), "name": "not beaten in both"}
    line = {"color": GREY, "dash": "dot", "width": 2}
    drawn.add_scatter(mode="lines", line=line, showlegend=len(front) > 1, hoverinfo="skip", **place)
    largest = table["size_mb"].max()
    for number, (name, row) in enumerate(table.iterrows(), start=1):
        colour, fill, ink = (VERMILLION, "white", VERMILLION) if row["beaten"] else (BLUE, BLUE, "white")
        size, label = 18.0, f"{number} {name}"
        if not math.isnan(row["size_mb"]):
            size += 26 * math.sqrt(row["size_mb"] / largest)
            label += f" ({in_digits(row['size_mb'], 2)} MB)"
        low, middle, high = row[["latency_low", "latency_ms", "latency_high"]]
        error = {"array": [high - middle], "arrayminus": [middle - low]}
        drawn.add_scatter(
            x=[middle],
            y=[row[quantity]],
            error_x={**error, "symmetric": False, "width": 4, "thickness": 1, "color": colour},
            mode="markers+text",
            text=[str(number)],
            textfont={"color": ink, "size": 12},
            name=label,
            marker={"size": size, "color": fill, "line": {"color": colour, "width": 2}, "opacity": 0.9},
        )
    drawn.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top", "itemsizing": "constant"})
    drawn.update_xaxes(type="log", **ticks(ONE_TWO_FIVE))
    drawn.update_yaxes(automargin=True)
    return drawn.update_yaxes(tickformat=".2~%") if graded else drawn.update_yaxes(rangemode="tozero")


def beaten(cost: Iterable[float], worth: Iterable[float]) -> list[bool]:
    """Return of each entry whether another costs no more and is worth no less, and is not the same in both."""
    entries = list(zip(cost, worth, strict=True))
    return [any(other != mine and other[0] <= mine[0] and other[1] >= mine[1] for other in entries) for mine in entries]
