"""How many random examples a property is tried on: few on every push, many with `--hypothesis-profile=night`."""

from hypothesis import settings

FEW = 50
settings.register_profile("push", deadline=None, derandomize=True, database=None, max_examples=FEW)
settings.register_profile("night", deadline=None, max_examples=40 * FEW)


def examples(few: int) -> int:
    """How many to try where `few` do on every push."""
    return few * settings().max_examples // FEW
