"""Where patches of a network's size lie in a volume, and which of them answers for a voxel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

Corner = tuple[int, ...]


def corners(shape: Sequence[int], patch: Sequence[int], most: int) -> list[Corner]:
    """First voxels of patches that cover a volume, from its centre outwards; overlapping as little as possible.

    Args:
        shape: of the volume, voxels.
        patch: voxels; where it is larger than the volume, it is centred on it and its corner is negative.
        most: how many at most; what lies outside of them is not looked at.
    """
    middle = np.subtract(shape, patch) / 2
    found = sorted(
        product(*(_starts(size, edge) for size, edge in zip(shape, patch, strict=True))),
        key=lambda corner: (float(np.square(corner - middle).sum()), corner),
    )
    return found[:most]


def _starts(size: int, edge: int) -> list[int]:
    if size <= edge:
        return [(size - edge) // 2]
    return [round(float(start)) for start in np.linspace(0, size - edge, ceil(size / edge))]


def owners(shape: Sequence[int], patch: Sequence[int], places: Sequence[Corner]) -> NDArray[np.int16]:
    """For each voxel the place in ``places`` of the first patch that holds it, -1 without any; (Z, Y, X)."""
    found = np.full(shape, -1, dtype=np.int16)
    for number in reversed(range(len(places))):
        found[inside(shape, patch, places[number])[0]] = number
    return found


def inside(shape: Sequence[int], patch: Sequence[int], corner: Corner) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part that a volume and a patch share, as an index of the volume and as one of the patch."""
    ends = zip(corner, patch, shape, strict=True)
    shared: list[Any] = [(max(0, low), min(low + edge, size)) for low, edge, size in ends]
    return (
        tuple(slice(low, high) for low, high in shared),
        tuple(slice(low - first, high - first) for (low, high), first in zip(shared, corner, strict=True)),
    )
