"""From an arm to the plans that it is trained with: pre-training, adaptation, preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnssl_mae.downstream.preprocessed import FINGERPRINT
from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION, STOCK_PLANS
from nnssl_mae.recipes.finetuning import default_schedule, finetuning_folder, load_finetune_recipe
from nnssl_mae.recipes.reading import load_recipe
from nnssl_mae.study.budget import stock_trainer
from nnssl_mae.study.contents import Contents
from nnssl_mae.study.model import Arm, Study
from nnssl_mae.study.origins import Origin, Origins, assignments, recipe_word
from nnssl_mae.study.place import FINETUNE_TRAINER, LabelledSet, dataset_digest
from nnssl_mae.study.stamps import (
    is_planned,
    is_preprocessed,
    stamp_fingerprint,
    stamp_preprocessed,
    unstamp_fingerprint,
    unstamp_preprocessed,
)
from nnssl_mae.study.steps import Command, Step

DECODER_FIRST = ("frozen", "sawtooth", "valley")
"""Schedules that a control from scratch cannot have."""
_STOCK_PLANNER = "nnUNetPlannerResEncM"
_PLANNER = "nnUNetPlannerResEncL"  # what `nnssl-mae adapt` would run


@dataclass(frozen=True)
class Trained:
    """What nnU-Net is told to train an arm with, and the steps that must come before."""

    trainer: str
    plans: str
    configuration: str
    needs: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A fine-tuning recipe for one adaptation: a name or file with changes."""

    schedule: str
    changes: tuple[str, ...] = ()
    is_chosen: bool = False
    """The file is written by a step of the study."""
    needs: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """For people."""
        return ", ".join((Path(self.schedule).stem, *self.changes))


class Lineages:
    """Makes the steps that lead to trained arms; each step once, whoever needs it."""

    def __init__(self, study: Study, folder: Path, contents: Contents) -> None:
        self._study, self._folder, self._contents = study, folder, contents
        self.steps: dict[str, Step] = {}
        self._origins = Origins(study, folder, contents, self.add)

    # ------------------------------------------------------------------ labelled datasets

    def add(self, step: Step) -> str:
        """Adds a step unless it is there; returns its name."""
        assert self.steps.setdefault(step.name, step) == step, step.name
        return step.name

    def planned(self, labelled: LabelledSet) -> str:
        """Fingerprint and nnU-Net's own plans, from which ours are made; what users have made themselves stays."""
        # Without --clean nnU-Net keeps the fingerprint of earlier data.
        command = ("nnUNetv2_plan_and_preprocess", "-d", str(labelled.number), "-pl", _PLANNER, "--no_pp", "--clean")
        digest = dataset_digest(labelled, self._contents)
        return self.add(
            Step(
                f"plan_{labelled.word}",
                "plan",
                command,
                aside=("-npfp", str(self._study.processes)),
                makes=(labelled.preprocessed / FINGERPRINT, labelled.preprocessed / "dataset.json"),
                inputs=digest,
                is_passing=True,
                alone=f"preprocessed-{labelled.word}",
                unneeded=partial(is_planned, labelled, digest),
                unseal=partial(unstamp_fingerprint, labelled),
                seal=partial(stamp_fingerprint, labelled, digest),
            )
        )

    def _preprocessed(self, labelled: LabelledSet, word: str, plans: str, configuration: str, needs: str) -> str:
        command = ("nnUNetv2_preprocess", "-d", str(labelled.number), "-plans_name", plans, "-c", configuration)
        digest = dataset_digest(labelled, self._contents)
        is_there = partial(is_preprocessed, labelled, plans, configuration, digest)
        return self.add(
            Step(
                f"preprocess_{labelled.word}_{word}",
                "preprocess",
                command,
                aside=("-np", str(self._study.processes)),
                needs=(needs,),
                inputs=digest,
                is_passing=True,
                # nnU-Net deletes the folder first, which several plans may share.
                alone=f"preprocessed-{labelled.word}",
                unneeded=is_there,
                unseal=partial(unstamp_preprocessed, labelled, plans, configuration),
                seal=partial(stamp_preprocessed, labelled, plans, configuration, digest),
                proof=lambda: "" if is_there() else f"the cases of {labelled.name} for {plans}",
            )
        )

    # ------------------------------------------------------------------ arms

    def trained(self, name: str, labelled: LabelledSet, position: int, candidate: Candidate, word: str) -> Trained:
        """What to train an arm with.

        Args:
            name: of the arm.
            labelled: dataset.
            position: of the repetition, from 0: decides which pre-training seed.
            candidate: how to fine-tune.
            word: further part of the plans' name; empty for the comparison itself.
        """
        arm = self._study.arms[name]
        if arm.stock is not None:
            return self._stock(name, arm, labelled)
        plans = f"{self._study.name}_{name}{word}"
        if arm.scratch is not None:
            adapted = self._control(arm, labelled, plans, self._origins.of(arm.scratch, 0), candidate)
        else:
            plans += f"_p{self._origins.seed(position)}" if arm.recipe is not None else ""
            adapted = self._treatment(arm, labelled, plans, self._origins.of(name, position), candidate)
        done = self._preprocessed(labelled, plans.partition("_")[2], plans, CONFIGURATION, adapted)
        return Trained(FINETUNE_TRAINER, plans, CONFIGURATION, (adapted,), (done,))

    def _stock(self, name: str, arm: Arm, labelled: LabelledSet) -> Trained:
        assert arm.stock is not None
        study, stock = self._study, arm.stock
        trainer = stock_trainer(study.epochs, study.iterations)
        if stock.trainer not in (None, trainer):
            raise UserError(
                f"Arm {name}: {stock.trainer} is not known to train the study's {study.steps} steps; of nnU-Net's "
                f"trainers {trainer} does: leave stock.trainer out, which takes it"
            )
        planned = self.planned(labelled)
        plans = stock.plans or f"{study.name}_{name}"
        if stock.plans is None:
            command = ("nnUNetv2_plan_experiment", "-d", str(labelled.number), "-pl", stock.planner or _STOCK_PLANNER)
            target = () if stock.gpu_memory is None else ("-gpu_memory_target", f"{stock.gpu_memory:g}")
            planned = self.add(
                Step(
                    f"plan_{labelled.word}_{name}",
                    "plan",
                    (*command, *target, "-overwrite_plans_name", plans),
                    needs=(planned,),
                    makes=(labelled.preprocessed / f"{plans}.json",),
                    shared=(labelled.preprocessed / f"{plans}.json",),
                    is_passing=True,
                )
            )
        elif not (labelled.preprocessed / f"{plans}.json").is_file() and plans not in STOCK_PLANS:
            raise UserError(f"Arm {name}: {labelled.name} has no plans '{plans}'; leave stock.plans out, or make them")
        done = self._preprocessed(labelled, name, plans, stock.configuration, planned)
        return Trained(trainer, plans, stock.configuration, (planned,), (done,))

    def _treatment(self, arm: Arm, labelled: LabelledSet, plans: str, origin: Origin, candidate: Candidate) -> str:
        inputs = {"recipe": self._recipe(candidate), "checkpoint": origin.digest}
        return self._adapted(labelled, plans, _options(arm), origin, candidate, needs=origin.needs, inputs=inputs)

    def _control(self, arm: Arm, labelled: LabelledSet, plans: str, origin: Origin, candidate: Candidate) -> str:
        """As the treatment, but only the shape of the checkpoint matters: another pre-training repeats nothing."""
        source = self._study.arms[arm.scratch or ""]
        recipe = self._recipe(candidate)
        if recipe is not None and recipe["schedule"] in DECODER_FIRST:
            raise UserError(
                f"The control of '{arm.scratch}' cannot train with the schedule '{recipe['schedule']}', which begins "
                "with the decoder alone: its encoder is random. Leave schedule out, or take another"
            )
        inputs = {"recipe": recipe, "shape": origin.shape}
        options = (*_options(source), "--from-scratch")
        return self._adapted(
            labelled, plans, options, origin, candidate, needs=origin.shaped_by, after=origin.needs, inputs=inputs
        )

    def _adapted(
        self,
        labelled: LabelledSet,
        plans: str,
        options: Command,
        origin: Origin,
        candidate: Candidate,
        *,
        needs: tuple[str, ...],
        after: tuple[str, ...] = (),
        inputs: dict[str, Any],
    ) -> str:
        """The step of one ``nnssl-mae adapt``; ``needs`` and ``after`` are those of the checkpoint."""
        file = labelled.preprocessed / f"{plans}.json"
        command = ("nnssl-mae", "adapt", "-d", str(labelled.number), "-n", plans, *options, *self._how(candidate))
        return self.add(
            Step(
                f"adapt_{labelled.word}_{plans.partition('_')[2]}",
                "adapt",
                command,
                aside=(*_schedule(candidate), origin.checkpoint),
                needs=(self.planned(labelled), *needs, *candidate.needs),
                after=after,
                makes=(file,),
                shared=(file,),
                inputs=inputs,
                again=("--overwrite",),
                is_passing=True,
            )
        )

    def _how(self, candidate: Candidate) -> Command:
        """Options that say how is fine-tuned."""
        length = ("--epochs", str(self._study.epochs), "--iterations", str(self._study.iterations))
        changes = tuple(word for change in candidate.changes for word in ("--set", change))
        return (*length, *changes)

    def _recipe(self, candidate: Candidate) -> dict[str, Any] | None:
        """What the candidate comes to; none where a step of the study writes it."""
        if candidate.is_chosen:
            return None
        study = self._study
        found = load_finetune_recipe(candidate.schedule, study.epochs, study.iterations, candidate.changes)
        return found.model_dump(mode="json", exclude={"summary", "citation"})

    def finetuning_word(self, name_or_file: str) -> str:
        """A shipped fine-tuning recipe by name, or a file by its whole path."""
        return recipe_word(name_or_file, self._folder, finetuning_folder())

    def own_candidate(self, name: str) -> Candidate:
        """How the study file says that an arm is fine-tuned."""
        arm = self._study.arms[name]
        schedule = arm.schedule if isinstance(arm.schedule, str) else self._usual_schedule(arm)
        changes = dict(arm.set)
        if arm.peak_learning_rate is not None:
            changes["peak_learning_rate"] = arm.peak_learning_rate
        return Candidate(self.finetuning_word(schedule), assignments(changes))

    def _usual_schedule(self, arm: Arm) -> str:
        """By the network of the arm's recipe; a checkpoint's is not known before it is there, and taken for a U-Net."""
        word = (arm if arm.scratch is None else self._study.arms[arm.scratch]).recipe
        recipe = None if word is None else load_recipe(recipe_word(word, self._folder))
        return default_schedule(arm.scratch is not None, recipe is not None and recipe.network.is_transformer)


def _schedule(candidate: Candidate) -> Command:
    """Stands aside: what it comes to is among the inputs, and where a file lies decides nothing."""
    return ("--schedule", candidate.schedule)


def _options(arm: Arm) -> Command:
    """Options of ``adapt``, in the order of the model."""
    words: list[str] = []
    for key, value in arm.adapt.model_dump().items():
        if value is None:
            continue
        text = " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
        words += [f"--{key.replace('_', '-')}", text]
    return tuple(words)
