"""A result in, a plotly figure out: pure functions, one look.

Colours are Okabe and Ito's, which colour-blind readers tell apart; every series also differs in
dash, marker or position. Backgrounds are opaque, so a figure reads alike in light and dark themes.
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from qtutor.affine import QParams, QuantizationError, dequantize, fake_quantize

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
            text=["", f"  {values[name]:.2f}x " + ("better" if better else "worse")],
            textposition="middle right",
            line={"color": BLUE if better else VERMILLION, "width": 4},
            marker={"size": [0, 14], "symbol": "circle" if better else "x"},
            cliponaxis=False,
        )
    most = max(max(values.values()), 1) * 3
    least = min(min(values.values()), 1) / 1.3
    ticks = [t for t in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if least <= t <= most]
    drawn.add_vline(x=1, line={"color": INK, "width": 1})
    drawn.update_xaxes(
        type="log", range=[math.log10(least), math.log10(most)], tickvals=ticks, ticktext=[f"{t:g}" for t in ticks]
    )
    return drawn.update_layout(showlegend=False, margin_l=170)


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
