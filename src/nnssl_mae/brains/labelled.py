"""From maps of labels to anatomies that tell more tissues apart than grey, white and fluid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnssl_mae.brains.anatomy import TISSUES, Anatomy, voxel_edges
from nnssl_mae.brains.deformation import Shape
from nnssl_mae.errors import UserError

Number = TypeVar("Number", np.float32, np.uint8)

STUDY_TISSUES = (*TISSUES, "deep grey matter", "hippocampus and amygdala")
"""What every anatomy of a study tells apart. Cerebellum and brainstem count as grey and white matter where an anatomy
has them: not all have."""
DEEP_GREY, HIPPOCAMPUS = 4, 5

# T1-like brightness of STUDY_TISSUES, for anatomies that are a map of labels without an image.
_BRIGHTNESS = (0.18, 0.55, 0.85, 0.67, 0.57)


def read_volume(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A volume (X, Y, Z) in RAS order, and its (4, 4) affine."""
    scan = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(scan.dataobj, dtype=np.float32), np.asarray(scan.affine, dtype=np.float64)


def resample(
    volume: NDArray[np.float32],
    affine: NDArray[np.float64],
    target: NDArray[np.float64],
    shape: Shape,
    order: int = 1,
) -> NDArray[np.float32]:
    """``volume`` on another grid by the two affines (voxel to mm); 0 outside. A coarser grid averages first.

    Args:
        volume: (X, Y, Z) on the grid of ``affine``.
        affine: of ``volume``.
        target: affine of the result.
        shape: of the result.
        order: 0 takes the nearest voxel, for labels; 1 interpolates.
    """
    between = np.linalg.inv(affine) @ target
    if order:
        # Half a voxel of the result: less makes stairs of thin cortex, more wipes it out.
        width = 0.4 * np.asarray(voxel_edges(target)) / np.asarray(voxel_edges(affine))
        volume = ndimage.gaussian_filter(volume, width, truncate=3)
    moved = ndimage.affine_transform(volume, between[:3, :3], between[:3, 3], shape, order=order, mode="constant")
    return np.asarray(moved, dtype=np.float32)


def grid_around(
    filled: NDArray[np.bool_], affine: NDArray[np.float64], resolution: float
) -> tuple[NDArray[np.float64], Shape]:
    """Affine and shape of the grid of ``resolution`` mm that holds the ``filled`` voxels (X, Y, Z; RAS)."""
    places = np.argwhere(filled)
    low, high = (affine[:3, :3] @ corner + affine[:3, 3] for corner in (places.min(0), places.max(0)))
    steps = np.ceil((high - low) / resolution).astype(int) + 3
    grid = np.diag([resolution, resolution, resolution, 1.0])
    grid[:3, 3] = (low + high) / 2 - (steps - 1) / 2 * resolution
    return grid, (int(steps[0]), int(steps[1]), int(steps[2]))


def from_labels(
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    resolution: float,
    t1: NDArray[np.float32] | None = None,
    tissues: Sequence[str] = STUDY_TISSUES,
) -> Anatomy:
    """An anatomy on a grid of ``resolution`` mm from a map of labels, 1 to K in the order of ``tissues``.

    Args:
        labels: (X, Y, Z) in RAS order.
        affine: of ``labels`` and ``t1``.
        resolution: mm.
        t1: the image the labels belong to; without one it is painted from the shares and ``has_image`` is False.
        tissues: K names.
    """
    grid, shape = grid_around(labels > 0, affine, resolution)
    numbers = range(1, len(tissues) + 1)
    tissue = np.stack([resample((labels == n).astype(np.float32), affine, grid, shape) for n in numbers])
    total = tissue.sum(0)
    inside = total > 0.5
    tissue = np.where(inside, tissue / np.maximum(total, 1e-6), 0).astype(np.float32)
    hard = np.where(inside, tissue.argmax(0) + 1, 0).astype(np.uint8)
    if t1 is None:
        image = np.tensordot(np.array(_BRIGHTNESS[: len(tissues)], dtype=np.float32), tissue, axes=1)
    else:
        image = resample(t1 / t1.max(), affine, grid, shape)
    image = np.where(inside, image, 0).astype(np.float32)
    return Anatomy(image, tissue, hard, grid, voxel_edges(grid), tuple(tissues), has_image=t1 is not None)


def split_tissues(anatomy: Anatomy, regions: dict[str, NDArray[np.float32]]) -> Anatomy:
    """Give parts of grey and white matter names of their own.

    Args:
        anatomy: with ``TISSUES``.
        regions: name to (X, Y, Z) share of each voxel, 0 to 1, that lies in the region. Fluid stays fluid.
    """
    csf, grey, white = anatomy.tissue
    parts = {name: np.clip(share, 0, 1) * (grey + white) for name, share in regions.items()}
    rest = np.clip(1 - sum(np.clip(share, 0, 1) for share in regions.values()), 0, 1)
    tissue = np.stack([csf, grey * rest, white * rest, *parts.values()])
    total = tissue.sum(0)
    inside = anatomy.labels > 0
    tissue = np.where(inside, tissue / np.maximum(total, 1e-6), 0).astype(np.float32)
    labels = np.where(inside, tissue.argmax(0) + 1, 0).astype(np.uint8)
    return replace(anatomy, tissue=tissue, labels=labels, tissues=(*anatomy.tissues, *regions))


def fit(anatomy: Anatomy, shape: Shape) -> Anatomy:
    """The anatomy in the middle of a grid of ``shape``, whose middle is the origin of the millimetres.

    So anatomies that are fitted to one shape and resolution share a grid.

    Raises:
        UserError: the anatomy is larger than ``shape``.
    """
    low, high = bounding_box(anatomy)
    extent = high - low
    if (extent > np.asarray(shape)).any():
        has, asked = (" x ".join(str(n) for n in size) for size in (extent, shape))
        raise UserError(
            f"size: an anatomy of {has} voxels at {anatomy.spacing[0]:g} mm does not fit into {asked}; "
            "give a larger size or a coarser resolution"
        )
    start = (low + high - np.asarray(shape)) // 2
    tissue = np.stack([_window(share, start, shape) for share in anatomy.tissue])
    affine = np.diag([*anatomy.spacing, 1.0])
    affine[:3, 3] = -(np.asarray(shape) - 1) / 2 * np.asarray(anatomy.spacing)
    t1, labels = _window(anatomy.t1, start, shape), _window(anatomy.labels, start, shape)
    return replace(anatomy, t1=t1, tissue=tissue, labels=labels, affine=affine)


def bounding_box(anatomy: Anatomy) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First voxel of the brain along each axis, and the one after its last."""
    places = np.argwhere(anatomy.labels)
    return places.min(0), places.max(0) + 1


def _window(volume: NDArray[Number], start: NDArray[np.int64], shape: Shape) -> NDArray[Number]:
    """(X, Y, Z) of ``shape`` from ``start`` on, which may lie outside; zeros there."""
    result = np.zeros(shape, dtype=volume.dtype)
    into, out_of = [], []
    for first, wanted, there in zip(start, shape, volume.shape, strict=True):
        low, high = max(0, int(first)), min(there, int(first) + wanted)
        out_of.append(slice(low, high))
        into.append(slice(low - int(first), high - int(first)))
    result[tuple(into)] = volume[tuple(out_of)]
    return result
