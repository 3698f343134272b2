"""nnU-Net's default resampling of images as matrix products: the same numbers, many times faster.

Cubic spline interpolation between two grids is linear and treats each axis on its own. So all of it is known once
unit vectors have been resampled along an axis, and a volume is resampled by three products with such matrices. A voxel
depends on its neighbourhood only (a spline's influence falls by a factor of 3.7 a voxel), so the matrices are bands,
and products with blocks of the bands are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from skimage.transform import resize

_SMALLEST_WEIGHT = 1e-9  # smaller ones become denormal numbers in products, which are slow, and change no digit
_ROWS = 32  # of a block: larger ones hold more zeros, smaller ones cost more calls
_LINES = 256  # of the volume at a time, so that they stay in the processor's cache
_OPERATORS = 64  # sizes repeat among the scans of a dataset
_STOCK_CHOICE = {"is_seg": False, "order": 3, "order_z": 0}
_OTHER_KEYWORDS = {"force_separate_z", "separate_z_anisotropy_threshold"}

Resampler = Callable[..., Any]


class _Block(NamedTuple):
    """Rows of an operator and the columns in which they are not zero."""

    rows: slice
    columns: slice
    weights: NDArray[np.float64]


def resample(
    stock: Resampler,
    volume: NDArray[np.float32],
    new_shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
) -> NDArray[np.float32]:
    """The result of ``stock``, as matrix products where that is nnU-Net's default for images, by itself elsewhere.

    Args:
        stock: nnU-Net's resampling function with its keywords bound (``ConfigurationManager.resampling_fn_data``).
        volume: (C, Z, Y, X); unchanged.
        new_shape: voxels (Z, Y, X).
        spacing: of the volume, mm.
        new_spacing: of the result, mm.

    Returns:
        (C, *new_shape), equal to that of ``stock`` to the last digit or two of 32 bit; ``volume`` itself if it has that
        shape already, as from ``stock``.
    """
    shape = tuple(int(size) for size in new_shape)
    if shape == volume.shape[1:] or not replaces(stock) or not _is_ordinary(volume, shape):
        return np.asarray(stock(volume, new_shape, spacing, new_spacing))
    axis = separate_axis(stock, spacing, new_spacing)
    channels = [_in_space(channel, shape) if axis is None else _in_slices(channel, shape, axis) for channel in volume]
    return channels[0][None] if len(channels) == 1 else np.stack(channels)


def replaces(stock: Resampler) -> bool:
    """Whether ``stock`` is nnU-Net's default for images: cubic, and where slices are thick, nearest across them."""
    if not isinstance(stock, partial) or stock.func is not resample_data_or_seg_to_shape or stock.args:
        return False
    given = {**_STOCK_CHOICE, **stock.keywords}
    return _STOCK_CHOICE.items() <= given.items() and given.keys() <= _STOCK_CHOICE.keys() | _OTHER_KEYWORDS


def separate_axis(stock: Resampler, spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis across which nnU-Net interpolates nothing, because its slices are thick; None without such."""
    keywords = {name: value for name, value in getattr(stock, "keywords", {}).items() if name in _OTHER_KEYWORDS}
    separate, axis = determine_do_sep_z_and_axis(
        keywords.pop("force_separate_z", False), spacing, new_spacing, **keywords
    )
    return int(axis) if separate else None


def _is_ordinary(volume: NDArray[Any], shape: Sequence[int]) -> bool:
    """Whether products give what splines give: no empty axis, and finite, because 0 times infinity is not a number."""
    return volume.dtype == np.float32 and volume.size > 0 and min(shape) > 0 and bool(np.isfinite(volume.sum()))


def _in_space(volume: NDArray[np.float32], shape: Sequence[int]) -> NDArray[np.float32]:
    result = _along_axes(volume, shape, (0, 1, 2))
    return np.clip(result, volume.min(), volume.max(), out=result)  # splines overshoot; scikit-image cuts that off


def _in_slices(volume: NDArray[np.float32], shape: Sequence[int], axis: int) -> NDArray[np.float32]:
    """Cubic inside each slice, clipped to the slice's own range; across slices, the nearest one."""
    inside = tuple(other for other in range(3) if other != axis)
    result = _along_axes(volume, shape, inside)
    np.clip(result, volume.min(axis=inside, keepdims=True), volume.max(axis=inside, keepdims=True), out=result)
    return result.take(_nearest(volume.shape[axis], shape[axis]), axis=axis)


def _nearest(size: int, new_size: int) -> NDArray[np.intp]:
    """Which of ``size`` slices stands at each of ``new_size`` places; ties as scipy breaks them."""
    places = size / new_size * (np.arange(new_size) + 0.5) - 0.5
    return np.asarray(map_coordinates(np.arange(size), [places], order=0, mode="nearest"), dtype=np.intp)


def _along_axes(volume: NDArray[np.float32], shape: Sequence[int], axes: Sequence[int]) -> NDArray[np.float32]:
    """A new volume: products along ``axes``, in 64 bit, because errors of 32 bit add up to 1e-5 in bright voxels."""
    factors = {axis: shape[axis] / volume.shape[axis] for axis in axes if shape[axis] != volume.shape[axis]}
    order = sorted(factors, key=lambda axis: factors[axis])  # what grows comes last, so that less is computed
    if not order:
        return volume.copy()
    result: NDArray[Any] = np.ascontiguousarray(volume)
    for axis in order:
        kind = np.float32 if axis == order[-1] else np.float64
        result = (_along_first, _along_middle, _along_last)[axis](result, shape[axis], kind)
    return result


def _along_first(volume: NDArray[Any], size: int, kind: type) -> NDArray[Any]:
    result: NDArray[Any] = np.empty((size, *volume.shape[1:]), dtype=kind)
    lines, new_lines = volume.reshape(len(volume), -1), result.reshape(size, -1)
    for start in range(0, lines.shape[1], _LINES):
        part = lines[:, start : start + _LINES].astype(np.float64)
        for rows, columns, weights in _operator(len(volume), size):
            new_lines[rows, start : start + _LINES] = weights @ part[columns]
    return result


def _along_middle(volume: NDArray[Any], size: int, kind: type) -> NDArray[Any]:
    result: NDArray[Any] = np.empty((len(volume), size, volume.shape[2]), dtype=kind)
    for plane, new_plane in zip(volume, result, strict=True):
        part = plane.astype(np.float64, copy=False)
        for rows, columns, weights in _operator(volume.shape[1], size):
            new_plane[rows] = weights @ part[columns]
    return result


def _along_last(volume: NDArray[Any], size: int, kind: type) -> NDArray[Any]:
    result: NDArray[Any] = np.empty((*volume.shape[:2], size), dtype=kind)
    lines, new_lines = volume.reshape(-1, volume.shape[2]), result.reshape(-1, size)
    for start in range(0, len(lines), _LINES):
        part = lines[start : start + _LINES].astype(np.float64, copy=False)
        for rows, columns, weights in _operator(volume.shape[2], size):
            new_lines[start : start + _LINES, rows] = part[:, columns] @ weights.T
    return result


@lru_cache(maxsize=_OPERATORS)
def _operator(size: int, new_size: int) -> tuple[_Block, ...]:
    """How ``new_size`` voxels of an axis come from ``size`` ones: scikit-image's resize of unit vectors, in blocks."""
    unit = np.eye(size)
    matrix = resize(unit, (new_size, size), order=3, mode="edge", anti_aliasing=False, clip=False)
    matrix[np.abs(matrix) < _SMALLEST_WEIGHT] = 0
    return tuple(_block(matrix, start) for start in range(0, new_size, _ROWS))


def _block(matrix: NDArray[np.float64], start: int) -> _Block:
    rows = slice(start, min(start + _ROWS, len(matrix)))
    used = np.flatnonzero(matrix[rows].any(axis=0))
    columns = slice(int(used[0]), int(used[-1]) + 1)
    return _Block(rows, columns, np.ascontiguousarray(matrix[rows, columns]))
