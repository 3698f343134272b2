"""A file that grows by a line of JSON with each finished item, and survives being killed at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

_SECONDS_BETWEEN_SYNCS = 1.0


class Journal:
    """Appends records; a context manager. One process writes a file at a time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        # A line that a killed process or a full disk cut off is ended, so that it spoils no other.
        self._must_end_line = self._file.tell() > 0
        self._synced = monotonic()

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; it is readable at once, and on the disk within a second of further records.

        Raises:
            OSError: the disk is full; what was written before stays readable.
        """
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        line = b"\n" + line if self._must_end_line else line
        self._must_end_line = True
        written = self._file.write(line)
        while written < len(line):  # the system wrote a part: either the rest follows or it says why not
            written += self._file.write(line[written:])
        self._must_end_line = False
        if monotonic() - self._synced > _SECONDS_BETWEEN_SYNCS:
            os.fsync(self._file.fileno())
            self._synced = monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            os.fsync(self._file.fileno())


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a journal in the order of writing; none if it does not exist.

    Lines that were cut off are left out: what they told was not finished.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record
