"""Finds what can be compared: validated folds in nnU-Net's result folders, and predictions of test sets.

Trainings that have not ended, folds that one arm has and another lacks, and models of other labels are told, too: they
are holes of a comparison, never a reason for a mean over fewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from nnssl_mae.comparison.dataset_places import own_results
from nnssl_mae.comparison.entries import Found, HeldOut, Request, Run, Unfinished
from nnssl_mae.comparison.held_out import HeldOutSearch
from nnssl_mae.comparison.validated import ALL, FAIR, searches
from nnssl_mae.errors import UserError

__all__ = ["Found", "HeldOut", "Request", "Run", "Unfinished", "find_runs"]


def find_runs(request: Request) -> Found:
    """Everything that was asked for and is there.

    Raises:
        UserError: nothing was found, an arm matches no model or two arms one, a dataset or its labels are not there, or
            ``fold_all`` was asked for.
    """
    if ALL in request.folds:
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
    if not runs:
        raise UserError(f"There is nothing to compare: {_first_reasons([*(h.why for h in unfinished), *notes])}")
    return Found(tuple(runs), tuple(unfinished), tuple(notes))


def _check_roots(request: Request, roots: Mapping[str, Path]) -> None:
    if request.datasets and not roots:
        raise UserError("nnUNet_results is not set or not there; export it, or name the folders of results to compare")
    for root in roots.values():
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; give folders of nnU-Net's results, such as nnUNet_results")


def _first_reasons(reasons: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(reasons))[:3]
    return "; ".join(distinct) if distinct else "no result was asked for; name datasets or test predictions"
