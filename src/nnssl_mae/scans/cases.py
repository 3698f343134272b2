"""The case table: one row a preprocessed scan, beside the data folder (a foreign file inside it breaks nnU-Net)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas
from pyarrow import parquet

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


_SMALL_COLUMNS = tuple(field.name for field in fields(CaseRow) if field.name != "foreground")


def table_path(data_folder: Path) -> Path:
    """Where the table of a preprocessed data folder lies."""
    return data_folder.with_name(f"{data_folder.name}_cases.parquet")


def write_cases(data_folder: Path, rows: Sequence[CaseRow]) -> None:
    """Writes the table of ``data_folder`` by rename."""
    with whole_file(table_path(data_folder)) as temporary:
        pandas.DataFrame([asdict(row) for row in rows]).to_parquet(temporary, index=False)


def read_cases(data_folder: Path, columns: Sequence[str] = _SMALL_COLUMNS) -> pandas.DataFrame:
    """The table, indexed by case; all of it but the large column, unless others are asked for.

    Raises:
        UserError: it is missing or unreadable.
    """
    path = table_path(data_folder)
    try:
        return pandas.read_parquet(path, columns=list(columns)).set_index("case")
    except Exception as error:  # pyarrow's own error types; the text goes to the user
        raise UserError(f"The case table {path} cannot be read ({error}); run `nnssl-mae prepare` again") from error


def read_foreground(data_folder: Path, cases: Sequence[str]) -> dict[str, bytes]:
    """Where the head or body of each of ``cases`` is, for masking that leaves out air.

    Raises:
        UserError: the table was written before it held that, or lacks a case.
    """
    read_cases(data_folder)  # says so if the table is missing or damaged
    if "foreground" not in parquet.read_schema(table_path(data_folder)).names:
        raise UserError(
            f"{table_path(data_folder)} was written by an earlier version and does not say where the head or body is, "
            "which masking.region 'foreground' needs: run `nnssl-mae prepare` on the scans again under another number, "
            "or set masking.region to 'uniform'"
        )
    table = read_cases(data_folder, ("case", "foreground"))
    missing = [case for case in cases if case not in table.index]
    if missing:
        raise UserError(
            f"{table_path(data_folder)} lacks {len(missing)} of {len(cases)} cases, such as {missing[0]}; "
            "run `nnssl-mae prepare` again"
        )
    return dict(zip(cases, table["foreground"].loc[list(cases)], strict=True))
