"""PyTorch's own quantization flows behind thin, stable names.

The only module that imports torch.ao or torchao.
"""

import warnings

_NOTICES = (
    "torch.ao.quantization is deprecated",
    "Please use quant_min and quant_max to specify the range for observers",
    "torch.quantize_per_tensor, torch.quantize_per_channel and other quantized tensor creation functions",
    "TypedStorage is deprecated",
)
"""How the warnings begin that PyTorch raises about its own plans, not about what the learner did."""


def hide_torch_notices() -> None:
    """Stop PyTorch from repeating, for the rest of the session, that it plans to retire these flows.

    The lessons say it once, in a sentence. Every other warning still shows.
    """
    for notice in _NOTICES:
        warnings.filterwarnings("ignore", message=f"\\s*{notice}")
