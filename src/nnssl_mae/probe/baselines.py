"""Fillings of hidden blocks that nothing had to learn for.

A network that reconstructs no better than these has learnt nothing that fine-tuning could use. All are pure functions
of what is visible: no value of a hidden voxel has a part in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]

MEAN, BLOCK, TRILINEAR = "mean of visible", "nearest block", "trilinear"
BASELINES = (MEAN, BLOCK, TRILINEAR)
_SPREAD_EPS = 1e-6


def fillings(volume: Volume, hidden: Mask, counted: Mask) -> dict[str, Volume]:
    """All baselines by their names.

    Args:
        volume: (D, H, W).
        hidden: (d, h, w), True = hidden; d, h, w divide D, H, W.
        counted: (D, H, W), False = padding or excluded, which nothing is taken from.

    Raises:
        ValueError: no counted voxel is visible.
    """
    return {
        MEAN: mean_of_visible(volume, hidden, counted),
        BLOCK: nearest_visible_block(volume, hidden, counted),
        TRILINEAR: trilinear_from_visible(volume, hidden, counted),
    }


def mean_of_visible(volume: Volume, hidden: Mask, counted: Mask) -> Volume:
    """The mean of the visible, counted voxels in every hidden voxel; arguments as of :func:`fillings`."""
    covered = at_voxels(hidden, volume.shape)
    return np.where(covered, volume[_sources(covered, counted)].mean(dtype=np.float64), volume).astype(np.float32)


def nearest_visible_block(volume: Volume, hidden: Mask, counted: Mask) -> Volume:
    """In each hidden block the mean of the visible block whose centre is nearest; arguments as of :func:`fillings`.

    Distances are in voxels. Blocks without a counted voxel are no source.
    """
    blocks = _as_blocks(volume, hidden.shape)
    inside = _as_blocks(counted, hidden.shape)
    number = inside.sum(axis=(1, 3, 5))
    means = (blocks * inside).sum(axis=(1, 3, 5), dtype=np.float64) / np.maximum(number, 1)
    source = ~hidden & (number > 0)
    if not source.any():
        raise ValueError("nothing of the scan is visible")
    edges = [size // n for size, n in zip(volume.shape, hidden.shape, strict=True)]
    nearest = distance_transform_edt(~source, sampling=edges, return_distances=False, return_indices=True)
    return np.where(at_voxels(hidden, volume.shape), at_voxels(means[tuple(nearest)], volume.shape), volume).astype(
        np.float32
    )


def trilinear_from_visible(volume: Volume, hidden: Mask, counted: Mask) -> Volume:
    """Linear interpolation along all three axes at once; arguments as of :func:`fillings`.

    From each hidden voxel one looks along the axes in all six directions for the first visible voxel. The value is the
    mean of those that are found, weighted by one over their distance: along a single axis that is linear interpolation
    between the two ends of the gap, and the end's value beyond the last visible voxel. Where none is found in any
    direction, the nearest visible voxel in space is taken.
    """
    covered = at_voxels(hidden, volume.shape)
    source = _sources(covered, counted)
    values, weights = np.zeros(volume.shape), np.zeros(volume.shape)
    for axis in range(3):
        for backwards in (False, True):
            found, distance = _first_along(source, axis, backwards)
            there = (distance > 0) & covered
            weight = np.where(there, 1 / np.maximum(distance, 1), 0)
            values += weight * np.take_along_axis(volume, found, axis=axis)
            weights += weight
    alone = covered & (weights == 0)
    if alone.any():
        nearest = distance_transform_edt(~source, return_distances=False, return_indices=True)
        values[alone], weights[alone] = volume[tuple(nearest)][alone], 1
    return np.where(covered, values / np.where(weights > 0, weights, 1), volume).astype(np.float32)


def _first_along(source: Mask, axis: int, backwards: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each voxel the place along the axis of the nearest source on one side, and its distance; 0 without any."""
    size = source.shape[axis]
    places = np.arange(size).reshape([-1 if each == axis else 1 for each in range(3)])
    if backwards:
        marked = np.where(source, places, size)
        found = np.flip(np.minimum.accumulate(np.flip(marked, axis), axis=axis), axis)
        return np.minimum(found, size - 1), np.where(found < size, found - places, 0)
    found = np.maximum.accumulate(np.where(source, places, -1), axis=axis)
    return np.maximum(found, 0), np.where(found >= 0, places - found, 0)


def with_given_blocks(filling: Volume, volume: Volume, hidden: Mask, counted: Mask) -> Volume:
    """A filling that is told what networks that learnt normalised blocks are told: each hidden block's mean and spread.

    Its blocks get the true mean. Their contrast stays, but is reduced to the true spread where it is larger: more
    contrast than there is would only be punished.

    Args:
        filling: (D, H, W), from one of the functions above.
        volume, hidden, counted: as of :func:`fillings`; here, and only here, hidden voxels have a say.
    """
    inside = _as_blocks(counted, hidden.shape)
    true_mean, true_spread = _block_statistics(_as_blocks(volume, hidden.shape), inside)
    blocks = _as_blocks(filling, hidden.shape)
    mean, spread = _block_statistics(blocks, inside)
    scale = np.minimum(1, true_spread / np.maximum(spread, _SPREAD_EPS))
    told = ((blocks - mean) * scale + true_mean).reshape(volume.shape)
    return np.where(at_voxels(hidden, volume.shape), told, filling).astype(np.float32)


def _block_statistics(blocks: NDArray[Any], inside: Mask) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation of the counted voxels of each block, (d, 1, h, 1, w, 1) twice."""
    axes = (1, 3, 5)
    number = np.maximum(inside.sum(axis=axes, keepdims=True), 1)
    mean = (blocks * inside).sum(axis=axes, keepdims=True, dtype=np.float64) / number
    variance = ((blocks - mean) ** 2 * inside).sum(axis=axes, keepdims=True) / number
    return mean, np.sqrt(variance)


def _sources(covered: Mask, counted: Mask) -> Mask:
    source = ~covered & counted
    if not source.any():
        raise ValueError("nothing of the scan is visible")
    return source


def at_voxels(blocks: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Values of blocks (d, h, w) at every voxel (D, H, W)."""
    for axis, size in enumerate(shape):
        blocks = blocks.repeat(size // blocks.shape[axis], axis=axis)
    return blocks


def _as_blocks(volume: NDArray[Any], grid: Sequence[int]) -> NDArray[Any]:
    """(d, b0, h, b1, w, b2) of (D, H, W)."""
    return volume.reshape([part for size, n in zip(volume.shape, grid, strict=True) for part in (n, size // n)])
