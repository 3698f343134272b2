"""What data files hold, as digests; each file is read once, and again when its size or time has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType

from nnssl_mae.files import sha256, short_hash, write_json

CACHE = Path("state") / "contents" / "files.json"
"""Below the study's folder. Steps have files of their own in ``state``, so this is not one of them."""


class Contents:
    """Digests of files; a context manager that remembers them on disk.

    Times alone would repeat a study whose data were copied to another disk, and sizes alone miss a corrected label.

    Args:
        out: the study's folder; nothing is remembered where it has no folder ``state`` yet.
        base: paths below it are remembered relative to it, so that data may move.
    """

    def __init__(self, out: Path | None, base: Path) -> None:
        self._file = None if out is None else out / CACHE
        self._base = base
        self._known = _read(self._file)
        self._before = dict(self._known)
        self._folders: dict[Path, dict[str, str]] = {}
        self._wholes: dict[Path, str] = {}

    def __enter__(self) -> Contents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None or self._known == self._before or not self._file.parents[1].is_dir():
            return
        self._file.parent.mkdir(exist_ok=True)
        write_json(self._file, {**_read(self._file), **self._known})  # others may have planned meanwhile

    def of_file(self, path: Path) -> str:
        """SHA-256 of a file."""
        status = path.stat()
        name = path.relative_to(self._base) if path.is_relative_to(self._base) else path
        key = f"{name.as_posix()}|{status.st_size}|{status.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = sha256(path)
        return self._known[key]

    def of_folder(self, folder: Path) -> dict[str, str]:
        """SHA-256 of each file in a folder, by name; hidden files do not count. Empty if there is no such folder."""
        if folder not in self._folders:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            self._folders[folder] = {
                path.name: self.of_file(path) for path in files if not path.name.startswith(".") and path.is_file()
            }
        return self._folders[folder]

    def of_all_in(self, folder: Path) -> str:
        """One digest of a folder's files with their names."""
        if folder not in self._wholes:
            self._wholes[folder] = short_hash(self.of_folder(folder), 64)
        return self._wholes[folder]


def _read(file: Path | None) -> dict[str, str]:
    """What is remembered; a damaged file is as good as none, because every digest can be made again."""
    try:
        content = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def sizes_below(folder: Path) -> str:
    """Digest of the names and sizes of all files in a folder and those in it: quick for many large scans."""
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                found.append([path.relative_to(folder).as_posix(), path.stat().st_size])
    return short_hash(sorted(found), 64)
