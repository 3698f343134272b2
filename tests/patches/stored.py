"""Small prepared datasets for tests of the loader: volumes, masks and the case table, without preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.scans.cases import CaseRow, write_cases
from nnssl_mae.scans.foreground import encode_occupancy
from nnssl_mae.scans.storage import exclusion_path, write_exclusion, write_volume

PATCH = (32, 32, 32)


def row(case: str, **values: object) -> CaseRow:
    """A row of the case table in which only what matters is given."""
    usual = {"subject": case, "source": "", "shape": (8, 8, 8), "percentile_00_5": -1.0, "percentile_99_5": 3.0}
    return CaseRow(case, **{**usual, "foreground": b"", **values})  # type: ignore[arg-type]


def table_of(folder: Path, subjects: Sequence[str], datasets: Sequence[str] | None = None) -> CaseIndex:
    """A table of cases c000, c001, ... without volumes."""
    datasets = datasets or [""] * len(subjects)
    rows = [row(f"c{n:03d}", subject=s, dataset=d) for n, (s, d) in enumerate(zip(subjects, datasets, strict=True))]
    write_cases(folder, rows)
    return CaseIndex(folder)


def store(
    folder: Path,
    images: Sequence[np.ndarray],
    masks: Mapping[int, np.ndarray] | None = None,
    heads: Mapping[int, np.ndarray] | None = None,
) -> CaseIndex:
    """Stores volumes (Z, Y, X), named 0, 1, ..., with exclusion masks and foreground of some of them."""
    folder.mkdir(exist_ok=True)
    rows = []
    for index, image in enumerate(images):
        path = folder / f"{index}.b2nd"
        write_volume(path, image[None].astype(np.float32), PATCH)
        content = encode_occupancy(heads[index]) if heads and index in heads else b""
        size = path.stat().st_size
        hidden = 0
        if masks and index in masks:
            write_exclusion(exclusion_path(folder, str(index)), masks[index][None], PATCH)
            hidden = exclusion_path(folder, str(index)).stat().st_size
        rows.append(row(str(index), shape=image.shape, foreground=content, bytes=size, exclusion_bytes=hidden))
    write_cases(folder, rows)
    return CaseIndex(folder)


def data_folder(prepared: Path) -> Path:
    """The folder of the volumes in a folder of ``nnUNet_preprocessed``."""
    (table,) = prepared.glob("*_cases.arrow")
    return table.with_name(table.name.removesuffix("_cases.arrow"))
