"""Who predicts what: the accuracy of a model, and what changed between two.

Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions" (the test;
here its exact form).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qtutor.models.batches import Batch, read
from qtutor.models.operators import kind_of
from qtutor.models.tensors import chosen, scores_of, shape_of

import torch
from torch import Tensor, nn

Model = Callable[..., Any]
Batches = Iterable[Sequence[Any] | Batch]


def accuracy(model: Model, loader: Batches) -> float:
    """Return the fraction of labels at which the highest score is.

    A NaN among the scores counts as wrong. `qtutor.models.tensors.accuracy` is that of one batch's output.

    Args:
        model: images -> `(N, classes)` scores, or `(N, classes, ...)` of a dense output; alone, or as `logits` or
            `out` of several outputs.
        loader: `(images, labels)` batches, labels `(N,)` or `(N, ...)` integers; a tuple in place of the images is
            several inputs, a mapping is named ones.

    Raises:
        TypeError, ValueError: the loader is empty, a batch or a score has the wrong type or shape, or
            the model is in training mode.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
        >>> accuracy(lambda images: images, [(scores, torch.tensor([1, 0, 0]))])
        0.6666666666666666
    """
    (predicted,), labels = _predict((model,), loader)
    return (predicted == labels).sum().item() / len(labels)


@dataclass(frozen=True)
class Flips:
    """How the predictions of two models differ, image by image; `str` of it is one or two sentences.

    Attributes:
        images: how many there were.
        changed: the second model predicts another class, right or wrong.
        lost: right with the first model, wrong with the second.
        gained: wrong with the first model, right with the second.
    """

    images: int
    changed: int
    lost: int
    gained: int

    @property
    def difference(self) -> float:
        """The second model's accuracy minus the first's."""
        return (self.gained - self.lost) / self.images

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how probable a difference this large is if both models are equally good.

        Only images that one model gets right and the other wrong tell them apart; between equally
        good models each of those falls to either side like a fair coin.
        """
        from scipy.special import bdtr  # scipy.stats takes a second to import

        decisive = self.lost + self.gained
        return min(1.0, 2 * float(bdtr(min(self.lost, self.gained), decisive, 0.5)))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """What the difference of the two accuracies lies in, with that confidence.

        Exact, given how many images tell the two apart (Clopper and Pearson 1934); where none does, so few would
        that chance might have shown none.
        """
        from scipy.special import betaincinv

        decisive, tail = self.lost + self.gained, (1 - confidence) / 2
        if not decisive:
            most = 1 - tail ** (1 / self.images)
            return -most, most
        least = betaincinv(self.gained, self.lost + 1, tail) if self.gained else 0
        most = betaincinv(self.gained + 1, self.lost, 1 - tail) if self.lost else 1
        low, high = ((2 * float(share) - 1) * decisive / self.images for share in (least, most))
        return low, high

    def __str__(self) -> str:
        if not self.changed:
            return f"Of {self.images} predictions none changed."
        kinds = f"{self.lost} became wrong, {self.gained} right"
        if others := self.changed - self.lost - self.gained:
            kinds += f", {others} went from wrong to wrong"
        counts = f"Of {self.images} predictions {self.changed} changed: {kinds}."
        if not self.lost + self.gained:
            return counts
        verdict = "may well be chance" if self.p_value > 0.05 else "is unlikely to be chance"
        return (
            f"{counts} The difference of {100 * self.difference:+.2g} points {verdict} "
            f"(McNemar's exact test, p = {self.p_value:.2g})."
        )


def flips(first: Model, second: Model, loader: Batches) -> Flips:
    """Compare two models' predictions on the same images, which tells far more than their two accuracies.

    Args and errors are those of `accuracy`.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
        >>> flips(lambda x: x, lambda x: -x, [(scores, torch.tensor([1, 0, 0]))])
        Flips(images=3, changed=3, lost=2, gained=1)
    """
    (a, b), labels = _predict((first, second), loader)
    right_a, right_b = a == labels, b == labels
    counts = (a != b, right_a & ~right_b, ~right_a & right_b)
    return Flips(len(labels), *(int(count.sum()) for count in counts))


def _predict(models: Sequence[Model], loader: Batches) -> tuple[list[Tensor], Tensor]:
    """The class that each model predicts for each label, and the labels; one pass over the loader."""
    for model in models:
        check_eval(model)
    predicted, labels = [], []
    with torch.inference_mode():
        for number, batch in enumerate(read(loader, "the loader")):
            truth = batch.labels
            if not isinstance(truth, Tensor):
                kind = kind_of(truth)
                raise TypeError(f"batch {number} of the loader must be (images, labels), got {kind} for labels")
            if truth.ndim == 0 or truth.is_floating_point():
                shape = tuple(truth.shape)
                raise ValueError(
                    f"labels must be integers, (N,) or (N, ...), got {shape} {truth.dtype} in batch {number}"
                )
            predicted.append([_classes(batch.run(model), truth) for model in models])
            labels.append(truth.cpu().flatten())
    if not sum(map(len, labels)):
        raise ValueError("the loader has no images: a generator that was read before is empty, give a list of batches")
    return [torch.cat(parts) for parts in zip(*predicted, strict=True)], torch.cat(labels)


def _classes(output: Any, labels: Tensor) -> Tensor:
    classes = chosen(output, labels)
    if classes is None:
        wanted = ", ".join(map(str, (len(labels), "classes", *labels.shape[1:])))
        said = f"a model must return ({wanted}) scores for {labels.numel()} labels, got {shape_of(output)}"
        scores = scores_of(output)
        if scores is not None and scores.numel() == labels.numel():
            join = "stack" if scores.shape == labels.shape else "cat"
            said += f"; of one logit x for each label, torch.{join}([-x, x], 1) makes scores of two classes"
        raise ValueError(said)
    return classes.flatten()


def check_eval(entry: Model) -> None:
    """Refuse what changes in training mode: a run would be random, or would spoil the batch norms' statistics."""
    if isinstance(entry, nn.Module):
        for layer in entry.modules():
            if getattr(layer, "training", False) and isinstance(
                layer, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
            ):
                raise ValueError(f"the model is in training mode ({type(layer).__name__}): call .eval() on it first")
