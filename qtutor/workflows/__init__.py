"""PyTorch's own quantization flows behind thin, stable names.

The only room that imports torch.ao or torchao, and only inside the functions that need them. Every
function returns a new model and leaves the given one, and PyTorch's quantized engine, as they were.

    flow        needs of the model                              runs on
    "eager"     QuantStub, DeQuantStub and FloatFunctional      the kernels of a quantized engine
    "fx"        a forward that torch.fx can trace               the kernels of a quantized engine
    "pt2e"      a forward that torch.export can capture         Inductor; without `compile=True` as
                                                                a float simulation of the integers

    flows              a float model into an INT8 one and into a file: what callers use
    dynamic, int4      the two that need no data: INT8 weights, and weights of four bits
    recipe             what was asked for: all that is needed to build the same model again
    building           from a recipe to a model, compared at each step
    eager, fx, pt2e    the steps of each flow
    checks, limits     an INT8 model against the float one; what decibels mean
    judging, telling   what is said of a result, and how: warnings, names of layers
    refusals           why a flow cannot take a model, in plain words
    rewriting          what FX has traced, in words that its converter knows
    calls, infinity    modules called several times; what reads infinity stays in floats
    numbers            what a trace made constants, in the state of a model
    floats             the names of what stays in floating point
    kernels, low_bits  kernels that compute something else, replaced; grids of fewer bits
    training           what trains computes what the converted model will
    backends, notices  what is installed here; what PyTorch says of its own plans
    reference          FX's reference form, in which each rounding can be seen
    model_file         tensors and numbers in a file, and no code
"""

from qtutor.workflows.backends import Unavailable, needs_compiler
from qtutor.workflows.dynamic import quantize_dynamic
from qtutor.workflows.flows import convert, load, prepare_qat, quantize_static, save
from qtutor.workflows.int4 import Int4Linear, quantize_weights
from qtutor.workflows.notices import REPLACEMENTS, hide_torch_notices
from qtutor.workflows.reference import reference_form, rounding_pairs
