"""How well one predicted label map agrees with the reference: Dice, surface Dice, HD95 and lesion-wise F1.

Dice is computed as in nnU-Net's ``summary.json``. Surfaces and the areas of their elements are those of DeepMind's
``surface_distance`` (Nikolov et al., "Clinically applicable segmentation of head and neck anatomy", JMIR 2021): they
run between voxels, and an element counts with its area in mm^2, not as one voxel.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

METRICS_VERSION = 1
"""Raised by whoever changes a number that comes out of this module; scores stored under another one count no more."""

_PERCENTILE = 95.0
_ROUNDING = 1e-6  # headers hold 32-bit numbers: two voxels of "1.1" mm are within a tolerance of 2.2

Mask = NDArray[np.bool_]
LabelValues = NDArray[np.int32]
Box = tuple[slice, ...]


@dataclass(frozen=True)
class Scores:
    """One label of one case. Scores are not a number where both masks are empty, as in nnU-Net.

    Where one of them is empty, Dice, surface Dice and F1 are 0 and HD95 is the diagonal of the image.
    """

    dice: float
    nsd: float
    hd95: float
    """mm."""
    lesion_f1: float
    """Not a number also where nobody asked for it."""
    voxels_reference: int
    voxels_predicted: int


def score_label_maps(
    reference: LabelValues,
    predicted: LabelValues,
    spacing: Sequence[float],
    labels: Mapping[str, Sequence[int]],
    ignore: int | None = None,
    tolerance_mm: float = 1.0,
    lesions: Collection[str] = (),
) -> dict[str, Scores]:
    """Scores by label.

    Args:
        reference: (z, y, x) or (y, x); what is neither a label nor background is negative.
        predicted: on the same grid.
        spacing: mm, in the order of the axes of the arrays.
        labels: the values that make up each label; more than one for a region.
        ignore: voxels with this value in the reference count in neither map, as in nnU-Net.
        tolerance_mm: for the surface Dice.
        lesions: the labels whose lesion-wise F1 is wanted.
    """
    kept = np.ones(reference.shape, bool) if ignore is None else reference != ignore
    largest = max((max(values) for values in labels.values()), default=0)
    boxes = [_boxes(values, kept, largest) for values in (reference, predicted)]
    diagonal = diagonal_mm(reference.shape, spacing)
    scores = {}
    for name, values in labels.items():
        box = _box_around(values, boxes, reference.shape)
        masks = [np.isin(array[box], list(values)) & kept[box] for array in (reference, predicted)]
        scores[name] = score_masks(masks[0], masks[1], spacing, tolerance_mm, diagonal, name in lesions)
    return scores


def score_masks(
    reference: Mask,
    predicted: Mask,
    spacing: Sequence[float],
    tolerance_mm: float,
    diagonal: float,
    lesions: bool = False,
) -> Scores:
    """Scores of two masks, which may be cut out of larger ones; ``diagonal`` (mm) is that of the whole image."""
    n_reference, n_predicted = int(reference.sum()), int(predicted.sum())
    nsd, hd95 = surface_agreement(reference, predicted, spacing, tolerance_mm, diagonal)
    f1 = lesion_f1(reference, predicted) if lesions else math.nan
    return Scores(dice(reference, predicted), nsd, hd95, f1, n_reference, n_predicted)


def no_prediction(voxels_reference: int, diagonal: float, lesions: bool) -> Scores:
    """What counts where a model gave nothing that could be measured: the worst of each score."""
    return Scores(0.0, 0.0, diagonal, 0.0 if lesions else math.nan, voxels_reference, 0)


def dice(reference: Mask, predicted: Mask) -> float:
    """2 |A and B| / (|A| + |B|); not a number where both are empty."""
    total = int(reference.sum()) + int(predicted.sum())
    return 2 * int((reference & predicted).sum()) / total if total else math.nan


def surface_agreement(
    reference: Mask, predicted: Mask, spacing: Sequence[float], tolerance_mm: float, diagonal: float
) -> tuple[float, float]:
    """Surface Dice at a tolerance (share of both surfaces that lies within it) and HD95 in mm.

    HD95 is the larger of the two directed 95th percentiles; elements count by their area. A mask that reaches the edge
    of the image has a surface there.

    Args:
        reference: (z, y, x) or (y, x).
        spacing: mm, in the order of the axes of the masks.
        diagonal: mm, taken as HD95 where one mask is empty.
    """
    if not reference.any() and not predicted.any():
        return math.nan, math.nan
    if not reference.any() or not predicted.any():  # the library cannot do this with numpy 2
        return 0.0, diagonal
    import surface_distance

    true, guessed = _surface(reference, spacing), _surface(predicted, spacing)
    between = _distances(true, guessed, ("gt", "pred")) | _distances(guessed, true, ("pred", "gt"))
    nsd = surface_distance.compute_surface_dice_at_tolerance(between, tolerance_mm * (1 + _ROUNDING))
    return float(nsd), float(surface_distance.compute_robust_hausdorff(between, _PERCENTILE))


def lesion_f1(reference: Mask, predicted: Mask) -> float:
    """2 TP / (2 TP + FP + FN) over connected components, which touch by faces, edges or corners.

    TP are reference lesions of which any voxel is predicted, FN the others, FP predicted components without any
    reference voxel. So one component that covers many lesions finds all of them: read it beside Dice.
    Not a number where both are empty.
    """
    neighbours = np.ones((3,) * reference.ndim, bool)
    lesions, n_lesions = ndimage.label(reference, neighbours)
    components, n_components = ndimage.label(predicted, neighbours)
    found = _numbers_within(lesions, predicted)
    missed, invented = n_lesions - found, n_components - _numbers_within(components, reference)
    total = 2 * found + missed + invented
    return 2 * found / total if total else math.nan


def diagonal_mm(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """The longest way through an image."""
    return math.dist([0.0] * len(shape), [n * mm for n, mm in zip(shape, spacing, strict=True)])


@dataclass(frozen=True)
class _Surface:
    points: NDArray[np.float64]
    """(n, axes) mm: the corners of voxels where inside meets outside."""
    areas: NDArray[np.float64]
    """(n,) mm^2 of the surface around each point (mm of contour, if flat)."""


def _surface(mask: Mask, spacing: Sequence[float]) -> _Surface:
    """The surface as the library defines it, by its own tables of areas."""
    from surface_distance import lookup_tables

    if mask.ndim == 3:
        weights = np.asarray(lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL, np.uint8)
        area_of = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    else:
        weights = np.asarray(lookup_tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL, np.uint8)
        area_of = lookup_tables.create_table_neighbour_code_to_contour_length(spacing)
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for corner, weight in np.ndenumerate(weights):  # which of the voxels around each corner are inside, as bits
        codes += weight * padded[tuple(slice(a, a + n) for a, n in zip(corner, codes.shape, strict=True))]
    border = (codes != 0) & (codes != weights.sum())
    return _Surface(np.argwhere(border) * np.asarray(spacing), area_of[codes[border]])


def _distances(one: _Surface, other: _Surface, names: tuple[str, str]) -> dict[str, NDArray[Any]]:
    """From one surface to the other, ascending, under the library's names.

    The library's own way is a map of distances in the whole volume, and a sort in Python: exact, too, but slow.
    """
    distances, _ = cKDTree(other.points, compact_nodes=False, balanced_tree=False).query(one.points)
    order = np.argsort(distances)
    mine, theirs = names
    return {f"distances_{mine}_to_{theirs}": distances[order], f"surfel_areas_{mine}": one.areas[order]}


def _numbers_within(components: NDArray[np.int32], mask: Mask) -> int:
    """How many components have a voxel inside the mask."""
    return len(np.unique(components[mask & (components > 0)]))


def _boxes(values: LabelValues, kept: Mask, largest: int) -> dict[int, Box]:
    """The bounding box of each value up to ``largest`` that occurs; one pass, however many labels there are."""
    known = np.where(kept & (values >= 0) & (values <= largest), values, 0)
    return {value: box for value, box in enumerate(ndimage.find_objects(known), start=1) if box is not None}


def _box_around(values: Sequence[int], boxes_by_value: Sequence[dict[int, Box]], shape: Sequence[int]) -> Box:
    """The smallest box around these values in all maps, and a voxel around it; of no voxel if they occur nowhere."""
    if 0 in values:  # nnU-Net lets a region hold the background
        return tuple(slice(0, n) for n in shape)
    boxes = [boxes[value] for boxes in boxes_by_value for value in values if value in boxes]
    if not boxes:
        return tuple(slice(0, 0) for _ in shape)
    return tuple(
        slice(max(0, min(box[axis].start for box in boxes) - 1), min(n, max(box[axis].stop for box in boxes) + 1))
        for axis, n in enumerate(shape)
    )
