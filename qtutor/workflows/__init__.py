"""PyTorch's own quantization flows behind thin, stable names.

The only room that imports torch.ao or torchao, and only inside the functions that need them. Every
function returns a new model and leaves the given one, and PyTorch's quantized engine, as they were.

    flow        needs of the model                              runs on
    "eager"     QuantStub, DeQuantStub and FloatFunctional      the kernels of a quantized engine
    "fx"        a forward that torch.fx can trace               the kernels of a quantized engine
    "pt2e"      a forward that torch.export can capture         Inductor; without `compile=True` as
                                                                a float simulation of the integers
"""

from qtutor.workflows.backends import Unavailable, needs_compiler
from qtutor.workflows.dynamic import quantize_dynamic
from qtutor.workflows.flows import convert, load, prepare_qat, quantize_static, save
from qtutor.workflows.int4 import Int4Linear, quantize_weights
from qtutor.workflows.notices import REPLACEMENTS, hide_torch_notices
from qtutor.workflows.reference import reference_form, rounding_pairs
