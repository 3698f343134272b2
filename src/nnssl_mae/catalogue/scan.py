"""``nnssl-mae scan``: folders of scans into a catalogue. It can be killed at any moment and goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas
from rich.console import Console

from nnssl_mae.catalogue.checks import Limits, header_verdict, voxel_verdict
from nnssl_mae.catalogue.examine import Examined, examine_header, examine_voxels
from nnssl_mae.catalogue.find import EXCLUDE_SUFFIX, Found, Scan, find_scans, frames_of, path_text, stamp
from nnssl_mae.catalogue.find import with_unique_names as named
from nnssl_mae.catalogue.known import (
    Known,
    Notes,
    cannot_be_read,
    knows_header,
    knows_voxels,
    new_row,
    rows_of,
    without_voxels,
    writing_to,
)
from nnssl_mae.catalogue.lock import writing_alone
from nnssl_mae.catalogue.read import format_of
from nnssl_mae.catalogue.rules import apply_rules, rules_of
from nnssl_mae.catalogue.summary import print_found, print_result, say
from nnssl_mae.catalogue.table import (
    ACCEPTED,
    COLUMNS,
    REJECTED,
    TABLE,
    TABLE_FOR_PEOPLE,
    THUMBNAILS,
    Catalogue,
    ScanRow,
    read_catalogue,
    scan_of,
    write_catalogue,
)
from nnssl_mae.catalogue.thumbnails import write_thumbnails
from nnssl_mae.errors import UserError
from nnssl_mae.files import remove_leftovers
from nnssl_mae.memory import memory_budget
from nnssl_mae.parallel import Outcome, in_processes
from nnssl_mae.progress import track

SPLITS = ("mean", "first", "all")
_JOURNAL, _PICTURES = "scan.journal", "scan.pictures"
_FILES = (TABLE, TABLE_FOR_PEOPLE, THUMBNAILS)
_BYTES_A_VOXEL = 24  # while a scan is examined: as stored, as float32, and masks of it
_NO_TEXT = "has a name that is no valid text (UTF-8), which the libraries that read scans cannot open; rename it"


def scan_folders(
    roots: Sequence[Path],
    folder: Path,
    limits: Limits,
    console: Console,
    workers: int = 2,
    subject_regex: str | None = None,
    exclude_suffix: str = EXCLUDE_SUFFIX,
    split_4d: str | None = None,
    headers_only: bool = False,
    rehash: bool = False,
) -> Catalogue:
    """Finds, reads and judges all scans below some folders, and writes the catalogue.

    What an earlier run wrote into ``folder`` is used: files that have not changed are not read again, scans keep their
    names, and rules stay in force. A damaged scan never stops anything; it gets a row with the reason.

    Args:
        roots, subject_regex, exclude_suffix: see :func:`nnssl_mae.catalogue.find.find_scans`.
        folder: of the catalogue.
        limits: what is accepted.
        console: for progress and counts.
        workers: processes.
        split_4d: what becomes of 4D images: ``mean`` of their volumes, ``first``, or ``all``; rejected if None.
        headers_only: voxels are not read, so that only the checks of names and headers are made.
        rehash: files are read again even if their size and time have not changed.

    Raises:
        UserError: nothing to search, or an option is wrong; nothing was written then.
        ResumableError: the disk is full, or processes cannot start; what is done stays.
    """
    _check_options(folder, split_4d, workers)
    earlier = _earlier(folder, console)
    known = Known(earlier)
    names = known.names()
    found = find_scans(roots, subject_regex, exclude_suffix, names, workers)
    print_found(found, console)
    settings = {
        "roots": [path_text(root.absolute()) for root in roots],
        "limits": asdict(limits),
        "subject_regex": subject_regex,
        "exclude_suffix": exclude_suffix,
        "split_4d": split_4d,
        "headers_only": headers_only,
    }
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writing_alone(folder):
        known = Known(None) if rehash else known
        catalogue = _read_and_judged(found.found, folder, known, names, limits, settings, console, workers, rehash)
    print_result(catalogue, folder, earlier, console)
    return catalogue


def _read_and_judged(
    found: Sequence[Found],
    folder: Path,
    known: Known,
    names: dict[tuple[str, ...], str],
    limits: Limits,
    settings: dict[str, Any],
    console: Console,
    workers: int,
    rehash: bool,
) -> Catalogue:
    """Reads what is not known and writes the catalogue; ``names`` are those of earlier runs."""
    journal, pictures = (folder / f"{'re' if rehash else ''}{name}" for name in (_JOURNAL, _PICTURES))
    for name in _FILES:
        remove_leftovers(folder, name)
    known.read_journal(journal)
    earlier = _earlier(folder, console, quiet=True)  # again: rules may have been added while folders were searched
    rules = earlier.settings.get("rules", []) if earlier else []
    with Notes(folder, journal, pictures) as notes:
        work = _Work(known, notes, console, workers)
        rows = work.split(found, work.headers(found), settings["split_4d"], names)
        if not settings["headers_only"]:
            rows = work.voxels(rows, limits)
        catalogue = apply_rules(Catalogue(_table(_judged(rows, limits)), {**settings, "rules": rules}))
        places = {row.case: place for row in rows if (place := notes.places.get(_key(row)) or known.place(row))}
        with writing_to(folder):
            write_thumbnails(folder, _cases_with_pictures(catalogue), places, pictures)
            write_catalogue(folder, catalogue)
    for path in (journal, pictures):
        path.unlink(missing_ok=True)
    return catalogue


def refresh(catalogue: Catalogue, workers: int, console: Console, rehash: bool = False) -> Catalogue:
    """The same catalogue, with the scans read again whose files changed since, and those left out that are gone.

    Nothing is searched and nothing written.

    Args:
        catalogue: of any age.
        workers: processes.
        console: for progress, if files changed.
        rehash: whether every file is read again.

    Raises:
        ResumableError: processes cannot start.
    """
    rows = rows_of(catalogue)
    changed: dict[int, ScanRow] = {}
    for place in sorted(range(len(rows)), key=lambda n: rows[n].path):  # all series of a folder together
        row = rows[place]
        size, newest = stamp(scan_of(row))
        if not newest:
            changed[place] = _gone(row)
        elif rehash or (size, newest) != (row.bytes, row.modified_ns):
            changed[place] = replace(_unread(row), bytes=size, modified_ns=newest)
    if not changed:
        return catalogue
    limits = _limits_of(catalogue)
    work = _Work(Known(None), None, console, workers)
    read_again = work.read_headers(list(changed.values()))
    if not catalogue.settings.get("headers_only"):
        read_again = work.voxels(read_again, limits)
    for place, row in zip(changed, read_again, strict=True):
        rows[place] = row
    count = sum(row.detail != _GONE for row in read_again)
    say(console, f"Since the catalogue was made, {count} scans changed and {len(read_again) - count} are gone.")
    judged = Catalogue(_table(_judged(rows, limits)), catalogue.settings)
    return apply_rules(judged)


_GONE = "is not there any more"


class _Work:
    """Reads what is not known yet, in processes."""

    def __init__(self, known: Known, notes: Notes | None, console: Console, workers: int) -> None:
        self._known, self._notes, self._console, self._workers = known, notes, console, workers

    def headers(self, found: Sequence[Found]) -> list[ScanRow]:
        """A row for each scan, with its header's columns."""
        return self.read_headers([self._known.add_to(new_row(one, format_of(one.scan))) for one in found])

    def read_headers(self, rows: Sequence[ScanRow]) -> list[ScanRow]:
        """The rows with the columns of headers that were not read yet."""
        rows = [_readable_name(row) for row in rows]
        todo = [n for n, row in enumerate(rows) if not knows_header(row) and not cannot_be_read(row)]
        return self._examined(rows, todo, examine_header, "Headers", lambda _: 0.0)

    def split(
        self, found: Sequence[Found], rows: Sequence[ScanRow], split_4d: str | None, names: dict[Any, str]
    ) -> list[ScanRow]:
        """Rows of the volumes in the place of rows of 4D images."""
        if split_4d is None:
            return list(rows)
        pieces: list[tuple[Found, ScanRow | None]] = []
        for one, row in zip(found, rows, strict=True):
            if row.volumes < 2 or cannot_be_read(row):
                pieces.append((one, row))
                continue
            frames = {"mean": ["mean"], "first": ["0"]}.get(split_4d, [str(n) for n in range(row.volumes)])
            pieces += [(piece, None) for piece in frames_of(one, frames)]
        renamed = named([one for one, _ in pieces], names)
        split = [
            replace(row, case=one.scan.case) if row else self._known.add_to(new_row(one, format_of(one.scan)))
            for one, (_, row) in zip(renamed, pieces, strict=True)
        ]
        by_file = {(row.path, row.series): row for row in rows}
        return [row if knows_header(row) else _with_header(row, by_file[row.path, row.series]) for row in split]

    def voxels(self, rows: Sequence[ScanRow], limits: Limits) -> list[ScanRow]:
        """The rows with the columns of voxels, where the header is acceptable and they were not read yet."""
        todo = [
            n
            for n, row in enumerate(rows)
            if not knows_voxels(row) and not cannot_be_read(row) and header_verdict(row, limits) is None
        ]
        return self._examined(rows, todo, examine_voxels, "Voxels", _memory_of)

    def _examined(
        self,
        rows: Sequence[ScanRow],
        todo: Sequence[int],
        work: Callable[[Scan], Examined],
        label: str,
        cost: Callable[[ScanRow], float],
    ) -> list[ScanRow]:
        result = list(rows)
        if not todo:
            return result
        places = {_key(rows[n]): n for n in todo}
        scans = (scan_of(rows[n]) for n in sorted(todo, key=lambda n: (rows[n].path, rows[n].series, rows[n].frame)))
        outcomes: Iterable[Outcome[Scan, Examined]] = in_processes(
            work,
            scans,
            min(self._workers, len(todo)),
            cost=lambda scan: cost(rows[places[scan.key]]),
            budget=memory_budget(None),
        )
        for outcome in track(outcomes, label, len(todo), self._console):
            place = places[outcome.item.key]
            examined = outcome.result or Examined({})
            if outcome.failure is not None:
                examined = Examined({"check": "unreadable", "detail": f"cannot be read ({outcome.failure.summary})"})
            result[place] = replace(rows[place], **examined.columns)
            if self._notes is not None:
                self._notes.write(result[place], examined)
        return result


def _judged(rows: Sequence[ScanRow], limits: Limits) -> list[ScanRow]:
    """The rows with check, detail and verdict, sorted by case; duplicates are left to the rules."""
    return sorted((_judge(row, limits) for row in rows), key=lambda row: row.case)


def _judge(row: ScanRow, limits: Limits) -> ScanRow:
    if cannot_be_read(row):
        return replace(row, verdict=REJECTED)
    verdict = header_verdict(row, limits) or voxel_verdict(row, limits)
    check, detail = verdict or ("", "")
    return replace(row, check=check, detail=detail, verdict=REJECTED if verdict else ACCEPTED)


def _table(rows: Sequence[ScanRow]) -> pandas.DataFrame:
    return pandas.DataFrame({name: [getattr(row, name) for row in rows] for name in COLUMNS})


def _check_options(folder: Path, split_4d: str | None, workers: int) -> None:
    if split_4d is not None and split_4d not in SPLITS:
        raise UserError(f"--split-4d {split_4d} is not possible; choose from {', '.join(SPLITS)}")
    if workers < 1:
        raise UserError(f"-np {workers} is not possible; give 1 or more processes")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the catalogue with -o")


def _earlier(folder: Path, console: Console, quiet: bool = False) -> Catalogue | None:
    if not (folder / TABLE).is_file():
        return None
    try:
        earlier = read_catalogue(folder)
    except UserError as error:
        if not quiet:
            say(console, f"The earlier catalogue is not used, and its rules are lost: {error}", style="yellow")
        return None
    rules_of(earlier)  # damaged ones would stop us after hours of reading
    return earlier


def _limits_of(catalogue: Catalogue) -> Limits:
    stored = dict(catalogue.settings.get("limits", {}))
    try:
        return Limits(**{**stored, "allow": tuple(stored.get("allow", ()))})
    except TypeError as error:
        raise UserError("The catalogue's limits are damaged; make it again with `nnssl-mae scan`") from error


def _readable_name(row: ScanRow) -> ScanRow:
    if "\\udc" in row.path and not Path(row.path).exists():
        return replace(row, check="unreadable", detail=_NO_TEXT)
    return row


def _unread(row: ScanRow) -> ScanRow:
    return replace(without_voxels(row), size_x=0, check="", detail="")


def _gone(row: ScanRow) -> ScanRow:
    return replace(without_voxels(row), check="unreadable", detail=_GONE)


def _with_header(row: ScanRow, whole: ScanRow) -> ScanRow:
    """The row of one volume of a 4D image, from the row of all."""
    told = replace(whole, path=row.path, series=row.series, frame=row.frame, case=row.case)
    return without_voxels(told)


def _memory_of(row: ScanRow) -> float:
    return float(row.size_x) * row.size_y * row.size_z * _BYTES_A_VOXEL


def _cases_with_pictures(catalogue: Catalogue) -> Iterable[str]:
    return catalogue.rows["case"][catalogue.rows["voxel_hash"] != ""].tolist()


def _key(row: ScanRow) -> tuple[str, str, str]:
    return (row.path, row.series, row.frame)
