"""Spatial augmentation of one patch: parameters are sampled first, then only the voxels they need are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

from nnssl_mae.patches.randomness import global_generators
from nnssl_mae.recipes.pretraining import AugmentationRecipe

_STOCK_SCALE_RANGE = (0.85, 1.25)  # nnU-Net's own numbers for the size of the region that is read


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
    box = [[start, start + edge] for start, edge in zip(corner, size, strict=True)]
    return torch.from_numpy(np.asarray(crop_and_pad_nd(volume, box, 0), dtype=np.float32))


class SpatialAugmentation:
    """batchgeneratorsv2's rotation, zoom and mirroring for one patch size."""

    def __init__(self, recipe: AugmentationRecipe, patch_size: Sequence[int]) -> None:
        self.patch_size = tuple(patch_size)
        angle = np.deg2rad(recipe.rotation_degrees)
        self.read_size = tuple(int(n) for n in get_patch_size(patch_size, angle, angle, angle, _STOCK_SCALE_RANGE))
        anisotropic = max(patch_size) / patch_size[0] > ANISO_THRESHOLD
        self._spatial = SpatialTransform(
            self.patch_size,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_rotation=recipe.rotation_probability,
            rotation=_InPlane(angle) if anisotropic else (-angle, angle),
            p_scaling=recipe.scale_probability,
            scaling=tuple(recipe.scale),
            p_synchronize_scaling_across_axes=1,
        )
        self._mirror = MirrorTransform(allowed_axes=(0, 1, 2) if recipe.mirror else ())

    def sample(self, shape: Sequence[int], rng: np.random.Generator) -> PatchDraw:
        """Draws position and transforms for a volume of ``shape`` (Z, Y, X)."""
        corner = sample_corner(shape, self.patch_size, rng)
        # The transform asks an image for its shape only; "meta" tensors have no voxels.
        region = torch.empty((1, *self.read_size), device="meta")
        with global_generators(rng):
            return PatchDraw(corner, self._spatial.get_parameters(image=region), self._mirror.get_parameters())

    def apply(self, volume: Any, draw: PatchDraw) -> torch.Tensor:
        """The patch (C, *patch_size), float32. Most draws rotate and zoom nothing and read just the patch."""
        if draw.spatial["grid"] is None:
            patch = crop(volume, draw.corner, self.patch_size)
        else:
            start = [
                low - (wide // 2 - edge // 2)
                for low, wide, edge in zip(draw.corner, self.read_size, self.patch_size, strict=True)
            ]
            region = crop(volume, start, self.read_size)
            patch = self._spatial.apply({"image": region}, **draw.spatial)["image"]
        return self._mirror.apply({"image": patch}, **draw.mirror)["image"].contiguous()


@dataclass(frozen=True)
class _InPlane:
    """Angles for patches with few thick slices: only turns that keep voxels in their slice."""

    largest: float

    def __call__(self, image: torch.Tensor, dim: int, **_: Any) -> float:
        return float(np.random.uniform(-self.largest, self.largest)) if dim == 0 else 0.0
