"""A batch that is augmented on the device: what workers pack, and what the device makes of it.

A worker decodes, crops and draws. Whatever the device needs travels in at most three flat tensors (voxels, numbers,
masks), whose parts a :class:`Plan` names: one transfer each, from pinned memory, and no later one that the host would
have to wait for. The device does for each patch only what the patch drew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from nnssl_mae.patches.on_device_intensity import CHANGES, NOISES, Change
from nnssl_mae.patches.on_device_spatial import (
    Reading,
    apply_mirror,
    apply_spatial,
    apply_spatial_to_mask,
    deformation_field,
    sampling_grid,
)
from nnssl_mae.recipes.pretraining import AugmentationRecipe


@dataclass(frozen=True)
class Piece:
    """A part of a flat tensor, and its shape."""

    start: int
    shape: tuple[int, ...]

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The part, as a view."""
        return flat[self.start : self.start + prod(self.shape)].view(self.shape)


@dataclass(frozen=True)
class PatchPlan:
    """The geometry of one patch, as :class:`nnssl_mae.patches.on_device_spatial.Reading`, and the seed of its noise."""

    voxels: Piece
    offset: tuple[int, ...]
    mirrored: tuple[int, ...]
    theta: Piece | None
    deformation: Piece | None
    padded: bool
    mask: Piece | None
    seed: int


@dataclass(frozen=True)
class ChangePlan:
    """One change of intensities, of all images of a batch that drew it.

    ``images`` counts channels of samples: sample * channels + channel. ``values``: (len(images), ...).
    """

    kind: str
    axis: int
    images: tuple[int, ...]
    values: Piece


@dataclass(frozen=True)
class Plan:
    """All that happens to a batch on the device; numbers of the host only."""

    patches: tuple[PatchPlan, ...]
    changes: tuple[ChangePlan, ...]


@dataclass(frozen=True)
class Sample:
    """One patch as a worker draws it; ``seed``, 0 to 2^63 - 1, is that of the noise drawn on the device."""

    reading: Reading
    changes: tuple[Change, ...]
    seed: int


def pack(samples: Sequence[Sample]) -> dict[str, Any]:
    """What of a batch lies in ``samples``, ready to be sent.

    Returns:
        ``voxels`` (in the volumes' type) and ``numbers`` (float32), both flat; ``masks``, flat bool, if there is any;
        and ``plan``, which says what lies where.
    """
    voxels, numbers, masks = _Flat(), _Flat(), _Flat()
    patches = tuple(
        PatchPlan(
            voxels.add(each.reading.voxels),
            each.reading.offset,
            each.reading.mirrored,
            numbers.add_any(each.reading.theta),
            numbers.add_any(each.reading.deformation),
            each.reading.padded,
            masks.add_any(each.reading.mask),
            each.seed,
        )
        for each in samples
    )
    plan = Plan(patches, tuple(_changes(samples, numbers)))
    batch = {"voxels": voxels.joined(), "numbers": numbers.joined(), "plan": plan}
    return {**batch, "masks": masks.joined()} if masks.length else batch


def _changes(samples: Sequence[Sample], numbers: _Flat) -> Iterator[ChangePlan]:
    """The changes in their order, the same ones of several images together."""
    channels = samples[0].reading.voxels.shape[0]
    drawn = [
        ((change.step, change.axis, change.kind), place * channels + change.channel, change.values)
        for place, sample in enumerate(samples)
        for change in sample.changes
    ]
    for (_, axis, kind), group in groupby(sorted(drawn, key=lambda each: each[:2]), key=lambda each: each[0]):
        _, images, values = zip(*group, strict=True)
        yield ChangePlan(kind, axis, images, numbers.add(torch.stack(values)))


class _Flat:
    """Collects tensors of one type, to be joined in one."""

    def __init__(self) -> None:
        self.length = 0
        self._parts: list[torch.Tensor] = []

    def add(self, part: torch.Tensor) -> Piece:
        piece = Piece(self.length, tuple(part.shape))
        self.length += part.numel()
        self._parts.append(part)
        return piece

    def add_any(self, part: torch.Tensor | None) -> Piece | None:
        return None if part is None else self.add(part)

    def joined(self) -> torch.Tensor:
        """(length,); empty and float32 if nothing was added."""
        if not self._parts:
            return torch.empty(0)
        # numpy asks the system for large pages, which makes new memory of this size many times cheaper.
        whole = torch.from_numpy(np.empty(self.length, dtype=self._parts[0].numpy().dtype))
        return torch.cat([part.reshape(-1) for part in self._parts], out=whole)


class DeviceAugmentation:
    """Makes the network's input, and the target where a recipe undoes augmentation, of a packed batch.

    Everything is a function of the batch: noise is drawn from the seed of each patch, whatever lies beside it.

    Args:
        recipe: of the augmentation; says whether intensities are clipped and whether there is a clean target.
        patch_size: voxels (Z, Y, X).
    """

    def __init__(self, recipe: AugmentationRecipe, patch_size: Sequence[int]) -> None:
        self._clip_to_range = recipe.intensity.clip_to_range
        self._reversal = recipe.reversal
        self._patch_size = tuple(patch_size)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            batch: with the keys of :func:`pack`, all tensors on one device, and any others, which stay.

        Returns:
            The batch with these keys in their place: ``data``, float32 (B, C, Z, Y, X); ``target``, the same before its
            intensities were changed, with augmentation reversal only; ``excluded``, bool (B, 1, Z, Y, X), True = never
            counts, if a patch may have any such voxel.
        """
        packed = {"voxels", "numbers", "masks", "plan"}
        rest = {key: value for key, value in batch.items() if key not in packed}
        plan: Plan = batch["plan"]
        noise = [_Noise(patch.seed, batch["voxels"].device) for patch in plan.patches]
        data, excluded = self._placed(batch, plan, noise)
        target = {"target": data.clone()} if self._reversal else {}
        self._change(data, plan, batch["numbers"], noise)
        return {**rest, "data": data, **target, **({} if excluded is None else {"excluded": excluded})}

    def _placed(
        self, batch: dict[str, Any], plan: Plan, noise: Sequence[_Noise]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images (B, C, Z, Y, X) after the spatial augmentation, and which voxels of them are excluded."""
        device, channels = batch["voxels"].device, plan.patches[0].voxels.shape[0]
        data = torch.empty((len(plan.patches), channels, *self._patch_size), device=device)
        excluded = None
        if any(patch.padded or patch.mask for patch in plan.patches):
            excluded = torch.zeros((len(data), 1, *self._patch_size), dtype=torch.bool, device=device)
        for place, patch in enumerate(plan.patches):
            grid = None if patch.theta is None else self._grid(patch, batch["numbers"], noise[place])
            image = self._shown(patch.voxels.of(batch["voxels"])[None], patch, grid)
            data[place].copy_(apply_mirror(image, patch.mirrored)[0])
            if excluded is not None and (patch.padded or patch.mask):
                mask = self._mask(patch, batch.get("masks"), device)
                excluded[place].copy_(apply_mirror(self._shown_mask(mask, patch, grid), patch.mirrored)[0])
        return data, excluded

    def _grid(self, patch: PatchPlan, numbers: torch.Tensor, noise: _Noise) -> torch.Tensor:
        assert patch.theta is not None
        displacements = None
        if patch.deformation is not None:
            sigmas, magnitudes = patch.deformation.of(numbers)[:, None]
            displacements = deformation_field(noise.draw((1, 3, *self._patch_size)), sigmas, magnitudes)
        return sampling_grid(patch.theta.of(numbers)[None], self._patch_size, displacements)

    def _shown(self, voxels: torch.Tensor, patch: PatchPlan, grid: torch.Tensor | None) -> torch.Tensor:
        """(1, C, Z, Y, X) from what was read, (1, C, z, y, x); zero, the mean in z-scored space, where nothing was."""
        if grid is not None:
            return apply_spatial(voxels.float(), grid)
        return pad(voxels, self._margins(patch)) if patch.padded else voxels

    def _shown_mask(self, mask: torch.Tensor, patch: PatchPlan, grid: torch.Tensor | None) -> torch.Tensor:
        if grid is not None:
            return apply_spatial_to_mask(mask, grid)
        return pad(mask, self._margins(patch), value=True)

    def _margins(self, patch: PatchPlan) -> list[int]:
        """Voxels of the patch before and behind what was read, last axis first, as torch's ``pad`` wants them."""
        sides = zip(patch.offset, self._patch_size, patch.voxels.shape[1:], strict=True)
        return [n for low, edge, size in reversed(list(sides)) for n in (low, edge - low - size)]

    def _mask(self, patch: PatchPlan, masks: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """bool (1, 1, z, y, x), True = excluded."""
        if patch.mask is None or masks is None:
            return torch.zeros((1, 1, *patch.voxels.shape[1:]), dtype=torch.bool, device=device)
        return patch.mask.of(masks)[None]

    def _change(self, data: torch.Tensor, plan: Plan, numbers: torch.Tensor, noise: Sequence[_Noise]) -> None:
        """Changes the intensities of ``data`` in place, of those images only that drew a change."""
        channels, images = data.shape[1], data.view(-1, 1, *self._patch_size)
        changed = sorted({image for change in plan.changes for image in change.images})
        ranges = {image: images[image].aminmax() for image in changed} if self._clip_to_range else {}
        for change in plan.changes:
            values = change.values.of(numbers)
            # A stack of views needs no index on the device, which the host would have to send.
            chosen = torch.stack([images[image] for image in change.images])
            if change.kind in NOISES:
                shape = (1, *self._patch_size)
                drawn = torch.stack([noise[image // channels].draw(shape) for image in change.images])
                result = NOISES[change.kind](chosen, values, drawn)
            else:
                result = CHANGES[change.kind](chosen, values, change.axis)
            for image, voxels in zip(change.images, result, strict=True):
                images[image].copy_(voxels)
        for image, (low, high) in ranges.items():
            images[image].clamp_(low, high)


class _Noise:
    """Gaussian noise of one patch, from its seed; a generator is made only if there is any."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._generator: torch.Generator | None = None

    def draw(self, shape: Sequence[int]) -> torch.Tensor:
        if self._generator is None:
            self._generator = torch.Generator(self._device).manual_seed(self._seed)
        return torch.randn(tuple(shape), generator=self._generator, device=self._device)
