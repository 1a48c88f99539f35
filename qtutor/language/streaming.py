"""A model block by block, in several versions at once: each block is in memory once, however many versions there are.

Of a version only what flows between blocks is kept, and of the logits only those of one window.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from qtutor.language.cache import KeyValueCache, Rounding
from qtutor.language.llama import Block, Llama, LlamaConfig, position_turns
from qtutor.language.measuring import Measured

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm


class Blocks(Protocol):
    """A Llama by its parts: `LlamaFile`, or `InMemory`."""

    config: LlamaConfig

    def embed(self, tokens: Tensor) -> Tensor: ...

    def block(self, layer: int) -> Block: ...

    def logits(self, x: Tensor) -> Tensor: ...


class InMemory:
    """The parts of a model that is in memory already; each block is handed out as a copy."""

    def __init__(self, model: Llama):
        self.config, self._model = model.config, model

    def embed(self, tokens: Tensor) -> Tensor:
        return self._model.embed(tokens)

    def block(self, layer: int) -> Block:
        block = self._model.blocks[layer]
        assert isinstance(block, Block)
        return copy.deepcopy(block)

    def logits(self, x: Tensor) -> Tensor:
        return self._model.logits(x)


@dataclass(frozen=True)
class Change:
    """What makes a version of a model.

    Attributes:
        block: gets the number of a block and a copy of it, and changes that in place; None changes nothing.
        keys: what becomes of keys before attention reads them.
        values: the same of values.
    """

    block: Callable[[int, Block], object] | None = None
    keys: Rounding | None = None
    values: Rounding | None = None


@dataclass(frozen=True)
class Outcome:
    """What a version costs.

    Attributes:
        bits: it needs for a token of the text.
        kl: bits by which its predictions differ from those of the unchanged model.
    """

    bits: Measured
    kl: Measured

    @property
    def perplexity(self) -> float:
        return 2.0**self.bits.mean


def windows(tokens: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Cut a text into whole windows: `(N, window)` tokens, and the one that follows each.

    Raises:
        ValueError: the text is shorter than two windows.
    """
    count = (len(tokens) - 1) // window if window >= 1 and tokens.dim() == 1 else 0
    if count < 2:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} are not two windows of {window} and one more")
    return tuple(tokens[i : i + count * window].view(count, window) for i in (0, 1))  # type: ignore[return-value]


@torch.no_grad()
def evaluate(model: Blocks, tokens: Tensor, changes: dict[str, Change], window: int = 128) -> dict[str, Outcome]:
    """Measure versions of a model on a text, all in one walk through its blocks.

    Args:
        model: the parts of it.
        tokens: `(length,)`; what is left after the last whole window is not read.
        changes: versions by name.
        window: tokens that are read together.

    Returns:
        For each version what it costs, against the unchanged model.

    Raises:
        ValueError: the text is shorter than two windows.
    """
    inputs, targets = windows(tokens, window)
    everything = {"": Change(), **{f"={name}": change for name, change in changes.items()}}
    x = model.embed(inputs)
    states = dict.fromkeys(everything, x)
    turns = position_turns(window, model.config.head_width, model.config.rope_base)
    for layer in tqdm(range(model.config.layers), desc="blocks", leave=False):
        original = model.block(layer)
        for name, change in everything.items():
            block = original if change.block is None else copy.deepcopy(original)
            if change.block is not None:
                change.block(layer, block)
            cache = KeyValueCache(change.keys, change.values)
            states[name] = block(states[name], turns, layer, cache)
    losses: dict[str, list[Tensor]] = {name: [] for name in everything}
    kls: dict[str, list[Tensor]] = {name: [] for name in everything}
    for i in range(len(inputs)):  # the logits of all windows together would be large
        wanted = functional.log_softmax(model.logits(states[""][i : i + 1])[0], dim=-1)
        for name in changes:
            found = functional.log_softmax(model.logits(states[f"={name}"][i : i + 1])[0], dim=-1)
            losses[f"={name}"].append(functional.nll_loss(found, targets[i]).double())
            kls[f"={name}"].append(functional.kl_div(found, wanted, reduction="batchmean", log_target=True).double())
    bit = torch.tensor(2.0, dtype=torch.float64).log()
    return {
        name: Outcome(*(Measured(torch.stack(part[f"={name}"]) / bit) for part in (losses, kls))) for name in changes
    }


@torch.no_grad()
def watch(model: Blocks, tokens: Tensor, see: Callable[[str, Tensor], object]) -> None:
    """Show everything that flows through a model on `(N, T)` tokens.

    Args:
        model: the parts of it.
        tokens: `(N, T)`.
        see: is called with the name of each linear layer, such as "blocks.3.feed_forward.down", and what goes into
            it, `(N, T, in)`; with "blocks.3.keys" or "blocks.3.values" and what attention keeps,
            `(N, heads, T, width of a head)`; and with "blocks.3" and what flows out of that block, `(N, T, width)`.
    """
    x = model.embed(tokens)
    turns = position_turns(tokens.shape[1], model.config.head_width, model.config.rope_base)
    for layer in range(model.config.layers):
        block = model.block(layer)
        for name, linear in linears(block):
            linear.register_forward_pre_hook(_seeing(see, f"blocks.{layer}.{name}"))
        cache = KeyValueCache()
        x = block(x, turns, layer, cache)
        for part, kept in zip(("keys", "values"), cache.kept(layer), strict=True):
            see(f"blocks.{layer}.{part}", kept)
        see(f"blocks.{layer}", x)


def linears(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers of a block with their names, such as "attention.query"."""
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.Linear):
            yield name, module


def _seeing(see: Callable[[str, Tensor], object], name: str):
    def hook(module: nn.Module, inputs: tuple) -> None:
        see(name, inputs[0])

    return hook
