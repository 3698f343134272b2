"""Where the weights of an arm come from: a given checkpoint, or a pre-training of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl_mae.errors import UserError
from nnssl_mae.files import short_hash
from nnssl_mae.folders import datasets_with_number
from nnssl_mae.plans import CONFIGURATION, PRETRAINING_PLANS
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import load_recipe, shipped_recipes
from nnssl_mae.recipes.words import shown
from nnssl_mae.scans.planning import data_differences
from nnssl_mae.study.contents import Contents, sizes_below
from nnssl_mae.study.model import Arm, Pretraining, Study
from nnssl_mae.study.place import PRETRAIN_TRAINER, PRETRAINING_RESULTS, checkpoint_digest, data_folder, model_folder
from nnssl_mae.study.steps import Step


@dataclass(frozen=True)
class Origin:
    """A checkpoint that ``adapt`` reads."""

    checkpoint: str
    digest: str
    """Changes with a given checkpoint; empty for one that the study trains, whose step has a key of its own."""
    shape: Any
    """What of it decides the plans of a control, which takes no weights (a JSON value)."""
    needs: tuple[str, ...]
    """The step that makes it, if it is one of the study."""
    shaped_by: tuple[str, ...] = ()
    """The step that prepares the scans, where they decide about spacing or patch and so about a control, too."""


class Origins:
    """Finds checkpoints and makes the steps of pre-trainings; arms with equal recipes share them.

    Args:
        study: what is done.
        folder: of the study file.
        contents: digests of files.
        add: adds a step to the plan, and returns its name.
    """

    def __init__(self, study: Study, folder: Path, contents: Contents, add: Callable[[Step], str]) -> None:
        self._study, self._folder, self._contents, self._add = study, folder, contents, add
        self._pretrained_already: dict[str, Origin] = {}

    def of(self, name: str, position: int) -> Origin:
        """Of an arm with a recipe or a checkpoint; ``position`` of the repetition, from 0, decides the seed."""
        arm = self._study.arms[name]
        if arm.checkpoint is not None:
            return self._given(name, arm.checkpoint)
        assert self._study.pretraining is not None
        return self._pretrained(name, arm, self._study.pretraining, self.seed(position))

    def _given(self, name: str, checkpoint: str) -> Origin:
        if checkpoint.startswith("hf://"):
            return Origin(checkpoint, checkpoint, checkpoint, ())
        path = (self._folder / checkpoint).resolve()
        if not path.exists():
            raise UserError(f"Arm {name}: there is no checkpoint {path}; paths are relative to the study file")
        digest = checkpoint_digest(path, self._contents)
        return Origin(str(path), digest, digest, ())

    def seed(self, position: int) -> int:
        """Of the pre-training that a repetition starts from."""
        assert self._study.pretraining is not None
        seeds = self._study.pretraining.seeds
        return seeds[position % len(seeds)]

    def _pretrained(self, name: str, arm: Arm, pretraining: Pretraining, seed: int) -> Origin:
        study = self._study
        assert arm.recipe is not None
        changes = assignments({**pretraining.set, **arm.pretraining, "seed": seed})
        word = recipe_word(arm.recipe, self._folder)
        recipe = load_recipe(word, changes)
        content = recipe.model_dump(mode="json", exclude={"summary", "citation"})
        key = short_hash(content)
        if key in self._pretrained_already:
            return self._pretrained_already[key]
        # `pretrain` refuses to replace plans, so those of a changed recipe get another name.
        plans = f"{study.name}_{name}_p{seed}_{short_hash(content, 6)}"
        number = arm.learns_on(pretraining)
        dataset, prepared = self._prepared(pretraining, number)
        if prepared:
            self._refuse_other_volumes(name, recipe, pretraining, number)
        sets = tuple(part for change in changes for part in ("--set", change))
        planned = self._add(
            Step(
                f"recipe_{name}_p{seed}",
                "recipe",
                ("nnssl-mae", "pretrain", "-d", str(number), *sets, "-p", plans, "--plan-only"),
                aside=("--recipe", word),  # its content is in the inputs
                needs=prepared,
                makes=(data_folder("nnUNet_preprocessed") / dataset / f"{plans}.json",),
                shared=(data_folder("nnUNet_preprocessed") / dataset / f"{plans}.json",),
                inputs=content,
                is_passing=True,
            )
        )
        folder = model_folder(PRETRAINING_RESULTS, dataset, PRETRAIN_TRAINER, plans, CONFIGURATION)
        fold = folder / f"fold_{pretraining.fold}"
        command = ("nnUNetv2_train", str(number), CONFIGURATION, str(pretraining.fold), "-tr", PRETRAIN_TRAINER)
        trained = self._add(
            Step(
                f"pretrain_{name}_p{seed}",
                "pretrain",
                (*command, "-p", plans, "-device", study.device),
                needs=(planned,),
                makes=(fold / "checkpoint_final.pth",),
                clears=(fold,),
                resume=("--c",),
                results=PRETRAINING_RESULTS,
                steps=_steps_of(recipe),
                uses_gpu=True,
            )
        )
        shape: dict[str, Any] = {"data": content["data"], "network": content["network"]}
        by_scans = isinstance(recipe.data.spacing, str) or isinstance(recipe.network.patch_size, str)
        if by_scans and not prepared:  # by somebody, before the study
            shape["prepared"] = self._contents.of_file(
                data_folder("nnUNet_preprocessed") / dataset / f"{PRETRAINING_PLANS}.json"
            )
        origin = Origin((fold / "checkpoint_final.pth").as_posix(), "", shape, (trained,), prepared if by_scans else ())
        self._pretrained_already[key] = origin
        return origin

    def _prepared(self, pretraining: Pretraining, number: int) -> tuple[str, tuple[str, ...]]:
        """Name of an unlabelled dataset, and the step that prepares it if the study names scans."""
        names = datasets_with_number(number)
        if not pretraining.scans:
            plans = [
                n for n in names if (data_folder("nnUNet_preprocessed") / n / f"{PRETRAINING_PLANS}.json").is_file()
            ]
            if not plans:
                raise UserError(
                    f"The unlabelled dataset {number} is not prepared; run `nnssl-mae prepare` first, or "
                    "name its scans in pretraining.scans"
                )
            return plans[0], ()
        dataset = f"Dataset{number:03d}_{pretraining.name}"
        if names and names != [dataset]:
            raise UserError(
                f"Number {number} belongs to {names[0]}, not to {dataset}; set pretraining.name or take another number"
            )
        return dataset, (self._prepare(pretraining, number, dataset),)

    def _prepares_with(self, pretraining: Pretraining, number: int) -> tuple[str, tuple[str, ...]]:
        """Recipe, as ``prepare`` takes it, and what to change of it: those of the first arm on the dataset."""
        own = pretraining.recipe if number == pretraining.dataset else None
        arms = [arm for arm in self._study.arms.values() if arm.recipe is not None]
        first = next(arm for arm in arms if arm.learns_on(pretraining) == number)
        changes = assignments({**pretraining.set, **(first.pretraining if own is None else {})})
        sets = tuple(change for change in changes if change.startswith("data."))  # the rest decides no volume
        return recipe_word(own or first.recipe or "", self._folder), sets

    def _refuse_other_volumes(self, name: str, recipe: Recipe, pretraining: Pretraining, number: int) -> None:
        """Before hours of other work: ``pretrain`` would refuse it."""
        prepared = load_recipe(*self._prepares_with(pretraining, number))
        if recipe.data != prepared.data:
            raise UserError(
                f"Arm {name}: its recipe '{recipe.name}' needs other volumes than dataset {number} will hold "
                f"({data_differences(recipe, prepared)}). Give the arm a dataset of its own, such as unlabelled: "
                f"{number + 1}; it is made from the same scans"
            )

    def _prepare(self, pretraining: Pretraining, number: int, dataset: str) -> str:
        recipe, sets = self._prepares_with(pretraining, number)
        scans = [(self._folder / path).resolve() for path in pretraining.scans]
        for path in scans:
            if not path.exists():
                raise UserError(f"pretraining.scans: there is no {path}; paths are relative to the study file")
        words = [part for change in sets for part in ("--set", change)]
        if pretraining.exclude_datasets:
            words += [part for other in self.labelled_numbers() for part in ("--exclude-dataset", str(other))]
        command = ("nnssl-mae", "prepare", "-d", str(number), "-n", pretraining.name)
        return self._add(
            Step(
                f"prepare_{number:03d}",
                "prepare",
                (*command, *words, *pretraining.prepare),
                aside=("--recipe", recipe, "-np", str(self._study.processes), *map(str, scans)),
                makes=(data_folder("nnUNet_preprocessed") / dataset / f"{PRETRAINING_PLANS}.json",),
                inputs=[
                    [[name, self._scans(path)] for name, path in zip(pretraining.scans, scans, strict=True)],
                    load_recipe(recipe, sets).data.model_dump(mode="json"),
                ],
            )
        )

    def _scans(self, path: Path) -> str:
        """Of a folder names and sizes only: `prepare` itself sees which scans are new."""
        return sizes_below(path) if path.is_dir() else self._contents.of_file(path)

    def labelled_numbers(self) -> list[int]:
        """Every labelled dataset of the study."""
        tuning = [] if self._study.tuning is None else [self._study.tuning.dataset]
        return [*self._study.datasets, *tuning]


def _steps_of(recipe: Recipe) -> int:
    """Optimiser steps; 0 where they depend on the number of volumes."""
    iterations = recipe.schedule.iterations
    return 0 if isinstance(iterations, str) else recipe.schedule.epochs * iterations


def assignments(values: Mapping[str, Any]) -> tuple[str, ...]:
    """``key=value`` of each, as ``--set`` takes them; sections become dotted keys."""
    result: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            result += [f"{key}.{inner}" for inner in assignments(value)]
        else:
            result.append(f"{key}={value if isinstance(value, str) else _written(value)}")
    return tuple(result)


def _written(value: Any) -> str:
    return repr(value) if isinstance(value, float) else shown(value)


def recipe_word(name_or_file: str, beside: Path, shipped: Path | None = None) -> str:
    """A shipped recipe's name as it is; of a file, which lies beside the study file, the whole path.

    Args:
        name_or_file: as in the study file.
        beside: folder of the study file.
        shipped: folder of the shipped recipes; none is that of pre-training.
    """
    if name_or_file in shipped_recipes(shipped) or not name_or_file.endswith((".yaml", ".yml")):
        return name_or_file
    return str((beside / name_or_file).resolve())
