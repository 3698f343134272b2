"""Sizes along three axes: in words, and the nearest that a network or a mask can take."""

from __future__ import annotations

from collections.abc import Sequence

AXES = 3


def sizes_in_words(numbers: Sequence[int]) -> str:
    """Such as ``160x160x160``."""
    return "x".join(str(int(number)) for number in numbers)


def stages_in_words(number: int) -> str:
    """``1 stage`` or ``6 stages``."""
    return f"{number} stage{'' if number == 1 else 's'}"


def per_axis(size: int | Sequence[int]) -> tuple[int, ...]:
    """Along each axis; one number stands for all of them."""
    return (size,) * AXES if isinstance(size, int) else tuple(size)


def nearest_multiples(sizes: Sequence[int], units: Sequence[int]) -> list[int]:
    """For each size the nearest multiple of its unit, at least one unit."""
    return [max(unit, round(size / unit) * unit) for size, unit in zip(sizes, units, strict=True)]


def are_multiples(sizes: Sequence[int], units: Sequence[int]) -> bool:
    """Whether each size is a multiple of its unit."""
    return all(size % unit == 0 for size, unit in zip(sizes, units, strict=True))
