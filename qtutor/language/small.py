"""The language model that ships with the course: 1.3 million weights that read and write about Python.

Two blocks, one token a character. `tests/train_small.py` made `small.pt` and makes it again; its licence stands in
`text_licence.txt`.
"""

import io
import os
import pickle
from functools import lru_cache
from pathlib import Path

from qtutor import storage
from qtutor.language.llama import Llama, LlamaConfig
from qtutor.language.text import VOCABULARY, decode, encode, held_out_text, training_text

import torch
from torch import Tensor

__all__ = ["CHECKPOINT", "CONFIG", "decode", "encode", "held_out_text", "load", "save", "training_text"]

CHECKPOINT = Path(__file__).with_name("small.pt")
CONFIG = LlamaConfig(vocabulary=VOCABULARY, width=256, layers=2, heads=4, key_value_heads=4, hidden=512)


def load(path: Path = CHECKPOINT) -> Llama:
    """Return the small model, in float32 and eval mode; each call gives a new copy.

    Its weights were kept in float16. Only tensors are read from the file: it can run no code.

    Raises:
        ValueError: the file does not hold the weights of this model.
    """
    model = Llama(CONFIG)
    try:
        model.load_state_dict(_weights(Path(path), os.stat(path).st_mtime_ns))
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError) as error:
        raise ValueError(f"{Path(path).name} does not hold the weights of the small model") from error
    return model.eval()


def save(model: Llama, path: Path) -> None:
    """Keep the weights of a model in float16.

    Raises:
        storage.Unwritable: nothing can be written there.
    """
    buffer = io.BytesIO()
    torch.save({name: weight.half() for name, weight in model.state_dict().items()}, buffer)
    storage.write_atomically(path, buffer.getvalue())


@lru_cache(maxsize=1)
def _weights(path: Path, changed: int) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True, map_location="cpu")
