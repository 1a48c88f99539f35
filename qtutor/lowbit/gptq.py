"""GPTQ: round a weight column by column, and let the columns to come mend what each rounding broke.

A layer y = W x is to give the same outputs on the inputs X that it sees. Row by row, with d = w - q,

    loss = mean of (d x)^2 = d H d^T,    H = X^T X / n

Once column j is rounded, with error d_j, the columns to its right that are best for the loss move by
-d_j * [H^-1]_j,right / [H^-1]_jj, where H^-1 is that of the columns not yet rounded. One Cholesky factor
H^-1 = U^T U holds all of those inverses at once, and the rule becomes

    e_j = (w_j - q_j) / U_jj,    w_k <- w_k - e_j U_jk  for all k > j

Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", eq. 2 and algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qtutor.lowbit.checks import finite, group_size, matrix
from qtutor.lowbit.formats import Format

import torch
from torch import Tensor

Nearest = Callable[[Tensor], Tensor]
_CHUNK = 128  # columns whose errors are handed on one by one; to all further ones they go together
_TOKENS = 1024  # rows whose products are summed up in float32


@dataclass(frozen=True, eq=False)
class Steps:
    """What GPTQ did, column by column.

    Attributes:
        weight: `(out, in)` as it was given.
        turn: `(in,)` the columns in the order in which they were rounded.
        met: `(out, in)` what each weight had become when its turn came.
        rounded: `(out, in)` what it was rounded to.
        error: `(out, in)` float64, e_j: the error as it is handed on.
        factor: `(in, in)` float64, U, its rows and columns in the order of `turn`.
    """

    weight: Tensor
    turn: Tensor
    met: Tensor
    rounded: Tensor
    error: Tensor
    factor: Tensor

    def after(self, count: int) -> Tensor:
        """Return the `(out, in)` weight when `count` columns are rounded and their errors handed on."""
        done, rest = self.turn[:count], self.turn[count:]
        weight = self.weight.double()
        weight[:, rest] -= self.error[:, done] @ self.factor[:count, count:]
        weight[:, done] = self.rounded[:, done].double()
        return weight.float()


def hessian(inputs: Tensor) -> Tensor:
    """Return H = X^T X / n: how loud the inputs of a layer are, and which of them go together.

    Args:
        inputs: `(..., in)` what the layer reads.

    Returns:
        `(in, in)` float64; its diagonal is the mean square of each input. Products are summed up in float32 over
        1,024 rows and in float64 from there on.

    Raises:
        TypeError: `inputs` is no floating-point tensor.
        ValueError: it is empty or not finite.

    Example:
        >>> hessian(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).tolist()
        [[5.0, 1.0], [1.0, 2.0]]
    """
    rows = torch.atleast_2d(finite(inputs, "inputs", "hessian")).flatten(0, -2)
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in rows.split(_TOKENS):
        part = part if part.dtype == torch.float64 else part.float()
        total += part.T @ part
    return total / len(rows)


def layer_loss(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """Return what rounding a layer costs: the squared error of its outputs, summed over them, the mean over inputs.

    Raises:
        TypeError: a matrix is not a dense floating-point tensor.
        ValueError: shapes do not fit, or a value is not finite.

    Example:
        >>> layer_loss(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.5]]), torch.eye(2) * 4)
        1.0
    """
    weight, curvature = _checked(weight, hessian, "layer_loss")
    rounded = matrix(rounded, "rounded", "layer_loss")
    if rounded.shape != weight.shape:
        raise ValueError(f"layer_loss: weight has shape {tuple(weight.shape)} and rounded {tuple(rounded.shape)}")
    return float(_row_losses(weight, rounded, curvature).sum())


def gptq(
    weight: Tensor,
    hessian: Tensor,
    *,
    format: Format,
    damping: float = 0.01,
    order: bool = False,
) -> Tensor:
    """Round a weight so that the layer's outputs change least; a row that fares better plainly rounded is.

    So the loss on the inputs of the Hessian is never above that of rounding, and without correlations, H diagonal,
    the result is that of rounding: no column can mend the error of another.

    Args:
        weight: `(out, in)`.
        hessian: `(in, in)`, as `hessian` gives it.
        format: of the codes, such as `integers(4, group=64)` or `NF4`, with one scale a block. A scale is chosen when
            the turn comes to the first input of its block.
        damping: what is added to the diagonal of H, in units of its mean: against inputs that are silent or alike.
        order: begin with the loudest inputs instead of the first ("act-order"); all scales are chosen at the beginning.

    Returns:
        `(out, in)` float32, each weight a value that its block may take.

    Raises:
        TypeError: a matrix is not a dense floating-point tensor.
        ValueError: shapes do not fit, a value is not finite, blocks do not divide the inputs, a block has several
            scales, or H has no Cholesky factor with so little damping.
    """
    steps = gptq_steps(weight, hessian, format=format, damping=damping, order=order)
    curvature = hessian.detach().double()
    plain = format.round(steps.weight)
    fed, nearest = (_row_losses(steps.weight, rounded, curvature) for rounded in (steps.rounded, plain))
    return torch.where((fed < nearest)[:, None], steps.rounded, plain)


def gptq_steps(
    weight: Tensor,
    hessian: Tensor,
    *,
    format: Format,
    damping: float = 0.01,
    order: bool = False,
) -> Steps:
    """Return all steps of GPTQ, for one who wants to watch; `gptq` has the arguments and the errors."""
    weight, curvature = _checked(weight, hessian, "gptq")
    inputs = weight.shape[1]
    format = format.for_tensor(weight)
    size = group_size(format.block, inputs, "gptq")
    turn = curvature.diagonal().argsort(descending=True, stable=True) if order else torch.arange(inputs)
    factor = _factor(curvature[turn][:, turn], damping)
    left = weight[:, turn].T.double().contiguous()  # (in, out): what the columns have become, in the order of `turn`
    error, met, rounded = torch.zeros_like(left), torch.zeros_like(left).float(), torch.zeros_like(left).float()
    places, diagonal = turn.tolist(), factor.diagonal().tolist()

    first_grids = [_nearest(block, format) for block in weight.split(size, dim=1)] if order else []
    for start in range(0, inputs, size):
        nearest = None if order else _nearest(left[start : start + size].T.float(), format)
        for first in range(start, start + size, _CHUNK):
            last = min(first + _CHUNK, start + size)
            for j in range(first, last):
                met[j] = left[j]
                rounded[j] = (nearest or first_grids[places[j] // size])(met[j])
                error[j] = (left[j] - rounded[j]) / diagonal[j]
                left[j + 1 : last].addr_(factor[j, j + 1 : last], error[j], alpha=-1)
            left[last:] -= factor[first:last, last:].T @ error[first:last]
    back = turn.argsort()
    met, rounded, error = (x[back].T.contiguous() for x in (met, rounded, error))
    return Steps(weight, turn, met, rounded, error, factor)


def _nearest(block: Tensor, format: Format) -> Nearest:
    """What rounds a column of `(out, block)` weights that share a scale in each row, chosen now; ties go down."""
    values = format.values(block).float().sort(dim=1).values  # (out, values)
    middles = (values[:, 1:] + values[:, :-1]) / 2
    return lambda column: values.gather(1, torch.searchsorted(middles, column[:, None]))[:, 0]


def _checked(weight: Tensor, hessian: Tensor, caller: str) -> tuple[Tensor, Tensor]:
    weight = matrix(weight, "weight", caller).float()
    curvature = matrix(hessian, "hessian", caller).double()
    wanted = (weight.shape[1], weight.shape[1])
    if curvature.shape != wanted:
        raise ValueError(
            f"{caller}: a weight of shape {tuple(weight.shape)} needs a Hessian {wanted}, got {tuple(curvature.shape)}"
        )
    return weight, curvature


def _factor(curvature: Tensor, damping: float) -> Tensor:
    """U of H^-1 = U^T U, upper triangular."""
    mean = float(curvature.diagonal().mean())
    if not damping >= 0:
        raise ValueError(f"gptq: damping must not be negative, got {damping}")
    if mean == 0:  # silent inputs: nothing can be mended
        return torch.eye(len(curvature), dtype=torch.float64)
    damped = curvature + damping * mean * torch.eye(len(curvature), dtype=torch.float64)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError:
        raise ValueError(
            f"gptq: the Hessian has no Cholesky factor with damping={damping}: some inputs are silent or repeat "
            "others. Raise damping, or give more inputs"
        ) from None


def _row_losses(weight: Tensor, rounded: Tensor, curvature: Tensor) -> Tensor:
    """The loss of each row, (out,)."""
    lost = weight.double() - rounded.double()
    return (lost @ curvature * lost).sum(dim=1)
