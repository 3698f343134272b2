"""Files that appear only when whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnssl_mae.errors import UserError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; renamed to ``path`` on success, removed on failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes the temporary files of writes that were killed: of the file ``name``, or of all files in the folder."""
    for path in folder.iterdir():
        if path.name.startswith(f".{name}") and path.name.endswith(".tmp"):
            path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON by rename, in nnU-Net's layout (4 spaces, keys in the given order)."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4), encoding="utf-8")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or damaged; ``remedy`` says what to do.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
