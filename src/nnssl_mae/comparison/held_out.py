"""Finds predictions of test sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnssl_mae.comparison.dataset_labels import labels_of
from nnssl_mae.comparison.dataset_places import DatasetPlaces, dataset_places, is_dataset_name
from nnssl_mae.comparison.entries import Found, HeldOut, Run, Unfinished
from nnssl_mae.comparison.fold_map import FoldMap, read_fold_map
from nnssl_mae.comparison.label_maps import choose_reader
from nnssl_mae.comparison.model_folders import FOLD, archived_plans, file_ending, folds_in, label_files
from nnssl_mae.errors import UserError

TEST = "test"


class HeldOutSearch:
    """Looks through the prediction folders of one test set."""

    def __init__(self, held_out: HeldOut, folds: Sequence[str], roots: Mapping[str, Path], validated: set[str]) -> None:
        self._held_out = held_out
        self._folds = folds
        self._known: dict[str, set[str]] = defaultdict(set)
        self._strange: dict[str, set[str]] = defaultdict(set)
        numbered = isinstance(held_out.dataset, int)
        self._places = dataset_places(int(held_out.dataset), roots.values()) if numbered else DatasetPlaces("")
        name = self._places.name if numbered else str(held_out.dataset)
        self._name = f"{name} (test)" if name in validated else name
        if not held_out.references.is_dir():
            raise UserError(f"{held_out.references} is not a folder; give the one with the test set's reference labels")

    def found(self) -> Found:
        entries: list[Run | Unfinished] = []
        replicates: dict[str, list[str]] = defaultdict(list)
        for arm, folders in self._held_out.predictions.items():
            for folder, replicate in zip(folders, _distinct_names(folders), strict=True):
                replicates[arm].append(replicate)
                entries += self._look(arm, replicate, folder)
        runs = tuple(entry for entry in entries if isinstance(entry, Run))
        nowhere = [FOLD + fold for fold in self._folds if all(entry.fold != fold for entry in entries)]
        unfinished = [entry for entry in entries if isinstance(entry, Unfinished)]
        return Found(runs, (*unfinished, *self._missing(entries, replicates)), tuple(self._notes(nowhere)))

    def _notes(self, nowhere: Sequence[str]) -> Iterator[str]:
        if nowhere:
            yield f"{self._name}: no folder of predictions has {' or '.join(nowhere)}."
        for arm, cases in _filled(self._known):
            yield (
                f"{self._name}: {len(cases)} cases, such as {min(cases)}, have names of cases that models of {arm} "
                "were trained on; if they are the same, their scores say nothing of new ones."
            )
        for arm, cases in _filled(self._strange):
            yield f"{self._name}: {len(cases)} predictions of {arm}, such as {min(cases)}, have no reference: left out."

    def _look(self, arm: str, replicate: str, folder: Path) -> list[Run | Unfinished]:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give folders that nnUNetv2_predict wrote for arm '{arm}'")
        folds = folds_in(folder)
        if not folds and self._folds:
            raise UserError(
                f"{folder} holds predictions that belong to no fold, so --fold has no meaning there; leave it out, or "
                f"put predictions of single folds into folders such as {folder.name}/{FOLD}{self._folds[0]}"
            )
        if not folds:
            return [self._one(arm, replicate, TEST, folder)]
        chosen = [fold for fold in folds if not self._folds or fold in self._folds]
        return [self._one(arm, replicate, fold, folder / f"{FOLD}{fold}") for fold in chosen]

    def _one(self, arm: str, replicate: str, fold: str, folder: Path) -> Run | Unfinished:
        dataset_json = self._places.dataset_json(folder)
        plans, labels = archived_plans(folder), labels_of(dataset_json, folder)
        ending = file_ending(dataset_json, folder)
        folds = self._trained_folds(plans)
        few = folds.labelled(fold), folds.repeat(fold)
        current = self._places.current_labels()
        predicted = label_files(folder, ending)
        why = folds.why_unknown(fold) if predicted else "the folder holds no predictions"
        if current is not None and not labels.means_the_same_as(current):
            why = "was predicted with other labels than the test set's dataset.json holds"
        if why:
            return Unfinished(self._name, arm, replicate, fold, *few, why)
        cases = self._reference_cases(ending)
        example = self._held_out.references / f"{cases[0]}{ending}"
        self._strange[arm] |= predicted.keys() - set(cases)
        self._known[arm] |= folds.training_cases(fold) & set(cases)
        return Run(
            *(self._name, arm, replicate, fold, *few),
            predictions=folder,
            references=self._held_out.references,
            model=None,
            labels=(current or labels).values,
            ignore=labels.ignore,
            file_ending=ending,
            cases=cases,
            reader=choose_reader(plans, dataset_json, ending, example, folder),
            subjects=read_fold_map(self._places.preprocessed).subjects or folds.subjects,
        )

    def _trained_folds(self, plans: Mapping[str, Any]) -> FoldMap:
        """The folds of the dataset that the model was trained on, which the archived plans name."""
        name = plans.get("dataset_name")
        return read_fold_map(DatasetPlaces(name).preprocessed if is_dataset_name(name) else None)

    def _reference_cases(self, ending: str) -> tuple[str, ...]:
        folder = self._held_out.references
        cases = tuple(sorted(label_files(folder, ending)))
        if not cases:
            raise UserError(f"{folder} holds no reference labels that end in {ending}; give the test set's labels")
        return cases

    def _missing(
        self, entries: Sequence[Run | Unfinished], replicates: Mapping[str, Sequence[str]]
    ) -> list[Unfinished]:
        folds = {entry.fold: (entry.labelled, entry.repeat) for entry in entries}
        there = {(entry.arm, entry.replicate, entry.fold) for entry in entries}
        return [
            Unfinished(self._name, arm, replicate, fold, *few, "there is no such prediction")
            for arm, names in replicates.items()
            for replicate in names
            for fold, few in folds.items()
            if (arm, replicate, fold) not in there
        ]


def _filled(cases: Mapping[str, set[str]]) -> list[tuple[str, set[str]]]:
    return [(arm, names) for arm, names in cases.items() if names]


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError(f"A folder of predictions is given twice ({', '.join(map(str, folders))}); name each once")
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
