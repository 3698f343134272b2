"""A study into its steps: stock commands, in an order in which each stands after what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnssl_mae.study.comparing import compare_commands, learning_command
from nnssl_mae.study.contents import Contents
from nnssl_mae.study.floor import write_floor_predictions, write_floor_results
from nnssl_mae.study.gates import GATES, write_gates
from nnssl_mae.study.gather import gather, gathered
from nnssl_mae.study.lineage import Candidate, Lineages, Trained
from nnssl_mae.study.model import FLOOR, Study, TestSet
from nnssl_mae.study.place import (
    COMPARISON,
    FLOOR_MODEL,
    LEARNING,
    TUNING_RESULTS,
    Fold,
    LabelledSet,
    data_folder,
    dataset_digest,
    few_label_counts,
    folds_differ,
    folds_of,
    labelled_set,
    model_folder,
    predictions_of,
    results_of,
)
from nnssl_mae.study.pool import check_counts
from nnssl_mae.study.predicted import check_held_out, predicted_names, remove_damaged
from nnssl_mae.study.steps import Command, Step, check_order
from nnssl_mae.study.tuning import candidates, choose, chosen_file

Work = Callable[[Path], str]


@dataclass(frozen=True)
class Plan:
    """What a study does."""

    study: Study
    steps: tuple[Step, ...]
    works: Mapping[str, Work]
    """Parts of steps that are ours, by the word after ``--work``: given the study's folder, they return a line."""


def plan_study(study: Study, file: Path, out: Path | None = None) -> Plan:
    """All steps of a study.

    Args:
        study: what to do.
        file: where it was read from; other files in it are relative to that folder.
        out: the study's folder, to remember digests of data in; none remembers nothing.

    Raises:
        UserError: a dataset, checkpoint, recipe or test set is missing or does not fit.
    """
    with Contents(out, data_folder("nnUNet_raw")) as contents:
        return _Planner(study, file, contents).plan()


class _Planner:
    def __init__(self, study: Study, file: Path, contents: Contents) -> None:
        self._study, self._file, self._contents = study, file.resolve(), contents
        self._lineages = Lineages(study, self._file.parent, contents)
        self._works: dict[str, Work] = {}
        self._last: dict[int, list[str]] = {number: [] for number in study.datasets}
        self._compare: dict[int, list[Path]] = {number: [] for number in study.datasets}
        self._patterns: dict[str, str] = {}

    def plan(self) -> Plan:
        study = self._study
        datasets = [labelled_set(number) for number in study.datasets]
        chosen = self._tuned()
        for labelled in datasets:
            self._compared(labelled, chosen)
        self._conclude(datasets)
        steps = tuple(self._lineages.steps.values())
        check_order(steps)
        return Plan(study, steps, self._works)

    def _own(self, word: str, work: Work) -> tuple[Command, Command]:
        """The command of a part that is ours, and the words of it that decide nothing."""
        self._works[word] = work
        return ("nnssl-mae", "study", "--work", word), (str(self._file), "--out", ".")

    # ------------------------------------------------------------------ tuning

    def _tuned(self) -> dict[str, Candidate]:
        """How each arm is fine-tuned; adds the steps that choose it, if the study chooses."""
        study, tuning = self._study, self._study.tuning
        names = [name for name, arm in study.arms.items() if arm.stock is None]
        if tuning is None:
            return {name: self._lineages.own_candidate(name) for name in names}
        labelled = labelled_set(tuning.dataset)
        check_counts(labelled, tuning.labelled, study.fold)
        folds = folds_of(labelled, tuning.labelled, 1, study.fold)
        return {name: self._chosen(name, labelled, folds) for name in names}

    def _chosen(self, name: str, labelled: LabelledSet, folds: Sequence[Fold]) -> Candidate:
        study, tuning = self._study, self._study.tuning
        assert tuning is not None
        tried = candidates(study, tuning, name, self._lineages)
        trainings: list[str] = []
        summaries: list[list[Path]] = []
        for number, candidate in enumerate(tried):
            trained = self._lineages.trained(name, labelled, 0, candidate, word=f"_t{number}")
            summaries.append([])
            for fold in folds:
                training, folder = self._train(f"tune_{name}_t{number}", trained, labelled, folds, fold, TUNING_RESULTS)
                trainings.append(training)
                summaries[-1].append(folder / "validation" / "summary.json")

        def work(out: Path) -> str:
            return choose(out, name, tried, [[out / file for file in files] for files in summaries])

        command, aside = self._own(f"choose:{name}", work)
        inputs = [[candidate.schedule, list(candidate.changes)] for candidate in tried]
        file = chosen_file(name)
        step = Step(f"choose_{name}", "choose", command, aside, tuple(trainings), makes=(file,), inputs=inputs)
        return Candidate(file.as_posix(), is_chosen=True, needs=(self._lineages.add(step),))

    # ------------------------------------------------------------------ trainings and predictions

    def _compared(self, labelled: LabelledSet, chosen: Mapping[str, Candidate]) -> None:
        study, number = self._study, labelled.number
        check_counts(labelled, study.labelled, study.fold)
        folds = folds_of(labelled, study.labelled, study.repeats, study.fold)
        test = study.test.get(labelled.number) if isinstance(study.test, dict) else None
        if test is not None:
            check_held_out(labelled, labelled.inside(test.images, self._file.parent), self._contents)
        for position, seed in enumerate(study.seeds):
            for name, arm in study.arms.items():
                candidate = chosen.get(name) or Candidate("")
                assert candidate.schedule or arm.stock is not None
                trained = self._lineages.trained(name, labelled, position, candidate, word="")
                self._patterns[name] = _pattern(trained, is_pretrained=arm.recipe is not None)
                for fold in folds:
                    prefix = f"train_{labelled.word}_{name}"
                    last, folder = self._train(prefix, trained, labelled, folds, fold, results_of(seed), seed)
                    self._compare[number].append(folder)
                    if test is not None:
                        last = self._predict(name, trained, labelled, fold, seed, test, last)
                        self._compare[number].append(_predictions(labelled, name, seed, fold))
                    self._last[number].append(last)
        if study.floor:
            self._last[number].append(self._floor(labelled, folds, test))

    def _splits(self, labelled: LabelledSet, folds: Sequence[Fold], after: Sequence[str]) -> tuple[str, ...]:
        """The step that draws few-label folds; none where only nnU-Net's own are trained."""
        study, tuning = self._study, self._study.tuning
        is_tuning = tuning is not None and tuning.dataset == labelled.number
        counts = few_label_counts(tuning.labelled if is_tuning and tuning is not None else study.labelled)
        if not counts:
            return ()
        name = f"splits_{labelled.word}"
        if name in self._lineages.steps:
            return (name,)
        words = " ".join(map(str, sorted(counts)))
        repeats = 1 if is_tuning else study.repeats
        command = ("nnssl-mae", "splits", "-d", str(labelled.number), "--labelled", words, "--repeats", str(repeats))
        fold = ("--validation-fold", str(study.fold)) if study.fold else ()
        return (
            self._lineages.add(
                Step(
                    name,
                    "splits",
                    (*command, "--seed", str(study.split_seed), *fold),
                    aside=("-np", str(study.processes)),
                    after=tuple(after),
                    makes=(labelled.preprocessed / "nnssl_folds.json", labelled.preprocessed / "splits_final.json"),
                    inputs=dataset_digest(labelled, self._contents),
                    is_passing=True,
                    alone=f"preprocessed-{labelled.word}",
                    proof=partial(folds_differ, labelled, folds, study.split_seed, study.fold),
                )
            ),
        )

    def _train(
        self,
        prefix: str,
        trained: Trained,
        labelled: LabelledSet,
        folds: Sequence[Fold],
        fold: Fold,
        results: Path,
        seed: int | None = None,
    ) -> tuple[str, Path]:
        """The step, and nnU-Net's folder of the fold."""
        study = self._study
        splits = self._splits(labelled, folds, trained.after)
        model = model_folder(results, labelled.name, trained.trainer, trained.plans, trained.configuration)
        folder = model / f"fold_{fold.number}"
        command = ("nnUNetv2_train", str(labelled.number), trained.configuration, str(fold.number))
        name = f"{prefix}_{fold.word}" + ("" if seed is None else f"_s{seed}")
        step = Step(
            name,
            "train",
            (*command, "-tr", trained.trainer, "-p", trained.plans, "-device", study.device),
            needs=trained.needs,
            after=(*trained.after, *splits),
            makes=(folder / "checkpoint_final.pth", folder / "validation" / "summary.json"),
            clears=(folder,),
            inputs=self._draw(fold),
            resume=("--c",),
            results=results,
            steps=study.steps,
            uses_gpu=True,
        )
        return self._lineages.add(step), folder

    def _draw(self, fold: Fold) -> dict[str, int | None]:
        """What the cases of a fold depend on, besides its number."""
        drawn = {} if fold.labelled is None else {"split_seed": self._study.split_seed, "validation": self._study.fold}
        return {"number": fold.number, "labelled": fold.labelled, "repeat": fold.repeat, **drawn}

    def _predict(
        self,
        name: str,
        trained: Trained,
        labelled: LabelledSet,
        fold: Fold,
        seed: int,
        test: TestSet,
        training: str,
    ) -> str:
        study = self._study
        images = labelled.inside(test.images, self._file.parent)
        folder = _predictions(labelled, name, seed, fold)
        files = tuple(folder / name for name in predicted_names(labelled, images))
        command = ("nnUNetv2_predict", "-d", str(labelled.number), "-i", str(images), "-o", folder.as_posix())
        model = ("-p", trained.plans, "-c", trained.configuration, "-tr", trained.trainer, "-f", str(fold.number))
        step = Step(
            training.replace("train_", "predict_", 1),
            "predict",
            (*command, *model, "-device", study.device),
            needs=(training,),
            makes=files,
            clears=(folder,),
            inputs=self._contents.of_all_in(images),
            resume=("--continue_prediction",),
            mend=partial(remove_damaged, files=files),
            results=results_of(seed),
            uses_gpu=True,
        )
        return self._lineages.add(step)

    def _floor(self, labelled: LabelledSet, folds: Sequence[Fold], test: TestSet | None) -> str:
        study = self._study
        if test is None:
            references = None
            roots = [results_of(seed) for seed in study.seeds]
            places = [root / labelled.name / FLOOR_MODEL for root in roots]

            def work(out: Path) -> str:
                write_floor_results(labelled, folds, [out / root for root in roots])
                return f"The floor of {labelled.name} is written."
        else:
            references = labelled.inside(test.references, self._file.parent)
            places = [predictions_of(labelled.name, FLOOR, seed) for seed in study.seeds]

            def work(out: Path) -> str:
                write_floor_predictions(labelled, folds, references, [out / place for place in places])
                return f"The floor of {labelled.name} is written."

        command, aside = self._own(f"floor:{labelled.word}", work)
        inputs = [dataset_digest(labelled, self._contents), [self._draw(fold) for fold in folds]]
        if references is not None:
            inputs.append(self._contents.of_all_in(references))
        first = [name for name in self._lineages.steps if name.startswith(f"train_{labelled.word}_")]
        made = tuple(place / f"fold_{fold.number}" for place in places for fold in folds)
        self._compare[labelled.number] += made
        step = Step(
            f"floor_{labelled.word}",
            "floor",
            command,
            aside,
            after=tuple(first[:1]),  # then there are splits
            makes=made,
            clears=tuple(places),
            inputs=inputs,
        )
        return self._lineages.add(step)

    # ------------------------------------------------------------------ comparison

    def _gather(self, labelled: LabelledSet) -> str:
        """The step that collects what is planned: folders of earlier versions of the study must not be compared."""
        planned = tuple(self._compare[labelled.number])
        word = f"gather:{labelled.word}"
        command, aside = self._own(word, partial(gather, dataset=labelled.name, planned=planned))
        needs = tuple(self._last[labelled.number])
        makes = tuple(gathered(folder) for folder in planned)
        inputs = [folder.as_posix() for folder in planned]
        step = Step(f"gather_{labelled.word}", "gather", command, aside, needs, makes=makes, inputs=inputs)
        return self._lineages.add(step)

    def _references(self, datasets: Sequence[LabelledSet]) -> Any:
        """What the test sets' segmentations hold; those of folds are in the keys of trainings."""
        tests = self._study.test if isinstance(self._study.test, Mapping) else {}
        places = [(one, tests[one.number].references) for one in datasets if one.number in tests]
        return [self._contents.of_all_in(one.inside(name, self._file.parent)) for one, name in places]

    def _conclude(self, datasets: Sequence[LabelledSet]) -> None:
        commands = compare_commands(self._study, datasets, self._file.parent, self._patterns)
        collected = {labelled: self._gather(labelled) for labelled in datasets}
        names = []
        for folder, command in commands.items():
            name = "compare" if len(commands) == 1 else f"compare_{folder.name[7:10]}"
            makes = (folder / "cases.csv", folder / "compare.html")
            needed = [one for one in datasets if folder.name in (COMPARISON.name, one.name)]
            needs = tuple(collected[one] for one in needed)
            step = Step(name, "compare", command, needs=needs, makes=makes, inputs=self._references(needed))
            names.append(self._lineages.add(step))
        if isinstance(self._study.test, Mapping):
            command = learning_command(self._study, datasets, self._patterns)
            makes = (LEARNING / "cases.csv", LEARNING / "compare.html")
            self._lineages.add(Step("learning", "compare", command, needs=tuple(collected.values()), makes=makes))
        word, aside = self._own("gates", partial(write_gates, self._study, tuple(commands)))
        self._lineages.add(Step("gates", "gates", word, aside, needs=tuple(names), makes=(COMPARISON / GATES,)))


def _pattern(trained: Trained, is_pretrained: bool) -> str:
    """The model folders of an arm: plans of a pre-trained one end in the seed of its pre-training."""
    plans = trained.plans.rpartition("_p")[0] + "_p*" if is_pretrained else trained.plans
    return f"{trained.trainer}__{plans}__{trained.configuration}"


def _predictions(labelled: LabelledSet, arm: str, seed: int, fold: Fold) -> Path:
    return predictions_of(labelled.name, arm, seed) / f"fold_{fold.number}"
