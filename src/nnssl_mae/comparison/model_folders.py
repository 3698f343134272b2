"""What lies in a folder TRAINER__PLANS__CONFIGURATION of nnU-Net, or in one of predictions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json

FOLD = "fold_"
_LOGGED_SPLIT = re.compile(r"This split has (\d{1,9}) training and \d+ validation cases")


def folds_in(model: Path) -> list[str]:
    """Names of the folds, in the order of their numbers."""
    names = [path.name.removeprefix(FOLD) for path in model.glob(f"{FOLD}*") if path.is_dir()]
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def is_training(fold: Path) -> bool:
    """Whether a fold has not been trained to its end.

    nnU-Net writes ``checkpoint_final.pth`` then, and validates. A validated folder without any checkpoint is one whose
    weights were deleted to save space; one with others but not the final one is being trained again.
    """
    if (fold / "checkpoint_final.pth").is_file():
        return False
    return any(fold.glob("checkpoint_*.pth")) or not (fold / "validation" / "summary.json").is_file()


def logged_training_cases(fold: Path) -> set[int]:
    """How many training cases nnU-Net's logs of a fold tell of, each time it was begun; nothing without a log.

    Raises:
        UserError: a log cannot be read.
    """
    return {int(number) for text in training_logs(fold) for number in _LOGGED_SPLIT.findall(text)}


def training_logs(fold: Path) -> list[str]:
    """The text of each log that nnU-Net wrote of a fold, one for each time that it was begun.

    Raises:
        UserError: a log cannot be read.
    """
    texts = []
    for log in sorted(fold.glob("training_log_*.txt")):
        try:
            texts.append(log.read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            raise UserError(f"{log} cannot be read ({error}); make it readable, or move it away") from error
    return texts


def label_files(folder: Path, ending: str) -> dict[str, Path]:
    """Label maps of a folder by case; not the hidden files that macOS puts beside others."""
    files = (path for path in sorted(folder.glob(f"*{ending}")) if not path.name.startswith("."))
    return {path.name.removesuffix(ending): path for path in files}


def validated_cases(fold: Path, ending: str) -> tuple[str, ...] | None:
    """The cases of the ``summary.json`` that nnU-Net writes last; none if there is no such file.

    Raises:
        UserError: it is damaged, or of a pre-training.
    """
    path = fold / "validation" / "summary.json"
    if not path.is_file():
        return None
    remedy = "run nnUNetv2_train with --val to write it again"
    try:
        files = [str(case["prediction_file"]) for case in read_json(path, remedy)["metric_per_case"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no summary of nnU-Net ({error!r}); {remedy}") from error
    # Its paths are those of the machine that trained, which may have been one with backslashes.
    return tuple(sorted(re.split(r"[/\\]", file)[-1].removesuffix(ending) for file in files))


def file_ending(dataset_json: Mapping[str, Any], place: Path) -> str:
    """How the names of the dataset's files end, such as ``.nii.gz``.

    Raises:
        UserError: ``dataset.json``, which was found for ``place``, does not say.
    """
    ending = dataset_json.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise UserError(
            f"dataset.json of {place} has no usable 'file_ending' ({ending!r}); write it, such as '.nii.gz'"
        )
    return ending


def archived_plans(folder: Path) -> dict[str, Any]:
    """The plans that nnU-Net keeps with a model and with its predictions; empty where somebody removed them."""
    path = folder / "plans.json"
    return read_json(path, "put back the plans of this model") if path.is_file() else {}
