"""The size of voxels in a prepared dataset beside that of its scans: resampling to much finer ones adds no detail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas

from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.recipes.pretraining import Recipe

_AXES = ["spacing_z", "spacing_y", "spacing_x"]
_MUCH_FINER = 2.0  # along every axis; thick slices alone are resampled on purpose


def voxel_line(plans: Mapping[str, Any], recipe: Recipe, rows: pandas.DataFrame) -> str:
    """``Voxel size: 1x1x1 mm (of the scans: 3x3x3 mm, median) ...``, axes z y x as ``--spacing`` takes them.

    Args:
        plans: of the dataset.
        recipe: decides whether scans are resampled.
        rows: of the catalogue: the scans that are prepared.
    """
    scans = _median_spacing(rows)
    if recipe.data.spacing == "native":
        return f"Voxel size: as in each scan{f' ({_in_words(scans)} mm, median)' if scans else ''}."
    # Plans hold the spacing with the axes in an order of their own.
    planned = plans["configurations"][CONFIGURATION]["spacing"]
    target = [float(planned[axis]) for axis in plans["transpose_backward"]]
    line = f"Voxel size: {_in_words(target)} mm"
    if not scans:
        return f"{line}."
    line += f" (of the scans: {_in_words(scans)} mm, median)"
    if not _is_much_finer(target, scans):
        return f"{line}."
    times = math.prod(scans) / math.prod(target)
    return (
        f"{line}: {times:.0f} times as many voxels as the scans hold; a larger --spacing, such as "
        f"'{_in_words(scans, ' ')}', makes fewer."
    )


def _median_spacing(rows: pandas.DataFrame) -> list[float]:
    """Median along z, y, x in mm; empty where no header tells one."""
    spacings = rows[_AXES].to_numpy(np.float64)
    usable = spacings[(np.isfinite(spacings) & (spacings > 0)).all(axis=1)]
    return [float(edge) for edge in np.median(usable, axis=0)] if len(usable) else []


def _is_much_finer(target: Sequence[float], scans: Sequence[float]) -> bool:
    """Compares the finest with the finest axis and so on: scans may be stored with their axes in any order."""
    return all(edge > _MUCH_FINER * new for new, edge in zip(sorted(target), sorted(scans), strict=True))


def _in_words(spacing: Sequence[float], between: str = "x") -> str:
    """``0.8x1x1``."""
    return between.join(f"{edge:.3g}" for edge in spacing)
