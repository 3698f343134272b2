"""Patches a second on one core: this package's loader and stock nnU-Net's, over the same volumes, in one run."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from rich.console import Console

from nnssl_mae.bench.measuring import Timing, alternately, environment, one_core, print_table
from nnssl_mae.bench.volumes import VOLUMES, patch_settings, write_volumes
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.patches.loader import TrainingBatches
from nnssl_mae.recipes.pretraining import AugmentationRecipe, MaskingRecipe

_BATCH = 2  # patches a step, as nnU-Net's plans for large patches
_MIRROR_ONLY = AugmentationRecipe(rotation_probability=0, scale_probability=0)
_TURN = (-np.pi / 6, np.pi / 6)  # nnU-Net's angles and zoom for 3D patches
_ZOOM = (0.85, 1.25)

STOCK_TRAINING = "stock nnU-Net, its training augmentation"
STOCK_MIRROR = "stock nnU-Net, crop + mirror"
OURS_RECIPE = "nnssl_mae, augmentation of the recipe 'mae'"
OURS_MIRROR = "nnssl_mae, crop + mirror"


@dataclass(frozen=True)
class LoaderResult:
    """What one loader did on one core."""

    timing: Timing
    """Of one round."""
    samples: int
    """Patches a round."""
    megabytes: float
    """Compressed, on disk, of an average case with everything that the loader opens."""

    @property
    def per_second(self) -> float:
        """Patches a second of a core. The clock on the wall would count the neighbours on a busy machine, too."""
        return self.samples / statistics.median(self.timing.cpu)


def bench_loader(
    console: Console,
    folder: Path | None = None,
    patch: tuple[int, int, int] = (160, 160, 160),
    repeats: int = 3,
    batches: int = 8,
    resolution: int = 1,
) -> dict[str, LoaderResult]:
    """Measures four loaders on one core and prints the table.

    Args:
        console: to print on.
        folder: for the volumes; a temporary one if not given.
        patch: voxels, (Z, Y, X).
        repeats: rounds of each loader, in turns.
        batches: of two patches, a round.
        resolution: of the anatomy, mm.

    Raises:
        UserError: nilearn, which brings the anatomy, is not installed.
    """
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stock, ours = root / "stock", root / "ours"
        write_volumes(stock, ours, patch, resolution)
        loaders = {
            STOCK_TRAINING: _stock_training(stock, patch),
            STOCK_MIRROR: _stock_mirror(stock, patch),
            OURS_RECIPE: _ours(ours, patch, AugmentationRecipe()),
            OURS_MIRROR: _ours(ours, patch, _MIRROR_ONLY),
        }
        sizes = {name: _megabytes(stock if name.startswith("stock") else ours) for name in loaders}
        with one_core():
            timings = alternately({name: partial(_load, load, batches) for name, load in loaders.items()}, repeats)
    results = {name: LoaderResult(timings[name], batches * _BATCH, sizes[name]) for name in loaders}
    _print(console, results, patch)
    return results


def _load(load: Callable[[], object], batches: int) -> None:
    for _ in range(batches):
        load()


def _stock_training(folder: Path, patch: tuple[int, int, int]) -> Callable[[], Any]:
    transforms = nnUNetTrainer.get_training_transforms(patch, _TURN, None, (0, 1, 2), False)
    read_size = get_patch_size(patch, _TURN, _TURN, _TURN, _ZOOM)
    return _stock_loader(folder, patch, tuple(int(edge) for edge in read_size), transforms)


def _stock_mirror(folder: Path, patch: tuple[int, int, int]) -> Callable[[], Any]:
    return _stock_loader(folder, patch, patch, MirrorTransform((0, 1, 2)))


def _stock_loader(
    folder: Path, patch: tuple[int, ...], read_size: tuple[int, ...], transforms: Any
) -> Callable[[], Any]:
    labels = LabelManager({"background": 0, "csf": 1, "grey": 2, "white": 3}, regions_class_order=None)
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)), _BATCH, read_size, patch, labels, 0.33, transforms=transforms
    )
    return partial(next, loader)


def _ours(folder: Path, patch: tuple[int, int, int], augmentation: AugmentationRecipe) -> Callable[[], Any]:
    settings = patch_settings(patch, MaskingRecipe())
    batches = TrainingBatches(CaseIndex(folder), settings, augmentation, _BATCH)
    steps: Iterator[int] = count()
    return lambda: batches[0, next(steps)]


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / VOLUMES / 1e6


def _print(console: Console, results: dict[str, LoaderResult], patch: tuple[int, ...]) -> None:
    ours = results[OURS_MIRROR].per_second
    rows = []
    for name, result in results.items():
        rate, wall = result.per_second, 1000 * result.timing.median / result.samples
        rows.append((name, f"{rate:.1f}", f"{1000 / rate:.1f}", f"{wall:.1f}", f"{result.megabytes:.1f}"))
    note = (
        f"Same work (crop + mirror, files in memory): {ours / results[STOCK_MIRROR].per_second:.1f} times stock. "
        "Stock reads labels and their places with each image, which unlabelled scans must be given to be loaded at "
        "all.\n"
        "Augmentation of each: "
        f"{results[OURS_RECIPE].per_second / results[STOCK_TRAINING].per_second:.1f} times stock; the transforms "
        "differ (stock changes intensities too).\n"
        "Not the same work: our crop + mirror is "
        f"{ours / results[STOCK_TRAINING].per_second:.1f} times stock's training augmentation.\n{environment()}"
    )
    size = " x ".join(str(edge) for edge in patch)
    columns = ("loader", "patches/s/core", "CPU ms a patch", "wall ms", "MB a case")
    print_table(console, f"Patches of {size} voxels, one core", columns, rows, note)
