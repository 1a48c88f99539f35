"""Trained models: made, in seconds, the first time that they are asked for, and kept by `qtutor.storage`."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtutor import manifest, storage
from qtutor.samples.data import Images, digits, flowers
from qtutor.samples.models import MLP, DepthwiseNet, RowReader, SlimResNet, SmallCNN
from qtutor.samples.training import fixed_random_numbers, train

import torch
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How to make a trained model.

    Another model or another of these settings makes the kept copy obsolete by itself; after any other
    change (of the data, the first weights, the training) raise `version`.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], Images]
    epochs: int
    max_lr: float = 8e-3
    channels_last: bool = False
    version: int = 1

    @property
    def how(self) -> dict[str, Any]:
        """The settings that `train` gets."""
        return {"epochs": self.epochs, "max_lr": self.max_lr, "channels_last": self.channels_last}

    def untrained(self) -> nn.Module:
        """Build the model with the weights that training starts from."""
        with fixed_random_numbers():
            return self.model()


RECIPES = {
    "digits_cnn": Recipe(SmallCNN, digits, epochs=15),
    "digits_depthwise": Recipe(DepthwiseNet, digits, epochs=20),
    "digits_lstm": Recipe(RowReader, digits, epochs=30),
    "digits_gru": Recipe(lambda: RowReader(kind=nn.GRU), digits, epochs=30),
    "digits_mlp": Recipe(MLP, digits, epochs=15, max_lr=4e-3),
    "flowers_cnn": Recipe(lambda: SmallCNN(24, 3), flowers, epochs=6, channels_last=True),
    "flowers_resnet": Recipe(SlimResNet, flowers, epochs=4, channels_last=True),
}


def trained(name: str) -> nn.Module:
    """Return a trained model of `RECIPES`, in eval mode; each call gives a new copy.

    The first call trains it, with a progress bar; later calls, in any kernel, load it.

    Raises:
        ValueError: there is no recipe of that name.
    """
    return _trained(name)[0]


def prepare(names: Iterable[str] | None = None) -> dict[str, str]:
    """Train ahead what the lessons will ask for; run it again at any time, it only does what is missing.

    Args:
        names: of `RECIPES`; by default all that the lessons ask for.

    Returns:
        For each name "built", "found", or "not kept" where it could not be written.

    Raises:
        ValueError: there is no recipe of some name.
    """
    names = [names] if isinstance(names, str) else list(manifest.models() if names is None else names)
    for name in names:
        _recipe(name)
    return {name: _trained(name)[1] for name in names}


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"there is no trained model {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def place(name: str) -> Path:
    """Return where a trained model is kept: made by another recipe, it has another place.

    Raises:
        ValueError: there is no recipe of that name.
    """
    recipe = _recipe(name)
    made = f"{recipe.version} {recipe.how} {recipe.untrained()}"
    return storage.cache_dir() / f"{name}-{hashlib.sha256(made.encode()).hexdigest()[:8]}.pt"


def _trained(name: str) -> tuple[nn.Module, str]:
    recipe, path = _recipe(name), place(name)
    model, outcome = recipe.untrained(), "found"

    def make() -> bytes:
        nonlocal outcome
        outcome = "built"
        buffer = io.BytesIO()
        built, data = recipe.untrained(), recipe.data().train
        train(built, data, **recipe.how, name=name)
        torch.save(built.state_dict(), buffer)
        return buffer.getvalue()

    state = torch.load(io.BytesIO(storage.once(path, make, name)), weights_only=True)
    model.load_state_dict(state)
    return model.eval(), outcome if os.path.exists(path) else "not kept"
