"""The few DICOM tags that say which files form one volume, and where its slices lie.

Written for folders of millions of files of any origin: a file is read up to the tags of its pixels (some kB), and
nothing it contains can crash the process. Tags and encodings: DICOM PS3.5 and PS3.6.
"""

from __future__ import annotations

import functools
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnssl_mae.files import short_hash

_FIRST_READ, _LONGEST_HEADER = 1 << 15, 1 << 22
_LAST_GROUP = 0x0028
_LONG_LENGTHS = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UT", b"UN", b"UC", b"UR", b"SV", b"UV"}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DEEPEST = 16
_NAME = re.compile(r"(?i)\.(dcm|ima|dicom)$|^[^.]+$|\.\d+$")
"""An ending of theirs, none, or a number (of slices and UIDs)."""
_POSITION = re.compile(rb"\x20\x00\x32\x00(?:DS..|..\0\0)([-+.0-9eE]+\\[-+.0-9eE]+\\[-+.0-9eE]+[ \0]?)", re.DOTALL)
_TAGS = {
    0x00020002: "storage",
    0x00020010: "syntax",
    0x00080008: "image_type",
    0x00080018: "uid",
    0x00080060: "modality",
    0x0008103E: "description",
    0x00100020: "patient",
    0x00180050: "thickness",
    0x00180088: "gap",
    0x0020000D: "study",
    0x0020000E: "series",
    0x00200013: "instance",
    0x00200032: "position",
    0x00200037: "direction",
    0x00280002: "samples",
    0x00280008: "frames",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280030: "spacing",
    0x00280100: "bits",
    0x00280103: "signed",
}
_NUMBERS = {"samples", "rows", "columns", "bits", "signed"}
_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED, BIG_ENDIAN, IMPLICIT = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2"


@dataclass(frozen=True)
class Slice:
    """The tags of one file; texts as written, numbers where DICOM stores numbers."""

    path: Path
    tags: dict[str, str] = field(default_factory=dict)
    whole: bool = True
    """Whether the header was read to its end."""
    bytes: int = 0
    modified_ns: int = 0

    @property
    def series(self) -> str:
        """UID of its series; empty where the file does not say."""
        return self.tags.get("series", "")

    @property
    def is_image(self) -> bool:
        """False for reports, directories and the like, which are no scans. A header that was cut off may be one."""
        return self.tags.get("storage") != _DIRECTORY and (not self.whole or bool(self.tags.get("rows")))

    def numbers(self, tag: str) -> tuple[float, ...]:
        """The numbers of a text such as ``1\\0\\0``; none where it is missing or no numbers."""
        try:
            return tuple(float(part) for part in self.tags[tag].split("\\"))
        except (KeyError, ValueError):
            return ()

    def number(self, tag: str, otherwise: int) -> int:
        """One whole number."""
        numbers = self.numbers(tag)
        return int(numbers[0]) if numbers and np.isfinite(numbers[0]) else otherwise


def read_slice(path: Path) -> Slice:
    """The tags of one file; no series where it is no DICOM file or cannot be read."""
    try:
        status = path.stat()
        with path.open("rb") as file:
            block = file.read(_FIRST_READ)
            tags, whole = _read_tags(block)
            if not whole and len(block) == _FIRST_READ:
                tags, whole = _read_tags(block + file.read(_LONGEST_HEADER))
    except OSError:
        return Slice(path, whole=False)
    return Slice(path, tags, whole, status.st_size, status.st_mtime_ns)


def slices_of_series(folder: Path, series: str) -> tuple[Slice, ...]:
    """The images of one series in a folder, by name; none if the folder cannot be read."""
    try:
        return _series_in(str(folder), folder.stat().st_mtime_ns).get(series, ())
    except OSError:
        return ()


def is_called_dicom(name: str) -> bool:
    """Whether a name ends in a word that says DICOM."""
    return name.lower().endswith((".dcm", ".ima", ".dicom"))


def may_be_dicom(name: str) -> bool:
    """Whether a name is one that DICOM files have."""
    return not name.startswith(".") and _NAME.search(name) is not None


@functools.lru_cache(maxsize=1)
def _series_in(folder: str, modified_ns: int) -> dict[str, tuple[Slice, ...]]:
    """The series of a folder. Remembered, because a folder of 50 series is asked for each of them in turn."""
    series: dict[str, list[Slice]] = defaultdict(list)
    for path in sorted(Path(folder).iterdir()):
        if may_be_dicom(path.name) and path.is_file() and (one := read_slice(path)).series and one.is_image:
            series[one.series].append(one)
    return {uid: tuple(slices) for uid, slices in series.items()}


def frame_positions(path: Path) -> list[tuple[float, ...]]:
    """Position (x, y, z in mm) of each frame of a multi-frame file, in its order; none where it is not said.

    They lie deep in nested sequences in front of the pixels; their tag followed by numbers does not occur elsewhere.
    """
    try:
        with path.open("rb") as file:
            block = file.read(_LONGEST_HEADER)
    except OSError:
        return []
    end = block.find(b"\xe0\x7f\x10\x00")
    texts = (found.group(1) for found in _POSITION.finditer(block, 0, end if end >= 0 else len(block)))
    numbers = (text.strip(b" \0").split(b"\\") for text in texts)
    return [tuple(map(float, parts)) for parts in numbers if len(parts) == 3]


def patient_hash(one: Slice) -> str:
    """A name for the patient that tells nothing about the person but that it is the same; empty where unknown."""
    patient = one.tags.get("patient", "").strip()
    return f"patient-{short_hash(patient, 10)}" if patient else ""


def study_hash(one: Slice) -> str:
    """A name for the visit; empty where unknown."""
    study = one.tags.get("study", "")
    return f"study-{short_hash(study, 8)}" if study else ""


def _read_tags(block: bytes) -> tuple[dict[str, str], bool]:
    """The wanted tags, and whether the header was read to its end."""
    tags: dict[str, str] = {}
    try:
        if block[128:132] == b"DICM":
            start = _collect(block, 132, explicit=True, order="<", last_group=0x0002, tags=tags)
        elif block[:2] == b"\x08\x00":  # files older than the preamble begin with group 0008 at once
            start = 0
        else:
            return {}, False
        syntax = tags.get("syntax", "" if start or block[4:6].isalpha() else IMPLICIT)
        if syntax == _DEFLATED:
            block, start = zlib.decompressobj(-15).decompress(block[start:], _LONGEST_HEADER), 0
        order = ">" if syntax == BIG_ENDIAN else "<"
        _collect(block, start, explicit=syntax != IMPLICIT, order=order, last_group=_LAST_GROUP, tags=tags)
    except (struct.error, _Damaged, zlib.error):
        return tags, False
    return tags, True


class _Damaged(Exception):
    """The header ends too early, or is no header."""


def _collect(block: bytes, start: int, explicit: bool, order: str, last_group: int, tags: dict[str, str]) -> int:
    """Adds the wanted tags up to a group; returns where the next group begins."""
    at = start
    for tag, begin, value, length in _elements(block, start, explicit, order, 0):
        if tag >> 16 > last_group:
            return begin
        name = _TAGS.get(tag)
        if name is not None and name not in tags:
            tags[name] = _text(block[value : value + length], name, order)
        at = value + length
    if last_group == _LAST_GROUP and at < len(block):
        raise _Damaged
    return at


def _text(value: bytes, name: str, order: str) -> str:
    if name in _NUMBERS:
        return str(struct.unpack(f"{order}H", value[:2])[0])
    return value.decode("latin-1").strip(" \0")


def _elements(block: bytes, at: int, explicit: bool, order: str, depth: int) -> Iterator[tuple[int, int, int, int]]:
    """Tag, where it begins, where its value begins, and the length of the value. Sequences are stepped over."""
    while at < len(block):
        begin = at
        group, element = struct.unpack_from(f"{order}HH", block, at)
        tag = group << 16 | element
        at, length = _value_at(block, at + 4, explicit and group != 0xFFFE, order)
        if length == _UNDEFINED and tag != _ITEM:
            end = _end_of_sequence(block, at, explicit, order, depth + 1)
            yield tag, begin, at, end - at
            at = end
            continue
        if at + length > len(block) and group <= _LAST_GROUP:
            raise _Damaged
        yield tag, begin, at, length
        at += length


def _value_at(block: bytes, at: int, explicit: bool, order: str) -> tuple[int, int]:
    if not explicit:
        return at + 4, struct.unpack_from(f"{order}I", block, at)[0]
    if block[at : at + 2] in _LONG_LENGTHS:
        return at + 8, struct.unpack_from(f"{order}I", block, at + 4)[0]
    return at + 4, struct.unpack_from(f"{order}H", block, at + 2)[0]


def _end_of_sequence(block: bytes, at: int, explicit: bool, order: str, depth: int) -> int:
    """Where a sequence of undefined length ends."""
    if depth > _DEEPEST:
        raise _Damaged
    while True:
        group, element, length = struct.unpack_from(f"{order}HHI", block, at)
        tag = group << 16 | element
        at += 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise _Damaged
        at = at + length if length != _UNDEFINED else _end_of_item(block, at, explicit, order, depth)


def _end_of_item(block: bytes, at: int, explicit: bool, order: str, depth: int) -> int:
    for tag, _, value, length in _elements(block, at, explicit, order, depth):
        if tag == _ITEM_END:
            return value + length
    raise _Damaged
