"""What well-known articles claim, and the verdict that a measurement gives.

A claim is written down before it is measured, with its number, the value that would mean "no effect"
and how it is meant. The verdict follows from the measurement alone:

    holds                the measurement meets the claim, within a tenth of it
    larger here          the effect is there, and larger
    smaller here         the effect is there, and smaller
    false                no effect, or less than a tenth of the claimed one; or a limit is broken
    cannot run           what the source prints raises an error
    not measurable here  something is missing, or the measurement is too noisy to tell
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = ("holds", "larger here", "smaller here", "false", "cannot run", "not measurable here")

SOURCES = {
    "A": "How Quantization and Fusion Accelerate CNN Inference on Edge Devices (Code DAO)",
    "B": "Squeeze and Speed Up: Diving into Deep Learning Quantization and Performance",
    "C": "A tutorial on static quantization of a ResNet18 fine-tuned on Flowers102",
    "D": "Quantizing convolutional neural networks for practical deployment (D. Chenna)",
    "E": "How do fused modules improve memory efficiency and numerical precision? (a question and its answer)",
    "M": "What several of A to E say or suggest",
}

_MARGIN = 0.1
_KINDS = ("about", "at most", "above")


@dataclass(frozen=True)
class Claim:
    """One claim, as a measurement can meet it.

    Attributes:
        id: the letter of its source in `SOURCES`, then what tells it from the others.
        says: what it says, short enough for a row of a table.
        claimed: its number, or the two ends of its range; None for a claim that is true or false.
        unit: of the number, "x" for a ratio.
        kind: "about" the number, "at most" the number, or "above" the number, by however little.
        nothing: the value that would mean "no effect", such as 1 for a speed-up; None where there is none.

    Raises:
        ValueError: an unknown source or kind, a number that is not finite, a range the wrong way round,
            or no effect claimed (`claimed` does not lie above `nothing`).
    """

    id: str
    says: str
    claimed: float | tuple[float, float] | None = None
    unit: str = ""
    kind: str = "about"
    nothing: float | None = None

    def __post_init__(self):
        if self.id[:1] not in SOURCES:
            raise ValueError(f"the id of a claim must begin with one of {', '.join(SOURCES)}, got {self.id!r}")
        if self.kind not in _KINDS:
            raise ValueError(f"{self.id}: kind must be one of {', '.join(map(repr, _KINDS))}, got {self.kind!r}")
        if self.claimed is None:
            return
        low, high = self.ends
        if not (math.isfinite(low) and low <= high < math.inf):
            raise ValueError(f"{self.id}: claimed must be finite, and a range must rise, got {self.claimed}")
        if self.kind != "about" and low != high:
            raise ValueError(f"{self.id}: {self.kind!r} takes one number, got {self.claimed}")
        if self.nothing is not None and not self.nothing < low:
            raise ValueError(f"{self.id}: claimed must lie above nothing ({self.nothing}), got {self.claimed}")

    @property
    def source(self) -> str:
        """The title of the source."""
        return SOURCES[self.id[0]]

    @property
    def ends(self) -> tuple[float, float]:
        """The claimed range; twice the same for one number."""
        return self.claimed if isinstance(self.claimed, tuple) else (self.claimed, self.claimed)

    def number(self, value: float) -> str:
        """Write a value with the unit."""
        value += 0.0  # no -0
        digits = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return digits + (self.unit if self.unit in ("x", "%") else f" {self.unit}".rstrip())

    def __str__(self) -> str:
        if self.claimed is None:
            return ""
        low, high = self.ends
        prefix = "" if self.kind == "about" else f"{self.kind} "
        return prefix + (self.number(low) if low == high else f"{low:.3g} to {self.number(high)}")


@dataclass(frozen=True)
class Judgement:
    """A claim with its verdict; `str` of it is what a lesson prints.

    Attributes:
        claim: what was judged.
        verdict: one of `VERDICTS`.
        reason: why.
        measured: the number, or None where there is none.
    """

    claim: Claim
    verdict: str
    reason: str
    measured: float | None = None

    def __str__(self) -> str:
        return f"{self.claim.id}: {self.verdict.upper()}. {self.claim.says}: {self.reason}."


def judge(
    claim: Claim,
    measured: Any = None,
    *,
    interval: tuple[float, float] | None = None,
    error: BaseException | None = None,
    because: str = "",
) -> Judgement:
    """Return the verdict that a measurement gives.

    Args:
        claim: what is judged.
        measured: a number for a claim with a number, True or False for one without; None if it could not be had.
        interval: what the true value lies in, if that is known; `measured` lies in it.
        error: what the printed code raised, instead of a measurement.
        because: what was seen, a phrase; needed where no number says it.

    Raises:
        TypeError: `measured` is not of the claim's sort.
        ValueError: it is not finite, lies outside the interval, or `because` is missing.

    Example:
        >>> claim = Claim("A2", "INT8 is 1.7x faster", 1.7, "x", nothing=1)
        >>> judge(claim, 3.4, interval=(3.1, 3.6)).verdict, judge(claim, 0.99, interval=(0.9, 1.1)).verdict
        ('larger here', 'false')
        >>> print(judge(claim, 1.75))
        A2: HOLDS. INT8 is 1.7x faster: measured 1.75x, claimed 1.7x.
    """
    if error is not None:
        first = f"{error}".strip().split("\n")[0]
        first = first if len(first) <= 120 else first[:117] + "..."
        return Judgement(claim, "cannot run", f"{type(error).__name__}: {first}".rstrip(".: ") + _also(because))
    measured = measured.item() if hasattr(measured, "item") else measured
    if measured is None or isinstance(measured, bool):
        if not because:
            raise ValueError(f"{claim.id}: because is missing: without a number it must say what was seen")
        if measured is None:
            return Judgement(claim, "not measurable here", because)
        if claim.claimed is not None:
            raise TypeError(f"{claim.id} claims {claim}: it needs a number, got {measured}")
        return Judgement(claim, "holds" if measured else "false", because)
    if claim.claimed is None or not isinstance(measured, (int, float)):
        need = "True or False" if claim.claimed is None else "a number"
        raise TypeError(f"{claim.id} needs {need}, got {measured!r:.60}")
    low, high = interval = (measured, measured) if interval is None else tuple(map(float, interval))
    if not (math.isfinite(low) and low <= measured <= high < math.inf):
        raise ValueError(f"{claim.id}: measured must be finite and lie in its interval, got {measured} in {interval}")
    verdict = _VERDICT[claim.kind](claim, low, high)
    spread = f" ({low:.3g} to {high:.3g})" if low < high else ""
    noise = ": too noisy to tell" if verdict == "not measurable here" else ""
    reason = f"measured {claim.number(measured)}{spread}, claimed {claim}{noise}{_also(because)}"
    return Judgement(claim, verdict, reason, float(measured))


def _about(claim: Claim, low: float, high: float) -> str:
    least, most = claim.ends
    reaches = low <= most + _MARGIN * abs(most) and high >= least - _MARGIN * abs(least)
    if claim.nothing is not None and low <= claim.nothing + _MARGIN * (least - claim.nothing):
        return "not measurable here" if reaches else "false"
    if reaches:
        return "holds"
    return "larger here" if low > most else "smaller here"


def _at_most(claim: Claim, low: float, high: float) -> str:
    if high <= claim.claimed:
        return "holds"
    return "false" if low > claim.claimed else "not measurable here"


def _above(claim: Claim, low: float, high: float) -> str:
    if low > claim.claimed:
        return "holds"
    # An interval that spans the limit says "no effect" only where it is narrow.
    return "false" if high <= claim.claimed + abs(claim.claimed) * _MARGIN else "not measurable here"


_VERDICT = {"about": _about, "at most": _at_most, "above": _above}


def _also(because: str) -> str:
    return f"; {because}" if because else ""


class Ledger:
    """The judgements so far, in the order of the claims; judging one again replaces it.

    Args:
        claims: by id, such as `published.CLAIMS`.
    """

    def __init__(self, claims: Mapping[str, Claim]):
        self.claims = dict(claims)
        self._found: dict[str, Judgement] = {}

    def record(self, id: str, measured: Any = None, **how: Any) -> None:
        """Judge a claim (see `judge`), print the judgement and keep it.

        Raises:
            ValueError: there is no claim of that id.
        """
        if id not in self.claims:
            raise ValueError(f"there is no claim {id!r}: the claims are {', '.join(self.claims)}")
        self._found[id] = judge(self.claims[id], measured, **how)
        print(self._found[id])

    @contextmanager
    def as_printed(self, id: str) -> Iterator[None]:
        """Run a block of printed code: an error ends the block and is the judgement; without one the claim holds."""
        try:
            yield
        except Exception as error:
            self.record(id, error=error)
        else:
            self.record(id, True, because="it runs here, without an error")

    def __iter__(self) -> Iterator[Judgement]:
        return (self._found[id] for id in self.claims if id in self._found)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def open(self) -> list[str]:
        """The ids of the claims without a judgement."""
        return [id for id in self.claims if id not in self._found]


def table(judgements: Iterable[Judgement]) -> "pd.DataFrame":
    """Return one row a claim, indexed by its id, in the order given.

    `ratio` is measured / claimed where both are single positive numbers, else NaN.

    Raises:
        ValueError: a claim was judged twice.
    """
    import pandas as pd

    judgements = list(judgements)
    ids = [judgement.claim.id for judgement in judgements]
    if twice := {id for id in ids if ids.count(id) > 1}:
        raise ValueError(f"judged twice: {', '.join(sorted(twice))}")
    columns = {
        "source": [j.claim.id[0] for j in judgements],
        "says": [j.claim.says for j in judgements],
        "claimed": [str(j.claim) for j in judgements],
        "measured": ["" if j.measured is None else j.claim.number(j.measured) for j in judgements],
        "ratio": [_ratio(j) for j in judgements],
        "verdict": pd.Categorical([j.verdict for j in judgements], VERDICTS, ordered=True),
        "reason": [j.reason for j in judgements],
    }
    return pd.DataFrame(columns, index=pd.Index(ids, name="claim"))


def _ratio(judgement: Judgement) -> float:
    claimed, measured = judgement.claim.claimed, judgement.measured
    if measured is None or isinstance(claimed, tuple) or min(claimed, measured) <= 0:
        return math.nan
    return measured / claimed
