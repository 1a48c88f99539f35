"""A result in, a plotly figure out: pure functions, one look.

Colours are Okabe and Ito's, which colour-blind readers tell apart; every series also differs in
dash, marker or position. Backgrounds are opaque, so a figure reads alike in light and dark themes.
"""

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtutor import quick  # noqa: F401  before plotly
from qtutor.affine import QParams, QuantizationError, dequantize, fake_quantize
from qtutor.benchmark import Comparison
from qtutor.claims import VERDICTS, Judgement
from qtutor.roofline import Peaks

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

if TYPE_CHECKING:
    from qtutor.diagnosis import Diagnosis

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#00795A", "#9A4F7E", "#5A6270"
"""Okabe-Ito hues, the lighter ones darkened until text in them has contrast 4.5 on white."""

INK = "#1F2933"

_AXIS = {
    "showline": True,
    "linecolor": "#9AA5B1",
    "ticks": "outside",
    "tickcolor": "#9AA5B1",
    "gridcolor": "#E8ECF0",
    "zerolinecolor": "#C3CBD4",
    "title": {"standoff": 8},
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif", "size": 13, "color": INK},
        "title": {"x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 16}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": [BLUE, VERMILLION, GREEN, PURPLE, GREY],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 64, "r": 24, "t": 76, "b": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "height": 380,
        "hoverlabel": {"font": {"size": 13}},
        "modebar": {"remove": ["sendChartToCloud"]},  # plotly.js 4 offers an upload
    }
)


def figure(title: str, x: str, y: str, **layout) -> go.Figure:
    """Return an empty figure in the course's look: what it shows, and what its axes are in which unit."""
    return go.Figure(layout={"template": TEMPLATE, "title": title, "xaxis_title": x, "yaxis_title": y, **layout})


def images(pictures: Tensor, titles: Sequence[str], columns: int = 10) -> go.Figure:
    """Draw small pictures in rows.

    Args:
        pictures: `(N, 1 or 3, height, width)` in [0, 1].
        titles: N short titles.
    """
    rows = -(-len(pictures) // columns)
    drawn = make_subplots(rows, columns, subplot_titles=titles, horizontal_spacing=0.01, vertical_spacing=0.16 / rows)
    pixels = (pictures.expand(-1, 3, -1, -1).permute(0, 2, 3, 1) * 255).to(torch.uint8).numpy()  # (N, H, W, 3)
    for i, picture in enumerate(pixels):
        drawn.add_trace(go.Image(z=picture, hoverinfo="skip"), row=i // columns + 1, col=i % columns + 1)
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False)
    margin = {"l": 8, "r": 8, "t": 32, "b": 8}
    drawn.update_layout(template=TEMPLATE, height=130 * rows + 20, margin=margin)
    return drawn


def number_line(values: Tensor, qparams: QParams) -> go.Figure:
    """Draw where real values land: the values above, the grid with its codes below, a line from each to its code.

    Args:
        values: `(n,)` a few real values.
        qparams: per tensor, with few codes.
    """
    codes = torch.arange(qparams.quant_min, qparams.quant_max + 1)
    grid = dequantize(codes, qparams)
    landed = fake_quantize(values, qparams)
    drawn = figure("Each value moves to the nearest step; beyond the ends it is clipped", "real value", "", height=300)
    for value, end in zip(values.tolist(), landed.tolist(), strict=True):
        drawn.add_scatter(x=[value, end], y=[1, 0], mode="lines", line={"color": GREY, "dash": "dot"}, hoverinfo="skip")
    marker = {"color": BLUE, "size": 11}
    drawn.add_scatter(x=values.numpy(), y=torch.ones(len(values)).numpy(), mode="markers", marker=marker, name="x")
    marker = {"color": VERMILLION, "size": 13, "symbol": "line-ns-open", "line": {"width": 3}}
    text = [str(code) for code in codes.tolist()]
    place = {"mode": "markers+text", "text": text, "textposition": "bottom center"}
    drawn.add_scatter(x=grid.numpy(), y=torch.zeros(len(codes)).numpy(), marker=marker, name="code", **place)
    rows = {"tickvals": [1, 0], "ticktext": ["values x", "codes q"], "range": [-0.45, 1.3], "showgrid": False}
    return drawn.update_layout(showlegend=False, yaxis=rows)


def clip_sweep(clips: Tensor, errors: Sequence[QuantizationError], title: str) -> go.Figure:
    """Draw rounding, clipping and total error against the clip range.

    Args:
        clips: `(n,)` the clip ranges tried, in standard deviations.
        errors: what each costs.
    """
    drawn = figure(title, "clip range, in standard deviations", "error, % of the signal's power")
    parts = {
        "rounding": (GREEN, "dash", [e.rounding for e in errors]),
        "clipping": (PURPLE, "dot", [e.clipping for e in errors]),
        "total": (INK, "solid", [e.total for e in errors]),
    }
    for name, (colour, dash, part) in parts.items():
        percent = [100 * p / e.signal for p, e in zip(part, errors, strict=True)]
        drawn.add_scatter(x=clips.numpy(), y=percent, name=name, line={"color": colour, "dash": dash, "width": 2.5})
    best = min(range(len(errors)), key=lambda i: errors[i].total)
    low = 100 * errors[best].total / errors[best].signal
    drawn.add_scatter(
        x=[float(clips[best])],
        y=[low],
        mode="markers",
        name="best",
        marker={"color": INK, "size": 11, "symbol": "diamond"},
    )
    return drawn.update_yaxes(rangemode="tozero", range=[0, 6 * low])


def bits_rule(bits: Sequence[int], measured: dict[str, Sequence[float]]) -> go.Figure:
    """Draw SQNR against bit width beside the rule of 6.02 dB per bit.

    Args:
        bits: the bit widths.
        measured: SQNR in dB at each width, by the name of the data; the rule ends where the first does.
    """
    drawn = figure("SQNR climbs by 6 dB for each bit", "bits", "SQNR, dB")
    last = next(iter(measured.values()))[-1]
    rule = [last + 20 * math.log10(2) * (b - bits[-1]) for b in bits]
    drawn.add_scatter(x=list(bits), y=rule, mode="lines", name="6.02 dB per bit", line={"color": GREY, "dash": "dash"})
    for name, symbol in zip(measured, ("circle", "square", "diamond", "cross"), strict=False):
        drawn.add_scatter(
            x=list(bits), y=measured[name], mode="markers", name=name, marker={"size": 9, "symbol": symbol}
        )
    return drawn


def ratios(values: dict[str, float], title: str) -> go.Figure:
    """Draw how many times better one thing is than another, on a log axis around 1.

    Args:
        values: the ratio of each quantity; above 1 is better, below 1 is worse.
        title: what the picture shows.
    """
    names = list(values)[::-1]
    drawn = figure(title, "times better (log scale)", "", height=120 + 50 * len(values))
    for name in names:
        better = values[name] >= 1
        drawn.add_scatter(
            x=[1, values[name]],
            y=[name, name],
            mode="lines+markers+text",
            text=["", f"  {values[name]:.2f}x {'better' if better else 'worse'}  "],
            textposition="middle right" if better else "middle left",
            line={"color": BLUE if better else VERMILLION, "width": 4},
            marker={"size": [0, 14], "symbol": "circle" if better else "x"},
            cliponaxis=False,
        )
    most = max(max(values.values()), 1) * 3
    worst = min(values.values())
    least = worst / 3 if worst < 1 else 1 / 1.3
    ticks = [t for t in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if least <= t <= most]
    drawn.add_vline(x=1, line={"color": INK, "width": 1})
    drawn.update_xaxes(
        type="log", range=[math.log10(least), math.log10(most)], tickvals=ticks, ticktext=[f"{t:g}" for t in ticks]
    )
    return drawn.update_yaxes(automargin=True).update_layout(showlegend=False)


def channel_ranges(ranges: dict[str, Tensor], title: str, *, lost_below: float | None = None) -> go.Figure:
    """Draw the largest magnitude in each channel, on a log axis.

    Args:
        ranges: by name, `(channels,)` magnitudes.
        title: what the picture shows.
        lost_below: half a step of one scale for all: a channel below this line rounds to zero as a whole.
    """
    axes = {"xaxis": {"zeroline": False}, "yaxis": {"type": "log", "dtick": 1}}
    drawn = figure(title, "channel", "largest |weight| (log scale)", **axes)
    looks = ((VERMILLION, "x"), (BLUE, "circle"), (GREEN, "square"))
    for (name, values), (colour, symbol) in zip(ranges.items(), looks, strict=False):
        marker = {"color": colour, "symbol": symbol, "size": 9}
        drawn.add_scatter(x=list(range(len(values))), y=values.tolist(), mode="markers", name=name, marker=marker)
    if lost_below is not None:
        ends = [-0.5, max(map(len, ranges.values())) - 0.5]
        line = {"color": INK, "dash": "dash", "width": 1.5}
        name = "half a step: what lies below becomes zero"
        drawn.add_scatter(x=ends, y=[lost_below] * 2, mode="lines", name=name, line=line)
    return drawn


def dots(rows: dict[str, dict[str, float]], title: str, x: str, *, share: bool = False) -> go.Figure:
    """Draw a few numbers a row as dots on one axis, joined by a thin line.

    Args:
        rows: by the name of the row, top to bottom, its numbers by the name of the series.
        title: what the picture shows.
        x: what the numbers are, with their unit.
        share: whether the numbers are shares from 0 to 1, to be written as percent.
    """
    drawn = figure(title, x, "", height=130 + 34 * len(rows))
    for name, row in rows.items():
        ends = [min(row.values()), max(row.values())]
        drawn.add_scatter(x=ends, y=[name, name], mode="lines", line={"color": "#C3CBD4"}, showlegend=False)
    looks = ((INK, "line-ns-open"), (VERMILLION, "x"), (BLUE, "circle"), (GREEN, "square"))
    for series, (colour, symbol) in zip(next(iter(rows.values())), looks, strict=False):
        marker = {"color": colour, "symbol": symbol, "size": 11, "line": {"width": 3 if symbol[-4:] == "open" else 0}}
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
        title: what the picture shows.
        x_title: what `x` is, with its unit.
        y_title: what the values are, with their unit.
    """
    drawn = figure(title, x_title, y_title)
    looks = (
        (VERMILLION, "solid", "x"),
        (BLUE, "dash", "circle"),
        (PURPLE, "dot", "diamond"),
        (GREEN, "dashdot", "square"),
        (INK, "longdash", "triangle-up"),
    )
    for (name, values), (colour, dash, symbol) in zip(series.items(), looks, strict=False):
        marker = {"symbol": symbol, "size": 9}
        line = {"color": colour, "dash": dash, "width": 2}
        drawn.add_scatter(x=list(x), y=list(values), mode="lines+markers", name=name, line=line, marker=marker)
    return drawn


def distributions(tensors: dict[str, Tensor], title: str, *, bins: int = 100) -> go.Figure:
    """Draw histograms side by side, each on its own axis; exact zeros are left out.

    Args:
        tensors: by name, finite values of any shape.
        title: what the picture shows.
        bins: of each histogram.
    """
    drawn = make_subplots(1, len(tensors), subplot_titles=list(tensors), horizontal_spacing=0.08)
    for column, (tensor, colour) in enumerate(zip(tensors.values(), (BLUE, VERMILLION, GREEN), strict=False), start=1):
        values = tensor[tensor != 0]
        edges = torch.linspace(float(values.min()), float(values.max()), bins + 1)
        share = values.histc(bins, float(edges[0]), float(edges[-1])) / tensor.numel()
        line = {"shape": "hv", "color": colour, "width": 1.5}
        place = {"x": edges[:-1].numpy(), "y": share.numpy(), "row": 1, "col": column}
        drawn.add_scatter(fill="tozeroy", mode="lines", line=line, **place)
        drawn.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
    drawn.update_xaxes(title="value")
    drawn.update_yaxes(title="share of all values", rangemode="tozero", col=1)
    return drawn.update_layout(template=TEMPLATE, title=title, showlegend=False, margin_t=96)


def chosen_ranges(values: Tensor, ends: dict[str, float], title: str) -> go.Figure:
    """Draw a histogram with a line where each range ends; exact zeros are left out.

    Args:
        values: finite values of any shape.
        ends: by name, the upper end of a range.
        title: what the picture shows.
    """
    drawn = figure(title, "value", "number of values (log scale)", yaxis={"type": "log", "dtick": 1}, height=420)
    values = values[values != 0]
    edges = torch.linspace(float(values.min()), float(values.max()), 121)
    counts = values.histc(120, float(edges[0]), float(edges[-1]))
    bars = {"marker_color": "#9CC9E3", "hoverinfo": "skip"}
    drawn.add_bar(x=((edges[:-1] + edges[1:]) / 2).numpy(), y=counts.where(counts > 0, torch.nan).numpy(), **bars)
    top = math.log10(float(counts.max()))
    looks = ((VERMILLION, "solid"), (BLUE, "dash"), (GREEN, "dot"), (PURPLE, "dashdot"), (INK, "longdash"))
    for i, ((name, end), (colour, dash)) in enumerate(zip(ends.items(), looks, strict=False)):
        drawn.add_scatter(x=[end, end], y=[0.5, 10**top], mode="lines", line={"color": colour, "dash": dash})
        place = {"x": end, "y": top * (0.98 - 0.11 * i), "xanchor": "right", "xshift": -4, "showarrow": False}
        drawn.add_annotation(text=name, bgcolor="white", font={"color": colour}, **place)
    return drawn.update_layout(showlegend=False, bargap=0, yaxis_range=[-0.3, top + 0.2])


def calibration_size(sizes: Sequence[int], decibels: Tensor, title: str, *, claimed: tuple[int, int]) -> go.Figure:
    """Draw SQNR against the number of calibration images, with the numbers that a source asks for shaded.

    Args:
        sizes: `n` numbers of images.
        decibels: `(n, draws)` SQNR of each draw of so many images.
        title: what the picture shows.
        claimed: from how many to how many images the source asks for.
    """
    drawn = figure(title, "calibration images (log scale)", "SQNR of the output, dB")
    drawn.add_vrect(x0=claimed[0], x1=claimed[1], fillcolor=GREY, opacity=0.12, line_width=0)
    text = {"text": "claimed", "x": math.log10(math.sqrt(claimed[0] * claimed[1])), "y": 0.04, "yref": "y domain"}
    drawn.add_annotation(showarrow=False, font={"color": INK}, **text)
    low, middle, high = decibels.amin(dim=1), decibels.median(dim=1).values, decibels.amax(dim=1)
    error = {"array": (high - middle).numpy(), "arrayminus": (middle - low).numpy(), "symmetric": False, "width": 5}
    look = {"mode": "lines+markers", "line": {"color": BLUE, "width": 2}, "marker": {"size": 9}}
    drawn.add_scatter(x=list(sizes), y=middle.numpy(), error_y=error, **look)
    return drawn.update_xaxes(type="log", tickvals=list(sizes), ticktext=[str(n) for n in sizes])


def datapath(paths: dict[str, Sequence[tuple[str, str, int]]], title: str) -> go.Figure:
    """Draw what operators pass on, one row a datapath, with ribbons as wide as bytes.

    Args:
        paths: by name, in order, `(operator, what it writes, bytes)`; the first is the input, its operator "".
        title: what the picture shows.
    """
    drawn = figure(title, "", "", height=110 + 170 * len(paths))
    widest = max(size for path in paths.values() for _, _, size in path)
    for row, (name, path) in enumerate(paths.items()):
        place = {"y": -row + 0.4, "xanchor": "left", "showarrow": False, "font": {"size": 14}}
        drawn.add_annotation(x=-0.35, text=f"<b>{name}</b>", **place)
        for i, (operator, numbers, size) in enumerate(path):
            half, is_float = 0.24 * size / widest, numbers.startswith("FP")
            colour = VERMILLION if is_float else PURPLE if numbers == "INT32" else BLUE
            ends = {"x0": i - 0.34, "x1": i + 0.66, "y0": -row - half, "y1": -row + half}
            drawn.add_shape(type="rect", fillcolor=colour, opacity=0.5, line_width=0, layer="below", **ends)
            text = f"{numbers}<br>{size:,} B"
            drawn.add_annotation(x=i + 0.33, y=-row - 0.4, text=text, showarrow=False, font={"size": 12})
            if operator:
                box = {"x0": i - 0.34, "x1": i + 0.02, "y0": -row - 0.27, "y1": -row + 0.27}
                drawn.add_shape(type="rect", fillcolor="white", line={"color": INK, "width": 1.5}, **box)
                drawn.add_annotation(x=i - 0.16, y=-row, text=operator, showarrow=False, font={"size": 12})
    most = max(map(len, paths.values()))
    drawn.update_xaxes(visible=False, range=[-0.4, most - 0.25])
    drawn.update_yaxes(visible=False, range=[-len(paths) + 0.3, 0.6])
    return drawn.update_layout(margin={"l": 12, "r": 12, "t": 52, "b": 8})


def sensitivity(table: pd.DataFrame, title: str, *, most: int = 40) -> go.Figure:
    """Draw what rounding each layer alone, and all but it, does to the output; the most harmful on top.

    Args:
        table: of a `diagnosis.Diagnosis`.
        title: what the picture shows.
        most: how many layers to draw.
    """
    shown = table.head(most)
    drawn = figure(title, "SQNR of the output, dB", "", height=150 + 26 * len(shown))
    looks = (("alone_sqnr", "only this layer rounded", BLUE, "circle"),)
    looks += (("all_but_sqnr", "all rounded but this layer", VERMILLION, "diamond-open"),)
    names = [name if len(name) <= 34 else f"…{name[-33:]}" for name in shown["layer"]]
    ends = [v for column, *_ in looks for v in shown[column] if math.isfinite(v)]
    top = max(ends, default=0.0) + 6
    for column, name, colour, symbol in looks:
        values = [min(v, top) if v == v else None for v in shown[column]]  # without error: at the right edge
        marker = {"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}}
        drawn.add_scatter(x=values, y=names, mode="markers", name=name, marker=marker)
    return drawn.update_yaxes(autorange="reversed", automargin=True)


def repairs(steps: pd.DataFrame, metric_name: str, title: str) -> go.Figure:
    """Draw what each repair in turn gives, top to bottom; one that did not help is an open cross.

    Args:
        steps: of a `diagnosis.Diagnosis`.
        metric_name: the column to draw, or "" for the SQNR of the output.
        title: what the picture shows.
    """
    column = metric_name or "sqnr"
    shown = steps[steps[column].notna()]
    drawn = figure(title, metric_name or "SQNR of the output, dB", "", height=170 + 40 * len(shown))
    colours = [BLUE if kept else VERMILLION for kept in shown["kept"]]
    symbols = ["circle" if kept else "x" for kept in shown["kept"]]
    labels = [f"  {v:.1%}" if metric_name == "accuracy" else f"  {v:.3g}" for v in shown[column]]
    names = [f"{i}. {step}" for i, step in enumerate(shown["step"])]
    drawn.add_scatter(
        x=list(shown[column]),
        y=names,
        mode="markers+text",
        text=labels,
        textposition="middle right",
        marker={"color": colours, "symbol": symbols, "size": 13},
        cliponaxis=False,
    )
    if metric_name == "accuracy":
        drawn.update_xaxes(range=[-0.03, 1.12], tickformat=".0%", tickvals=[0, 0.2, 0.4, 0.6, 0.8, 1])
    return drawn.update_yaxes(autorange="reversed", automargin=True).update_layout(showlegend=False)


def report(diagnosis: "Diagnosis", path: Path | str | None = None) -> str:
    """Return a diagnosis as one HTML page that needs no network, and write it where a path is given.

    Args:
        diagnosis: of `diagnosis.diagnose`.
        path: of the file, or None.
    """

    def cell(value: Any) -> str:
        if isinstance(value, float):
            value = "" if math.isnan(value) else "∞" if value == math.inf else f"{value:.3g}"
        return html.escape(str(value))

    def table_of(frame: pd.DataFrame, caption: str) -> str:
        head = "".join(f"<th scope='col'>{html.escape(str(c).replace('_', ' '))}</th>" for c in frame.columns)
        rows = "".join(
            f"<tr>{''.join(f'<td>{cell(v)}</td>' for v in row)}</tr>" for row in frame.itertuples(index=False)
        )
        return (
            f"<div class='wide'><table><caption>{html.escape(caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )

    def picture(drawn: go.Figure, words: str, first: bool) -> str:
        part = drawn.to_html(full_html=False, include_plotlyjs=first, config={"displaylogo": False, "responsive": True})
        return f"<figure role='img' aria-label='{html.escape(words, quote=True)}'>{part}</figure>"

    table, steps = diagnosis.table, diagnosis.steps
    worst = table.iloc[0] if len(table) else None
    said = f"{worst['layer']} hurts most: {worst['finding']}." if worst is not None else "Nothing was measured."
    rounded = diagnosis.all_rounded
    facts = f"All layers rounded ({diagnosis.configuration}): SQNR of the output {rounded.sqnr:.1f} dB"
    if diagnosis.metric_name:
        facts += f", {diagnosis.metric_name} {rounded.metric:.4g} against {diagnosis.float_metric:.4g} in float"
    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in diagnosis.notes)
    explained = table[["layer", "kind", "harm", "finding", "suggestion"]]
    numbers = table.drop(columns=["kind", "finding", "suggestion", "harm"])
    parts = [
        f"<h1>Which layer hurts</h1><p class='first'>{html.escape(said)}</p><p>{html.escape(facts)}.</p>{notes}",
        f"<p class='verdict'>{html.escape(diagnosis.verdict)}</p>",
        picture(sensitivity(table, "The further left a dot, the more its layer hurts"), said, True),
        table_of(explained, "Layers, the most harmful first"),
        "<h2>Repairs in turn</h2>",
        picture(
            repairs(steps, diagnosis.metric_name, "What each repair gives"),
            "; ".join(f"{row.step}: SQNR {row.sqnr:.1f} dB" for row in steps.itertuples()),
            False,
        ),
        table_of(steps.drop(columns="configuration"), "Each repair, measured; those not kept did not help"),
        "<h2>All numbers</h2>",
        table_of(numbers, "SQNRs in dB: of the output, by this layer alone and by all but it; then of its own tensors"),
    ]
    if len(diagnosis.skipped):
        parts += ["<h2>Skipped</h2>", table_of(diagnosis.skipped, "What was not simulated, and why")]
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Which layer hurts</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<link rel='icon' href='data:,'><style>{_REPORT_STYLE}</style></head><body>"
        f"<main>{''.join(parts)}</main></body></html>"
    )
    if path is not None:
        Path(path).write_text(page, encoding="utf-8")
    return page


_REPORT_STYLE = f"""
body {{ font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; color: {INK}; }}
body {{ background: white; }}
main {{ max-width: 72em; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 1.7em; }} h2 {{ font-size: 1.25em; margin-top: 2em; }} figure {{ margin: 1em 0; }}
.first {{ font-size: 1.15em; }} .note {{ border-left: 4px solid {VERMILLION}; padding-left: 1em; }}
.verdict {{ border-left: 4px solid {GREEN}; padding-left: 1em; }} .wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: 1em 0; }} caption {{ text-align: left; color: {GREY}; padding: .3em 0; }}
th, td {{ text-align: left; padding: .3em .8em .3em 0; border-bottom: 1px solid #E8ECF0; vertical-align: top; }}
th {{ border-bottom: 1px solid #9AA5B1; font-weight: 600; }} td {{ font-variant-numeric: tabular-nums; }}
"""


def pareto(comparison: Comparison, title: str = "") -> go.Figure:
    """Draw what each entry of a comparison trades: accuracy, or else size, against latency; area says size.

    The entries that no other beats in both are filled, and joined by a line. What failed is left out.

    Args:
        comparison: from `benchmark.compare`; with a `loader` it has accuracies.
        title: what the picture shows; by default which trade it is.

    Raises:
        ValueError: no entry has both a latency and an accuracy or size.
    """
    graded = "accuracy" in comparison.table
    quantity = "accuracy" if graded else "size_mb"
    table = comparison.table.dropna(subset=["latency_ms", quantity])
    if table.empty:
        raise ValueError(
            f"no entry has a latency and a {quantity}: pass compare a loader, or models, which have a size"
        )
    worth = table[quantity] if graded else -table[quantity]
    beaten = {
        name: any(
            (table["latency_ms"] <= table["latency_ms"][name])
            & (worth >= worth[name])
            & ((table["latency_ms"] < table["latency_ms"][name]) | (worth > worth[name]))
        )
        for name in table.index
    }
    front = table[[not beaten[name] for name in table.index]].sort_values("latency_ms")
    kind = "accuracy" if graded else "size, MB"
    drawn = figure(
        title or f"What each trades: {kind.partition(',')[0]} against latency", "latency, ms (log scale)", kind
    )
    line = {"color": GREY, "dash": "dot", "width": 2}
    place = {"x": front["latency_ms"].tolist(), "y": front[quantity].tolist(), "name": "not beaten in both"}
    drawn.add_scatter(mode="lines", line=line, showlegend=len(front) > 1, hoverinfo="skip", **place)
    largest = table["size_mb"].max()
    for number, (name, row) in enumerate(table.iterrows(), start=1):
        known = not math.isnan(row["size_mb"])
        colour = VERMILLION if beaten[name] else BLUE
        drawn.add_scatter(
            x=[row["latency_ms"]],
            y=[row[quantity]],
            error_x={
                "array": [row["latency_high"] - row["latency_ms"]],
                "arrayminus": [row["latency_ms"] - row["latency_low"]],
                "symmetric": False,
                "width": 4,
                "thickness": 1,
                "color": colour,
            },
            mode="markers+text",
            text=[str(number)],
            textfont={"color": colour if beaten[name] else "white", "size": 12},
            name=f"{number} {name}" + (f" ({row['size_mb']:.2g} MB)" if known else ""),
            marker={
                "symbol": "circle",
                "size": 18 + (26 * math.sqrt(row["size_mb"] / largest) if known else 0),
                "color": "white" if beaten[name] else BLUE,
                "line": {"color": colour, "width": 2},
                "opacity": 0.9,
            },
        )
    beside = {"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top", "itemsizing": "constant"}
    drawn.update_layout(legend=beside, height=440)
    ticks = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
    drawn.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    drawn.update_yaxes(automargin=True)
    return drawn.update_yaxes(tickformat=".2~%") if graded else drawn.update_yaxes(rangemode="tozero")


def roofline(peaks: Peaks, layers: pd.DataFrame, title: str) -> go.Figure:
    """Draw what each layer attains below the roofs of FP32 and INT8.

    Args:
        peaks: of this machine.
        layers: from `roofline.layers`, timed in FP32.
        title: what the picture shows.
    """
    drawn = figure(title, "operations for each byte moved (log scale)", "billion operations a second (log scale)")
    attained = layers["operations"] / layers["latency_ms"] / 1e6
    roofs = (("INT8 roof", peaks.int8_rate, 4, GREEN, "dash"), ("FP32 roof", peaks.float_rate, 1, INK, "solid"))
    left, right = layers["intensity"].min() / 3, layers["intensity"].max() * 10
    for name, rate, narrower, colour, dash in roofs:
        # In operations for each byte of FP32: INT8 moves a quarter of the bytes.
        knee = rate / peaks.bandwidth / narrower
        xs = [left, *([knee] if left < knee < right else []), right]
        ys = [min(rate, x * narrower * peaks.bandwidth) / 1e9 for x in xs]
        drawn.add_scatter(x=xs, y=ys, mode="lines", name=name, line={"color": colour, "dash": dash, "width": 2.5})
    drawn.add_scatter(
        x=layers["intensity"].tolist(),
        y=attained.tolist(),
        mode="markers",
        text=[*layers.index],
        name="a layer in FP32",
        marker={"color": BLUE, "size": 10},
        hovertemplate="%{text}: %{x:.3g}, %{y:.3g}<extra></extra>",
    )
    drawn.update_xaxes(type="log", dtick=1)
    return drawn.update_yaxes(type="log", dtick=1)


_VERDICT_LOOKS = dict(
    zip(
        VERDICTS,
        (
            (GREEN, "circle"),
            (BLUE, "triangle-right"),
            (PURPLE, "triangle-left"),
            (VERMILLION, "x"),
            (INK, "square"),
            (GREY, "circle-open"),
        ),
        strict=True,
    )
)


def claims(judgements: Iterable[Judgement], title: str = "Claimed against measured on this computer") -> go.Figure:
    """Draw the verdicts: a dumbbell from each claimed number to the measured one, and the rest below, by source.

    The axis of the numbers is logarithmic; a measurement of zero or less stands at its left edge, and
    its text says what it is.

    Args:
        judgements: what `claims.judge` gave, such as a `claims.Ledger`.
        title: what the picture shows.

    Raises:
        ValueError: there are none.
    """
    judgements = list(judgements)
    if not judgements:
        raise ValueError("claims: there is no judgement to draw: judge a claim first")
    numbers = [j for j in judgements if j.measured is not None]
    others = [j for j in judgements if j.measured is None]
    sources = list(dict.fromkeys(j.claim.id[0] for j in others))
    heights = [len(numbers) + 1, 1.7 * len(sources) + 0.5]
    drawn = make_subplots(2, 1, row_heights=heights, vertical_spacing=90 / (23 * sum(heights) + 160))
    ends = [end for j in numbers for end in (*j.claim.ends, j.measured) if end > 0] or [1.0]
    edge = min(ends) / 4

    def place(value: float) -> float:
        return max(value, edge)

    def side(j: Judgement) -> str:
        """Where the text is clear of the line that joins the two."""
        return "middle left" if j.measured < max(j.claim.ends[0], edge) else "middle right"

    rows = {j.claim.id: f"{j.claim.id}  {j.claim.says}" for j in numbers}
    joint = {"color": "#9AA5B1", "width": 2}
    for j in numbers:
        low, high = j.claim.ends
        x, y = [place(low), place(high), place(j.measured)], [rows[j.claim.id]] * 3
        drawn.add_scatter(x=x, y=y, mode="lines", line=joint, showlegend=False, hoverinfo="skip", row=1, col=1)
    bars = [(place(end), rows[j.claim.id], str(j.claim)) for j in numbers for end in dict.fromkeys(j.claim.ends)]
    marker = {"color": INK, "symbol": "line-ns-open", "size": 13, "line": {"width": 3}}
    x, y, text = zip(*bars, strict=True) if bars else ((), (), ())
    drawn.add_scatter(x=x, y=y, text=text, mode="markers", name="claimed", marker=marker, row=1, col=1)
    for verdict, (colour, symbol) in _VERDICT_LOOKS.items():
        look = {"name": verdict, "legendgroup": verdict, "marker": {"color": colour, "symbol": symbol, "size": 11}}
        look["marker"]["line"] = {"width": 2 if symbol == "circle-open" else 0}
        mine = [j for j in numbers if j.verdict == verdict]
        drawn.add_scatter(
            x=[place(j.measured) for j in mine] or [None],
            y=[rows[j.claim.id] for j in mine] or [None],
            text=[f"  {j.claim.number(j.measured)}  " for j in mine],
            hovertext=[j.reason for j in mine],
            mode="markers+text",
            textposition=[side(j) for j in mine],
            cliponaxis=False,
            showlegend=any(j.verdict == verdict for j in judgements),
            **look,
            row=1,
            col=1,
        )
        mine = [j for j in others if j.verdict == verdict]
        drawn.add_scatter(
            x=[[k for k in others if k.claim.id[0] == j.claim.id[0]].index(j) for j in mine],
            y=[j.claim.id[0] for j in mine],
            text=[j.claim.id for j in mine],
            hovertext=[f"{j.claim.says}: {j.reason}" for j in mine],
            mode="markers+text",
            textposition="bottom center",
            showlegend=False,
            **look,
            row=2,
            col=1,
        )
    drawn.update_xaxes(_AXIS)
    ticks = [t for n in range(-6, 6) for t in (10.0**n,) if edge <= t <= 4 * max(ends)]
    span = [math.log10(edge / 8), math.log10(4 * max(ends))]
    x = {"type": "log", "range": span, "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}
    drawn.update_xaxes(title="number, in the unit of the claim (log scale)", row=1, col=1, **x)
    drawn.update_yaxes(categoryorder="array", categoryarray=list(rows.values())[::-1], showgrid=True, row=1, col=1)
    most = max((sum(j.claim.id[0] == source for j in others) for source in sources), default=1)
    drawn.update_xaxes(title="claims without a number", visible=True, showticklabels=False, ticks="", row=2, col=1)
    drawn.update_xaxes(range=[-0.6, most - 0.4], showgrid=False, zeroline=False, row=2, col=1)
    drawn.update_yaxes(
        categoryorder="array", categoryarray=sources[::-1], range=[-0.8, len(sources) - 0.5], row=2, col=1
    )
    drawn.update_yaxes(automargin=True, tickfont={"size": 12})
    height = round(23 * sum(heights) + 190)
    legend = {"yref": "container", "y": 1 - 44 / height, "yanchor": "top", "xref": "container", "x": 0.01}
    drawn.update_yaxes(range=[-0.7, len(numbers) - 0.3], row=1, col=1)
    return drawn.update_layout(
        template=TEMPLATE, title={"text": title, "y": 1 - 14 / height}, height=height, legend=legend, margin_t=84
    )


def straight_through(x: Tensor, rounded: Tensor, slope: Tensor) -> go.Figure:
    """Draw a rounded value and, below it, its true slope and the one that training uses instead.

    Args:
        x: `(n,)` real values in order.
        rounded: `(n,)` what they become.
        slope: `(n,)` the gradient that training uses.
    """
    titles = ("Forward: a staircase, flat nearly everywhere", "Backward: the slope that training uses instead")
    drawn = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=titles)
    drawn.add_scatter(x=x.numpy(), y=x.numpy(), name="x", line={"color": GREY, "dash": "dot"}, row=1, col=1)
    drawn.add_scatter(x=x.numpy(), y=rounded.numpy(), name="x̂", line={"color": BLUE, "width": 2.5}, row=1, col=1)
    true = {"color": VERMILLION, "dash": "dash", "width": 2.5}
    drawn.add_scatter(x=x.numpy(), y=torch.zeros_like(x).numpy(), name="true slope", line=true, row=2, col=1)
    used = {"color": GREEN, "width": 2.5}
    drawn.add_scatter(x=x.numpy(), y=slope.numpy(), name="straight-through", line=used, row=2, col=1)
    drawn.update_yaxes(title="x̂", row=1, col=1)
    drawn.update_yaxes(title="slope", range=[-0.15, 1.25], row=2, col=1)
    drawn.update_xaxes(title="x", row=2, col=1)
    return drawn.update_layout(template=TEMPLATE, height=460, margin_t=84, legend={"y": 1.09})
