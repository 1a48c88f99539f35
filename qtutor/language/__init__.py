"""A language model to quantize: a small one that ships, what it reads, and what is lost when its weights are rounded.

`llama` is the model, with `cache` for what attention keeps; `small` the one that ships, `text` what it was trained
and is measured on; `measuring` says in bits what a change costs; `generating` writes text; `calibrating` records what
layers read.

For larger models: `gguf` reads their files, `llama_file` a Llama in one, `tokenizer` its tokens, `smollm`
finds a real one; `streaming` runs a model block by block in several versions, `rounding` has a layer whose inputs are
rounded too, and `planting` gives a small model the outliers of a large one.
"""

from qtutor.language.cache import KeyValueCache
from qtutor.language.calibrating import hessians, layer_inputs, linear_layers
from qtutor.language.generating import generate
from qtutor.language.llama import Llama, LlamaConfig
from qtutor.language.measuring import Measured, bits_per_character, kl, predictions
