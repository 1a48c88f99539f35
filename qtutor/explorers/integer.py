"""IntegerExplorer: one output of a converted layer, from the codes that go in to the code that comes out."""

import math
import re
from dataclasses import astuple, dataclass
from typing import Any

from qtutor.explorers.explorer import Explorer, Stops, every
from qtutor.plots import look
from qtutor.words import first_line

import ipywidgets
import plotly.graph_objects as go
import torch
from torch import Tensor, nn
from torch.nn import functional

_AXES = ("depth", "row", "column")
_MOST = 48  # of rows of a heatmap: of more, evenly spaced ones are drawn
_WRITTEN = 36  # the most cells that have room for their numbers
_JUDGED = 100_000  # about how many codes, in whole samples, show how a kernel rounds
_POINTS = 300  # the most points of the running sum


@dataclass(frozen=True, eq=False)
class IntegerResult:
    """Each step from the codes of a patch to the code of an output.

    Attributes:
        patch: `(channels, *kernel)` input codes q_x; in the padding they are z_x, which stands for 0.
        weights: `(channels, *kernel)` weight codes q_w.
        products: `(channels, *kernel)` (q_x - z_x)(q_w - z_w).
        raw: the sum of q_x q_w, as if there were no zero points.
        correction: what the zero points add to it.
        accumulator: the sum of the products, in INT32.
        bias: in units of s_x s_w, as the kernel adds it.
        multiplier: M = s_x s_w / s_y.
        scaled: M (accumulator + bias).
        rounded: that, rounded, plus z_y.
        low: what the clamp lets through at least: 0, or z_y behind a ReLU.
        high: what it lets through at most.
        walked: the code in which these steps end.
        code: the code in the layer's own `int_repr`.
    """

    patch: Tensor
    weights: Tensor
    products: Tensor
    raw: int
    correction: int
    accumulator: int
    bias: float
    multiplier: float
    scaled: float
    rounded: int
    low: int
    high: int
    walked: int
    code: int


class IntegerLayer:
    """A converted layer with an input, in integers; a linear layer is a convolution without places.

    Attributes:
        codes: `(samples, channels, *places)` input codes, padded.
        weights: `(outputs, channels per group, *kernel)` weight codes.
        outputs: `(samples, outputs, *places)` the codes that the layer itself gives.
        zero_point: of the input.
        weight_zero_points: `(outputs,)`.
        multipliers: `(outputs,)` M = s_x s_w / s_y.
        biases: `(outputs,)` in units of s_x s_w; rounded, if that is how the layer's kernel adds them.
        output_zero_point: of the output.
        low, high: what the clamp lets through.
    """

    def __init__(self, layer: nn.Module, x: Tensor):
        kind = _kind(layer)
        if not (isinstance(x, Tensor) and x.is_quantized):
            given = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"IntegerExplorer needs the quantized tensor that goes into the layer, got {given}: a forward "
                "pre-hook on the layer catches it while the model runs"
            )
        if x.numel() == 0:
            raise ValueError(f"IntegerExplorer: the input of shape {tuple(x.shape)} is empty")
        try:
            with torch.no_grad():
                output = layer.forward(x)  # and no hooks, which may do more than the layer
                weight, bias = layer.weight(), layer.bias() if callable(layer.bias) else layer.bias
        except (RuntimeError, ValueError) as error:
            said = first_line(error)
            raise ValueError(f"{kind} cannot be walked through on an input of {tuple(x.shape)}: {said}") from error
        self.weights = weight.int_repr().long()
        codes, self.outputs = x.int_repr().long(), output.int_repr().long()
        self.zero_point, self.output_zero_point = x.q_zero_point(), output.q_zero_point()
        self._stride = self._dilation = ()
        groups = 1
        if kind.startswith("Linear"):
            codes, self.outputs = codes.flatten(0, -2), self.outputs.flatten(0, -2)
        elif "Transpose" in kind:
            groups = layer.groups
            codes = self._spread(codes, layer)
            self.weights = _turned(self.weights, groups)
        else:
            groups, self._stride, self._dilation = layer.groups, layer.stride, layer.dilation
            codes = self._pad(codes, layer)
        self.codes = codes
        self._step = len(self.weights) // groups  # outputs that see the same channels
        count = len(self.weights)
        if weight.qscheme() == torch.per_tensor_affine:
            scales = torch.full((count,), weight.q_scale(), dtype=torch.float64)
            self.weight_zero_points = torch.full((count,), weight.q_zero_point())
        else:
            scales, self.weight_zero_points = weight.q_per_channel_scales(), weight.q_per_channel_zero_points().long()
        units = x.q_scale() * scales.double()
        self.multipliers = units / output.q_scale()
        info = torch.iinfo(output.int_repr().dtype)
        self.low, self.high = max(info.min, self.output_zero_point if "ReLU" in kind else info.min), info.max
        exact = (torch.zeros(count) if bias is None else bias.detach()).double() / units
        self.biases = self._as_kernel(exact)

    def _as_kernel(self, exact: Tensor) -> Tensor:
        """Biases with a fraction, or rounded: kernels differ, and what comes out tells which it was."""
        codes, outputs = (values[: math.ceil(_JUDGED / values[0].numel())] for values in (self.codes, self.outputs))
        x = (codes - self.zero_point).double()
        weights = (self.weights - _along(self.weight_zero_points, self.weights, 0)).double()  # sums stay exact
        convolve = (functional.linear, functional.conv1d, functional.conv2d, functional.conv3d)[len(self._stride)]
        how = {"stride": self._stride, "dilation": self._dilation, "groups": len(weights) // self._step}
        sums = convolve(x, weights, **(how if self._stride else {}))

        def wrong(biases: Tensor) -> int:
            scaled = _along(self.multipliers, sums, 1) * (sums + _along(biases, sums, 1))
            return int(((scaled.round() + self.output_zero_point).clamp(self.low, self.high) != outputs).sum())

        return min(exact, exact.round(), key=wrong)

    def _pad(self, codes: Tensor, layer: nn.Module) -> Tensor:
        sides = [size for size in reversed(layer.padding) for _ in range(2)]
        if layer.padding_mode != "zeros":
            return functional.pad(codes.double(), sides, mode=layer.padding_mode).long()
        return functional.pad(codes, sides, value=self.zero_point)

    def _spread(self, codes: Tensor, layer: nn.Module) -> Tensor:
        """The input of an ordinary convolution that does the same: steps apart, and padded on all sides."""
        places = codes.dim() - 2
        self._stride, self._dilation = (1,) * places, layer.dilation
        for axis, stride in enumerate(layer.stride, start=2):
            size = codes.shape[axis]
            shape = [*codes.shape]
            shape[axis] = (size - 1) * stride + 1
            apart = codes.new_full(shape, self.zero_point)
            apart.index_copy_(axis, torch.arange(size) * stride, codes)
            codes = apart
        sides = []
        for size, dilation, padding, more in zip(
            layer.kernel_size, layer.dilation, layer.padding, layer.output_padding, strict=True
        ):
            side = dilation * (size - 1) - padding
            sides = [side, side + more, *sides]
        return functional.pad(codes, sides, value=self.zero_point)

    def walk(self, sample: int, channel: int, *place: int) -> IntegerResult:
        """Compute one output, step by step."""
        weights = self.weights[channel]
        first = channel // self._step * len(weights)
        patch = self.codes[sample, first : first + len(weights)]
        kernel = zip(place, self._stride, self._dilation, weights.shape[1:], strict=True)
        for axis, (at, stride, dilation, size) in enumerate(kernel, start=1):
            patch = patch.narrow(axis, at * stride, dilation * (size - 1) + 1)
            patch = patch.index_select(axis, torch.arange(size) * dilation)
        products = (patch - self.zero_point) * (weights - self.weight_zero_points[channel])
        raw, accumulator = int((patch * weights).sum()), int(products.sum())
        bias, multiplier = float(self.biases[channel]), float(self.multipliers[channel])
        scaled = multiplier * (accumulator + bias)
        rounded = round(scaled) + self.output_zero_point
        return IntegerResult(
            patch=patch,
            weights=weights,
            products=products,
            raw=raw,
            correction=accumulator - raw,
            accumulator=accumulator,
            bias=bias,
            multiplier=multiplier,
            scaled=scaled,
            rounded=rounded,
            low=self.low,
            high=self.high,
            walked=min(max(rounded, self.low), self.high),
            code=int(self.outputs[(sample, channel, *place)]),
        )


def _along(values: Tensor, other: Tensor, axis: int) -> Tensor:
    """A vector that broadcasts along one axis of another tensor."""
    return values.view([-1 if i == axis else 1 for i in range(other.dim())])


def _kind(layer: Any) -> str:
    """The name of the layer's class, if it is a converted one that can be walked through."""
    name = next((c.__name__ for c in type(layer).__mro__ if c.__module__.startswith("torch.ao.nn")), "")
    fits = re.fullmatch(r"Linear(ReLU)?|Conv(ReLU|Transpose)?[123]d", name)
    dynamic = any(".dynamic" in c.__module__ for c in type(layer).__mro__)  # whose activations stay in float
    if not fits or dynamic or not callable(getattr(layer, "weight", None)):
        raise TypeError(
            "IntegerExplorer needs a converted convolution or linear layer, with weights, input and output in "
            f"integers, got {type(layer).__name__}: pass for example quantized.get_submodule(name), where quantized "
            "is what quantize_static gave in the eager or FX flow"
        )
    return name


def _turned(weights: Tensor, groups: int) -> Tensor:
    """`(inputs, outputs per group, *kernel)` of a transposed convolution, as an ordinary one has them."""
    weights = weights.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return weights.flip([*range(2, weights.dim())])


class IntegerExplorer(Explorer):
    """Walk through the integers of one output of a converted layer.

    Args:
        layer: a linear layer or convolution that the eager or FX flow converted, from any model.
        x: the quantized tensor that goes into it.
        start: where controls start, by name, such as `channel=3`.

    Controls:
        sample: of the batch, from 0; of a linear layer's input of several dimensions, the row among all rows.
        channel: the output channel or feature, from 0.
        depth, row, column: the place in the output, each from 0. A linear layer has none, a 1-d convolution `column`, a
            2-d one `row` too, and only a 3-d one `depth`.

    Attributes:
        layer: the layer and `x` in integers.

    Raises:
        TypeError: `layer` is not such a layer, or `x` not a quantized tensor.
        ValueError: `x` is empty, the layer cannot take it, or a control cannot start there.
    """

    def __init__(self, layer: nn.Module, x: Tensor, **start: Any):
        self.layer = IntegerLayer(layer, x)
        shape = self.layer.outputs.shape
        names = ("sample", "channel", *_AXES[len(_AXES) - len(shape) + 2 :])
        middle = [0, 0, *(size // 2 for size in shape[2:])]
        controls = {
            name: ipywidgets.IntSlider(value, 0, size - 1, description=name.capitalize())
            for name, size, value in zip(names, shape, middle, strict=True)
        }
        super().__init__(controls, _figure(self.layer, len(shape) - 2), start)

    def compute(self, state: Any) -> IntegerResult:
        return self.layer.walk(*astuple(state))

    def say(self, state: Any, result: IntegerResult) -> str:
        layer = self.layer
        bias = f"{result.bias:+,.0f}" if result.bias == round(result.bias) else f"{result.bias:+,.1f}"
        zeros = f"the zero points {result.correction:+,}" if layer.zero_point or layer.weight_zero_points.any() else ""
        summed = f"q_x q_w give {result.raw:,}, {zeros}: in all " if zeros else "give "
        ended = f"{round(result.scaled):,} + {layer.output_zero_point} = {result.rounded:,}"
        clamped = "" if result.walked == result.rounded else f", clamped to {result.low} ... {result.high}"
        if result.walked == result.code:
            verdict = f"{result.code}, and so does the layer's own int_repr"
        else:
            verdict = f"{result.walked}; the layer's own kernel rounds or saturates otherwise and gives {result.code}"
        return (
            f"{result.products.numel():,} products {summed}{result.accumulator:,} in INT32. Bias {bias}. "
            f"Times M = {result.multiplier:.6f} is {result.scaled:,.2f}, rounded, plus z: {ended}{clamped}. "
            f"The steps end on {verdict}."
        )

    def stops(self) -> Stops:
        few = {"sample": 2, "channel": 4}
        return {
            name: range(0, control.max + 1, math.ceil((control.max + 1) / few.get(name, 8)))
            for name, control in self.controls.items()
        }

    def draw(self, result: IntegerResult) -> None:
        state, layer = self.state, self.layer
        places, mark, patch, weights, products, total, real, code = self.figure.data
        if layer.outputs.dim() == 2:
            shown, place = layer.outputs[state.sample], state.channel
        else:
            shown, place = layer.outputs[state.sample, state.channel], state.column
        if shown.dim() == 3:
            shown = shown[state.depth]
        image = _image(shown)
        row, column = divmod(place, image.shape[1]) if shown.dim() == 1 else (state.row, state.column)
        rows, _ = every(len(image), _MOST, row)
        places.z, places.y = image[rows].numpy(), rows.numpy()
        mark.x, mark.y = [column], [row]
        centred = result.patch - layer.zero_point, result.weights - layer.weight_zero_points[state.channel]
        for trace, values in zip((patch, weights, products), (*centred, result.products), strict=True):
            image = _image(values)
            trace.z = image[:: math.ceil(len(image) / _MOST)].numpy()
        sums = torch.cat([torch.zeros(1).long(), result.products.flatten().cumsum(0)])
        added, _ = every(len(sums), _POINTS, len(sums) - 1)
        total.x, total.y = added.numpy(), sums[added].numpy()
        end = result.scaled + layer.output_zero_point
        real.x, code.x = [end], [result.code]
        real.y, code.y = [1], [0]  # a property that one trace gets, the page takes from those that do not
        real.text, code.text = [f"{end:.2f}"], [f"code {result.code}"]
        self.figure.layout.xaxis6.range = [min(-25, end - 40), max(280, end + 40)]


def _image(values: Tensor) -> Tensor:
    """Values in rows and columns: a row a channel, of one channel as its kernel is; NaN where there is no value."""
    if values.dim() < 2:  # features
        values = values.flatten().float()
        columns = 1 if len(values) == 1 else 8 if len(values) <= 64 else 16 if len(values) <= 512 else 32
        return functional.pad(values, (0, -len(values) % columns), value=math.nan).view(-1, columns)
    if values.dim() == 2:
        return values.float()
    return (values[0].flatten(0, -2) if len(values) == 1 else values.flatten(1)).float()


def _figure(layer: IntegerLayer, places: int) -> go.Figure:
    """Draw what no control changes, and leave open what the walk fills in."""
    titles = (
        "Codes that come out" if places else "Codes of all outputs",
        "q<sub>x</sub> − z<sub>x</sub>",
        "×   q<sub>w</sub> − z<sub>w</sub>",
        "=   products",
        "They add up in INT32",
        "(sum + bias) × M + z, rounded and clamped",
    )
    specs = [[{}, {}, {}, {}], [{"colspan": 2}, None, {"colspan": 2}, None]]
    spacing = {"horizontal_spacing": 0.06, "vertical_spacing": 0.2, "row_heights": [3, 2]}
    figure = look.panels(2, 4, titles, specs=specs, **spacing)
    bare = {"showscale": False, "hovertemplate": "%{z}<extra></extra>", "xgap": 1, "ygap": 1}
    most = max(layer.low + 1, int(layer.outputs.max()))
    figure.add_heatmap(colorscale="Blues", zmin=layer.low, zmax=most, **bare, row=1, col=1)
    marker = {"symbol": "square-open", "size": 16, "color": look.VERMILLION, "line": {"width": 3}}
    figure.add_scatter(mode="markers", marker=marker, hoverinfo="skip", row=1, col=1)
    signed = {"colorscale": "PuOr", "zmid": 0, **bare}
    if layer.weights[0].numel() <= _WRITTEN:
        signed["texttemplate"] = "%{z:d}"
    reach = max(1, int((layer.codes - layer.zero_point).abs().max()))
    figure.add_heatmap(zmin=-reach, zmax=reach, **signed, row=1, col=2)
    figure.add_heatmap(zmin=-128, zmax=128, **signed, row=1, col=3)
    figure.add_heatmap(**signed, row=1, col=4)
    figure.add_scatter(mode="lines", line={"color": look.BLUE, "shape": "hv", "width": 2}, row=2, col=1)
    for colour, symbol, side in ((look.VERMILLION, "diamond", "top center"), (look.BLUE, "circle", "bottom center")):
        marker = {"color": colour, "symbol": symbol, "size": 13}
        figure.add_scatter(mode="markers+text", marker=marker, textposition=side, cliponaxis=False, row=2, col=3)
    figure.add_vrect(
        x0=layer.low, x1=layer.high, fillcolor=look.GREEN, opacity=0.1, line_width=0, row=2, col=3, layer="below"
    )
    figure.update_layout(showlegend=False, height=560, margin={"t": 56})
    figure.update_annotations(yshift=8)
    _name_axes(figure, layer, places)
    return figure


def _name_axes(figure: go.Figure, layer: IntegerLayer, places: int) -> None:
    hidden = {"showticklabels": False, "ticks": "", "showgrid": False, "zeroline": False}
    figure.update_xaxes(row=1, **hidden)
    figure.update_yaxes(row=1, autorange="reversed", **hidden)
    outputs = ("column", "row") if places > 1 else ("position", "") if places else ("output feature", "")
    inputs = ("place in the kernel", "input channel") if places else ("input feature", "")
    if places and layer.weights.shape[1] == 1:
        inputs = ("column of the kernel", "row")
    for column, (across, down) in enumerate((outputs, inputs, (inputs[0], ""), (inputs[0], "")), start=1):
        figure.update_xaxes(title=across, row=1, col=column)
        figure.update_yaxes(title=down, row=1, col=column)
    figure.update_xaxes(title="products added", row=2, col=1)
    figure.update_yaxes(title="sum", row=2, col=1)
    figure.update_xaxes(title="output code (shaded: what the clamp lets through)", row=2, col=3)
    steps = {"tickvals": [1, 0], "ticktext": ["before", "after"], "range": [-0.9, 1.9], "showgrid": False}
    figure.update_yaxes(row=2, col=3, **steps)
