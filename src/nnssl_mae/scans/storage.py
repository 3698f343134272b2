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
import torch
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import EXCLUDE_SUFFIX
from nnssl_mae.files import whole_file

ENDING = ".b2nd"
_LARGEST_FLOAT16 = 65504.0
_DIFFERENT_FLOAT16 = 2**16
# nnU-Net's level 5 takes four to five times as long to write, for 3 to 5 % less room, and is read no faster.
_CODEC = {"codec": blosc2.Codec.LZ4HC, "clevel": 1, "splitmode": blosc2.SplitMode.ALWAYS_SPLIT, "nthreads": 1}


def as_stored(volume: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
    """The numbers that are stored; the volume itself if it holds them already.

    Raises:
        ValueError: a value does not fit into float16, or different values all become one.
    """
    if volume.dtype == np.float16:
        return volume
    low, high = float(volume.min()), float(volume.max())
    if not max(-low, high) < _LARGEST_FLOAT16:  # nor is it if they are no numbers
        raise ValueError(f"its normalised values reach {max(-low, high):.3g}, which 16 bit cannot hold")
    if low < high and np.float16(low) == np.float16(high):
        raise ValueError(f"its normalised values, {low:.9g} to {high:.9g}, are all the same in 16 bit")
    # torch rounds as numpy does, five times as fast.
    return np.asarray(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)).half().numpy())


def stored_percentiles(stored: NDArray[np.float16], percentiles: Sequence[float]) -> list[float]:
    """Percentiles of a volume as ``numpy.percentile`` gives them for the same numbers in 32 bit, exactly.

    Only 65,536 different numbers are possible, so counting them takes the place of sorting voxels.

    Args:
        stored: of :func:`as_stored`, any shape.
        percentiles: 0 to 100.
    """
    counts = np.bincount(stored.ravel().view(np.uint16), minlength=_DIFFERENT_FLOAT16)
    values = np.arange(_DIFFERENT_FLOAT16, dtype=np.uint16).view(np.float16).astype(np.float32)
    present = np.flatnonzero(counts)
    present = present[np.argsort(values[present], kind="stable")]
    last = np.cumsum(counts[present]) - 1  # rank of the last voxel of each value
    places = (stored.size - 1) * (np.asarray(percentiles, dtype=np.float64) / 100)
    ranks = np.floor(places)
    low, high = (values[present][np.searchsorted(last, rank)] for rank in (ranks, np.minimum(ranks + 1, last[-1])))
    share = places - ranks
    # From the nearer of the two, as numpy does it.
    between = np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))
    return [float(value) for value in between]


def write_volume(path: Path, volume: NDArray[np.floating[Any]], patch_size: Sequence[int]) -> None:
    """Writes one volume by rename.

    Args:
        path: ends in ``.b2nd``.
        volume: (C, Z, Y, X), normalised; best as :func:`as_stored` gives it.
        patch_size: voxels; chunks are chosen for reading such patches.

    Raises:
        ValueError: a value does not fit into float16.
    """
    _write(path, np.ascontiguousarray(as_stored(volume)), patch_size, blosc2.Filter.SHUFFLE)


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
    settings = {**_CODEC, "filters": [order]}
    # The number of threads for reading stands in the file: by default that of the machine's cores, so that the same
    # volume would be another file elsewhere.
    threads = {"nthreads": 1}
    # Written by Python: blosc2 says of a full disk neither that it is one nor always that something went wrong.
    stored = blosc2.asarray(array, chunks=chunks, blocks=blocks, cparams=settings, dparams=threads, contiguous=True)
    frame = stored.to_cframe()
    with whole_file(path) as temporary:
        temporary.write_bytes(frame)


def open_volume(path: Path) -> Any:
    """Opens a volume or mask without reading it: indexing ``[:, a:b, c:d, e:f]`` reads that part as it is stored."""
    # Memory mapping of blosc2 files does not work on Windows.
    options = {} if os.name == "nt" else {"mmap_mode": "r"}
    return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **options)
