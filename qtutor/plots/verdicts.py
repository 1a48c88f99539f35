"""Verdicts on claims: numbers as claimed and as measured, and in words what has no number."""

import math
from collections.abc import Iterable

from qtutor.claims import VERDICTS, Judgement
from qtutor.plots.look import BLUE, GREEN, GREY, INK, PURPLE, SILVER, VERMILLION, panels, ticks

import plotly.graph_objects as go

_LOOKS = {  # colour, symbol, width of its outline
    "holds": (GREEN, "circle", 0),
    "larger here": (BLUE, "triangle-right", 0),
    "smaller here": (PURPLE, "triangle-left", 0),
    "not seen here": (INK, "diamond-open", 2),
    "contradicted": (VERMILLION, "x", 0),
    "cannot run as printed": (INK, "square", 0),
    "not measurable here": (GREY, "circle-open", 2),
}


def claims(judgements: Iterable[Judgement], title: str = "Claimed against measured on this computer") -> go.Figure:
    """Draw the verdicts: a dumbbell from each claimed number to the measured one, and the rest below, by source.

    The axis of the numbers is logarithmic; a measurement of zero or less stands at its left edge, and
    its text says what it is.

    Args:
        judgements: what `claims.judge` gave, such as a `claims.Ledger`.

    Raises:
        ValueError: there are none.
    """
    judgements = list(judgements)
    if not judgements:
        raise ValueError("claims: there is no judgement to draw: judge a claim first")
    numbers = [(j, j.measured) for j in judgements if j.measured is not None]
    sources: dict[str, list[Judgement]] = {}
    for j in judgements:
        if j.measured is None:
            sources.setdefault(j.claim.id[0], []).append(j)
    rows = [len(numbers) + 1, 1.7 * len(sources) + 0.5]
    drawn = panels(2, 1, row_heights=rows, vertical_spacing=90 / (23 * sum(rows) + 160))
    _draw_numbers(drawn, numbers, {j.verdict for j in judgements})
    _draw_words(drawn, sources)
    drawn.update_yaxes(automargin=True, tickfont={"size": 12})
    height = round(23 * sum(rows) + 190)
    legend = {"yref": "container", "y": 1 - 44 / height, "yanchor": "top", "xref": "container", "x": 0.01}
    return drawn.update_layout(title={"text": title, "y": 1 - 14 / height}, height=height, legend=legend, margin_t=84)


def _marks(verdict: str) -> dict:
    """The look of one verdict, with a text beside each mark."""
    colour, symbol, stroke = _LOOKS[verdict]
    marker = {"color": colour, "symbol": symbol, "size": 11, "line": {"width": stroke}}
    return {"name": verdict, "legendgroup": verdict, "mode": "markers+text", "marker": marker}


def _draw_numbers(drawn: go.Figure, numbers: list[tuple[Judgement, float]], verdicts: set[str]) -> None:
    """Draw a row for each claim with what was measured, and the legend of all verdicts."""
    panel = {"row": 1, "col": 1}
    ends = [end for j, measured in numbers for end in (*j.claim.ends, measured) if end > 0] or [1.0]
    edge, most = min(ends) / 4, 4 * max(ends)

    def place(value: float) -> float:
        return max(value, edge)

    def row(j: Judgement) -> str:
        return f"{j.claim.id}  {j.claim.says}"

    bars = []
    for j, measured in numbers:
        low, high = j.claim.ends
        ends, line = [place(low), place(high), place(measured)], {"color": SILVER, "width": 2}
        drawn.add_scatter(x=ends, y=[row(j)] * 3, mode="lines", line=line, showlegend=False, hoverinfo="skip", **panel)
        bars += [(place(end), row(j), str(j.claim)) for end in ([low] if low == high else [low, high])]
    drawn.add_scatter(
        x=[x for x, _, _ in bars],
        y=[y for _, y, _ in bars],
        text=[text for _, _, text in bars],
        mode="markers",
        name="claimed",
        marker={"color": INK, "symbol": "line-ns-open", "size": 13, "line": {"width": 3}},
        **panel,
    )
    nowhere: list = [None]  # a trace without a point has no place in the legend
    for verdict in VERDICTS:
        mine = [(j, measured) for j, measured in numbers if j.verdict == verdict]
        # Each text is clear of the line that joins the two.
        sides = ["left" if measured < place(j.claim.ends[0]) else "right" for j, measured in mine]
        drawn.add_scatter(
            x=[place(measured) for _, measured in mine] or nowhere,
            y=[row(j) for j, _ in mine] or nowhere,
            text=[f"  {j.claim.number(measured)}  " for j, measured in mine],
            hovertext=[j.reason for j, _ in mine],
            textposition=[f"middle {side}" for side in sides],
            cliponaxis=False,
            showlegend=verdict in verdicts,
            **_marks(verdict),
            **panel,
        )
    drawn.update_xaxes(
        title="number, in the unit of the claim (log scale)",
        type="log",
        range=[math.log10(edge / 8), math.log10(most)],
        **ticks(10.0**n for n in range(-6, 6) if edge <= 10.0**n <= most),
        **panel,
    )
    order = [row(j) for j, _ in reversed(numbers)]
    drawn.update_yaxes(categoryorder="array", categoryarray=order, range=[-0.7, len(order) - 0.3], **panel)


def _draw_words(drawn: go.Figure, sources: dict[str, list[Judgement]]) -> None:
    """Draw a row for each source, of its claims without a measured number."""
    panel = {"row": 2, "col": 1}
    places = [(j, i, source) for source, mine in sources.items() for i, j in enumerate(mine)]
    for verdict in VERDICTS:
        mine = [(j, i, source) for j, i, source in places if j.verdict == verdict]
        drawn.add_scatter(
            x=[i for _, i, _ in mine],
            y=[source for _, _, source in mine],
            text=[j.claim.id for j, _, _ in mine],
            hovertext=[f"{j.claim.says}: {j.reason}" for j, _, _ in mine],
            textposition="bottom center",
            showlegend=False,
            **_marks(verdict),
            **panel,
        )
    most = max(map(len, sources.values()), default=1)
    bare = {"showticklabels": False, "ticks": "", "showgrid": False, "zeroline": False}
    drawn.update_xaxes(title="claims without a number", range=[-0.6, most - 0.4], **bare, **panel)
    order = [*sources][::-1]
    drawn.update_yaxes(categoryorder="array", categoryarray=order, range=[-0.8, len(order) - 0.5], **panel)
