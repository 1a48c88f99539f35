"""The tensors in what a model takes and gives, the classes that its scores choose, and how far scores are apart."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from qtutor.models.operators import kind_of

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

NO_CLASS = torch.iinfo(torch.int64).min
"""What is chosen where a score is NaN: no label is that."""

_ROWS = 64  # rows of scores that are compared at once: those of a large vocabulary are large


def tensors_in(tree: Any, records: bool = True) -> list[Tensor]:
    """Return the tensors in nested containers, and in records, such as an output with attributes, if these count."""
    return [*_walk(tree, records)]


def copies(inputs: Any) -> Any:
    """Return inputs whose tensors are copies, into which a model may write."""
    return tree_map_only(Tensor, Tensor.clone, inputs)


def as_tuple(inputs: Any) -> tuple:
    """Return the inputs of one call, which may be given as one alone; `batches` reads all that people hand in."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def floats_in(tree: Any) -> list[Tensor]:
    """Return those that are floating-point, as dense ones."""
    return [tensor.to_dense() for tensor in tensors_in(tree) if tensor.is_floating_point()]


def scores_of(output: Any) -> Tensor | None:
    """Return the class scores in an output: the only floating-point tensor, or the one called logits or out."""
    if isinstance(output, Mapping):
        output = next((output[key] for key in ("logits", "out") if key in output), output)
    found = floats_in(getattr(output, "logits", output))
    return found[0] if len(found) == 1 else None


def kl_bits(exact: Tensor, other: Tensor) -> Tensor:
    """Return KL(p || q) in bits of each row of scores: the mean of log2(p / q) where p draws.

    Args:
        exact: `(..., classes)` scores of p: logits, or log-probabilities.
        other: scores of q, of the same shape.

    Returns:
        `(...)` float32, at least 0.

    Example:
        >>> kl = kl_bits(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
        >>> round(kl.item(), 4)  # (log2(0.5 / 0.25) + log2(0.5 / 0.75)) / 2
        0.2075
    """
    found = []
    for scores in zip(exact.flatten(0, -2).split(_ROWS), other.flatten(0, -2).split(_ROWS), strict=True):
        p, q = (part.float().log_softmax(-1) for part in scores)
        found.append((p.exp() * (p - q)).sum(-1).clamp(min=0) / math.log(2))
    return torch.cat(found).view(exact.shape[:-1])


def class_axis(scores: Tensor | None, labels: Any) -> int | None:
    """Return the axis of the classes in scores: the last, or axis 1 of a dense output; None if these are no classes.

    Of one score for each label the highest says nothing, whatever the label.

    Args:
        scores: `(*labels.shape, classes)`, or `(N, classes, ...)` where labels are `(N, ...)`.
        labels: whole numbers, one for each row of scores.
    """
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
    if scores is None or not whole or scores.dim() != labels.dim() + 1:
        return None
    for axis in (scores.dim() - 1, 1):
        if scores.shape[:axis] + scores.shape[axis + 1 :] == labels.shape and scores.shape[axis] > 1:
            return axis
    return None


def chosen(output: Any, labels: Tensor) -> Tensor | None:
    """Return the class of the highest score for each label, on the CPU, `NO_CLASS` where a score is NaN.

    None where `class_axis` finds no classes.
    """
    scores = scores_of(output)
    axis = class_axis(scores, labels)
    if axis is None:
        return None
    return scores.argmax(axis).masked_fill(scores.isnan().any(axis), NO_CLASS).cpu()


def accuracy(output: Any, labels: Tensor) -> float:
    """Return the share of labels at which the score is highest in one batch, for what `chosen` knows.

    `qtutor.benchmark.accuracy` is that of a model on a whole loader.
    """
    return float((chosen(output, labels) == labels.cpu()).double().mean())


def shape_of(output: Any) -> Any:
    """Return the shapes in an output, structured as it is."""
    if hasattr(output, "shape"):
        return tuple(output.shape)
    if isinstance(output, Mapping):
        return {key: shape_of(value) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return [shape_of(value) for value in output]
    return kind_of(output)


def _walk(tree: Any, records: bool, around: tuple[int, ...] = ()) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif id(tree) in around:  # a container may hold itself
        return
    elif isinstance(tree, (tuple, list, Mapping)):
        for each in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _walk(each, records, (*around, id(tree)))
    elif records and hasattr(tree, "__dict__") and not isinstance(tree, nn.Module) and not callable(tree):
        yield from _walk(vars(tree), records, (*around, id(tree)))
