"""Looks at each scan once: can it be used, and what does nnU-Net's fingerprint need to know of it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.read import Orientation, ScanProblem, format_of, read_voxels
from nnssl_mae.scans.exclusion import mask_header_problem
from nnssl_mae.scans.preprocess import BeyondStock, clipped, in_box, kept_box

_INTENSITY_SAMPLES = 10_000_000  # of all scans together; only CT-like normalisation schemes would use them
_INTENSITY_SAMPLES_A_SCAN = 10_000
_STATISTICS = ("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5")


@dataclass(frozen=True)
class Measurement:
    """What the fingerprint needs of one scan, or the problem that makes it unusable."""

    path: Path
    problem: str | None = None
    shape_after_crop: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    relative_size: float = 1.0
    intensities: Any = None


def samples_a_scan(n_scans: int) -> int:
    """Intensities to keep of each scan, so that those of 40,000 fit into memory."""
    return max(1, min(_INTENSITY_SAMPLES_A_SCAN, _INTENSITY_SAMPLES // n_scans))


def measure_scan(
    scan: Scan, orientation: Orientation, intensity_samples: int, beyond_stock: BeyondStock
) -> Measurement:
    """Reads one scan and its exclusion mask; never raises for a bad scan, but reports it.

    Args:
        scan: to look at.
        orientation: see :func:`nnssl_mae.catalogue.read.read_voxels`.
        intensity_samples: how many voxel values to keep for the fingerprint.
        beyond_stock: what is done to the scan before nnU-Net's preprocessing.
    """
    try:
        images, spacing = read_voxels(scan, orientation)
    except ScanProblem as unreadable:
        return Measurement(scan.path, unreadable.detail)
    if problem := _voxel_problem(images) or _mask_problem(scan, images, orientation):
        return Measurement(scan.path, problem)
    images = clipped(np.require(images, requirements="W"), beyond_stock)
    if images.min() == images.max():
        return Measurement(scan.path, "is constant once it is clipped; clip at less extreme percentiles")
    cropped = images[in_box(kept_box(images, beyond_stock.crop))]
    intensities, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
        cropped, cropped, num_samples=intensity_samples
    )
    return Measurement(
        scan.path,
        shape_after_crop=cropped.shape[1:],
        spacing=tuple(float(s) for s in spacing),
        relative_size=cropped.size / images.size,
        intensities=intensities[0],
    )


def _voxel_problem(images: NDArray[Any]) -> str | None:
    if not np.isfinite(images).all():
        return "contains NaN or infinite voxels"
    if images.min() == images.max():
        return "is constant: every voxel has the same value"
    return None


def _mask_problem(scan: Scan, images: NDArray[Any], orientation: Orientation) -> str | None:
    if scan.exclude is None:
        return None
    if format_of(scan) == "nifti" and (problem := mask_header_problem(scan.path, scan.exclude)):
        return problem
    mask = scan.exclude
    try:
        excluded, _ = read_voxels(Scan(mask, scan.case, scan.subject), orientation)
    except ScanProblem as unreadable:
        return f"has an exclusion mask {mask.name} that {unreadable.detail}"
    if excluded.shape != images.shape:
        return f"has an exclusion mask {mask.name} of shape {excluded.shape[1:]}; the scan's is {images.shape[1:]}"
    if (excluded != 0)[images != 0].all():
        return f"is excluded as a whole: its mask {mask.name} is not zero in any voxel of tissue"
    return None


def fingerprint(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """nnU-Net's dataset fingerprint of unlabelled one-channel scans (the image stands in for the label)."""
    pieces = [np.asarray(m.intensities) for m in measurements if len(m.intensities)]
    # A dataset of scans without one positive voxel has no foreground statistics; z-scoring needs none.
    values = np.concatenate(pieces) if pieces else np.zeros(1)
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    numbers = (values.mean(), median, values.std(), values.min(), values.max(), high, low)
    return {
        "spacings": [list(m.spacing) for m in measurements],
        "shapes_after_crop": [[int(n) for n in m.shape_after_crop] for m in measurements],
        "foreground_intensity_properties_per_channel": {
            "0": {name: float(number) for name, number in zip(_STATISTICS, numbers, strict=True)}
        },
        "median_relative_size_after_cropping": float(np.median([m.relative_size for m in measurements])),
    }
