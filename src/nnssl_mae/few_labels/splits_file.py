"""``splits_final.json``, which nnU-Net reads, and ``nnssl_folds.json``, which says what its further folds are.

nnU-Net takes the fold by its place in the list. So few-label folds, from 100 on, need folds 5 to 99 before them.

Of the two files the splits are written first, each by rename. A kill between them leaves folds of the right cases
whose names are not known yet; the next run with the same options finds them equal to what it wants and names them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnssl_mae.errors import UserError
from nnssl_mae.files import as_json, whole_file, write_first

SPLITS = "splits_final.json"
MAP = "nnssl_folds.json"
MAP_VERSION = 1
FIRST_FEW_LABEL_FOLD = 100
_END = 100_000  # so many folds before it would be written for a damaged number

_STOCK_FOLDS, _STOCK_SEED = 5, 12345

Split = dict[str, list[str]]
"""``train`` and ``val``: cases of one fold."""


@dataclass(frozen=True)
class FewLabelFold:
    """What a fold of the splits file is."""

    labelled: int
    """Number of training cases."""
    repeat: int
    missing: tuple[str, ...] = ()
    """Labels or regions that no training case contains."""


@dataclass(frozen=True)
class FoldsMap:
    """Content of ``nnssl_folds.json``."""

    seed: int
    stock_folds: int
    """How many folds the splits file had of its own; those up to 99 repeat them."""
    validation_from: Mapping[str, float]
    """``{"fold": 0}``, or ``{"share": 0.2}`` of the subjects."""
    subject_regex: str | None
    validation: tuple[str, ...]
    """Cases that validate all few-label folds."""
    subjects: Mapping[str, str]
    """The subject of each case of the dataset."""
    orders: tuple[tuple[str, ...], ...] = ()
    """Of each repeat: the training pool in the order in which cases get labels."""
    folds: Mapping[int, FewLabelFold] = field(default_factory=dict)
    replaced: tuple[int, ...] = ()
    """Numbers of few-label folds of other options before. No other fold ever gets them, for models may have them."""

    def split(self, labelled: int, repeat: int) -> Split:
        """Training cases, sorted as nnU-Net sorts them, and validation cases."""
        return {"train": sorted(self.orders[repeat][:labelled]), "val": list(self.validation)}

    def as_json(self) -> dict[str, Any]:
        """As it is written."""
        folds = {
            str(number): {"labelled": fold.labelled, "repeat": fold.repeat, "missing": list(fold.missing)}
            for number, fold in sorted(self.folds.items())
        }
        return {
            "version": MAP_VERSION,
            "seed": self.seed,
            "stock_folds": self.stock_folds,
            "validation_from": dict(self.validation_from),
            "subject_regex": self.subject_regex,
            "validation": list(self.validation),
            "folds": folds,
            "replaced": list(self.replaced),
            "subjects": dict(self.subjects),
            "orders": [list(order) for order in self.orders],
        }


def read_map(folder: Path) -> FoldsMap | None:
    """The map of a preprocessed dataset; None if it has none.

    Raises:
        UserError: the file is damaged, or of a later version.
    """
    file = folder / MAP
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["version"] != MAP_VERSION:
            raise ValueError(f"version {content['version']} is not known here")
        found = _map_of(content)
        _check_map(found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}); restore it, or move it away: then the folds "
            f"that {SPLITS} has stay, and those that the same options would give are found again"
        ) from error
    return found


def _map_of(content: Mapping[str, Any]) -> FoldsMap:
    return FoldsMap(
        seed=int(content["seed"]),
        stock_folds=int(content["stock_folds"]),
        validation_from={str(key): value for key, value in content["validation_from"].items()},
        subject_regex=None if content["subject_regex"] is None else str(content["subject_regex"]),
        validation=_names(content["validation"]),
        subjects={str(case): str(subject) for case, subject in content["subjects"].items()},
        orders=tuple(_names(order) for order in content["orders"]),
        folds={
            int(number): FewLabelFold(int(fold["labelled"]), int(fold["repeat"]), _names(fold["missing"]))
            for number, fold in content["folds"].items()
        },
        replaced=tuple(int(number) for number in content.get("replaced", ())),
    )


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of names is none")
    return tuple(value)


def _check_map(found: FoldsMap) -> None:
    for number, fold in found.folds.items():
        fits = 0 <= fold.repeat < len(found.orders) and 1 <= fold.labelled <= len(found.orders[fold.repeat])
        if not FIRST_FEW_LABEL_FOLD <= number < _END or not fits:
            raise ValueError(f"fold {number} does not fit the rest")
    for number in found.replaced:
        if not FIRST_FEW_LABEL_FOLD <= number < _END or number in found.folds:
            raise ValueError(f"replaced fold {number} does not fit the rest")
    if len({frozenset(order) for order in found.orders}) > 1:
        raise ValueError("its repeats are not of the same cases")
    if not found.orders or found.stock_folds < 1:
        raise ValueError("it has no repeats or no first folds")
    if any(not set(order).isdisjoint(found.validation) for order in found.orders) or not found.validation:
        raise ValueError("its training and validation cases overlap")
    if strangers := {*found.orders[0], *found.validation} - found.subjects.keys():
        raise ValueError(f"case {min(strangers)} has no subject")
    source, value = next(iter(found.validation_from.items()), ("", None))
    number = type(value) is int and value >= 0
    if len(found.validation_from) != 1 or not (number if source == "fold" else source == "share" and _is_share(value)):
        raise ValueError(f"{dict(found.validation_from)} tells no source of validation cases")


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


def splits_bytes(folder: Path) -> bytes | None:
    """The splits file as it is now, for :func:`write_folds`; None if there is none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return _file_bytes(folder / SPLITS)
    except OSError as error:
        raise UserError(f"{folder / SPLITS} cannot be read ({error}); make it readable, or move it away") from error


def read_splits(folder: Path, cases: Sequence[str]) -> list[Split] | None:
    """The folds that nnU-Net would use; None if it has not written any.

    Raises:
        UserError: the file is damaged, or names cases that are not preprocessed.
    """
    file = folder / SPLITS
    return read_splits_file(file, cases) if file.exists() else None


def read_splits_file(file: Path, cases: Sequence[str]) -> list[Split]:
    """Folds of a file like ``splits_final.json``; raises as :func:`read_splits`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, list) or not content:
            raise ValueError("it holds no list of folds")
        named = {case for fold in content for side in ("train", "val") for case in _names(fold[side])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read as nnU-Net's splits ({type(error).__name__}: {error}); repair it, or move it away: "
            "then nnU-Net's five folds are made"
        ) from error
    if strange := sorted(named - set(cases)):
        raise UserError(
            f"{file} names {len(strange)} cases that are not preprocessed, such as {strange[0]}; preprocess them, or "
            "move the file away: then nnU-Net's five folds are made"
        )
    folds: list[Split] = content  # with whatever else their author wrote into them
    return folds


def stock_splits(cases: Sequence[str], name: str) -> list[Split]:
    """The five folds that nnU-Net itself would write for these cases.

    Raises:
        UserError: there are fewer cases than folds; names the dataset.
    """
    if len(cases) < _STOCK_FOLDS:
        raise UserError(
            f"{name} has {len(cases)} cases, too few for nnU-Net's {_STOCK_FOLDS} folds; write a {SPLITS} of your own "
            "with at least one fold into its folder in nnUNet_preprocessed"
        )
    made = generate_crossval_split(sorted(cases), seed=_STOCK_SEED, n_splits=_STOCK_FOLDS)
    return [{side: [str(case) for case in fold[side]] for side in ("train", "val")} for fold in made]


def random_split(cases: Sequence[str], fold: int) -> Split:
    """What nnU-Net trains for a fold number that the file does not have: 80:20, drawn with the number as the seed."""
    names = sorted(cases)
    chosen = np.random.RandomState(seed=_STOCK_SEED + fold).choice(len(names), int(len(names) * 0.8), replace=False)
    held_out = sorted(set(range(len(names))) - {int(index) for index in chosen})
    return {"train": [names[index] for index in chosen], "val": [names[index] for index in held_out]}


def count_stock_folds(folds: Sequence[Split], cases: Sequence[str]) -> int:
    """How many folds a file had before further ones were added, told from the file alone."""
    head = folds[:FIRST_FEW_LABEL_FOLD]
    if len(folds) < FIRST_FEW_LABEL_FOLD:
        return len(head)
    return next(
        n
        for n in range(1, len(head) + 1)
        if all(fold == head[i % n] or fold == random_split(cases, i) for i, fold in enumerate(head[n:], n))
    )


def with_folds(
    folds: Sequence[Split],
    known: FoldsMap,
    wanted: Mapping[tuple[int, int], tuple[str, ...]],
    trained: Sequence[int],
    cases: Sequence[str],
) -> tuple[list[Split], FoldsMap]:
    """The folds with few-label ones appended, and the map that names them. No fold that is there changes.

    Args:
        folds: of the splits file.
        known: the map so far.
        wanted: (labelled, repeat) of the folds that there shall be, with the labels that each misses.
        trained: fold numbers for which models exist. Those that the file does not have were trained on nnU-Net's
            random split of that number; they get it written down instead of another meaning.
        cases: all of the dataset.
    """
    result = list(folds)
    if len(folds) < FIRST_FEW_LABEL_FOLD:  # at the first run, or where the file was made anew
        known = replace(known, stock_folds=len(folds))
    if known.replaced:  # their numbers are taken, also where the file was made anew
        _fill(result, max(known.replaced) + 1, known, trained, cases)
    named = dict(known.folds)
    for number, fold in sorted(named.items()):  # folds that somebody removed with the file come back
        if number >= len(result):
            _fill(result, number, known, trained, cases)
            result.append(known.split(fold.labelled, fold.repeat))
    there = {(fold.labelled, fold.repeat) for fold in named.values()}
    for (labelled, repeat), missing in sorted(wanted.items()):
        if (labelled, repeat) not in there:
            taken = named.keys() | set(known.replaced)
            number = _place(result, known.split(labelled, repeat), taken, known, trained, cases)
            named[number] = FewLabelFold(labelled, repeat, missing)
    return result, replace(known, folds=dict(sorted(named.items())))


def _place(
    folds: list[Split],
    split: Split,
    taken: Collection[int],
    known: FoldsMap,
    trained: Sequence[int],
    cases: Sequence[str],
) -> int:
    """Number of a fold with these cases: one that has no name yet after a kill, else a new one at the end."""
    for number in range(FIRST_FEW_LABEL_FOLD, len(folds)):
        if number not in taken and folds[number] == split:
            return number
    number = max(FIRST_FEW_LABEL_FOLD, len(folds))
    while number in trained:
        number += 1
    _fill(folds, number, known, trained, cases)
    folds.append(split)
    return number


def _fill(folds: list[Split], length: int, known: FoldsMap, trained: Sequence[int], cases: Sequence[str]) -> None:
    """Appends folds up to this length that mean what they meant before, or repeat the first ones."""
    while len(folds) < length:
        number = len(folds)
        folds.append(random_split(cases, number) if number in trained else folds[number % known.stock_folds])


def check_fit(folds: Sequence[Split], known: FoldsMap, folder: Path) -> None:
    """Compares the folds that the map names with the splits file.

    Raises:
        UserError: a fold has other cases than the map says.
    """
    for number, fold in known.folds.items():
        if number < len(folds) and not _same(folds[number], known.split(fold.labelled, fold.repeat)):
            raise UserError(
                f"Fold {number} of {folder / SPLITS} has other cases than {folder / MAP} says; restore the one that "
                f"was changed, from its .backup if there is one, or move {MAP} away to begin with new fold numbers"
            )


def _same(one: Split, other: Split) -> bool:
    return all(set(one[side]) == set(other[side]) for side in ("train", "val"))


def write_folds(folder: Path, before: bytes | None, folds: Sequence[Split], named: FoldsMap) -> None:
    """Writes the splits with a backup of those that were there, then the map; each only if it changes.

    Args:
        folder: of the preprocessed dataset.
        before: the bytes of the splits file that ``folds`` were made from; None if there was none.
        folds: all folds.
        named: the map. One that is there and names folds that this one replaces is kept as a backup.

    Raises:
        UserError: the folder cannot be written, or another program changed the splits meanwhile.
    """
    try:
        if _file_bytes(folder / SPLITS) != before:
            raise UserError(f"{folder / SPLITS} was changed by another program meanwhile; run the same command again")
        if before is None or json.loads(before) != list(folds):
            _back_up(folder / SPLITS)
            _write(folder / SPLITS, as_json(list(folds)))
        content = as_json(named.as_json())
        if _file_bytes(folder / MAP) != content:
            if named.replaced:
                _back_up(folder / MAP)
            _write(folder / MAP, content)
    except OSError as error:
        raise UserError(
            f"The folds cannot be written to {folder} ({error}); make the folder writable and the disk not full, and "
            "run the same command again"
        ) from error


def _file_bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def _back_up(file: Path) -> Path | None:
    """Copies a file to its name with ``.backup``, and a number if that is there with other content.

    Returns:
        the copy; None if there is no file.
    """
    content = _file_bytes(file)
    if content is None:
        return None
    number = 0
    while True:
        backup = file.with_name(f"{file.name}.backup{number or ''}")
        write_first(backup, content)
        if backup.read_bytes() == content:
            return backup
        number += 1


def _write(file: Path, content: bytes) -> None:
    with whole_file(file) as temporary:
        temporary.write_bytes(content)
