"""Where a patch of a preprocessed volume lies in the scan it came from.

nnU-Net's preprocessing reorients (some readers), transposes, crops and resamples; a patch is a box of the result. All
of that maps voxels to voxels by flips, swaps, scales and shifts, so a NIfTI file of the patch needs no resampling to
lie over the scan: only the right header.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation

from nnssl_mae.checkpoints.describe import READERS
from nnssl_mae.errors import UserError
from nnssl_mae.files import whole_file


def patch_to_scan(
    scan: Path,
    reader: str,
    properties: Mapping[str, Any],
    transpose_forward: Sequence[int],
    shape: Sequence[int],
    corner: Sequence[int],
) -> np.ndarray:
    """The affine map (4, 4) from voxels of a patch, as :func:`in_file_order` gives it, to voxels of the scan's file.

    Args:
        scan: the NIfTI file.
        reader: name of the nnU-Net reader that read it.
        properties: as nnU-Net's preprocessor left them: the box of the crop, the shape before resampling.
        transpose_forward: of the plans.
        shape: of the preprocessed volume, (Z, Y, X).
        corner: first voxel of the patch in the preprocessed volume; negative where the patch reaches over it.

    Raises:
        UserError: a reader of which the order of voxels is not known.
    """
    before = np.asarray(properties["shape_after_cropping_and_before_resampling"], dtype=float)
    low = np.asarray(properties["bbox_used_for_cropping"], dtype=float)[:, 0]
    # Resampling keeps the outer faces of the volume, not the centres of its outer voxels: voxel i has its centre at
    # i + 1/2, and that is what is scaled. The scale is that of the sizes, which are whole numbers, not of the spacings.
    scale = before / np.asarray(shape, dtype=float)
    offset = low + (np.asarray(corner, dtype=float) + 0.5) * scale - 0.5
    axes = _file_axes(transpose_forward)
    to_reader = np.eye(4)
    to_reader[:3, :3] = np.diag(scale[axes])
    to_reader[:3, 3] = offset[axes]
    return _reader_to_file(scan, reader) @ to_reader


def in_file_order(patch: np.ndarray, transpose_forward: Sequence[int]) -> np.ndarray:
    """A patch (Z, Y, X) in the axis order of the plans, as a view (x, y, z) in that of the reader's NIfTI image."""
    return patch.transpose(_file_axes(transpose_forward))


def _file_axes(transpose_forward: Sequence[int]) -> list[int]:
    """The axis of the preprocessed volume that is x, y and z of the image; readers give arrays as (z, y, x)."""
    return [list(transpose_forward).index(axis) for axis in (2, 1, 0)]


def _reader_to_file(scan: Path, reader: str) -> np.ndarray:
    """From voxels (x, y, z) of the reader's image to those of the file (4, 4)."""
    if reader not in READERS:
        raise UserError(f"nnU-Net's reader {reader} is not known here; known are {', '.join(READERS)}")
    if reader != "NibabelIOWithReorient":
        return np.eye(4)
    image = nibabel.load(scan)
    flips: np.ndarray = inv_ornt_aff(io_orientation(image.affine), image.shape)
    return flips


def write_nifti(path: Path, volume: np.ndarray, scan: Path, to_scan: np.ndarray) -> None:
    """Writes a patch by rename, as 32 bit, so that every viewer lays it over the scan.

    A NIfTI header can hold two positions, of which viewers choose by rules of their own. Both of the scan's are
    carried over, each with its code, so that the patch follows the scan whichever is chosen.

    Args:
        path: ends in ``.nii.gz``.
        volume: (x, y, z).
        scan: the file it lies over.
        to_scan: from :func:`patch_to_scan`.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(gzip.compress(_placed(volume, scan, to_scan).to_bytes(), compresslevel=5, mtime=0))


def _placed(volume: np.ndarray, scan: Path, to_scan: np.ndarray) -> nibabel.Nifti1Image:
    original = nibabel.load(scan)
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume, dtype=np.float32), original.affine @ to_scan)
    position, code = original.get_sform(coded=True)
    if position is not None:
        image.set_sform(position @ to_scan, int(code))
    position, code = original.get_qform(coded=True)
    if position is not None:
        image.set_qform(position @ to_scan, int(code))
        if original.get_sform(coded=True)[0] is None:
            image.set_sform(None, 0)
    image.header.set_xyzt_units(*original.header.get_xyzt_units())
    return image
