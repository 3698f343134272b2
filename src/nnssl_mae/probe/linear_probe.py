"""Can labels be read off frozen features by a linear classifier, on scans that it was not trained on?

Features of all stages are interpolated to voxels and put one after the other. A linear classifier and linear
interpolation can be exchanged, so whole patches are classified at the resolution of each stage and only the scores are
interpolated: the features of all voxels never exist at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from nnssl_mae.errors import UserError
from nnssl_mae.probe.encoders import Extractor, FeatureMaps
from nnssl_mae.probe.features import voxels_of
from nnssl_mae.probe.labels import LabelNames
from nnssl_mae.probe.linear import Classifier, Samples, balanced_accuracy, confusion, dice, fit, folds_of
from nnssl_mae.probe.tiles import Corner, corners, inside, owners
from nnssl_mae.probe.volumes import ProbeScan

BACKGROUND = 0
PATCHES_A_SCAN = 12
_FOLDS = 4
_VOXELS_A_SCAN = 3000  # to train on, of all classes together
_FEWEST_A_CLASS = 50

Labels = NDArray[np.integer]


@dataclass(frozen=True)
class _Task:
    """One labelled scan as every contestant gets it: classes, the patches that cover it, and training voxels."""

    scan: ProbeScan
    classes: NDArray[np.int32]
    """(Z, Y, X), whole numbers from 0; -1 = not looked at."""
    corners: list[Corner]
    owner: NDArray[np.int16]
    """Which patch answers for a voxel; -1 = none."""
    points: NDArray[np.intp]
    """Training voxels (n, 3)."""


@dataclass(frozen=True)
class Exam:
    """The labelled scans, in folds, ready for any number of contestants."""

    tasks: tuple[_Task, ...]
    folds: tuple[tuple[int, ...], ...]
    values: tuple[int, ...]
    """The number in the label maps of each class."""
    names: tuple[str, ...]
    patch: tuple[int, ...]
    covered: float
    """Share of the voxels of head or body that the patches reach."""


@dataclass(frozen=True)
class Marks:
    """What a contestant reached, on scans that it was not trained on."""

    dice: Mapping[str, float]
    """Of each label but background, the mean over the test scans that have or were given it."""
    of_scans: Mapping[str, float]
    """Mean Dice over labels of each scan; NaN for one without any label."""
    balanced_accuracy: float
    """Mean over scans; background counts as a class."""

    @property
    def mean_dice(self) -> float:
        """Over labels."""
        found = [value for value in self.dice.values() if np.isfinite(value)]
        return float(np.mean(found)) if found else float("nan")


def set_exam(scans: Sequence[ProbeScan], patch: Sequence[int], names: LabelNames, seed: int) -> Exam:
    """Chooses folds, patches and training voxels, by nothing but the seed.

    Args:
        scans: those without labels are left out.
        patch: of the network, voxels.
        names: of the labels, and the one that is not looked at.
        seed: of the choice of voxels.

    Raises:
        UserError: fewer than two independent scans with labels, or nothing but background.
    """
    labelled = [scan for scan in scans if scan.labels is not None]
    if len({scan.group for scan in labelled}) < 2:
        raise UserError(
            f"The linear probe needs labels of at least two subjects, to train on some and test on others; "
            f"{len(labelled)} of the {len(scans)} scans have labels. Add labelled scans, look at more of them "
            "(--most-scans), or leave --labels out"
        )
    values = _values(labelled, names)
    tasks = tuple(_task(scan, patch, values, np.random.default_rng([seed, n])) for n, scan in enumerate(labelled))
    body = sum(int(scan.body.sum()) for scan in labelled)
    reached = sum(int((task.scan.body & (task.owner >= 0)).sum()) for task in tasks)
    return Exam(
        tasks=tasks,
        folds=tuple(map(tuple, folds_of([scan.group for scan in labelled], _FOLDS))),
        values=values,
        names=tuple(names.of(value) for value in values),
        patch=tuple(patch),
        covered=reached / body if body else 1.0,
    )


def _values(scans: Sequence[ProbeScan], names: LabelNames) -> tuple[int, ...]:
    """All numbers in the label maps, background first."""
    found = {int(value) for scan in scans if scan.labels is not None for value in np.unique(scan.labels)}
    labels = sorted(value for value in found if value > BACKGROUND and value != names.ignore)
    if not labels:
        raise UserError("The label maps hold nothing but background once they are preprocessed; check --labels")
    return (BACKGROUND, *labels)


def _task(scan: ProbeScan, patch: Sequence[int], values: Sequence[int], rng: np.random.Generator) -> _Task:
    assert scan.labels is not None
    places = corners(scan.volume.shape, patch, PATCHES_A_SCAN)
    owner = owners(scan.volume.shape, patch, places)
    classes = np.full(scan.labels.shape, -1, dtype=np.int32)
    for number, value in enumerate(values):
        classes[scan.labels == value] = number
    classes[(owner < 0) | ~scan.counted] = -1
    budget = max(_FEWEST_A_CLASS, _VOXELS_A_SCAN // len(values))
    chosen = [rng.permutation(np.flatnonzero(classes == number))[:budget] for number in range(len(values))]
    points = np.stack(np.unravel_index(np.concatenate(chosen), classes.shape), axis=1)
    return _Task(scan, classes, places, owner, points)


def examine(exam: Exam, extract: Extractor) -> Iterator[Marks | None]:
    """Trains and tests one contestant. Yields None after each scan, first for training, then for testing; then marks.

    Args:
        exam: the same for all.
        extract: features of a patch.
    """
    samples: list[Samples] = []
    for task in exam.tasks:
        samples.append(_samples(task, exam.patch, extract))
        yield None
    classifiers = _classifiers(exam, samples)
    tables = []
    for task, classifier in zip(exam.tasks, classifiers, strict=True):
        tables.append(_tested(task, exam, extract, classifier))
        yield None
    yield _marks(exam, tables)


def _samples(task: _Task, patch: Sequence[int], extract: Extractor) -> Samples:
    owner = task.owner[tuple(task.points.T)]
    features: list[NDArray[np.float32]] = []
    classes: list[NDArray[np.int32]] = []
    for number, corner in enumerate(task.corners):
        points = task.points[owner == number]
        if not len(points):
            continue
        maps = extract(voxels_of(task.scan, patch, corner))
        features.append(features_at(maps, patch, points - np.array(corner)))
        classes.append(task.classes[tuple(points.T)])
    return Samples(np.concatenate(features), np.concatenate(classes))


def features_at(maps: FeatureMaps, patch: Sequence[int], points: NDArray[np.integer]) -> NDArray[np.float32]:
    """All stages at voxels of a patch, trilinear, one after the other.

    Args:
        maps: (C, d, h, w) of each stage.
        patch: voxels (D, H, W) that every map covers.
        points: (n, 3), voxels in the patch.

    Returns:
        (n, channels of all stages).
    """
    # Voxel i has its centre at i + 1/2; torch counts from -1 to 1 and takes x first.
    relative = 2 * (points + 0.5) / np.array(patch) - 1
    grid = torch.from_numpy(relative[:, ::-1].copy()).float()[None, :, None, None]
    found = [F.grid_sample(each[None], grid, "bilinear", "border", align_corners=False)[0, :, :, 0, 0] for each in maps]
    return np.asarray(torch.cat(found).T.numpy())


def scores_of(maps: FeatureMaps, patch: Sequence[int], classifier: Classifier) -> torch.Tensor:
    """Scores (classes, D, H, W) of every voxel of a patch: those of :func:`features_at` times the weights."""
    weights = torch.from_numpy(classifier.weights.T.astype(np.float32))
    total = torch.from_numpy(classifier.bias.astype(np.float32))[:, None, None, None].expand(-1, *patch)
    start = 0
    for each in maps:
        coarse = torch.einsum("kc,cdhw->kdhw", weights[:, start : start + len(each)], each)
        start += len(each)
        fine = F.interpolate(coarse[None], tuple(patch), mode="trilinear", align_corners=False)[0]
        total = total + fine
    return total


def _classifiers(exam: Exam, samples: Sequence[Samples]) -> list[Classifier]:
    """For each scan the one that was trained on all folds but the scan's."""
    found: dict[int, Classifier] = {}
    for fold in exam.folds:
        others = [place for place in range(len(samples)) if place not in fold]
        subjects = [exam.tasks[place].scan.group for place in others]
        found |= dict.fromkeys(fold, fit([samples[place] for place in others], len(exam.values), subjects))
    return [found[place] for place in range(len(samples))]


def _tested(task: _Task, exam: Exam, extract: Extractor, classifier: Classifier) -> NDArray[np.int64]:
    """The confusion of all voxels that the patches reach."""
    total = np.zeros((len(exam.values), len(exam.values)), dtype=np.int64)
    for number, corner in enumerate(task.corners):
        of_volume, of_patch = inside(task.classes.shape, exam.patch, corner)
        there = (task.owner[of_volume] == number) & (task.classes[of_volume] >= 0)
        if not there.any():
            continue
        maps = extract(voxels_of(task.scan, exam.patch, corner))
        found = scores_of(maps, exam.patch, classifier).argmax(dim=0).numpy()[of_patch]
        total += confusion(task.classes[of_volume][there], found[there], len(exam.values))
    return total


def _marks(exam: Exam, tables: Sequence[NDArray[np.int64]]) -> Marks:
    of_labels = np.array([dice(table)[1:] for table in tables])
    return Marks(
        dice={name: _mean(column) for name, column in zip(exam.names[1:], of_labels.T, strict=True)},
        of_scans={task.scan.name: _mean(row) for task, row in zip(exam.tasks, of_labels, strict=True)},
        balanced_accuracy=_mean(np.array([balanced_accuracy(table) for table in tables])),
    )


def _mean(values: NDArray[np.float64]) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")
