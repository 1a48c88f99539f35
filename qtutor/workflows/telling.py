"""What is said to the owner of a model: the warnings of all flows, and how they name layers."""

import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping

from qtutor.models.copying import hidden_in
from qtutor.models.operators import kind_of

from torch import nn

OFFSET = (
    "an output stays far from zero and varies by about one INT8 step, so that is lost: add the constant after the "
    "model, or keep the layer that gives it in float (keep_float)"
)
"""What to do where `offset_hides`."""

CHOOSES = (
    "forward returns what it chooses by value, as y[y > 0] does, and rounding changes values: return all of it and "
    "choose behind the model"
)
"""What to do where rounding changes the shapes of outputs."""

_MANY = 6  # layers of one class, of which each is named


class QuantizationWarning(UserWarning):
    """What the owner of a quantized model should know: which layers stay in floats, and which hurts."""


def tell(sentence: str) -> None:
    """Warn the caller of a flow."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("qtutor."):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(sentence, QuantizationWarning, stacklevel=depth)


def listed(model: nn.Module, reasons: Mapping[str, str]) -> str:
    """Name layers with their classes, those that share a reason, if any, together: "a (GRU); b (Linear): it has hooks".

    Many of one class are named together, with a star for what is numbered.
    """
    modules = dict(model.named_modules())
    count = Counter(map(kind_of, modules.values()))
    groups: dict[str, dict[str, list[str]]] = {reason: {} for reason in sorted({*reasons.values()}, key=bool)}
    for name, reason in reasons.items():
        groups[reason].setdefault(kind_of(modules[name]) if name in modules else "Parameter", []).append(name)

    def words(kind: str, names: list[str]) -> list[str]:
        if len(names) <= _MANY:
            return [f"{name} ({kind})" if name else f"this {kind}" for name in names]
        if len(names) == count[kind]:
            return [f"all {len(names)} {kind}"]
        alike = Counter(re.sub(r"\d+", "*", name) for name in names)
        return [f"{name} ({number} {kind})" for name, number in alike.items()]

    return "; ".join(
        ", ".join(word for kind, names in kinds.items() for word in words(kind, names)) + (reason and f": {reason}")
        for reason, kinds in groups.items()
    )


def tell_what_is_hidden(model: nn.Module, caller: str) -> None:
    """Name the plain lists that hold layers, which a caller leaves as they are."""
    if found := hidden_in(model):
        tell(
            f"{caller} leaves the layers in {', '.join(found)} as they are, for PyTorch finds none in a plain list or "
            "dict: make it an nn.ModuleList or an nn.ModuleDict"
        )
