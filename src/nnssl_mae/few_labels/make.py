"""Puts few-label folds into the splits of a dataset: what is there stays, what is wanted and missing is appended."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from nnssl_mae.errors import UserError
from nnssl_mae.few_labels.choose import draw_order, hold_out, missing_classes
from nnssl_mae.few_labels.contents import Content, read_contents
from nnssl_mae.few_labels.dataset import (
    PreprocessedDataset,
    label_files,
    preprocessed_dataset,
    subjects_of_cases,
    trained_folds,
)
from nnssl_mae.few_labels.splits_file import (
    MAP,
    SPLITS,
    FoldsMap,
    Split,
    check_fit,
    count_stock_folds,
    read_map,
    read_splits,
    read_splits_file,
    splits_bytes,
    stock_splits,
    with_folds,
    write_folds,
)
from nnssl_mae.folders import nnunet_folder

_SMALL = 2_000_000  # bytes of label files


@dataclass(frozen=True)
class SplitsRequest:
    """What the user asks for.

    Raises:
        UserError: a number is not possible.
    """

    number: int
    """Of the dataset."""
    labelled: tuple[int, ...]
    """How many labelled cases; one fold for each and each repeat."""
    repeats: int
    seed: int = 0
    validation_fold: int | None = None
    """The stock fold whose validation cases validate all few-label folds; 0 if no share is given either."""
    validation_share: float | None = None
    """Instead: share of the subjects to hold out."""
    subject_regex: str | None = None

    def __post_init__(self) -> None:
        if not self.labelled or min(self.labelled) < 1:
            raise UserError("--labelled needs whole numbers of cases from 1 on, such as --labelled 1 2 5 10")
        if self.repeats < 1:
            raise UserError(f"--repeats {self.repeats} is not possible; use 1 or more")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} is not possible; use 0 or more")
        if self.validation_fold is not None and self.validation_share is not None:
            raise UserError("--validation-fold and --validation-share contradict each other; leave one out")
        if self.validation_share is not None and not 0 < self.validation_share < 1:
            raise UserError(
                f"--validation-share {self.validation_share:g} is not possible; use 0.2, or above 0, below 1"
            )

    @property
    def validation_from(self) -> dict[str, float]:
        """As the map says it."""
        if self.validation_share is not None:
            return {"share": self.validation_share}
        return {"fold": self.validation_fold or 0}

    @property
    def wanted(self) -> list[tuple[int, int]]:
        """(labelled, repeat) of each fold, in the order of their numbers."""
        return [(labelled, repeat) for labelled in sorted(set(self.labelled)) for repeat in range(self.repeats)]


@dataclass(frozen=True)
class Splits:
    """What came of a request."""

    dataset: PreprocessedDataset
    folds: list[Split]
    """All of them; the place in the list is the number."""
    named: FoldsMap
    new: tuple[int, ...]
    """Numbers of folds that this run added, brought back or named."""
    notes: tuple[str, ...]


class _Contents:
    """Reads the labels when they are needed, once."""

    def __init__(self, dataset: PreprocessedDataset, workers: int, console: Console) -> None:
        self._dataset, self._workers, self._console = dataset, workers, console
        self.found: dict[str, Content] | None = None

    def __call__(self) -> dict[str, Content]:
        if self.found is None:
            files = label_files(self._dataset, self._dataset.cases)
            classes, reader = self._dataset.classes, self._dataset.reader
            # Starting processes takes longer than reading a few small files.
            small = sum(file.stat().st_size for file in files.values()) < _SMALL
            self.found = read_contents(files, classes, reader, 1 if small else self._workers, self._console)
        return self.found


def make_splits(
    request: SplitsRequest, workers: int, console: Console, dry_run: bool = False, overwrite: bool = False
) -> Splits:
    """Adds the folds of a request to ``splits_final.json``, and nnU-Net's own first if there are none.

    Folds that are there keep number and cases: further label counts and repeats are appended. The same request again
    changes nothing.

    Args:
        request: what there shall be.
        workers: processes that read labels.
        console: for progress.
        dry_run: write nothing.
        overwrite: other options replace those before, if ``nnUNet_results`` has no model of their folds. These keep
            number and cases in the file, for models elsewhere, but have no name in the map any longer.

    Raises:
        UserError: the dataset, its labels or files are not usable, there are other few-label folds already, or too
            few cases.
    """
    dataset = preprocessed_dataset(request.number)
    before = splits_bytes(dataset.folder)
    folds, notes = _folds_so_far(dataset)
    known = read_map(dataset.folder)
    trained = trained_folds(dataset.name)
    replaced = False
    if known is not None:
        check_fit(folds, known, dataset.folder)
        replaced = overwrite and not _is_of(known, request)
        if replaced:
            nnunet_folder("nnUNet_results")  # without it, nobody knows which folds were trained
            _refuse_trained(known, trained)
        else:
            _refuse_other(known, request, dataset.folder)
    contents = _Contents(dataset, workers, console)
    old = None if replaced or known is None else known
    if old is None:
        began, pool, more = _begin(request, dataset, folds, known, contents)
    else:
        began, pool, more = old, list(old.orders[0]), []
    _check_pool(request, pool, dataset)
    drawn, missing = _draw(request, began, pool, dataset, contents)
    result, named = with_folds(folds, drawn, missing, sorted(trained), dataset.cases)
    if not dry_run:
        write_folds(dataset.folder, before, result, named)
    new = tuple(number for number in named.folds if old is None or number not in old.folds or number >= len(folds))
    if replaced and known is not None:
        notes.append(
            f"The folds before ({', '.join(map(str, known.folds))}) keep their cases in {SPLITS}, but not their names: "
            f"nnssl-mae compare reports models of them as holes; a backup of {MAP} names them."
        )
    notes += [*more, *_on_models(trained, len(folds), len(result)), *_on_cases(dataset, result, named, contents.found)]
    return Splits(dataset, result, named, new, tuple(notes))


def _folds_so_far(dataset: PreprocessedDataset) -> tuple[list[Split], list[str]]:
    """What nnU-Net would use: the file, the one of the raw dataset, which its planner copies, or its own five folds."""
    folds = read_splits(dataset.folder, dataset.cases)
    if folds is not None:
        return folds, []
    raw = Path(os.environ.get("nnUNet_raw") or os.devnull) / dataset.name / SPLITS
    if raw.is_file():  # the next planning would refuse any other folds
        return read_splits_file(raw, dataset.cases), [f"The first folds are those of {raw}."]
    return stock_splits(dataset.cases, dataset.name), []


def _begin(
    request: SplitsRequest,
    dataset: PreprocessedDataset,
    folds: Sequence[Split],
    before: FoldsMap | None,
    contents: _Contents,
) -> tuple[FoldsMap, list[str], list[str]]:
    """A map without folds in place of the one before, the pool of training cases, and notes."""
    subjects = subjects_of_cases(dataset.cases, request.subject_regex)
    known = before is not None and len(folds) > before.stock_folds
    stock = before.stock_folds if before is not None and known else count_stock_folds(folds, dataset.cases)
    if request.validation_share is not None:
        pool, validation = hold_out(subjects, contents(), request.validation_share, request.seed)
        notes: list[str] = []
    else:
        pool, validation, notes = _of_fold(folds[:stock], request.validation_fold or 0, subjects, dataset)
    begun = FoldsMap(
        seed=request.seed,
        stock_folds=stock,
        validation_from=request.validation_from,
        subject_regex=request.subject_regex,
        validation=tuple(validation),
        subjects=subjects,
        replaced=() if before is None else tuple(sorted({*before.replaced, *before.folds})),
    )
    return begun, pool, notes


def _of_fold(
    folds: Sequence[Split], number: int, subjects: Mapping[str, str], dataset: PreprocessedDataset
) -> tuple[list[str], list[str], list[str]]:
    """Training pool, validation cases and notes where a fold of the file gives the validation cases."""
    if not 0 <= number < len(folds):
        raise UserError(
            f"--validation-fold {number} is not possible: {dataset.folder / SPLITS} has folds 0 to {len(folds) - 1}; "
            "use one of them, or --validation-share 0.2"
        )
    validation = list(dict.fromkeys(folds[number]["val"]))
    held = {subjects[case] for case in validation}
    training = sorted({*folds[number]["train"]} - {*validation})
    pool = [case for case in training if subjects[case] not in held]
    if not pool or not validation:
        raise UserError(
            f"Fold {number} of {dataset.folder / SPLITS} has {len(validation)} validation cases and leaves "
            f"{len(pool)} training cases of other subjects; use --validation-share 0.2, or another --validation-fold"
        )
    left_out = len(training) - len(pool)
    note = (
        f"{left_out} training cases of fold {number} are in no few-label fold: their subjects have validation cases in "
        "it (--validation-share 0.2 would draw by subject)."
    )
    return pool, validation, [note] if left_out else []


def _check_pool(request: SplitsRequest, pool: Sequence[str], dataset: PreprocessedDataset) -> None:
    if gone := sorted(set(pool) - set(dataset.cases)):
        raise UserError(
            f"{len(gone)} cases of {dataset.folder / MAP}, such as {gone[0]}, are no longer preprocessed; preprocess "
            "them again, or move that file away to begin with new folds"
        )
    if max(request.labelled) > len(pool):
        raise UserError(
            f"--labelled {max(request.labelled)} is more than the {len(pool)} cases that {dataset.name} has for "
            f"training beside the validation cases; use at most {len(pool)}"
        )


def _is_of(known: FoldsMap, request: SplitsRequest) -> bool:
    return not _differences(known, request)


def _differences(known: FoldsMap, request: SplitsRequest) -> list[str]:
    """Options that decide about the cases of all few-label folds and differ, as they were given before."""
    source = ", ".join(f"--validation-{key} {value:g}" for key, value in known.validation_from.items())
    regex = "no --subject-regex" if known.subject_regex is None else f"--subject-regex '{known.subject_regex}'"
    compared = [
        (f"--seed {known.seed}", known.seed == request.seed),
        (source, dict(known.validation_from) == request.validation_from),
        (regex, known.subject_regex == request.subject_regex),
    ]
    return [words for words, same in compared if not same]


def _refuse_other(known: FoldsMap, request: SplitsRequest, folder: Path) -> None:
    if different := _differences(known, request):
        raise UserError(
            f"The few-label folds of {folder / MAP} were made with {' and '.join(different)}, and their cases never "
            "change; use the same to add label counts or repeats, or --overwrite to replace folds that no model was "
            "trained on"
        )


def _refuse_trained(known: FoldsMap, trained: Mapping[int, Path]) -> None:
    if used := sorted(known.folds.keys() & trained.keys()):
        raise UserError(
            f"{trained[used[0]]} was trained on few-label fold {used[0]}, which would lose its name with --overwrite; "
            "use the options of before to add folds, or move the models of these folds out of nnUNet_results"
        )


def _draw(
    request: SplitsRequest, begun: FoldsMap, pool: Sequence[str], dataset: PreprocessedDataset, contents: _Contents
) -> tuple[FoldsMap, dict[tuple[int, int], tuple[str, ...]]]:
    """The map with an order for each repeat, and the labels that each fold that is not there yet misses."""
    orders = list(begun.orders)
    while len(orders) < request.repeats:
        orders.append(tuple(draw_order(pool, begun.subjects, contents(), orders, request.seed)))
    drawn = replace(begun, orders=tuple(orders))
    there = {(fold.labelled, fold.repeat) for fold in begun.folds.values()}
    missing = {
        (labelled, repeat): missing_classes(orders[repeat][:labelled], contents(), dataset.classes.names)
        for labelled, repeat in request.wanted
        if (labelled, repeat) not in there
    }
    return drawn, missing


def _on_models(trained: Mapping[int, Path], before: int, after: int) -> list[str]:
    """What becomes of models whose fold the file did not have."""
    numbers = sorted(number for number in trained if before <= number < after)
    if not numbers:
        return []
    return [
        f"nnUNet_results has models of fold {', '.join(map(str, numbers))}, which {SPLITS} did not have. They keep the "
        "random split that nnU-Net gives such a number; if they were trained on few-label folds whose files are lost, "
        f"restore {SPLITS} and {MAP} instead."
    ]


def _on_cases(
    dataset: PreprocessedDataset, folds: Sequence[Split], named: FoldsMap, contents: Mapping[str, Content] | None
) -> list[str]:
    """Cases in no fold, labels that cannot be measured, folds that are equal."""
    used = {case for fold in folds for side in ("train", "val") for case in fold[side]}
    notes = []
    if unused := [case for case in dataset.cases if case not in used]:
        notes.append(f"{len(unused)} preprocessed cases, such as {unused[0]}, are in no fold of {SPLITS}.")
    if contents is not None and (lacking := missing_classes(named.validation, contents, dataset.classes.names)):
        notes.append(f"No validation case has {', '.join(lacking)}, so nothing will be known about it.")
    same: dict[tuple[str, ...], list[int]] = {}
    for number in named.folds:
        same.setdefault(tuple(sorted(folds[number]["train"])), []).append(number)
    for numbers in same.values():
        if len(numbers) > 1:
            words = ", ".join(map(str, numbers))
            notes.append(f"Folds {words} have the same training cases: there are no others to choose from.")
    return notes
