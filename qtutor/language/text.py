"""The text that the small model is trained and measured on: the reference of the Python language, in ASCII.

It ships compressed (`text.bz2`, its licence in `text_licence.txt`), since it differs between versions of Python.
Paragraphs that repeat are left out: a model would only have to remember those of the held-out pages.
"""

import bz2
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

TEXT = Path(__file__).with_name("text.bz2")
VOCABULARY = 128
"""One token for each character of ASCII."""

PAGE = 3500
"""Characters after which a page ends, with its paragraph."""

HELD_OUT = slice(5, None, 10)
"""Every tenth page, spread over the whole text."""


def training_text() -> str:
    """Return the nine pages of ten that the small model is trained on."""
    held_out = set(_pages()[HELD_OUT])
    return "".join(page for page in _pages() if page not in held_out)


def held_out_text() -> str:
    """Return the pages that no training saw: figures are measured on these."""
    return "".join(_pages()[HELD_OUT])


def encode(text: str) -> Tensor:
    """Return the codes of the characters, `(len(text),)`: the tokens of the small model.

    Raises:
        ValueError: a character is not ASCII.

    Example:
        >>> encode("a = 1").tolist()
        [97, 32, 61, 32, 49]
    """
    if not text.isascii():
        strange = next(character for character in text if not character.isascii())
        raise ValueError(f"the small model reads ASCII only, and the text holds {strange!r}: leave such characters out")
    return torch.tensor(list(text.encode("ascii")), dtype=torch.long)


def decode(tokens: Tensor) -> str:
    """Return the text of tokens.

    Raises:
        ValueError: a token is no code of a character below 128.
    """
    codes = tokens.flatten().tolist()
    if any(not isinstance(code, int) or not 0 <= code < VOCABULARY for code in codes):
        raise ValueError(f"tokens of the small model are whole numbers from 0 to {VOCABULARY - 1}, not {codes[:8]}")
    return bytes(codes).decode("ascii")


@cache
def _pages() -> tuple[str, ...]:
    pages = [""]
    for paragraph in bz2.decompress(TEXT.read_bytes()).decode("ascii").split("\n\n"):
        if len(pages[-1]) > PAGE:
            pages.append("")
        pages[-1] += f"{paragraph}\n\n"
    return tuple(pages)
