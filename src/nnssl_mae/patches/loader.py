"""Batches for training and validation, in a fixed order whatever the number of worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from nnssl_mae.errors import ResumableError
from nnssl_mae.masking import eligible_blocks, enough_to_hide, sample_hidden, sample_ratio
from nnssl_mae.patches.augmentation import NO_AUGMENTATION, PatchDraw, SpatialAugmentation
from nnssl_mae.patches.dataset import DamagedCase, StoredArray, foreground_cells, open_case, open_exclusion
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.patches.intensity import IntensityAugmentation
from nnssl_mae.patches.on_device_batching import Sample, pack
from nnssl_mae.patches.on_device_intensity import IntensityDraws
from nnssl_mae.patches.on_device_spatial import SpatialReading
from nnssl_mae.patches.randomness import batch_rng, epoch_order, training_rng, validation_rng
from nnssl_mae.patches.sampling import make_sampling
from nnssl_mae.recipes.pretraining import AugmentationRecipe, MaskingRecipe, SamplingRecipe
from nnssl_mae.stopping import end_with_this_process, leave_stopping_to_the_main_process

Batch = dict[str, Any]
"""What a network is trained on; B patches of (Z, Y, X) voxels in (d, h, w) blocks. Not every key is always there.

``data``: float32 (B, C, Z, Y, X), what the network sees before hiding.
``hidden``: bool (B, 1, d, h, w), True = hidden.
``target``: float32 as ``data``, before its intensities were changed; with augmentation reversal only.
``air``: bool (B, 1, d, h, w), True = air: visible, and out of the loss; with foreground-aware masking only.
``excluded``: bool (B, 1, Z, Y, X), True = never counts in the loss (padding, exclusion masks); if there is any.
``step``: (epoch, iteration), in training.
``voxels``, ``numbers``, ``masks``, ``plan``: in place of ``data``, ``target`` and ``excluded`` where these are made on
the device, see :func:`nnssl_mae.patches.on_device_batching.pack`.
``cases``, ``data_range``: names and (B,) ranges of the volumes, in validation.
``replaced``: (name, problem) of each case that could not be read, if there is any. In training another case stands in
for it; in validation, or if many in a row cannot be read, a patch of zeros of which nothing counts.
"""

_REDRAWS = 10  # of a patch with little head or body
_STAND_INS = 10  # tried for a case that cannot be read

Fault = tuple[str, str]
"""Name and problem of a case that could not be read."""


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
        cases: CaseIndex,
        settings: PatchSettings,
        augmentation: AugmentationRecipe,
        batch_size: int,
        rank: int = 0,
        sampling: SamplingRecipe | None = None,
        one_pass: OnePass | None = None,
        on_device: bool = False,
    ) -> None:
        """
        Args:
            cases: to draw from, with replacement.
            settings: of the patches.
            augmentation: spatial and intensity.
            batch_size: patches of this process.
            rank: of this process.
            sampling: how cases are drawn; all with the same chance if not given.
            one_pass: draws every volume once an epoch instead.
            on_device: packs what ``DeviceAugmentation`` makes the batch from.

        Raises:
            UserError: ``sampling`` does not fit the cases.
        """
        self._arguments = (cases, settings, augmentation, batch_size, rank, sampling, one_pass, on_device)
        self.cases, self.settings = cases, settings
        self.batch_size, self.rank, self.one_pass = batch_size, rank, one_pass
        self._sampling = make_sampling(sampling or SamplingRecipe(), cases)
        self._intensity: IntensityAugmentation | IntensityDraws | None = None
        if on_device:
            self._patches = _Patches(cases, settings, SpatialReading(augmentation, settings.patch_size))
            self._intensity = IntensityDraws(augmentation.intensity, settings.patch_size)
        else:
            self._patches = _Patches(cases, settings, SpatialAugmentation(augmentation, settings.patch_size))
            if augmentation.intensity.active:
                self._intensity = IntensityAugmentation(augmentation.intensity)
        self._reversal, self._on_device = augmentation.reversal, on_device

    def __reduce__(self) -> tuple[Any, ...]:
        # Made again in a worker process: what follows from the table must not pass through a pipe.
        return TrainingBatches, self._arguments

    def __getitem__(self, step: tuple[int, int]) -> Batch:
        epoch, iteration = step
        masking, order = self.settings.masking, self._order(epoch, iteration)
        ratio = None
        if masking.ratio_drawn_per == "batch":
            ratio = sample_ratio(masking.ratio, batch_rng(self.settings.seed, epoch, iteration))
        replaced: list[Fault] = []

        def samples() -> Iterator[Batch]:
            for sample in range(self.batch_size):
                rng = training_rng(self.settings.seed, epoch, iteration, self.rank, sample)
                position = self._sampling.draw(rng) if order is None else int(order[sample])
                yield self._sample(position, rng, ratio, replaced)

        batch = _packed(samples()) if self._on_device else _stacked(samples(), self.batch_size)
        return {"step": step, **batch, **_noted(replaced)}

    def _order(self, epoch: int, iteration: int) -> NDArray[np.int64] | None:
        """Which volumes this process takes in a step, if every volume is taken once an epoch."""
        if self.one_pass is None:
            return None
        first = iteration * self.one_pass.global_batch + self.one_pass.offset
        places = np.arange(first, first + self.batch_size) % len(self.cases)
        return epoch_order(self.settings.seed, epoch, len(self.cases))[places]

    def _sample(self, position: int, rng: np.random.Generator, ratio: float | None, replaced: list[Fault]) -> Batch:
        """A patch of the case, or of the next one drawn that can be read; what cannot joins ``replaced``."""
        for _ in range(1 + _STAND_INS):
            try:
                return self._with_changed_intensities(self._patches.draw(position, rng, ratio), rng)
            except DamagedCase as damage:
                replaced.append((self.cases.name(position), str(damage)))
            position = self._sampling.draw(rng)
        nothing = self._patches.nothing(rng, ratio)
        if "reading" in nothing:
            return {**nothing, "changes": (), "seed": 0}
        return {**nothing, **({"target": nothing["data"]} if self._reversal else {})}

    def _with_changed_intensities(self, patch: Batch, rng: np.random.Generator) -> Batch:
        # The last draw of a sample, so that position and mask do not depend on this part of the recipe.
        if isinstance(self._intensity, IntensityDraws):
            changes = self._intensity.sample(len(patch["reading"].voxels), rng)
            return {**patch, "changes": changes, "seed": int(rng.integers(2**63))}
        if self._intensity is None:
            return patch
        shown, clean = self._intensity.augment(patch["data"].float(), rng)
        return {**patch, "data": shown, **({"target": clean} if self._reversal else {})}


class ValidationBatches(Dataset[Batch]):
    """Held-out cases, each with one crop and one mask that never change, see :data:`Batch`."""

    def __init__(self, cases: CaseIndex, settings: PatchSettings, batch_size: int) -> None:
        self.cases, self.settings, self.batch_size = cases, settings, batch_size
        self._patches = _Patches(cases, settings, SpatialAugmentation(NO_AUGMENTATION, settings.patch_size))

    def __len__(self) -> int:
        return -(-len(self.cases) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        first = index * self.batch_size
        positions = range(first, min(first + self.batch_size, len(self.cases)))
        replaced: list[Fault] = []
        samples = (self._sample(position, replaced) for position in positions)
        names = [self.cases.name(position) for position in positions]
        ranges = torch.tensor([self.cases.data_range(position) for position in positions], dtype=torch.float32)
        return {"cases": names, "data_range": ranges, **_stacked(samples, len(positions)), **_noted(replaced)}

    def _sample(self, position: int, replaced: list[Fault]) -> Batch:
        name = self.cases.name(position)
        try:
            return self._patches.draw(position, validation_rng(self.settings.seed, name))
        except DamagedCase as damage:
            replaced.append((name, str(damage)))
        return self._patches.nothing(validation_rng(self.settings.seed, name))


class _Patches:
    """Draws position, transforms and mask of one patch, and only then reads its voxels."""

    def __init__(
        self, cases: CaseIndex, settings: PatchSettings, augmentation: SpatialAugmentation | SpatialReading
    ) -> None:
        self.cases, self.settings, self.augmentation = cases, settings, augmentation
        self._leaves_out_air = settings.masking.region == "foreground"

    def draw(self, position: int, rng: np.random.Generator, ratio: float | None = None) -> Batch:
        """One sample of a batch, without the batch axis; draws its own ratio where none is given.

        Raises:
            DamagedCase: the case cannot be read.
        """
        shape = self.cases.shape(position)
        draw, eligible = self._place(position, shape, rng)
        hidden = self._hidden(rng, ratio, eligible)
        mask = open_exclusion(self.cases, position) if self.settings.respect_exclusion else None
        return {**self._shown(open_case(self.cases, position), mask, draw), **hidden}

    def nothing(self, rng: np.random.Generator, ratio: float | None = None) -> Batch:
        """What stands in for a sample that cannot be had: zeros, of which no voxel counts."""
        return {**self._zeros(), **self._hidden(rng, ratio)}

    def _shown(self, volume: StoredArray, mask: StoredArray | None, draw: PatchDraw) -> Batch:
        if isinstance(self.augmentation, SpatialReading):
            return {"reading": self.augmentation.read(volume, mask, draw)}
        patch = {"data": self.augmentation.apply_stored(volume, draw)}
        excluded = self.augmentation.excluded(volume.shape[1:], mask, draw)
        return patch if excluded is None else {**patch, "excluded": excluded}

    def _zeros(self) -> Batch:
        if isinstance(self.augmentation, SpatialReading):
            return {"reading": self.augmentation.nothing()}
        data = torch.zeros((1, *self.settings.patch_size))
        return {"data": data, "excluded": torch.ones(data.shape, dtype=torch.bool)}

    def _hidden(
        self, rng: np.random.Generator, ratio: float | None, eligible: NDArray[np.bool_] | None = None
    ) -> Batch:
        if ratio is None:
            ratio = sample_ratio(self.settings.masking.ratio, rng)
        hidden = sample_hidden(self.settings.grid, ratio, rng, eligible)
        if not self._leaves_out_air:
            return {"hidden": hidden}
        air = torch.zeros_like(hidden) if eligible is None else torch.from_numpy(~eligible)[None]
        return {"hidden": hidden, "air": air}

    def _place(
        self, position: int, shape: Sequence[int], rng: np.random.Generator
    ) -> tuple[PatchDraw, NDArray[np.bool_] | None]:
        """A draw with enough head or body in it and the blocks (d, h, w) that may be hidden; None means all.

        A patch with little of it is drawn again, at most ten times; then all its blocks are alike.
        """
        if not self._leaves_out_air:
            return self.augmentation.sample(shape, rng), None
        cells = foreground_cells(self.cases, position)
        for _ in range(1 + _REDRAWS):
            draw = self.augmentation.sample(shape, rng)
            eligible = eligible_blocks(self.augmentation.block_foreground(cells, shape, self.settings.grid, draw))
            if enough_to_hide(eligible):
                return draw, eligible
        return draw, None


def _noted(replaced: list[Fault]) -> Batch:
    return {"replaced": replaced} if replaced else {}


def _stacked(samples: Iterator[Batch], count: int) -> Batch:
    """A batch of ``count`` samples, each moved into it, as float32, before the next one is made.

    ``excluded`` stands in it if one sample has it; the others then exclude nothing.
    """
    parts: list[Batch] = []
    data = torch.empty(0)
    for place, sample in enumerate(samples):
        patch = sample.pop("data")
        if not parts:
            # numpy asks the system for large pages: getting the memory of a batch costs a fifth of torch's time.
            data = torch.from_numpy(np.empty((count, *patch.shape), dtype=np.float32))
        data[place].copy_(patch)
        parts.append(sample)
    if any("excluded" in part for part in parts):
        nothing = torch.zeros((1, *data.shape[2:]), dtype=torch.bool)
        parts = [{"excluded": nothing, **part} for part in parts]
    return {"data": data, **{key: torch.stack([part[key] for part in parts]) for key in parts[0]}}


def _packed(samples: Iterator[Batch]) -> Batch:
    """A batch that the device will make from what was read."""
    parts = list(samples)
    drawn = [Sample(part.pop("reading"), part.pop("changes"), part.pop("seed")) for part in parts]
    return {**pack(drawn), **{key: torch.stack([part[key] for part in parts]) for key in parts[0]}}


class BatchStream:
    """An endless iterator over batches in the order of ``steps``; ``close`` ends its worker processes."""

    def __init__(self, batches: Dataset[Batch], steps: _Steps, workers: int, pin_memory: bool) -> None:
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            pin_memory=pin_memory,
            collate_fn=_unchanged,
            worker_init_fn=leave_stopping_to_the_main_process,
        )
        before = set(multiprocessing.active_children())
        self._iterator: Iterator[Batch] | None = iter(loader)
        end_with_this_process([each for each in multiprocessing.active_children() if each not in before])

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise RuntimeError("the batch stream was closed")
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ResumableError(
                f"A process that loads batches died ({error}), most likely because memory or shared memory (/dev/shm) "
                "ran out: set nnUNet_n_proc_DA to a smaller number and continue with --c"
            ) from error

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
    first_iteration: int = 0,
) -> BatchStream:
    """Batches from an iteration of ``first_epoch``, its first unless told otherwise, to the end of the last epoch."""
    steps = _Steps(lambda: islice(product(range(first_epoch, epochs), range(iterations)), first_iteration, None))
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
