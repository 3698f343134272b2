"""Volumes for benchmarks of loading: brains made of a template, as this package and stock nnU-Net store them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from numpy.typing import NDArray

from nnssl_mae.brains.anatomy import load_anatomy
from nnssl_mae.masking import block_edges
from nnssl_mae.patches.loader import PatchSettings
from nnssl_mae.recipes.pretraining import MaskingRecipe
from nnssl_mae.scans.cases import CaseRow, write_cases
from nnssl_mae.scans.storage import ENDING, write_volume

VOLUMES = 4
_NOISE = 0.03  # of the brightest voxel; in the air too, as in scans whose skull was not removed
_LOCATIONS = 10_000  # of a label, that nnU-Net keeps with a case


def patch_settings(patch: tuple[int, int, int], masking: MaskingRecipe) -> PatchSettings:
    """Patches of these volumes, with blocks as a recipe wants them."""
    edges = block_edges(patch, masking.block_size)
    a, b, c = (size // edge for size, edge in zip(patch, edges, strict=True))
    return PatchSettings(patch, (a, b, c), masking, respect_exclusion=True, seed=0)


def write_volumes(stock: Path | None, ours: Path, patch: tuple[int, int, int], resolution: int) -> None:
    """The same brains in the format of each: what the trainer of each would find after preprocessing.

    Args:
        stock: folder for nnU-Net's; none writes ours only.
        ours: folder for ours.
        patch: voxels, (Z, Y, X), for which the files are laid out.
        resolution: mm.

    Raises:
        UserError: nilearn, which brings the anatomy, is not installed.
    """
    anatomy = load_anatomy(resolution)
    labels = np.ascontiguousarray(anatomy.labels.T, dtype=np.int16)[None]
    for folder in filter(None, (stock, ours)):
        folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(VOLUMES):
        rng = np.random.default_rng(number)
        image = anatomy.t1.T + rng.normal(0, _NOISE, anatomy.t1.T.shape)
        volume = ((image - image.mean()) / image.std()).astype(np.float32)[None]
        name = f"brain_{number}"
        if stock is not None:
            _write_stock(stock / name, volume, labels, patch)
        write_volume(ours / f"{name}{ENDING}", volume, patch)
        low, high = np.percentile(volume, (0.5, 99.5))
        size = (ours / f"{name}{ENDING}").stat().st_size
        rows.append(CaseRow(name, name, "", volume.shape[1:], float(low), float(high), b"", "bench", "", size))
    write_cases(ours, rows)


def _write_stock(path: Path, volume: NDArray[np.float32], labels: NDArray[np.int16], patch: tuple[int, ...]) -> None:
    """One case with labels as nnU-Net's preprocessor stores it."""
    blocks, chunks = comp_blosc2_params(volume.shape, patch, volume.itemsize)
    label_blocks, label_chunks = comp_blosc2_params(labels.shape, patch, labels.itemsize)
    rng = np.random.default_rng(0)
    where = {label: rng.permutation(np.argwhere(labels == label))[:_LOCATIONS] for label in (1, 2, 3)}
    properties = {"class_locations": where}
    nnUNetDatasetBlosc2.save_case(volume, labels, properties, str(path), chunks, blocks, label_chunks, label_blocks)
    write_pickle(properties, f"{path}.pkl")
