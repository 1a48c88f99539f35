"""Four bits and fewer: formats for weights, how they are packed, and what makes rounding cost less.

Functions from tensors to tensors:

    formats      what every format can do: encode, decode, round
    integers     integers with a scale for each group
    floats       E2M1 with three kinds of scales, and NF4
    stored       formats that have a layout in bytes
    blocks       GGUF's Q4_0, Q4_1, Q5_0, Q8_0
    superblocks  GGUF's Q4_K and Q6_K
    packing      codes close together in bytes
    gptq         round column by column, and let the columns to come mend each error
    awq          scale inputs by how loud they are, so that rounding hurts the quiet ones
    smoothing    move outliers of activations into the weights
    rotation     spread outliers over all channels
    caches       round the keys and values that a language model keeps
"""

from qtutor.lowbit.awq import awq, awq_scales
from qtutor.lowbit.blocks import Q4_0, Q4_1, Q5_0, Q8_0
from qtutor.lowbit.caches import cache_bytes, round_cache
from qtutor.lowbit.floats import E2M1, E2M1_LEVELS, MXFP4, NF4, NF4_LEVELS, NVFP4
from qtutor.lowbit.formats import Codes, Format, Scales
from qtutor.lowbit.gptq import Steps, gptq, gptq_steps, hessian, layer_loss
from qtutor.lowbit.integers import integers
from qtutor.lowbit.packing import pack, unpack
from qtutor.lowbit.rotation import hadamard
from qtutor.lowbit.smoothing import smooth
from qtutor.lowbit.stored import StoredFormat
from qtutor.lowbit.superblocks import Q4_K, Q6_K

import torch

INT8, INT4, INT3, INT2 = (integers(bits, group=64, scale_dtype=torch.float16) for bits in (8, 4, 3, 2))
"""Asymmetric, one float16 scale for 64 weights."""

FORMATS: dict[str, Format] = {
    "INT8": INT8,
    "INT4": INT4,
    "INT3": INT3,
    "INT2": INT2,
    **{form.name: form for form in (E2M1, NF4, MXFP4, NVFP4, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q6_K)},
}
"""Every format by its name."""
