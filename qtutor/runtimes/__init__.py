"""One trained model in every CPU runtime that is here, each as a callable that `benchmark.compare` takes.

    name                 what runs                                                 needs
    eager FP32           the model as it is                                        nothing more
    channels-last        the same, its images laid out pixel by pixel              nothing more
    BF16                 the same in 16 bits                                       nothing more
    torch.compile        Inductor's float kernels, with frozen weights             a C++ compiler
    FX INT8              PyTorch's INT8 kernels, with no Python between them       torch.ao
    PT2E INT8            Inductor's INT8 kernels                                   torchao, a C++ compiler
    ONNX Runtime FP32    ONNX Runtime, on the exported graph                       the extra `runtimes`
    ONNX Runtime INT8    the same, quantized as the tool's docstring advises       the extra `runtimes`
    OpenVINO FP32        OpenVINO, on the exported graph                           the extra `runtimes`
    OpenVINO INT8        the same, quantized by NNCF                               the extra `runtimes`

and, only when asked for by name, for models of linear layers whose weights are to have 4 bits:

    INT4 weights         PyTorch's kernel that unpacks them, in bfloat16           nothing more
    ONNX Runtime INT4    its operator MatMulNBits                                  the extra `runtimes`

A runtime that is not here, or that cannot take the model, still gets an entry: calling it raises an
error that says why and what to do, and so its row in a comparison says it too. For such a computer
`recorded` has what another one measured.
"""

from qtutor.runtimes.entries import FOUR_BITS, NAMES, Runtime, build, missing
from qtutor.runtimes.exported import export_onnx
from qtutor.runtimes.four_bits import quantize_onnx_weights
from qtutor.runtimes.onnx_runtime import onnx_operators, onnx_session, quantize_onnx
from qtutor.runtimes.recorded import RECORDED, recorded, recorded_operators
