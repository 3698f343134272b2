"""What must hold before the numbers of a comparison mean what they seem to mean.

The gates judge the study and its tables of cases; a gate that is not met is said beside the numbers, and hides none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas

from nnssl_mae.comparison.statistics import MINIMUM_SUBJECTS, interval_of_mean, pairs_needed
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json, write_json
from nnssl_mae.folders import datasets_with_number, nnunet_folder
from nnssl_mae.study.comparing import controls_of
from nnssl_mae.study.model import FLOOR, Study
from nnssl_mae.study.place import COMPARISON

GATES = "gates.json"
_SEEDS = 3


@dataclass(frozen=True)
class Gate:
    """One condition; ``is_met`` is None where it cannot be told."""

    name: str
    is_met: bool | None
    sentence: str


def write_gates(study: Study, folders: Sequence[Path], out: Path) -> str:
    """Judges a compared study into ``comparison/gates.json``; returns what is to be printed.

    Args:
        study: what was done.
        folders: of its comparisons, relative to ``out``: others may be left of an earlier version of the study.
        out: the study's folder.
    """
    found = judge(study, read_cases([out / folder for folder in folders]))
    write_json(out / COMPARISON / GATES, [asdict(gate) for gate in found])
    return in_words(found)


def in_words(gates: Sequence[Gate]) -> str:
    """A line a gate."""
    words = {True: "met", False: "NOT MET", None: "not known"}
    return "\n".join(f"{words[gate.is_met]:>9}  {gate.name}: {gate.sentence}" for gate in gates)


def read_cases(folders: Sequence[Path]) -> pandas.DataFrame:
    """The tables of cases of these comparisons, one after the other.

    Raises:
        UserError: one is missing or damaged.
    """
    return pandas.concat([_read_table(folder / "cases.csv") for folder in folders], ignore_index=True)


def _read_table(file: Path) -> pandas.DataFrame:
    if not file.is_file():
        raise UserError(f"{file.parent} holds no cases.csv; run the step compare first")
    try:
        return pandas.read_csv(
            file, dtype={"subject": str, "replicate": str, "fold": str}, float_precision="round_trip"
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); remove it and run the study again") from error


def judge(study: Study, cases: pandas.DataFrame) -> list[Gate]:
    """All gates.

    Args:
        study: what was done.
        cases: rows of the comparison's table of cases.
    """
    cells = list(_cells(cases))
    return [
        *_above_the_floor(study, cells),
        _chosen_rates(study),
        *_pretraining_seeds(study),
        _enough_seeds(study),
        *_enough_subjects(study, cells),
        *_overlap(study),
    ]


@dataclass(frozen=True)
class _Cell:
    """One dataset and label count."""

    words: str
    dice: pandas.DataFrame
    """Mean over labels, folds, repeats and replicates: one row a subject, one column an arm."""

    def differences(self, arm: str, control: str) -> np.ndarray:
        """Arm - control of each subject that both have."""
        if arm not in self.dice or control not in self.dice:
            return np.empty(0)
        return (self.dice[arm] - self.dice[control]).dropna().to_numpy(dtype=np.float64)


def _cells(cases: pandas.DataFrame) -> Iterator[_Cell]:
    # All labels are NA in the table; no label count is 0.
    for (dataset, labelled), rows in cases.assign(labelled=cases["labelled"].fillna(0).astype(int)).groupby(
        ["dataset", "labelled"]
    ):
        run = ["subject", "arm", "replicate", "fold", "case"]
        dice = rows.groupby(run, dropna=False)["dice"].mean().groupby(["subject", "arm"]).mean().unstack("arm")
        count = f"{labelled} labelled" if labelled else "all labels"
        yield _Cell(f"{dataset}, {count}", dice)


def _above_the_floor(study: Study, cells: Sequence[_Cell]) -> Iterator[Gate]:
    name = "control above the no-learning floor"
    if not study.floor:
        yield Gate(name, None, "the study has no floor (floor: true)")
        return
    arms = [arm for arm, made in study.arms.items() if made.kind == "scratch"] or [
        arm for arm, made in study.arms.items() if made.kind == "stock"
    ]
    for cell in cells:
        for arm in arms:
            differences = cell.differences(arm, FLOOR)
            yield Gate(name, *_clearly_above(f"{cell.words}: {arm}", differences))


def _clearly_above(words: str, differences: np.ndarray) -> tuple[bool | None, str]:
    if not len(differences):
        return None, f"{words} and the floor have no subject in common"
    mean = float(differences.mean())
    said = f"{words} is {mean:+.3f} Dice from the floor, {len(differences)} subjects"
    if len(differences) < MINIMUM_SUBJECTS:
        return (None if mean > 0 else False), f"{said}: too few to tell"
    low, high = interval_of_mean([differences])
    return low > 0, f"{said}, 95 % interval {low:+.3f} to {high:+.3f}"


def _chosen_rates(study: Study) -> Gate:
    name = "rates chosen on labelled sets of their own"
    if study.tuning is None:
        return Gate(name, False, "every arm has the rate and schedule that the study file or its recipe says")
    rates = ", ".join(f"{rate:g}" for rate in study.tuning.learning_rates)
    if len(set(study.tuning.learning_rates)) * max(1, len(set(study.tuning.schedules))) < 2:
        return Gate(name, False, f"one candidate is no choice (rate {rates}); name several in tuning.learning_rates")
    return Gate(
        name, True, f"for each arm from {rates} on dataset {study.tuning.dataset}; stock arms keep nnU-Net's own"
    )


def _pretraining_seeds(study: Study) -> Iterator[Gate]:
    name = f"at least {_SEEDS} pre-training seeds"
    if any(arm.recipe is not None for arm in study.arms.values()) and study.pretraining is not None:
        seeds = len(study.pretraining.seeds)
        yield Gate(name, seeds >= _SEEDS, f"{seeds} for each recipe")
    for arm, made in study.arms.items():
        if made.checkpoint is not None:
            yield Gate(name, False, f"{arm} is one checkpoint, so the spread of its pre-training is not known")


def _enough_seeds(study: Study) -> Gate:
    return Gate(f"at least {_SEEDS} repetitions of fine-tuning", len(study.seeds) >= _SEEDS, f"{len(study.seeds)}")


def _enough_subjects(study: Study, cells: Sequence[_Cell]) -> Iterator[Gate]:
    name = f"enough subjects to see {study.difference:g} Dice"
    controls = controls_of(study)
    pairs = [(arm, control) for control in controls for arm in study.arms if arm != control and arm not in controls]
    for cell in cells:
        found = {f"{arm} - {control}": cell.differences(arm, control) for arm, control in pairs}
        spreads = {words: float(values.std(ddof=1)) for words, values in found.items() if len(values) > 1}
        if not spreads:
            yield Gate(name, None, f"{cell.words}: no pair has two subjects")
            continue
        widest = max(spreads, key=lambda words: spreads[words])
        needed, there = pairs_needed(spreads[widest], study.difference), len(found[widest])
        sentence = (
            f"{cell.words}: {widest} has spread {spreads[widest]:.3f}, which asks for {needed}; there are {there}"
        )
        yield Gate(name, there >= needed and not math.isnan(spreads[widest]), sentence)


def _overlap(study: Study) -> Iterator[Gate]:
    name = "no overlap between pre-training and labelled data"
    if study.unlabelled:
        tuning = [] if study.tuning is None else [study.tuning.dataset]
        for unlabelled in study.unlabelled:
            left_out = _left_out(unlabelled)
            missing = [number for number in (*study.datasets, *tuning) if number not in left_out]
            if missing:
                numbers = ", ".join(map(str, missing))
                sentence = f"dataset {unlabelled} was not checked for dataset {numbers}"
                yield Gate(name, False, f"{sentence} (nnssl-mae prepare --exclude-dataset)")
            else:
                yield Gate(name, True, f"dataset {unlabelled} was prepared without scans of the labelled ones")
        for number, folder in _elsewhere(study):
            yield Gate(name, None, f"test images of dataset {number} in {folder} are in no dataset that was left out")
    for arm, made in study.arms.items():
        if made.checkpoint is not None:
            yield Gate(name, None, f"what {arm} was pre-trained on is not known here")


def _elsewhere(study: Study) -> Iterator[tuple[int, str]]:
    """Test images outside of the folder of their dataset, which is all that `prepare` compares with."""
    tests = study.test if isinstance(study.test, Mapping) else {}
    for number, test in tests.items():
        names = datasets_with_number(number)
        places = [nnunet_folder("nnUNet_raw").resolve() / name for name in names]
        inside = [place / test.images for place in places if (place / test.images).resolve().is_relative_to(place)]
        if not any(folder.is_dir() for folder in inside):
            yield number, test.images


def _left_out(unlabelled: int) -> list[int]:
    for dataset in datasets_with_number(unlabelled):
        file = nnunet_folder("nnUNet_preprocessed") / dataset / "request.json"
        if file.is_file():
            return [int(number) for number in read_json(file, "prepare it again").get("exclude_datasets", [])]
    return []
