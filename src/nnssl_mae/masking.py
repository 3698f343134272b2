"""Which blocks of a patch are hidden, and hiding them.

Polarity everywhere: ``hidden`` is True where the network must not see. A mask is kept at block resolution,
``(B, 1, d, h, w)`` for a patch ``(B, C, d*b0, h*b1, w*b2)``; a mask of full resolution is never built on the hot path.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def block_edges(patch_size: Sequence[int], block_size: int) -> tuple[int, int, int]:
    """The block edge of each axis: the largest divisor of the patch edge that is at most ``block_size``.

    Patches that nnU-Net planned for anisotropic data can have edges that 16 does not divide.
    """
    a, b, c = (max(e for e in range(1, min(block_size, size) + 1) if size % e == 0) for size in patch_size)
    return a, b, c


def sample_hidden(grid: Sequence[int], ratio: float, rng: np.random.Generator) -> torch.Tensor:
    """Draws which blocks of one patch are hidden, uniformly, exactly ``floor(ratio * n)`` of them.

    At least one block is hidden and at least one stays visible.

    Args:
        grid: blocks along each axis, (d, h, w).
        ratio: share to hide, between 0 and 1.
        rng: the only source of randomness.

    Returns:
        bool tensor (1, d, h, w), True = hidden.
    """
    n_blocks = int(np.prod(grid))
    if n_blocks < 2:
        raise ValueError(f"a patch of {n_blocks} block cannot be hidden in part; use smaller blocks")
    # A tiny tolerance, or 0.7 * 10 = 7.000000000000001-style rounding decides about a block.
    n_hidden = min(max(int(ratio * n_blocks + 1e-6), 1), n_blocks - 1)
    hidden = np.zeros(n_blocks, dtype=bool)
    hidden[rng.permutation(n_blocks)[:n_hidden]] = True
    return torch.from_numpy(hidden.reshape(1, *grid))


def hide(volumes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Sets hidden blocks to zero, the mean in z-scored space.

    Args:
        volumes: (B, C, D, H, W).
        hidden: bool (B, 1, d, h, w), True = hidden.

    Returns:
        A new tensor of the shape of ``volumes``.
    """
    visible = (~hidden).to(volumes.dtype)[:, :, :, None, :, None, :, None]
    return (as_blocks(volumes, hidden) * visible).view_as(volumes)


def as_blocks(volumes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """A view (B, C, d, b0, h, b1, w, b2) of contiguous volumes (B, C, D, H, W) on the grid of ``hidden``."""
    shape, grid = volumes.shape, hidden.shape[2:]
    if any(size % blocks for size, blocks in zip(shape[2:], grid, strict=True)):
        raise ValueError(f"a patch of {tuple(shape[2:])} voxels cannot be divided into {tuple(grid)} blocks")
    split = [part for size, n in zip(shape[2:], grid, strict=True) for part in (n, size // n)]
    return volumes.reshape(shape[0], shape[1], *split)


def hidden_voxels(hidden: torch.Tensor, patch_size: Sequence[int]) -> torch.Tensor:
    """The mask at voxel resolution, (B, 1, D, H, W). For validation and pictures only."""
    for axis, size in enumerate(patch_size, start=2):
        hidden = hidden.repeat_interleave(size // hidden.shape[axis], dim=axis)
    return hidden
