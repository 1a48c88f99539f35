"""What goes in: images, and the values of tensors."""

from collections.abc import Sequence

from qtutor.plots.look import BLUE, GREEN, INK, VERMILLION, panels

import plotly.graph_objects as go
import torch
from torch import Tensor


def images(pictures: Tensor, titles: Sequence[str], columns: int = 10) -> go.Figure:
    """Draw small pictures in rows.

    Args:
        pictures: `(N, 1 or 3, height, width)` in [0, 1].
        titles: N short titles.
    """
    rows = -(-len(pictures) // columns)
    drawn = panels(rows, columns, titles, horizontal_spacing=0.01, vertical_spacing=0.16 / rows)
    pixels = (pictures.expand(-1, 3, -1, -1).permute(0, 2, 3, 1) * 255).to(torch.uint8).numpy()  # (N, H, W, 3)
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        drawn.add_trace(go.Image(z=picture, hoverinfo="skip"), row=row + 1, col=column + 1)
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False)
    return drawn.update_layout(height=130 * rows + 20, margin={"l": 8, "r": 8, "t": 32, "b": 8})


def distributions(tensors: dict[str, Tensor], title: str, *, bins: int = 100) -> go.Figure:
    """Draw histograms side by side, each on its own axis; exact zeros are left out.

    Args:
        tensors: by name, finite values of any shape.
        title: what the picture shows.
        bins: of each histogram.
    """
    drawn = panels(1, len(tensors), list(tensors), horizontal_spacing=0.08)
    for column, (tensor, colour) in enumerate(zip(tensors.values(), (BLUE, VERMILLION, GREEN), strict=False), start=1):
        edges, counts = histogram(tensor, bins)
        line = {"shape": "hv", "color": colour, "width": 1.5}
        place = {"x": edges[:-1].numpy(), "y": (counts / tensor.numel()).numpy(), "row": 1, "col": column}
        drawn.add_scatter(fill="tozeroy", mode="lines", line=line, **place)
        drawn.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
    drawn.update_xaxes(title="value")
    drawn.update_yaxes(title="share of all values", rangemode="tozero", col=1)
    return drawn.update_layout(title=title, showlegend=False, margin_t=96)


def histogram(tensor: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Return the `(bins + 1,)` edges of even bins from the lowest to the highest value but 0, and their counts."""
    values = tensor[tensor != 0]
    edges = torch.linspace(float(values.min()), float(values.max()), bins + 1)
    return edges, values.histc(bins, float(edges[0]), float(edges[-1]))
