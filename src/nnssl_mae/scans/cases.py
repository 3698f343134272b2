"""The case table: one row a preprocessed scan, beside the data folder (a foreign file inside it breaks nnU-Net).

One uncompressed Arrow file (Feather, version 2): it is mapped into memory, so that opening it costs next to nothing
and all processes of a machine share its pages, whatever the number of cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas
import pyarrow
from pyarrow import compute, ipc

from nnssl_mae.errors import UserError
from nnssl_mae.files import whole_file


@dataclass(frozen=True)
class CaseRow:
    """One preprocessed scan.

    Percentiles are of the preprocessed values, shape in voxels (z, y, x); ``foreground`` is where the head or body is
    (:func:`nnssl_mae.scans.foreground.encode_occupancy`).
    """

    case: str
    subject: str
    source: str
    shape: tuple[int, ...]
    percentile_00_5: float
    percentile_99_5: float
    foreground: bytes
    dataset: str = ""
    key: str = ""
    """Of source bytes, preprocessing configuration and code version: what resuming compares."""
    bytes: int = 0
    """Size of the stored volume."""
    exclusion_bytes: int = 0
    """Size of the stored exclusion mask, 0 if the case has none; -1 where that is not known."""


_SMALL_COLUMNS = tuple(field.name for field in fields(CaseRow) if field.name != "foreground")
_TYPES = {
    "shape": pyarrow.list_(pyarrow.int32(), 3),
    "percentile_00_5": pyarrow.float64(),
    "percentile_99_5": pyarrow.float64(),
    "foreground": pyarrow.large_binary(),
    "bytes": pyarrow.int64(),
    "exclusion_bytes": pyarrow.int64(),
}
_SCHEMA = pyarrow.schema([(field.name, _TYPES.get(field.name, pyarrow.string())) for field in fields(CaseRow)])


def table_path(data_folder: Path) -> Path:
    """Where the table of a preprocessed data folder lies."""
    return data_folder.with_name(f"{data_folder.name}_cases.arrow")


def write_cases(data_folder: Path, rows: Sequence[CaseRow]) -> None:
    """Writes the table of ``data_folder`` by rename, sorted by case: the same bytes for the same rows."""
    ordered = [asdict(row) for row in sorted(rows, key=lambda row: row.case)]
    # One batch, so that every column is one piece of memory.
    batch = pyarrow.RecordBatch.from_pylist(ordered, schema=_SCHEMA)
    # A file of ours: one that Arrow opens stays open for a while, and Windows renames no open file.
    with (
        whole_file(table_path(data_folder)) as temporary,
        temporary.open("wb") as file,
        ipc.new_file(file, _SCHEMA) as writer,
    ):
        writer.write_batch(batch)


def open_cases(data_folder: Path) -> pyarrow.RecordBatch:
    """The table, mapped into memory: only what is looked at is read.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = table_path(data_folder)
    if not path.is_file() and path.with_suffix(".parquet").is_file():
        raise UserError(
            f"{data_folder} was prepared by an earlier version of nnssl_mae, whose case table cannot be used any more: "
            "run `nnssl-mae prepare` on the scans again under another number"
        )
    try:
        batch = ipc.open_file(pyarrow.memory_map(str(path))).get_batch(0)
        batch.validate(full=True)  # damaged offsets would read other memory
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"The case table {path} cannot be read ({error}); run `nnssl-mae prepare` again") from error
    if batch.schema != _SCHEMA:
        raise UserError(
            f"The case table {path} was written by another version of nnssl_mae; run `nnssl-mae prepare` again under "
            "another number"
        )
    return batch


def read_cases(data_folder: Path, columns: Sequence[str] = _SMALL_COLUMNS) -> pandas.DataFrame:
    """The table, indexed by case; all of it but the large column, unless others are asked for.

    Raises:
        UserError: as :func:`open_cases`.
    """
    wanted = list(dict.fromkeys(("case", *columns)))
    return open_cases(data_folder).select(wanted).to_pandas().set_index("case")


def rows_of(table: pyarrow.RecordBatch, cases: Sequence[str], data_folder: Path) -> pyarrow.Array:
    """Row numbers, int32, of cases in the table of ``data_folder``.

    Raises:
        UserError: it lacks one.
    """
    rows = compute.index_in(pyarrow.array(list(cases), pyarrow.string()), table["case"])
    if rows.null_count:
        missing = cases[rows.is_null().to_pylist().index(True)]
        raise UserError(
            f"{table_path(data_folder)} lacks {rows.null_count} of {len(cases)} cases, such as {missing}; "
            "run `nnssl-mae prepare` again"
        )
    return rows
