"""A verdict follows from the measurement alone."""

import math

from qtutor import plots, published
from qtutor.benchmark import Comparison, Flips
from qtutor.claims import SOURCES, VERDICTS, Claim, Ledger, judge, table

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

SPEED = Claim("A1", "twice as fast", 2.0, "x", nothing=1)
SAVING = Claim("B1", "saves 20 to 30%", (20, 30), "%", nothing=0)
SIZE = Claim("C1", "takes 100 MB", 100, "MB")
LOSS = Claim("D1", "costs under 1 point", 1, "points", "at most")
FASTER = Claim("E1", "is faster", 1, "x", "above")
TRUTH = Claim("E2", "runs in FP32")

numbers = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("claim", "measured", "interval", "verdict"),
    [
        (SPEED, 2.1, (2.0, 2.2), "holds"),
        (SPEED, 1.81, None, "holds"),
        (SPEED, 1.79, None, "smaller here"),
        (SPEED, 1.5, (1.4, 1.6), "smaller here"),
        (SPEED, 3.0, (2.9, 3.1), "larger here"),
        (SPEED, 2.5, (2.1, 2.9), "holds"),
        (SPEED, 2.5, (1.7, 5.0), "not measurable here"),  # it spans a factor of two
        (SPEED, 1.0, (0.9, 1.2), "not seen here"),
        (SPEED, 0.8, (0.7, 0.85), "contradicted"),
        (SPEED, 0.5, None, "contradicted"),
        (SPEED, 1.03, None, "contradicted"),  # counted: less than a tenth of the claimed effect
        (SPEED, 1.03, (1.02, 1.04), "not seen here"),
        (SPEED, 1.4, (0.8, 2.0), "not measurable here"),
        (SAVING, 25, None, "holds"),
        (SAVING, 60, None, "larger here"),
        (SAVING, 10, None, "smaller here"),
        (SAVING, -3, None, "contradicted"),
        (SIZE, 105, None, "holds"),
        (SIZE, 45, None, "smaller here"),
        (SIZE, 200, None, "larger here"),
        (LOSS, 1.0, None, "holds"),
        (LOSS, -4.0, None, "holds"),
        (LOSS, 1.2, None, "contradicted"),
        (LOSS, 0.9, (0.2, 1.6), "not measurable here"),
        (FASTER, 1.2, (1.1, 1.3), "holds"),
        (FASTER, 1.0, (0.98, 1.02), "not measurable here"),  # it may be faster
        (FASTER, 1.0, None, "contradicted"),
        (FASTER, 0.5, (0.4, 0.6), "contradicted"),
        (FASTER, 1.1, (0.9, 1.4), "not measurable here"),
        (FASTER, 1.1, (0.4, 3.0), "not measurable here"),
    ],
)
def test_a_number_is_judged_by_its_interval(claim, measured, interval, verdict):
    judgement = judge(claim, measured, interval=interval)
    assert judgement.verdict == verdict
    assert claim.number(measured) in judgement.reason
    assert str(claim) in judgement.reason


@given(st.floats(1.2, 100), st.floats(0.01, 1000))
def test_a_larger_measurement_never_gets_a_smaller_verdict(claimed, measured):
    order = ["contradicted", "smaller here", "holds", "larger here"]
    claim = Claim("A1", "is faster", claimed, "x", nothing=1)
    ranks = [order.index(judge(claim, value).verdict) for value in (measured, 1.5 * measured)]
    assert ranks == sorted(ranks)


@given(numbers, numbers, numbers)
def test_every_interval_gets_exactly_one_verdict(a, b, c):
    low, middle, high = sorted((a, b, c))
    for claim in (SPEED, SAVING, SIZE, LOSS, FASTER):
        assert judge(claim, middle, interval=(low, high)).verdict in VERDICTS


def test_true_and_false_say_what_was_seen():
    assert judge(TRUTH, True, because="all are float").verdict == "holds"
    assert judge(TRUTH, np.bool_(False), because="all are INT8").reason == "all are INT8"
    assert judge(TRUTH, torch.tensor(True), because="all are float").verdict == "holds"


def test_an_error_is_told_in_its_first_line():
    judgement = judge(SPEED, error=AssertionError("no fuser\nand a long story"), because="fuse first")
    assert (judgement.verdict, judgement.reason) == ("cannot run as printed", "AssertionError: no fuser; fuse first")
    assert judge(SPEED, error=KeyError()).reason == "KeyError"


def test_what_cannot_be_measured_says_why():
    assert judge(SPEED, because="no meter").verdict == "not measurable here"
    with pytest.raises(ValueError, match="because is missing"):
        judge(SPEED)


@pytest.mark.parametrize(
    ("claim", "measured", "error"),
    [
        (SPEED, True, TypeError),
        (SPEED, "fast", TypeError),
        (TRUTH, 1.5, TypeError),
        (SPEED, math.nan, ValueError),
        (SPEED, math.inf, ValueError),
    ],
)
def test_a_measurement_of_another_sort_is_refused(claim, measured, error):
    with pytest.raises(error, match=claim.id):
        judge(claim, measured, because="seen")


def test_a_measurement_outside_its_interval_is_refused():
    with pytest.raises(ValueError, match="lie in its interval"):
        judge(SPEED, 2.0, interval=(2.1, 2.2))


def test_printed_code_that_fails_is_judged_and_does_not_stop_the_lesson(capsys):
    ledger = Ledger({"A1": SPEED, "E2": TRUTH})
    with ledger.as_printed("E2"):
        raise NameError("endstart")
    assert capsys.readouterr().out == "E2: CANNOT RUN AS PRINTED. runs in FP32: NameError: endstart.\n"
    with ledger.as_printed("E2"):
        pass
    assert [j.verdict for j in ledger] == ["holds"]
    with pytest.raises(KeyboardInterrupt), ledger.as_printed("E2"):
        raise KeyboardInterrupt


def test_a_ledger_keeps_the_order_of_the_claims_and_the_last_judgement():
    ledger = Ledger({"A1": SPEED, "C1": SIZE})
    ledger.record("C1", 100)
    assert ledger.open == ["A1"]
    ledger.record("A1", 1)
    ledger.record("A1", 2)
    assert [(j.claim.id, j.verdict) for j in ledger] == [("A1", "holds"), ("C1", "holds")]
    with pytest.raises(ValueError, match="no claim 'X1': the claims are A1, C1"):
        ledger.record("X1", 1)


def test_a_table_sorts_by_verdict_and_by_ratio():
    found = table([judge(SPEED, 4.0), judge(TRUTH, False, because="all INT8"), judge(SIZE, 100), judge(LOSS, -1)])
    assert found.sort_values("verdict").index.tolist() == ["C1", "D1", "A1", "E2"]
    assert found["ratio"].tolist() == pytest.approx([2, math.nan, 1, math.nan], nan_ok=True)
    assert found.loc["A1", ["claimed", "measured"]].tolist() == ["2x", "4x"]


def test_a_whole_number_is_written_exactly():
    claim = Claim("A3", "has 1024 to 2048 codes", (1024, 2048), "codes")
    assert judge(claim, 1234).reason == "measured 1,234 codes, claimed 1,024 to 2,048 codes"
    assert claim.number(1234.5) == "1,230 codes"


def test_a_claim_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="A3: kind must be one of 'about', 'at most', 'above', got 'at least'"):
        Claim("A3", "is faster", 2, "x", "at least")


def test_nothing_is_written_as_minus_zero():
    assert LOSS.number(-0.0) == "0 points"


def test_the_picture_shows_every_claim_once_with_the_shape_of_its_verdict():
    judgements = [
        judge(SPEED, 4.0),
        judge(SAVING, -5),
        judge(TRUTH, False, because="all INT8"),
        judge(SIZE, because="no disk"),
    ]
    drawn = plots.claims(judgements)
    marks = [t for t in drawn.data if t.mode == "markers+text" and t.x and t.x[0] is not None]
    assert {t.name: t.marker.symbol for t in marks} == {
        "larger here": "triangle-right",
        "contradicted": "x",
        "not measurable here": "circle-open",
    }
    assert sum(len(t.x) for t in marks) == len(judgements)
    bars = next(t for t in drawn.data if t.name == "claimed")
    assert list(bars.x) == [2, 20, 30]
    numbers = [x for t in marks if t.xaxis == "x" for x in t.x]
    assert drawn.layout.xaxis.type == "log"
    assert min(numbers) > 0
    assert "-5%" in "".join(text for t in marks for text in t.text)


@pytest.mark.parametrize(
    "judgements", [[judge(SPEED, 4.0)], [judge(TRUTH, True, because="seen")]], ids=["number", "word"]
)
def test_a_picture_of_one_sort_of_claims_is_drawn(judgements):
    assert plots.claims(judgements).to_dict()


def test_a_picture_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no judgement"):
        plots.claims([])


def test_every_claim_can_be_met_and_says_where_it_stands_and_what_it_compares():
    assert {claim.id[0] for claim in published.CLAIMS.values()} == set(SOURCES)
    assert [*published.CLAIMS] == [claim.id for claim in published._claims()]
    for claim in published.CLAIMS.values():
        assert claim.where
        if claim.claimed is not None:
            low, high = claim.ends
            assert -math.inf < low <= high < math.inf
            assert claim.kind == "about" or (claim.kind in ("at most", "above") and low == high)
            assert claim.nothing is None or claim.nothing < low
            assert claim.compares or claim.id == "A1a"
    assert all(source.title and source.by for source in SOURCES.values())


def test_a_comparison_and_flips_are_judged_by_their_own_intervals():
    times = pd.DataFrame({"first": [10.0] * 12, "second": [5.0, 5.1] * 6})
    rows = pd.DataFrame({"error": ""}, index=["first", "second"])
    ledger = Ledger({"A1": SPEED, "D1": LOSS})
    ledger.speed("A1", Comparison(rows, times, 0.99, None, {}), "second")
    ledger.points("D1", Flips(images=1000, changed=60, lost=40, gained=4))
    assert [(j.verdict, round(j.measured, 2)) for j in ledger] == [("holds", 1.98), ("contradicted", 3.6)]
    ledger.speed("A1", Comparison(rows, times[:2], 0.5, None, {}), "second")
    assert [j.verdict for j in ledger] == ["not measurable here", "contradicted"]


def test_the_tables_of_d_say_what_its_text_overlooks():
    lost = {name: row[2] - row[3] for name, row in published.TABLE_1.items()}
    assert {name for name, points in lost.items() if points > 1} == {"MobileNetV2", "EfficientNet"}
    shrinks = {name: row[0] / row[1] for name, row in published.TABLE_1.items()}
    assert {name for name, ratio in shrinks.items() if ratio < 3} == {"InceptionV1", "SqueezeNet"}
    assert published.TABLE_2.keys() == published.TABLE_3.keys()
    assert all(published.TABLE_2[name][0] == published.TABLE_3[name][0] for name in published.TABLE_2)
