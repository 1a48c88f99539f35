"""Batches as people hand them in, without labels, and fit to calibrate with.

A batch is a tensor, or a pair that is always `(inputs, labels)`. Several inputs are a tuple inside the
pair, `((a, b), labels)`, where the labels may be None. Where any model is run, a mapping stands for named
inputs, alone or in the pair.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def inputs_of(data: Iterable) -> Iterator[tuple[Tensor, ...]]:
    """Yield the inputs of each batch, checked, without the labels.

    Raises:
        TypeError: these are not batches, or an input is not a tensor.
        ValueError: an input is empty or not finite.
    """
    if isinstance(data, (Tensor, dict)) or (isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor)):
        raise TypeError(
            f"calibration_data is an iterable of batches, got one batch ({type(data).__name__}): put it in a list"
        )
    if not isinstance(data, Iterable):
        raise TypeError(f"calibration_data is an iterable of batches, got {type(data).__name__}")
    for number, batch in enumerate(data):
        name = f"batch {number} of calibration_data"
        given, _ = _split(batch, name)
        inputs = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        check_inputs(inputs, name)
        yield inputs


def check_inputs(inputs: tuple, name: str) -> None:
    """Check that the inputs of one call are tensors, neither empty nor NaN or infinite; errors call them `name`."""
    for tensor in inputs:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: an input must be a tensor, got {type(tensor).__name__}")
        if tensor.numel() == 0:
            raise ValueError(f"{name}: an input of shape {tuple(tensor.shape)} is empty")
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: an input of shape {tuple(tensor.shape)} holds NaN or infinity")


@dataclass(frozen=True, eq=False)
class Batch:
    """One call of a model: what goes in, and what should come out.

    Attributes:
        args: the inputs by place.
        kwargs: the inputs by name.
        labels: None where there are none.
    """

    args: tuple
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: Any = None

    @property
    def size(self) -> int:
        """How many samples it holds: the length of its first tensor."""
        tensors = [leaf for leaf in tree_leaves([self.args, self.kwargs]) if isinstance(leaf, Tensor)]
        return len(tensors[0]) if tensors and tensors[0].dim() else 1

    def clone(self) -> tuple[tuple, dict[str, Any]]:
        """Return the inputs as copies, which a model may change."""
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (self.args, self.kwargs))


def read(data: Iterable, most: int) -> tuple[list[Batch], bool]:
    """Read batches until they hold `most` samples; also return whether there were more.

    Raises:
        TypeError: these are not batches.
        ValueError: there is none, or a tensor in one is empty.
    """
    if isinstance(data, (Tensor, Mapping, str)) or (isinstance(data, tuple) and data and isinstance(data[0], Tensor)):
        raise TypeError(f"data is an iterable of batches, got one batch ({type(data).__name__}): put it in a list")
    try:
        stream = iter(data)
    except TypeError:
        raise TypeError(f"data is an iterable of batches, got {type(data).__name__}") from None
    batches: list[Batch] = []
    samples = 0
    for number, given in enumerate(stream):
        if samples >= most:
            return batches, True
        batch = given if isinstance(given, Batch) else _batch(given, f"batch {number} of data")
        for leaf in tree_leaves([batch.args, batch.kwargs]):
            if isinstance(leaf, Tensor) and leaf.numel() == 0:
                raise ValueError(f"batch {number} of data: an input of shape {tuple(leaf.shape)} is empty")
        batches.append(batch)
        samples += batch.size
    if not batches:
        raise ValueError("data holds no batch: pass a few batches, and make a new generator if this one is used up")
    return batches, False


def _batch(batch: Any, name: str) -> Batch:
    given, labels = _split(batch, name)
    if isinstance(given, Mapping):
        return Batch((), dict(given), labels)
    inputs = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(inputs)):
        raise TypeError(f"{name} holds no tensor, but {type(given).__name__}")
    return Batch(inputs, {}, labels)


def _split(batch: Any, name: str) -> tuple[Any, Any]:
    """The inputs and the labels of a batch; errors call it `name`."""
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) not in (1, 2):
        raise TypeError(
            f"{name} has {len(batch)} parts: a pair is (inputs, labels), and several inputs are ((a, b), labels), "
            "where the labels may be None"
        )
    return (*batch, None)[:2]
