"""Batches for training and validation, in a fixed order whatever the number of worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from nnssl_mae.masking import sample_hidden
from nnssl_mae.patches.augmentation import SpatialAugmentation, crop, sample_corner
from nnssl_mae.patches.dataset import VolumeDataset
from nnssl_mae.patches.randomness import training_rng, validation_rng

Batch = dict[str, Any]


@dataclass(frozen=True)
class PatchSettings:
    """What a patch looks like: voxels, blocks along each axis, hidden share."""

    patch_size: tuple[int, ...]
    grid: tuple[int, ...]
    ratio: float
    seed: int


class TrainingBatches(Dataset[Batch]):
    """The batch of each (epoch, iteration): ``data`` (B, 1, *patch) and ``hidden`` (B, 1, d, h, w), True = hidden."""

    def __init__(
        self,
        volumes: VolumeDataset,
        settings: PatchSettings,
        augmentation: SpatialAugmentation,
        batch_size: int,
        rank: int = 0,
    ) -> None:
        self.volumes, self.settings, self.augmentation = volumes, settings, augmentation
        self.batch_size, self.rank = batch_size, rank

    def __getitem__(self, step: tuple[int, int]) -> Batch:
        samples = [self._sample(*step, sample) for sample in range(self.batch_size)]
        data, hidden = zip(*samples, strict=True)
        return {"step": step, "data": torch.stack(data), "hidden": torch.stack(hidden)}

    def _sample(self, epoch: int, iteration: int, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = training_rng(self.settings.seed, epoch, iteration, self.rank, sample)
        case = self.volumes.identifiers[rng.integers(len(self.volumes.identifiers))]
        volume, *_ = self.volumes.load_case(case)
        draw = self.augmentation.sample(volume.shape[1:], rng)
        return self.augmentation.apply(volume, draw), sample_hidden(self.settings.grid, self.settings.ratio, rng)


class ValidationBatches(Dataset[Batch]):
    """Held-out cases, each with one crop and one mask that never change; also ``data_range`` (B,) and ``cases``."""

    def __init__(
        self,
        volumes: VolumeDataset,
        settings: PatchSettings,
        data_range: Mapping[str, float],
        cases: Sequence[str],
        batch_size: int,
    ) -> None:
        self.volumes, self.settings, self.data_range = volumes, settings, data_range
        self.batches = [list(cases[start : start + batch_size]) for start in range(0, len(cases), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        cases = self.batches[index]
        data, hidden = zip(*map(self._case, cases), strict=True)
        ranges = torch.tensor([self.data_range[case] for case in cases], dtype=torch.float32)
        return {
            "cases": cases,
            "data": torch.stack(data),
            "hidden": torch.stack(hidden),
            "data_range": ranges,
        }

    def _case(self, case: str) -> tuple[torch.Tensor, torch.Tensor]:
        rng = validation_rng(self.settings.seed, case)
        volume, *_ = self.volumes.load_case(case)
        corner = sample_corner(volume.shape[1:], self.settings.patch_size, rng)
        patch = crop(volume, corner, self.settings.patch_size)
        return patch, sample_hidden(self.settings.grid, self.settings.ratio, rng)


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
