"""Measures one predicted case; what goes wrong with the prediction is a result, too."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnssl_mae.comparison.label_maps import LabelMap, read_label_map, sidecar
from nnssl_mae.comparison.metrics import METRICS_VERSION, Scores, diagonal_mm, no_prediction, score_label_maps
from nnssl_mae.files import sha256, short_hash

NO_PREDICTION = "no prediction"
UNREADABLE = "unreadable"
OTHER_GRID = "other grid"
EMPTY = "empty prediction"


@dataclass(frozen=True)
class Job:
    """One case of one run: the two files and how they are measured."""

    case: str
    reference: Path
    prediction: Path
    reader: str
    labels: dict[str, tuple[int, ...]]
    ignore: int | None
    tolerance_mm: float
    lesions: tuple[str, ...]
    spacing: tuple[float, ...] | None = None
    """mm, of all arms' files of this case, where the files themselves need not tell it."""
    in_mm: bool = True
    """Else nobody knows how large the voxels are, and scores in mm are not a number."""

    def how(self) -> list[Any]:
        """All but the files that decides what comes out."""
        units = [self.spacing, self.in_mm]
        return [METRICS_VERSION, self.reader, self.labels, self.ignore, self.tolerance_mm, sorted(self.lesions), units]

    def stamp(self) -> str:
        """Stays the same while neither the files nor the way of measuring change; reads no file."""
        return short_hash([self.how(), *map(_stamp, self._files())], 32)

    def content(self) -> str:
        """The same for the same content under other names and times, as after a copy."""
        digests = [sha256(path) if path.is_file() else None for path in self._files()]
        return short_hash([self.how(), *digests], 32)

    def _files(self) -> list[Path]:
        """All that is read."""
        files = [self.reference, self.prediction]
        return files + [beside for file in files if (beside := sidecar(file, self.reader)) is not None]


@dataclass(frozen=True)
class CaseScores:
    """What came of a case."""

    scores: dict[str, Scores]
    """By label."""
    failure: str
    """Empty, or what is wrong with the prediction."""
    error: str = ""
    """What is wrong with the reference; then there are no scores, and nothing can be said of any model."""

    def as_json(self) -> dict[str, Any]:
        """For the cache."""
        return {"scores": {label: asdict(scores) for label, scores in self.scores.items()}, "failure": self.failure}

    @staticmethod
    def from_json(content: dict[str, Any]) -> CaseScores:
        """The inverse of :meth:`as_json`.

        Raises:
            KeyError, TypeError, AttributeError: it is something else.
        """
        scores = {label: Scores(**values) for label, values in content["scores"].items()}
        return CaseScores(scores, str(content["failure"]))


def score_case(job: Job) -> CaseScores:
    """Reads both files and measures the prediction."""
    try:
        reference = read_label_map(job.reference, job.reader).with_spacing(job.spacing)
    except MemoryError:
        raise
    except Exception as error:  # the libraries raise many kinds for a damaged file
        return CaseScores({}, "", f"{job.reference} cannot be read ({_first_line(error)})")
    if not job.prediction.is_file():
        return _failed(job, reference, NO_PREDICTION)
    try:
        predicted = read_label_map(job.prediction, job.reader)
    except MemoryError:  # not the model's fault
        raise
    except Exception:
        return _failed(job, reference, UNREADABLE)
    if not predicted.has_grid_of(reference):
        return _failed(job, reference, OTHER_GRID)
    return _measured(job, reference, predicted)


def _measured(job: Job, reference: LabelMap, predicted: LabelMap) -> CaseScores:
    true, guessed = reference.flat(), predicted.flat()
    scores = score_label_maps(
        true.values,
        guessed.values,
        true.spacing or guessed.spacing or _unit(true),
        job.labels,
        job.ignore,
        job.tolerance_mm,
        job.lesions,
    )
    nothing = not any(label.voxels_predicted for label in scores.values())
    something = any(label.voxels_reference for label in scores.values())
    return CaseScores(_known(scores, job), EMPTY if nothing and something else "")


def _failed(job: Job, reference: LabelMap, failure: str) -> CaseScores:
    flat = reference.flat()
    diagonal = diagonal_mm(flat.values.shape, flat.spacing or _unit(flat))
    kept = reference.values if job.ignore is None else reference.values[reference.values != job.ignore]
    scores = {
        label: no_prediction(int(np.isin(kept, list(values)).sum()), diagonal, label in job.lesions)
        for label, values in job.labels.items()
    }
    return CaseScores(_known(scores, job), failure)


def _known(scores: dict[str, Scores], job: Job) -> dict[str, Scores]:
    """Without scores in mm where nobody knows how large the voxels are."""
    if job.in_mm:
        return scores
    return {label: replace(each, nsd=math.nan, hd95=math.nan) for label, each in scores.items()}


def _unit(reference: LabelMap) -> tuple[float, ...]:
    """nnU-Net, too, takes voxels of 1 mm where a format holds no spacing."""
    return (1.0,) * reference.values.ndim


def _stamp(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except OSError:
        return [str(path.absolute()), None]
    # Copies may keep a time of writing (cp -p, rsync -t), but not the time of change of their entry and its number.
    kept = [status.st_size, status.st_mtime_ns]
    return [str(path.absolute()), *kept, status.st_ctime_ns, status.st_ino]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
