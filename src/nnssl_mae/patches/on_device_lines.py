"""Changes of intensity that are linear along an axis, each as one small matrix an axis.

Blur, ghosts, ringing and low resolution treat every line of voxels along an axis alike and linearly. Whatever does so
is known from what it does to unit vectors: the matrix is what the CPU path makes of the identity. The device then
needs one matrix product an axis, the same for all four, and no result differs from the CPU path by more than rounding.
"""

from __future__ import annotations

import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import blur_dimension
from torch.nn.functional import interpolate

from nnssl_mae.patches.kspace import add_ghosts, cut_outer_lines


def blur_matrix(size: int, sigma: float) -> torch.Tensor:
    """Gaussian smoothing of lines of ``size`` voxels that go on as their mirror image: (size, size), float32.

    Args:
        size: voxels of a line.
        sigma: standard deviation in voxels, above 0.
    """
    return blur_dimension(torch.eye(size)[None], sigma, 0)[0]


def ghosting_matrix(size: int, alpha: float, repeats: int) -> torch.Tensor:
    """As :func:`nnssl_mae.patches.kspace.add_ghosts` along an axis of ``size`` voxels: (size, size), float32."""
    return add_ghosts(torch.eye(size)[..., None], 0, alpha, repeats)[..., 0]


def ringing_matrix(size: int, kept: float) -> torch.Tensor:
    """As :func:`nnssl_mae.patches.kspace.cut_outer_lines` along an axis of ``size`` voxels: (size, size), float32."""
    return cut_outer_lines(torch.eye(size)[..., None], 0, kept)[..., 0]


def low_resolution_matrix(size: int, zoom: float) -> torch.Tensor:
    """Nearest voxels of a line of ``size * zoom`` voxels, then linear interpolation back: (size, size), float32.

    Args:
        size: voxels of a line.
        zoom: length of the shorter line relative to ``size``; it is rounded to whole voxels.
    """
    units = torch.eye(size)[None]  # one line a channel
    small = interpolate(units, round(size * zoom), mode="nearest-exact")
    return interpolate(small, size, mode="linear")[0].T.contiguous()


def apply_along(images: torch.Tensor, matrices: torch.Tensor, axis: int) -> torch.Tensor:
    """Multiplies every line along an axis by the matrix of its image.

    Matrix products must be float32: with TF32, which nnU-Net leaves off, the result has three digits.

    Args:
        images: (N, 1, D, H, W), float32.
        matrices: (N, n, n) with n voxels along the axis, float32, on the device of ``images``.
        axis: 0 (D), 1 (H) or 2 (W).

    Returns:
        A new tensor (N, 1, D, H, W).
    """
    n, _, d, h, w = images.shape
    if axis == 0:
        return (matrices @ images.reshape(n, d, h * w)).view(images.shape)
    if axis == 1:
        return matrices[:, None, None] @ images
    return (images.reshape(n, d * h, w) @ matrices.transpose(1, 2)).view(images.shape)
