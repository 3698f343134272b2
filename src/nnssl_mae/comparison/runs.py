"""Finds what can be compared: validated folds in nnU-Net's result folders, and predictions of test sets.

Trainings that have not ended, folds that one arm has and another lacks, and models of other labels are told, too: they
are holes of a comparison, never a reason for a mean over fewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnssl_mae.comparison.dataset_labels import DatasetLabels
from nnssl_mae.comparison.dataset_places import own_results
from nnssl_mae.comparison.entries import Found, HeldOut, Request, Run, Unfinished
from nnssl_mae.comparison.held_out import HeldOutSearch
from nnssl_mae.comparison.validated import ALL, FAIR, searches
from nnssl_mae.errors import UserError

__all__ = ["Found", "HeldOut", "Request", "Run", "Unfinished", "find_runs"]


def find_runs(request: Request) -> Found:
    """Everything that was asked for and is there.

    Raises:
        UserError: nothing was found, an arm matches no model or two arms one, a dataset or its labels are not there,
            validated ``fold_all`` was asked for, a model has validated a case in several folds, or results of one
            dataset have different labels.
    """
    if ALL in request.folds and request.datasets:
        raise UserError(f"Fold 'all' trains and validates on the same cases, so its scores mean nothing; {FAIR}")
    roots = dict(request.results) or own_results()
    _check_roots(request, roots)
    notes: list[str] = []
    runs: list[Run] = []
    unfinished: list[Unfinished] = []
    for search in searches(request, roots):
        found = search.found()
        runs += found.runs
        unfinished += found.unfinished
        notes += found.notes
    for held_out in request.held_out:
        found = HeldOutSearch(held_out, request.folds, roots, {run.dataset for run in runs}).found()
        runs += found.runs
        unfinished += found.unfinished
        notes += found.notes
    if not runs:
        raise UserError(f"There is nothing to compare: {_first_reasons([*(h.why for h in unfinished), *notes])}")
    _check_labels(runs)
    _check_folds_apart(runs)
    return Found(tuple(runs), tuple(unfinished), tuple(notes))


def _check_roots(request: Request, roots: Mapping[str, Path]) -> None:
    if request.datasets and not roots:
        raise UserError("nnUNet_results is not set or not there; export it, or name the folders of results to compare")
    for root in roots.values():
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; give folders of nnU-Net's results, such as nnUNet_results")
    labels: dict[Path, str] = {}
    for label, root in roots.items():
        if (other := labels.setdefault(root.resolve(), label)) != label:
            raise UserError(f"Results '{other}' and '{label}' are the same folder {root}; name each folder once")


def _check_labels(runs: Sequence[Run]) -> None:
    """Where no ``dataset.json`` says what the labels are, all arms must have been trained with the same."""
    first: dict[str, Run] = {}
    for run in runs:
        other = first.setdefault(run.dataset, run)
        if not DatasetLabels(run.labels, run.ignore).equals(DatasetLabels(other.labels, other.ignore)):
            raise UserError(
                f"Arms '{other.arm}' and '{run.arm}' were predicted with different labels ({_words(other)}; "
                f"{_words(run)}); give -d with the number of the dataset whose labels count (its dataset.json must be "
                "in nnU-Net's folders)"
            )


def _words(run: Run) -> str:
    named = {name: values[0] if len(values) == 1 else list(values) for name, values in run.labels.items()}
    return ", ".join(f"{name} {value}" for name, value in [*named.items(), ("ignore", run.ignore)] if value is not None)


def _check_folds_apart(runs: Sequence[Run]) -> None:
    """Else what was not repeated would look like a cross-validation."""
    folds: dict[tuple[str, str, str, str], list[str]] = {}
    for run in runs:
        if run.model is not None and run.labelled is None:
            for case in run.cases:
                folds.setdefault((run.dataset, run.arm, run.replicate, case), []).append(run.fold)
    several = {key: numbers for key, numbers in folds.items() if len(numbers) > 1}
    if several:
        dataset, arm, replicate, case = next(iter(several))
        named = sorted(
            {fold for key, numbers in several.items() if key[:3] == (dataset, arm, replicate) for fold in numbers},
            key=int,
        )
        raise UserError(
            f"Folds {', '.join(named)} of {replicate} (arm '{arm}', {dataset}) were validated on the same cases, such "
            f"as {case}; choose those that count with --fold (folds 5 to 99 that nnssl-mae splits writes only repeat "
            "the folds before)"
        )


def _first_reasons(reasons: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(reasons))[:3]
    return "; ".join(distinct) if distinct else "no result was asked for; name datasets or test predictions"
