"""Intensity augmentation of a patch: the network's input is changed, the target stays clean.

The set is that of AMAES (Munk et al. 2024, arXiv 2408.00640). batchgeneratorsv2 provides what it has; ghosting,
ringing, multiplicative noise and the bias field are our own transforms in its style.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from nnssl_mae.patches.kspace import GhostingTransform, GibbsRingingTransform
from nnssl_mae.patches.randomness import global_generators
from nnssl_mae.patches.shading import BiasFieldTransform, MultiplicativeNoiseTransform
from nnssl_mae.recipes.intensity import Gamma, IntensityRecipe

_KERNEL_WIDTH = 6  # of batchgeneratorsv2's blur, in standard deviations
_NO_BLUR = 1e-3  # voxels; its kernel is not a number at 0


class IntensityAugmentation:
    """The intensity augmentations of a recipe, in the recipe's order. Each channel draws its own parameters."""

    def __init__(self, recipe: IntensityRecipe) -> None:
        self.transforms = ComposeTransforms(_transforms(recipe))
        self._clip_to_range = recipe.clip_to_range

    def augment(self, patch: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Changes a copy of the patch and leaves ``patch`` itself alone.

        Args:
            patch: (C, Z, Y, X) float32.
            rng: the only source of randomness; it moves on by the same amount whatever the recipe.

        Returns:
            Input (C, Z, Y, X), with the range of each channel of the patch if the recipe clips, and target
            (C, Z, Y, X), a copy of the patch.
        """
        # Two clones: batchgeneratorsv2's intensity transforms work in place.
        pair = {"image": patch.clone(), "regression_target": patch.clone()}
        with global_generators(rng):
            pair = self.transforms(**pair)
        image = _clipped(pair["image"], patch) if self._clip_to_range else pair["image"]
        return image, pair["regression_target"]


def _transforms(recipe: IntensityRecipe) -> list[BasicTransform]:
    """The transforms that can happen, each with its probability."""
    steps = (
        # "variance" is the library's name; it is used as the standard deviation.
        (recipe.additive_noise, GaussianNoiseTransform(noise_variance=recipe.additive_noise.sigma)),
        (recipe.blur, GaussianBlurTransform(_FittingSigma(recipe.blur.sigma), synchronize_axes=True)),
        (recipe.multiplicative_noise, MultiplicativeNoiseTransform(recipe.multiplicative_noise.sigma)),
        (recipe.ghosting, GhostingTransform(recipe.ghosting.alpha, recipe.ghosting.repeats)),
        (recipe.gibbs_ringing, GibbsRingingTransform(recipe.gibbs_ringing.kept)),
        (
            recipe.low_resolution,
            SimulateLowResolutionTransform(
                _FittingZoom(recipe.low_resolution.zoom),
                synchronize_channels=False,
                synchronize_axes=True,
                ignore_axes=None,
            ),
        ),
        (recipe.bias_field, BiasFieldTransform(recipe.bias_field.largest_coefficient)),
        (recipe.gamma, _gamma(recipe.gamma, inverted=False)),
    )
    parts = [(part.probability, transform) for part, transform in steps]
    parts.append((recipe.gamma.inverted_probability, _gamma(recipe.gamma, inverted=True)))
    return [RandomTransform(transform, probability) for probability, transform in parts if probability > 0]


def _gamma(recipe: Gamma, inverted: bool) -> GammaTransform:
    # Without retained statistics the library keeps the range of each channel.
    return GammaTransform(
        recipe.gamma, p_invert_image=float(inverted), synchronize_channels=False, p_per_channel=1, p_retain_stats=0
    )


def _clipped(image: torch.Tensor, patch: torch.Tensor) -> torch.Tensor:
    voxels = (1, 2, 3)
    return image.clamp(patch.amin(voxels, keepdim=True), patch.amax(voxels, keepdim=True))


@dataclass(frozen=True)
class _FittingSigma:
    """Draws a sigma in voxels; smaller where the kernel would reach over more than the thinnest axis of a patch.

    batchgeneratorsv2 pads by reflection, which needs half a kernel to be shorter than each axis.
    """

    sigma: tuple[float, float]

    def __call__(self, shape: Sequence[int], **_: Any) -> float:
        largest = (2 * min(shape[1:]) - 1) / _KERNEL_WIDTH
        return min(max(float(np.random.uniform(*self.sigma)), _NO_BLUR), largest)


@dataclass(frozen=True)
class _FittingZoom:
    """Draws a zoom; larger where the thinnest axis of a patch would be left without a voxel."""

    zoom: tuple[float, float]

    def __call__(self, image: torch.Tensor, **_: Any) -> float:
        return max(float(np.random.uniform(*self.zoom)), 1 / min(image.shape[1:]))
