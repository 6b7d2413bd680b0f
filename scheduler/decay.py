"""Past use fades: half of it is left after each half-life. Integers only, so that every machine computes the same."""

from __future__ import annotations

from math import isqrt

_BITS = 32
_STEPS = 16


def _roots() -> tuple[int, ...]:
    """2 to the power of -1/2, -1/4, -1/8, …, each times 2**32."""
    found: list[int] = []
    root = 1 << (_BITS - 1)
    for _ in range(_STEPS):
        root = isqrt(root << _BITS)
        found.append(root)
    return tuple(found)


_ROOTS = _roots()


def decayed(amount: int, elapsed: int, half_life: int) -> int:
    """What is left of an amount, rounded down.

    Args:
        amount: at least 0.
        elapsed: time gone by; less than 0 counts as none.
        half_life: in the same unit, at least 1.
    """
    halvings, rest = divmod(max(0, elapsed), half_life)
    # The fraction of a half-life in binary: each digit that is set is a factor.
    digits = (rest << _STEPS) // half_life
    factor = 1 << _BITS
    for place, root in enumerate(_ROOTS, 1):
        if digits >> (_STEPS - place) & 1:
            factor = factor * root >> _BITS
    return amount * factor >> (_BITS + min(halvings, amount.bit_length()))
