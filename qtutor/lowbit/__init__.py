"""Four bits and fewer: formats of weights, and what makes them cost less. Functions from tensors to tensors.

gptq        round column by column, and let the columns to come mend each error
awq         scale inputs by how loud they are, so that rounding hurts the quiet ones
smoothing   move outliers of activations into the weights
rotation    spread outliers over all channels
caches      round the keys and values that a language model keeps
groups      one scale for each run of neighbouring inputs
"""

from qtutor.lowbit.awq import awq, awq_scales
from qtutor.lowbit.caches import cache_bytes, round_cache
from qtutor.lowbit.gptq import Steps, gptq, gptq_steps, hessian, layer_loss
from qtutor.lowbit.groups import group_qparams, round_groups
from qtutor.lowbit.rotation import hadamard, rotate
from qtutor.lowbit.smoothing import smooth

__all__ = [
    "Steps",
    "awq",
    "awq_scales",
    "cache_bytes",
    "gptq",
    "gptq_steps",
    "group_qparams",
    "hadamard",
    "hessian",
    "layer_loss",
    "rotate",
    "round_cache",
    "round_groups",
    "smooth",
]
