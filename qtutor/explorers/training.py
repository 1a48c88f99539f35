"""LiveTraining: a curve that grows while a cell trains, with progress and a button to stop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from importlib import metadata
from typing import Any

from qtutor.explorers.explorer import button
from qtutor.explorers.figure import Figure
from qtutor.plots import look
from qtutor.samples.data import Split
from qtutor.samples.training import step

import ipywidgets
import torch
from IPython.display import display
from torch import nn
from torch.utils.benchmark import set_torch_threads

_HEARS_CLICKS = tuple(map(int, metadata.version("ipykernel").split(".")[:2])) >= (7, 4)  # needs Python 3.11
_PAUSE = 0.1  # seconds between two redraws of the bar


class LiveTraining(ipywidgets.VBox):
    """Watch a training that runs in an `async with` block, and stop it without losing the kernel.

    The button ends the block after the present batch, the kernel's own interrupt at once: what is trained so
    far stays, and the cells below run. A kernel hears the page only while a cell awaits something, so take
    the batches with `async for`. Without a page to click on it, training runs to its end.

    Args:
        total: how many batches there will be in all.
        series: the names of the curves, at most five.
        x: what the places of the points are.
        y: what the values are, with their unit.

    Attributes:
        stopped: whether someone stopped it.
        points: by series, the points so far.

    Raises:
        ValueError: there are no batches, or not one to five series.
    """

    def __init__(
        self, title: str, total: int, series: Iterable[str], *, x: str = "epoch", y: str = "validation accuracy, %"
    ):
        super().__init__()
        names = [series] if isinstance(series, str) else list(series)
        most = len(look.LOOKS)
        if total < 1 or not 1 <= len(names) <= most:
            raise ValueError(f"LiveTraining needs batches and 1 to {most} series, got {total} and {len(names)}")
        self.stopped, self.total, self.done, self._drawn = False, total, 0, 0.0
        self.points: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        self.bar = ipywidgets.IntProgress(0, 0, total, description="Training")
        self.button = button("Stop training", self.stop, icon="stop")
        self.status = ipywidgets.HTML(f"<span role='status'>0 of {total} batches</span>")
        self.figure = Figure(look.figure(title, x, y, height=340))
        for name, own in zip(names, look.LOOKS, strict=False):
            drawn = {"mode": "lines+markers", "line": own.line(), "marker": own.marker()}
            self.figure.add_scatter(name=name, showlegend=True, **drawn)
        self._how = "" if _HEARS_CLICKS else "; to stop, interrupt the kernel"
        stop = [self.button] if _HEARS_CLICKS else []
        self.children = [ipywidgets.HBox([self.bar, *stop, self.status]), self.figure]

    async def __aenter__(self) -> "LiveTraining":
        display(self)
        return self

    async def __aexit__(self, kind: type | None, *_: Any) -> bool:
        interrupted = kind in (KeyboardInterrupt, asyncio.CancelledError)
        if interrupted:
            self.stop()
        self.button.disabled = True
        self._show()
        return interrupted

    @property
    def finished(self) -> bool:
        """Whether every batch was trained."""
        return self.done >= self.total and not self.stopped

    def stop(self) -> None:
        """End the training after the present batch."""
        self.stopped = True

    async def batches(self, batches: Iterable) -> AsyncIterator:
        """Yield the batches until someone stops the training, and count them."""
        for batch in batches:
            await asyncio.sleep(0.001)  # now the kernel hears a click
            if self.stopped:
                return
            yield batch
            self.done += 1
            if time.monotonic() - self._drawn > _PAUSE:
                self._show()

    async def fit(
        self,
        name: str,
        model: nn.Module,
        data: Split,
        *,
        epochs: int,
        measure: Callable[[nn.Module], float] | None = None,
        last: Callable[[nn.Module], Any] | None = None,
        seed: int = 0,
    ) -> nn.Module:
        """Train a classifier in place, and draw what `measure` says of it after each epoch.

        Adam on batches of 64, at a rate that falls from 0.005 to 0 along half a cosine.

        Args:
            name: the series that the points belong to.
            measure: of the model, for the curve; None for no curve.
            last: called with the model before the last epoch.
            seed: of the order of the images.

        Returns:
            The same model, as it trained. It has seen a batch even if someone stopped the training at once.
        """
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(data) // 64))
        model.train()(data.images[:64])
        with set_torch_threads(1):  # on images this small a second one gains nothing, and on a busy computer they wait
            for epoch in range(1, epochs + 1):
                if last and epoch == epochs:
                    last(model)
                async for images, labels in self.batches(data.shuffled(order)):
                    step(model, images, labels, optimizer, schedule)
                if self.stopped:
                    break
                if measure:
                    self.point(name, epoch, measure(model))
        return model

    def point(self, name: str, x: float, y: float) -> None:
        """Add a point to the curve of a series."""
        self.points[name].append((x, y))
        trace = self.figure.data[list(self.points).index(name)]
        with self.figure.batch_update():
            trace.x, trace.y = zip(*self.points[name], strict=True)

    def _show(self) -> None:
        self._drawn = time.monotonic()
        self.bar.value = min(self.done, self.total)
        word = ", stopped" if self.stopped else ", finished" if self.finished else self._how
        self.status.value = f"<span role='status'>{self.done} of {self.total} batches{word}</span>"
