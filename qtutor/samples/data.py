"""Images with labels that need no network: real handwritten digits, and flowers drawn by a formula."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PETALS = (3, 4, 5, 6, 8)
FLOWER_NAMES = tuple(f"{count} {shape} petals" for count in PETALS for shape in ("round", "pointed"))

_DIGITS = Path(__file__).with_name("digits.npz")


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels; also a map-style dataset, so a `DataLoader` takes it.

    Attributes:
        images: `(N, channels, height, width)` float32 in [0, 1].
        labels: `(N,)` int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def batches(self, size: int = 256) -> list[tuple[Tensor, Tensor]]:
        """Cut into `(images, labels)` batches, in order; the last may be smaller. Views: nothing is copied."""
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))

    def shuffled(self, order: torch.Generator, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `(images, labels)` batches of one epoch in a random order."""
        return (self[index] for index in torch.randperm(len(self), generator=order).split(size))


@dataclass(frozen=True)
class Images:
    """One task: train on `train`, choose on `validation`, report `test` once."""

    train: Split
    validation: Split
    test: Split


def _cut(images: Tensor, labels: Tensor, sizes: list[int]) -> Images:
    return Images(*map(Split, images.split(sizes), labels.split(sizes)))


def digits() -> Images:
    """Return 1797 real handwritten digits: 1000 to train, 200 to validate, 597 to test.

    Images are `(1, 8, 8)`. Every split holds each digit in the same proportion, always the same images.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", its test set, as scikit-learn has
    it; https://doi.org/10.24432/C50P49, licence CC BY 4.0. They ship in the order of the splits, since importing
    scikit-learn takes two seconds.
    """
    with np.load(_DIGITS) as file:
        images = torch.from_numpy(file["images"]).to(torch.float32).unsqueeze(1) / 16  # (N, 1, 8, 8)
        labels = torch.from_numpy(file["labels"]).to(torch.int64)
    return _cut(images, labels, [1000, 200, 597])


def flowers() -> Images:
    """Draw 8000 flowers by formula: 5000 to train, 1000 to validate, 2000 to test.

    Images are `(3, 32, 32)` with 8-bit values, as a photograph has. A class is a number of petals and
    their shape (`FLOWER_NAMES`), as many of each; colour, place, size, turn, light and noise are
    random, always the same.
    """
    images, labels = _flowers()
    return _cut(images / 255, labels.clone(), [5000, 1000, 2000])


@lru_cache(maxsize=1)
def _flowers() -> tuple[Tensor, Tensor]:
    """All flowers as uint8: a quarter of the memory, and the caller's own floats cannot spoil them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8000) % len(FLOWER_NAMES)
    return torch.cat([_draw_flowers(part, generator) for part in labels.split(500)]), labels


def _draw_flowers(labels: Tensor, generator: torch.Generator, size: int = 32) -> Tensor:
    """`(N, 3, size, size)` uint8 flowers of the given classes."""

    def pick(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), 1, 1, 1, generator=generator)  # (N, 1, 1, 1)

    def colour(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
        sector = torch.tensor([0.0, 4.0, 2.0]).view(1, 3, 1, 1)
        return value * (1 - saturation * (1 - (((hue * 6 + sector) % 6 - 3).abs() - 1).clamp(0, 1)))  # (N, 3, 1, 1)

    def cover(depth: Tensor) -> Tensor:
        return torch.sigmoid(1.2 * size * depth)  # 1 inside, 0 outside, smooth over about a pixel

    petals = torch.tensor(PETALS)[labels // 2].view(-1, 1, 1, 1)
    pointed = (labels % 2 == 1).view(-1, 1, 1, 1)
    axis = torch.linspace(-1, 1, size)
    x, y = axis.view(1, 1, 1, -1) - pick(-0.22, 0.22), axis.view(1, 1, -1, 1) - pick(-0.22, 0.22)
    turn, tilt = pick(0, 2 * math.pi), pick(0.7, 1)
    x, y = x * turn.cos() + y * turn.sin(), (y * turn.cos() - x * turn.sin()) / tilt
    radius, reach = x.hypot(y), pick(0.55, 0.95)

    # Every pixel turns into the frame of its nearest petal: `along` it from 0 to 1, `across` it from the middle.
    sector = 2 * math.pi / petals
    angle = torch.remainder(torch.atan2(y, x) - pick(0, 2 * math.pi), sector) - sector / 2
    along, across = radius * angle.cos() / reach, (radius * angle.sin() / reach).abs()
    t = along.clamp(0, 1)
    outline = torch.where(pointed, 3.4 * t**0.8 * (1 - t), 2 * (t * (1 - t)).sqrt() * (0.55 + 0.45 * t))
    half_width = (0.62 * (sector / 2).sin()).clamp(max=0.42) * pick(0.85, 1.1)
    depth = torch.minimum(outline * half_width - across, 1 - along)

    hue = pick(0.68, 1.19)  # from violet through red to yellow: never the green of the leaves
    tip = colour(hue, pick(0.1, 0.85), pick(0.8, 1.0))
    base = colour(hue + pick(-0.12, 0.12), pick(0.3, 0.95), pick(0.6, 1.0))
    crease = 1 - 0.25 * torch.exp(-((across / half_width * 5.5) ** 2))
    rim = 0.72 + 0.28 * torch.sigmoid(9 * depth / half_width - 1.5)
    heart = pick(0.13, 0.2) * reach
    pollen = colour(pick(0.08, 0.17), pick(0.7, 1.0), pick(0.45, 1.0)) * (1.15 - 0.45 * (radius / heart).clamp(max=1))

    leaves = 1 + 0.35 * torch.sin(pick(2, 6) * x + pick(0, 6)) * torch.sin(pick(2, 6) * y + pick(0, 6))
    shade = 1 - 0.35 * torch.sigmoid(size / 4 * (0.7 * reach - radius))
    image = colour(pick(0.22, 0.42), pick(0.35, 0.75), pick(0.25, 0.6)) * leaves * shade
    image = image.lerp((base + (tip - base) * t) * crease * rim, cover(depth * reach))
    image = image.lerp(pollen, cover(heart - radius))
    image = image * (1 + pick(0, 0.4) * x) * pick(0.75, 1.15)
    image = image + 0.06 * torch.randn(image.shape, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
