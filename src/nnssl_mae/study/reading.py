"""A study file into a :class:`Study`, or a sentence for what is wrong in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from nnssl_mae.errors import UserError
from nnssl_mae.folders import VARIABLES
from nnssl_mae.recipes.base import FrozenRecipe
from nnssl_mae.recipes.reading import parse, read_yaml
from nnssl_mae.recipes.words import did_you_mean, shown
from nnssl_mae.study.model import FLOOR, KINDS, Arm, Study, TestSet

Model = TypeVar("Model", bound=FrozenRecipe)
_WORD = r"[A-Za-z0-9][A-Za-z0-9-]*"


def read_study(file: Path) -> Study:
    """The study of a YAML file; ``base: other.yaml`` in it starts from another study.

    Raises:
        UserError: no such file, an unknown key (with the nearest valid one), an impossible value, or parts that
            contradict each other.
    """
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file} is no study file; its name must end in .yaml")
    try:
        return parse_study(read_yaml(str(file)), str(file))
    except UserError as error:
        raise UserError(_of_a_study(str(error))) from error


def _of_a_study(sentence: str) -> str:
    """The reader of recipes calls what it reads a recipe."""
    return sentence.replace("There is no recipe file", "There is no study file", 1).replace(
        "The recipe ", "The study ", 1
    )


def parse_study(content: Mapping[str, Any], source: str) -> Study:
    """Validates a mapping; ``source`` names it in sentences. Arms with several schedules become several arms."""
    content = dict(content)
    arms = content.get("arms")
    if not isinstance(arms, Mapping) or not arms:
        raise UserError(f"The study {source} is not valid: arms must be a section with a name for each arm")
    content["arms"] = {str(name): _part(Arm, arm, f"{source}, arm {name},") for name, arm in arms.items()}
    test = content.get("test")
    is_section = isinstance(test, Mapping) and all(str(key).isdecimal() for key in test)
    if test is not None and not is_section and test != "validation":
        raise UserError(
            f"The study {source} is not valid: test must be a section with the images of each dataset, by its number, "
            f"or validation (got {shown(test)})"
        )
    if isinstance(test, Mapping):
        content["test"] = {key: _part(TestSet, part, f"{source}, test of dataset {key},") for key, part in test.items()}
    study = _with_schedules(_part(Study, content, source), source)
    _check(study, source)
    return study


def _part(model: type[Model], content: Any, source: str) -> Model:
    try:
        return parse(model, {} if content is None else content, source)
    except UserError as error:
        raise UserError(_of_a_study(str(error))) from error


def _with_schedules(study: Study, source: str) -> Study:
    arms: dict[str, Arm] = {}
    for name, arm in study.arms.items():
        if arm.schedule == ():
            raise UserError(f"The study {source} is not valid: arm {name} has an empty list of schedules; leave it out")
        for word, schedule in _schedules(name, arm):
            if word in arms:
                raise UserError(
                    f"The study {source} is not valid: there would be two arms {word} (a schedule's name ends an arm's "
                    "where it has several); rename an arm or a schedule file"
                )
            arms[word] = arm.model_copy(update={"schedule": schedule})
    return study.model_copy(update={"arms": arms})


def _schedules(name: str, arm: Arm) -> list[tuple[str, str | None]]:
    """Name and schedule of each arm that one of the file becomes."""
    if not isinstance(arm.schedule, tuple):
        return [(name, arm.schedule)]
    return [(f"{name}-{Path(schedule).stem.replace('_', '-')}", schedule) for schedule in arm.schedule]


def _check(study: Study, source: str) -> None:
    """Refuses what no single key shows."""
    for problem in (*_wrong_names(study), *_wrong_arms(study), *_wrong_parts(study)):
        raise UserError(f"The study {source} is not valid: {problem}")


def _wrong_names(study: Study) -> list[str]:
    names = {"name": study.name, **{f"arm {name}": name for name in study.arms}}
    wrong = [key for key, name in names.items() if not re.fullmatch(_WORD, name) or name == FLOOR]
    return [f"{key} cannot be used; take letters, digits and '-', and not '{FLOOR}'" for key in wrong]


def _wrong_arms(study: Study) -> list[str]:
    problems = []
    for name, arm in study.arms.items():
        kinds = [kind for kind in KINDS if getattr(arm, kind) is not None]
        if len(kinds) != 1:
            said = f"has {' and '.join(kinds)}" if kinds else "has none"
            problems.append(f"arm {name} needs exactly one of {', '.join(KINDS)} ({said})")
            continue
        problems += [f"arm {name}: {problem}" for problem in _wrong_arm(study, arm)]
    return problems


def _wrong_arm(study: Study, arm: Arm) -> list[str]:
    if arm.scratch is not None:
        of = study.arms.get(arm.scratch)
        if of is None:
            return [f"there is no arm '{arm.scratch}' to be the control of{did_you_mean(arm.scratch, [*study.arms])}"]
        if of.kind not in ("recipe", "checkpoint"):
            return [f"'{arm.scratch}' has no pre-trained weights; name an arm with a recipe or a checkpoint"]
        if arm.adapt != type(arm.adapt)():
            return [f"a control takes the adapt options of '{arm.scratch}'; leave adapt out"]
    if arm.recipe is not None and study.pretraining is None:
        return ["a recipe needs the section pretraining, with the number of the dataset of unlabelled scans"]
    for key in ("pretraining", "unlabelled"):
        if getattr(arm, key) and arm.recipe is None:
            return [f"{key} is for an arm with a recipe, and this one has none; leave it out"]
    if arm.stock is not None:
        if arm.schedule or arm.peak_learning_rate or arm.set or arm.adapt != type(arm.adapt)():
            return ["stock nnU-Net has its own schedule and plan; leave schedule, peak_learning_rate, set, adapt out"]
        if arm.stock.plans and (arm.stock.planner or arm.stock.gpu_memory):
            return ["stock.plans are there already; leave stock.planner and stock.gpu_memory out"]
    both = arm.peak_learning_rate is not None and "peak_learning_rate" in arm.set
    return ["peak_learning_rate stands twice; leave it out of set"] if both else []


def _wrong_variable(name: str) -> str:
    """A sentence for a variable that a study may not set; empty if it may."""
    if name in VARIABLES:
        return f"environment: {name} says where this study's data lie; export it before the study is started"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return f"environment: '{name}' is no name of a variable; take letters, digits and '_'"
    return ""


def _wrong_parts(study: Study) -> list[str]:
    problems = []
    for control in study.controls:
        if control not in (*study.arms, FLOOR):
            problems.append(f"controls: there is no arm '{control}'{did_you_mean(control, [*study.arms])}")
    if FLOOR in study.controls and not study.floor:
        problems.append("controls: the arm 'floor' is there with floor: true only; write it, or name another control")
    problems += [_wrong_variable(name) for name in study.environment if _wrong_variable(name)]
    if any(isinstance(count, int) and count < 1 for count in study.labelled):
        problems.append(f"labelled must be numbers of 1 or more, or all (got {shown(study.labelled)})")
    if study.pretraining is not None and len(study.pretraining.seeds) > len(study.seeds):
        problems.append(
            f"{len(study.pretraining.seeds)} pre-training seeds need as many fine-tunings, and seeds has "
            f"{len(study.seeds)}; give at least as many seeds"
        )
    if study.tuning is not None and study.tuning.dataset in study.datasets:
        problems.append(
            f"tuning.dataset {study.tuning.dataset} is one of the compared datasets; rates must be chosen on another"
        )
    tuning = [] if study.tuning is None else [study.tuning.dataset]
    if doubles := [number for number in study.unlabelled if number in (*study.datasets, *tuning)]:
        problems.append(f"dataset {doubles[0]} is labelled and pre-trained on; take another number for one of them")
    if isinstance(study.test, Mapping) and (missing := [n for n in study.datasets if n not in study.test]):
        problems.append(f"test names no images for dataset {missing[0]}; add it, or write test: validation")
    return problems
