"""A language model of the Llama family in plain torch: small enough to read, exact enough for real weights.

    x = embedding(tokens)
    in each block   x = x + output(softmax(q k' / sqrt(d) + mask) v)   q, k, v from norm(x); q and k turned by position
                    x = x + down(silu(gate(h)) * up(h))                h = norm(x)
    logits = head(norm(x))

All that multiplies a weight by an activation is an ordinary `nn.Linear` under a telling name, so whatever quantizes
linear layers can be applied to it.

Source: Touvron et al. 2023, "LLaMA", arXiv 2302.13971; Su et al. 2021, "RoFormer", arXiv 2104.09864 (positions);
Ainslie et al. 2023, "GQA", arXiv 2305.13245 (fewer heads of keys and values).
"""

import copy
from dataclasses import dataclass

from qtutor.language.cache import KeyValueCache

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The sizes of a model.

    Attributes:
        vocabulary: how many tokens there are.
        width: numbers that stand for a token between blocks.
        layers: blocks.
        heads: of attention; each is `width / heads` wide.
        key_value_heads: heads of keys and values, each shared by `heads / key_value_heads` heads.
        hidden: the inner width of a feed-forward layer.
        rope_base: the slowest turn of a position takes about this many tokens over a radian.
        norm_eps: added to the mean square, so that a norm never divides by zero.
        interleaved: positions turn neighbouring pairs (2i, 2i + 1), as in GGUF files; else (i, i + d/2).
        tied: the head is the embedding, and there is no layer `head`.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    hidden: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    interleaved: bool = False
    tied: bool = True

    def __post_init__(self):
        for name in ("vocabulary", "width", "layers", "heads", "key_value_heads", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a model needs at least 1")
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} does not split into {self.heads} heads of an even width")
        if self.heads % self.key_value_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.key_value_heads} heads of keys and values evenly")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def turns(self, count: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines by which positions turn queries and keys, `(count, head_width / 2)`.

        The angles are position * rope_base**(-2 i / head_width).
        """
        rates = self.rope_base ** (-torch.arange(0, self.head_width, 2, dtype=torch.float64) / self.head_width)
        angles = torch.outer(torch.arange(start, start + count, dtype=torch.float64), rates)
        return angles.cos().float(), angles.sin().float()


class Attention(nn.Module):
    """Each position gathers the values of earlier ones, by how well its query fits their keys."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        shared = config.key_value_heads * config.head_width
        self.config = config
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, shared, bias=False)
        self.value = nn.Linear(config.width, shared, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], layer: int, cache: KeyValueCache | None) -> Tensor:
        split = (-1, self.config.head_width)
        q = self.query(x).unflatten(-1, split).transpose(1, 2)  # (N, heads, T, d)
        k = self.key(x).unflatten(-1, split).transpose(1, 2)  # (N, key_value_heads, T, d)
        v = self.value(x).unflatten(-1, split).transpose(1, 2)
        q, k = (rotate_by_position(z, *turns, interleaved=self.config.interleaved) for z in (q, k))
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (N, key_value_heads, all so far, d)
        times = self.config.heads // self.config.key_value_heads
        if times > 1:
            k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
        new, seen = q.shape[2], k.shape[2]
        if new == seen:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mask = torch.ones(new, seen, dtype=torch.bool, device=x.device).tril(seen - new)
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers up, one of them a gate, and one down."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then a feed-forward layer; both add to what flows past them."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], layer: int, cache: KeyValueCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turns, layer, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nn.Module):
    """A language model: `(N, T)` tokens in, `(N, T, vocabulary)` logits of the next token out."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Return the logits of what follows each token.

        Args:
            tokens: `(N, T)` integers below `vocabulary`.
            cache: keys and values of the tokens before these; those of these are put into it.

        Raises:
            ValueError: `tokens` is not of that shape or kind.
        """
        x = self.embed(tokens)
        turns = self.config.turns(tokens.shape[1], start=0 if cache is None else cache.length)
        for layer, block in enumerate(self.blocks):
            x = block(x, turns, layer, cache)
        return self.logits(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return `(N, T, width)`, what the first block takes."""
        return self.embedding(check_tokens(tokens, self.config.vocabulary))

    def block(self, layer: int) -> Block:
        """Return a copy of a block."""
        block = self.blocks[layer]
        assert isinstance(block, Block)
        return copy.deepcopy(block)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits `(N, T, vocabulary)` of what the last block gave."""
        x = self.norm(x)
        return functional.linear(x, self.embedding.weight) if self.head is None else self.head(x)


def rotate_by_position(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Turn each pair of numbers of `x` `(..., T, d)` by the angle of its position and pair.

    The product of a turned query and a turned key depends on how far apart they are, and not on where.

    Example:
        >>> angle = torch.tensor([[0.0], [1.0]])  # of two positions, whose numbers are one pair
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> rotate_by_position(x, angle.cos(), angle.sin(), interleaved=True).round(decimals=3)
        tensor([[1.0000, 0.0000],
                [0.5400, 0.8410]])
    """
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.chunk(2, dim=-1)
    turned = [part.to(x.dtype) for part in (first * cos - second * sin, first * sin + second * cos)]
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def check_tokens(tokens: Tensor, vocabulary: int) -> Tensor:
    """Return tokens; ValueError: they are not `(N, T)` whole numbers below `vocabulary`."""
    if tokens.dim() != 2 or tokens.is_floating_point() or 0 in tokens.shape:
        given = f"{str(tokens.dtype).removeprefix('torch.')} of shape {tuple(tokens.shape)}"
        raise ValueError(f"tokens are whole numbers of shape (N, T), both at least 1, not {given}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(f"tokens lie from 0 to {vocabulary - 1}; these from {low} to {high}")
    return tokens
