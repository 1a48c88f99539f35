"""What well-known articles claim, and the verdict that a measurement gives.

A claim is written down before it is measured: where it stands, what it compares, its number, and the value that would
mean "no effect". The verdict follows from the measurement alone, by one rule:

    holds                      the measurement meets the claim, within a tenth of it
    larger here                the effect is there, and larger
    smaller here               the effect is there, and smaller
    not seen here              the interval contains "no effect", and not the claim: what there was may be noise
    contradicted               the interval lies on the other side of "no effect", a count shows none, or arithmetic on
                               what the source itself prints says otherwise
    cannot run as printed      what the source prints raises an error
    not measurable here        no verdict: something is missing, or the measurement is too noisy to tell

A claim of kind "above" or "at most" has a limit and no number, and an interval that holds the limit cannot tell. A
tenth of the claimed effect counts as no effect, and an interval of a ratio that spans a factor of two as noise. Where
a claim has a word for a number ("almost", "negligible"), the number is ours: mostly 1 point of accuracy, or 1 dB.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from qtutor.words import first_line, in_number

if TYPE_CHECKING:
    from qtutor.benchmark import Comparison, Flips

    import pandas as pd

VERDICTS = (
    "holds",
    "larger here",
    "smaller here",
    "not seen here",
    "contradicted",
    "cannot run as printed",
    "not measurable here",
)


@dataclass(frozen=True)
class Source:
    """An article; `str` of it is how the course names it.

    Attributes:
        by: its author or its site.
        note: what a reader should know of it.
        link: its address, where it is known.
    """

    title: str
    by: str
    note: str = ""
    link: str = ""

    def __str__(self) -> str:
        return f"{self.title} ({self.by})"


SOURCES = {
    "A": Source(
        "How Quantization and Fusion Accelerate CNN Inference on Edge Devices",
        "Code DAO, besthub.dev",
        "the page calls itself a summary, so a step that is missing in print may have been there",
        "https://www.besthub.dev/articles/how-quantization-and-fusion-accelerate-cnn-inference-on-edge-devices-ef98322a0920",
    ),
    "B": Source(
        "Squeeze and Speed Up: Diving into Deep Learning Quantization and Performance",
        "a blog post",
        'its table is headed "Results (Sample)"',
    ),
    "C": Source("Static quantization of a ResNet18 fine-tuned on Flowers102", "a tutorial with a notebook"),
    "D": Source(
        "Quantizing convolutional neural networks for practical deployment",
        "D. Chenna",
        "its Tables 2 and 3 are those of Krishnamoorthi 2018 (arXiv 1806.08342)",
    ),
    "E": Source("How do fused modules improve memory efficiency and numerical precision?", "a question and its answer"),
}

KINDS = ("about", "at most", "above")

_MARGIN = 0.1


@dataclass(frozen=True)
class Claim:
    """One claim, as a measurement can meet it.

    Attributes:
        id: the letter of its source in `SOURCES`, then what tells it from the others.
        says: what it says, short enough for a row of a table.
        claimed: its number, or the two ends of its range; None for a claim that is true or false.
        unit: of the number, "x" for a ratio.
        kind: "about" the number, "at most" the number, or "above" the number, by however little.
        nothing: the value that would mean "no effect", such as 1 for a speed-up; what is claimed lies above. None where
            there is none.
        where: the section, table, figure or code of the source in which it stands.
        compares: what with what, as the source does.
    """

    id: str
    says: str
    claimed: float | tuple[float, float] | None = None
    unit: str = ""
    kind: str = "about"
    nothing: float | None = None
    where: str = ""
    compares: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"{self.id}: kind must be one of {', '.join(map(repr, KINDS))}, got {self.kind!r}")

    @property
    def ends(self) -> tuple[float, float]:
        """The claimed range; twice the same for one number."""
        return self.claimed if isinstance(self.claimed, tuple) else (self.claimed, self.claimed)

    def number(self, value: float) -> str:
        """Write a value with the unit."""
        return in_number(value) + (self.unit if self.unit in ("x", "%") else f" {self.unit}".rstrip())

    def __str__(self) -> str:
        if self.claimed is None:
            return ""
        low, high = self.ends
        prefix = "" if self.kind == "about" else f"{self.kind} "
        return prefix + (self.number(low) if low == high else f"{in_number(low)} to {self.number(high)}")


@dataclass(frozen=True)
class Judgement:
    """A claim with its verdict; `str` of it is what a lesson prints.

    Attributes:
        claim: what was judged.
        verdict: one of `VERDICTS`.
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
        interval: what the true value lies in; `measured` lies in it. None for what was counted and has no noise.
        error: what the printed code raised, instead of a measurement.
        because: what was seen, a phrase; needed where no number says it.

    Raises:
        TypeError: `measured` is not of the claim's sort.
        ValueError: it is not finite, lies outside the interval, or `because` is missing.

    Example:
        >>> claim = Claim("A2", "INT8 is 1.7x faster", 1.7, "x", nothing=1)
        >>> judge(claim, 3.4, interval=(3.1, 3.6)).verdict, judge(claim, 0.99, interval=(0.9, 1.1)).verdict
        ('larger here', 'not seen here')
        >>> print(judge(claim, 1.75))
        A2: HOLDS. INT8 is 1.7x faster: measured 1.75x, claimed 1.7x.
    """
    if error is not None:
        first = first_line(error).partition(" with arguments from")[0]
        first = first if len(first) <= 120 else first[:117] + "..."
        return Judgement(
            claim, "cannot run as printed", f"{type(error).__name__}: {first}".rstrip(".: ") + _also(because)
        )
    measured = measured.item() if hasattr(measured, "item") else measured
    if measured is None or isinstance(measured, bool):
        if not because:
            raise ValueError(f"{claim.id}: because is missing: without a number it must say what was seen")
        if measured is None:
            return Judgement(claim, "not measurable here", because)
        if claim.claimed is not None:
            raise TypeError(f"{claim.id} claims {claim}: it needs a number, got {measured}")
        return Judgement(claim, "holds" if measured else "contradicted", because)
    if claim.claimed is None or not isinstance(measured, (int, float)):
        need = "True or False" if claim.claimed is None else "a number"
        raise TypeError(f"{claim.id} needs {need}, got {measured!r:.60}")
    low, high = (measured, measured) if interval is None else map(float, interval)
    if not (math.isfinite(low) and low <= measured <= high < math.inf):
        raise ValueError(f"{claim.id}: measured must be finite and lie in its interval, got {measured} in {interval}")
    verdict = _verdict(claim, low, high, counted=interval is None)
    spread = f" ({in_number(low)} to {in_number(high)})" if low < high else ""
    noise = ": too noisy to tell" if verdict == "not measurable here" else ""
    reason = f"measured {claim.number(measured)}{spread}, claimed {claim}{noise}{_also(because)}"
    return Judgement(claim, verdict, reason, float(measured))


def _verdict(claim: Claim, low: float, high: float, *, counted: bool) -> str:
    """The rule of this module, for a number between `low` and `high`."""
    from qtutor.benchmark import intervals

    least, most = claim.ends
    if claim.kind == "at most":
        return "holds" if high <= most else "contradicted" if low > most else "not measurable here"
    if claim.kind == "above":
        return "holds" if low > least else "contradicted" if counted or high < least else "not measurable here"
    reaches = low <= most + _MARGIN * abs(most) and high >= least - _MARGIN * abs(least)
    if claim.nothing is not None:
        some = _MARGIN * (least - claim.nothing)  # less than that is no effect
        if high < claim.nothing - some:
            return "contradicted"
        if low <= claim.nothing + some:
            return "not measurable here" if reaches else "contradicted" if counted else "not seen here"
    if reaches:
        noisy = claim.unit == "x" and intervals.disturbed(low, high)
        return "not measurable here" if noisy else "holds"
    return "larger here" if low > most else "smaller here"


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

    def speed(
        self, id: str, comparison: "Comparison", name: str, against: str | None = None, because: str = ""
    ) -> None:
        """Judge how many times as fast one entry of a comparison is as another, by default as the first.

        Fewer rounds than give a 90 percent interval are no measurement.
        """
        from qtutor.benchmark import intervals

        if comparison.confidence < intervals.LEAST_CONFIDENCE:
            self.record(id, because=f"the computer is too slow or too busy: {len(comparison.times)} rounds")
        else:
            measured, *interval = comparison.ratio(name, against)
            self.record(id, measured, interval=interval, because=because)

    def points(self, id: str, flips: "Flips", because: str = "") -> None:
        """Judge how many points of accuracy a second model loses, with its 95 percent interval."""
        low, high = flips.interval()
        self.record(id, -100 * flips.difference, interval=(-100 * high, -100 * low), because=because)

    @contextmanager
    def as_printed(self, id: str) -> Iterator[None]:
        """Run a block of printed code: an error ends the block and is the judgement; without one the claim holds."""
        try:
            with redirect_stderr(StringIO()):  # torch.fx writes a traceback there, beside the error
                yield
        except Exception as error:
            self.record(id, error=error)
        else:
            self.record(id, True, because="it runs here, without an error")

    def __iter__(self) -> Iterator[Judgement]:
        return (self._found[id] for id in self.claims if id in self._found)

    @property
    def open(self) -> list[str]:
        """The ids of the claims without a judgement."""
        return [id for id in self.claims if id not in self._found]


def table(judgements: Iterable[Judgement]) -> "pd.DataFrame":
    """Return one row a claim, indexed by its id, in the order given.

    `ratio` is measured / claimed where both are single positive numbers, else NaN.
    """
    import pandas as pd

    judgements = list(judgements)
    columns = {
        "source": [j.claim.id[0] for j in judgements],
        "where": [j.claim.where for j in judgements],
        "says": [j.claim.says for j in judgements],
        "compares": [j.claim.compares for j in judgements],
        "claimed": [str(j.claim) for j in judgements],
        "measured": ["" if j.measured is None else j.claim.number(j.measured) for j in judgements],
        "ratio": [_ratio(j) for j in judgements],
        "verdict": pd.Categorical([j.verdict for j in judgements], VERDICTS, ordered=True),
        "reason": [j.reason for j in judgements],
    }
    return pd.DataFrame(columns, index=pd.Index([j.claim.id for j in judgements], name="claim"))


def _ratio(judgement: Judgement) -> float:
    claimed, measured = judgement.claim.claimed, judgement.measured
    if measured is None or isinstance(claimed, tuple) or min(claimed, measured) <= 0:
        return math.nan
    return measured / claimed
