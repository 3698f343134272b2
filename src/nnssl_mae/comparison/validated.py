"""Finds validated folds in nnU-Net's folders of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from nnssl_mae.comparison.dataset_labels import DatasetLabels, labels_of
from nnssl_mae.comparison.dataset_places import DatasetPlaces, dataset_places
from nnssl_mae.comparison.entries import Found, Request, Run, Unfinished
from nnssl_mae.comparison.fold_map import read_fold_map
from nnssl_mae.comparison.label_maps import choose_reader
from nnssl_mae.comparison.model_folders import (
    FOLD,
    archived_plans,
    file_ending,
    folds_in,
    is_training,
    logged_training_cases,
    validated_cases,
)
from nnssl_mae.errors import UserError

ALL = "all"
NOT_ENDED = "training has not ended"
FAIR = "predict a test set with it, and compare that"

_MODEL_PARTS = 3  # trainer, plans, configuration


@dataclass(frozen=True)
class _Model:
    """A folder TRAINER__PLANS__CONFIGURATION, and which arm and replicate it is."""

    folder: Path
    arm: str
    replicate: str


def searches(request: Request, roots: Mapping[str, Path]) -> list[ValidationSearch]:
    places = [dataset_places(number, roots.values()) for number in request.datasets]
    arms = _arms_of_models(request, [place.name for place in places], roots)
    return [ValidationSearch(place, arms[place.name], request, tuple(roots)) for place in places]


def _arms_of_models(
    request: Request, datasets: Sequence[str], roots: Mapping[str, Path]
) -> dict[str, dict[str, list[_Model]]]:
    """Models by dataset and arm. An arm that has none in one of the datasets stands there with an empty list."""
    folders = {
        (dataset, label): _model_folders(root / dataset) for dataset in datasets for label, root in roots.items()
    }
    names = sorted({folder.name for found in folders.values() for folder in found})
    patterns = dict(request.arms) or {name: _literal(name) for name in names}
    _check_patterns(patterns, names)
    arms: dict[str, dict[str, list[_Model]]] = {dataset: {arm: [] for arm in patterns} for dataset in datasets}
    for (dataset, label), found in folders.items():
        for arm, pattern in patterns.items():
            matching = [folder for folder in found if fnmatchcase(folder.name, pattern)]
            _check_repetitions(arm, pattern, dataset, [*(model.folder for model in arms[dataset][arm]), *matching])
            arms[dataset][arm] += [_Model(f, arm, _replicate(f, label, len(roots), len(matching))) for f in matching]
    return arms


def _model_folders(dataset: Path) -> list[Path]:
    """Folders of models; ensembles, which nnU-Net puts beside them, have other names."""
    if not dataset.is_dir():
        return []
    return sorted(path for path in dataset.iterdir() if len(path.name.split("__")) == _MODEL_PARTS and path.is_dir())


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _check_patterns(patterns: Mapping[str, str], names: Sequence[str]) -> None:
    listed = ", ".join(names) or "none at all"
    for arm, pattern in patterns.items():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"Arm '{arm}' ({pattern}) matches no model of these datasets; there are: {listed}")
    for name in names:
        arms = [arm for arm, pattern in patterns.items() if fnmatchcase(name, pattern)]
        if len(arms) > 1:
            raise UserError(
                f"Model {name} matches the patterns of several arms ({', '.join(arms)}); make them stricter, for "
                "instance 'nnUNetTrainer__*' instead of 'nnUNetTrainer*'"
            )


def _check_repetitions(arm: str, pattern: str, dataset: str, models: Sequence[Path]) -> None:
    """Only plans may differ within an arm: those made from several pre-trainings are its seeds."""
    parts = [model.name.split("__") for model in models]
    for what, place in (("trainers", 0), ("configurations", 2)):
        names = sorted({part[place] for part in parts})
        if len(names) > 1:
            raise UserError(
                f"Arm '{arm}' ({pattern}) matches models of {len(names)} {what} in {dataset} ({', '.join(names)}), "
                "which are no repetitions of each other; make the pattern stricter, or name an arm for each"
            )


def _replicate(folder: Path, label: str, n_roots: int, n_matching: int) -> str:
    """The label of the results root where there are several, the model's name where that does not tell it."""
    if n_roots == 1:
        return folder.name
    return label if n_matching == 1 else f"{label}/{folder.name}"


class ValidationSearch:
    """Looks through the models of one dataset."""

    def __init__(
        self, places: DatasetPlaces, arms: Mapping[str, Sequence[_Model]], request: Request, labels: Sequence[str]
    ) -> None:
        self._places = places
        self._arms = arms
        self._folds = request.folds
        self._roots = labels
        self._map = read_fold_map(places.preprocessed)
        self._notes: list[str] = []

    def found(self) -> Found:
        entries = [
            self._look(model, fold)
            for models in self._arms.values()
            for model in models
            for fold in self._folds_of(model)
        ]
        runs = [entry for entry in entries if isinstance(entry, Run)]
        unfinished = [entry for entry in entries if isinstance(entry, Unfinished)]
        return Found(tuple(runs), (*unfinished, *self._missing(entries)), tuple(self._notes))

    def _folds_of(self, model: _Model) -> list[str]:
        folds = folds_in(model.folder)
        if ALL in folds:
            folds.remove(ALL)
            self._notes.append(
                f"fold_all of {model.folder.name} ({self._places.name}) is left out: it was validated on "
                f"the cases it was trained on; {FAIR}."
            )
        return [fold for fold in folds if not self._folds or fold in self._folds]

    def _look(self, model: _Model, fold: str) -> Run | Unfinished:
        folder = model.folder / f"{FOLD}{fold}"
        dataset_json = self._places.dataset_json(model.folder)
        labels = labels_of(dataset_json, model.folder)
        ending = file_ending(dataset_json, model.folder)
        predicted = validated_cases(folder, ending)
        if why := self._why_not(folder, fold, labels, predicted):
            return Unfinished(self._places.name, model.arm, model.replicate, fold, *self._few(fold), why)
        cases = self._map.validation_cases(fold) or predicted or ()
        references = self._places.references()
        return Run(
            *(self._places.name, model.arm, model.replicate, fold, *self._few(fold)),
            predictions=folder / "validation",
            references=references,
            model=folder,
            labels=(self._places.current_labels() or labels).values,
            ignore=labels.ignore,
            file_ending=ending,
            cases=cases,
            reader=choose_reader(
                *(archived_plans(model.folder), dataset_json, ending),
                example=references / f"{cases[0]}{ending}",
                place=model.folder,
            ),
            subjects=self._map.subjects,
        )

    def _why_not(self, folder: Path, fold: str, labels: DatasetLabels, predicted: tuple[str, ...] | None) -> str:
        """Why a fold cannot be compared; empty if it can."""
        if is_training(folder):
            return NOT_ENDED
        if unknown := self._map.why_unknown(fold) or self._why_other_number(folder, fold):
            return unknown
        if predicted is None:
            return "training has ended, validation has not: run nnUNetv2_train with --val"
        current = self._places.current_labels()
        if current is not None and not labels.means_the_same_as(current):
            return "was trained with other labels than dataset.json holds now: train it again"
        expected = self._map.validation_cases(fold)
        if expected is not None and set(predicted) != set(expected):
            return f"was validated on other cases than fold {fold} of splits_final.json holds now: train it again"
        return "" if expected or predicted else "has no validation cases"

    def _why_other_number(self, folder: Path, fold: str) -> str:
        """Whether nnU-Net's own log tells of another number of labels than the fold has by its name."""
        labelled = self._map.labelled(fold)
        if labelled is None or not (others := logged_training_cases(folder) - {labelled}):
            return ""
        return (
            f"its training_log tells of {' and '.join(map(str, sorted(others)))} training cases, and fold {fold} has "
            f"{labelled}: it was trained on another split; train it again, or put back the splits of that time (move "
            "logs of earlier trainings away)"
        )

    def _few(self, fold: str) -> tuple[int | None, int | None]:
        return self._map.labelled(fold), self._map.repeat(fold)

    def _missing(self, entries: Sequence[Run | Unfinished]) -> list[Unfinished]:
        """Folds that were asked for, or that any model of the dataset has, and another one has not even begun."""
        folds = [*dict.fromkeys([*(entry.fold for entry in entries), *self._folds])]
        there = {(entry.arm, entry.replicate, entry.fold) for entry in entries}
        return [
            Unfinished(self._places.name, arm, replicate, fold, *self._few(fold), "there is no such result")
            for arm in self._arms
            for replicate in self._replicates(arm)
            for fold in folds
            if (arm, replicate, fold) not in there
        ]

    def _replicates(self, arm: str) -> list[str]:
        """Those that were found, and the results roots where an arm has no model."""
        found = [model.replicate for model in self._arms[arm]]
        if len(self._roots) == 1:
            return found or [""]
        return found + [label for label in self._roots if all(name.split("/")[0] != label for name in found)]
