"""Looks at each scan once: can it be used, and what does nnU-Net's fingerprint need to know of it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.scans.exclusion import mask_header_problem, read_mask

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


def header_problem(path: Path) -> str | None:
    """What is wrong with a file by its header alone, as a part of a sentence; None if nothing is."""
    try:
        image = nibabel.load(path)
        shape, zooms = image.shape, image.header.get_zooms()[:3]
    except Exception as error:  # nibabel raises many kinds for damaged files; the text goes to the user
        return f"is not a readable NIfTI file ({type(error).__name__}: {error})"
    if len(shape) != 3:
        return f"has {len(shape)} dimensions {tuple(shape)}; a scan must have 3 (split 4D series into volumes)"
    if min(shape) < 2:
        return f"is a single slice {tuple(shape)}; a scan must be a volume"
    if not all(np.isfinite(zooms)) or min(zooms) <= 0:
        return f"has an impossible voxel size {tuple(float(z) for z in zooms)} mm"
    return None


def samples_a_scan(n_scans: int) -> int:
    """Intensities to keep of each scan, so that those of 40,000 fit into memory."""
    return max(1, min(_INTENSITY_SAMPLES_A_SCAN, _INTENSITY_SAMPLES // n_scans))


def clip_above(images: NDArray[Any], percentile: float | None) -> NDArray[Any]:
    """Limits a scan to a percentile of all its voxels; ``images`` (C, Z, Y, X) itself where there is none."""
    if percentile is None:
        return images
    return np.minimum(images, np.asarray(np.percentile(images, percentile), dtype=images.dtype))


def measure_scan(
    scan: Scan, reader_name: str, intensity_samples: int, clip_percentile: float | None = None
) -> Measurement:
    """Reads one scan and its exclusion mask with nnU-Net's reader; never raises for a bad scan, but reports it.

    Args:
        scan: to look at.
        reader_name: nnU-Net's name of the reader.
        intensity_samples: how many voxel values to keep for the fingerprint.
        clip_percentile: see :class:`nnssl_mae.recipes.pretraining.DataRecipe`.
    """
    path = scan.path
    if problem := header_problem(path) or (scan.exclude and mask_header_problem(path, scan.exclude)):
        return Measurement(path, problem)
    reader = recursive_find_reader_writer_by_name(reader_name)()
    try:
        images, properties = reader.read_images((str(path),))
    except Exception as error:  # damaged voxel data show as zlib, OS, value and other errors
        return Measurement(path, f"cannot be read to its end ({type(error).__name__}: {error})")
    clipped = clip_above(images, clip_percentile)
    if problem := _voxel_problem(images, clipped) or (
        scan.exclude and _mask_voxel_problem(images, scan.exclude, reader)
    ):
        return Measurement(path, problem)
    cropped, foreground, _ = crop_to_nonzero(clipped, np.copy(clipped))
    intensities, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
        foreground, cropped, num_samples=intensity_samples
    )
    return Measurement(
        path,
        shape_after_crop=cropped.shape[1:],
        spacing=tuple(float(s) for s in properties["spacing"]),
        relative_size=float(np.prod(cropped.shape[1:]) / np.prod(images.shape[1:])),
        intensities=intensities[0],
    )


def _voxel_problem(images: NDArray[Any], clipped: NDArray[Any]) -> str | None:
    if not np.isfinite(images).all():
        return "contains NaN or infinite voxels"
    if images.min() == images.max():
        return "is constant: every voxel has the same value"
    if clipped.min() == clipped.max():
        return "is constant once it is clipped; set data.clip_percentile higher"
    return None


def _mask_voxel_problem(images: NDArray[Any], mask: Path, reader: Any) -> str | None:
    try:
        excluded = read_mask(mask, reader)
    except Exception as error:  # as above
        return f"has an exclusion mask {mask.name} that cannot be read to its end ({type(error).__name__}: {error})"
    if excluded[images != 0].all():
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
