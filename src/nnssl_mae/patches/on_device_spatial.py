"""Spatial augmentation in two places: a worker draws and reads, the device turns, zooms, deforms and mirrors.

A worker draws with the code of :mod:`nnssl_mae.patches.augmentation`, so the same generator gives the same position,
angles, zoom and mirroring, and hands over a :class:`Reading`: only voxels of the volume that the patch can show, and a
few numbers. Both paths interpolate linearly, with zeros where nothing was read, so the images are equal up to rounding.

Only a deformation differs in value, not in distribution: its noise is drawn on the device. Mirroring is drawn after it
from the same random stream, so a deformed patch may also be mirrored otherwise than on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar, sample_scalar
from numpy.typing import NDArray
from torch.nn.functional import grid_sample

from nnssl_mae.patches.augmentation import PatchDraw, SpatialAugmentation
from nnssl_mae.recipes.pretraining import AugmentationRecipe

_COUNTED = 0.999  # a voxel counts if at least this share of what it was interpolated from counts, as on the CPU
_SMALLEST = 1e-8  # displacement in voxels, of batchgeneratorsv2
_ROUNDING = 1e-6  # voxels


@dataclass(frozen=True)
class Reading:
    """What a worker hands over for the geometry of one patch.

    Attributes:
        voxels: (C, z, y, x) of the volume, in the type in which it is stored.
        offset: where they lie in the patch, in voxels, before mirroring; of use only without ``theta``.
        mirrored: axes 0 (Z) to 2 (X) along which the patch is mirrored in the end.
        theta: float32 (3, 4); for a patch that is turned, zoomed or deformed, see :func:`sampling_grid`.
        deformation: float32 (2, 3): smoothing and largest displacement along each axis, in voxels.
        padded: whether the patch reaches over what was read, by all that is known without the deformation's noise.
        mask: bool (1, z, y, x), True = excluded; None if nothing that was read is.
    """

    voxels: torch.Tensor
    offset: tuple[int, ...] = (0, 0, 0)
    mirrored: tuple[int, ...] = ()
    theta: torch.Tensor | None = None
    deformation: torch.Tensor | None = None
    padded: bool = False
    mask: torch.Tensor | None = None


class SpatialReading:
    """Draws patches as :class:`nnssl_mae.patches.augmentation.SpatialAugmentation` does, and reads what they show."""

    def __init__(self, recipe: AugmentationRecipe, patch_size: Sequence[int]) -> None:
        self.patch_size = tuple(patch_size)
        self._draws = _WithoutGrid(recipe, patch_size)

    def sample(self, shape: Sequence[int], rng: np.random.Generator) -> PatchDraw:
        """Draws position and transforms for a volume of ``shape`` (Z, Y, X); for no other class than this one."""
        return self._draws.sample(shape, rng)

    def block_foreground(
        self, cells: NDArray[np.uint8], shape: Sequence[int], grid: Sequence[int], draw: PatchDraw
    ) -> NDArray[np.float32]:
        """As of ``SpatialAugmentation``, but for deformations: they are not known here and move a block by little."""
        return self._draws.block_foreground(cells, shape, grid, draw)

    def read(self, volume: Any, mask: Any | None, draw: PatchDraw) -> Reading:
        """The smallest box of the volume that holds all a patch shows; larger than a patch only if it is transformed.

        Args:
            volume: (C, Z, Y, X), array or lazy.
            mask: exclusion mask (1, Z, Y, X), 1 = excluded, array or lazy; None if there is none.
            draw: from :meth:`sample`.
        """
        first, last = self._draws.reach(draw)
        start, end = self._draws.readable(volume.shape[1:], draw)
        padded = bool((first < start).any() or (last >= end).any())
        start, end = np.maximum(first, start), np.minimum(last + 1, end)
        box = (slice(None), *(slice(int(low), int(high)) for low, high in zip(start, end, strict=True)))
        excluded = None if mask is None else torch.from_numpy(np.asarray(mask[box]) != 0)
        transformed = draw.spatial["grid"] is not None
        return Reading(
            torch.from_numpy(np.ascontiguousarray(volume[box])),
            offset=tuple(int(n) for n in start - draw.corner),
            mirrored=tuple(draw.mirror["axes"]),
            theta=self._draws.theta(draw, start, end - start) if transformed else None,
            deformation=draw.spatial["deformation"],
            padded=padded,
            mask=excluded if excluded is not None and excluded.any() else None,
        )

    def nothing(self) -> Reading:
        """What stands in for a patch that cannot be had: zeros, of which no voxel counts."""
        voxel = torch.zeros((1, 1, 1, 1), dtype=torch.float16)
        return Reading(voxel, padded=True, mask=torch.ones(voxel.shape, dtype=torch.bool))


class _WithoutGrid(SpatialAugmentation):
    """Draws as its parent does, and leaves out what costs time there: the sampling grid and the deformation's noise.

    ``spatial`` of its draws holds ``grid`` (None if a patch is not transformed, otherwise without meaning), ``affine``
    (3, 3) and ``deformation`` (2, 3), each None if there is none.
    """

    def __init__(self, recipe: AugmentationRecipe, patch_size: Sequence[int]) -> None:
        super().__init__(recipe, patch_size)
        # batchgeneratorsv2 makes grid and noise as large as its patch, and draws all numbers whatever that size is.
        self._spatial.patch_size = (1, 1, 1)
        self._smoothing = _Remembered(self._spatial.elastic_deform_scale)
        self._displacement = _Remembered(self._spatial.elastic_deform_magnitude)
        self._spatial.elastic_deform_scale = self._smoothing
        self._spatial.elastic_deform_magnitude = self._displacement

    def sample(self, shape: Sequence[int], rng: np.random.Generator) -> PatchDraw:
        self._smoothing.values.clear()
        self._displacement.values.clear()
        draw = super().sample(shape, rng)
        deformation = None
        if self._smoothing.values:
            sigmas = np.asarray(self._smoothing.values) * self.patch_size
            deformation = torch.from_numpy(np.stack([sigmas, self._displacement.values])).float()
        known = {"grid": draw.spatial["grid"], "affine": draw.spatial.get("affine"), "deformation": deformation}
        return PatchDraw(draw.corner, known, draw.mirror)

    def reach(self, draw: PatchDraw) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last voxel (z, y, x) that a patch may show, also where the volume has none."""
        start, size = (np.asarray(each) for each in self._region(draw))
        if draw.spatial["grid"] is None:
            return start, start + size - 1
        half = (np.asarray(self.patch_size) - 1) / 2
        if draw.spatial["deformation"] is not None:
            # The mean displacement is taken off again, so a point moves by less than twice the largest one.
            half = half + 2 * draw.spatial["deformation"][1].numpy()
        half = np.abs(_matrix(draw)) @ half - _ROUNDING
        centre = start + (size - 1) / 2
        return np.floor(centre - half).astype(np.int64), np.ceil(centre + half).astype(np.int64)

    def readable(self, shape: Sequence[int], draw: PatchDraw) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First voxel, and the one after the last, of what the CPU path would look at in a volume of ``shape``."""
        start, size = (np.asarray(each) for each in self._region(draw))
        return np.maximum(start, 0), np.minimum(start + size, shape)

    def theta(self, draw: PatchDraw, start: NDArray[np.int64], size: NDArray[np.int64]) -> torch.Tensor:
        """The numbers of :func:`sampling_grid`, (3, 4), for a box of the volume that was read."""
        low, wide = (np.asarray(each) for each in self._region(draw))
        centre = low + (wide - 1) / 2 - start  # in voxels of the box
        turn = _matrix(draw) * np.asarray(self.patch_size)[None] / size[:, None]
        shift = (2 * centre + 1) / size - 1
        return torch.from_numpy(np.column_stack([turn, shift])).float()

    def _points(self, draw: PatchDraw, indices: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        if draw.spatial["grid"] is None:
            return super()._points(draw, indices)
        start, size = (np.asarray(each) for each in self._region(draw))
        voxels = np.stack(np.meshgrid(*indices, indexing="ij"), axis=-1) - (np.asarray(self.patch_size) - 1) / 2
        points: NDArray[np.float64] = voxels @ _matrix(draw).T + start + (size - 1) / 2
        return points


class _Remembered:
    """A range or function of batchgeneratorsv2 that remembers what was drawn from it."""

    def __init__(self, scalar: RandomScalar) -> None:
        self.values: list[float] = []
        self._scalar = scalar

    def __call__(self, *arguments: Any, **named: Any) -> float:
        self.values.append(float(sample_scalar(self._scalar, *arguments, **named)))
        return self.values[-1]


def _matrix(draw: PatchDraw) -> NDArray[np.float64]:
    """(3, 3), from voxels of the patch about its centre to voxels of the volume about the same point."""
    affine: NDArray[np.float64] | None = draw.spatial["affine"]
    return np.eye(3) if affine is None else affine


def deformation_field(noise: torch.Tensor, sigmas: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """Smooth displacements, as batchgeneratorsv2 makes them from its noise.

    Args:
        noise: (N, 3, Z, Y, X), standard deviation 1; each component is the displacement along one axis.
        sigmas: (N, 3), of the smoothing of each component in voxels; it wraps around at the ends of the patch.
        magnitudes: (N, 3), the largest displacement of each component in voxels.

    Returns:
        (N, 3, Z, Y, X), float32, voxels.
    """
    axes = (2, 3, 4)
    spectrum = torch.fft.rfftn(noise, dim=axes)
    sizes = noise.shape[2:]
    for axis, size in zip(axes, sizes, strict=True):
        frequencies = (torch.fft.rfftfreq if axis == 4 else torch.fft.fftfreq)(size, device=noise.device)
        weights = torch.exp(-2 * (torch.pi * sigmas[..., None] * frequencies) ** 2)
        spectrum *= weights.view(*weights.shape[:2], *[-1 if each == axis else 1 for each in axes])
    smooth = torch.fft.irfftn(spectrum, s=sizes, dim=axes)
    return smooth * (magnitudes.clamp(min=_SMALLEST)[..., None, None, None] / smooth.abs().amax(axes, keepdim=True))


def sampling_grid(
    theta: torch.Tensor, patch_size: Sequence[int], displacements: torch.Tensor | None = None
) -> torch.Tensor:
    """Where each voxel of a patch comes from.

    The patch and what was read both run from -1 to 1 between their outer faces. A voxel at p = (z, y, x) of the patch
    comes from ``theta[:, :3] @ (p + u - mean(u)) + theta[:, 3]``, with u its displacement in the same unit. Not by
    torch's ``affine_grid``, whose matrix product would be too coarse where a user allows TF32.

    Args:
        theta: (N, 3, 4), float32.
        patch_size: voxels (Z, Y, X).
        displacements: (N, 3, Z, Y, X) in voxels of the patch.

    Returns:
        (N, Z, Y, X, 3) for ``grid_sample`` without aligned corners; its last axis is x, y, z.
    """
    turn, shift = theta[:, None, None, None, :, :3].flip(4), theta[:, None, None, None, :, 3].flip(4)
    grid = shift
    for axis, size in enumerate(patch_size):
        ends = (1 - size) / size, (size - 1) / size
        points = torch.linspace(*ends, size, device=theta.device).view([-1 if i == axis else 1 for i in range(3)])
        if displacements is not None:
            moved = displacements[:, axis]
            points = points + (moved - moved.mean((1, 2, 3), keepdim=True)) * (2 / size)
        grid = grid + points[..., None] * turn[..., axis]
    return grid


def apply_spatial(regions: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Interpolates linearly, with zeros beside what was read.

    Args:
        regions: (N, C, z, y, x), float32.
        grid: (N, Z, Y, X, 3), see :func:`sampling_grid`.

    Returns:
        (N, C, Z, Y, X).
    """
    return grid_sample(regions, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def apply_spatial_to_mask(excluded: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """The mask of a patch, from masks of what was read: a voxel is excluded with any it was interpolated from.

    As on the CPU: linearly, by more than a thousandth, and what lies beside what was read is excluded.

    Args:
        excluded: bool (N, 1, z, y, x), True = excluded.
        grid: (N, Z, Y, X, 3), as for the image.

    Returns:
        bool (N, 1, Z, Y, X), True = excluded.
    """
    return apply_spatial((~excluded).float(), grid) < _COUNTED


def apply_mirror(patches: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Mirrors patches (N, C, Z, Y, X), all of them, along some of the axes 0 (Z) to 2 (X)."""
    return patches.flip([axis + 2 for axis in axes]) if axes else patches
