"""Which scans validate the pre-training. All scans of a subject go to the same side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnssl_mae.errors import UserError
from nnssl_mae.files import write_json
from nnssl_mae.patches.index import CaseIndex

_SHARE, _AT_LEAST, _AT_MOST = 0.01, 5, 1000
_FOLDS, _SEED = 5, 12345  # as nnU-Net's cross-validation

Split = dict[str, list[str]]
"""``train`` and ``val``: cases of one fold, as in nnU-Net's ``splits_final.json``."""


def split_cases(
    index: CaseIndex, fold: int | str, seed: int, folds_file: Path, write: bool = True
) -> tuple[list[str], list[str]]:
    """Training and validation cases of a fold, by subject.

    Args:
        index: all cases of the dataset.
        fold: ``all``, or a number.
        seed: of the draw for fold ``all``.
        folds_file, write: of :func:`numbered_fold`.

    Raises:
        UserError: as :func:`hold_out_by_subject` and :func:`numbered_fold`.
    """
    subject_of_case = subjects_of(index)
    if fold == "all":
        return hold_out_by_subject(subject_of_case, seed)
    split = numbered_fold(folds_file, subject_of_case, int(fold), write)
    return split["train"], split["val"]


def subjects_of(index: CaseIndex) -> dict[str, str]:
    """The subject of each case."""
    return dict(zip(index.texts("case"), index.texts("subject"), strict=True))


def read_split(file: Path) -> Split | None:
    """The split with which a run began, as :func:`write_split` left it; None if it was not written down.

    Raises:
        UserError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {side: [str(case) for case in content[side]] for side in ("train", "val")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}), and says which scans this run holds out; put "
            "it back, or start the run again without --c"
        ) from error


def write_split(file: Path, training: Sequence[str], validation: Sequence[str]) -> None:
    """Writes down with which cases a run begins."""
    write_json(file, {"train": list(training), "val": list(validation)})


def continued_split(began: Split, subject_of_case: Mapping[str, str]) -> Split:
    """The split of a run that goes on although scans may have joined or left its dataset.

    What was held out stays so, and what was learnt never validates: drawn again, the split would be another one. New
    scans of held-out subjects are held out too, those of others are learnt.

    Raises:
        UserError: one side has lost all its scans.
    """
    there = set(subject_of_case)
    training, validation = (there.intersection(began[side]) for side in ("train", "val"))
    held_out = {subject_of_case[case] for case in validation}
    for case in there - training - validation:
        (validation if subject_of_case[case] in held_out else training).add(case)
    if not training or not validation:
        raise UserError(
            "The scans with which this run began are no longer in the dataset; start it again without --c, or put "
            "the dataset back with `nnssl-mae prepare`"
        )
    return {"train": sorted(training), "val": sorted(validation)}


def hold_out_by_subject(subject_of_case: Mapping[str, str], seed: int) -> tuple[list[str], list[str]]:
    """Training and validation cases of fold ``all``.

    Whole subjects are drawn until 1 % of the scans, at least 5 and at most 1000, are held out. The draw depends on
    the seed and on the subjects' names only.

    Raises:
        UserError: no subject would be left for training.
    """
    wanted = min(max(round(_SHARE * len(subject_of_case)), _AT_LEAST), _AT_MOST)
    subjects = sorted(set(subject_of_case.values()))
    scans_of = _scans_of(subject_of_case)
    validation: list[str] = []
    for index in np.random.default_rng(seed).permutation(len(subjects)):
        if len(validation) >= wanted:
            break
        validation += scans_of.pop(subjects[index])
    if not scans_of:
        raise UserError(
            f"Fold 'all' holds out {wanted} scans by subject for validation, which leaves no subject for training: "
            f"the dataset has {len(subject_of_case)} scans of {len(subjects)} subjects. Add scans, use a numbered "
            "fold (0 to 4), or check the subjects with `nnssl-mae prepare --subject-regex`"
        )
    return sorted(case for cases in scans_of.values() for case in cases), sorted(validation)


def _scans_of(subject_of_case: Mapping[str, str]) -> dict[str, list[str]]:
    """Sorted scans of each subject, subjects sorted."""
    scans: dict[str, list[str]] = {subject: [] for subject in sorted(set(subject_of_case.values()))}
    for case, subject in sorted(subject_of_case.items()):
        scans[subject].append(case)
    return scans


def numbered_fold(file: Path, subject_of_case: Mapping[str, str], fold: int, write: bool = True) -> Split:
    """One fold of nnU-Net's ``splits_final.json``, which is made by subject if it is missing.

    Args:
        file: in the folder of the preprocessed dataset.
        subject_of_case: all cases of the dataset.
        fold: 0 to 4, or any that the file has.
        write: make the file if it is missing. One process of several writes; all of them make the same split.

    Raises:
        UserError: the file is damaged, does not fit the dataset, or puts scans of a subject on both sides.
    """
    if file.is_file():
        return _checked(_read_folds(file), file, subject_of_case, fold)
    folds = folds_by_subject(subject_of_case)
    if not 0 <= fold < len(folds):
        raise UserError(f"Fold {fold} does not exist; use 0 to {len(folds) - 1}, or 'all'")
    if write:
        write_json(file, folds)
    return folds[fold]


def folds_by_subject(subject_of_case: Mapping[str, str]) -> list[Split]:
    """Five folds with about the same number of scans; all scans of a subject are in one of them.

    Subjects are shuffled; those with most scans are given out first, each to the smallest fold.

    Raises:
        UserError: there are fewer subjects than folds.
    """
    scans_of = _scans_of(subject_of_case)
    if len(scans_of) < _FOLDS:
        raise UserError(
            f"The dataset has {len(scans_of)} subjects, too few for {_FOLDS} folds by subject; use fold 'all', or "
            "check the subjects with `nnssl-mae prepare --subject-regex`"
        )
    subjects = list(scans_of)
    shuffled = [subjects[index] for index in np.random.default_rng(_SEED).permutation(len(subjects))]
    held_out: list[list[str]] = [[] for _ in range(_FOLDS)]
    for subject in sorted(shuffled, key=lambda name: -len(scans_of[name])):
        min(held_out, key=len).extend(scans_of[subject])
    cases = sorted(subject_of_case)
    return [
        {"train": [case for case in cases if case not in own], "val": sorted(own)}
        for own in (set(part) for part in held_out)
    ]


def _read_folds(file: Path) -> list[Split]:
    try:
        folds = json.loads(file.read_text(encoding="utf-8"))
        return [{"train": [str(c) for c in fold["train"]], "val": [str(c) for c in fold["val"]]} for fold in folds]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} cannot be read as nnU-Net's splits ({type(error).__name__}: {error}); remove it, and new ones "
            "are made"
        ) from error


def _checked(folds: list[Split], file: Path, subject_of_case: Mapping[str, str], fold: int) -> Split:
    if not 0 <= fold < len(folds):
        raise UserError(f"{file} has {len(folds)} folds, and so no fold {fold}; use another, or remove the file")
    training, validation = folds[fold]["train"], folds[fold]["val"]
    if strange := sorted({*training, *validation} ^ set(subject_of_case)):
        where = "not in the dataset" if strange[0] not in subject_of_case else "not in the file"
        raise UserError(
            f"{file} does not fit the dataset: {len(strange)} cases differ, such as {strange[0]}, which is {where}; "
            "remove the file, and new splits are made"
        )
    if both := sorted({subject_of_case[c] for c in training} & {subject_of_case[c] for c in validation}):
        raise UserError(
            f"Fold {fold} of {file} puts scans of {len(both)} subjects, such as {both[0]}, on both sides, so what is "
            "validated was trained on; remove the file, and splits by subject are made"
        )
    if not training or not validation:
        raise UserError(f"Fold {fold} of {file} leaves one side empty; remove the file, and new splits are made")
    return folds[fold]
