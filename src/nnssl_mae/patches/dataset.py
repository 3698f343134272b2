"""The preprocessed dataset as nnU-Net's trainer wants it, and reading of volumes that may have been damaged since."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from numpy.typing import NDArray

from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.scans.foreground import decode_occupancy
from nnssl_mae.scans.storage import ENDING, EXCLUDE_SUFFIX, exclusion_path, open_volume, write_volume

_NOT_FINITE = 0x7C00  # the bits of infinity in 16 bit; those of NaN are larger


class VolumeDataset(nnUNetBaseDataset):
    """Volumes of float16, (C, Z, Y, X), opened lazily; there is no segmentation and there are no properties."""

    def load_case(self, identifier: str) -> tuple[Any, None, None, dict[str, Any]]:
        """The volume as a lazy array, in the place where nnU-Net expects image, label, earlier label, properties."""
        return open_volume(Path(self.source_folder, f"{identifier}{ENDING}")), None, None, {}

    @staticmethod
    def save_case(data: np.ndarray, seg: None, properties: dict[str, Any], output_filename_truncated: str) -> None:
        """Stores a volume; chunks suit reading it whole."""
        write_volume(Path(f"{output_filename_truncated}{ENDING}"), data, data.shape[1:])

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """Case names of all volumes in a folder."""
        names = (path.name.removesuffix(ENDING) for path in Path(folder).glob(f"*{ENDING}"))
        return [name for name in names if not name.startswith(".") and not name.endswith(EXCLUDE_SUFFIX)]


class DamagedCase(Exception):
    """A case that cannot be read any more; the text says why."""


class StoredArray:
    """A volume or mask on disk as a lazy array, whose every failure is :class:`DamagedCase`.

    Disks lose and damage files while a run goes on for days. So files are read, and not mapped into memory, which
    would be a tenth faster: a mapped page that is missing when it is looked at kills the process.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: type[np.generic], stored_bytes: int = 0) -> None:
        """
        Args:
            path: of the file.
            shape: that it should have, (Z, Y, X).
            dtype: that it should have.
            stored_bytes: size that the file should have; 0 if that is not known.
        """
        self._path = path
        try:
            size = path.stat().st_size
            if stored_bytes and size != stored_bytes:
                raise ValueError(f"it has {size} bytes, and had {stored_bytes}")
            self._array = blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1})
            if not isinstance(self._array, blosc2.NDArray) or self._array.dtype != dtype:
                raise ValueError("it holds no volume")
            if self._array.shape[1:] != tuple(shape):
                raise ValueError(f"its shape is {self._array.shape[1:]}, and was {tuple(shape)}")
        except Exception as error:  # blosc2 raises many kinds for damaged files; the text goes to the log
            raise self._damage(error) from error
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype = np.dtype(dtype)

    def __getitem__(self, box: tuple[slice, ...]) -> NDArray[Any]:
        """Reads (C, z, y, x)."""
        try:
            voxels: NDArray[Any] = self._array[box]
            if voxels.dtype == np.float16 and not is_finite(voxels):
                raise ValueError("it holds values that are not finite")
        except Exception as error:  # as above
            raise self._damage(error) from error
        return voxels

    def _damage(self, error: Exception) -> DamagedCase:
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return DamagedCase(f"{self._path} cannot be read: {text}")


def open_case(cases: CaseIndex, position: int) -> StoredArray:
    """The volume of a case, (C, Z, Y, X), float16.

    Raises:
        DamagedCase: it vanished, or is not what the case table says.
    """
    path = cases.folder / f"{cases.name(position)}{ENDING}"
    return StoredArray(path, cases.shape(position), np.float16, cases.stored_bytes(position))


def open_exclusion(cases: CaseIndex, position: int) -> StoredArray | None:
    """The exclusion mask of a case, (1, Z, Y, X), uint8, 1 = excluded; None if it has none.

    A mask that lies there counts, whatever the case table says.

    Raises:
        DamagedCase: it vanished, or does not fit the volume.
    """
    path, size = exclusion_path(cases.folder, cases.name(position)), cases.exclusion_bytes(position)
    if size <= 0 and not path.is_file():
        return None
    return StoredArray(path, cases.shape(position), np.uint8, max(size, 0))


def foreground_cells(cases: CaseIndex, position: int) -> NDArray[np.uint8]:
    """Where the head or body of a case is, see :func:`nnssl_mae.scans.foreground.decode_occupancy`.

    Raises:
        DamagedCase: the case table does not say.
    """
    try:
        return decode_occupancy(cases.foreground(position), cases.shape(position))
    except ValueError as error:
        raise DamagedCase(f"in the case table of {cases.folder}, {error}") from error


def is_finite(voxels: NDArray[np.float16]) -> bool:
    """Whether no value is NaN or infinite, many times faster than numpy's ``isfinite`` for float16."""
    if not voxels.size:
        return True
    # As whole numbers, what is not finite lies at the upper end of each sign.
    positive, negative = voxels.view(np.int16).max(), voxels.view(np.uint16).max()
    return bool(positive < _NOT_FINITE and negative < _NOT_FINITE + 0x8000)
