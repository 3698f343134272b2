"""One scan into one stored volume: what a worker process does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import Scan, stamp
from nnssl_mae.catalogue.read import ScanProblem
from nnssl_mae.files import unique_word
from nnssl_mae.parallel import Failure
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.scans.foreground import encode_occupancy, foreground_mask
from nnssl_mae.scans.preprocess import BeyondStock, Preprocessed, preprocess
from nnssl_mae.scans.records import Failed, Finished, digest_of
from nnssl_mae.scans.storage import (
    ENDING,
    as_stored,
    exclusion_path,
    stored_percentiles,
    write_exclusion,
    write_volume,
)


@dataclass(frozen=True)
class Task:
    """A scan to prepare; ``cost`` is the memory that takes, in bytes.

    ``stamp`` is what :func:`nnssl_mae.catalogue.find.stamp` says of the bytes that the key stands for; none if unknown.
    """

    scan: Scan
    key: str
    cost: float
    stamp: tuple[int, int] | None = None


@dataclass(frozen=True)
class Target:
    """Where volumes go: written in ``unfinished``, renamed to ``volumes`` when they are whole.

    So the data folder never holds a file of another ending, which nnU-Net would refuse, whatever is killed when.
    """

    volumes: Path
    unfinished: Path


def prepare_case(task: Task, plans: Mapping[str, Any], beyond_stock: BeyondStock, target: Target) -> Finished | Failed:
    """Preprocesses a scan and stores its exclusion mask and its volume, in this order.

    Returns:
        a record; of a failure if it is the scan's fault.

    Raises:
        OSError: the disk is full.
    """
    manager = PlansManager(dict(plans))
    configuration = manager.get_configuration(CONFIGURATION)
    try:
        done = preprocess(task.scan, manager, configuration, beyond_stock)
        _check(done)
        if task.stamp is not None and stamp(task.scan) != task.stamp:
            raise ScanProblem("changed", "changed while it was prepared; run the same command again")
        return _store(task, done, configuration.patch_size, target)
    except ScanProblem as problem:
        return Failed(task.scan.case, task.key, problem.check, problem.detail)


def _check(done: Preprocessed) -> None:
    """What the checks of the catalogue cannot know, because it comes from preprocessing."""
    if not np.isfinite(done.volume).all():
        raise ScanProblem("not_finite", "has NaN or infinite voxels once it is normalised")
    if done.volume.min() == done.volume.max():
        raise ScanProblem("constant", "is constant once it is cropped and clipped")
    if done.excluded is not None and done.excluded.all():
        raise ScanProblem("exclusion_mask", "is excluded as a whole by its mask")


def _store(task: Task, done: Preprocessed, patch_size: Any, target: Target) -> Finished:
    try:
        stored = as_stored(done.volume)
    except ValueError as error:
        raise ScanProblem("range", f"cannot be stored: {error}") from error
    volume = target.volumes / f"{task.scan.case}{ENDING}"
    volume.unlink(missing_ok=True)  # of an earlier version of the scan: it must not be met with the mask of this one
    exclusion_size = _store_exclusion(task.scan.case, done, patch_size, target)
    unfinished = target.unfinished / f"{unique_word()}{ENDING}"
    write_volume(unfinished, stored, patch_size)
    size = unfinished.stat().st_size
    digest = digest_of(unfinished, exclusion_path(target.volumes, task.scan.case) if exclusion_size else None)
    low, high, foreground = describe(stored)
    unfinished.replace(volume)
    return Finished(task.scan.case, task.key, size, exclusion_size, stored.shape[1:], low, high, foreground, digest)


def describe(volume: NDArray[np.floating[Any]]) -> tuple[float, float, bytes]:
    """What the case table says of a volume (1, Z, Y, X) as it is stored: 0.5 and 99.5 percentile, foreground grid."""
    stored = as_stored(volume)
    low, high = stored_percentiles(stored, (0.5, 99.5))
    return low, high, encode_occupancy(foreground_mask(stored[0].astype(np.float32)))


def _store_exclusion(case: str, done: Preprocessed, patch_size: Any, target: Target) -> int:
    """Bytes of the exclusion mask; 0, and no file, if nothing is excluded."""
    mask = exclusion_path(target.volumes, case)
    if done.excluded is None or not done.excluded.any():
        mask.unlink(missing_ok=True)  # of an earlier version of the scan
        return 0
    unfinished = target.unfinished / f"{unique_word()}{ENDING}"
    write_exclusion(unfinished, done.excluded, patch_size)
    size = unfinished.stat().st_size
    unfinished.replace(mask)
    return size


def failed(task: Task, failure: Failure) -> Failed:
    """The record of a scan whose process raised an unexpected error or died."""
    check = "process" if not failure.details else "memory" if "MemoryError" in failure.details else "error"
    return Failed(task.scan.case, task.key, check, f"could not be prepared: {failure.summary}{_place(failure.details)}")


def _place(details: str) -> str:
    """Where an error was raised, by the last frame of a traceback: without folders, which differ between machines."""
    frames = [line.strip() for line in details.splitlines() if line.strip().startswith('File "')]
    if not frames:
        return ""
    file, line, *rest = frames[-1].split(", ")
    name = Path(file.removeprefix('File "').rstrip('"')).name
    return f" ({', '.join([name, line, *rest])})"
