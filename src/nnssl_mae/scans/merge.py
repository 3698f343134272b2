"""Puts all together once every case has a record: the table, the lists, nothing that is not wanted; then the rename.

Killed at any moment, it can be done again; done by two processes at once, it is the same as done by one. What it reads
(volumes and records) it removes last, when what it writes is on the disk.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.files import as_json, file_sizes, remove_leftovers, unique_word, whole_file
from nnssl_mae.scans.cases import CaseRow, table_path, write_cases
from nnssl_mae.scans.left_out import LEFT_OUT, LeftOut, as_csv, each
from nnssl_mae.scans.planning import dataset_json
from nnssl_mae.scans.records import Finished, mask_name, stored_rows
from nnssl_mae.scans.request import REQUEST
from nnssl_mae.scans.storage import ENDING
from nnssl_mae.scans.workplace import CATALOGUE, Workplace, data_folder_name

DATASET = "dataset.json"


@dataclass(frozen=True)
class Merged:
    """What the dataset holds now, and what is new about it."""

    cases: int
    added: int
    replaced: int
    removed: int
    is_changed: bool
    """Whether anything was written, the lists included."""


def case_rows(wanted: pandas.DataFrame, records: Iterable[object]) -> list[CaseRow]:
    """The case table, sorted by case: measured numbers from the records, names from the catalogue.

    Args:
        wanted: rows of the catalogue.
        records: of :meth:`nnssl_mae.scans.workplace.Workplace.valid_records`.
    """
    found = {record.case: record for record in records if isinstance(record, Finished)}
    return [
        CaseRow(
            case=row.case,
            subject=row.subject,
            source=row.path,
            shape=record.shape,
            percentile_00_5=record.percentile_00_5,
            percentile_99_5=record.percentile_99_5,
            foreground=record.foreground,
            dataset=row.dataset,
            key=record.key,
            bytes=record.size,
            exclusion_bytes=-1 if record.exclusion_size is None else record.exclusion_size,
        )
        for row in each(wanted[["case", "subject", "path", "dataset"]].sort_values("case"))
        if (record := found.get(row.case)) is not None
    ]


def merge(
    place: Workplace,
    plans: Mapping[str, Any],
    wanted: pandas.DataFrame,
    keys: Mapping[str, str],
    left_out: Sequence[LeftOut],
    request: bytes,
) -> Merged:
    """Makes the dataset appear, or brings the finished one up to date.

    Args:
        place: of the work.
        plans: of the dataset.
        wanted: rows of the catalogue that shall be in it.
        keys: of these, by case.
        left_out: what is not in it.
        request: content of ``request.json``.

    Raises:
        FileNotFoundError: another process is doing the same, or has done it.
        ResumableError: a volume has vanished.
        UserError: no scan is left.
    """
    volumes = place.work / data_folder_name(plans)
    records = {r.case: r for r in place.valid_records(plans, keys) if isinstance(r, Finished)}
    rows = case_rows(wanted, records.values())
    absent = len(keys) - len(rows) - len({scan.case for scan in left_out if scan.case in keys})
    if absent > 0:
        raise ResumableError(
            f"{absent} volumes have vanished from {volumes} meanwhile; run the same command again: it makes them anew"
        )
    if not rows:
        raise UserError("None of the scans can be used")
    lists = {DATASET: as_json(dataset_json(len(rows))), LEFT_OUT: as_csv(left_out), REQUEST: request}
    if place.is_update:
        return _update(place, place.final / volumes.name, rows, records, lists)
    _remove_unwanted(volumes, records)
    _write(place.work, volumes, rows, lists)
    for folder in (place.target(plans).unfinished, place.records):
        # Under another name first, so that a process still at work finds no folder to write into.
        with contextlib.suppress(FileNotFoundError):
            folder.rename(folder.with_name(f".{folder.name}.{unique_word()}.tmp"))
    for folder in (place.work, place.work / CATALOGUE):
        _sweep(folder)
    place.work.rename(place.final)
    place.sweep()
    return Merged(cases=len(rows), added=len(rows), replaced=0, removed=0, is_changed=True)


def _update(
    place: Workplace,
    volumes: Path,
    rows: Sequence[CaseRow],
    records: Mapping[str, Finished],
    lists: Mapping[str, bytes],
) -> Merged:
    """Moves new volumes into the finished dataset; the table tells of them last."""
    before = stored_rows(volumes)
    is_changed = before != rows or any(_content(place.final / name) != text for name, text in lists.items())
    for name in file_sizes(place.work / volumes.name):
        if record := records.get(name.removesuffix(ENDING)):
            _move(place.work / volumes.name, volumes, record)
    _remove_unwanted(volumes, records)
    if is_changed:
        _write(place.final, volumes, rows, lists)
    _move_catalogue(place)
    for name in (*lists, table_path(volumes).name):
        remove_leftovers(place.final, name)
    place.remove_work()
    old, new = ({row.case: row.key for row in table} for table in (before, rows))
    return Merged(
        cases=len(rows),
        added=len(new.keys() - old.keys()),
        replaced=sum(old[case] != new[case] for case in new.keys() & old.keys()),
        removed=len(old.keys() - new.keys()),
        is_changed=is_changed,
    )


def _move(source: Path, target: Path, record: Finished) -> None:
    """The mask first, as it was written; what another process, or a killed one, has moved is not there any more."""
    volume, mask = source / f"{record.case}{ENDING}", source / mask_name(record.case)
    if not record.exclusion_size:
        (target / mask.name).unlink(missing_ok=True)
    for file in (mask, volume):
        with contextlib.suppress(FileNotFoundError):
            file.replace(target / file.name)


def _move_catalogue(place: Workplace) -> None:
    """The one that was made in the work folder, if scans were given as folders."""
    _sweep(place.work / CATALOGUE)
    for file in sorted((place.work / CATALOGUE).glob("*")):
        (place.final / CATALOGUE).mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file.replace(place.final / CATALOGUE / file.name)


def _remove_unwanted(volumes: Path, records: Mapping[str, Finished]) -> None:
    """Files of cases that are not in the dataset (any more), and whatever else lies there."""
    wanted = {f"{case}{ENDING}" for case in records}
    wanted |= {mask_name(case) for case, record in records.items() if record.exclusion_size != 0}
    for name in file_sizes(volumes).keys() - wanted:
        (volumes / name).unlink(missing_ok=True)


def _write(folder: Path, volumes: Path, rows: Sequence[CaseRow], lists: Mapping[str, bytes]) -> None:
    for name, content in lists.items():
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(content)
    write_cases(volumes, rows)


def _sweep(folder: Path) -> None:
    """Removes what killed processes were writing, and folders on their way out."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
