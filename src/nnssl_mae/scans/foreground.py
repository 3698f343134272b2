"""Where the head or body is in a volume, and how much of it lies in each cell of a coarse grid.

Foreground-aware masking looks blocks up in this grid before it reads a voxel, wherever augmentation has put them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

CELL = 8
"""Edge of the cells of the coarse grid in voxels."""

_LEVEL = 0.1  # of the range between the 0.5 and 99.5 percentile
_SMALLEST_PART = 0.05  # of the largest connected part
_MEANS_OF_TWO, _MEANS_OF_FOUR = 64, 320  # voxels along an axis from which 2 and 4 are averaged

Mask = NDArray[np.bool_]


def foreground_mask(volume: NDArray[np.floating[Any]]) -> Mask:
    """Which voxels belong to the head or body, by brightness and connection alone.

    Averages of a few neighbours (noise of the air averages out) that lie above the 0.5 percentile by more than a
    tenth of the distance to the 99.5 percentile are bright; parts smaller than a twentieth of the largest are dropped;
    what is enclosed in any axis-aligned slice (ventricles, sinuses, lungs) is filled. The 0.5 percentile is the
    background of a skull-stripped brain and the air of a whole head or a CT; where tissue fills the volume it is the
    darkest tissue, and only a little of it is lost. Where a CT is padded far below air (-3024), its air counts too.

    Args:
        volume: (Z, Y, X), in any units. Tissue must be brighter than the background.

    Returns:
        (Z, Y, X), True = head or body. All True for a volume without contrast.
    """
    means = _means(volume, [_step(size) for size in volume.shape])
    low, high = np.percentile(means, (0.5, 99.5))
    if not high > low:
        return np.ones(volume.shape, dtype=bool)
    mask = _filled(_large_parts(means > low + _LEVEL * (high - low)))
    for axis, size in enumerate(volume.shape):
        mask = mask.repeat(_step(size), axis=axis)
    return mask[tuple(slice(size) for size in volume.shape)]


def _step(size: int) -> int:
    return 1 if size < _MEANS_OF_TWO else 2 if size < _MEANS_OF_FOUR else 4


def _means(volume: NDArray[Any], steps: Sequence[int]) -> NDArray[np.float32]:
    """Means over boxes of ``steps`` voxels; at the upper ends, over the voxels that are there."""
    sums, counts = np.asarray(volume, dtype=np.float32), np.ones((1, 1, 1), dtype=np.float32)
    for axis, step in enumerate(steps):
        sizes = np.minimum(step, volume.shape[axis] - np.arange(0, volume.shape[axis], step)).astype(np.float32)
        counts = counts * np.expand_dims(sizes, [other for other in range(3) if other != axis])
        sums = _sums(sums, axis, step)
    return sums / counts


def _sums(volume: NDArray[np.float32], axis: int, step: int) -> NDArray[np.float32]:
    """Sums of ``step`` neighbours along an axis: adding whole slices is many times faster than numpy's reduceat.

    The order of the additions is part of the result's last digits: the first, plus the sum of the others.
    """
    slices = np.moveaxis(volume, axis, 0)
    first, *others = (slices[start::step] for start in range(min(step, len(slices))))
    if not others:
        return volume
    rest = others[0].copy()
    for other in others[1:]:
        rest[: len(other)] += other
    total = first.copy()
    total[: len(rest)] += rest
    return np.moveaxis(total, 0, axis)


def _large_parts(mask: Mask) -> Mask:
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= max(1, _SMALLEST_PART * sizes.max()))[parts]


def _filled(mask: Mask) -> Mask:
    """Adds what is enclosed in a slice, in the slices of each of the three axes."""
    for axis in range(3):
        in_plane = ndimage.generate_binary_structure(3, 1)
        in_plane[tuple(0 if other == axis else slice(None) for other in range(3))] = False
        in_plane[tuple(2 if other == axis else slice(None) for other in range(3))] = False
        holes, count = ndimage.label(~mask, in_plane)
        enclosed = np.ones(count + 1, dtype=bool)
        for other in {0, 1, 2} - {axis}:
            for end in (0, -1):
                enclosed[holes.take(end, axis=other)] = False
        mask = mask | enclosed[holes]
    return mask


def encode_occupancy(mask: Mask) -> bytes:
    """The share of foreground in each cell of ``CELL``^3 voxels, for the case table.

    Args:
        mask: (Z, Y, X), True = head or body.

    Returns:
        zlib-compressed uint8 grid of shape ceil((Z, Y, X) / CELL), 255 = all foreground. Cells that the volume cuts
        off count the voxels that they have.
    """
    shares = _means(mask, [CELL] * 3)
    return zlib.compress(np.rint(255 * shares).astype(np.uint8).tobytes())


def decode_occupancy(content: bytes, shape: Sequence[int]) -> NDArray[np.uint8]:
    """The grid of :func:`encode_occupancy` for a volume of ``shape`` voxels (Z, Y, X).

    Raises:
        ValueError: the content is damaged or belongs to a volume of another shape.
    """
    grid = [-(-size // CELL) for size in shape]
    try:
        cells = np.frombuffer(zlib.decompress(content), dtype=np.uint8)
    except zlib.error as error:
        raise ValueError(f"the foreground grid cannot be read: {error}") from error
    if cells.size != np.prod(grid):
        raise ValueError(f"the foreground grid holds {cells.size} cells; a volume of {tuple(shape)} has {grid}")
    return cells.reshape(grid)


def occupancy_at(
    cells: NDArray[np.uint8], shape: Sequence[int], points: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """The share of foreground, 0 to 1, in the cells in which points lie; zero (air) outside the volume.

    Args:
        cells: of :func:`decode_occupancy`.
        shape: of the volume, voxels (Z, Y, X).
        points: (..., 3), voxel coordinates (z, y, x) in the volume; whole numbers are voxel centres.
    """
    voxels = np.floor(points + 0.5).astype(np.int64)
    inside = ((voxels >= 0) & (voxels < np.asarray(shape))).all(axis=-1)
    z, y, x = np.moveaxis(np.where(inside[..., None], voxels, 0) // CELL, -1, 0)
    return np.where(inside, cells[z, y, x] / np.float32(255), np.float32(0))
