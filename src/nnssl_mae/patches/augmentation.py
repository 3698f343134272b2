"""Spatial augmentation of one patch: parameters are sampled first, then only the voxels they need are read.

What a draw does to a voxel follows from the draw alone, so foreground and exclusion masks follow the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from numpy.typing import NDArray

from nnssl_mae.patches.randomness import global_generators
from nnssl_mae.recipes.pretraining import AugmentationRecipe
from nnssl_mae.scans.foreground import CELL, occupancy_at

NO_AUGMENTATION = AugmentationRecipe(rotation_probability=0, scale_probability=0, elastic_probability=0, mirror=False)

_STOCK_SCALE_RANGE = (0.85, 1.25)  # nnU-Net's own numbers for the size of the region that is read
_COUNTED = 0.999  # a voxel counts if at least this share of what it was interpolated from counts


@dataclass(frozen=True)
class PatchDraw:
    """One patch: lower corner in voxels (negative where it reaches over the volume), and the transforms' parameters."""

    corner: tuple[int, ...]
    spatial: dict[str, Any]
    mirror: dict[str, Any]


def sample_corner(shape: Sequence[int], patch_size: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
    """A patch position inside the volume, uniform; centred along axes where the volume is smaller."""
    corner = []
    for size, edge in zip(shape, patch_size, strict=True):
        room = size - edge
        corner.append(int(rng.integers(room + 1)) if room >= 0 else room // 2)
    return tuple(corner)


def crop(volume: Any, corner: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """Reads (C, *size) voxels as float32; zero, the mean in z-scored space, outside the volume."""
    return torch.from_numpy(_read(volume, corner, size, outside=0)).float()


def _read(volume: Any, corner: Sequence[int], size: Sequence[int], outside: int) -> NDArray[Any]:
    """Reads (C, *size) voxels in the type in which they are stored; ``outside`` stands where the volume is not."""
    edges = list(zip(corner, size, volume.shape[1:], strict=True))
    inside = [slice(max(0, low), min(low + edge, end)) for low, edge, end in edges]
    if any(part.start >= part.stop for part in inside):
        return np.full((volume.shape[0], *size), outside, dtype=volume.dtype)
    voxels: NDArray[Any] = volume[(slice(None), *inside)]
    if voxels.shape[1:] == tuple(size):
        return voxels
    region = np.full((voxels.shape[0], *size), outside, dtype=voxels.dtype)
    places = [slice(part.start - low, part.stop - low) for part, low in zip(inside, corner, strict=True)]
    region[(slice(None), *places)] = voxels
    return region


def _as_float32(region: torch.Tensor) -> torch.Tensor:
    """A copy. numpy asks the system for large pages, which makes new memory of this size many times cheaper."""
    return torch.from_numpy(np.empty(region.shape, dtype=np.float32)).copy_(region)


def _flipped(patch: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Mirrors (C, Z, Y, X) along some of the axes 0 (Z) to 2 (X)."""
    if not axes:
        return patch
    # torch turns rows of 16 bit around three times faster as whole numbers than as floats.
    bits = patch.view(torch.int16) if patch.dtype == torch.float16 else patch
    return torch.flip(bits, [axis + 1 for axis in axes]).view(patch.dtype)


class SpatialAugmentation:
    """batchgeneratorsv2's elastic deformation, rotation, zoom and mirroring for one patch size.

    Patches of few thick slices are turned and deformed within their slices only.
    """

    def __init__(self, recipe: AugmentationRecipe, patch_size: Sequence[int]) -> None:
        self.patch_size = tuple(patch_size)
        angle = np.deg2rad(recipe.rotation_degrees)
        self.read_size = tuple(int(n) for n in get_patch_size(patch_size, angle, angle, angle, _STOCK_SCALE_RANGE))
        anisotropic = max(patch_size) / patch_size[0] > ANISO_THRESHOLD
        self._active = recipe.mirror or any(
            (recipe.rotation_probability, recipe.scale_probability, recipe.elastic_probability)
        )
        self._spatial = SpatialTransform(
            self.patch_size,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_elastic_deform=recipe.elastic_probability,
            elastic_deform_scale=tuple(recipe.elastic_scale),
            elastic_deform_magnitude=_OnAxes((1, 2), *recipe.elastic_magnitude)
            if anisotropic
            else tuple(recipe.elastic_magnitude),
            p_rotation=recipe.rotation_probability,
            # Turns about the first axis keep voxels in their slice.
            rotation=_OnAxes((0,), -angle, angle) if anisotropic else (-angle, angle),
            p_rot_per_axis=recipe.rotation_probability_axis,
            p_scaling=recipe.scale_probability,
            scaling=tuple(recipe.scale),
            p_synchronize_scaling_across_axes=1,
        )
        self._mirror = MirrorTransform(allowed_axes=(0, 1, 2) if recipe.mirror else ())

    def sample(self, shape: Sequence[int], rng: np.random.Generator) -> PatchDraw:
        """Draws position and transforms for a volume of ``shape`` (Z, Y, X)."""
        corner = sample_corner(shape, self.patch_size, rng)
        if not self._active:
            return PatchDraw(corner, {"grid": None}, {"axes": []})
        # The transform asks an image for its shape only; "meta" tensors have no voxels.
        region = torch.empty((1, *self.read_size), device="meta")
        with global_generators(rng):
            return PatchDraw(corner, self._spatial.get_parameters(image=region), self._mirror.get_parameters())

    def apply(self, volume: Any, draw: PatchDraw) -> torch.Tensor:
        """The patch (C, *patch_size), float32. Most draws rotate, zoom and deform nothing and read just the patch."""
        return self.apply_stored(volume, draw).float()

    def apply_stored(self, volume: Any, draw: PatchDraw) -> torch.Tensor:
        """As :meth:`apply`, in the type of the volume where that holds the same values: half the memory to move."""
        region = torch.from_numpy(_read(volume, *self._region(draw), outside=0))
        return self._transformed(region if draw.spatial["grid"] is None else _as_float32(region), draw)

    def excluded(self, shape: Sequence[int], mask: Any | None, draw: PatchDraw) -> torch.Tensor | None:
        """Which voxels of the patch never count: padding outside the volume, and what an exclusion mask says.

        A voxel that was interpolated from any such voxel (by more than a thousandth) is excluded with it.

        Args:
            shape: of the volume, (Z, Y, X).
            mask: exclusion mask (1, Z, Y, X), 1 = excluded, array or lazy; None if there is none.
            draw: as for the image.

        Returns:
            bool (1, *patch_size), True = excluded; None, without building any mask, if nothing is.
        """
        stays_inside = self._stays_inside(shape, draw)
        if mask is None and stays_inside:
            return None
        if mask is None:
            mask = np.broadcast_to(np.uint8(0), (1, *shape))  # no memory
        start, size = self._region(draw)
        region = torch.from_numpy(_read(mask, start, size, outside=1) != 0)
        if stays_inside and not region.any():
            return None
        if draw.spatial["grid"] is None:
            return self._transformed(region, draw)
        excluded = self._transformed(_as_float32(~region), draw) < _COUNTED
        return excluded if excluded.any() else None

    def block_foreground(
        self, cells: NDArray[np.uint8], shape: Sequence[int], grid: Sequence[int], draw: PatchDraw
    ) -> NDArray[np.float32]:
        """The share of head or body in each block of the patch, from points that follow the draw; no voxel is read.

        Args:
            cells: where the head or body is (:func:`nnssl_mae.scans.foreground.decode_occupancy`).
            shape: of the volume, (Z, Y, X).
            grid: blocks along each axis, (d, h, w).
            draw: as for the image.

        Returns:
            (d, h, w), 0 to 1. Outside the volume, and outside what is read of it, is air.
        """
        indices = [_block_points(size, blocks) for size, blocks in zip(self.patch_size, grid, strict=True)]
        points = self._points(draw, indices)
        start, size = self._region(draw)
        was_read = (np.abs(points - start - (np.asarray(size) - 1) / 2) < np.asarray(size) / 2).all(axis=-1)
        found = occupancy_at(cells, shape, points) * was_read
        d, h, w = grid
        shares = found.reshape(d, -1, h, found.shape[1] // h, w, found.shape[2] // w).mean(axis=(1, 3, 5))
        return np.flip(shares, axis=draw.mirror["axes"])

    def _region(self, draw: PatchDraw) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Lower corner and size, in voxels of the volume, of what a draw is made from."""
        if draw.spatial["grid"] is None:
            return draw.corner, self.patch_size
        sizes = zip(draw.corner, self.read_size, self.patch_size, strict=True)
        return tuple(low - (wide // 2 - edge // 2) for low, wide, edge in sizes), self.read_size

    def _transformed(self, region: torch.Tensor, draw: PatchDraw) -> torch.Tensor:
        """A region (C, *size) as the draw shows it, (C, *patch_size)."""
        if draw.spatial["grid"] is not None:
            region = self._spatial.apply({"image": region}, **draw.spatial)["image"]
        return _flipped(region, draw.mirror["axes"]).contiguous()

    def _points(self, draw: PatchDraw, indices: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        """Where voxels of the patch, before mirroring, come from.

        Args:
            draw: of the patch.
            indices: along each axis of the patch; all their combinations are meant.

        Returns:
            (len(indices[0]), len(indices[1]), len(indices[2]), 3) voxel coordinates (z, y, x) in the volume.
        """
        start, size = self._region(draw)
        if draw.spatial["grid"] is None:
            return np.stack(np.meshgrid(*indices, indexing="ij"), axis=-1).astype(np.float64) + np.asarray(start)
        z, y, x = (torch.from_numpy(index) for index in indices)
        grid = draw.spatial["grid"][z[:, None, None], y[None, :, None], x].numpy().astype(np.float64)
        return _voxels_of(grid, start, size)

    def _stays_inside(self, shape: Sequence[int], draw: PatchDraw) -> bool:
        """Whether no voxel of the patch was interpolated from outside the volume (or from outside what is read)."""
        start, size = self._region(draw)
        if draw.spatial["grid"] is None:
            lowest, highest = np.asarray(start), np.asarray(start) + size - 1
        else:
            # Without deformation the patch is a parallelepiped: its corners reach farthest.
            affine = draw.spatial["elastic_offsets"] is None
            steps = [max(1, edge - 1) if affine else 1 for edge in self.patch_size]
            grid = draw.spatial["grid"][:: steps[0], :: steps[1], :: steps[2]]
            ends = torch.stack([grid.amin(dim=(0, 1, 2)), grid.amax(dim=(0, 1, 2))]).numpy().astype(np.float64)
            lowest, highest = _voxels_of(ends, start, size)
        first = np.maximum(0, start)
        last = np.minimum(shape, np.asarray(start) + size) - 1
        return bool((lowest >= first).all() and (highest <= last).all())


def _voxels_of(grid: NDArray[np.float64], start: Sequence[int], size: Sequence[int]) -> NDArray[np.float64]:
    """Volume coordinates (..., z y x) of ``grid_sample`` coordinates (..., x y z; align_corners off) of a region."""
    return ((grid[..., ::-1] + 1) * size - 1) / 2 + start


def _block_points(size: int, blocks: int) -> NDArray[np.int64]:
    """Indices of evenly spaced voxels of each block along an axis: two, or one every four to eight voxels."""
    edge = size // blocks
    count = min(edge, max(2, min(4, edge // 4), edge // CELL))
    within = ((2 * np.arange(count) + 1) * edge) // (2 * count)
    return (np.arange(blocks)[:, None] * edge + within).ravel()


@dataclass(frozen=True)
class _OnAxes:
    """Draws from (low, high) for some axes of a patch; zero for the others."""

    axes: tuple[int, ...]
    low: float
    high: float

    def __call__(self, image: torch.Tensor, dim: int, **_: Any) -> float:
        return float(np.random.uniform(self.low, self.high)) if dim in self.axes else 0.0
