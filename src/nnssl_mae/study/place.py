"""Where things of a study lie, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl_mae.errors import UserError
from nnssl_mae.few_labels.splits_file import FIRST_FEW_LABEL_FOLD, read_map
from nnssl_mae.files import read_json, short_hash
from nnssl_mae.folders import find_dataset, nnunet_folder
from nnssl_mae.study.contents import Contents

PRETRAINING_RESULTS = Path("results/pretraining")
TUNING_RESULTS = Path("results/tuning")
COMPARISON = Path("comparison")
COMPARED = Path("compared")
"""Links to the planned results, see :mod:`nnssl_mae.study.gather`."""
LEARNING = Path("learning")
"""Validated folds of a study that is judged on test sets: Dice against steps."""
_OF_CHECKPOINTS = (".pth", ".pt", ".safetensors", ".json")
FINETUNE_TRAINER = "nnUNetTrainerMAEFinetune"
PRETRAIN_TRAINER = "nnUNetTrainerMAE"
FLOOR_MODEL = "Floor__TrainingLabels__none"
"""The floor stands beside the models, as nnU-Net names them."""


@dataclass(frozen=True)
class LabelledSet:
    """A labelled dataset of the study."""

    number: int
    name: str
    """``Dataset004_Hippocampus``."""

    @property
    def word(self) -> str:
        """In names of steps."""
        return f"{self.number:03d}"

    @property
    def preprocessed(self) -> Path:
        """In ``nnUNet_preprocessed``."""
        return data_folder("nnUNet_preprocessed") / self.name

    @property
    def raw(self) -> Path:
        """In ``nnUNet_raw``."""
        return data_folder("nnUNet_raw") / self.name

    def inside(self, folder: str, beside: Path) -> Path:
        """A folder that the study names: below the raw dataset, else beside the study file.

        Raises:
            UserError: it is in neither.
        """
        tried = [self.raw / folder, beside / folder]
        found = next((path for path in tried if path.is_dir()), None)
        if found is None:
            raise UserError(f"There is no folder {tried[0]} or {tried[1]}; name the test set of dataset {self.number}")
        return found


def labelled_set(number: int) -> LabelledSet:
    """A labelled dataset by its number.

    Raises:
        UserError: there is none, or it has no ``dataset.json`` in ``nnUNet_raw``.
    """
    found = LabelledSet(number, find_dataset(number))
    if not (found.raw / "dataset.json").is_file():
        raise UserError(f"{found.name} has no dataset.json in nnUNet_raw; a study needs labelled nnU-Net datasets")
    return found


def dataset_digest(labelled: LabelledSet, contents: Contents) -> list[object]:
    """Changes when labels mean something else, cases come or go, or an image or a segmentation is another one."""
    return [
        contents.of_file(labelled.raw / "dataset.json"),
        *(contents.of_all_in(labelled.raw / name) for name in ("labelsTr", "imagesTr")),
    ]


def file_ending(labelled: LabelledSet) -> str:
    """How the files of a dataset end, such as ``.nii.gz``.

    Raises:
        UserError: ``dataset.json`` does not say.
    """
    file = labelled.raw / "dataset.json"
    ending = read_json(file, "repair it").get("file_ending")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise UserError(f"{file} has no usable 'file_ending' ({ending!r}); write it, such as '.nii.gz'")
    return ending


@dataclass(frozen=True)
class Fold:
    """One training set of a labelled dataset."""

    number: int
    labelled: int | None
    """Label count; None is all."""
    repeat: int = 0

    @property
    def word(self) -> str:
        """In names of steps."""
        return "all" if self.labelled is None else f"n{self.labelled}r{self.repeat}"


def folds_of(labelled: LabelledSet, counts: Sequence[int | str], repeats: int, stock: int) -> list[Fold]:
    """The folds to train: as ``nnssl_folds.json`` numbers them, or as ``nnssl-mae splits`` will.

    Args:
        labelled: the dataset.
        counts: label counts, or ``all``.
        repeats: draws of each count.
        stock: nnU-Net's fold for ``all``.
    """
    known = read_map(labelled.preprocessed)
    numbers = {} if known is None else {(fold.labelled, fold.repeat): n for n, fold in known.folds.items()}
    free = max([FIRST_FEW_LABEL_FOLD - 1, *numbers.values()]) + 1
    wanted = [(count, repeat) for count in sorted(few_label_counts(counts)) for repeat in range(repeats)]
    for pair in wanted:
        if pair not in numbers:
            numbers[pair], free = free, free + 1
    few = [Fold(numbers[pair], *pair) for pair in wanted]
    return [*few, *([Fold(stock, None)] if "all" in counts else [])]


def few_label_counts(counts: Sequence[int | str]) -> list[int]:
    """The counts that are numbers."""
    return [count for count in counts if isinstance(count, int)]


def folds_differ(labelled: LabelledSet, planned: Sequence[Fold], seed: int, validation: int) -> str:
    """A sentence if ``nnssl_folds.json`` is not what was planned; empty if it is.

    Args:
        labelled: the dataset.
        planned: folds with the numbers that they shall have.
        seed: of the draws.
        validation: nnU-Net's fold whose validation cases are those of all few-label folds.
    """
    known = read_map(labelled.preprocessed)
    if known is not None and (known.seed != seed or known.validation_from.get("fold") != validation):
        validated = ", ".join(f"{key} {value:g}" for key, value in known.validation_from.items())
        return (
            f"the draws of {labelled.name} are of seed {known.seed} and validate {validated}, not of split_seed "
            f"{seed} and fold {validation}; change the study, or move nnssl_folds.json away to draw anew"
        )
    named = {} if known is None else {(fold.labelled, fold.repeat): n for n, fold in known.folds.items()}
    for fold in planned:
        if fold.labelled is not None and named.get((fold.labelled, fold.repeat)) != fold.number:
            return (
                f"{labelled.name} got other fold numbers than planned, because folds from {FIRST_FEW_LABEL_FOLD} on "
                "were in use; run the same command again, it takes those"
            )
    return ""


def results_of(seed: int) -> Path:
    """``nnUNet_results`` of one repetition: nnU-Net names its folders by plans, and has no room for a second run."""
    return Path("results") / f"seed_{seed}"


def model_folder(results: Path, dataset: str, trainer: str, plans: str, configuration: str) -> Path:
    """nnU-Net's folder of a model."""
    return results / dataset / f"{trainer}__{plans}__{configuration}"


def predictions_of(dataset: str, arm: str, seed: int) -> Path:
    """Where predictions of the test set go, with a folder ``fold_N`` in it for each fold."""
    return Path("predictions") / dataset / arm / f"seed_{seed}"


def checkpoint_digest(path: Path, contents: Contents) -> str:
    """Of what a checkpoint holds, not where it lies: a file, or the weights and descriptions of a folder."""
    if path.is_file():
        return contents.of_file(path)
    files = sorted(file for file in path.rglob("*") if file.suffix in _OF_CHECKPOINTS and file.is_file())
    return short_hash([[file.relative_to(path).as_posix(), contents.of_file(file)] for file in files], 64)


def data_folder(variable: str) -> Path:
    """One of nnU-Net's folders, absolute: commands run in the study's folder."""
    return nnunet_folder(variable).resolve()
