"""The command that compares the arms of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnssl_mae.study.gather import gathered
from nnssl_mae.study.model import FLOOR, Study
from nnssl_mae.study.place import COMPARISON, FLOOR_MODEL, LEARNING, LabelledSet, predictions_of, results_of
from nnssl_mae.study.steps import Command


def controls_of(study: Study) -> tuple[str, ...]:
    """Those that the study names, or every control from scratch and stock arm; else the floor or the first arm."""
    if study.controls:
        return study.controls
    found = [name for name, arm in study.arms.items() if arm.kind in ("scratch", "stock")]
    return tuple(found) or ((FLOOR,) if study.floor else (next(iter(study.arms)),))


def compare_commands(
    study: Study, datasets: Sequence[LabelledSet], beside: Path, patterns: Mapping[str, str]
) -> dict[Path, Command]:
    """``nnssl-mae compare`` for everything that the study trained, by the folder that it writes.

    Validated folds of all datasets are one comparison, with average ranks; test sets are compared one by one.

    Args:
        study: what was trained.
        datasets: its labelled datasets.
        beside: folder of the study file.
        patterns: the model folders of each arm.
    """
    end = tuple(word for control in controls_of(study) for word in ("--control", control)) + study.compare
    if isinstance(study.test, Mapping):
        return {
            COMPARISON / labelled.name: (
                *("nnssl-mae", "compare", "-d", str(labelled.number)),
                *("--references", str(labelled.inside(study.test[labelled.number].references, beside))),
                *_predictions(study, labelled),
                *(*end, "-o", (COMPARISON / labelled.name).as_posix()),
            )
            for labelled in datasets
        }
    floor = {FLOOR: FLOOR_MODEL} if study.floor else {}
    return {COMPARISON: (*_of_folds(study, datasets, {**patterns, **floor}), *end, "-o", COMPARISON.as_posix())}


def learning_command(study: Study, datasets: Sequence[LabelledSet], patterns: Mapping[str, str]) -> Command:
    """``nnssl-mae compare`` of the validated folds, beside test sets, whose predictions know no steps."""
    controls = [word for control in controls_of(study) if control != FLOOR for word in ("--control", control)]
    return (*_of_folds(study, datasets, patterns), *controls, *study.compare, "-o", LEARNING.as_posix())


def _of_folds(study: Study, datasets: Sequence[LabelledSet], patterns: Mapping[str, str]) -> Command:
    words = [word for labelled in datasets for word in ("-d", str(labelled.number))]
    words += [word for name, pattern in patterns.items() for word in ("--arm", f"{name}={pattern}")]
    words += [
        word for seed in study.seeds for word in ("--results", f"seed_{seed}={gathered(results_of(seed)).as_posix()}")
    ]
    return ("nnssl-mae", "compare", *words)


def _predictions(study: Study, labelled: LabelledSet) -> list[str]:
    names = [*study.arms, *([FLOOR] if study.floor else [])]
    folders = [(name, gathered(predictions_of(labelled.name, name, seed))) for name in names for seed in study.seeds]
    return [word for name, folder in folders for word in ("--predictions", f"{name}={folder.as_posix()}")]
