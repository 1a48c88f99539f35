"""A model with 4-bit weights, in the two runtimes whose kernels for them are right, and pay at small batches.

    INT4 weights         PyTorch's, in bfloat16: `workflows.quantize_weights`
    ONNX Runtime INT4    its operator MatMulNBits, activations rounded to 8 bits as they come (accuracy level 4)

Source: the documentation of ONNX Runtime's contributed operators, com.microsoft.MatMulNBits.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtutor.benchmark import size_bytes
from qtutor.lowbit import integers, pack
from qtutor.runtimes.exported import Exported
from qtutor.runtimes.onnx_runtime import run_file
from qtutor.storage import write_atomically
from qtutor.workflows import quantize_weights

import numpy as np
import torch
from torch import Tensor

GROUP = 64


def int4_weights(exported: Exported) -> tuple[Callable, int]:
    model = quantize_weights(exported.model, group=GROUP)
    return model, size_bytes(model)


def onnx_int4(exported: Exported) -> tuple[Callable, int]:
    path = exported.folder.path / "int4.onnx"
    quantize_onnx_weights(exported.onnx, path, group=GROUP)
    return run_file(exported, path)


def quantize_onnx_weights(path: Path | str, quantized: Path | str, *, group: int = GROUP) -> None:
    """Write an ONNX model whose products with constant matrices are MatMulNBits, with 4-bit weights.

    Weights are those of `lowbit.integers(4, group)`: asymmetric, with float32 scales. Activations are rounded to 8
    bits, in the same groups: accuracy level 4.

    Args:
        path: the float model, from `export_onnx`.
        quantized: where to write the other.
        group: 16 or more, a power of two: how many inputs share a scale.

    Raises:
        ValueError: there is no such product, or the group is none of these.
    """
    import onnx
    from onnx import helper, numpy_helper

    if group < 16 or group & (group - 1):
        raise ValueError(f"MatMulNBits shares a scale among a power of two of inputs, 16 or more, not {group}")
    model = onnx.load(str(path))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        weight = _weight(node, constants, numpy_helper)
        if weight is None or weight.shape[1] % group:
            nodes.append(node)
            continue
        name = f"{node.output[0]}_4bits"
        parts = _packed(weight, group)
        for part, value in parts.items():
            model.graph.initializer.append(numpy_helper.from_array(value, f"{name}_{part}"))
        inputs = [node.input[0], *(f"{name}_{part}" for part in parts)]
        if node.op_type == "Gemm" and len(node.input) > 2:
            inputs += ["", node.input[2]]
        sizes: dict[str, Any] = {"K": weight.shape[1], "N": weight.shape[0], "bits": 4, "block_size": group}
        nodes.append(
            helper.make_node(
                "MatMulNBits", inputs, node.output, name, domain="com.microsoft", accuracy_level=4, **sizes
            )
        )
    if nodes == [*model.graph.node]:
        raise ValueError(f"the model has no product with a constant matrix whose inputs are a multiple of {group}")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = _read_in(model.graph)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    write_atomically(Path(quantized), model.SerializeToString())


def _read_in(graph: Any) -> set[str]:
    """The names that a graph and those within it read or give."""
    names = {output.name for output in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            names.update(*map(_read_in, (attribute.g, *attribute.graphs)))
    return names


def _weight(node: Any, constants: dict, numpy_helper: Any) -> Tensor | None:
    """The constant `(out, in)` matrix that a node multiplies its input by; None where it does something else."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
        return None
    matrix = torch.from_numpy(numpy_helper.to_array(constants[node.input[1]]).copy())
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if matrix.dim() != 2 or matrix.dtype != torch.float32:
        return None
    if node.op_type == "MatMul":
        return matrix.T.contiguous()
    plain = all(attributes[name].f == 1.0 for name in ("alpha", "beta") if name in attributes)
    if not plain or ("transA" in attributes and attributes["transA"].i):
        return None
    return matrix if "transB" in attributes and attributes["transB"].i else matrix.T.contiguous()


def _packed(weight: Tensor, group: int) -> dict[str, np.ndarray]:
    """Codes, scales and zero points as MatMulNBits takes them: two codes a byte, the first in the low half."""
    codes = integers(4, group).encode(weight)
    assert codes.scales.shift is not None
    return {
        "codes": pack(codes.values.view(len(weight), -1, group), 4).numpy(),
        "scales": codes.scales.scale.float().flatten().numpy(),
        "zero_points": pack(codes.scales.shift, 4).flatten().numpy(),
    }
