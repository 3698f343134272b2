"""Headers and voxels of scans in every format, in one form. Damaged scans raise :class:`ScanProblem`, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nnssl_mae.catalogue.dicom import read_series, series_header
from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.header import Header, ScanProblem, size_of_regular_file, why
from nnssl_mae.catalogue.itk import read_volume, read_volume_header
from nnssl_mae.catalogue.nifti import NiftiFile, open_nifti, read_ras

__all__ = ["Header", "Orientation", "ScanProblem", "format_of", "read_header", "read_voxels"]

Orientation = Literal["RAS", "as_stored"]
_FORMATS = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".hdr": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
}


def format_of(scan: Scan) -> str:
    """``nifti``, ``nrrd``, ``metaimage`` or ``dicom``."""
    name = scan.path.name.lower()
    return "dicom" if scan.series else next((_FORMATS[end] for end in _FORMATS if name.endswith(end)), "dicom")


def read_header(scan: Scan) -> Header:
    """What the header says; voxels are not read.

    Raises:
        ScanProblem: the scan is damaged, or claims more voxels than its file can hold.
    """
    return _opened(scan)[0]


def read_voxels(scan: Scan, orientation: Orientation) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
    """The voxels of a scan, or of one volume (or the mean) of a 4D image where the scan has a ``frame``.

    Args:
        scan: of any format.
        orientation: ``RAS`` turns the axes to right, anterior, superior, as nnU-Net's ``NibabelIOWithReorient``
            does; ``as_stored`` leaves them as they are, as its ``SimpleITKIO`` does. For 3D NIfTI files the values
            are the same bit for bit, for other formats they have the same meaning.

    Returns:
        (1, Z, Y, X), and the spacing (z, y, x) in mm. Values may be NaN or infinite where the file has them.

    Raises:
        ScanProblem: the scan is damaged, or holds several volumes and no frame was asked for.
    """
    header, nifti = _opened(scan)
    volumes = _volumes(scan, header)
    try:
        if nifti is not None and orientation == "RAS":
            voxels = read_ras(nifti, volumes)
        elif nifti is not None:
            header = read_volume_header(_image_file(nifti), "nifti", nifti.voxels)  # SimpleITK's idea of the spacing
            voxels = read_volume(header, volumes, ras=False)
        else:
            read = read_series if header.format == "dicom" else read_volume
            voxels = read(header, volumes, orientation == "RAS")
    except (ScanProblem, MemoryError):
        raise
    except Exception as error:  # whatever a library makes of a damaged file; the text goes to the user
        raise ScanProblem("unreadable", f"cannot be read ({type(error).__name__}: {why(error)})") from error
    x, y, z = header.spacing if orientation == "RAS" else header.stored_spacing
    return voxels[None], (z, y, x)


def _opened(scan: Scan) -> tuple[Header, NiftiFile | None]:
    try:
        kind = format_of(scan)
        if kind == "nifti":
            nifti = open_nifti(scan.path)
            return nifti.summary, nifti
        if kind == "dicom":
            if not scan.series:
                size_of_regular_file(scan.path)
                raise ScanProblem("unreadable", "is no readable DICOM file, or does not say which series it belongs to")
            return series_header(scan.path, scan.series), None
        return read_volume_header(scan.path, kind), None
    except (ScanProblem, MemoryError):
        raise
    except Exception as error:  # as above
        raise ScanProblem("unreadable", f"cannot be read ({type(error).__name__}: {why(error)})") from error


def _volumes(scan: Scan, header: Header) -> list[int]:
    """Which volumes are asked for."""
    if not scan.frame:
        if header.volumes > 1:
            raise ScanProblem("not_3d", f"holds {header.volumes} volumes; --split-4d makes scans of them")
        return [0]
    if scan.frame == "mean":
        return list(range(header.volumes))
    if not scan.frame.isdecimal() or int(scan.frame) >= header.volumes:
        raise ScanProblem("unreadable", f"holds {header.volumes} volumes and none with the number {scan.frame}")
    return [int(scan.frame)]


def _image_file(nifti: NiftiFile) -> Path:
    """SimpleITK is given the header of a pair."""
    return next((path for path in nifti.summary.files if path.name.endswith(".hdr")), nifti.voxels)
