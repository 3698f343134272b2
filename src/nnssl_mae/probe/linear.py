"""A linear classifier on frozen features, in closed form, and what it is worth.

Ridge regression onto one-hot classes; the class with the largest answer is predicted. Nothing is drawn and nothing is
iterated, so two feature spaces differ in this by their features only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Relative to the mean variance of the standardised features, which is one."""
_USUAL = 1e-2  # where one subject is all there is to train on, and nothing to choose with
_CONSTANT = 1e-9

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Voxels of one scan: features (n, channels) and classes (n,), whole numbers from 0."""

    features: NDArray[np.floating[Any]]
    classes: NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Classifier:
    """Scores are ``features @ weights + bias``; ``weights`` (channels, classes), ``bias`` (classes,)."""

    weights: Matrix
    bias: Matrix
    penalty: float

    def predict(self, features: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
        """Classes (n,) of features (n, channels)."""
        return np.asarray((features @ self.weights + self.bias).argmax(axis=1))


def fit(scans: Sequence[Samples], classes: int, groups: Sequence[str] | None = None) -> Classifier:
    """Trains on all scans; the penalty is the one of :data:`PENALTIES` that does best on subjects left out one by one.

    Args:
        scans: training samples of each scan.
        classes: how many there are.
        groups: of each scan, its subject; default: each scan is one of its own. Scans of one subject are left out
            together, or a penalty that learns people by heart would look good.
    """
    subjects = [str(place) for place in range(len(scans))] if groups is None else list(groups)
    standard = _Standard.of(scans)
    moments = [_moments(standard(scan.features), scan.classes, classes) for scan in scans]
    penalty = _USUAL if len(set(subjects)) < 2 else _best_penalty(scans, standard, moments, subjects)
    return standard.undone(_solved(_sum(moments), penalty), penalty)


@dataclass(frozen=True)
class _Standard:
    """Takes each channel to zero mean and unit variance."""

    mean: Matrix
    spread: Matrix

    @classmethod
    def of(cls, scans: Sequence[Samples]) -> _Standard:
        together = np.concatenate([scan.features for scan in scans]).astype(np.float64)
        spread = together.std(axis=0)
        # A channel that does not vary tells nothing, and must not be divided by its rounding error.
        return cls(together.mean(axis=0), np.where(spread > _CONSTANT, spread, np.inf))

    def __call__(self, features: NDArray[np.floating[Any]]) -> Matrix:
        """Features with a last column of ones, for the bias."""
        scaled = (features.astype(np.float64) - self.mean) / self.spread
        return np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)

    def undone(self, solution: Matrix, penalty: float) -> Classifier:
        """The classifier for features as they come."""
        weights = solution[:-1] / self.spread[:, None]
        return Classifier(weights, solution[-1] - self.mean @ weights, penalty)


@dataclass(frozen=True)
class _Moments:
    gram: Matrix
    cross: Matrix
    number: int


def _moments(features: Matrix, classes: NDArray[np.integer[Any]], number: int) -> _Moments:
    return _Moments(features.T @ features, features.T @ np.eye(number)[classes], len(features))


def _sum(moments: Sequence[_Moments]) -> _Moments:
    return _Moments(
        np.sum([each.gram for each in moments], axis=0),
        np.sum([each.cross for each in moments], axis=0),
        sum(each.number for each in moments),
    )


def _solved(moments: _Moments, penalty: float) -> Matrix:
    punished = np.full(len(moments.gram), penalty * moments.number)
    punished[-1] = _CONSTANT  # not the bias
    return np.asarray(np.linalg.solve(moments.gram + np.diag(punished), moments.cross), dtype=np.float64)


def _best_penalty(
    scans: Sequence[Samples], standard: _Standard, moments: Sequence[_Moments], subjects: Sequence[str]
) -> float:
    """By balanced accuracy on each subject's scans after training on other subjects; the larger one of two equals."""
    scores = dict.fromkeys(PENALTIES, 0.0)
    for left_out in dict.fromkeys(subjects):
        others = _sum([each for each, subject in zip(moments, subjects, strict=True) if subject != left_out])
        solutions = {penalty: _solved(others, penalty) for penalty in PENALTIES}
        for scan in (each for each, subject in zip(scans, subjects, strict=True) if subject == left_out):
            features = standard(scan.features)
            for penalty, solution in solutions.items():
                found = (features @ solution).argmax(axis=1)
                scores[penalty] += balanced_accuracy(confusion(scan.classes, found, len(moments[0].cross[0])))
    return max(PENALTIES, key=lambda penalty: (round(scores[penalty], 9), penalty))


def confusion(truth: NDArray[np.integer[Any]], found: NDArray[np.integer[Any]], classes: int) -> NDArray[np.int64]:
    """How many voxels of each true class (rows) were called each class (columns)."""
    pairs = truth.astype(np.int64).ravel() * classes + found.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def dice(table: NDArray[np.int64]) -> Matrix:
    """Dice of each class (classes,) of a :func:`confusion`; NaN where a class is neither there nor found."""
    there, found, both = table.sum(axis=1), table.sum(axis=0), np.diag(table)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there + found > 0, 2 * both / (there + found), np.nan))


def balanced_accuracy(table: NDArray[np.int64]) -> float:
    """Mean over the classes that are there of the share that was found."""
    there = table.sum(axis=1)
    return float((np.diag(table)[there > 0] / there[there > 0]).mean()) if there.any() else float("nan")


def folds_of(groups: Sequence[str], most: int) -> list[list[int]]:
    """Places of the scans that are tested together: whole groups, in at most ``most`` folds of about equal size.

    Args:
        groups: of each scan, its subject; scans of one subject are never on both sides.
    """
    names = list(dict.fromkeys(groups))
    folds: list[list[int]] = [[] for _ in range(min(most, len(names)))]
    place_of: Mapping[str, int] = {name: place % len(folds) for place, name in enumerate(names)}
    for place, group in enumerate(groups):
        folds[place_of[group]].append(place)
    return folds
