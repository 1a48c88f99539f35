"""A model on its way into a runtime: its batches, its ONNX file, and the quiet around what writes it."""

import functools
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtutor.models.running import agreement, no_fast_attention, outputs
from qtutor.models.tensors import copies, tensors_in
from qtutor.workflows import hide_torch_notices

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

Batches = Sequence[tuple[Tensor, ...]]

_NOTICES = ("The feature will be removed", "To copy construct from a tensor")


class Folder:
    """A folder that lasts as long as something refers to this."""

    def __init__(self):
        self.path = Path(tempfile.mkdtemp(prefix="qtutor-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Exported:
    """A model and its batches, and the ONNX file that several runtimes share, written when first asked for."""

    def __init__(self, model: nn.Module, batches: Batches):
        self.model, self.batches = model, batches
        self.folder = Folder()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Those of the first batch, copied each time: the model may write into them."""
        return copies(self.batches[0])

    @functools.cached_property
    def wanted(self) -> list[tuple[tuple[Tensor, ...], list[Tensor]]]:
        """The first batch and the last of its shapes, each with what the model gives for it."""
        shapes = [[getattr(x, "shape", None) for x in batch] for batch in self.batches]
        last = max(place for place, each in enumerate(shapes) if each == shapes[0])
        chosen = [self.batches[place] for place in sorted({0, last})]
        return [(batch, outputs(self.model, batch)) for batch in chosen]

    def agreement(self, run: Callable[..., Any]) -> float:
        """Return the SQNR in dB of what a runtime gives against what the model does: of the batch that fares worst."""
        pairs = [(wanted, tensors_in(run(*copies(batch)))) for batch, wanted in self.wanted]
        return min(agreement(wanted, found) for wanted, found in pairs)

    @property
    def onnx(self) -> Path:
        path = self.folder.path / "float.onnx"
        if not path.exists():
            export_onnx(self.model, self.inputs, path)
        return path

    def like_the_model(self, run: Callable[..., list[Tensor]]) -> Callable[..., Any]:
        """Give outputs the structure that the model's have, and keep the files while they may be read again."""
        with torch.no_grad():
            leaves, structure = tree_flatten(self.model(*self.inputs))
        constants = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves]  # a None is no output in a file

        def restructured(*inputs: Tensor, folder: Folder = self.folder) -> Any:
            found = iter(run(*inputs))
            return tree_unflatten([next(found) if each is Tensor else each for each in constants], structure)

        return restructured


def by_name(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the inputs that are given as they are called in an ONNX file: input0, input1, ..."""
    return {f"input{i}": tensor for i, tensor in enumerate(tensors_in(inputs))}


def export_onnx(model: nn.Module, inputs: tuple[Tensor, ...], path: Path | str) -> None:
    """Write a model as ONNX, for any batch size.

    By tracing: the newer exporter needs one more package, and refuses PyTorch's INT8 models.

    Args:
        model: in eval mode, float or quantized by FX.
        inputs: one batch; in the file they are called as by `by_name`.
    """
    given = [*by_name(inputs)]
    if len(given) < len(inputs):  # the exporter would move what stands behind None to its place
        model, inputs = _Filled(model, inputs), tuple(tensors_in(inputs))
    with torch.no_grad():
        found = [leaf for leaf in tree_flatten(model(*copies(inputs)))[0] if isinstance(leaf, Tensor)]
        names = [f"output{i}" for i in range(len(found))]
        axes = {name: {0: "batch"} for name in (*given, *names)}
        with no_notices(), no_fast_attention():
            torch.onnx.export(
                model,
                copies(inputs),
                str(path),
                dynamo=False,
                input_names=given,
                output_names=names,
                dynamic_axes=axes,
            )


class _Filled(nn.Module):
    """A model without the inputs that a call leaves out."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]):
        super().__init__()
        self.model, self.given = model, [tensor is not None for tensor in inputs]
        self.train(model.training)

    def forward(self, *inputs: Tensor) -> Any:
        left = iter(inputs)
        return self.model(*(next(left) if given else None for given in self.given))


class Session:
    """What a runtime runs, started when it is first called, and again when PyTorch's number of threads has changed.

    Attributes:
        size_bytes: what the model takes in a file of the runtime.
    """

    def __init__(self, start: Callable[[int], Callable[..., list[Tensor]]], size_bytes: int):
        self.size_bytes = size_bytes
        self._start, self._threads = start, 0
        self._run: Callable[..., list[Tensor]] = lambda: []

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        if self._threads != torch.get_num_threads():
            self._run = lambda: []  # first give its memory back
            self._threads = torch.get_num_threads()
            self._run = self._start(self._threads)
        return self._run(*(tensor.detach().contiguous() for tensor in tensors_in(inputs)))


@contextmanager
def no_notices() -> Iterator[None]:
    """Hide what PyTorch says about its own plans; what tracing takes for a constant shows when shapes disagree."""
    with warnings.catch_warnings():
        hide_torch_notices()
        for notice in _NOTICES:
            warnings.filterwarnings("ignore", message=notice)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield
