"""A Llama from a GGUF file: whole, or block by block, for a computer that would not hold it several times over."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from reprlib import repr
from typing import TypeVar

from qtutor.language.gguf import GgufFile
from qtutor.language.llama import Block, Llama, LlamaConfig, check_tokens

import torch
from torch import Tensor, nn

_OF_A_BLOCK = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "ffn_norm": "feed_forward_norm",
    "ffn_gate": "feed_forward.gate",
    "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.down",
}

Built = TypeVar("Built", bound=nn.Module)


class LlamaFile:
    """The parts of a Llama in a GGUF file, each decoded to float32 when it is asked for.

    Args:
        file: what `read_gguf` returned.

    Raises:
        ValueError: another architecture than Llama, values that are absent or contradict each other, a tensor that
            is absent, too many, or of another shape than the values say.
    """

    def __init__(self, file: GgufFile):
        self.file = file
        self.config = _config(file)
        expected = _shapes(self.config)
        for name, shape in expected:
            if name not in file.tensors:
                raise ValueError(f"{file.path.name} lacks the tensor {name!r} of the model that it describes")
            if file.tensors[name].shape != shape:
                found = file.tensors[name].shape
                raise ValueError(f"{file.path.name} has {name!r} of shape {found}, and its values say {shape}")
        unknown = sorted(file.tensors.keys() - dict(expected).keys())
        if unknown:
            raise ValueError(
                f"{file.path.name} holds {unknown[0]!r}, which a plain Llama has not: another architecture"
            )

    @cached_property
    def embedding(self) -> Tensor:
        """`(vocabulary, width)`; kept, since the first step and, where it is tied, the last one need it."""
        return self.file.tensor("token_embd.weight")

    def embed(self, tokens: Tensor) -> Tensor:
        """Return `(N, T, width)`, what the first block takes."""
        return self.embedding[check_tokens(tokens, self.config.vocabulary)]

    def block(self, layer: int) -> Block:
        """Return a block of its own, decoded anew.

        Raises:
            ValueError: the model has no such block.
        """
        if layer not in range(self.config.layers):
            raise ValueError(f"the blocks are 0 to {self.config.layers - 1}, got {layer!r}")
        block = _fresh(lambda: Block(self.config))
        for stored, name in _OF_A_BLOCK.items():
            weight = self.file.tensor(f"blk.{layer}.{stored}.weight")
            block.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
        return block.eval()

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits `(N, T, vocabulary)` of what the last block gave."""
        scale = self.file.tensor("output_norm.weight")
        x = nn.functional.rms_norm(x, (self.config.width,), scale, self.config.norm_eps)
        head = self.embedding if self.config.tied else self.file.tensor("output.weight")
        return nn.functional.linear(x, head)

    def whole(self) -> Llama:
        """Return the model with all its weights in float32: four bytes for each."""
        model = _fresh(lambda: Llama(replace(self.config, layers=1, vocabulary=1)))  # its sizes follow the weights
        model.config = self.config
        model.embedding = nn.Embedding.from_pretrained(self.embedding.clone())
        model.norm.weight = nn.Parameter(self.file.tensor("output_norm.weight"), requires_grad=False)
        if model.head is not None:
            model.head.weight = nn.Parameter(self.file.tensor("output.weight"), requires_grad=False)
            model.head.out_features = self.config.vocabulary
        model.blocks = nn.ModuleList(self.block(layer) for layer in range(self.config.layers))
        return model.eval()


def _config(file: GgufFile) -> LlamaConfig:
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{file.path.name} holds a model of the kind {repr(architecture)}; only 'llama' is read here")

    def number(name: str, default: float | None = None) -> float:
        value = file.metadata.get(f"llama.{name}", default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{file.path.name} gives llama.{name} as {repr(value)}, and a number above 0 is needed")
        return value

    def count(name: str, default: int | None = None) -> int:
        value = number(name, default)
        if not isinstance(value, int):
            raise ValueError(f"{file.path.name} gives llama.{name} as {repr(value)}, and a whole number is needed")
        return value

    factors = [file.metadata.get(f"llama.rope.{name}", 1) for name in ("scale_linear", "scaling.factor")]
    if file.metadata.get("llama.rope.scaling.type", "none") != "none" or not all(f in (0, 1) for f in factors):
        raise ValueError(f"{file.path.name} stretches its positions (llama.rope.scaling), which is not done here")
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path.name} lacks the tensor 'token_embd.weight' of the model that it describes")
    heads = count("attention.head_count")
    config = LlamaConfig(
        vocabulary=file.tensors["token_embd.weight"].shape[0],
        width=count("embedding_length"),
        layers=count("block_count"),
        heads=heads,
        key_value_heads=count("attention.head_count_kv", heads),
        hidden=count("feed_forward_length"),
        rope_base=number("rope.freq_base", 10_000.0),
        norm_eps=number("attention.layer_norm_rms_epsilon"),
        interleaved=True,
        tied="output.weight" not in file.tensors,
    )
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if count(name, config.head_width) != config.head_width:
            found = file.metadata[f"llama.{name}"]
            raise ValueError(
                f"{file.path.name} gives llama.{name} as {found}, and its heads are {config.head_width} wide"
            )
    if config.layers > len(file.tensors):
        raise ValueError(f"{file.path.name} announces {config.layers} blocks and holds {len(file.tensors)} tensors")
    return config


def _shapes(config: LlamaConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Return the tensors of a model and their shapes."""
    width, hidden, shared = config.width, config.hidden, config.key_value_heads * config.head_width
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("attn_norm", "ffn_norm"), (width,)),
        **dict.fromkeys(("attn_q", "attn_output"), (width, width)),
        **dict.fromkeys(("attn_k", "attn_v"), (shared, width)),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (hidden, width)),
        "ffn_down": (width, hidden),
    }
    matrix = (config.vocabulary, width)
    listed: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", matrix), ("output_norm.weight", (width,))]
    if not config.tied:
        listed.append(("output.weight", matrix))
    for layer in range(config.layers):
        listed += [(f"blk.{layer}.{name}.weight", shape) for name, shape in shapes.items()]
    return listed


def _fresh(build: Callable[[], Built]) -> Built:
    """Build a module whose weights are replaced at once, and leave the learner's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        return build()
