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


def measure_scan(path: Path, reader_name: str, intensity_samples: int) -> Measurement:
    """Reads one scan with nnU-Net's reader; never raises for a bad scan, but reports it."""
    if problem := header_problem(path):
        return Measurement(path, problem)
    try:
        images, properties = recursive_find_reader_writer_by_name(reader_name)().read_images((str(path),))
    except Exception as error:  # damaged voxel data show as zlib, OS, value and other errors
        return Measurement(path, f"cannot be read to its end ({type(error).__name__}: {error})")
    if not np.isfinite(images).all():
        return Measurement(path, "contains NaN or infinite voxels")
    if images.min() == images.max():
        return Measurement(path, "is constant: every voxel has the same value")
    cropped, foreground, _ = crop_to_nonzero(images, np.copy(images))
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
