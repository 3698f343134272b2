"""Intensity augmentation in two places: a worker draws, the device changes the voxels.

A worker draws with the transforms of :mod:`nnssl_mae.patches.intensity` and hands over numbers only, see
:class:`Change`. The functions ``apply_...`` change voxels and draw nothing.

For the same numbers both paths give the same image up to rounding. The noise itself is drawn on the device, from a
generator of its own for each patch: it differs from that of the CPU path in value, not in distribution. A patch with
noise thereby also draws what follows from another place of the same random stream than on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

from nnssl_mae.patches.intensity import IntensityAugmentation
from nnssl_mae.patches.kspace import GhostingTransform, GibbsRingingTransform
from nnssl_mae.patches.on_device_lines import (
    apply_along,
    blur_matrix,
    ghosting_matrix,
    low_resolution_matrix,
    ringing_matrix,
)
from nnssl_mae.patches.randomness import global_generators
from nnssl_mae.patches.shading import BiasFieldTransform, MultiplicativeNoiseTransform, bias_field
from nnssl_mae.recipes.intensity import IntensityRecipe

_SMALLEST_RANGE = 1e-7  # by which batchgeneratorsv2's gamma divides a patch without contrast


@dataclass(frozen=True)
class Change:
    """One change of one channel of a patch.

    ``kind`` is a key of :data:`CHANGES` or :data:`NOISES`. ``values``, float32, are what the function of that name
    takes for one image: a standard deviation (), an exponent (), a matrix of one axis (n, n), coefficients of a bias
    field (4, 4, 4). Changes happen by ascending ``step``, the place of the augmentation in the recipe, then by
    ascending ``axis``.
    """

    step: int
    kind: str
    channel: int
    values: torch.Tensor
    axis: int = 0


class IntensityDraws:
    """Draws what :class:`nnssl_mae.patches.intensity.IntensityAugmentation` would, without an image.

    Args:
        recipe: of the intensity augmentation.
        patch_size: voxels (Z, Y, X).
    """

    def __init__(self, recipe: IntensityRecipe, patch_size: Sequence[int]) -> None:
        self._steps = IntensityAugmentation(recipe).transforms.transforms
        self._patch_size = tuple(patch_size)

    def sample(self, channels: int, rng: np.random.Generator) -> tuple[Change, ...]:
        """The changes of one patch of so many channels; ``rng`` moves on by the same amount whatever the recipe."""
        shape = (channels, *self._patch_size)
        with global_generators(rng):
            return tuple(
                change
                for place, step in enumerate(self._steps)
                if step.get_parameters()["apply_transform"]
                for change in changes_of(place, step.transform, _parameters(step.transform, shape), shape)
            )


def _parameters(transform: BasicTransform, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a transform draws for an image (C, Z, Y, X) of a shape; there are no voxels, and no noise is drawn."""
    # Multiplicative noise draws as many numbers as its image has voxels, which here would be thrown away.
    size = (shape[0], 1, 1, 1) if isinstance(transform, MultiplicativeNoiseTransform) else shape
    drawn: dict[str, Any] = transform.get_parameters(image=torch.zeros(()).expand(size))
    return drawn


def changes_of(
    step: int, transform: BasicTransform, drawn: Mapping[str, Any], shape: Sequence[int]
) -> Iterator[Change]:
    """What a transform of :class:`nnssl_mae.patches.intensity.IntensityAugmentation` does, as numbers.

    Args:
        step: its place in the recipe.
        transform: it.
        drawn: by its ``get_parameters``.
        shape: of the image, (C, Z, Y, X).
    """
    for channel in range(shape[0]):
        for kind, axis, values in _READERS[type(transform)](drawn, channel, shape):
            yield Change(step, kind, channel, torch.as_tensor(values, dtype=torch.float32), axis)


_Read = Iterator[tuple[str, int, Any]]
"""Kind, axis and values of the changes of a channel."""


def _additive(drawn: Mapping[str, Any], channel: int, shape: Sequence[int]) -> _Read:
    yield "additive_noise", 0, drawn["sigmas"][channel]


def _multiplicative(drawn: Mapping[str, Any], channel: int, shape: Sequence[int]) -> _Read:
    yield "multiplicative_noise", 0, drawn["sigmas"][channel]


def _blur(drawn: Mapping[str, Any], channel: int, shape: Sequence[int]) -> _Read:
    for axis, (size, sigma) in enumerate(zip(shape[1:], drawn["sigmas"][channel], strict=True)):
        yield "lines", axis, blur_matrix(size, sigma)


def _ghosting(drawn: Mapping[str, Any], channel: int, shape: Sequence[int]) -> _Read:
    axis = drawn["axes"][channel]
    yield "lines", axis, ghosting_matrix(shape[1 + axis], drawn["alphas"][channel], drawn["repeats"][channel])


def _ringing(drawn: Mapping[str, Any], channel: int, shape: Sequence[int]) -> _Read:
    axis = drawn["axes"][channel]
    yield "lines", axis, ringing_matrix(shape[1 + axis], drawn["kept"][channel])


def _low_resolution(drawn: Mapping[str, Any], channel: int, shape: Sequence[int]) -> _Read:
    for axis, (size, zoom) in enumerate(zip(shape[1:], drawn["scales"][channel].tolist(), strict=True)):
        yield "lines", axis, low_resolution_matrix(size, zoom)


def _shading(drawn: Mapping[str, Any], channel: int, shape: Sequence[int]) -> _Read:
    yield "bias_field", 0, drawn["coefficients"][channel]


def _contrast(drawn: Mapping[str, Any], channel: int, shape: Sequence[int]) -> _Read:
    yield "inverted_gamma" if drawn["invert_image"][channel] else "gamma", 0, drawn["gamma"][channel]


_READERS: Mapping[type[BasicTransform], Callable[[Mapping[str, Any], int, Sequence[int]], _Read]] = {
    GaussianNoiseTransform: _additive,
    GaussianBlurTransform: _blur,
    MultiplicativeNoiseTransform: _multiplicative,
    GhostingTransform: _ghosting,
    GibbsRingingTransform: _ringing,
    SimulateLowResolutionTransform: _low_resolution,
    BiasFieldTransform: _shading,
    GammaTransform: _contrast,
}


def add_noise(images: torch.Tensor, sigmas: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Adds noise.

    Args:
        images: (N, 1, D, H, W).
        sigmas: standard deviations (N,), in units of the images.
        noise: (N, 1, D, H, W), standard deviation 1.

    Returns:
        A new tensor (N, 1, D, H, W).
    """
    return images + _each(sigmas) * noise


def multiply_noise(images: torch.Tensor, sigmas: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Multiplies each voxel by 1 + noise; ``sigmas`` (N,) relative to the voxel, the rest as :func:`add_noise`."""
    return images * (1 + _each(sigmas) * noise)


def apply_bias_field(images: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Multiplies images (N, 1, D, H, W) by the field of :func:`nnssl_mae.patches.shading.bias_field`.

    ``coefficients``: (N, 4, 4, 4), on the device of the images. Returns a new tensor (N, 1, D, H, W).
    """
    with images.device:  # where the positions are made
        return images * bias_field(images.shape[2:], coefficients)[:, None]


def apply_gamma(images: torch.Tensor, exponents: torch.Tensor, inverted: bool = False) -> torch.Tensor:
    """Voxels, scaled to [0, 1] by the range of each image, to a power; the range stays.

    Args:
        images: (N, 1, D, H, W).
        exponents: (N,).
        inverted: treats the negative of each image instead.

    Returns:
        A new tensor (N, 1, D, H, W).
    """
    sign = -1 if inverted else 1
    voxels = sign * images
    low, high = (_each(end) for end in voxels.flatten(1).aminmax(dim=1))
    unit = (voxels - low) / (high - low).clamp(min=_SMALLEST_RANGE)
    return sign * (unit ** _each(exponents) * (high - low) + low)


NOISES: Mapping[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "additive_noise": add_noise,
    "multiplicative_noise": multiply_noise,
}
"""Changes that take noise."""

CHANGES: Mapping[str, Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    "lines": apply_along,
    "bias_field": lambda images, values, _: apply_bias_field(images, values),
    "gamma": lambda images, values, _: apply_gamma(images, values),
    "inverted_gamma": lambda images, values, _: apply_gamma(images, values, inverted=True),
}
"""The other changes, as functions of images, values (N, ...) and axis."""


def _each(values: torch.Tensor) -> torch.Tensor:
    """(N,) as a factor of images (N, 1, D, H, W)."""
    return values.view(-1, 1, 1, 1, 1)
