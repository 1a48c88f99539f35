"""The real flowers and real pretrained networks, for who is online and asks for them: no lesson needs them.

Their errors say in one sentence what is missing, how to get it, and what serves without a network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

from qtutor import (
    storage,
    vision,  # noqa: F401  vision makes torchvision importable
)
from qtutor.samples.data import Images

import torch
from torch import Tensor, nn


def flowers102(root: Path | str | None = None, download: bool = False) -> Images:
    """Load the real flowers: 8189 photographs of 102 kinds (Nilsback and Zisserman 2008), 1020 to train.

    Images become `(3, 224, 224)` tensors, normalised as torchvision's ImageNet weights expect; a
    `DataLoader` batches them. `flowers()` is the stand-in that needs no network.

    Args:
        root: the folder that holds `flowers-102`; by default where qtutor keeps its data.
        download: fetch the 345 MB first, if they are not there.

    Raises:
        ConnectionError: the download failed.
        RuntimeError: the data are not there, or damaged.
    """
    from torchvision.datasets import Flowers102
    from torchvision.models import ResNet18_Weights

    root = storage.data_dir() if root is None else Path(root)
    transform = ResNet18_Weights.IMAGENET1K_V1.transforms()
    fix = f"are not in {root}, or are damaged: call flowers102(download=True) once while online (345 MB)"
    with _in_one_sentence("The photographs of Flowers102", fix, "use flowers(), which needs no network"):
        return Images(*(Flowers102(root, part, transform, download=download) for part in ("train", "val", "test")))


def pretrained_resnet18() -> nn.Module:
    """Return torchvision's ResNet-18 with its ImageNet weights, in eval mode; fetches 45 MB the first time.

    Raises:
        ConnectionError: the weights are not on this computer, and the download failed.
        RuntimeError: the weights on this computer are damaged.
    """
    from torchvision.models import ResNet18_Weights, resnet18

    weights = ResNet18_Weights.IMAGENET1K_V1
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    fix, instead = f"are damaged: delete {file} and call again", 'use trained("flowers_resnet"), which needs no network'
    with _in_one_sentence("The weights of ResNet-18", fix, instead):
        return resnet18(weights=weights).eval()


class SpeakerEncoder(nn.Module):
    """Three LSTM layers over `(N, frames, 40)` mel spectra; `(N, 256)` unit vectors come out, alike for one speaker."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, spectra: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(spectra)
        vectors = torch.relu(self.linear(hidden[-1]))
        return vectors / vectors.norm(dim=1, keepdim=True)


def speaker_encoder() -> SpeakerEncoder:
    """Return a real speaker encoder in eval mode, with the weights that the package Resemblyzer carries (17 MB).

    Source: https://github.com/resemble-ai/Resemblyzer (Apache 2.0).

    Raises:
        ModuleNotFoundError: the package is not installed; the message says how.
        RuntimeError: its weights are damaged.
    """
    found = find_spec("resemblyzer")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "no speaker encoder here: python -m pip install --no-deps Resemblyzer brings its weights (17 MB)"
        )
    file = Path(found.submodule_search_locations[0], "pretrained.pt")
    fix = "are damaged: install Resemblyzer again"
    with _in_one_sentence("The weights of the speaker encoder", fix, 'use trained("digits_lstm")'):
        state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    encoder = SpeakerEncoder()
    encoder.load_state_dict({name: weight for name, weight in state.items() if not name.startswith("similarity")})
    return encoder.eval()


@contextmanager
def _in_one_sentence(what: str, fix: str, instead: str) -> Iterator[None]:
    """Replace torchvision's chains of errors."""
    try:
        yield
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(f"{what} cannot be downloaded ({reason}): try again while online, or {instead}") from None
    except (RuntimeError, EOFError, UnpicklingError):
        raise RuntimeError(f"{what} {fix}, or {instead}") from None
