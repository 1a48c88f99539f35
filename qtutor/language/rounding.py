"""A linear layer whose weight and inputs are rounded, after a change of coordinates that alone would change nothing.

    y = W x = (W S R) (R' S^-1 x)         S positive factors of the channels, R a rotation: R R' = 1
    what runs:  round(W S R) round(R' S^-1 x)

Source: Xiao et al. 2023, "SmoothQuant", arXiv 2211.10438, equation 3 (S); Ashkboos et al. 2024, "QuaRot",
arXiv 2404.00456, section 4 (R). Both move S and R into the layers before where they can, at no cost at run time.
"""

from collections.abc import Callable

from qtutor.language.cache import Rounding
from qtutor.language.calibrating import linear_layers

from torch import Tensor, nn


class RoundedLinear(nn.Module):
    """A linear layer of which the weight is rounded once and the input at every call.

    Args:
        linear: the layer; it is left as it is.
        weight: rounds `(out, in)`, along the last dimension; None leaves it.
        inputs: rounds `(*, in)`; None leaves it.
        factors: `(in,)`, what inputs are divided by and the weight is multiplied with.
        rotation: `(in, in)`, orthogonal.

    Raises:
        ValueError: factors are not positive, or a shape is not that of the layer.
    """

    def __init__(
        self,
        linear: nn.Linear,
        weight: Rounding | None = None,
        inputs: Rounding | None = None,
        factors: Tensor | None = None,
        rotation: Tensor | None = None,
    ):
        super().__init__()
        width = linear.in_features
        if factors is not None and (factors.shape != (width,) or not bool((factors > 0).all())):
            raise ValueError(f"factors are {width} positive numbers, one for each input, not {tuple(factors.shape)}")
        if rotation is not None and rotation.shape != (width, width):
            raise ValueError(f"a rotation of {width} inputs is ({width}, {width}), got {tuple(rotation.shape)}")
        self.factors, self.rotation, self.inputs = factors, rotation, inputs
        turned = linear.weight.detach()
        if factors is not None:
            turned = turned * factors
        if rotation is not None:
            turned = turned @ rotation
        self.weight = nn.Parameter(turned if weight is None else weight(turned), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.factors is not None:
            x = x / self.factors
        if self.rotation is not None:
            x = x @ self.rotation
        if self.inputs is not None:
            x = self.inputs(x)
        return nn.functional.linear(x, self.weight, self.bias)


def replace_linears(block: nn.Module, make: Callable[[str, nn.Linear], nn.Module]) -> None:
    """Put what `make` returns for the name and the layer in the place of each linear layer of a block."""
    for name, linear in linear_layers(block).items():
        block.set_submodule(name, make(name, linear))
