"""Batches as people hand them in, without labels, and fit to calibrate with.

A batch is a tensor, or a pair that is always `(inputs, labels)`. Several inputs are a tuple inside the
pair, `((a, b), labels)`, where the labels may be None.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor


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
        if isinstance(batch, (tuple, list)):
            if len(batch) not in (1, 2):
                raise TypeError(
                    f"batch {number} of calibration_data has {len(batch)} parts: a pair is (inputs, labels), and "
                    "several inputs are ((a, b), labels), where the labels may be None"
                )
            batch = batch[0]
        inputs = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        check_inputs(inputs, f"batch {number} of calibration_data")
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
