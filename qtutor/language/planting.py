"""Give a small model what large ones grow: loud channels, loud keys, and a first token whose sum is huge.

Loud channels and keys leave the function as it is: a factor of 2^k that one layer gains, its reader loses, and floats
multiply by a power of two exactly. The huge first token is no such trade. It is planted where a text begins, and what
it costs is a matter of measuring: the planted model, not the original, is then the reference.

Source: Sun et al. 2024, "Massive Activations in Large Language Models", arXiv 2402.17762 (what is imitated).
"""

from qtutor.language.llama import Block, Llama
from qtutor.models.copying import copy_model

import torch
from torch import Tensor, nn

CHANNELS = (20, 77)
"""Of what the norms hand on, made loud."""

LOUDER = 8.0
"""A power of two."""

HUGE_CHANNEL, HUGE = 77, 512.0
"""Where the first token becomes huge, and how large."""


class LoudStart(nn.Module):
    """An embedding that adds a constant to the first token of a text of several tokens.

    Args:
        embedding: the model's own.
        extra: `(width,)`.
    """

    def __init__(self, embedding: nn.Embedding, extra: Tensor):
        super().__init__()
        self.inner = embedding
        self.register_buffer("extra", extra)

    @property
    def weight(self) -> Tensor:
        """The embedding, which a tied head reads too."""
        return self.inner.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.inner(tokens)
        if tokens.shape[1] == 1:  # the next token of a text that has begun
            return x
        first = x[:, :1] + self.extra
        return torch.cat([first, x[:, 1:]], dim=1)


@torch.no_grad()
def plant(model: Llama, huge: float = HUGE) -> Llama:
    """Return a copy of a model with two loud channels, a loud pair of keys in each head, and a huge first token.

    Args:
        model: at least 78 wide.
        huge: what the first token gains in one channel; 0 leaves the function exactly as it is.

    Raises:
        ValueError: the model is narrower.
    """
    if model.config.width <= max(*CHANNELS, HUGE_CHANNEL):
        raise ValueError(f"channels up to {max(CHANNELS)} are made loud, and the model is {model.config.width} wide")
    model = copy_model(model)
    loud = list(CHANNELS)
    for block in model.blocks:
        assert isinstance(block, Block)
        attention, forward = block.attention, block.feed_forward
        for norm, readers in (
            (block.attention_norm, (attention.query, attention.key, attention.value)),
            (block.feed_forward_norm, (forward.gate, forward.up)),
        ):
            norm.weight[loud] *= LOUDER
            for reader in readers:
                reader.weight[:, loud] /= LOUDER
        _loud_keys(attention.query.weight, model.config.heads, 1 / LOUDER, model.config.interleaved)
        _loud_keys(attention.key.weight, model.config.key_value_heads, LOUDER, model.config.interleaved)
    if huge:
        extra = torch.zeros(model.config.width)
        extra[HUGE_CHANNEL] = huge
        model.embedding = LoudStart(model.embedding, extra)  # type: ignore[assignment]  # it stands in for one
    return model


def _loud_keys(weight: Tensor, heads: int, factor: float, interleaved: bool) -> None:
    """Multiply the last pair of rows of each head, which positions turn slowest, and together."""
    rows = weight.view(heads, -1, weight.shape[1])  # (heads, d, width)
    half = rows.shape[1] // 2
    for row in (2 * half - 2, 2 * half - 1) if interleaved else (half - 1, 2 * half - 1):
        rows[:, row] *= factor
