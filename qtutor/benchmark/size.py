"""What a model takes when it is saved."""

from typing import Any

from qtutor.models.operators import check_module

import torch
from torch import nn


def size_bytes(model: nn.Module) -> int:
    """Return how many bytes the model takes when its state dict is saved: what quantization shrinks.

    Packed INT8 weights, scales and zero points count, and so does what the file format adds; a layer with several
    names counts once.

    Raises:
        TypeError: `model` is not an `nn.Module`.
    """
    check_module(model, "size_bytes")
    counter, names = _Counter(), dict(model.named_modules())
    again = tuple(f"{name}." for name, _ in model.named_modules(remove_duplicate=False) if name not in names)
    with torch.inference_mode(False):  # torchao's tensors cannot be detached in it
        state = model.state_dict()
        for name in [name for name in state if name.startswith(again)]:
            del state[name]  # packed weights would be saved under every name of their layer
        torch.save(state, counter)  # type: ignore[arg-type]  # of a file it needs no more
    return counter.length


class _Counter:
    """A file that keeps only its length, so that measuring a large model takes no memory."""

    length = 0

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.length += length
        return length

    def flush(self) -> None:
        """Called by `torch.save`."""
