"""Exclusion masks: regions of a scan that were defaced or anonymised and must not be learnt."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

_LARGEST_SHIFT = 0.1  # voxels; affines that were written by different programs differ in the last digits


def mask_header_problem(scan: Path, mask: Path) -> str | None:
    """What is wrong with the grid of a mask, as the end of a sentence about its scan; None if nothing is."""
    image = nibabel.load(scan)
    try:
        excluded = nibabel.load(mask)
    except Exception as error:  # nibabel raises many kinds for damaged files; the text goes to the user
        return f"has an exclusion mask {mask.name} that is not a readable NIfTI file ({type(error).__name__}: {error})"
    if image.shape != excluded.shape:
        return f"has an exclusion mask {mask.name} of shape {excluded.shape}; the scan's is {image.shape}"
    shift = _shift_in_voxels(image, excluded)
    if not shift <= _LARGEST_SHIFT:
        return (
            f"has an exclusion mask {mask.name} whose affine moves it by {shift:.3g} voxels; "
            "write it on the grid of the scan"
        )
    return None


def _shift_in_voxels(scan: Any, mask: Any) -> float:
    """The largest distance between where the two affines put a corner, in voxels of the scan."""
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in scan.shape))])
    distances = np.linalg.norm((corners @ (scan.affine - mask.affine).T)[:, :3], axis=1)
    return float(distances.max() / min(scan.header.get_zooms()[:3]))
