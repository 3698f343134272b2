"""Preprocessed volumes on disk: float16, image only, compressed in chunks that suit patches (blosc2).

An exclusion mask, where there is one, lies beside its volume.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import EXCLUDE_SUFFIX
from nnssl_mae.files import whole_file

ENDING = ".b2nd"
_LARGEST_FLOAT16 = 65504.0


def write_volume(path: Path, volume: np.ndarray, patch_size: Sequence[int]) -> None:
    """Writes one volume by rename.

    Args:
        path: ends in ``.b2nd``.
        volume: (C, Z, Y, X), normalised.
        patch_size: voxels; chunks are chosen for reading such patches.

    Raises:
        ValueError: a value does not fit into float16.
    """
    largest = float(np.abs(volume).max())
    if not largest < _LARGEST_FLOAT16:
        raise ValueError(f"its normalised values reach {largest:.3g}, which 16 bit cannot hold")
    _write(path, np.ascontiguousarray(volume, dtype=np.float16), patch_size, blosc2.Filter.SHUFFLE)


def exclusion_path(folder: Path, case: str) -> Path:
    """Where the exclusion mask of a case lies, if it has one."""
    return folder / f"{case}{EXCLUDE_SUFFIX}{ENDING}"


def write_exclusion(path: Path, excluded: NDArray[np.bool_], patch_size: Sequence[int]) -> None:
    """Writes the exclusion mask of a volume by rename, as uint8.

    Args:
        path: of :func:`exclusion_path`.
        excluded: (1, Z, Y, X), True = excluded.
        patch_size: as for the volume.
    """
    _write(path, np.ascontiguousarray(excluded, dtype=np.uint8), patch_size, blosc2.Filter.BITSHUFFLE)


def _write(path: Path, array: NDArray[Any], patch_size: Sequence[int], order: blosc2.Filter) -> None:
    blocks, chunks = comp_blosc2_params(array.shape, tuple(patch_size), bytes_per_pixel=array.itemsize)
    settings = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": [order], "nthreads": 1}
    with whole_file(path) as temporary:
        blosc2.asarray(array, urlpath=str(temporary), chunks=chunks, blocks=blocks, cparams=settings)


def open_volume(path: Path) -> Any:
    """Opens a volume or mask without reading it: indexing ``[:, a:b, c:d, e:f]`` reads that part as it is stored."""
    # Memory mapping of blosc2 files does not work on Windows.
    options = {} if os.name == "nt" else {"mmap_mode": "r"}
    return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **options)
