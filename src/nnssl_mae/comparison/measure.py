"""Measures all cases of many runs: one row for each case and label."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from nnssl_mae.comparison.cache import ScoreCache
from nnssl_mae.comparison.one_case import EMPTY, CaseScores, Job, score_case
from nnssl_mae.comparison.runs import Run
from nnssl_mae.comparison.spacings import tiff_spacings
from nnssl_mae.console import say
from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.few_labels.dataset import subjects_of_cases
from nnssl_mae.parallel import in_processes
from nnssl_mae.progress import track

COLUMNS = (
    "dataset",
    "arm",
    "replicate",
    "fold",
    "labelled",
    "repeat",
    "subject",
    "case",
    "label",
    "dice",
    "nsd",
    "hd95",
    "lesion_f1",
    "voxels_reference",
    "voxels_predicted",
    "failure",
)


@dataclass(frozen=True)
class MetricOptions:
    """How cases are measured."""

    tolerance_mm: float = 1.0
    """Of the surface Dice."""
    lesions: tuple[str, ...] = ()
    """Labels whose connected components are lesions, to be found one by one."""
    subject_regex: str | None = None
    """What of a case's name is its subject: the first group, or all that matches. Without it
    ``nnssl_folds.json`` tells, else a BIDS ``sub-`` in the name; each other case is a subject."""


def measure(
    runs: Sequence[Run], options: MetricOptions, cache: Path | None, workers: int, console: Console
) -> pd.DataFrame:
    """The table of cases. A case that was not, or not usably, predicted has a row that says so and the worst scores.

    Args:
        runs: as :func:`nnssl_mae.comparison.runs.find_runs` gives them.
        options: how cases are measured.
        cache: folder in which scores are kept; what was measured there before is taken from it.
        workers: processes; 1 measures in this one.
        console: for progress.

    Raises:
        UserError: a reference cannot be read, a name does not match ``subject_regex``, or no run has a label whose
            lesions were asked for.
        ResumableError: a process died over a case, most likely for want of memory.
    """
    _check(runs, options)
    units = _Units(runs, console)
    jobs = {(number, case): _job(run, case, options, units) for number, run in enumerate(runs) for case in run.cases}
    subject_of = _Subjects(options.subject_regex)
    subjects = {(number, case): subject_of(runs[number], case) for number, case in jobs}
    scores = _scores(jobs, cache, workers, console)
    rows = [row for key in jobs for row in _rows(runs[key[0]], key[1], subjects[key], scores[key])]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"labelled": "Int64", "repeat": "Int64", "voxels_reference": int, "voxels_predicted": int})


def _check(runs: Sequence[Run], options: MetricOptions) -> None:
    if not (options.tolerance_mm > 0 and math.isfinite(options.tolerance_mm)):
        raise UserError(f"A tolerance of {options.tolerance_mm} mm is not possible; take more than 0, such as 1")
    known = {label for run in runs for label in run.labels}
    for label in options.lesions:
        if label not in known:
            raise UserError(f"No result has a label '{label}' whose lesions could be found; there are: {sorted(known)}")


class _Units:
    """How large voxels are where files need not tell: known for all cases of a dataset, or scores in mm for none.

    A mean over some of the cases could not be compared with others.
    """

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self._spacings = tiff_spacings(runs)
        self._unknown = {dataset: case for (dataset, case), mm in self._spacings.items() if mm is None}
        for dataset, case in self._unknown.items():
            say(
                console,
                f"{dataset}: no surface Dice and no HD95, for no file tells the spacing of all cases, such as {case}; "
                f'write {case}.json with {{"spacing": [z, y, x]}} in mm beside its reference label.',
            )

    def of(self, dataset: str, case: str) -> tuple[tuple[float, ...] | None, bool]:
        """The spacing, if files need not tell it, and whether scores in mm are possible."""
        known = dataset not in self._unknown
        return self._spacings.get((dataset, case)) if known else None, known


def _job(run: Run, case: str, options: MetricOptions, units: _Units) -> Job:
    return Job(
        case,
        run.references / f"{case}{run.file_ending}",
        run.predictions / f"{case}{run.file_ending}",
        run.reader,
        run.labels,
        run.ignore,
        options.tolerance_mm,
        tuple(label for label in options.lesions if label in run.labels),
        *units.of(run.dataset, case),
    )


class _Subjects:
    """Whose a case is: by the user's pattern, by ``nnssl_folds.json``, else as ``nnssl-mae splits`` would say."""

    def __init__(self, pattern: str | None) -> None:
        try:
            self._pattern = re.compile(pattern) if pattern is not None else None
        except re.error as error:
            raise UserError(
                f"'{pattern}' is no regular expression ({error}); write one such as '^(sub-[^_]+)'"
            ) from error

    def __call__(self, run: Run, case: str) -> str:
        if self._pattern is None:
            return run.subjects.get(case) or subjects_of_cases([case], None)[case]
        match = self._pattern.search(case)
        subject = match and (match.group(1) if self._pattern.groups else match.group())
        if not subject:
            raise UserError(f"'{self._pattern.pattern}' finds no subject in case '{case}' of {run.dataset}; widen it")
        return subject


Key = tuple[int, str]


def _scores(jobs: dict[Key, Job], cache: Path | None, workers: int, console: Console) -> dict[Key, CaseScores]:
    with ScoreCache(cache) as known:
        scores = {key: found for key, job in jobs.items() if (found := known.find(job)) is not None}
        left = {key: job for key, job in jobs.items() if key not in scores}
        if scores:
            say(console, f"{len(scores)} of {len(jobs)} cases were measured before.")
        if left:
            for key, result in track(_results(left, workers), "Measuring", len(left), console):
                if result.error:
                    raise UserError(f"{result.error}; put back the reference labels")
                known.keep(left[key], result)
                scores[key] = result
    return scores


def _results(jobs: dict[Key, Job], workers: int) -> Iterator[tuple[Key, CaseScores]]:
    if workers <= 1:
        yield from ((key, score_case(job)) for key, job in jobs.items())
        return
    for outcome in in_processes(_keyed, jobs.items(), min(workers, len(jobs))):
        if outcome.result is None:
            reason = outcome.failure.summary if outcome.failure is not None else "no result"
            prediction = outcome.item[1].prediction
            raise ResumableError(f"Measuring {prediction} failed ({reason}); try again with fewer processes (-np 1)")
        yield outcome.result


def _keyed(item: tuple[Key, Job]) -> tuple[Key, CaseScores]:
    return item[0], score_case(item[1])


def _rows(run: Run, case: str, subject: str, result: CaseScores) -> Iterator[dict[str, Any]]:
    for label, scores in result.scores.items():
        # An empty prediction is right about a label that the reference does not have, either.
        right = result.failure == EMPTY and scores.voxels_reference == 0
        yield {
            "dataset": run.dataset,
            "arm": run.arm,
            "replicate": run.replicate,
            "fold": run.fold,
            "labelled": run.labelled,
            "repeat": run.repeat,
            "subject": subject,
            "case": case,
            "label": label,
            **asdict(scores),
            "failure": "" if right else result.failure,
        }
