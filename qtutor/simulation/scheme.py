"""How a model is rounded, and what is done beside it."""

from dataclasses import dataclass

from qtutor.affine import grid


@dataclass(frozen=True)
class Scheme:
    """How layers are rounded.

    Attributes:
        bits: width of weights and activations.
        weights: "tensor" or "channel": what shares a scale; weights are symmetric.
        activations: "minmax" or "mse": which range of an activation is represented.
    """

    bits: int = 8
    weights: str = "tensor"
    activations: str = "minmax"

    def __post_init__(self):
        grid(self.bits)
        for name, known in (("weights", ("tensor", "channel")), ("activations", ("minmax", "mse"))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")

    def __str__(self) -> str:
        return f"{self.bits} bits, weights per {self.weights}, {self.activations} activations"


@dataclass(frozen=True)
class Configuration(Scheme):
    """A scheme, the repairs around it, and the layers that it leaves alone.

    Attributes:
        equalized: whether `repair.equalize` comes first.
        bias_corrected: whether `repair.correct_bias` comes last.
        keep_float: names of layers that stay in floating point.
    """

    equalized: bool = False
    bias_corrected: bool = False
    keep_float: tuple[str, ...] = ()

    def __str__(self) -> str:
        repairs = ", equalized" if self.equalized else ""
        repairs += ", bias corrected" if self.bias_corrected else ""
        kept = f"; {len(self.keep_float)} in float: {', '.join(self.keep_float)}" if self.keep_float else ""
        return f"{super().__str__()}{repairs}{kept}"
