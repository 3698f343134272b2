"""One metric of one arm as an array of runs x cases by labels, and the ways to average it.

The order of averaging, everywhere: labels of a case, then the runs (replicates, repeats, folds) and cases of a
subject, then subjects. So a subject is one number, which is what is resampled and tested. nnU-Net's `foreground_mean`
averages the cases of a label first and then the labels; the two are equal unless some entry is undefined, and the means
of single labels equal nnU-Net's `mean` where every case is a subject of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnssl_mae.comparison.kinds import Metric
from nnssl_mae.comparison.statistics import Numbers

Codes = npt.NDArray[np.intp]
Seed = tuple[str, int | None]
"""Replicate and repeat."""
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Axes:
    """What the scores of all arms in one dataset share, so that they can be compared place by place."""

    labels: tuple[str, ...]
    cases: tuple[str, ...]
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """One metric of one arm in one dataset at one number of labelled cases.

    Attributes:
        values: (rows, labels), a row = one case of one run; NaN = empty in reference and prediction, or no such entry.
        case: (rows,) place in `axes.cases`.
        subject: (rows,) place in `axes.subjects`.
        seed: (rows,) place in `seeds`.
        seeds: replicate x repeat, i.e. what was trained again with all else the same.
        axes: what the columns and places mean.
    """

    values: Numbers
    case: Codes
    subject: Codes
    seed: Codes
    seeds: tuple[Seed, ...]
    axes: Axes

    def over_labels(self) -> Numbers:
        """(rows,) mean over the defined labels of each case."""
        return _mean_of_defined(self.values, axis=1)

    def of_label(self, label: str) -> Scores:
        """The same with the column of one label."""
        place = self.axes.labels.index(label)
        return replace(self, values=self.values[:, place : place + 1])

    def subject_means(self) -> Numbers:
        """(subjects,) mean over labels, then over runs and cases; NaN for subjects without any defined entry."""
        return _mean_by(self.over_labels(), self.subject, len(self.axes.subjects))

    def seed_means(self) -> Numbers:
        """(seeds,) mean over subjects of each replicate x repeat."""
        places = self.seed * len(self.axes.subjects) + self.subject
        means = _mean_by(self.over_labels(), places, len(self.seeds) * len(self.axes.subjects))
        return _mean_of_defined(means.reshape(len(self.seeds), len(self.axes.subjects)), axis=1)


def axes_of(rows: pd.DataFrame) -> Axes:
    """Labels in the order of the table; cases and subjects sorted."""
    return Axes(
        tuple(dict.fromkeys(rows["label"])), tuple(sorted(set(rows["case"]))), tuple(sorted(set(rows["subject"])))
    )


def scores_of(rows: pd.DataFrame, metrics: Sequence[Metric], axes: Axes) -> dict[str, Scores]:
    """Scores of one arm by name of the metric.

    Args:
        rows: rows of the table of cases of that arm, of one dataset and number of labelled cases.
        metrics: which scores.
        axes: those of all arms.
    """
    repeats = [None if pd.isna(repeat) else int(repeat) for repeat in rows["repeat"]]
    seed_of_entry = list(zip(rows["replicate"], repeats, strict=True))
    runs = list(zip(seed_of_entry, rows["fold"], rows["case"], strict=True))
    first: dict[tuple[Seed, str, str], int] = {}  # an entry that stands for all labels of its case and run
    for entry, run in enumerate(runs):
        first.setdefault(run, entry)
    row_of, seeds = _places(first), tuple(sorted(set(seed_of_entry), key=str))
    case_of, subject_of, label_of = _places(axes.cases), _places(axes.subjects), _places(axes.labels)
    at = [row_of[run] for run in runs], [label_of[label] for label in rows["label"]]
    subjects = list(rows["subject"])
    scores = Scores(
        values=np.full((len(row_of), len(axes.labels)), np.nan),
        case=np.array([case_of[case] for _, _, case in first], dtype=np.intp),
        subject=np.array([subject_of[subjects[entry]] for entry in first.values()], dtype=np.intp),
        seed=np.array([seeds.index(seed) for seed, _, _ in first], dtype=np.intp),
        seeds=seeds,
        axes=axes,
    )
    return {metric.name: _filled(scores, at, rows[metric.name].to_numpy(dtype=np.float64)) for metric in metrics}


def on_common_entries(arms: Sequence[Scores], metric: Metric) -> list[Scores]:
    """The scores over the same entries (case x label), so that no arm gains by what nnU-Net leaves out.

    Where the reference is empty, nnU-Net gives no score to an empty prediction, which is right, and 0 to a prediction
    that found something, which is wrong. Left out for one arm only, the entry would cost the failing arm nothing in a
    pair, or compare means over different entries. So an entry counts as soon as any run of any of these arms has a
    score there, and then the empty predictions are perfect (1, or 0 mm); an entry without any score is left out for
    all.
    """
    axes = arms[0].axes
    counts = np.zeros((len(axes.cases), len(axes.labels)), dtype=bool)
    for scores in arms:
        np.logical_or.at(counts, scores.case, ~np.isnan(scores.values))
    return [
        replace(scores, values=np.where(np.isnan(scores.values) & counts[scores.case], metric.best, scores.values))
        for scores in arms
    ]


def spread_over_seeds(means: Numbers) -> float:
    """Standard deviation (n - 1) of the means of replicates x repeats; NaN for one."""
    return float(means.std(ddof=1)) if len(means) > 1 else float("nan")


def spread_of_difference_over_seeds(arm: Scores, control: Scores) -> float:
    """Standard deviation over seeds of the difference of two arms' means.

    Where both arms have the same replicates and repeats by name, their differences are taken; else the arms vary
    independently and their variances add.
    """
    if arm.seeds == control.seeds:
        return spread_over_seeds(arm.seed_means() - control.seed_means())
    return float(np.hypot(spread_over_seeds(arm.seed_means()), spread_over_seeds(control.seed_means())))


def _places(names: Iterable[Name]) -> dict[Name, int]:
    return {name: place for place, name in enumerate(names)}


def _filled(scores: Scores, at: tuple[list[int], list[int]], entries: Numbers) -> Scores:
    values = scores.values.copy()
    values[at] = entries
    return replace(scores, values=values)


def _mean_of_defined(values: Numbers, axis: int) -> Numbers:
    """Mean along an axis without NaN; NaN, without a warning, where nothing is defined."""
    count = (~np.isnan(values)).sum(axis=axis)
    return np.where(count > 0, np.nansum(values, axis=axis) / np.maximum(count, 1), np.nan)


def _mean_by(values: Numbers, places: Codes, size: int) -> Numbers:
    """Mean of the defined values at each place, NaN where there are none."""
    defined = ~np.isnan(values)
    count = np.bincount(places[defined], minlength=size)
    total = np.bincount(places[defined], weights=values[defined], minlength=size)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
