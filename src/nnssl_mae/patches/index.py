"""Which cases a process draws from, and what the loader must know about them before it opens a file."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl_mae.errors import ResumableError
from nnssl_mae.scans.cases import open_cases, rows_of


class CaseIndex:
    """Some rows of the case table of a data folder, by position 0 ... n - 1, without copying the table.

    Crosses to another process as the folder and a bit a case; there the table's file is mapped again. So a worker
    needs four bytes a case, and the pages of the table are shared by all processes of the machine.
    """

    def __init__(self, folder: Path, rows: NDArray[np.int32] | None = None) -> None:
        """
        Args:
            folder: of the volumes; its case table lies beside it.
            rows: which, in this order; all of them if not given.

        Raises:
            UserError: the table is missing, damaged, or of another version.
        """
        self.folder = folder
        self._table = open_cases(folder)
        self.rows = np.arange(self._table.num_rows, dtype=np.int32) if rows is None else rows
        self._shapes = self._table["shape"].flatten().to_numpy().reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        if (np.diff(self.rows) > 0).all():
            # Small enough for a pipe: otherwise spawned workers would start one after the other, each when the one
            # before has finished its imports and begins to read.
            chosen = np.zeros(self._table.num_rows, dtype=bool)
            chosen[self.rows] = True
            return _from_bits, (self.folder, self._names_hash(), np.packbits(chosen))
        return _from_rows, (self.folder, self._names_hash(), self.rows)

    def select(self, cases: Sequence[str]) -> CaseIndex:
        """The rows of these cases, in this order.

        Raises:
            UserError: the table lacks one.
        """
        return CaseIndex(self.folder, rows_of(self._table, cases, self.folder).to_numpy())

    def name(self, position: int) -> str:
        """Of a case."""
        return str(self._value("case", position))

    def shape(self, position: int) -> tuple[int, ...]:
        """Voxels of a volume, (Z, Y, X)."""
        return tuple(self._shapes[self.rows[position]].tolist())

    def foreground(self, position: int) -> bytes:
        """Where the head or body is, for :func:`nnssl_mae.scans.foreground.decode_occupancy`."""
        return bytes(self._value("foreground", position))

    def stored_bytes(self, position: int) -> int:
        """Size of the file of a volume; 0 if it was not written down."""
        return int(self._value("bytes", position))

    def exclusion_bytes(self, position: int) -> int:
        """Size of the file of an exclusion mask; 0 if the case has none, -1 if that was not written down."""
        return int(self._value("exclusion_bytes", position))

    def data_range(self, position: int) -> float:
        """Width of the range between the 0.5 and the 99.5 percentile of a volume."""
        return float(self._value("percentile_99_5", position) - self._value("percentile_00_5", position))

    def texts(self, column: str) -> list[str]:
        """``case``, ``subject`` or ``dataset`` of every position."""
        return list(self._table[column].take(self.rows).to_pylist())

    def _names_hash(self) -> int:
        """Of the names of all cases of the table, in their order."""
        value = 0
        for buffer in self._table["case"].buffers():
            value = zlib.crc32(buffer, value) if buffer is not None else value
        return value

    def _value(self, column: str, position: int) -> Any:
        return self._table[column][int(self.rows[position])].as_py()


def _from_bits(folder: Path, names_hash: int, bits: NDArray[np.uint8]) -> CaseIndex:
    return _from_rows(folder, names_hash, np.flatnonzero(np.unpackbits(bits)).astype(np.int32))


def _from_rows(folder: Path, names_hash: int, rows: NDArray[np.int32]) -> CaseIndex:
    """The index in another process, where the same row must be the same case, or held-out scans would be learnt."""
    index = CaseIndex(folder, rows)
    if index._names_hash() != names_hash:
        raise ResumableError(
            f"The case table of {folder} was changed while training started, by `nnssl-mae prepare`; start it again"
        )
    return index
