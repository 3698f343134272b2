"""What one of the processes of a pre-training reads, and in which share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.patches.loader import OnePass, PatchSettings, TrainingBatches, ValidationBatches, epoch_iterations
from nnssl_mae.recipes.pretraining import Recipe


@dataclass(frozen=True)
class PretrainingData:
    """From a preprocessed dataset and a recipe to the batches of one process.

    ``batch_size`` is that of this process, ``global_batch`` that of all ``processes`` together; the first ones take a
    patch more where it does not divide, as nnU-Net shares it out. ``on_device``: training batches are augmented by
    :class:`nnssl_mae.patches.on_device_batching.DeviceAugmentation`, where they are used.
    """

    folder: Path
    recipe: Recipe
    settings: PatchSettings
    batch_size: int
    global_batch: int
    rank: int = 0
    processes: int = 1
    on_device: bool = False

    @cached_property
    def index(self) -> CaseIndex:
        """All cases of the dataset."""
        return CaseIndex(self.folder)

    def training(self, cases: Sequence[str]) -> TrainingBatches:
        """Augmented batches of these cases."""
        return TrainingBatches(
            self.index.select(sorted(cases)),
            self.settings,
            self.recipe.augmentation,
            self.batch_size,
            self.rank,
            self.recipe.sampling,
            OnePass(self.global_batch, self._offset()) if self.recipe.schedule.iterations == "dataset" else None,
            self.on_device,
        )

    def validation(self, cases: Sequence[str]) -> ValidationBatches:
        """Batches of these cases that never change."""
        return ValidationBatches(self.index.select(cases), self.settings, self.batch_size)

    def share_of(self, cases: Sequence[str]) -> list[str]:
        """The cases that this process validates."""
        return list(cases[self.rank :: self.processes])

    def iterations(self, volumes: int) -> int:
        """Steps of an epoch over so many training volumes."""
        iterations = self.recipe.schedule.iterations
        return epoch_iterations(volumes, self.global_batch) if iterations == "dataset" else iterations

    def _offset(self) -> int:
        """Where the patches of this process start in the batch of all."""
        each, rest = divmod(self.global_batch, self.processes)
        return self.rank * each + min(self.rank, rest)
