"""Text to tokens and back, as GPT-2 and its heirs do it: byte pairs are merged in the order in which they were learned.

    text -> pieces: a word with the space before it, one digit, a run of signs
         -> bytes, each written as a visible letter
         -> the pair that was learned first is merged, again and again
         -> the numbers of what is left

Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", arXiv 1508.07909;
Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2 (bytes).
"""

import itertools
import re
import unicodedata
from functools import lru_cache
from reprlib import repr

from qtutor.language.gguf import GgufFile

import torch
from torch import Tensor

# The pieces of GPT-2 within what holds no digits, where a letter is what Python takes for part of a word.
_PIECE = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[^\W_]+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def byte_letters() -> dict[int, str]:
    """Return the visible letter that stands for each byte: itself where it is visible, else one from 256 on.

    Example:
        >>> letters = byte_letters()
        >>> letters[ord("a")], letters[ord(" ")], letters[ord("\\n")]
        ('a', 'Ġ', 'Ċ')
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def pieces(text: str) -> list[str]:
    """Cut a text into what is merged on its own: every digit stands alone.

    Example:
        >>> pieces("In 2024, it's 8 bits.")
        ['In', ' ', '2', '0', '2', '4', ',', ' it', "'s", ' ', '8', ' bits', '.']
    """
    cut, run = [], ""
    for character in text:
        if unicodedata.category(character)[0] == "N":
            cut += [*_PIECE.findall(run), character]
            run = ""
        else:
            run += character
    return [*cut, *_PIECE.findall(run)]


class BytePairs:
    """A tokenizer by its vocabulary and its merges.

    Args:
        tokens: what each number stands for, in `byte_letters`.
        merges: pairs with a space between, the first learned first.

    Raises:
        ValueError: a merge is not of two.
    """

    def __init__(self, tokens: list[str], merges: list[str]):
        self.tokens = tokens
        self._numbers = {token: number for number, token in enumerate(tokens)}
        pairs = [tuple(merge.split(" ")) for merge in merges]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("a merge is two tokens with one space between, and the file holds others")
        self._rank = {pair: rank for rank, pair in enumerate(pairs)}
        self._letters = byte_letters()
        self._bytes = {letter: byte for byte, letter in self._letters.items()}
        self._merged = lru_cache(maxsize=1 << 14)(self._merge)

    def encode(self, text: str) -> Tensor:
        """Return the tokens of a text, `(length,)` int64. Words for control tokens are text like any other.

        Raises:
            ValueError: the text holds half a character, a lone surrogate, or one that the vocabulary cannot write.
        """
        try:
            words = ["".join(self._letters[byte] for byte in piece.encode()) for piece in pieces(text)]
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode at character {error.start}") from None
        return torch.tensor([number for word in words for number in self._merged(word)], dtype=torch.long)

    def decode(self, tokens: Tensor) -> str:
        """Return the text of tokens; bytes that are no whole character become �.

        Raises:
            ValueError: a token is not in the vocabulary.
        """
        numbers = tokens.flatten().tolist()
        strange = [number for number in numbers if not isinstance(number, int) or not 0 <= number < len(self.tokens)]
        if strange:
            raise ValueError(f"tokens are whole numbers from 0 to {len(self.tokens) - 1}, not {strange[:4]}")
        letters = "".join(self.tokens[number] for number in numbers)
        return b"".join(
            bytes([self._bytes[letter]]) if letter in self._bytes else letter.encode() for letter in letters
        ).decode(errors="replace")

    def _merge(self, word: str) -> tuple[int, ...]:
        parts = list(word)
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            first = min(pairs, key=lambda pair: self._rank.get(pair, len(self._rank)))
            if first not in self._rank:
                break
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == first:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        try:
            return tuple(self._numbers[part] for part in parts)
        except KeyError as error:
            raise ValueError(f"the vocabulary lacks {error.args[0]!r}, so it cannot write this text") from None


def tokenizer_of(file: GgufFile) -> BytePairs:
    """Return the tokenizer that a GGUF file describes.

    Raises:
        ValueError: the file describes none, or one that works otherwise.
    """
    kind, before = (file.metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if (kind, before) != ("gpt2", "smollm"):
        other = f"{repr(kind)} of kind {repr(before)}"
        raise ValueError(f"{file.path.name} has a tokenizer {other}; here: 'gpt2' of kind 'smollm'")
    lists = [file.metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges")]
    for found in lists:
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ValueError(f"{file.path.name} lacks the lists of tokens and merges of its tokenizer")
    return BytePairs(*lists)  # type: ignore[arg-type]
