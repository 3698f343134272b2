"""What few-label splits need to know of a labelled dataset that nnU-Net has preprocessed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnssl_mae.catalogue.find import subject_in
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json
from nnssl_mae.folders import find_dataset, nnunet_folder

LABELS = "gt_segmentations"
"""Folder of the labels that nnU-Net copies beside the preprocessed cases."""

_BIDS_SUBJECT = r"(?:^|[/_])(sub-[A-Za-z0-9]+)"
_NOT_UNDERSTOOD = (AssertionError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Classes:
    """What a network is to learn: labels or regions, without background and the ignore label."""

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    """Label values of each; regions may share some."""
    allowed: frozenset[int]
    """Values that a label file may hold, with background and ignore."""


@dataclass(frozen=True)
class PreprocessedDataset:
    """A labelled dataset with nnU-Net's plans and preprocessed cases."""

    number: int
    name: str
    """``Dataset004_Hippocampus``."""
    folder: Path
    """In ``nnUNet_preprocessed``; holds ``splits_final.json``."""
    cases: tuple[str, ...]
    """Sorted, as nnU-Net sorts them before it splits them."""
    classes: Classes
    reader: str
    """Name of nnU-Net's reader of its files."""
    file_ending: str


def preprocessed_dataset(number: int) -> PreprocessedDataset:
    """Reads what a dataset in ``nnUNet_preprocessed`` holds.

    Raises:
        UserError: no such dataset, not planned or preprocessed, not labelled, or damaged files.
    """
    name = find_dataset(number)
    folder = nnunet_folder("nnUNet_preprocessed") / name
    again = f"run nnUNetv2_plan_and_preprocess -d {number}"
    if not (folder / "dataset.json").is_file():
        raise UserError(f"{name} is not in nnUNet_preprocessed ({folder}); {again} first")
    content = read_json(folder / "dataset.json", again)
    ending = content.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise UserError(f"{folder / 'dataset.json'} has no file_ending such as .nii.gz; add it there and in nnUNet_raw")
    return PreprocessedDataset(
        number=number,
        name=name,
        folder=folder,
        cases=_preprocessed_cases(folder, again),
        classes=classes_of(content, folder / "dataset.json"),
        reader=_reader(folder, again),
        file_ending=ending,
    )


def classes_of(dataset_json: Mapping[str, Any], file: Path) -> Classes:
    """The labels or regions of a ``dataset.json``.

    Raises:
        UserError: nnU-Net does not understand them, or there is only background; names ``file``.
    """
    try:
        labels = dataset_json["labels"]
        manager = LabelManager(labels, dataset_json.get("regions_class_order"))
        ignore = manager.ignore_label
        allowed = frozenset({0, *manager.all_labels, *([] if ignore is None else [ignore])})
        values = {
            str(name): tuple(int(value) for value in (given if isinstance(given, list | tuple) else [given]))
            for name, given in labels.items()
            if name not in ("background", "ignore")
        }
    except _NOT_UNDERSTOOD as error:
        raise UserError(
            f"{file} has labels that nnU-Net does not understand ({type(error).__name__}: {error}); correct them there "
            "and in nnUNet_raw"
        ) from error
    if not values:
        raise UserError(f"{file} has no labels besides the background; few-label splits need a labelled dataset")
    return Classes(tuple(values), tuple(values.values()), frozenset(int(value) for value in allowed))


def label_files(dataset: PreprocessedDataset, cases: Sequence[str]) -> dict[str, Path]:
    """The label file of each case: nnU-Net's copy beside the preprocessed cases, else that of the raw dataset.

    Raises:
        UserError: a case has none.
    """
    copies = {case: dataset.folder / LABELS / f"{case}{dataset.file_ending}" for case in cases}
    without = [case for case, file in copies.items() if not file.is_file()]
    raw = _raw_label_files(dataset) if without else {}
    missing = [case for case in without if case not in raw or not raw[case].is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(cases)} cases of {dataset.name}, such as {missing[0]}, have no label file in "
            f"{dataset.folder / LABELS} or in nnUNet_raw; put {missing[0]}{dataset.file_ending} there, or run "
            f"nnUNetv2_plan_and_preprocess -d {dataset.number} again"
        )
    return {case: raw.get(case, copies[case]) if case in without else copies[case] for case in cases}


def subjects_of_cases(cases: Sequence[str], expression: str | None) -> dict[str, str]:
    """The subject of each case: the first group of ``expression``, a BIDS ``sub-`` in the name, or the case itself.

    Raises:
        UserError: the expression is none, or finds no group in a case.
    """
    try:
        pattern = re.compile(expression or _BIDS_SUBJECT)
    except re.error as error:
        raise UserError(f"--subject-regex '{expression}' is not a regular expression: {error}") from error
    found = {case: subject_in(pattern.search(case)) for case in cases}
    without = [case for case, subject in found.items() if not subject]
    if expression is not None and without:
        raise UserError(
            f"--subject-regex '{expression}' finds no group in {len(without)} of {len(cases)} cases, such as "
            f"'{without[0]}'; it needs one pair of brackets that matches in every case name"
        )
    return {case: subject or case for case, subject in found.items()}


def trained_folds(name: str) -> dict[int, Path]:
    """Numbered folds for which ``nnUNet_results`` holds a folder, and one such folder each; empty if it is not set."""
    results = Path(os.environ.get("nnUNet_results") or os.devnull) / name
    folders = sorted(results.glob("*/fold_*")) if results.is_dir() else []
    return {int(path.name[5:]): path for path in folders if re.fullmatch(r"fold_[0-9]+", path.name)}


def _preprocessed_cases(folder: Path, again: str) -> tuple[str, ...]:
    found = {path: _cases_in(path) for path in sorted(folder.iterdir()) if path.is_dir() and path.name != LABELS}
    found = {path: cases for path, cases in found.items() if cases}
    if not found:
        raise UserError(f"{folder} holds no preprocessed cases; {again} first")
    every = set().union(*found.values())
    for path, cases in found.items():
        if missing := sorted(every - cases):
            raise UserError(
                f"{len(missing)} of {len(every)} preprocessed cases of this dataset, such as {missing[0]}, are not in "
                f"{path}, so a fold could not be trained there; {again} again, or remove that folder if it is old"
            )
    return tuple(sorted(every))


def _cases_in(folder: Path) -> set[str]:
    """As nnU-Net's dataset classes list them."""
    names = [path.name for path in folder.iterdir()]
    blosc = {name[:-5] for name in names if name.endswith(".b2nd") and not name.endswith("_seg.b2nd")}
    return blosc | {name[:-4] for name in names if name.endswith(".npz")}


def plans_in(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of the plans in a preprocessed dataset's folder, by name."""
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # another file that is not ours to judge: some plans are enough
        if isinstance(content, dict) and isinstance(content.get("image_reader_writer"), str):
            yield file.stem, content


def _reader(folder: Path, again: str) -> str:
    for _, plans in plans_in(folder):
        return str(plans["image_reader_writer"])
    raise UserError(f"{folder} holds no plans of nnU-Net; {again} first")


def _raw_label_files(dataset: PreprocessedDataset) -> dict[str, Path]:
    folder = Path(os.environ.get("nnUNet_raw") or os.devnull) / dataset.name
    if not (folder / "dataset.json").is_file():
        return {}
    content = read_json(folder / "dataset.json", "repair it")
    if "dataset" in content:
        listed = get_filenames_of_train_images_and_targets(str(folder), content)
        return {case: Path(files["label"]) for case, files in listed.items()}
    return {case: folder / "labelsTr" / f"{case}{dataset.file_ending}" for case in dataset.cases}
