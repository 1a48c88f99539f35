"""How numbers and errors are said in a sentence."""

import math

from qtutor.words import counted, first_line, in_bytes, in_decibels, named

import pytest


def test_one_is_alone_and_thousands_are_apart():
    assert [counted(number, "step") for number in (0, 1, 1200)] == ["0 steps", "1 step", "1,200 steps"]


@pytest.mark.parametrize(
    ("size", "said"), [(812, "812 B"), (4_100, "4.1 kB"), (2_500_000, "2.5 MB"), (15_960_000_000, "16 GB")]
)
def test_a_size_takes_the_unit_with_few_digits(size, said):
    assert in_bytes(size) == said


def test_decibels_without_error_are_no_number():
    assert [in_decibels(sqnr) for sqnr in (31.26, math.inf, math.nan)] == ["31.3 dB", "without error", "not measured"]


@pytest.mark.parametrize(
    ("error", "line", "said"),
    [
        (ValueError("\n no range \nfor x"), "no range", "ValueError: no range"),
        (NotImplementedError(), "", "NotImplementedError"),
    ],
    ids=["two lines", "nothing"],
)
def test_an_error_is_said_in_a_line(error, line, said):
    assert (first_line(error), named(error)) == (line, said)
