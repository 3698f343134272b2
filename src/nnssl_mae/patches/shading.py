"""Intensity changes that multiply each voxel by a factor of its own: uneven coils and multiplicative noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import sample_scalar
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform

_ORDER = 3  # of the bias field's polynomial


class BiasFieldTransform(ImageOnlyTransform):
    """Multiplies each channel by a random bias field of its own, see ``bias_field``.

    Args:
        largest_coefficient: coefficients are drawn uniformly from plus or minus this number; 0 changes nothing.
    """

    def __init__(self, largest_coefficient: float) -> None:
        super().__init__()
        self.largest_coefficient = largest_coefficient

    def get_parameters(self, image: torch.Tensor, **_: Any) -> dict[str, Any]:
        """Draws the coefficients (C, 4, 4, 4) for ``image`` (C, Z, Y, X)."""
        size = (len(image), *[_ORDER + 1] * 3)
        drawn = np.random.uniform(-self.largest_coefficient, self.largest_coefficient, size)
        order = np.indices(size[1:]).sum(0)
        # The constant term would scale the whole patch, which is no shading.
        return {"coefficients": torch.from_numpy(drawn * ((order > 0) & (order <= _ORDER))).float()}

    def _apply_to_image(self, img: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        return img * bias_field(img.shape[1:], coefficients)


class MultiplicativeNoiseTransform(ImageOnlyTransform):
    """Multiplies each voxel by 1 + Gaussian noise, the simplest model of speckle; each channel has its own sigma.

    Args:
        sigma: range of the noise's standard deviation, relative to the voxel's value.
    """

    def __init__(self, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.sigma = sigma

    def get_parameters(self, image: torch.Tensor, **_: Any) -> dict[str, Any]:
        """Draws a sigma for each channel and the noise (C, Z, Y, X), standard deviation 1."""
        return {"sigmas": [sample_scalar(self.sigma) for _ in range(len(image))], "noise": torch.randn(image.shape)}

    def _apply_to_image(self, img: torch.Tensor, sigmas: Sequence[float], noise: torch.Tensor) -> torch.Tensor:
        return img * (1 + torch.tensor(sigmas).view(-1, 1, 1, 1) * noise)


def bias_field(shape: Sequence[int], coefficients: torch.Tensor) -> torch.Tensor:
    """The exponential of a polynomial in the voxel's position: smooth, and positive everywhere.

    Polynomials for the logarithm of the field come from Van Leemput et al. 1999 (IEEE Transactions on Medical
    Imaging 18:885-896), drawing their coefficients at random from Sudre et al. 2017 (Medical Image Analysis
    38:50-64):

        field(z, y, x) = exp(sum over i, j, k of coefficients[i, j, k] z^i y^j x^k)

    Args:
        shape: voxels (Z, Y, X); positions run from -1 to 1 between the outer faces of the patch.
        coefficients: (C, I, J, K).

    Returns:
        (C, Z, Y, X), factors without a unit.
    """
    powers = [
        _positions(n)[:, None] ** torch.arange(terms) for n, terms in zip(shape, coefficients.shape[1:], strict=True)
    ]
    return torch.einsum("cijk,zi,yj,xk->czyx", coefficients, *powers).exp()


def _positions(voxels: int) -> torch.Tensor:
    """Voxel centres between -1 and 1, so that a single voxel lies at 0."""
    return (2 * torch.arange(voxels) + 1) / voxels - 1
