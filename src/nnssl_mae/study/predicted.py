"""Predictions of a test set: which files there will be, and which of those there a killed run left damaged."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from nnssl_mae.errors import UserError
from nnssl_mae.study.contents import Contents
from nnssl_mae.study.place import LabelledSet, file_ending

_AT_ONCE = 16


def predicted_names(labelled: LabelledSet, images: Path) -> list[str]:
    """The files that ``nnUNetv2_predict`` writes for a folder of images.

    Raises:
        UserError: it holds none.
    """
    ending = file_ending(labelled)
    names = sorted({path.name[: -len(ending) - 5] for path in images.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")})
    if not names:
        raise UserError(f"{images} holds no images named CASE_0000{ending}; put the test set of {labelled.name} there")
    return [f"{name}{ending}" for name in names]


def check_held_out(labelled: LabelledSet, images: Path, contents: Contents) -> None:
    """Refuses a test set with images that the arms are trained on.

    Raises:
        UserError: the folder is that of the training images, or a case has the same images as a training case.
    """
    training = labelled.raw / "imagesTr"
    advice = f"name images in test that dataset {labelled.number} is not trained on"
    if images.resolve() == training.resolve():
        raise UserError(f"test: {images} holds the training images of {labelled.name}; {advice}")
    ending = file_ending(labelled)
    known = {files: case for case, files in _cases(contents.of_folder(training), ending).items()}
    for case, files in _cases(contents.of_folder(images), ending).items():
        if files in known:
            raise UserError(
                f"test: case {case} of {images} is the training case {known[files]} of {labelled.name}; {advice}"
            )


def _cases(files: dict[str, str], ending: str) -> dict[str, tuple[str, ...]]:
    """Digests of each case, one a channel."""
    found: dict[str, list[str]] = {}
    for name, digest in sorted(files.items()):
        if name.endswith(ending):
            found.setdefault(name[: -len(ending) - 5], []).append(digest)
    return {case: tuple(digests) for case, digests in found.items()}


def remove_damaged(out: Path, files: Sequence[Path]) -> None:
    """Removes predictions that may be cut off: ``--continue_prediction`` takes every file that is there for whole.

    Of compressed files that is seen; of others the newest go, more than nnU-Net writes at the same time.

    Args:
        out: the study's folder.
        files: predictions, relative to it; may be missing.
    """
    there = [out / file for file in files if (out / file).is_file()]
    plain = [file for file in there if file.suffix != ".gz"]
    newest = sorted(plain, key=lambda file: file.stat().st_mtime_ns)[-_AT_ONCE:]
    for file in (*newest, *(file for file in there if file.suffix == ".gz" and not _is_whole(file))):
        file.unlink()


def _is_whole(file: Path) -> bool:
    """Whether a compressed file can be read to its end, where its length and checksum stand."""
    try:
        with gzip.open(file) as stream:
            while stream.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return file.stat().st_size > 0
