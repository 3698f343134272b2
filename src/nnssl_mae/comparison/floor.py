"""The no-image floor: what the training labels alone predict.

A model that has learned to look at images stands clearly above it; a comparison of models that do not says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnssl_mae.errors import UserError
from nnssl_mae.files import unique_word

LabelValues = NDArray[np.int32]


def majority_vote(labels: Sequence[Path], like: Path) -> LabelValues:
    """The most frequent label of the training cases at the same relative position: (z, y, x) on the grid of ``like``.

    Each voxel looks up, in each training label map, the voxel whose centre lies nearest at the same share of the way
    through each axis; on one grid that is the same voxel. The smaller number wins a tie, so background always does.

    Args:
        labels: label maps of the training cases, in a format that SimpleITK reads. Axes must mean the same in all.
        like: any image or label map of the case to predict; only its grid is looked at.

    Raises:
        UserError: there are no training labels, or a file cannot be read or has other dimensions.
    """
    if not labels:
        raise UserError(
            "The no-image floor needs at least one training label map; give the labels of the training cases"
        )
    return _vote([_read(path) for path in labels], _read(like).values.shape)


def write_floor(training_labels: Sequence[Path], cases: Mapping[str, Path], out: Path, ending: str = ".nii.gz") -> None:
    """Writes the floor's prediction of each case, to be compared as an arm of test predictions.

    Args:
        training_labels: label maps of the training cases; none of ``cases`` may be among them, by name or file.
        cases: an image or label map by case; only its grid (and where it lies) is looked at.
        out: folder; is made.
        ending: of the files written.

    Raises:
        UserError: as :func:`majority_vote`; or a case is also a training case.
    """
    known_paths = {path.resolve() for path in training_labels}
    known_names = {path.name.removesuffix(ending) for path in training_labels}
    for case, path in cases.items():
        if case in known_names or path.resolve() in known_paths:
            raise UserError(f"Case {case} ({path}) is among the training labels; the floor would know the answer")
    maps = [_read(path) for path in training_labels]
    if not maps:
        raise UserError(
            "The no-image floor needs at least one training label map; give the labels of the training cases"
        )
    out.mkdir(parents=True, exist_ok=True)
    votes: dict[tuple[int, ...], LabelValues] = {}
    for case, path in cases.items():
        like = _read(path)
        shape = like.values.shape
        if shape not in votes:
            votes[shape] = _vote(maps, shape)
        _write(votes[shape], like.image, out / f"{case}{ending}")


@dataclass(frozen=True)
class _Map:
    values: LabelValues
    image: Any


def _read(path: Path) -> _Map:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read; the no-image floor needs it: put it back") from error
    return _Map(np.round(sitk.GetArrayFromImage(image)).astype(np.int32), image)


def _vote(maps: Sequence[_Map], shape: tuple[int, ...]) -> LabelValues:
    seen = [_at_same_share(one.values, shape) for one in maps]
    winner = np.zeros(shape, np.int32)
    most = np.zeros(shape, np.int32)
    for label in np.unique(np.concatenate([np.unique(values) for values in seen])):  # ascending, so ties stay
        votes = sum((values == label).astype(np.int32) for values in seen)
        more = votes > most
        winner[more], most = label, np.maximum(votes, most)
    return winner


def _at_same_share(values: LabelValues, shape: tuple[int, ...]) -> LabelValues:
    """Nearest neighbours on a grid of another shape that spans the same."""
    if values.ndim != len(shape):
        raise UserError(f"The no-image floor cannot put label maps of {values.ndim} axes on {len(shape)}; use one kind")
    places = [(2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(shape, values.shape, strict=True)]
    return values[np.ix_(*places)]


def _write(values: LabelValues, like: Any, path: Path) -> None:
    image = sitk.GetImageFromArray(values.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16))
    image.CopyInformation(like)
    temporary = path.with_name(f"{unique_word()}.{path.name}")  # SimpleITK chooses the format by the ending
    try:
        sitk.WriteImage(image, str(temporary), True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
