"""Batches as people hand them in, read in one way for every room.

A batch is a tensor, or a pair that is always `(inputs, labels)`. Several inputs are a tuple inside the pair,
`((a, b), labels)`, where the labels may be None, and so may an input that a call leaves out. A mapping stands for named
inputs, alone or in the pair.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qtutor.models.tensors import copies, tensors_in

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset, IterableDataset


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
        tensors = tensors_in([self.args, self.kwargs])
        return len(tensors[0]) if tensors and tensors[0].dim() else 1

    def run(self, model: Callable[..., Any]) -> Any:
        """Return what a model gives for copies of the inputs, into which it may write."""
        args, kwargs = copies((self.args, self.kwargs))
        return model(*args, **kwargs)

    def bound(self, model: nn.Module) -> inspect.BoundArguments:
        """Return the inputs as `forward` takes them, by place where it can; TypeError where it does not take them."""
        return inspect.signature(model.forward).bind(*self.args, **self.kwargs)


def read(data: Iterable, name: str = "data", *, keep: bool = False) -> Iterator[Batch]:
    """Read batches, each checked; errors call the data `name`.

    Args:
        keep: whether they are kept: then those of a loader are copied, which may fill one buffer again and again.

    Raises:
        TypeError: these are not batches.
        ValueError: a tensor in one is empty.
    """
    if isinstance(data, (Tensor, Mapping, str)) or (
        isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor)
    ):
        raise TypeError(f"{name} is an iterable of batches, got one batch ({type(data).__name__}): put it in a list")
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise TypeError(f"{name} is an iterable of batches, got {type(data).__name__}")
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"{name} is an iterable of batches, and the items of a Dataset are samples: pass "
            "torch.utils.data.DataLoader(dataset, batch_size=32), or batch_size=None where its items are batches"
        )
    if not isinstance(data, Iterable) and hasattr(data, "__len__"):  # or Python asks for items until one is missing
        data = map(data.__getitem__, range(len(data)))
    refilled = keep and not isinstance(data, (list, tuple))
    for number, given in enumerate(iter(data)):
        batch = given if isinstance(given, Batch) else _batch(given, f"batch {number} of {name}")
        for tensor in tensors_in([batch.args, batch.kwargs]):
            if tensor.numel() == 0:
                raise ValueError(f"batch {number} of {name}: an input of shape {tuple(tensor.shape)} is empty")
        yield Batch(*copies((batch.args, batch.kwargs, batch.labels))) if refilled else batch


def read_some(data: Iterable, samples: int) -> tuple[list[Batch], list[str]]:
    """Read batches until they hold so many `samples`; also return a sentence that says so, where there were more.

    Raises as `read`, and ValueError where there is no batch.
    """
    batches: list[Batch] = []
    size = 0
    for batch in read(data, keep=True):
        if size >= samples:
            return batches, [f"The first {size} samples were used: samples={samples}."]
        batches.append(batch)
        size += batch.size
    if not batches:
        raise ValueError("data holds no batch: pass a few batches, and make a new generator if this one is used up")
    return batches, []


def inputs_of(data: Iterable, model: nn.Module, *, keep: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Yield the inputs of each batch in the order in which `forward` takes them, without the labels: finite tensors,
    and None where one is left out. To `keep` them is as for `read`.

    Raises:
        TypeError: these are not batches, an input is not a tensor, or `forward` does not take these names.
        ValueError: an input is empty or not finite.
    """
    for number, batch in enumerate(read(data, "calibration_data", keep=keep)):
        yield by_place(batch, model, f"batch {number} of calibration_data")


def by_place(batch: Batch, model: nn.Module, name: str) -> tuple[Tensor, ...]:
    """Return the inputs of one call in the order in which `forward` takes them; raises as `inputs_of`."""
    inputs = batch.args
    bound = check_fits(batch, model, name)
    if bound and batch.kwargs:
        if bound.kwargs:
            taken = ", ".join([*[*bound.signature.parameters][: len(bound.args)], *bound.kwargs])
            raise TypeError(
                f"{name}: a flow gives inputs by position, and there is none for {', '.join(bound.kwargs)}, by keyword "
                f"only or after one left out: wrap the model in a module whose forward(self, {taken}) passes it so"
            )
        inputs = bound.args
    for tensor in inputs:
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            way = ": pass torch.as_tensor(x)" if hasattr(tensor, "__array__") else ""
            if isinstance(tensor, PackedSequence):
                way = ": quantize_dynamic takes a model of such inputs"
            elif isinstance(tensor, (tuple, list, dict)):
                way = ": wrap the model in a module whose forward takes the tensors in it, and makes it of them"
            raise TypeError(f"{name}: an input must be a tensor, got {type(tensor).__name__}{way}")
        if tensor.layout is not torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            way = "to_padded_tensor(0.0)" if tensor.is_nested else "to_dense()"
            raise TypeError(f"{name}: a flow takes dense tensors, and an input is {kind}: pass x.{way}")
        if tensor.numel() == 0:
            raise ValueError(f"{name}: an input of shape {tuple(tensor.shape)} is empty")
        if not tensor.isfinite().all():
            how = ": a mask of -inf has no scale, use masked_fill with a boolean one" if tensor.isinf().any() else ""
            raise ValueError(f"{name}: an input of shape {tuple(tensor.shape)} holds NaN or infinity{how}")
    return inputs


def check_fits(batch: Batch, model: nn.Module, name: str) -> inspect.BoundArguments | None:
    """Return the inputs as `forward` takes them, as far as that is known.

    Raises:
        TypeError: it does not take them; where labels are why, that is said.
    """
    if not isinstance(model, nn.Module):  # which is refused in words of its own
        return None
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # no Python code
        return None
    taken, given = [*signature.parameters], len(batch.args)
    try:
        return batch.bound(model)
    except TypeError as error:
        if model._forward_pre_hooks and not batch.kwargs:  # which may add what is missing
            return None
        why = f"{error}"
        if isinstance(batch.labels, Tensor) and not batch.kwargs and len(taken) == given + 1:
            got = ", ".join(taken[:given])
            why = f"a pair is (inputs, labels), so forward got {got} only: pass (({', '.join(taken)}), None)"
        elif not batch.kwargs and given > len(taken):
            why = f"it holds {given} inputs, and forward takes {', '.join(taken)} only: leave the labels out"
            if len(taken) == 1:
                why += ", or, for a forward that takes a list of inputs, wrap the model in a module that makes it"
        elif batch.kwargs and len(taken) == 1:
            why += (
                ". A mapping gives inputs by name: where forward takes it as it is, wrap the model in a module whose "
                f"forward(self, {', '.join(batch.kwargs)}) makes it"
            )
        raise TypeError(f"{name} does not fit forward: {why}") from None


def call_of(inputs: Any, labels: Any = None) -> Batch:
    """Return the batch of one call: of a tensor, of a tuple of several inputs, or of a mapping of named ones."""
    if isinstance(inputs, Mapping):
        return Batch((), dict(inputs), labels)
    return Batch(tuple(inputs) if _are_several(inputs) else (inputs,), {}, labels)


def _are_several(given: Any) -> bool:
    return isinstance(given, (tuple, list)) and not isinstance(given, PackedSequence)  # which is a tuple, and one input


def _batch(batch: Any, name: str) -> Batch:
    if _are_several(batch):
        if len(batch) not in (1, 2):
            raise TypeError(
                f"{name} has {len(batch)} parts: a pair is (inputs, labels), and several inputs are ((a, b), labels), "
                "where the labels may be None"
            )
        given, labels = (*batch, None)[:2]
    else:
        given, labels = batch, None
    call = call_of(given, labels)
    if not (call.kwargs or tensors_in(call.args)):
        way = ": torch.as_tensor(x) makes one of it" if hasattr(given, "__array__") else ""
        raise TypeError(f"{name} holds no tensor, but {type(given).__name__}{way}")
    return call
