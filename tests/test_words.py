"""How numbers and errors are said in a sentence."""

import math

from qtutor.words import counted, first_line, in_bytes, in_decibels, in_digits, in_number, in_percent, named

import pytest


def test_one_is_alone_and_thousands_are_apart():
    assert [counted(number, "step") for number in (0, 1, 1200)] == ["0 steps", "1 step", "1,200 steps"]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (812, "812 B"),
        (999.7, "1 kB"),
        (4_100, "4.1 kB"),
        (999_400, "999 kB"),
        (999_700, "1 MB"),
        (2_500_000, "2.5 MB"),
        (15_960_000_000, "16 GB"),
        (1.5e12, "1,500 GB"),
    ],
)
def test_a_size_takes_the_unit_with_few_digits(size, said):
    assert in_bytes(size) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (-0.01234, "-0.0123"), (999.4, "999"), (999.7, "1,000"), (-1573.2, "-1,570"), (1.2345e6, "1,230,000")],
)
def test_three_digits_say_a_number_without_a_power_of_ten(number, said):
    assert in_digits(number) == said


@pytest.mark.parametrize(
    ("number", "digits", "said"),
    [(-0.0, 3, "0"), (125, 2, "120"), (99.6, 2, "100"), (12345, 4, "12,340"), (1234.56, 5, "1,234.6")],
)
def test_how_many_digits_may_be_said(number, digits, said):
    assert in_digits(number, digits) == said


def test_a_whole_number_is_exact():
    assert [*map(in_number, (1234, 1234.0, -0.0, 1234.5))] == ["1,234", "1,234", "0", "1,230"]
    assert in_number(4e30) == "4e+30"


def test_a_share_has_no_power_of_ten():
    shares = (0, 1e-9, 0.00123, 0.0996, 0.125, 1.25)
    assert [*map(in_percent, shares)] == ["0%", "less than 0.0001%", "0.12%", "10%", "12%", "125%"]


def test_what_is_no_length_of_digits_stays_as_python_says_it():
    assert [in_digits(number) for number in (3e-9, 4e30, math.inf, math.nan)] == ["3e-09", "4e+30", "inf", "nan"]


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
