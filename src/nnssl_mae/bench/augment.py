"""Augmentation: what a loader process does for a patch, if it augments and if it leaves that to the device."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from rich.console import Console

from nnssl_mae.bench.ceilings import settled
from nnssl_mae.bench.measuring import Timing, alternately, environment, one_core, print_table
from nnssl_mae.bench.volumes import patch_settings, write_volumes
from nnssl_mae.evaluation.inputs import chosen_device
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.patches.loader import TrainingBatches
from nnssl_mae.patches.on_device_batching import DeviceAugmentation
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import load_recipe

STOCK = "stock nnU-Net's transforms, in memory"
_TURN = (-np.pi / 6, np.pi / 6)
_ENLARGED = 1.25  # edge of the region that stock reads to turn a patch, about


def bench_augment(
    console: Console,
    recipes: tuple[str, ...] = ("mae", "amaes"),
    patch: tuple[int, int, int] = (96, 96, 96),
    device: str | None = None,
    repeats: int = 3,
    patches: int = 20,
    resolution: int = 1,
) -> dict[str, Timing]:
    """Measures the augmentation of each recipe in both places and prints the table.

    A loader process is timed on one core, from the volume on disk; the device's part with a wait for it. On a CPU that
    part runs on the same core.

    Args:
        console: to print on.
        recipes: names or files.
        patch: voxels, (Z, Y, X).
        device: of the augmentation that a loader process leaves alone; none is the GPU if there is one.
        repeats: rounds of each, in turns.
        patches: a round.
        resolution: of the volumes, mm.

    Raises:
        UserError: a recipe or device is not possible, or nilearn, which brings the volumes, is not installed.
    """
    where = chosen_device(device)
    loaded = [load_recipe(name) for name in recipes]
    works: dict[str, Callable[[], object]] = {STOCK: _stock(patch)}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        write_volumes(None, Path(temporary), patch, resolution)
        for recipe in loaded:
            works |= _works(recipe, Path(temporary), patch, where)
        if where.type == "cpu":
            stack.enter_context(one_core())
        rounds = {name: partial(_several, work, patches) for name, work in works.items()}
        timings = alternately(rounds, repeats)
    _print(console, timings, loaded, patch, patches, where)
    return timings


def on_cpu(recipe: Recipe) -> str:
    """Name of the measurement of a loader process that augments."""
    return f"{recipe.name}: loader, augmenting"


def for_device(recipe: Recipe) -> str:
    """Name of the measurement of a loader process that leaves it to the device."""
    return f"{recipe.name}: loader, leaving it to the device"


def by_device(recipe: Recipe) -> str:
    """Name of the measurement of what the device does."""
    return f"{recipe.name}: the device's part"


def _works(
    recipe: Recipe, folder: Path, patch: tuple[int, int, int], device: torch.device
) -> dict[str, Callable[[], object]]:
    settings, index = patch_settings(patch, recipe.masking), CaseIndex(folder)
    loaders = [
        TrainingBatches(index, settings, recipe.augmentation, 1, on_device=on_device) for on_device in (False, True)
    ]
    augment = DeviceAugmentation(recipe.augmentation, patch)
    steps = [count() for _ in range(3)]

    def device_part() -> None:
        batch = loaders[1][0, next(steps[2])]
        moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        augment(moved)
        settled(device)

    return {
        on_cpu(recipe): lambda: loaders[0][0, next(steps[0])],
        for_device(recipe): lambda: loaders[1][0, next(steps[1])],
        by_device(recipe): device_part,  # with the loading, which is taken off
    }


def _stock(patch: tuple[int, int, int]) -> Callable[[], object]:
    transforms: Any = nnUNetTrainer.get_training_transforms(patch, _TURN, None, (0, 1, 2), False)
    edges = [round(_ENLARGED * edge) for edge in patch]
    image = torch.randn(1, *edges, generator=torch.Generator().manual_seed(0))
    labels = (image > 0).to(torch.int16)
    return lambda: transforms(image=image.clone(), segmentation=labels)


def _several(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def _print(
    console: Console,
    timings: dict[str, Timing],
    recipes: list[Recipe],
    patch: tuple[int, int, int],
    patches: int,
    device: torch.device,
) -> None:
    each = {name: statistics.median(timing.cpu) / patches for name, timing in timings.items()}
    wall = {name: timing.median / patches for name, timing in timings.items()}
    rows, notes = [(STOCK, f"{1000 * each[STOCK]:.1f}", "-")], []
    for recipe in recipes:
        augmenting, leaving = each[on_cpu(recipe)], each[for_device(recipe)]
        part = max(0.0, wall[by_device(recipe)] - wall[for_device(recipe)])
        rows += [
            (on_cpu(recipe), f"{1000 * augmenting:.1f}", "-"),
            (for_device(recipe), f"{1000 * leaving:.1f}", f"{1000 * part:.1f}"),
        ]
        notes.append(f"{recipe.name}: loader processes do {augmenting / leaving:.1f} times less.")
    size = " x ".join(str(edge) for edge in patch)
    columns = ("work", "loader, CPU ms a patch", f"{device.type}, ms a patch")
    notes.append("Stock's transforms are other ones, and its reading of files is not in its line.")
    if device.type == "cpu":
        notes.append("The device is this CPU: its column says what the work is, not what a GPU needs for it.")
    notes.append(environment())
    print_table(console, f"Augmentation of patches of {size} voxels", columns, rows, "\n".join(notes))
