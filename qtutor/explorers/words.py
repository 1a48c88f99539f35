"""How explorers say numbers."""

import math


def counted(number: int, thing: str) -> str:
    """Say how many there are: "1 step", "1,200 steps"."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def in_decibels(sqnr: float) -> str:
    """Say an SQNR: "31.3 dB"."""
    return "without error" if sqnr == math.inf else f"{sqnr:.1f} dB"


def in_bytes(size: float) -> str:
    """Say a number of bytes in the unit that leaves few digits: "812 B", "4.1 kB", "2.5 MB"."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
