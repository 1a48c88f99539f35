"""GranularityExplorer: one scale for a weight, for each channel or for each group of it, and what each costs."""

import math
from dataclasses import dataclass
from typing import Any

from qtutor.affine import QParams, fake_quantize, grid, quantize, sqnr
from qtutor.affine.checks import check_floats
from qtutor.explorers.explorer import EXACT_UP_TO, Explorer, Stops, every, toggles
from qtutor.observers import MinMaxObserver
from qtutor.plots import look
from qtutor.words import in_decibels, in_percent

import ipywidgets
import plotly.graph_objects as go
import torch
from torch import Tensor

SCALE_BYTES, ZERO_POINT_BYTES = 4, 1
"""What a float32 scale takes and, where the range is asymmetric, its zero point of at most 8 bits."""

FACTORS = tuple(2**n for n in range(8))

_FEWEST = 32  # the fewest channels of a large weight that still have a median worth the name
_DRAWN = 256  # the most channels drawn: of more, every second, third, ... is


@dataclass(frozen=True, eq=False)
class GranularityResult:
    """What a state does to a weight; a channel is an output channel.

    Attributes:
        qparams: one scale and zero point for each tensor, channel or group.
        low: `(channels,)` smallest weight of each channel.
        high: `(channels,)` largest weight of each channel.
        codes: `(channels,)` how many different codes the weights of each channel get.
        overall: SQNR of the whole weight in dB.
        per_channel: `(channels,)` SQNR of each channel in dB.
        scale_bytes: what the scales and zero points take.
        code_bytes: what the codes take.
    """

    qparams: QParams
    low: Tensor
    high: Tensor
    codes: Tensor
    overall: float
    per_channel: Tensor
    scale_bytes: int
    code_bytes: int

    @property
    def median(self) -> float:
        """SQNR of the median channel in dB; of two in the middle, the lower."""
        return float(self.per_channel.median())

    @property
    def worst(self) -> float:
        """SQNR of the worst channel in dB."""
        return float(self.per_channel.min())


class GranularityExplorer(Explorer):
    """Explore what shares a scale, on a weight of your own.

    Args:
        weight: finite, of 2 to 5 dimensions: of a linear layer, a convolution, an embedding, ... Of more than
            1,000,000 values, evenly spread output channels are explored.
        output_axis: the axis of the output channels, which the picture shows: 0, but 1 for a transposed convolution.
        start: where controls start, by name, such as `bits=4`.

    Controls:
        granularity: "tensor", "channel" or "group": what shares one scale.
        axis: per channel, the axis of the weight as it is given along which scales differ, from 0.
        group_size: per group, how many neighbouring weights of an output channel share a scale: a divisor, from 2, of
            how many the channel has.
        bits: 2 to 8.
        factor: what the widest channel of the weight is multiplied by: 1, 2, 4, 8, 16, 32, 64 or 128.
        symmetric: True or False: whether zero sits in the middle of each grid.

    Attributes:
        kept: the numbers of the output channels that are explored.
        output_axis: as it was given.

    Raises:
        TypeError: `weight` is not a dense floating-point tensor, or `output_axis` not a whole number.
        ValueError: `weight` is empty, holds NaN, infinity or more than 1e36, has less than 2 or more than 5 dimensions,
            or no such output axis; or a control cannot start there.
    """

    def __init__(self, weight: Tensor, *, output_axis: int = 0, **start: Any):
        name = type(self).__name__
        check_floats(weight, name, "pass layer.weight")
        shape = tuple(weight.shape)
        if not 2 <= weight.dim() <= 5:
            raise ValueError(f"{name} needs a weight of 2 to 5 dimensions, got one of shape {shape}")
        if type(output_axis) is not int:
            raise TypeError(f"{name}: output_axis must be a whole number, got {output_axis!r}")
        if not 0 <= output_axis < weight.dim():
            raise ValueError(f"{name}: output_axis={output_axis} is not an axis of a weight of shape {shape}")
        widest_range = 2 * FACTORS[-1] * weight.detach().to(torch.float32)
        if bad := int((~widest_range.isfinite()).sum()):
            raise ValueError(f"{name}: {bad} of {weight.numel()} weights are NaN, infinite or too large to turn up")
        if weight.numel() == 0:
            raise ValueError(f"{name}: the weight of shape {shape} is empty, there is nothing to quantize")
        rows = weight.detach().movedim(output_axis, 0)
        widest = int(rows.flatten(1).abs().amax(dim=1).argmax())
        step = min(math.ceil(weight.numel() / EXACT_UP_TO), max(1, len(rows) // _FEWEST))
        self.kept = torch.arange(widest % step, len(rows), step)
        self._weight = rows[self.kept].to(torch.float32).contiguous()  # these in front, wherever they were
        self.output_axis, self._channels = output_axis, len(rows)
        self._widest = widest // step  # the place in `kept` of the channel that the factor applies to
        size = self._weight[0].numel()
        sizes = [n for n in range(2, size + 1) if size % n == 0] or [1]
        axes = [(f"{axis} (size {size})", axis) for axis, size in enumerate(shape)]
        controls = {
            "granularity": toggles("A scale per", ["tensor", "channel", "group"], "5.5em"),
            "axis": ipywidgets.Dropdown(options=axes, value=output_axis, description="Scale axis"),
            "group_size": ipywidgets.SelectionSlider(
                options=sizes, value=min(sizes, key=lambda n: abs(n - 32)), description="Group size"
            ),
            "bits": ipywidgets.IntSlider(8, 2, 8, description="Bits"),
            "factor": ipywidgets.SelectionSlider(options=FACTORS, description="Turn up ×"),
            "symmetric": ipywidgets.Checkbox(False, description="Symmetric", indent=False),
        }
        self._shown, place = every(len(self._weight), _DRAWN, self._widest)
        super().__init__(controls, _figure(self.kept[self._shown], place), start)

    def compute(self, state: Any) -> GranularityResult:
        weight = self._weight.clone()
        weight[self._widest] *= state.factor
        channels, bits = len(weight), state.bits
        quant_min, quant_max = grid(bits)
        shared = {"quant_min": quant_min, "quant_max": quant_max, "symmetric": state.symmetric}
        if state.granularity == "group":
            observer, view = MinMaxObserver(group_size=state.group_size, **shared), weight.flatten(1)
            given = view.unflatten(1, (-1, state.group_size))  # (channels, groups, group_size)
        else:
            # Bringing the output axis to the front moved the axes before it one place back.
            axis = 0 if state.axis == self.output_axis else state.axis + (state.axis < self.output_axis)
            observer = MinMaxObserver(axis=axis if state.granularity == "channel" else None, **shared)
            given = view = weight
        observer.observe(view)
        qparams = observer.qparams()

        restored = fake_quantize(given, qparams).view_as(weight)
        codes = quantize(given, qparams).reshape(channels, -1).int() - quant_min
        codes += 2**bits * torch.arange(channels)[:, None]
        counts = torch.bincount(codes.flatten(), minlength=channels * 2**bits).view(channels, -1)
        rows = weight.flatten(1)
        return GranularityResult(
            qparams=qparams,
            low=rows.amin(dim=1),
            high=rows.amax(dim=1),
            codes=counts.count_nonzero(dim=1),
            overall=sqnr(weight, restored),
            per_channel=sqnr(weight, restored, axis=0),
            scale_bytes=qparams.scale.numel() * (SCALE_BYTES + (0 if state.symmetric else ZERO_POINT_BYTES)),
            code_bytes=math.ceil(weight.numel() * bits / 8),
        )

    def say(self, state: Any, result: GranularityResult) -> str:
        scales = result.qparams.scale.numel()
        shared = {
            "tensor": "One scale for the tensor",
            "channel": f"One scale per channel along axis {state.axis}, {scales:,} in all",
            "group": f"One scale per group of {state.group_size}, {scales:,} in all",
        }[state.granularity]
        widest = int(self.kept[self._widest])
        turned = f"channel {widest} times {state.factor}" if state.factor > 1 else "no channel turned up"
        quality = (
            f"overall {in_decibels(result.overall)}, median output channel {in_decibels(result.median)}, "
            f"worst {in_decibels(result.worst)}"
        )
        channels, given = len(self.kept), self._channels
        sampled = f" All figures are those of {channels:,} of the {given:,} channels." if channels < given else ""
        return (
            f"{shared}, {state.bits} bits, {turned}: SQNR {quality}. The median output channel uses "
            f"{int(result.codes.median())} of {2**state.bits} codes. Scales take {result.scale_bytes:,} bytes, "
            f"{in_percent(result.scale_bytes / result.code_bytes)} on top of {result.code_bytes:,} bytes of codes."
            f"{sampled}"
        )

    def stops(self) -> Stops:
        sizes = self.controls["group_size"].options
        return {
            "granularity": ("tensor", "channel", "group"),
            "axis": (self.controls["axis"].value,),
            "group_size": sizes[:: math.ceil(len(sizes) / 4)],
            "bits": (2, 3, 4, 6, 8),
            "factor": FACTORS,
            "symmetric": (False, True),
        }

    def draw(self, result: GranularityResult) -> None:
        state, shown = self.state, self._shown
        self.controls["axis"].disabled = state.granularity != "channel"
        self.controls["group_size"].disabled = state.granularity != "group"
        ranges, codes, channels, overall, median = self.figure.data
        ranges.base, ranges.y = result.low[shown].numpy(), (result.high - result.low)[shown].numpy()
        codes.y = result.codes[shown].numpy()
        channels.y = result.per_channel[shown].nan_to_num(posinf=math.nan).numpy()
        overall.y, median.y = ([None if math.isinf(level) else level] * 2 for level in (result.overall, result.median))
        overall.text, median.text = ["", f"overall {result.overall:.1f}"], ["", f"median {result.median:.1f}"]


def _figure(channels: Tensor, widest: int) -> go.Figure:
    """Draw what no control changes, and leave the heights of the bars and lines open."""
    figure = look.panels(
        1, 3, ("Range of the weights (▾ turned up)", "Codes in use", "SQNR of each channel"), horizontal_spacing=0.075
    )
    for column, (name, colour) in enumerate((("range", look.BLUE), ("codes", look.GREEN), ("SQNR", look.GREY)), 1):
        colours = [look.VERMILLION if place == widest else colour for place in range(len(channels))]
        figure.add_bar(x=channels.numpy(), name=name, marker_color=colours, marker_line_width=0, row=1, col=column)
    ends = [int(channels[0]) - 0.5, int(channels[-1]) + 0.5]
    for name, dash, place in (("overall", "solid", "top right"), ("median", "dash", "bottom right")):
        label = {"mode": "lines+text", "textposition": place, "textfont": {"color": look.INK}, "cliponaxis": False}
        line = {"color": look.INK, "dash": dash, "width": 2}
        figure.add_scatter(x=ends, name=name, line=line, row=1, col=3, **label)
    figure.update_layout(showlegend=False, bargap=0.15, margin={"t": 60, "r": 104})
    figure.update_annotations(yshift=12)
    for axis in ("x", "x2", "x3"):
        place = {"x": int(channels[widest]), "xref": axis, "y": 1, "yref": "paper", "yanchor": "bottom"}
        figure.add_annotation(text="▾", showarrow=False, font={"color": look.VERMILLION, "size": 18}, **place)
    figure.update_xaxes(title="output channel", range=ends)
    figure.update_yaxes(title="weight", row=1, col=1)
    figure.update_yaxes(title="different codes", rangemode="tozero", row=1, col=2)
    return figure.update_yaxes(title="dB", rangemode="tozero", row=1, col=3)
