"""Dice of predicted segmentations, and the floor that the training labels reach without any image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnssl_mae.demo.results import HeldOutCase, Labels

VOTE = "label vote"


def dice(truth: Labels, predicted: Labels, label: int) -> float:
    """2 |A and B| / (|A| + |B|); nan where the label is in neither map, 0 where it is in only one."""
    in_truth, in_predicted = truth == label, predicted == label
    total = int(in_truth.sum()) + int(in_predicted.sum())
    return 2 * int((in_truth & in_predicted).sum()) / total if total else float("nan")


def majority_vote(maps: Sequence[Labels]) -> Labels:
    """The most frequent label in each voxel; the smaller number wins a tie, so background always does."""
    counts = np.stack([sum((m == label).astype(np.uint8) for m in maps) for label in range(int(np.max(maps)) + 1)])
    return counts.argmax(0).astype(np.uint8)


def score_cases(
    cases: Sequence[HeldOutCase], training: Sequence[Labels], labels: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Dice by method (both arms and the vote): (cases, labels), nan where it does not count."""
    vote = majority_vote(training)
    predictions = [{**case.predictions, VOTE: vote} for case in cases]
    return {
        method: np.array(
            [
                [dice(case.truth, p[method], label) for label in labels]
                for case, p in zip(cases, predictions, strict=True)
            ]
        )
        for method in predictions[0]
    }


def label_means(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over cases of (cases, labels) for each label, leaving nan out; nan where no case counts."""
    counted = np.isfinite(scores)
    total = np.where(counted, scores, 0).sum(0)
    return np.where(counted.any(0), total / np.maximum(counted.sum(0), 1), np.nan)


def overall_mean(scores: NDArray[np.float64]) -> float:
    """Mean over labels of the label means, as nnU-Net's ``foreground_mean`` does."""
    means = label_means(scores)
    return float(means[np.isfinite(means)].mean()) if np.isfinite(means).any() else float("nan")
