"""Which blocks of a patch are hidden, and hiding them.

Polarity everywhere: ``hidden`` is True where the network must not see. A mask is kept at block resolution,
``(B, 1, d, h, w)`` for a patch ``(B, C, d*b0, h*b1, w*b2)``; a mask of full resolution is never built on the hot path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_AIR = 0.10  # a block with at most this share of head or body is air
_FEWEST_ELIGIBLE = 8  # with fewer, the ratio is too coarse and a patch teaches little


def block_edges(patch_size: Sequence[int], block_size: int) -> tuple[int, int, int]:
    """The block edge of each axis: the largest divisor of the patch edge that is at most ``block_size``.

    Patches that nnU-Net planned for anisotropic data can have edges that 16 does not divide.
    """
    a, b, c = (max(e for e in range(1, min(block_size, size) + 1) if size % e == 0) for size in patch_size)
    return a, b, c


def sample_ratio(ratio: float | tuple[float, float], rng: np.random.Generator) -> float:
    """The share to hide: the number itself, or one drawn uniformly from (low, high). A number needs no draw."""
    return float(rng.uniform(*ratio)) if isinstance(ratio, tuple) else ratio


def eligible_blocks(foreground: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Which blocks may be hidden when air may not: those with more than 10 % head or body.

    Args:
        foreground: (d, h, w), the share of head or body of each block, 0 to 1.
    """
    return np.asarray(foreground > _AIR)


def enough_to_hide(eligible: NDArray[np.bool_]) -> bool:
    """Whether a patch holds enough head or body: 8 eligible blocks, or all where it has fewer blocks than that."""
    return bool(eligible.sum() >= min(_FEWEST_ELIGIBLE, eligible.size))


def sample_hidden(
    grid: Sequence[int], ratio: float, rng: np.random.Generator, eligible: NDArray[np.bool_] | None = None
) -> torch.Tensor:
    """Draws which blocks of one patch are hidden, uniformly, exactly ``floor(ratio * n)`` of the n eligible ones.

    At least one block is hidden and at least one eligible block stays visible.

    Args:
        grid: blocks along each axis, (d, h, w).
        ratio: share to hide, between 0 and 1.
        rng: the only source of randomness.
        eligible: (d, h, w), True = may be hidden; None if all may.

    Returns:
        bool tensor (1, d, h, w), True = hidden.

    Raises:
        ValueError: fewer than two blocks are eligible.
    """
    blocks = np.arange(int(np.prod(grid))) if eligible is None else np.flatnonzero(eligible)
    if len(blocks) < 2:
        raise ValueError(f"a patch of {len(blocks)} block cannot be hidden in part; use smaller blocks")
    # A tiny tolerance, or 0.7 * 10 = 7.000000000000001-style rounding decides about a block.
    n_hidden = min(max(int(ratio * len(blocks) + 1e-6), 1), len(blocks) - 1)
    hidden = np.zeros(int(np.prod(grid)), dtype=bool)
    hidden[blocks[rng.permutation(len(blocks))[:n_hidden]]] = True
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
