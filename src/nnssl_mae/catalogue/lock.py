"""One process writes a catalogue at a time; a lock that is killed with its process blocks nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nnssl_mae.catalogue.known import writing_to
from nnssl_mae.errors import ResumableError
from nnssl_mae.files import lock

_LOCK = ".lock"


@contextlib.contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """No other process scans into this catalogue, or changes its rules, until this ends.

    The system keeps the lock, not the file ``.lock``, which may stay behind. On disks that have no locks nothing is
    held.

    Raises:
        ResumableError: another process writes the catalogue, or the folder may not be written.
    """
    with writing_to(folder):
        file = (folder / _LOCK).open("ab")
    with file:
        _hold(file, folder)
        yield


def _hold(file: IO[bytes], folder: Path) -> None:
    try:
        lock(file, wait=False)
    except BlockingIOError as error:
        raise ResumableError(
            f"Another process is writing the catalogue {folder}; wait for its end, and run the same command again"
        ) from error
    except OSError:
        pass  # a disk without locks
