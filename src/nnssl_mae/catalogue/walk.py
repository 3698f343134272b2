"""Every file below a folder that may be a scan, in one pass: each folder once, however many links lead to it."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nnssl_mae.catalogue.dicom_tags import is_called_dicom, may_be_dicom

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")
"""Files that hold, or describe, one volume; a ``.hdr`` only with its ``.img``."""
_ENDING = re.compile(f"(?i)(?:{'|'.join(map(re.escape, ENDINGS))})$")
DETACHED = (".hdr", ".nhdr", ".mhd")
"""Headers whose voxels are in another file."""


@dataclass(frozen=True)
class File:
    """A file below a searched folder. ``relative`` has ``/`` between its parts."""

    path: Path
    relative: str
    bytes: int
    modified_ns: int
    is_link: bool = False


@dataclass(frozen=True)
class Folder:
    """What may be scans among the files of one folder."""

    path: Path
    relative: str
    volumes: tuple[File, ...]
    maybe_dicom: tuple[File, ...]


@dataclass
class Walk:
    """Folders seen so far, by their identity on the disk, so that nothing is visited twice."""

    seen: set[tuple[int, int]]
    closed: list[tuple[Path, str]]
    """Folders that could not be listed, and why."""

    @classmethod
    def begin(cls) -> Walk:
        """Nothing seen."""
        return cls(set(), [])

    def folders(self, root: Path) -> Iterator[Folder]:
        """Those below a folder that were not visited yet, and itself; linked ones last, so that real names win."""
        waiting, links = deque([(root, "")]), deque[tuple[Path, str]]()
        while waiting or links:
            path, relative = waiting.pop() if waiting else links.popleft()
            if not self._is_new(path):
                continue
            try:
                with os.scandir(path) as entries:
                    visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
            except OSError as error:
                self.closed.append((path, error.strerror or type(error).__name__))
                continue
            below = [(e, f"{relative}{e.name}/") for e in visible if _is_folder(e)]
            links.extend((path / e.name, name) for e, name in below if e.is_symlink())
            waiting.extend((path / e.name, name) for e, name in reversed(below) if not e.is_symlink())
            yield _folder(path, relative, [e for e in visible if not _is_folder(e)])

    def _is_new(self, folder: Path) -> bool:
        try:
            status = folder.stat()
        except OSError as error:
            self.closed.append((folder, error.strerror or type(error).__name__))
            return False
        identity = (status.st_dev, status.st_ino)
        if not status.st_ino:  # some disks on Windows do not number their folders; they have no links either
            return True
        if identity in self.seen:
            return False
        self.seen.add(identity)
        return True


def ending_of(name: str) -> str:
    """The ending of a file of a volume, as written (``.nii.gz``, ``.NRRD``); empty for other files."""
    found = _ENDING.search(name)
    return found.group() if found else ""


def as_file(path: Path, relative: str, names: Iterable[str] = ()) -> File:
    """A file with size and time of change; 0 where it cannot be looked at.

    Where the voxels are in another file, that counts too: ``names`` are those of the folder, to find it in.
    """
    size = newest = 0
    stem = path.name[: len(path.name) - len(ending_of(path.name))]
    is_detached = path.name.lower().endswith(DETACHED)
    partners = sorted(name for name in names if name != path.name and name.startswith(f"{stem}."))
    for name in (path.name, *(partners if is_detached else ())):
        try:
            status = path.with_name(name).stat()
        except OSError:
            continue
        size, newest = size + status.st_size, max(newest, status.st_mtime_ns)
    return File(path, relative, size, newest, path.is_symlink())


def _folder(path: Path, relative: str, files: Iterable[os.DirEntry[str]]) -> Folder:
    files = list(files)
    as_written = [entry.name for entry in files]
    names = {name.lower() for name in as_written}
    volumes, maybe_dicom = [], []
    for entry in files:
        ending = ending_of(entry.name)
        if ending.lower() == ".hdr" and f"{entry.name[:-4]}.img".lower() not in names:
            continue
        if ending:
            beside = as_written if ending.lower() in DETACHED else ()
            volumes.append(as_file(path / entry.name, f"{relative}{entry.name}", beside))
        elif may_be_dicom(entry.name) and (_is_regular(entry) or _leads_nowhere(entry)):
            maybe_dicom.append(as_file(path / entry.name, f"{relative}{entry.name}"))
    return Folder(path, relative, tuple(volumes), tuple(maybe_dicom))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """A link to a DICOM file that is not there, as git-annex leaves them; other dead links are none of our business."""
    return entry.is_symlink() and is_called_dicom(entry.name) and not Path(entry.path).exists()


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
