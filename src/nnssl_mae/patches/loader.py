"""Batches for training and validation, in a fixed order whatever the number of worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from nnssl_mae.masking import eligible_blocks, enough_to_hide, sample_hidden, sample_ratio
from nnssl_mae.patches.augmentation import NO_AUGMENTATION, PatchDraw, SpatialAugmentation
from nnssl_mae.patches.dataset import VolumeDataset
from nnssl_mae.patches.intensity import IntensityAugmentation
from nnssl_mae.patches.randomness import batch_rng, epoch_order, training_rng, validation_rng
from nnssl_mae.recipes.pretraining import AugmentationRecipe, MaskingRecipe
from nnssl_mae.scans.foreground import decode_occupancy

Batch = dict[str, Any]
"""What a network is trained on; B patches of (Z, Y, X) voxels in (d, h, w) blocks. Not every key is always there.

``data``: float32 (B, C, Z, Y, X), what the network sees before hiding.
``hidden``: bool (B, 1, d, h, w), True = hidden.
``target``: float32 as ``data``, before its intensities were changed; with augmentation reversal only.
``air``: bool (B, 1, d, h, w), True = air: visible, and out of the loss; with foreground-aware masking only.
``excluded``: bool (B, 1, Z, Y, X), True = never counts in the loss (padding, exclusion masks); if there is any.
``step``: (epoch, iteration), in training.
``cases``, ``data_range``: names and (B,) ranges of the volumes, in validation.
"""

_REDRAWS = 10  # of a patch with little head or body


@dataclass(frozen=True)
class PatchSettings:
    """What a patch looks like: voxels, blocks along each axis, what is hidden, and whether exclusion masks count."""

    patch_size: tuple[int, ...]
    grid: tuple[int, ...]
    masking: MaskingRecipe
    respect_exclusion: bool
    seed: int


@dataclass(frozen=True)
class OnePass:
    """An epoch takes one crop of every volume, and this process a part of each batch.

    ``global_batch`` patches a step over all processes; ours start at ``offset`` in them.
    """

    global_batch: int
    offset: int = 0


def epoch_iterations(n_volumes: int, global_batch: int) -> int:
    """Steps of an epoch that takes one crop of every volume; the last batch starts over where volumes run out."""
    return -(-n_volumes // global_batch)


class TrainingBatches(Dataset[Batch]):
    """The batch of each (epoch, iteration), see :data:`Batch`."""

    def __init__(
        self,
        volumes: VolumeDataset,
        settings: PatchSettings,
        augmentation: AugmentationRecipe,
        batch_size: int,
        rank: int = 0,
        foreground: Mapping[str, bytes] | None = None,
        one_pass: OnePass | None = None,
    ) -> None:
        """
        Args:
            volumes: to draw from, with replacement.
            settings: of the patches.
            augmentation: spatial and intensity.
            batch_size: patches of this process.
            rank: of this process.
            foreground: of :func:`nnssl_mae.scans.cases.read_foreground`; needed to hide foreground only.
            one_pass: draws every volume once an epoch instead.
        """
        self.volumes, self.settings = volumes, settings
        self.batch_size, self.rank, self.one_pass = batch_size, rank, one_pass
        spatial = SpatialAugmentation(augmentation, settings.patch_size)
        self._patches = _Patches(volumes, settings, spatial, foreground)
        self._intensity = IntensityAugmentation(augmentation.intensity) if augmentation.intensity.active else None
        self._reversal = augmentation.reversal

    def __getitem__(self, step: tuple[int, int]) -> Batch:
        epoch, iteration = step
        masking, order = self.settings.masking, self._order(epoch, iteration)
        ratio = None
        if masking.ratio_drawn_per == "batch":
            ratio = sample_ratio(masking.ratio, batch_rng(self.settings.seed, epoch, iteration))
        samples = []
        for sample in range(self.batch_size):
            rng = training_rng(self.settings.seed, epoch, iteration, self.rank, sample)
            index = rng.integers(len(self.volumes.identifiers)) if order is None else order[sample]
            patch = self._patches.draw(self.volumes.identifiers[index], rng, ratio)
            samples.append(self._with_changed_intensities(patch, rng))
        return {"step": step, **_stacked(samples)}

    def _order(self, epoch: int, iteration: int) -> NDArray[np.int64] | None:
        """Which volumes this process takes in a step, if every volume is taken once an epoch."""
        if self.one_pass is None:
            return None
        n_volumes = len(self.volumes.identifiers)
        first = iteration * self.one_pass.global_batch + self.one_pass.offset
        places = np.arange(first, first + self.batch_size) % n_volumes
        return epoch_order(self.settings.seed, epoch, n_volumes)[places]

    def _with_changed_intensities(self, patch: Batch, rng: np.random.Generator) -> Batch:
        # The last draw of a sample, so that position and mask do not depend on this part of the recipe.
        if self._intensity is None:
            return patch
        shown, clean = self._intensity.augment(patch["data"], rng)
        return {**patch, "data": shown, **({"target": clean} if self._reversal else {})}


class ValidationBatches(Dataset[Batch]):
    """Held-out cases, each with one crop and one mask that never change, see :data:`Batch`."""

    def __init__(
        self,
        volumes: VolumeDataset,
        settings: PatchSettings,
        data_range: Mapping[str, float],
        cases: Sequence[str],
        batch_size: int,
        foreground: Mapping[str, bytes] | None = None,
    ) -> None:
        self.settings, self.data_range = settings, data_range
        self.batches = [list(cases[start : start + batch_size]) for start in range(0, len(cases), batch_size)]
        spatial = SpatialAugmentation(NO_AUGMENTATION, settings.patch_size)
        self._patches = _Patches(volumes, settings, spatial, foreground)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        cases = self.batches[index]
        samples = [self._patches.draw(case, validation_rng(self.settings.seed, case)) for case in cases]
        ranges = torch.tensor([self.data_range[case] for case in cases], dtype=torch.float32)
        return {"cases": cases, "data_range": ranges, **_stacked(samples)}


class _Patches:
    """Draws position, transforms and mask of one patch, and only then reads its voxels."""

    def __init__(
        self,
        volumes: VolumeDataset,
        settings: PatchSettings,
        augmentation: SpatialAugmentation,
        foreground: Mapping[str, bytes] | None,
    ) -> None:
        if settings.masking.region == "foreground" and foreground is None:
            raise ValueError("hiding foreground only needs to know where it is: pass foreground")
        self.volumes, self.settings, self.augmentation = volumes, settings, augmentation
        self.foreground = foreground if settings.masking.region == "foreground" else None

    def draw(self, case: str, rng: np.random.Generator, ratio: float | None = None) -> Batch:
        """One sample of a batch, without the batch axis; draws its own ratio where none is given."""
        volume, *_ = self.volumes.load_case(case)
        shape = volume.shape[1:]
        draw, eligible = self._position(case, shape, rng)
        if ratio is None:
            ratio = sample_ratio(self.settings.masking.ratio, rng)
        hidden = sample_hidden(self.settings.grid, ratio, rng, eligible)
        patch = {"data": self.augmentation.apply(volume, draw), "hidden": hidden}
        if self.foreground is not None:
            patch["air"] = torch.zeros_like(hidden) if eligible is None else torch.from_numpy(~eligible)[None]
        mask = self.volumes.load_exclusion(case) if self.settings.respect_exclusion else None
        excluded = self.augmentation.excluded(shape, mask, draw)
        return patch if excluded is None else {**patch, "excluded": excluded}

    def _position(
        self, case: str, shape: Sequence[int], rng: np.random.Generator
    ) -> tuple[PatchDraw, NDArray[np.bool_] | None]:
        """A draw with enough head or body in it and the blocks (d, h, w) that may be hidden; None means all.

        A patch with little of it is drawn again, at most ten times; then all its blocks are alike.
        """
        if self.foreground is None:
            return self.augmentation.sample(shape, rng), None
        cells = decode_occupancy(self.foreground[case], shape)
        for _ in range(1 + _REDRAWS):
            draw = self.augmentation.sample(shape, rng)
            eligible = eligible_blocks(self.augmentation.block_foreground(cells, shape, self.settings.grid, draw))
            if enough_to_hide(eligible):
                return draw, eligible
        return draw, None


def _stacked(samples: Sequence[Batch]) -> Batch:
    """A batch of samples. ``excluded`` stands in it if one sample has it; the others then exclude nothing."""
    if any("excluded" in sample for sample in samples):
        nothing = torch.zeros((1, *samples[0]["data"].shape[1:]), dtype=torch.bool)
        samples = [{"excluded": nothing, **sample} for sample in samples]
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


class BatchStream:
    """An endless iterator over batches in the order of ``steps``; ``close`` ends its worker processes."""

    def __init__(self, batches: Dataset[Batch], steps: _Steps, workers: int, pin_memory: bool) -> None:
        loader = DataLoader(
            batches, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin_memory, collate_fn=_unchanged
        )
        self._iterator: Iterator[Batch] | None = iter(loader)

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise RuntimeError("the batch stream was closed")
        return next(self._iterator)

    def __iter__(self) -> BatchStream:
        return self

    def close(self) -> None:
        """Ends the worker processes."""
        self._iterator = None


def training_stream(
    batches: TrainingBatches,
    first_epoch: int,
    epochs: int,
    iterations: int,
    workers: int,
    pin_memory: bool = False,
) -> BatchStream:
    """Batches from the first iteration of ``first_epoch`` to the end of the last epoch."""
    steps = _Steps(lambda: product(range(first_epoch, epochs), range(iterations)))
    return BatchStream(batches, steps, workers, pin_memory)


def validation_stream(batches: ValidationBatches, workers: int, pin_memory: bool = False) -> BatchStream:
    """The validation batches over and over; none where there are more processes than held-out cases."""

    def forever() -> Iterator[int]:
        while len(batches):
            yield from range(len(batches))

    return BatchStream(batches, _Steps(forever), workers, pin_memory)


def _unchanged(batch: Any) -> Any:
    return batch


class _Steps:
    """A sampler from a function that gives an iterator; it stays in the main process."""

    def __init__(self, iterate: Any) -> None:
        self._iterate = iterate

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterate())
