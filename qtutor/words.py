"""How numbers and errors are said in a sentence."""

import math


def counted(number: int, thing: str) -> str:
    """Say how many there are: "1 step", "1,200 steps"."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def in_decibels(sqnr: float) -> str:
    """Say an SQNR: "31.3 dB"."""
    return "without error" if sqnr == math.inf else "not measured" if math.isnan(sqnr) else f"{sqnr:.1f} dB"


def in_digits(number: float) -> str:
    """Say a number to three significant digits, below 10^9 without a power of ten: "0.012", "2.5", "1,570"."""
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if 1e3 <= abs(rounded) < 1e9 else f"{rounded:.3g}"


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
