"""The language model that ships with the course: 1.3 million weights that read and write about Python.

Two blocks, one token a character. `tests/train_small.py` made `small.pt` and makes it again; its licence stands in
`text_licence.txt`.
"""

from functools import cache
from pathlib import Path

from qtutor.language.llama import Llama, LlamaConfig
from qtutor.language.text import VOCABULARY, decode, encode, held_out_text, training_text

import torch
from torch import Tensor

__all__ = ["CHECKPOINT", "CONFIG", "decode", "encode", "held_out_text", "load", "training_text"]

CHECKPOINT = Path(__file__).with_name("small.pt")
CONFIG = LlamaConfig(vocabulary=VOCABULARY, width=256, layers=2, heads=4, key_value_heads=4, hidden=512)


def load() -> Llama:
    """Return the small model, in float32 and eval mode; each call gives a new copy.

    Its weights were kept in float16. Only tensors are read from the file: it can run no code.
    """
    model = Llama(CONFIG)
    model.load_state_dict(_weights())
    return model.eval()


@cache
def _weights() -> dict[str, Tensor]:
    return torch.load(CHECKPOINT, weights_only=True, map_location="cpu")
