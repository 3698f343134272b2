"""The axes of a dataset's cases: what nnU-Net measured in one axis order, in the order of another reader.

nnU-Net measures and plans in the order in which its reader gives the axes. Where the checkpoint's volumes were turned
to one orientation (RAS) and nnU-Net's own reader takes them as they are stored, slices may be thick along another axis.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import aff2axcodes, io_orientation

from nnssl_mae.downstream.labelled import Labelled
from nnssl_mae.folders import nnunet_folder

ORIENTING_READER = "NibabelIOWithReorient"
_AXES = (0, 1, 2)
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """Of all training cases, in the axis order of the data as we preprocess them."""

    spacings: npt.NDArray[np.float64]
    """(cases, 3) in mm."""
    shapes: npt.NDArray[np.float64]
    """(cases, 3) in voxels, after nnU-Net's cropping."""
    orders: frozenset[Axes]
    """For each of our axes the axis of nnU-Net's own preprocessed data; several where cases are stored differently."""
    is_certain: bool
    """Whether the files could be asked how they are stored."""

    @property
    def median_spacing(self) -> list[float]:
        """In mm."""
        return [float(edge) for edge in np.median(self.spacings, axis=0)]


def geometry(labelled: Labelled, reader: str, transpose_forward: Sequence[int]) -> Geometry:
    """Spacings and shapes as nnU-Net's fingerprint has them, with our order of axes.

    Args:
        labelled: the dataset.
        reader: nnU-Net's reader that will read it.
        transpose_forward: what will be done to the axes then.
    """
    spacings = np.array(labelled.fingerprint["spacings"], dtype=np.float64)
    shapes = np.array(labelled.fingerprint["shapes_after_crop"], dtype=np.float64)
    turns = _turns(labelled, reader)
    orders = [tuple(turn[axis] for axis in transpose_forward) for turn in turns or [_AXES] * len(spacings)]
    stock = [int(axis) for axis in labelled.stock["transpose_forward"]]
    return Geometry(
        spacings=np.array([case[list(order)] for case, order in zip(spacings, orders, strict=True)]),
        shapes=np.array([case[list(order)] for case, order in zip(shapes, orders, strict=True)]),
        orders=frozenset(tuple(stock.index(axis) for axis in order) for order in orders),
        is_certain=turns is not None,
    )


def reordered(values: Sequence[Any], order: Axes) -> list[Any]:
    """Values along nnU-Net's axes along ours."""
    return [values[axis] for axis in order]


def _turns(labelled: Labelled, reader: str) -> list[Axes] | None:
    """For each case and axis of ``reader`` the axis of the reader nnU-Net measured with; None if that is unknown."""
    measured_with = str(labelled.stock["image_reader_writer"])
    if (reader == ORIENTING_READER) == (measured_with == ORIENTING_READER):
        return [_AXES] * labelled.cases
    images = _first_images(labelled)
    if len(images) != labelled.cases:
        return None
    turns = [_axes_in_file(image) for image in images]
    if any(turn is None for turn in turns):
        return None
    known = [turn for turn in turns if turn is not None]
    if reader == ORIENTING_READER:
        return known
    return [tuple(turn.index(axis) for axis in _AXES) for turn in known]


def _first_images(labelled: Labelled) -> list[Path]:
    """The first channel of each case, in the order of the fingerprint; empty if the raw data are not here."""
    raw = nnunet_folder("nnUNet_raw") / labelled.name
    if isinstance(listed := labelled.dataset_json.get("dataset"), dict):
        try:
            return [raw / os.path.expandvars(case["images"][0]) for case in listed.values()]
        except (KeyError, IndexError, TypeError):
            return []
    # Not by nnU-Net's own function, which starts a dozen processes for it.
    last = f"_0000{labelled.file_ending}"
    names = sorted(file.name.removesuffix(last) for file in raw.glob(f"imagesTr/*{last}"))
    return [raw / "imagesTr" / f"{name}{last}" for name in names]


def stored_orientations(labelled: Labelled) -> dict[str, int]:
    """How many cases are stored in which orientation, such as ``LPS``, most first; empty if that is not known."""
    try:
        counts = Counter("".join(aff2axcodes(nibabel.load(image).affine)) for image in _first_images(labelled))
    except (OSError, ValueError, TypeError, ImageFileError):
        return {}
    return dict(counts.most_common())


def _axes_in_file(image: Path) -> Axes | None:
    """For each axis of the volume turned to RAS the axis as stored, both from the slowest; None if unreadable."""
    try:
        sources = io_orientation(nibabel.load(image).affine)[:, 0]
    except (OSError, ValueError, ImageFileError):
        return None
    if not np.isfinite(sources).all():
        return None
    stored = {int(turned): axis for axis, turned in enumerate(sources)}
    return tuple(2 - stored[2 - axis] for axis in _AXES)
