"""What a changed language model has lost, in bits, with the interval that says whether it is noise.

    bits per character    mean of -log2 p(next token)                        how well a model predicts a text
    KL to a reference     mean of sum over tokens r log2(r / p)              how far its predictions are from another's

Rounding moves some predictions towards the text and others away from it, and in bits per character these nearly cancel.
KL compares whole distributions, of which none can gain: it is never negative, and sees a change that the loss cannot.

A text is cut into windows, each read from its start. Windows stand in for independent texts: intervals are Student's,
of their means. Two models are compared window by window, so that easy and hard windows cancel.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from qtutor.models.tensors import kl_bits

import torch
from torch import Tensor, nn
from torch.nn import functional

WINDOW = 256
_TOGETHER = 1024  # tokens in one call of a model


@dataclass(frozen=True)
class Measured:
    """A mean over windows of text, in bits per token.

    Attributes:
        windows: `(windows,)` float64, the mean of each.
        confidence: that the interval holds the mean of all such text.
    """

    windows: Tensor
    confidence: float = 0.95

    def __post_init__(self):
        if self.windows.dim() != 1 or len(self.windows) < 2:
            raise ValueError(f"an interval takes two windows or more, not a tensor of {tuple(self.windows.shape)}")
        if not self.windows.isfinite().all():
            raise ValueError("a window measures NaN or infinity: the model's predictions are no distribution")

    @property
    def mean(self) -> float:
        return float(self.windows.double().mean())

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self._half

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self._half

    @property
    def _half(self) -> float:
        from scipy.special import stdtrit  # scipy.stats takes a second and 48 MB to import

        count = len(self.windows)
        return float(stdtrit(count - 1, (1 + self.confidence) / 2) * self.windows.double().std() / count**0.5)

    def minus(self, other: "Measured") -> "Measured":
        """Return how much more bits this takes than another on the same windows: a paired difference.

        Raises:
            ValueError: the two were not measured on equally many windows.
        """
        if len(self.windows) != len(other.windows):
            raise ValueError(f"{len(self.windows)} windows cannot be paired with {len(other.windows)}: same text?")
        return Measured(self.windows - other.windows, self.confidence)

    def finding(self, name: str, other: "Measured", other_name: str) -> str:
        """Say in a sentence how this does beside another, and no more than the paired interval tells.

        Example:
            >>> a = Measured(torch.tensor([1.0, 2.0, 3.0]))
            >>> Measured(torch.tensor([1.1, 2.2, 3.3])).finding("INT3", a, "INT4")
            'INT3 and INT4: no difference that these 3 windows can tell (INT3 +0.2000 bits, -0.0484 to +0.4484).'
        """
        more = self.minus(other)
        if more.low > 0 or more.high < 0:
            how = "more" if more.low > 0 else "less"
            size, low, high = _bits(abs(more.mean), *sorted((abs(more.low), abs(more.high))))
            return f"{name}: {size} bits {how} than {other_name} ({low} to {high})."
        mean, low, high = _bits(more.mean, more.low, more.high, sign="+")
        interval = f"{name} {mean} bits, {low} to {high}"
        return f"{name} and {other_name}: no difference that these {len(self.windows)} windows can tell ({interval})."

    def __str__(self) -> str:
        mean, low, high = _bits(self.mean, self.low, self.high)
        return f"{mean} bits ({low} to {high})"


def _bits(mean: float, *ends: float, sign: str = "") -> list[str]:
    """Write a mean and its interval with as many digits as the mean asks for."""
    digits = 4 if abs(mean) >= 0.001 else 6
    return [f"{value:{sign}.{digits}f}" for value in (mean, *ends)]


def bits_per_character(model: nn.Module | Tensor, tokens: Tensor, window: int = WINDOW) -> Measured:
    """Measure how many bits a model needs for each token of a text, which for the small model is a character.

    `2 ** bits` is called perplexity.

    Args:
        model: from tokens `(N, T)` to logits `(N, T, vocabulary)`, or what `predictions` returned for it, which saves
            its calls.
        tokens: `(length,)`; what is left after the last whole window is not read.
        window: tokens that are read together, the first without any before it.

    Raises:
        ValueError: the text is shorter than two windows, or the predictions belong to another text or window.
    """
    means = []
    for scores, targets in _scores(model, tokens, window):
        losses = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none")
        means.append(losses.view(targets.shape).double().mean(dim=1))
    return Measured(torch.cat(means) / math.log(2))


def kl(model: nn.Module | Tensor, reference: nn.Module | Tensor, tokens: Tensor, window: int = WINDOW) -> Measured:
    """Measure the KL divergence of a model's predictions from a reference's, in bits per token.

    Args:
        model: as for `bits_per_character`.
        reference: the same, of the same vocabulary.
        tokens: `(length,)`, as there.
        window: as there.

    Raises:
        ValueError: as there.
    """
    pairs = zip(_scores(reference, tokens, window), _scores(model, tokens, window), strict=True)
    return Measured(torch.cat([kl_bits(wanted, scores).double().mean(dim=1) for (wanted, _), (scores, _) in pairs]))


def predictions(model: nn.Module, tokens: Tensor, window: int = WINDOW) -> Tensor:
    """Return the scores `(windows, window, vocabulary)` of a model, which `bits_per_character` and `kl` take for it."""
    return torch.cat([scores for scores, _ in _scores(model, tokens, window)])


def _scores(model: nn.Module | Tensor, tokens: Tensor, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the scores of some windows, from a model or from its predictions, and what follows each of their tokens."""
    start = 0
    for inputs, targets in windows(tokens, window):
        if not isinstance(model, Tensor):
            with torch.no_grad():
                scores = model(inputs).float()
            yield scores, targets
        elif model.shape[:2] != ((len(tokens) - 1) // window, window):
            raise ValueError(f"predictions {tuple(model.shape)} are not those of this text and window")
        else:
            yield model[start : start + len(inputs)], targets
        start += len(inputs)


def windows(tokens: Tensor, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a text into windows: yield some of them, and what follows each of their tokens, `(n, window)` each.

    Raises:
        ValueError: the text is shorter than two windows.
    """
    if window < 1 or tokens.dim() != 1:
        raise ValueError(
            f"a text is tokens of shape (length,), a window at least 1; not {tuple(tokens.shape)}, {window}"
        )
    count = (len(tokens) - 1) // window
    if count < 2:
        raise ValueError(f"{len(tokens)} tokens are too few: two windows of {window} take {2 * window + 1}")
    inputs, targets = (tokens[i : i + count * window].view(count, window) for i in (0, 1))
    together = max(1, _TOGETHER // window)
    yield from zip(inputs.split(together), targets.split(together), strict=True)
