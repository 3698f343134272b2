"""Catalogues of a few good scans without the checks of `nnssl-mae scan`, and preparation without processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from nnssl_mae.catalogue.find import Scan, find_scans
from nnssl_mae.catalogue.read import read_header
from nnssl_mae.catalogue.table import Catalogue, ScanRow
from nnssl_mae.parallel import Failure, Outcome, _attempt
from nnssl_mae.scans.one_case import Target, Task, prepare_case
from nnssl_mae.scans.preprocess import BeyondStock
from nnssl_mae.scans.records import Finished
from nnssl_mae.scans.storage import open_volume


def catalogue_of(folder: Path) -> Catalogue:
    """Every NIfTI file in a folder, accepted."""
    rows = []
    for scan in find_scans([folder]).scans:
        status, header = scan.path.stat(), read_header(scan)
        files = [scan.path, *([scan.exclude] if scan.exclude else [])]
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        sizes = dict(zip(("size_x", "size_y", "size_z"), header.shape, strict=True))
        spacings = dict(zip(("spacing_x", "spacing_y", "spacing_z"), header.spacing, strict=True))
        row = ScanRow(
            str(scan.path), "", "", scan.case, folder.name, scan.subject, "bids", "", "T1w", "nifti",
            **sizes, **spacings, bytes=status.st_size, modified_ns=status.st_mtime_ns, source_hash=digest,
            exclude_mask=str(scan.exclude or ""),
        )  # fmt: skip
        rows.append(asdict(row))
    return Catalogue(pandas.DataFrame(rows).sort_values("case", ignore_index=True), {})


def one_by_one(
    work: Callable[[Any], Any], items: Iterable[Any], workers: int, cost: object = None, budget: float = 0.0
) -> Iterator[Outcome[Any, Any]]:
    """Stands for ``in_processes`` where processes are not what is tested: they take seconds to start."""
    for item in items:
        said = _attempt(work, item)
        yield Outcome(item, failure=said) if isinstance(said, Failure) else Outcome(item, said[0])


def files_of(folder: Path) -> dict[str, bytes]:
    """Content by name of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def store(scan: Scan, plans: dict[str, Any], folder: Path, beyond_stock: BeyondStock | None = None) -> np.ndarray:
    """The volume (1, Z, Y, X) of one scan as it is stored, now also in ``folder``."""
    folder.mkdir(exist_ok=True)
    record = prepare_case(Task(scan, "", 0.0), plans, beyond_stock or BeyondStock(), Target(folder, folder))
    assert isinstance(record, Finished), record
    return np.asarray(open_volume(folder / f"{scan.case}.b2nd")[:])
