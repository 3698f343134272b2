"""The pictures of a catalogue while it is made: appended to a file, in the end sorted into ``thumbnails.parquet``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow
from pyarrow import parquet

from nnssl_mae.catalogue.table import THUMBNAILS
from nnssl_mae.files import whole_file

_SCHEMA = pyarrow.schema([("case", pyarrow.string()), ("png", pyarrow.binary())])
_PORTION = 256
_PNG = b"\x89PNG"

Place = tuple[int, int]
"""Where a picture begins in the growing file, and its length."""


class GrowingPictures:
    """A file to which pictures are appended; what was written before a kill stays readable."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def append(self, picture: bytes) -> Place:
        """Writes one picture and says where it is.

        Raises:
            OSError: the disk is full.
        """
        begin = self._file.seek(0, 2)
        done = 0
        while done < len(picture):  # the system may write a part only
            done += self._file.write(picture[done:])
        return begin, len(picture)

    def close(self) -> None:
        """Nothing more is written."""
        self._file.close()


def write_thumbnails(folder: Path, cases: Iterable[str], new: Mapping[str, Place], growing: Path) -> None:
    """Writes the pictures of ``cases``, which are sorted: new ones, else those of the earlier file."""
    with whole_file(folder / THUMBNAILS) as temporary, parquet.ParquetWriter(temporary, _SCHEMA) as writer:
        portion: list[tuple[str, bytes]] = []
        for entry in _pictures(folder / THUMBNAILS, cases, new, growing):
            portion.append(entry)
            if len(portion) == _PORTION:
                _write(writer, portion)
                portion = []
        _write(writer, portion)


def _write(writer: parquet.ParquetWriter, portion: list[tuple[str, bytes]]) -> None:
    columns = [[case for case, _ in portion], [picture for _, picture in portion]]
    writer.write_table(pyarrow.table(columns, schema=_SCHEMA))


def _pictures(
    earlier: Path, cases: Iterable[str], new: Mapping[str, Place], growing: Path
) -> Iterator[tuple[str, bytes]]:
    """Walks along both sorted lists at once: 40,000 pictures need not be in memory."""
    before = _earlier(earlier)
    case_before, picture_before = next(before, ("", b""))
    with growing.open("rb") as file:
        for case in cases:
            while case_before and case_before < case:
                case_before, picture_before = next(before, ("", b""))
            picture = picture_before if case_before == case else b""
            if case in new:
                begin, length = new[case]
                file.seek(begin)
                picture = file.read(length)
            if picture.startswith(_PNG):
                yield case, picture


def _earlier(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            for portion in file.iter_batches(_PORTION):
                yield from zip(portion["case"].to_pylist(), portion["png"].to_pylist(), strict=True)
    except (OSError, KeyError, pyarrow.ArrowException):
        return  # none yet, or damaged: pictures are a help for people, and no result depends on them
