"""Training that gives the same weights again, and leaves the caller's random numbers and threads alone.

That holds on one kind of processor. Another adds floats in another order, so a few predictions may differ.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from qtutor.samples.data import Split

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_BATCH = 64  # images


@contextmanager
def fixed_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):  # the CPU's only, so seed no other, as torch.manual_seed does
        torch.default_generator.manual_seed(0)
        yield


def train(
    model: nn.Module,
    data: Split,
    *,
    epochs: int,
    max_lr: float = 8e-3,
    channels_last: bool = False,
    name: str = "the model",
) -> nn.Module:
    """Train `model` in place (AdamW, one cycle) with a progress bar, and return it in eval mode.

    Deterministic, and the caller's random numbers and number of threads stay untouched. Can be
    interrupted at any batch. One thread trains: on a busy computer two would wait for each other.

    Args:
        model: a classifier of images.
        data: images and labels.
        epochs: how often each image is seen.
        max_lr: the largest learning rate of the cycle.
        channels_last: whether to keep the channels of a pixel side by side, which takes a quarter less time
            where there are many channels, and rounds differently.
        name: of the model, for the bar.
    """
    from torch.utils.benchmark import set_torch_threads
    from tqdm.auto import tqdm

    order = torch.Generator().manual_seed(0)
    steps = epochs * math.ceil(len(data) / _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=max_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=steps)
    layout = torch.channels_last if channels_last else torch.preserve_format
    model.train().to(memory_format=layout)  # type: ignore[call-overload]
    bar = tqdm(total=steps, desc=f"Training {name}", unit="batch")
    with set_torch_threads(1), fixed_random_numbers(), torch.enable_grad(), bar:
        for _ in range(epochs):
            for images, labels in data.shuffled(order, _BATCH):
                step(model, images, labels, optimizer, schedule)
                bar.update()
    return model.eval()


def step(
    model: nn.Module, images: Tensor, labels: Tensor, optimizer: Optimizer, schedule: LRScheduler | None = None
) -> None:
    """Train a classifier on one batch, and move on to the next learning rate."""
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if schedule is not None:
        schedule.step()
