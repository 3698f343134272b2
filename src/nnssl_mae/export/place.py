"""Where an export goes: over nothing of the user's, and there only when whole."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from PIL import Image

from nnssl_mae.errors import UserError
from nnssl_mae.files import unique_word

CARD = "README.md"
PLAN = "adaptation_plan.json"
PREVIEW = "preview.png"
TENSORS = "model.safetensors"
CHECKPOINT = "checkpoint_final.pth"  # the name that nnU-Net and nnssl look for
_OURS = {CARD, PLAN, PREVIEW, TENSORS, CHECKPOINT}


def check_folder(out: Path, source: Path | None, overwrite: bool) -> None:
    """Refuses a place for a folder that is taken, or that would be replaced while it is read.

    Args:
        out: that is to appear.
        source: file that is read; None where it is in the hub's cache.
        overwrite: replace what is there, if it is an export and nothing else.

    Raises:
        UserError: see above.
    """
    if out.suffix == ".zip":
        raise UserError(f"{out} would be a folder: only a fine-tuned model becomes a zip; leave the ending out")
    if source is not None and source.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out} is where {source} is read from; write the export to another place")
    _check_taken(out, overwrite)
    if not out.exists():
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"{out} is a file or a link and the export is a folder; choose another name")
    foreign = sorted({path.name for path in out.iterdir()} - _OURS)
    if foreign:
        raise UserError(
            f"{out} holds more than an export ({', '.join(foreign[:3])}), which --overwrite would delete; choose "
            "another name"
        )


def check_file(out: Path, overwrite: bool) -> None:
    """Refuses a place for a file that is taken.

    Raises:
        UserError: see above.
    """
    _check_taken(out, overwrite)
    if out.is_dir():
        raise UserError(f"{out} is a folder and the export is a file; choose another name")


def _check_taken(out: Path, overwrite: bool) -> None:
    if (out.exists() or out.is_symlink()) and not overwrite:
        raise UserError(f"{out} exists; choose another name, or pass --overwrite")


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``out``; on success it takes the place of ``out``, else it is removed.

    Raises:
        UserError: the disk is full or cannot be written to.
    """
    with disk_in_words(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{unique_word()}.tmp")
        temporary.mkdir()
        try:
            yield temporary
            for path in temporary.iterdir():
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
            _take_place(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, out: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = new.with_suffix(".old")
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)


@contextlib.contextmanager
def disk_in_words(out: Path) -> Iterator[None]:
    """Errors of the disk while ``out`` is written, as a sentence."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{out} cannot be written: {error}; choose a writable place with enough space") from error


def write_torch(content: dict[str, Any], file: Path) -> None:
    """As ``torch.save``, with the errors of the disk as such.

    ``file`` must have its final name: torch writes that name into the file, and a temporary one tells the host.
    """
    try:
        torch.save(content, file)
    except RuntimeError as error:  # torch's word for a full disk
        raise OSError(str(error).splitlines()[0]) from error


def picture(file: Path) -> bytes:
    """A picture as PNG, its pixels only: what cameras and programs write beside them can name people and places.

    Raises:
        UserError: not a picture.
    """
    content = io.BytesIO()
    try:
        with Image.open(file) as image:
            pixels = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{file} is no picture that can be read ({type(error).__name__}); give a PNG or JPEG"
        ) from error
    pixels.info.clear()
    pixels.save(content, "png")
    return content.getvalue()
