"""What became of each scan of a preparation: records that survive being killed, and what they amount to.

Every process that prepares appends to a journal of its own, so shards never wait for each other. Records have no order:
whether one counts is decided by the key of its case and by the file on the disk, never by when it was written.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnssl_mae.errors import UserError
from nnssl_mae.files import GONE, sha256
from nnssl_mae.journal import read_journal
from nnssl_mae.scans.cases import CaseRow, open_cases, table_path
from nnssl_mae.scans.storage import ENDING, EXCLUDE_SUFFIX

JOURNAL_ENDING = ".jsonl"


@dataclass(frozen=True)
class Finished:
    """A stored volume: what :class:`nnssl_mae.scans.cases.CaseRow` says of it but whose it is."""

    case: str
    key: str
    size: int
    """Bytes of the file."""
    exclusion_size: int | None
    """Bytes of its exclusion mask, 0 if it has none; None where it is not known."""
    shape: tuple[int, ...]
    percentile_00_5: float
    percentile_99_5: float
    foreground: bytes
    digest: str = ""
    """Of the bytes of both files; empty in a case table."""

    def as_record(self) -> dict[str, Any]:
        """For the journal."""
        return {**asdict(self), "foreground": base64.b64encode(self.foreground).decode()}


@dataclass(frozen=True)
class Failed:
    """A scan that could not be prepared, and why: the word of a check, and a part of a sentence."""

    case: str
    key: str
    check: str
    detail: str

    def as_record(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)


def read_records(folder: Path) -> Iterator[Finished | Failed]:
    """The records of all journals in a folder, one at a time: together they are large."""
    for path in sorted(folder.glob(f"*{JOURNAL_ENDING}")):
        for content in read_journal(path):
            try:
                yield _record(content)
            except (KeyError, TypeError, ValueError):
                continue  # a line of another version, or damaged on the disk: the case is done again


def _record(content: Mapping[str, Any]) -> Finished | Failed:
    if "check" in content:
        return Failed(**content)
    shape, foreground = tuple(content["shape"]), base64.b64decode(content["foreground"])
    return Finished(**{**content, "shape": shape, "foreground": foreground})


def mask_name(case: str) -> str:
    """File name of the exclusion mask of a case, fast enough for 40,000."""
    return f"{case}{EXCLUDE_SUFFIX}{ENDING}"


def digest_of(volume: Path, mask: Path | None) -> str:
    """Of the bytes of a volume and of its exclusion mask, if it has one; empty if a file is not there."""
    try:
        return " ".join(sha256(path) for path in (volume, mask) if path is not None)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return ""


def remade(records: Iterable[Finished | Failed], keys: Mapping[str, str]) -> set[str]:
    """Cases that were also made of another state of their scan: whose files lie there, their sizes do not always tell.

    It happens when a scan or its mask was changed, the run was killed, and the scan was changed back.
    """
    return {r.case for r in records if isinstance(r, Finished) and keys.get(r.case, r.key) != r.key}


def stored_rows(data_folder: Path) -> list[CaseRow]:
    """The rows of a case table; none if there is none that can be read, and then volumes are made anew."""
    if not table_path(data_folder).is_file():
        return []
    try:
        rows = open_cases(data_folder).to_pylist()
    except UserError:
        return []  # its sentence is "run prepare again", and that is what happens
    return [CaseRow(**{**row, "shape": tuple(row["shape"])}) for row in rows]


def read_table(data_folder: Path) -> Iterator[Finished]:
    """The rows of a case table as records."""
    for row in stored_rows(data_folder):
        numbers = (row.percentile_00_5, row.percentile_99_5)
        exclusion = None if row.exclusion_bytes < 0 else row.exclusion_bytes
        yield Finished(row.case, row.key, row.bytes, exclusion, row.shape, *numbers, row.foreground)


@dataclass
class Standing:
    """What has become of the wanted cases so far."""

    done: set[str] = field(default_factory=set)
    failed: dict[str, Failed] = field(default_factory=dict)


def valid_records(
    records: Iterable[Finished | Failed], keys: Mapping[str, str], sizes: Mapping[str, set[int]]
) -> Iterator[Finished | Failed]:
    """The records that still hold: of wanted cases, unchanged scans, and files that are there as they were written.

    Args:
        records: in any order.
        keys: of every wanted case, by its name.
        sizes: of the files of that name that are there (in the work folder, in the finished dataset).
    """
    nothing: set[int] = set()
    for record in records:
        if keys.get(record.case) != record.key:
            continue
        if isinstance(record, Finished):
            if record.size not in sizes.get(f"{record.case}{ENDING}", nothing):
                continue
            if record.exclusion_size and record.exclusion_size not in sizes.get(mask_name(record.case), nothing):
                continue
        yield record


def standing(records: Iterable[Finished | Failed]) -> Standing:
    """Sums up records that hold; a success counts more than a failure, whichever came first."""
    found = Standing()
    for record in records:
        if isinstance(record, Finished):
            found.done.add(record.case)
        else:
            found.failed[record.case] = record
    for case in found.done:
        found.failed.pop(case, None)
    return found
