"""The catalogue: a folder with one table, a row a scan, in which everything known about it stands.

``catalogue.parquet`` is the table, ``catalogue.csv`` the same for people, ``thumbnails.parquet`` small pictures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas
import pyarrow
from pyarrow import parquet

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.errors import UserError
from nnssl_mae.files import whole_file

SCHEMA = 1
TABLE, TABLE_FOR_PEOPLE, THUMBNAILS = "catalogue.parquet", "catalogue.csv", "thumbnails.parquet"
ACCEPTED, REJECTED = "accepted", "rejected"
_METADATA = b"nnssl_mae"


@dataclass(frozen=True)
class ScanRow:
    """One scan: where it is, whose, what its header and voxels say, and the verdict.

    Axes x, y, z are those of RAS (right, anterior, superior), whatever the order in the file. Numbers that were not
    read, because the file is damaged or voxels were not asked for, are NaN or 0; texts are empty.
    """

    path: str
    """Absolute; the folder of a DICOM series."""
    series: str
    """UID of the DICOM series; empty for files of volumes."""
    frame: str
    """Which volume of a 4D image: a number from 0, or ``mean``; empty where there is one only."""
    case: str
    """Name of the scan inside a prepared dataset; no two rows share one, whatever the case of letters."""
    dataset: str
    """Name of the folder that was searched."""
    subject: str
    subject_from: str
    """How the subject is known: ``regex``, ``bids``, ``dicom``, ``folder`` or ``file``."""
    session: str
    modality: str
    """BIDS suffix (``T1w``), or what the name or the DICOM header says; empty where nothing does."""
    format: str
    """``nifti``, ``nrrd``, ``metaimage`` or ``dicom``."""
    size_x: int = 0
    size_y: int = 0
    size_z: int = 0
    spacing_x: float = float("nan")
    spacing_y: float = float("nan")
    spacing_z: float = float("nan")
    min_spacing: float = float("nan")
    max_spacing: float = float("nan")
    """Slice thickness of anisotropic scans, mm."""
    min_fov: float = float("nan")
    """Shortest edge of the field of view, mm."""
    max_fov: float = float("nan")
    orientation: str = ""
    """Directions of the axes as stored: ``RAS``, ``LPI``, ``PSR`` ..."""
    dtype: str = ""
    volumes: int = 1
    """How many volumes the file holds; more than 1 for 4D images."""
    minimum: float = float("nan")
    maximum: float = float("nan")
    mean: float = float("nan")
    std: float = float("nan")
    p01: float = float("nan")
    p50: float = float("nan")
    p99: float = float("nan")
    nonzero: float = float("nan")
    """Share of voxels that are not zero."""
    distinct: int = 0
    """How many different values there are; of numbers that are not whole, in a sample."""
    whole_numbers: bool = False
    """Whether every voxel is a whole number."""
    flat: float = float("nan")
    """Share of equal values among neighbours, background left out: high in label maps. Only where ``distinct`` is
    small."""
    relative: str = ""
    """Path below the searched folder: what the scan is judged by where its name counts."""
    description: str = ""
    """Of the DICOM series."""
    image_type: str = ""
    """DICOM's ImageType."""
    exclude_mask: str = ""
    """Its exclusion mask; empty if there is none."""
    bytes: int = 0
    """Size of the file, or of all files of the series."""
    modified_ns: int = 0
    """Time of its newest change."""
    source_hash: str = ""
    """Of the bytes of the file or series and of the exclusion mask: what resuming compares."""
    voxel_hash: str = ""
    """Of the voxels in RAS order with their spacing: equal for equal images, whatever file they are in."""
    check: str = ""
    """Which check it failed (a word of :mod:`nnssl_mae.catalogue.checks`); empty if none."""
    detail: str = ""
    """Why, as a part of a sentence."""
    rule: str = ""
    """Which rule of the user left it out; empty if none."""
    verdict: str = ACCEPTED
    """``accepted`` or ``rejected``: the result of check and rules."""


COLUMNS = tuple(entry.name for entry in fields(ScanRow))


@dataclass(frozen=True)
class Catalogue:
    """The table and how it was made."""

    rows: pandas.DataFrame
    """Columns as :class:`ScanRow`, sorted by case."""
    settings: dict[str, Any] = field(default_factory=dict)
    """JSON: what was searched and with which limits, and the rules."""

    @property
    def accepted(self) -> pandas.DataFrame:
        """The rows that can be used."""
        return self.rows[self.rows["verdict"] == ACCEPTED]


def scan_of(row: Any) -> Scan:
    """The scan of a row (of ``itertuples`` or a :class:`ScanRow`)."""
    return Scan(
        path=Path(row.path),
        case=row.case,
        subject=row.subject,
        exclude=Path(row.exclude_mask) if row.exclude_mask else None,
        series=row.series,
        frame=row.frame,
        dataset=row.dataset,
        session=row.session,
    )


def is_catalogue(path: Path) -> bool:
    """Whether a path is the folder, or the table, of a catalogue."""
    return (path / TABLE).is_file() or (path.name == TABLE and path.is_file())


def write_catalogue(folder: Path, catalogue: Catalogue) -> None:
    """Writes both tables, each by rename."""
    table = pyarrow.Table.from_pandas(catalogue.rows[list(COLUMNS)], preserve_index=False)
    content = json.dumps({"schema": SCHEMA, **catalogue.settings}, sort_keys=True)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA: content.encode()})
    with whole_file(folder / TABLE_FOR_PEOPLE) as temporary:
        catalogue.rows.to_csv(temporary, index=False)
    with whole_file(folder / TABLE) as temporary:
        parquet.write_table(table, temporary)


def read_catalogue(path: Path) -> Catalogue:
    """A catalogue by its folder or by its table.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    file = path / TABLE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} holds no catalogue ({TABLE}); make one with `nnssl-mae scan FOLDER -o {path}`")
    try:
        table = parquet.read_table(file)
        settings = json.loads((table.schema.metadata or {})[_METADATA])
        version = settings.pop("schema")
    except Exception as error:  # pyarrow's own error types, KeyError for a foreign table; the text goes to the user
        raise UserError(
            f"{file} cannot be read as a catalogue ({type(error).__name__}: {error}); make it again with "
            "`nnssl-mae scan`"
        ) from error
    if version != SCHEMA or set(COLUMNS) - set(table.column_names):
        raise UserError(f"{file} was written by another version of nnssl_mae; make it again with `nnssl-mae scan`")
    return Catalogue(table.to_pandas(), settings)
