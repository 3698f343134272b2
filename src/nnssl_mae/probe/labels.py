"""Label maps of scans: which belongs to which, and bringing them onto the grid of the preprocessed scan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.read import ScanProblem, read_voxels
from nnssl_mae.catalogue.walk import ENDINGS
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json
from nnssl_mae.scans.preprocess import in_box, orientation_of

_CHANNEL = re.compile(r"_\d{4}$")
_LARGEST_SHIFT = 0.1  # voxels; affines that different programs wrote differ in the last digits
_NIFTI = (".nii", ".nii.gz")
_MOST_VALUES = 200
_REPEATED_READERS = ("NibabelIOWithReorient", "SimpleITKIO")

LabelMap = NDArray[np.int32]


@dataclass(frozen=True)
class LabelNames:
    """What the numbers in label maps mean; empty where no ``dataset.json`` lies beside the folder."""

    names: Mapping[int, str]
    ignore: int | None = None
    """Voxels with this number are not looked at."""

    def of(self, number: int) -> str:
        """The name of a number, or the number itself."""
        return self.names.get(number, str(number))


def match_labels(scans: Sequence[Scan], folder: Path) -> dict[str, Path]:
    """The label file of each scan that has one, by the scan's case.

    ``labels/x.nii.gz`` belongs to ``x.nii.gz`` and, as nnU-Net names images, to ``x_0000.nii.gz``; the endings may
    differ.

    Raises:
        UserError: no such folder, or not one scan has a label file.
    """
    if not folder.is_dir():
        raise UserError(f"--labels {folder} is no folder; give the folder that holds one label file for each scan")
    files = {stem(path): path for path in sorted(folder.iterdir()) if stem(path) != path.name}
    found = {
        scan.case: files[name]
        for scan in scans
        for name in [next((n for n in (stem(scan.path), _CHANNEL.sub("", stem(scan.path))) if n in files), None)]
        if name is not None
    }
    if not found:
        example = f"; {scans[0].path.name} would need {_CHANNEL.sub('', stem(scans[0].path))}.nii.gz" if scans else ""
        raise UserError(
            f"No label file in {folder} has the name of a scan (it holds {len(files)} files with endings of images)"
            f"{example}"
        )
    return found


def stem(path: Path) -> str:
    """The file's name without the ending of an image; the whole name where it has none."""
    ending = next((each for each in sorted(ENDINGS, key=len, reverse=True) if path.name.lower().endswith(each)), "")
    return path.name[: len(path.name) - len(ending)] if ending else path.name


def label_names(folder: Path) -> LabelNames:
    """From the ``dataset.json`` in the folder or above it; regions, which are made of several numbers, have no name.

    Raises:
        UserError: the file is there and damaged.
    """
    file = next((each for each in (folder / "dataset.json", folder.parent / "dataset.json") if each.is_file()), None)
    if file is None:
        return LabelNames({})
    labels = read_json(file, "repair it, or move it away: it is read for the names of labels only").get("labels")
    if not isinstance(labels, dict):
        return LabelNames({})
    numbers = {str(name): value for name, value in labels.items() if type(value) is int}
    return LabelNames({value: name for name, value in numbers.items() if name != "ignore"}, numbers.get("ignore"))


def read_labels(
    file: Path,
    scan: Scan,
    plans: PlansManager,
    configuration: ConfigurationManager,
    properties: Mapping[str, Any],
    shape: Sequence[int],
) -> LabelMap:
    """A label map on the grid of its preprocessed scan: read, turned, cut and resampled as the scan was.

    The resampling is nnU-Net's own for segmentations, by the name in the checkpoint, so the result is what nnU-Net
    would train on.

    Args:
        file: the label map, on the grid of the scan's file.
        scan: it belongs to.
        plans: for reader and axis order.
        configuration: of the plans, for spacing and resampling.
        properties: of the preprocessed scan, :class:`nnssl_mae.scans.preprocess.Preprocessed`.
        shape: of the preprocessed scan, (Z, Y, X).

    Raises:
        UserError: damaged, on another grid, or no label map.
    """
    _check_grid(file, scan.path)
    voxels = _read(file, scan, plans)
    axes = [0, *(axis + 1 for axis in plans.transpose_forward)]
    voxels = voxels.transpose(axes)
    if tuple(voxels.shape[1:]) != tuple(properties["shape_before_cropping"]):
        raise _other_grid(file, scan.path, f"{voxels.shape[1:]} voxels for {properties['shape_before_cropping']}")
    _check_values(voxels, file)
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    cropped = np.ascontiguousarray(voxels[in_box(properties["bbox_used_for_cropping"])])
    resampled = configuration.resampling_fn_seg(cropped, tuple(shape), spacing, configuration.spacing)
    return np.asarray(resampled)[0].round().astype(np.int32)


def _read(file: Path, scan: Scan, plans: PlansManager) -> NDArray[np.float32]:
    """(1, Z, Y, X) by the reader of the plans."""
    reader = plans.plans["image_reader_writer"]
    if reader not in _REPEATED_READERS:
        voxels: NDArray[np.float32] = plans.image_reader_writer_class().read_seg(str(file))[0]
        return voxels
    try:
        return read_voxels(Scan(file, scan.case, scan.subject), orientation_of(reader))[0]
    except ScanProblem as problem:
        raise UserError(f"The label file {file} {problem.detail}; repair it or leave its scan out") from problem


def _check_grid(file: Path, scan: Path) -> None:
    """Refuses labels whose header puts them elsewhere: turning by the header would then mix voxels up."""
    if not all(path.name.lower().endswith(_NIFTI) for path in (file, scan)):
        return  # the number of voxels is still compared
    try:
        labels = nibabel.load(file)
    except Exception as error:  # nibabel raises many kinds for damaged files; the text goes to the user
        raise UserError(f"The label file {file} cannot be read ({type(error).__name__}: {error}); repair it") from error
    image = nibabel.load(scan)
    if image.shape[:3] != labels.shape[:3]:
        raise _other_grid(file, scan, f"{labels.shape} voxels for {image.shape}")
    shape = [(0, size - 1) for size in image.shape[:3]]
    places = np.array([(*place, 1) for place in product(*shape)])
    shift = np.linalg.norm((places @ (image.affine - labels.affine).T)[:, :3], axis=1).max()
    voxels = float(shift / min(image.header.get_zooms()[:3]))
    if not voxels <= _LARGEST_SHIFT:
        raise _other_grid(file, scan, f"its affine moves it by {voxels:.3g} voxels")


def _other_grid(file: Path, scan: Path, what: str) -> UserError:
    return UserError(f"The label file {file} is not on the grid of {scan} ({what}); resample it onto its scan")


def _check_values(voxels: NDArray[np.float32], file: Path) -> None:
    if not np.isfinite(voxels).all():
        raise UserError(f"The label file {file} contains NaN or infinite voxels; repair it or leave its scan out")
    values = np.unique(voxels)
    if len(values) > _MOST_VALUES or (values != np.round(values)).any():
        raise UserError(
            f"The file {file} holds {len(values)} different values from {values[0]:g} to {values[-1]:g}, which are no "
            "labels; give a folder of label maps with --labels"
        )
