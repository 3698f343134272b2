"""Files that appear only when whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nnssl_mae.errors import UserError

GONE = (errno.ENOENT, errno.ESTALE)
"""What the system says of a file or folder that another process removed or renamed; the second, on a network disk."""

_PAUSES_ON_WINDOWS = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds


def unique_word() -> str:
    """A word for file names that no other process says, on this machine or on another that shares the disk."""
    host = "".join(letter for letter in socket.gethostname() if letter.isalnum() or letter == "-")[:16]
    return f"{host}.{os.getpid()}.{secrets.token_hex(4)}"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; on success it is on the disk and renamed to ``path``, else removed."""
    temporary = path.with_name(f".{path.name}.{unique_word()}.tmp")
    try:
        yield temporary
        _sync(temporary)  # or a power loss after the rename could leave an empty file
        _take_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _take_place(temporary: Path, path: Path) -> None:
    """Windows refuses as long as somebody has one of the two open, such as a scanner for viruses for a moment."""
    for seconds in _PAUSES_ON_WINDOWS if sys.platform == "win32" else ():
        with contextlib.suppress(PermissionError):
            temporary.replace(path)
            return
        time.sleep(seconds)
    temporary.replace(path)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def write_first(path: Path, content: bytes) -> None:
    """Writes a whole file, unless it is there already: of several processes that do so, the first one wins."""
    temporary = path.with_name(f".{path.name}.{unique_word()}.tmp")
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        with contextlib.suppress(FileExistsError):
            _link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links; then the last one of those that write at the same moment wins
        if not path.exists():
            temporary.replace(path)


def lock(file: IO[bytes], wait: bool) -> None:
    """Locks an open file until it is closed; the system gives the lock back if the process dies.

    Args:
        file: that nobody reads: Windows would refuse them.
        wait: for another process that has it; on Windows ten seconds.

    Raises:
        BlockingIOError: another process has it, and this one does not wait.
        OSError: the disk has no locks.
    """
    if sys.platform == "win32":
        _lock_on_windows(file, wait)
        return
    import fcntl  # not on Windows

    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_on_windows(file: IO[bytes], wait: bool) -> None:
    if sys.platform != "win32":
        raise AssertionError("for Windows only")  # tells mypy so, too
    import msvcrt

    file.seek(0)  # it locks a byte at this place, which need not be there
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    except PermissionError as error:
        raise BlockingIOError(*error.args) from error


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file in a folder, by its name; empty if there is no such folder."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process removed it just now
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
    return sizes


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes the temporary files of writes that were killed: of the file ``name``, or of all files in the folder."""
    for path in folder.iterdir():
        if path.name.startswith(f".{name}") and path.name.endswith(".tmp"):
            path.unlink(missing_ok=True)


def as_json(content: Any) -> bytes:
    """JSON in nnU-Net's layout (4 spaces, keys in the given order)."""
    return json.dumps(content, indent=4).encode()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON by rename, in nnU-Net's layout."""
    with whole_file(path) as temporary:
        temporary.write_bytes(as_json(content))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or damaged; ``remedy`` says what to do.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; {remedy}")
    return content


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def short_hash(content: Any, length: int = 10) -> str:
    """The first hex digits of the SHA-256 of a JSON value, the same for equal values."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
