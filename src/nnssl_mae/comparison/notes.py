"""Sentences under the tables: how numbers came about, and what they do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from nnssl_mae.comparison.contrasts import ALL_DATASETS
from nnssl_mae.comparison.entries import Run
from nnssl_mae.comparison.groups import Group
from nnssl_mae.comparison.kinds import METRICS
from nnssl_mae.comparison.statistics import MINIMUM_SUBJECTS

_ONLY_NOT_CHECKED = "Overlap between pre-training and test data was not checked."


def notes_of(
    cases: pd.DataFrame,
    groups: Sequence[Group],
    pairs: pd.DataFrame,
    overlap: Mapping[str, str | None] | None,
    uneven_replicates: bool,
) -> tuple[str, ...]:
    """All notes that apply, the general ones first."""
    return (
        "Means: over the labels of a case, then over the seeds, draws of labelled cases, folds and cases of a subject, "
        "then over subjects.",
        "Intervals: 95 %, bootstrap over subjects, widened for few subjects. They and p hold for further subjects of "
        "the same kind and these trained networks; whether training again gives the same, the spread over seeds tells.",
        *_on_tests(pairs),
        *_on_subjects(cases, groups),
        *_on_empty_references(cases),
        *_on_distances(cases),
        *_on_runs(cases, groups, uneven_replicates),
        *_on_overlap(overlap),
    )


def on_measured_cases(runs: Sequence[Run]) -> str:
    """Which cases, in one line: those that validate folds, or those of a test set."""
    found: dict[tuple[str, bool], list[Run]] = {}
    for run in runs:
        found.setdefault((run.dataset, run.model is None), []).append(run)
    parts = []
    for (dataset, is_test), group in found.items():
        count = len({case for run in group for case in run.cases})
        which = "--predictions" if is_test else _fold_words({run.fold for run in group})
        cases = f"{'test' if is_test else 'validation'} case{'' if count == 1 else 's'}"
        parts.append(f"{count} {cases} of {dataset} ({which})")
    return f"Cases: {'; '.join(parts)}."


def _fold_words(folds: set[str]) -> str:
    """``fold 0``, ``folds 0 to 4, 100 to 111``; names that are no numbers stand last."""
    ranges: list[list[int]] = []
    for number in sorted(int(fold) for fold in folds if fold.isdecimal()):
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    words = [str(one[0]) if len(one) == 1 else f"{one[0]} to {one[-1]}" for one in ranges]
    words += sorted(fold for fold in folds if not fold.isdecimal())
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(words)}"


def _on_tests(pairs: pd.DataFrame) -> list[str]:
    tested = pairs[pairs["p"].notna()]
    if tested.empty:
        return []
    sizes = tested.groupby("metric", sort=False).size()
    families = ", ".join(f"{size} of {metric}" for metric, size in sizes.items())
    notes = [
        "Tests: Wilcoxon signed rank, two-sided, differences of 0 left out of the ranks; Holm's correction over all "
        f"pairs of a metric, all datasets and numbers of labelled cases together ({families}). There is none over "
        "metrics: decide for one before looking."
    ]
    if (tested["dataset"] == ALL_DATASETS).any():
        notes.append(
            'Pairs over "all" datasets: the mean of the datasets\' differences, subjects resampled within their '
            "dataset; p ranks the subjects of all datasets together, taken as different people, so a dataset with more "
            "subjects weighs more in it."
        )
    return notes


def _on_subjects(cases: pd.DataFrame, groups: Sequence[Group]) -> list[str]:
    notes = []
    own = (cases["subject"] == cases["case"]).groupby(cases["dataset"]).all()
    if own.any():
        start = "Each case" if own.all() else f"{', '.join(own[own].index)}: each case"
        notes.append(f"{start} is taken as a subject of its own; name a rule for subjects if some are of one person.")
    few = {group.dataset for group in groups if len(group.axes.subjects) < MINIMUM_SUBJECTS}
    if few:
        notes.append(
            f"{', '.join(sorted(few))}: fewer than {MINIMUM_SUBJECTS} independent subjects, "
            "so neither intervals nor tests."
        )
    return notes


def _on_empty_references(cases: pd.DataFrame) -> list[str]:
    entries = cases[(cases["voxels_reference"] == 0) & cases[[metric.name for metric in METRICS]].notna().any(axis=1)]
    contested = len(entries[["dataset", "case", "label"]].drop_duplicates())
    if not contested:
        return []
    return [
        f"In {contested} case x label the reference is empty and some arm predicted something or failed, which has the "
        "worst score. Means of an arm leave out its right, empty predictions there, as nnU-Net does; pairs and ranks "
        "count them as perfect, so that no arm gains, and may differ from the means beside them."
    ]


def _on_distances(cases: pd.DataFrame) -> list[str]:
    if cases["hd95"].isna().all():
        return []
    return ["HD95: where only one of reference and prediction is empty, or a case failed, the diagonal of the image."]


def _on_runs(cases: pd.DataFrame, groups: Sequence[Group], uneven_replicates: bool) -> list[str]:
    notes = []
    failed = cases[cases["failure"] != ""]
    count = len(failed[["dataset", "arm", "replicate", "labelled", "repeat", "fold", "case"]].drop_duplicates())
    if count:
        notes.append(f"{count} predictions failed and count with the worst score.")
    holed = sum(not group.whole for group in groups)
    if holed:
        notes.append(
            "Where runs are missing there is no mean, instead of one over fewer; ranks and pairs over all datasets use "
            "those that are whole for all arms."
        )
    if uneven_replicates:
        notes.append("Arms may have different numbers of replicates; each is averaged over its own.")
    return notes


def _on_overlap(overlap: Mapping[str, str | None] | None) -> list[str]:
    if not overlap or not any(overlap.values()):
        return [_ONLY_NOT_CHECKED]
    checked = [f"Overlap between pre-training and test data, {arm}: {said}" for arm, said in overlap.items() if said]
    unchecked = [arm for arm, said in overlap.items() if not said]
    if unchecked:
        checked.append(f"Overlap between pre-training and test data was not checked for {', '.join(unchecked)}.")
    return checked
