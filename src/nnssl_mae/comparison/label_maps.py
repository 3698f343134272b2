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

_MODULES = {
    "SimpleITKIO": "simpleitk_reader_writer",
    "NibabelIO": "nibabel_reader_writer",
    "NibabelIOWithReorient": "nibabel_reader_writer",
    "NaturalImage2DIO": "natural_image_reader_writer",
    "Tiff3DIO": "tif_reader_writer",
}
_READER_OF_ENDING = {
    ".nii.gz": "SimpleITKIO",
    ".nii": "SimpleITKIO",
    ".nrrd": "SimpleITKIO",
    ".mha": "SimpleITKIO",
    ".gipl": "SimpleITKIO",
    ".png": "NaturalImage2DIO",
    ".bmp": "NaturalImage2DIO",
    ".tiff": "Tiff3DIO",
}
_RELATIVE_TOLERANCE = 1e-3  # headers hold 32-bit numbers


@dataclass(frozen=True)
class LabelMap:
    """One label map on its grid."""

    values: NDArray[np.int32]
    """(z, y, x), or (y, x) of a flat image; -1 where the file holds no whole number."""
    spacing: tuple[float, ...] | None
    """mm, in the order of the axes of ``values``; none where the format holds none."""

    def has_grid_of(self, other: LabelMap) -> bool:
        """Whether both have one shape and, as far as their files tell, one spacing.

        Origin and direction are not compared: nnU-Net's own evaluation does not do so either, and label files often
        differ there from their images, whose geometry predictions take over.
        """
        if self.values.shape != other.values.shape:
            return False
        if self.spacing is None or other.spacing is None:
            return True
        return bool(np.allclose(self.spacing, other.spacing, rtol=_RELATIVE_TOLERANCE, atol=0))


def choose_reader(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], ending: str, example: Path) -> str:
    """The name of the reader that nnU-Net would use.

    Args:
        plans: the content of ``plans.json``, or nothing.
        dataset_json: the content of ``dataset.json``.
        ending: of the label files.
        example: one of them; looked into only where an ending fits two readers.

    Raises:
        UserError: it is none of nnU-Net's own.
    """
    asked = plans.get("image_reader_writer") or dataset_json.get("overwrite_image_reader_writer")
    if asked in (None, "None"):
        asked = _tif_reader(example) if ending.lower() == ".tif" else _READER_OF_ENDING.get(ending.lower(), ending)
    if asked not in _MODULES:
        raise UserError(
            f"Files such as {example} are to be read by '{asked}', which nnU-Net does not bring along; "
            f"compare works with {', '.join(_MODULES)}"
        )
    return str(asked)


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
    return _flattened(_whole_numbers(content[0]), spacing)


def _whole_numbers(values: NDArray[Any]) -> NDArray[np.int32]:
    """nnU-Net compares what is read with whole numbers exactly; so what is none of them belongs to no label."""
    with np.errstate(invalid="ignore"):
        whole = (values == np.floor(values)) & (values >= 0) & (values <= np.iinfo(np.int32).max // 2)
    return np.where(whole, values, -1).astype(np.int32)


def _flattened(values: NDArray[np.int32], spacing: tuple[float, ...] | None) -> LabelMap:
    """Without the axis of one voxel that a flat image has, whose spacing nnU-Net invents."""
    flat = [axis for axis, n in enumerate(values.shape) if n == 1]
    if not flat:
        return LabelMap(values, spacing)
    axis = flat[0]
    return LabelMap(values.squeeze(axis), spacing if spacing is None else spacing[:axis] + spacing[axis + 1 :])


def _has_spacing(path: Path, reader: str) -> bool:
    if reader == "Tiff3DIO":  # nnU-Net keeps it in a JSON file, which it does not copy to gt_segmentations
        return path.with_suffix(".json").is_file()
    return reader != "NaturalImage2DIO"


def _tif_reader(example: Path) -> str:
    from skimage import io

    try:
        return "NaturalImage2DIO" if io.imread(example).ndim == 2 else "Tiff3DIO"
    except Exception as error:  # the libraries raise many kinds for a damaged file
        raise UserError(f"{example} cannot be read ({error}); put back the reference labels") from error
