"""FX's reference form of a model: it computes in floating point, and every rounding stands in it to be seen."""

from typing import TYPE_CHECKING

from qtutor.models.tracing import label
from qtutor.workflows.backends import at_work, torch_ao

import torch
from torch import Tensor, fx, nn

if TYPE_CHECKING:
    import pandas as pd


def reference_form(model: nn.Module, images: Tensor, *, fused: bool = True) -> fx.GraphModule:
    """Prepare and convert a model as FX does, up to the form in which a rounding is a pair of quantize and dequantize.

    Activations get 8 bits, by PyTorch's settings for the engine `onednn`.

    Args:
        model: in eval mode, and one that torch.fx can trace; it stays as it is.
        images: to calibrate with.
        fused: False: merge nothing, and put observers behind every operator.
    """
    ao = torch_ao()
    from torch.ao.quantization.backend_config import BackendConfig, get_native_backend_config

    backend = get_native_backend_config()
    if not fused:
        apart = [config for config in backend.configs if config.fuser_method is None]
        backend = BackendConfig("nothing merged").set_backend_pattern_configs(apart)
    with at_work(None), torch.no_grad():
        settings = ao.get_default_qconfig_mapping("onednn")
        prepared = ao.quantize_fx.prepare_fx(model, settings, (images[:1],), backend_config=backend)
        prepared(images)
        return ao.quantize_fx.convert_to_reference_fx(prepared, backend_config=backend)


def rounding_pairs(reference: fx.GraphModule, images: Tensor) -> "pd.DataFrame":
    """Return a row for each pair of quantize and dequantize in a reference form, in the order in which they run.

    Its index names what is rounded; its columns are `scale`, `zero_point` and `moved`, the share of the values that
    the pair changes. What chooses among codes, such as ReLU or max pooling, leaves its pair nothing to change.

    Args:
        reference: from `reference_form`.
        images: to run it on.
    """
    import pandas as pd

    rows: dict[str, tuple[float, int, float]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            output = super().run_node(n)
            if n.target is torch.quantize_per_tensor:
                before, scale, zero_point, *_ = self.fetch_args_kwargs_from_env(n)[0]
                moved = (output.dequantize() - before).abs() > 1e-3 * scale  # less is float32 that multiplies
                rows[label(n.all_input_nodes[0])] = (float(scale), int(zero_point), float(moved.float().mean()))
            return output

    with at_work(None), torch.no_grad():
        Watch(reference).run(images)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["scale", "zero_point", "moved"])
