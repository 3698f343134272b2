"""The results that a study has planned, and no others, as links in a folder of their own: what is compared.

An earlier version of the study may have left models, folds or predictions that its last version does not have. They
stay where they are, and cost nothing if the study changes back; but the patterns of a comparison would match them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from nnssl_mae.errors import UserError
from nnssl_mae.study.place import COMPARED


def gather(out: Path, dataset: str, planned: Sequence[Path]) -> str:
    """Links to planned folders, below ``compared`` as below the study's folder; returns a line.

    Args:
        out: the study's folder.
        dataset: whose earlier links are removed first.
        planned: folders ``fold_N`` of models and predictions, relative to ``out``.

    Raises:
        UserError: one is missing, or the disk has no links.
    """
    for old in (*(out / COMPARED).glob(f"results/*/{dataset}"), *(out / COMPARED).glob(f"predictions/{dataset}")):
        shutil.rmtree(old)  # does not follow links
    for folder in planned:
        if not (out / folder).is_dir():
            raise UserError(f"{out / folder} is missing; run the study again, which makes it")
        _link(out, folder)
        for file in sorted(path for path in (out / folder).parent.iterdir() if path.is_file()):
            _link(out, folder.with_name(file.name))
    return f"{len(planned)} folders of {dataset} are to be compared."


def gathered(folder: Path) -> Path:
    """Where the link to a planned folder lies, relative to the study's folder."""
    return COMPARED / folder


def _link(out: Path, path: Path) -> None:
    link = out / gathered(path)
    if link.is_symlink():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    try:  # relative: the study may move
        link.symlink_to(os.path.relpath(out / path, link.parent), target_is_directory=(out / path).is_dir())
    except OSError as error:
        remedy = "put the study on a disk that has links"
        if sys.platform == "win32":
            remedy += ", and turn on Windows' developer mode, which allows them"
        raise UserError(f"{link} cannot be made ({error.strerror}); {remedy}") from error
