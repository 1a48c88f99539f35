"""Text that a language model writes, one token after the other."""

from typing import Protocol

from qtutor.language import text
from qtutor.language.cache import KeyValueCache
from qtutor.language.llama import Llama

import torch
from torch import Tensor


class Tokenizer(Protocol):
    """Text to tokens `(length,)`, and back."""

    def encode(self, text: str, /) -> Tensor: ...

    def decode(self, tokens: Tensor, /) -> str: ...


@torch.no_grad()
def generate(
    model: Llama,
    prompt: str,
    count: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    tokenizer: Tokenizer = text,
    cache: KeyValueCache | None = None,
) -> str:
    """Return the text of `count` tokens that a model writes after a prompt, without the prompt.

    The small model has learned from windows of 256 characters: beyond these it writes worse.

    Args:
        model: the model.
        prompt: at least one token long.
        count: how many tokens to write.
        temperature: 0 takes the likeliest token each time; 1 draws by the model's own probabilities.
        seed: of the draws.
        tokenizer: that of the small model, or the model's own.
        cache: an empty one, to round what attention keeps.

    Raises:
        ValueError: the prompt is empty, the temperature is negative, or the cache is in use.
    """
    tokens = tokenizer.encode(prompt)
    cache = KeyValueCache() if cache is None else cache
    if not len(tokens):
        raise ValueError("the prompt is empty: a model needs a token to go on from")
    if temperature < 0:
        raise ValueError(f"the temperature is {temperature}: 0 or more")
    if cache.length:
        raise ValueError(f"the cache already holds {cache.length} tokens: give an empty one")
    draws, written = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        logits = model(tokens.unsqueeze(0), cache)[0, -1].float()
        if temperature:
            tokens = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=draws)
        else:
            tokens = logits.argmax(dim=-1, keepdim=True)
        written.append(tokens)
    return tokenizer.decode(torch.cat(written)) if written else ""
