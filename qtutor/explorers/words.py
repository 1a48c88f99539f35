"""How explorers say numbers."""

import math


def counted(number: int, thing: str) -> str:
    """Say how many there are.

    Example:
        >>> counted(1, "step"), counted(1200, "step")
        ('1 step', '1,200 steps')
    """
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def decibels(sqnr: float) -> str:
    """Say an SQNR.

    Example:
        >>> decibels(31.26), decibels(math.inf)
        ('31.3 dB', 'without error')
    """
    return "without error" if sqnr == math.inf else f"{sqnr:.1f} dB"


def in_bytes(size: float) -> str:
    """Say a number of bytes, in the unit that leaves few digits.

    Example:
        >>> in_bytes(812), in_bytes(4096), in_bytes(2.5e6)
        ('812 B', '4.1 kB', '2.5 MB')
    """
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
