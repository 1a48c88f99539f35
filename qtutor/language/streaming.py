"""A model block by block, in several versions at once: each block is in memory once, however many versions there are.

Of a version only what flows between blocks is kept, and of the logits only those of one window.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from qtutor.language.cache import KeyValueCache, Rounding
from qtutor.language.calibrating import linear_layers
from qtutor.language.llama import Block, LlamaConfig
from qtutor.language.measuring import Measured, windows
from qtutor.models.tensors import kl_bits

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm


class Blocks(Protocol):
    """A Llama by its parts: a `LlamaFile`, or a `Llama` in memory; each block that it gives is a copy."""

    config: LlamaConfig

    def embed(self, tokens: Tensor) -> Tensor: ...

    def block(self, layer: int) -> Block: ...

    def logits(self, x: Tensor) -> Tensor: ...


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


class Judge:
    """Measures versions of a model on a text; the unchanged model runs once.

    Args:
        model: the parts of it.
        tokens: `(length,)`; what is left after the last whole window is not read.
        window: tokens that are read together.

    Raises:
        ValueError: the text is shorter than two windows.

    Example:
        Judge(parts, tokens)({"rounded": Change(block=round_it)})["rounded"].kl
    """

    def __init__(self, model: Blocks, tokens: Tensor, window: int = 128):
        self._model = model
        inputs, targets = zip(*windows(tokens, window), strict=True)
        self._inputs, self._targets = torch.cat(inputs), torch.cat(targets)
        self._unchanged: Tensor | None = None

    @torch.no_grad()
    def __call__(self, changes: dict[str, Change]) -> dict[str, Outcome]:
        """Return what each version costs against the unchanged model, all in one walk through the blocks."""
        versions = dict(enumerate(changes.values()))
        if self._unchanged is None:
            versions[-1] = Change()
        states = self._walk(versions)
        self._unchanged = states.pop(-1, self._unchanged)
        found: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in changes]
        for i, targets in enumerate(self._targets):  # the logits of all windows together would be large
            wanted = self._logits(self._unchanged, i)
            for (losses, divergences), x in zip(found, states.values(), strict=True):
                given = self._logits(x, i)
                losses.append(functional.cross_entropy(given, targets).double() / math.log(2))
                divergences.append(kl_bits(wanted, given).double().mean())
        outcomes = (Outcome(*(Measured(torch.stack(part)) for part in parts)) for parts in found)
        return dict(zip(changes, outcomes, strict=True))

    def _walk(self, versions: dict[int, Change]) -> dict[int, Tensor]:
        """Return what the last block gives in each version, `(N, T, width)`."""
        config = self._model.config
        turns = config.turns(self._inputs.shape[1])
        states = dict.fromkeys(versions, self._model.embed(self._inputs))
        for layer in tqdm(range(config.layers), desc="blocks", leave=False):
            original = self._model.block(layer)
            for name, change in versions.items():
                block = original
                if change.block is not None:
                    block = copy.deepcopy(original)
                    change.block(layer, block)
                cache = KeyValueCache(change.keys, change.values)
                states[name] = block(states[name], turns, layer, cache)
        return states

    def _logits(self, x: Tensor | None, i: int) -> Tensor:
        """Return those of one window, `(T, vocabulary)`."""
        assert x is not None
        return self._model.logits(x[i : i + 1])[0]


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
    turns = model.config.turns(tokens.shape[1])
    for layer in range(model.config.layers):
        block = model.block(layer)
        for name, linear in linear_layers(block).items():
            linear.register_forward_pre_hook(_seeing(see, f"blocks.{layer}.{name}"))
        cache = KeyValueCache()
        x = block(x, turns, layer, cache)
        for part, kept in zip(("keys", "values"), cache.kept(layer), strict=True):
            see(f"blocks.{layer}.{part}", kept)
        see(f"blocks.{layer}", x)


def _seeing(see: Callable[[str, Tensor], object], name: str):
    def hook(module: nn.Module, inputs: tuple) -> None:
        see(name, inputs[0])

    return hook
