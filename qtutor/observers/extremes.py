"""Ranges from the extremes of the batches."""

from dataclasses import dataclass, field
from typing import Any

from qtutor.affine import fake_quantize
from qtutor.observers.observer import Observer

import torch
from torch import Tensor


@dataclass(kw_only=True, eq=False)
class MinMaxObserver(Observer):
    """Represent all that was observed.

    Source: PyTorch's `MinMaxObserver` and `PerChannelMinMaxObserver`, which choose the same qparams.

    Example:
        >>> observer = MinMaxObserver(quant_min=0, quant_max=15)
        >>> for batch in torch.tensor([[-1.0, 2.0], [0.5, 2.75]]):
        ...     _ = observer.observe(batch)
        >>> qparams = observer.qparams()
        >>> qparams.scale.item(), qparams.zero_point.item()
        (0.25, 4)
    """

    _ends: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def _collect(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        if self._ends is not None:
            low, high = torch.minimum(self._ends[0], low), torch.maximum(self._ends[1], high)
        self._ends = low, high

    def _choose(self) -> tuple[Tensor, Tensor]:
        assert self._ends is not None
        return self._ends


@dataclass(kw_only=True, eq=False)
class MovingAverageMinMaxObserver(MinMaxObserver):
    """Represent the exponential moving average of the extremes of the batches.

    The first batch starts it, each later one moves it by `averaging_constant` of the way. Half of a
    start's weight is left after 0.69 / averaging_constant batches.

    Source: PyTorch's `MovingAverageMinMaxObserver` and `MovingAveragePerChannelMinMaxObserver`, which
    choose the same qparams; Jacob et al. 2018, section 3.1.
    """

    averaging_constant: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        self._check_share("averaging_constant", 1)

    def _collect(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        if self._ends is not None:
            before_low, before_high = self._ends
            low = before_low + self.averaging_constant * (low - before_low)
            high = before_high + self.averaging_constant * (high - before_high)
        self._ends = low, high


def round_min_max(x: Tensor, **settings: Any) -> Tensor:
    """Round a tensor to the grid over all of it, and back; `settings` are those of a `MinMaxObserver`.

    Example:
        >>> round_min_max(torch.tensor([-1.0, 0.2, 1.0]), quant_min=-2, quant_max=1)
        tensor([-1.3333,  0.0000,  0.6667])
    """
    observer = MinMaxObserver(**settings)
    observer.observe(x)
    return fake_quantize(x, observer.qparams())
