"""Pictures in which a person sees whether pre-training works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from nnssl_mae.files import whole_file

_COLUMNS = ("original", "hidden input", "reconstruction", "error (hidden voxels)")
_PLANES = ("axial", "coronal", "sagittal")
_ERROR_SHADES = colormaps["magma"].with_extremes(bad="0.6")


@dataclass(frozen=True)
class PreviewCase:
    """One patch: arrays (Z, Y, X); ``mask`` is bool, True = hidden; ``spacing`` is in mm, (z, y, x).

    ``excluded`` is bool, True = padding or an excluded region, which never counts; None if there is none.
    """

    name: str
    original: np.ndarray
    reconstruction: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    excluded: np.ndarray | None = None


def draw_preview(cases: Sequence[PreviewCase], path: Path, title: str) -> None:
    """Writes a PNG: three planes through the centre of each case.

    Visible blocks are shown as they are in the reconstruction (the network is not asked for them); the error is
    that of hidden voxels only, without what never counts.
    """
    rows = 3 * len(cases)
    figure = Figure(figsize=(9, 2.3 * rows + 0.8), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, 4, squeeze=False)
    for index, case in enumerate(cases):
        for plane, name in enumerate(_PLANES):
            _draw_plane(axes[3 * index + plane], case, plane, f"{case.name}\n{name}" if plane == 0 else name)
    for column, label in enumerate(_COLUMNS):
        axes[0][column].set_title(label, fontsize=10)
    if any(case.excluded is not None and case.excluded.any() for case in cases):
        axes[0][3].set_title(f"{_COLUMNS[3]}\ngrey: outside the scan, or excluded", fontsize=10)
    figure.suptitle(title, fontsize=11)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")


def _draw_plane(axes: Sequence[Any], case: PreviewCase, plane: int, label: str) -> None:
    def cut(volume: np.ndarray) -> np.ndarray:
        # Head up: nnU-Net's arrays count slices from the feet.
        return np.flipud(volume.take(volume.shape[plane] // 2, axis=plane))

    original, mask = cut(case.original), cut(case.mask)
    low, high = np.percentile(case.original, (0.5, 99.5))
    rows, columns = (edge for axis, edge in enumerate(case.spacing) if axis != plane)
    error = np.where(mask, np.abs(cut(case.reconstruction) - original), 0)
    if case.excluded is not None:
        error = np.ma.masked_where(cut(case.excluded), error)
    pictures = (
        original,
        np.where(mask, low, original),
        np.where(mask, cut(case.reconstruction), original),
        error,
    )
    for column, (axis, picture) in enumerate(zip(axes, pictures, strict=True)):
        limits = (0, (high - low) / 2) if column == 3 else (low, high)
        shades = _ERROR_SHADES if column == 3 else "gray"
        axis.imshow(picture, cmap=shades, vmin=limits[0], vmax=limits[1], aspect=rows / columns)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel(label, fontsize=9)
