"""nnU-Net's preprocessing of one unlabelled scan and its exclusion mask, without the work that a label would need.

Equal to nnU-Net's ``DefaultPreprocessor.run_case`` within 1e-5, for every recipe that does not go beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.read import Orientation, ScanProblem, read_voxels
from nnssl_mae.scans.foreground import foreground_mask
from nnssl_mae.scans.resample import resample

STEP_VERSION = 1
"""Raised whenever the same scan and recipe give another volume: what was prepared before is then done again."""

_REPEATED_READERS = ("NibabelIOWithReorient", "SimpleITKIO")
_EXCLUDED = 1  # the label of excluded voxels

Box = list[list[int]]
"""First voxel and the one after the last, for each axis."""


class _SaysWhatIsBeyondStock(Protocol):
    """:class:`nnssl_mae.recipes.pretraining.DataRecipe`, and what a checkpoint says of it."""

    @property
    def clip_low_percentile(self) -> float | None: ...
    @property
    def clip_percentile(self) -> float | None: ...
    @property
    def crop(self) -> Literal["nonzero", "foreground"]: ...


@dataclass(frozen=True)
class BeyondStock:
    """What is done to a scan that stock nnU-Net cannot repeat when it fine-tunes and predicts. Off by default.

    ``clip_low`` and ``clip_high`` are percentiles of all voxels, at which a scan is clipped first. ``crop`` is the box
    that is kept: that of voxels that are not zero (nnU-Net's), or that of head or body
    (:func:`nnssl_mae.scans.foreground.foreground_mask`), which leaves out noisy air; it is no brain extraction.
    """

    clip_low: float | None = None
    clip_high: float | None = None
    crop: Literal["nonzero", "foreground"] = "nonzero"

    @classmethod
    def of(cls, data: _SaysWhatIsBeyondStock) -> BeyondStock:
        """That of a recipe's section ``data``."""
        return cls(data.clip_low_percentile, data.clip_percentile, data.crop)

    @property
    def words(self) -> tuple[str, ...]:
        """One for each thing that is done; none if everything is stock."""
        low = () if self.clip_low is None else (f"clip below {self.clip_low}",)
        high = () if self.clip_high is None else (f"clip {self.clip_high}",)
        return (*low, *high, *(() if self.crop == "nonzero" else (f"crop {self.crop}",)))


@dataclass(frozen=True)
class Preprocessed:
    """A whole scan as networks are trained on it; arrays (1, Z, Y, X)."""

    volume: NDArray[np.float32]
    excluded: NDArray[np.bool_] | None
    """True = never counts; None if the scan has no exclusion mask."""
    properties: dict[str, Any]
    """What nnU-Net's preprocessor says about reading, cropping and resampling, under the same names."""


def preprocess(
    scan: Scan,
    plans_manager: PlansManager,
    configuration: ConfigurationManager,
    beyond_stock: BeyondStock | None = None,
) -> Preprocessed:
    """Reads, clips if the recipe does, crops, normalises and resamples; a mask changes nothing of the volume.

    Args:
        scan: one channel, three dimensions.
        plans_manager: for reader and axis order.
        configuration: for everything else.
        beyond_stock: what stock nnU-Net would not do; nothing if it is left out.

    Raises:
        ScanProblem: scan or mask are damaged or do not fit together, or nothing is left of the scan.
    """
    axes = [0, *(axis + 1 for axis in plans_manager.transpose_forward)]
    voxels, stored_spacing = _read(scan, plans_manager)
    mask = None if scan.exclude is None else _read_mask(scan, voxels.shape, plans_manager).transpose(axes)
    beyond_stock = beyond_stock or BeyondStock()
    voxels = clipped(voxels, beyond_stock).transpose(axes)
    box = kept_box(voxels, beyond_stock.crop)
    cropped = voxels[in_box(box)]
    labels = None if mask is None else _labels(cropped, mask[in_box(box)])

    spacing = [stored_spacing[axis] for axis in plans_manager.transpose_forward]
    grids = (compute_new_shape(cropped.shape[1:], spacing, configuration.spacing), spacing, configuration.spacing)
    if min(grids[0]) < 1:
        raise ScanProblem("field_of_view", "is thinner than half a voxel of the recipe's spacing, so nothing is left")
    volume = resample(configuration.resampling_fn_data, _normalised(cropped, plans_manager, configuration), *grids)
    excluded = None
    if labels is not None:
        excluded = configuration.resampling_fn_seg(labels, *grids) == _EXCLUDED
    elif mask is not None:
        excluded = np.zeros(volume.shape, dtype=bool)
    properties = {
        "spacing": list(stored_spacing),
        "shape_before_cropping": voxels.shape[1:],
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": cropped.shape[1:],
    }
    return Preprocessed(volume, excluded, properties)


def orientation_of(reader: str) -> Orientation:
    """How one of nnU-Net's readers turns NIfTI files, by its name in the plans."""
    return "RAS" if reader == "NibabelIOWithReorient" else "as_stored"


def _read(scan: Scan, plans_manager: PlansManager) -> tuple[NDArray[np.float32], Sequence[float]]:
    """(1, Z, Y, X), which may be written to, and mm (z, y, x), as the reader of the plans gives them."""
    reader = plans_manager.plans["image_reader_writer"]
    if reader not in _REPEATED_READERS:  # one that recipes do not offer, but a released checkpoint may name
        images, properties = plans_manager.image_reader_writer_class().read_images([str(scan.path)])
        return images, properties["spacing"]
    voxels, spacing = read_voxels(scan, orientation_of(reader))
    return np.require(voxels, requirements="W"), spacing


def _read_mask(scan: Scan, shape: Sequence[int], plans_manager: PlansManager) -> NDArray[np.float32]:
    """The exclusion mask as a segmentation for nnU-Net: (1, Z, Y, X) as the scan, 1 = excluded, else 0."""
    mask = cast(Path, scan.exclude)
    try:
        voxels, _ = _read(Scan(mask, scan.case, scan.subject), plans_manager)
    except ScanProblem as problem:
        raise ScanProblem("exclusion_mask", f"has an exclusion mask {mask.name} that {problem.detail}") from problem
    if voxels.shape != tuple(shape):
        raise ScanProblem(
            "exclusion_mask",
            f"has an exclusion mask {mask.name} of shape {voxels.shape[1:]}; the scan's is {tuple(shape[1:])}",
        )
    return (voxels != 0).astype(np.float32)


def clipped(voxels: NDArray[np.float32], beyond_stock: BeyondStock) -> NDArray[np.float32]:
    """Clips in place, at percentiles of the voxels as they were read.

    Args:
        voxels: (1, Z, Y, X), which may be written to.
        beyond_stock: the percentiles.
    """
    low, high = (
        None if percentile is None else voxels.dtype.type(np.percentile(voxels, percentile))
        for percentile in (beyond_stock.clip_low, beyond_stock.clip_high)
    )
    return voxels if low is None and high is None else np.clip(voxels, low, high, out=voxels)


def kept_box(voxels: NDArray[np.float32], crop: Literal["nonzero", "foreground"]) -> Box:
    """What is kept of voxels (1, Z, Y, X): the non-zero box, of the box of the foreground or of all."""
    if crop == "nonzero":
        return nonzero_box(voxels[0])
    outer = nonzero_box(foreground_mask(voxels[0]))
    inner = nonzero_box(voxels[in_box(outer)][0])
    return [[start + low, start + high] for (start, _), (low, high) in zip(outer, inner, strict=True)]


def nonzero_box(volume: NDArray[Any]) -> Box:
    """The smallest box that holds every voxel that is not zero; everything if all are zero, as nnU-Net's.

    Args:
        volume: (Z, Y, X). nnU-Net fills holes first, which takes long in three dimensions and moves no face of the box.
    """
    there = volume != 0
    front = there.any(axis=0)
    lines = [np.flatnonzero(line) for line in (there.any(axis=(1, 2)), front.any(axis=1), front.any(axis=0))]
    if not len(lines[0]):
        return [[0, size] for size in volume.shape]
    return [[int(line[0]), int(line[-1]) + 1] for line in lines]


def in_box(box: Box) -> tuple[slice, ...]:
    """The box as an index of (C, Z, Y, X), all channels."""
    return (slice(None), *(slice(start, end) for start, end in box))


def _normalised(
    voxels: NDArray[np.float32], plans_manager: PlansManager, configuration: ConfigurationManager
) -> NDArray[np.float32]:
    """By nnU-Net's own class, in place; the mask of non-zero voxels is made only where that class asks for it."""
    inside = crop_to_nonzero(voxels)[1] if any(configuration.use_mask_for_norm) else [None]
    # The statistics are of the same view of the memory as nnU-Net's: numpy's sums depend on the order.
    return np.asarray(
        DefaultPreprocessor(verbose=False)._normalize(
            voxels, inside, configuration, plans_manager.foreground_intensity_properties_per_channel
        )
    )


def _labels(voxels: NDArray[np.float32], excluded: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The mask as nnU-Net's preprocessor makes labels of a segmentation; None if nothing is excluded.

    Resampling decides between neighbouring labels, and the label of zero voxels around the head has a say in it.
    """
    return np.asarray(crop_to_nonzero(voxels, excluded.copy())[1]) if excluded.any() else None
