"""What earlier runs found out about scans that have not changed since: from their table, or from a killed run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nnssl_mae.catalogue.examine import Examined
from nnssl_mae.catalogue.find import Found, Key, path_text, text_of
from nnssl_mae.catalogue.table import COLUMNS, Catalogue, ScanRow
from nnssl_mae.catalogue.thumbnails import GrowingPictures, Place
from nnssl_mae.errors import ResumableError
from nnssl_mae.journal import Journal, read_journal

_FROM_READING = {"unreadable", "truncated", "not_finite", "exclusion_mask", "colour"}
_SOMETIMES_FROM_READING = {"not_3d", "spacing"}
_NAMES = ("path", "series", "frame", "case", "dataset", "subject", "subject_from", "session", "modality", "relative")
_OF_FINDING = {*_NAMES, "description", "exclude_mask", "bytes", "modified_ns", "format"}
_OF_JUDGING = {"check", "detail", "rule", "verdict"}
_OF_VOXELS = {"minimum", "maximum", "mean", "std", "p01", "p50", "p99", "nonzero", "distinct", "whole_numbers", "flat"}
_OF_VOXELS |= {"source_hash", "voxel_hash"}
_BLANK = ScanRow("", "", "", "", "", "", "", "", "", "")
_DEFAULTS = {entry.name: getattr(_BLANK, entry.name) for entry in fields(ScanRow)}


def new_row(one: Found, format_name: str) -> ScanRow:
    """A row that knows what finding told."""
    scan = one.scan
    return ScanRow(
        path=path_text(scan.path),
        series=scan.series,
        frame=scan.frame,
        case=scan.case,
        dataset=scan.dataset,
        subject=scan.subject,
        subject_from=one.subject_from,
        session=scan.session,
        modality=one.modality,
        format=format_name,
        relative=text_of(one.relative),
        description=text_of(one.description),
        exclude_mask=path_text(scan.exclude) if scan.exclude else "",
        bytes=one.bytes,
        modified_ns=one.modified_ns,
    )


def with_facts(row: ScanRow, facts: ScanRow) -> ScanRow:
    """A new row with what an earlier one, of the same files, knew of header and voxels."""
    keep = {name: getattr(facts, name) for name in COLUMNS if name not in _OF_FINDING | _OF_JUDGING}
    if cannot_be_read(facts):
        keep |= {"check": facts.check, "detail": facts.detail}
    return replace(row, format=facts.format, **keep)


def without_voxels(row: ScanRow) -> ScanRow:
    """Only what the header told."""
    blank = {name: _DEFAULTS[name] for name in _OF_VOXELS}
    if knows_header(row):
        blank |= {"check": "", "detail": ""}
    return replace(row, **blank)


def cannot_be_read(row: ScanRow) -> bool:
    """Whether its check failed while it was read, so that no limit changes it."""
    return row.check in _FROM_READING or (row.check in _SOMETIMES_FROM_READING and row.size_x == 0)


def knows_header(row: ScanRow) -> bool:
    """Whether the header was read."""
    return row.size_x > 0


def knows_voxels(row: ScanRow) -> bool:
    """Whether the voxels were read, or found to be damaged."""
    return bool(row.voxel_hash) or (cannot_be_read(row) and row.check != "unreadable")


@dataclass(frozen=True)
class _Facts:
    row: ScanRow
    place: Place | None = None


class Known:
    """Rows by key. A file counts as unchanged if its size, its time of change and its mask are the same.

    So does one at the same place of a dataset that was moved.

    Scans that could not be opened are tried again: permissions and network disks recover.
    """

    def __init__(self, earlier: Catalogue | None) -> None:
        self._rows: dict[Key, _Facts] = {}
        self._headers: dict[tuple[str, str], ScanRow] = {}
        self._places: dict[tuple[str, ...], ScanRow] = {}
        for values in _rows(earlier):
            self._add(ScanRow(**values), None)

    def names(self) -> dict[tuple[str, ...], str]:
        """Case names that scans had, by key and by place in their dataset."""
        names: dict[tuple[str, ...], str] = {place: row.case for place, row in self._places.items()}
        names.update((key, facts.row.case) for key, facts in self._rows.items())
        return names

    def read_journal(self, path: Path) -> None:
        """Adds what a killed run had found out."""
        for record in read_journal(path):
            try:
                row = replace(_BLANK, **record["row"])
                place = tuple(record["picture"]) if record.get("picture") else None
            except (KeyError, TypeError):
                continue  # a line that another version wrote
            self._add(row, place)

    def add_to(self, row: ScanRow) -> ScanRow:
        """The row with what is known of the same files."""
        facts = self._rows.get(_key(row))
        if facts is not None and _same_files(facts.row, row) and facts.row.check != "unreadable":
            return with_facts(row, facts.row)
        moved = self._places.get(_place_in_dataset(row))
        if facts is None and moved is not None and _same_files(moved, row, moved_too=True) and knows_header(moved):
            return with_facts(row, moved)
        header = self._headers.get((row.path, row.series))
        if header is not None and _same_files(header, row):
            return without_voxels(with_facts(row, header))
        return row

    def place(self, row: ScanRow) -> Place | None:
        """Where its picture is in the growing file."""
        facts = self._rows.get(_key(row))
        return facts.place if facts is not None and _same_files(facts.row, row) else None

    def _add(self, row: ScanRow, place: Place | None) -> None:
        self._rows[_key(row)] = _Facts(row, place)
        self._places[_place_in_dataset(row)] = row
        if knows_header(row):
            self._headers[row.path, row.series] = row


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """A sentence where the catalogue cannot be written."""
    try:
        yield
    except OSError as error:
        raise ResumableError(
            f"Nothing can be written to {folder} ({error.strerror}); what is done stays: make room or choose another "
            "folder with -o, and run the same command again"
        ) from error


class Notes:
    """Writes down each finished scan, for the case that this run is killed; a context manager."""

    def __init__(self, folder: Path, journal: Path, pictures: Path) -> None:
        self._folder = folder
        self.places: dict[Key, Place] = {}
        with writing_to(self._folder):
            self._journal, self._pictures = Journal(journal), GrowingPictures(pictures)

    def write(self, row: ScanRow, examined: Examined) -> None:
        """Remembers a row.

        Raises:
            ResumableError: the disk is full.
        """
        with writing_to(self._folder):
            place = self._pictures.append(examined.picture) if examined.picture else None
            values = {name: getattr(row, name) for name in COLUMNS}
            changed = {name: value for name, value in values.items() if value != _DEFAULTS[name] and value == value}
            self._journal.append({"row": changed, "picture": place})
        if place is not None:
            self.places[_key(row)] = place

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pictures.close()
        self._journal.__exit__(None, None, None)


def _rows(catalogue: Catalogue | None) -> Iterator[dict[str, Any]]:
    if catalogue is not None:
        columns = [catalogue.rows[name].tolist() for name in COLUMNS]
        for values in zip(*columns, strict=True):
            yield dict(zip(COLUMNS, values, strict=True))


def rows_of(catalogue: Catalogue) -> list[ScanRow]:
    """The rows of a table one by one."""
    return [ScanRow(**values) for values in _rows(catalogue)]


def _key(row: ScanRow) -> Key:
    return (row.path, row.series, row.frame)


def _place_in_dataset(row: ScanRow) -> tuple[str, ...]:
    return (row.dataset, row.relative, row.series, row.frame)


def _same_files(one: ScanRow, other: ScanRow, moved_too: bool = False) -> bool:
    masks = (Path(row.exclude_mask).name if moved_too else row.exclude_mask for row in (one, other))
    return (one.bytes, one.modified_ns, next(masks)) == (other.bytes, other.modified_ns, next(masks))
