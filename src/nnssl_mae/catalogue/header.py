"""What the header of a scan says, whatever its format, and how a damaged scan is reported."""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation, ornt2axcodes
from numpy.typing import NDArray

MOST_VOXELS = 2**31
"""More voxels than this in one volume (for instance 1290^3) are a damaged header."""
LARGEST_COMPRESSION = 1032
"""How many bytes one byte of deflated data (gzip) can hold at most."""


class ScanProblem(Exception):
    """A scan that cannot be used: which check it fails, and why as a part of a sentence (``ends after 3 bytes``)."""

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(check, detail)
        self.check = check
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True)
class Header:
    """Grid and meaning of one scan. Lengths in mm; ``shape`` and ``spacing`` in RAS order x, y, z."""

    format: str
    """``nifti``, ``nrrd``, ``metaimage`` or ``dicom``."""
    stored_shape: tuple[int, int, int]
    """In the order of the file, the axis that runs fastest first; 1 where the file has fewer axes."""
    stored_spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    """4 x 4: stored index -> mm to the right, to the front and up."""
    dtype: str
    volumes: int = 1
    """More than 1 for 4D images."""
    modality: str = ""
    """What DICOM says: MR, CT, PT ...; empty elsewhere."""
    description: str = ""
    """Free text: the description of a DICOM series or of a NIfTI file."""
    image_type: tuple[str, ...] = ()
    """DICOM's ImageType: ORIGINAL or DERIVED, PRIMARY or SECONDARY, and kinds such as LOCALIZER, ADC."""
    patient: str = ""
    """Hash of DICOM's PatientID: the same for the same patient, and no name."""
    study: str = ""
    """Hash of the UID of the DICOM study."""
    files: tuple[Path, ...] = field(default=(), repr=False)
    """All files of the scan, in a fixed order."""

    @property
    def orientation(self) -> str:
        """Where the stored axes point to, such as ``RAS`` or ``LPI``."""
        return "".join(ornt2axcodes(to_ras(self.affine)))

    @property
    def stored_bytes(self) -> int:
        """Of the voxels of all volumes, without compression."""
        return int(np.prod(self.stored_shape, dtype=object)) * self.volumes * np.dtype(self.dtype).itemsize


def to_ras(affine: NDArray[Any]) -> NDArray[np.float64]:
    """nibabel's orientation transform from the stored axes to RAS.

    Raises:
        ScanProblem: the affine is not one of a volume.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ScanProblem("spacing", "has an affine that puts all voxels into a plane or nowhere")
    return _turn(np.ascontiguousarray(affine, dtype=np.float64).tobytes()).copy()


@functools.lru_cache(maxsize=16)
def _turn(affine_bytes: bytes) -> NDArray[np.float64]:
    """Remembered, because a scan asks for it several times, and it takes most of the time of reading a header."""
    turn = io_orientation(np.frombuffer(affine_bytes, dtype=np.float64).reshape(4, 4))
    if not np.isfinite(turn).all():
        raise ScanProblem("spacing", "has an affine that puts all voxels into a plane or nowhere")
    return np.asarray(turn, dtype=np.float64)


def in_ras_order(values: tuple[Any, ...], turn: NDArray[Any]) -> tuple[Any, Any, Any]:
    """Numbers of the stored axes in the order x, y, z of RAS."""
    x, y, z = (values[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3))
    return x, y, z


def size_of_regular_file(path: Path) -> int:
    """Bytes of a file that can be opened without waiting for ever.

    Raises:
        ScanProblem: it is missing, forbidden, empty, or a pipe, socket or device.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        link = "is a link to a file that is not there (of datalad or git-annex: get it first)"
        what = link if path.is_symlink() else "is not there any more"
        raise ScanProblem("unreadable", what) from None
    except (OSError, ValueError) as error:
        raise ScanProblem("unreadable", f"cannot be opened ({why(error)})") from error
    if not stat.S_ISREG(status.st_mode):
        raise ScanProblem("unreadable", "is no regular file but a folder, pipe, socket or device")
    if not os.access(path, os.R_OK):
        raise ScanProblem("unreadable", "may not be read (permission denied)")
    if status.st_size == 0:
        raise ScanProblem("unreadable", "holds 0 bytes")
    return status.st_size


def check_claim(voxels: int, claimed_bytes: int, there: int, compressed: bool) -> None:
    """Compares what a header claims with what the file can hold, before any memory is taken for it.

    Raises:
        ScanProblem: the header is damaged, or the file ends too early.
    """
    if voxels > MOST_VOXELS:
        raise ScanProblem("unreadable", f"claims {voxels} voxels in a volume, more than any scan has")
    if claimed_bytes > (there * LARGEST_COMPRESSION if compressed else there):
        raise ScanProblem("truncated", f"claims {claimed_bytes} bytes of voxels and holds {there}")


def why(error: BaseException, length: int = 200) -> str:
    """The text of an exception on one line, for a sentence."""
    text = (error.strerror or "") if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= length else f"{text[: length - 1]}…"
