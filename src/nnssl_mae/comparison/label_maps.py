"""Reads label maps as nnU-Net reads them, by its own readers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl_mae.errors import UserError
from nnssl_mae.folders import silence

TIFF_READER = "Tiff3DIO"
_MODULES = {
    "SimpleITKIO": "simpleitk_reader_writer",
    "NibabelIO": "nibabel_reader_writer",
    "NibabelIOWithReorient": "nibabel_reader_writer",
    "NaturalImage2DIO": "natural_image_reader_writer",
    TIFF_READER: "tif_reader_writer",
}
_READER_OF_ENDING = {
    ".nii.gz": "SimpleITKIO",
    ".nii": "SimpleITKIO",
    ".nrrd": "SimpleITKIO",
    ".mha": "SimpleITKIO",
    ".gipl": "SimpleITKIO",
    ".png": "NaturalImage2DIO",
    ".bmp": "NaturalImage2DIO",
    ".tiff": TIFF_READER,
}
_RELATIVE_TOLERANCE = 1e-3  # headers hold 32-bit numbers


@dataclass(frozen=True)
class LabelMap:
    """One label map on its grid."""

    values: NDArray[np.int32]
    """(z, y, x); -1 where the file holds no whole number."""
    spacing: tuple[float, ...] | None
    """mm, in the order of the axes of ``values``; none where the file tells none."""

    def has_grid_of(self, other: LabelMap) -> bool:
        """Whether both have one shape and, as far as their files tell, one spacing.

        Origin and direction are not compared: nnU-Net's own evaluation does not do so either, and label files often
        differ there from their images, whose geometry predictions take over. Nor is the spacing of an axis of one
        voxel, which nnU-Net invents for flat images.
        """
        if self.values.shape != other.values.shape:
            return False
        mine, theirs = self.flat().spacing, other.flat().spacing
        if mine is None or theirs is None:
            return True
        return bool(np.allclose(mine, theirs, rtol=_RELATIVE_TOLERANCE, atol=0))

    def flat(self) -> LabelMap:
        """Without the first axis of one voxel, (y, x), if there is one."""
        axis = next((axis for axis, n in enumerate(self.values.shape) if n == 1), None)
        if axis is None:
            return self
        spacing = None if self.spacing is None else self.spacing[:axis] + self.spacing[axis + 1 :]
        return LabelMap(self.values.squeeze(axis), spacing)

    def with_spacing(self, spacing: tuple[float, ...] | None) -> LabelMap:
        """With this spacing if it tells none itself."""
        return self if self.spacing is not None else LabelMap(self.values, spacing)


def choose_reader(
    plans: Mapping[str, Any], dataset_json: Mapping[str, Any], ending: str, example: Path, place: Path
) -> str:
    """The name of the reader that nnU-Net would use.

    Args:
        plans: the content of ``plans.json``, or nothing.
        dataset_json: the content of ``dataset.json``.
        ending: of the label files.
        example: one of them; looked into only where an ending fits two readers.
        place: folder of the model or of predictions whose files these are.

    Raises:
        UserError: it is none of nnU-Net's own.
    """
    by_plans = plans.get("image_reader_writer")
    asked = by_plans or dataset_json.get("overwrite_image_reader_writer")
    if asked in (None, "None"):
        asked = _tif_reader(example) if ending.lower() == ".tif" else _READER_OF_ENDING.get(ending.lower(), ending)
    if not isinstance(asked, str) or asked not in _MODULES:
        source = place / ("plans.json" if asked == by_plans else "dataset.json")
        raise UserError(
            f"{source} asks for the reader {asked!r}, which nnU-Net does not bring along; compare works with "
            f"{', '.join(_MODULES)}: put back the file that nnU-Net wrote there"
        )
    return asked


def read_label_map(path: Path, reader: str) -> LabelMap:
    """Reads a file with the reader of that name.

    Raises:
        Exception: whatever the libraries raise for a file that is missing, damaged or of another kind.
    """
    module = importlib.import_module(f"nnunetv2.imageio.{_MODULES[reader]}")
    with silence():  # the reader of TIFF prints where there is no spacing
        content, properties = getattr(module, reader)().read_seg(str(path))
    if content.ndim != 4 or content.shape[0] != 1:
        raise ValueError(f"holds {content.shape[0]} channels, not one label map")
    spacing = tuple(float(mm) for mm in properties["spacing"]) if _has_spacing(path, reader) else None
    return LabelMap(_whole_numbers(content[0]), spacing)


def sidecar(path: Path, reader: str) -> Path | None:
    """Where a file's spacing stands if not in itself: TIFF's, which nnU-Net does not copy to gt_segmentations."""
    return path.with_suffix(".json") if reader == TIFF_READER else None


def _whole_numbers(values: NDArray[Any]) -> NDArray[np.int32]:
    """nnU-Net compares what is read with whole numbers exactly; so what is none of them belongs to no label."""
    with np.errstate(invalid="ignore"):
        whole = (values == np.floor(values)) & (values >= 0) & (values <= np.iinfo(np.int32).max // 2)
    return np.where(whole, values, -1).astype(np.int32)


def _has_spacing(path: Path, reader: str) -> bool:
    if (beside := sidecar(path, reader)) is not None:
        return beside.is_file()
    return reader != "NaturalImage2DIO"


def _tif_reader(example: Path) -> str:
    from skimage import io

    try:
        return "NaturalImage2DIO" if io.imread(example).ndim == 2 else TIFF_READER
    except Exception as error:  # the libraries raise many kinds for a damaged file
        raise UserError(f"{example} cannot be read ({error}); put back the reference labels") from error
