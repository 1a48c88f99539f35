"""How numbers and errors are said in a sentence."""

import math


def counted(number: int, thing: str) -> str:
    """Say how many there are: "1 step", "1,200 steps"."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def in_decibels(sqnr: float) -> str:
    """Say an SQNR: "31.3 dB"."""
    return "without error" if sqnr == math.inf else "not measured" if math.isnan(sqnr) else f"{sqnr:.1f} dB"


def in_digits(number: float, digits: int = 3) -> str:
    """Say a number to so many significant digits, from 0.0001 to 10^9 without a power of ten: "0.012", "1,570"."""
    rounded = float(f"{number:.{digits}g}") + 0.0  # no -0
    return f"{rounded:,.0f}" if 10**digits <= abs(rounded) < 1e9 else f"{rounded:,.{digits}g}"


def in_number(number: float) -> str:
    """Say a whole number exactly, below 10^9, and another to three significant digits: "1,234", "2.5"."""
    return f"{int(number):,}" if abs(number) < 1e9 and number == int(number) else in_digits(number)


def in_percent(share: float) -> str:
    """Say a share: "125%", "1.3%", "less than 0.0001%"."""
    percent = 100 * share
    if 0 < percent < 0.0001:
        return "less than 0.0001%"
    return f"{percent:,.0f}%" if percent >= 10 else f"{in_digits(percent, 2)}%"


def in_interval(number: float, low: float, high: float) -> str:
    """Say a number and its interval: "2.5 (2.31 to 2.7)"."""
    return f"{in_digits(number)} ({in_digits(low)} to {in_digits(high)})"


def in_bytes(size: float) -> str:
    """Say a number of bytes in the unit that leaves few digits: "812 B", "4.1 kB", "2.5 MB", "16 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor * 0.9995:  # which three digits round to 1
            return f"{in_digits(size / factor)} {unit}"
    return f"{size:.0f} B"


def first_line(error: object) -> str:
    """Return the first line of what an error or a warning says, "" where it says nothing."""
    return f"{error}".strip().partition("\n")[0].rstrip()


def named(error: BaseException) -> str:
    """Say an error in a line, as Python does: its kind, and the first line of what it says."""
    return ": ".join(filter(None, (type(error).__name__, first_line(error))))


def said_by(error: BaseException) -> str:
    """Return the first line of what an error says; its kind where it says nothing."""
    return first_line(error) or named(error)
