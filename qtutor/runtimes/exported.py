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

from qtutor.models.operators import kind_of
from qtutor.models.running import agreement, no_fast_attention, outputs
from qtutor.models.tensors import copies, tensors_in
from qtutor.workflows import hide_torch_notices

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Batches = Sequence[tuple[Tensor, ...]]

_MANY = 8  # shapes of which each is compared

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
        """The first batch and the last of each of the first few shapes, each with what the model gives for it."""
        last = {shapes_of(batch): place for place, batch in enumerate(self.batches)}
        chosen = sorted({0, *[*last.values()][:_MANY]})
        return [(self.batches[place], outputs(self.model, self.batches[place])) for place in chosen]

    def agreement(self, run: Callable[..., Any], every: bool = True) -> float:
        """Return the SQNR in dB of what a runtime gives against what the model does: of the batch that fares worst.

        Args:
            every: whether it is compared for other shapes than those of the first batch too.
        """
        first = shapes_of(self.batches[0])
        compared = [pair for pair in self.wanted if every or shapes_of(pair[0]) == first]
        return min(agreement(wanted, tensors_in(run(*copies(batch)))) for batch, wanted in compared)

    @functools.cached_property
    def onnx(self) -> Path:
        path = self.folder.path / "float.onnx"
        export_onnx(self.model, self.inputs, path, self.batches)
        return path

    @functools.cached_property
    def structure(self) -> tuple[list[Any], TreeSpec]:
        """What outputs are made of, `Tensor` standing for each that is one, and how.

        Raises:
            ValueError: that is not the same for all of `wanted`, or tensors are in a class of the model's own.
        """
        with torch.no_grad():
            found = [_leaves(self.model(*copies(batch))) for batch, _ in self.wanted]
        leaves, how = found[0]
        for others, _ in found:
            for first, other in zip(leaves, others, strict=False):
                if isinstance(other, int) and other != first:  # the exporter refuses other numbers
                    raise ValueError(
                        f"forward returns {first!r} for one batch and {other!r} for another, of which a file keeps the "
                        "first: return tensors alone"
                    )
        return [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves], how

    def like_the_model(self, run: Callable[..., list[Tensor]]) -> Callable[..., Any]:
        """Give outputs the structure that the model's have, and keep the files while they may be read again."""
        constants, structure = self.structure  # a None is no output in a file
        first, sizes = shapes_of(self.batches[0]), _sizes(self.batches)

        def restructured(*inputs: Tensor, folder: Folder = self.folder) -> Any:
            try:
                found = iter(run(*inputs))
            except Exception as error:
                if shapes_of(inputs) == first:
                    raise
                raise ValueError(_why_not(inputs, sizes)) from error
            return tree_unflatten([next(found) if each is Tensor else each for each in constants], structure)

        return restructured


def shapes_of(inputs: tuple[Tensor, ...]) -> tuple:
    """Return the shapes of the inputs of one call, None for one that is left out."""
    return tuple(getattr(x, "shape", None) for x in inputs)


def _sizes(batches: Batches) -> list[list[int | None]]:
    """The shape of each input that is given, as a file takes it: None for the batch size, and for what differs."""
    sizes: list[list[int | None]] = [[None, *tensor.shape[1:]][: tensor.dim()] for tensor in tensors_in(batches[0])]
    for batch in batches:
        for known, tensor in zip(sizes, tensors_in(batch), strict=False):
            if tensor.dim() == len(known):
                known[:] = [size if size == other else None for size, other in zip(known, tensor.shape, strict=True)]
    return sizes


def _why_not(inputs: tuple[Tensor, ...], sizes: list[list[int | None]]) -> str:
    given = [tuple(tensor.shape) for tensor in tensors_in(inputs)]
    got = " and ".join(map(str, given))
    if len(given) == len(sizes) and all(map(_fits, given, sizes)):
        return (
            f"the file cannot take {got}: where the model can, it makes a number of a size, as int(x.shape[1]), "
            "range(x.shape[1]) and nn.MultiheadAttention do, and a trace keeps that number: pass batches of one shape"
        )
    known = " and ".join(f"({', '.join('any' if size is None else str(size) for size in each)})" for each in sizes)
    way = ": build it with a batch of that shape too" if [*map(len, given)] == [*map(len, sizes)] else ""
    return f"the file takes inputs of shape {known}, and got {got}{way}"


def _fits(shape: tuple[int, ...], sizes: list[int | None]) -> bool:
    return len(shape) == len(sizes) and all(size in (None, got) for got, size in zip(shape, sizes, strict=True))


def _leaves(output: Any) -> tuple[list[Any], TreeSpec]:
    """What an output is made of, and how. ValueError: tensors are in a class that PyTorch does not look into."""
    leaves, structure = tree_flatten(output)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) and tensors_in(leaf):
            raise ValueError(
                f"forward returns tensors in a class of its own, {kind_of(leaf)}: return a tuple or a dict of them"
            )
    return leaves, structure


def by_name(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the inputs that are given as they are called in an ONNX file: input0, input1, ..."""
    return {f"input{i}": tensor.detach() for i, tensor in enumerate(tensors_in(inputs))}


def export_onnx(model: nn.Module, inputs: tuple[Tensor, ...], path: Path | str, batches: Batches = ()) -> None:
    """Write a model as ONNX, for any batch size.

    By tracing: the newer exporter needs one more package, and refuses PyTorch's INT8 models.

    Args:
        model: in eval mode, float or quantized by FX.
        inputs: one batch; in the file they are called as by `by_name`.
        batches: further ones; the file takes any size along axes of which the size differs among them.

    Raises:
        ValueError: `forward` returns tensors in a class of its own.
    """
    given, sizes = [*by_name(inputs)], _sizes([inputs, *batches])
    if len(given) < len(inputs):  # the exporter would move what stands behind None to its place
        model, inputs = _Filled(model, inputs), tuple(tensors_in(inputs))
    with torch.no_grad():
        found = [leaf for leaf in _leaves(model(*copies(inputs)))[0] if isinstance(leaf, Tensor)]
        names = [f"output{i}" for i in range(len(found))]
        axes = {name: {0: "batch"} for name, tensor in zip(names, found, strict=True) if tensor.dim()}
        for name, known in zip(given, sizes, strict=True):
            axes[name] = {
                axis: f"{name}_{axis}" if axis else "batch" for axis, size in enumerate(known) if size is None
            }
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
        if self._threads != (threads := torch.get_num_threads()):
            self._run, self._threads = lambda: [], 0  # first give its memory back
            self._run, self._threads = self._start(threads), threads
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
