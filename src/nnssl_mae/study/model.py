"""What a study file says: datasets, arms, label counts, schedules, seeds, one step budget, and where to test."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from nnssl_mae.recipes.base import FrozenRecipe

FLOOR = "floor"
"""Name of the arm that learns nothing: it predicts from the training labels alone."""


class StockArm(FrozenRecipe):
    """nnU-Net as its users run it: own plan, own trainer, deep supervision."""

    planner: str | None = None
    """nnU-Net's planner class, such as ``nnUNetPlannerResEncM``: plans of the study's own name are made with it. None
    with ``plans`` left out is ``nnUNetPlannerResEncM``."""
    plans: str | None = None
    """Plans that are there already, such as ``nnUNetResEncUNetLPlans``, instead of a planner."""
    trainer: str | None = None
    """Trainer class; none takes nnU-Net's own for the step budget, such as ``nnUNetTrainer_50epochs``. Others are
    refused: how many steps they train cannot be known."""
    configuration: str = "3d_fullres"
    """Of the plans."""
    gpu_memory: float | None = Field(None, gt=0)
    """GB for the planner; none leaves its own target."""


class AdaptOptions(FrozenRecipe):
    """Options of ``nnssl-mae adapt`` that decide about images and network, written as on the command line."""

    mode: str | None = None
    """``like-pretrained``, ``dataset`` or ``native``."""
    transfer: str | None = None
    """``encoder`` or ``encoder+decoder``."""
    normalisation: str | None = None
    """``pretrained`` or ``dataset``."""
    orientation: str | None = None
    """``pretrained`` or ``asis``."""
    channel_map: str | None = None
    """Such as ``0 0 1 -``."""
    patch: tuple[int, int, int] | None = None
    """Voxels, z y x."""
    batch: int | None = Field(None, ge=1)
    """Patches a step."""
    gpu_memory: float | None = Field(None, gt=0)
    """GB into which patch and batch shall fit."""


class Arm(FrozenRecipe):
    """One initialisation; exactly one of ``stock``, ``scratch``, ``recipe`` and ``checkpoint`` says which."""

    stock: StockArm | None = None
    """Stock nnU-Net."""
    scratch: str | None = None
    """The matched control of this arm: its plans without its weights."""
    recipe: str | None = None
    """Pre-trained in the study with this shipped recipe or YAML file, once a pre-training seed."""
    checkpoint: str | None = None
    """A file, a folder or ``hf://owner/name``."""
    schedule: str | tuple[str, ...] | None = None
    """Fine-tuning recipe; several become arms of their own, ``NAME-SCHEDULE``. None is ``warmup``, for a control
    ``scratch``."""
    peak_learning_rate: float | None = Field(None, gt=0)
    """In place of the schedule's."""
    set: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)
    """Other values of the fine-tuning recipe."""
    pretraining: dict[str, Any] = {}  # noqa: RUF012
    """Values of the pre-training recipe, for this arm only."""
    unlabelled: int | None = Field(None, ge=1, le=999)
    """Number of the dataset on which this arm learns, in place of ``pretraining.dataset``: for a recipe that needs
    other volumes of the same scans, as AMAES, which scales intensities to 0..1."""
    adapt: AdaptOptions = AdaptOptions()
    """Options of ``nnssl-mae adapt``; a control takes those of its arm."""

    @property
    def kind(self) -> str:
        """``stock``, ``scratch``, ``recipe`` or ``checkpoint``."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    def learns_on(self, pretraining: Pretraining) -> int:
        """Number of the dataset of its pre-training."""
        return pretraining.dataset if self.unlabelled is None else self.unlabelled


KINDS = ("stock", "scratch", "recipe", "checkpoint")


class Pretraining(FrozenRecipe):
    """Where arms with a recipe learn."""

    dataset: int = Field(ge=1, le=999)
    """Of unlabelled scans: prepared already, or to be prepared from ``scans``."""
    scans: tuple[str, ...] = ()
    """A catalogue, or folders of scans; none where the dataset is prepared already."""
    name: str = "StudyScans"
    """Name of the dataset to prepare."""
    recipe: str | None = None
    """Recipe to prepare with; none is that of the first arm that has one."""
    prepare: tuple[str, ...] = ()
    """Further arguments of ``nnssl-mae prepare``, one word each."""
    exclude_datasets: bool = True
    """Leave out scans that the study's labelled datasets hold too (``--exclude-dataset``)."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Of the pre-training; the first goes with the first of the study's seeds, and so on in turn."""
    fold: Literal["all"] | int = "all"
    """Which scans are held out."""
    set: dict[str, Any] = {}  # noqa: RUF012
    """Values of the recipe to change, for all arms."""


class Tuning(FrozenRecipe):
    """Learning rate and schedule of each arm are chosen on a labelled set that is in no comparison."""

    dataset: int = Field(ge=1, le=999)
    """Number of that labelled set."""
    learning_rates: tuple[float, ...] = Field((1e-2, 1e-3, 1e-4), min_length=1)
    """Peak learning rates to try."""
    schedules: tuple[str, ...] = ()
    """Fine-tuning recipes to try; none tries each arm's own."""
    labelled: tuple[int | Literal["all"], ...] = Field(("all",), min_length=1)
    """Label counts to train with; the mean over them decides."""


class TestSet(FrozenRecipe):
    """Held-out images with references; relative paths are looked for below ``nnUNet_raw/DatasetXXX_Name`` first."""

    __test__ = False  # no test of pytest's

    images: str = "imagesTs"
    """Folder of images, named as nnU-Net wants them."""
    references: str = "labelsTs"
    """Folder of their segmentations."""


class Slurm(FrozenRecipe):
    """What the scripts of ``--slurm`` ask for."""

    partition: str | None = None
    """Queue."""
    time: str | None = None
    """Limit of a task, such as ``24:00:00``."""
    gpus: int = Field(1, ge=0)
    """Of a task that trains or predicts."""
    cpus: int | None = Field(None, ge=1)
    """Of a task."""
    at_once: int | None = Field(None, ge=1)
    """Tasks of an array that may run at the same time."""
    lines: tuple[str, ...] = ()
    """Further ``#SBATCH`` lines, without that word."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the command, such as one that activates an environment."""


class Study(FrozenRecipe):
    """A study; frozen, and unknown keys are refused."""

    name: str
    """Letters, digits and '-'; begins the name of every plans file of the study."""
    summary: str = ""
    """One line for people."""
    datasets: tuple[int, ...] = Field(min_length=1)
    """Numbers of labelled nnU-Net datasets."""
    arms: dict[str, Arm]
    """What is compared, by name."""
    controls: tuple[str, ...] = ()
    """Arms that the others are compared with; none takes every stock and scratch arm."""
    labelled: tuple[int | Literal["all"], ...] = Field(("all",), min_length=1)
    """Label counts; ``all`` is nnU-Net's own ``fold``."""
    repeats: int = Field(1, ge=1)
    """Draws of each label count."""
    split_seed: int = Field(0, ge=0)
    """Of the draws."""
    fold: int = Field(0, ge=0, le=4)
    """nnU-Net's fold of the label count ``all``."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Repetitions of each fine-tuning, by name of their results folder. Neither nnU-Net nor our fine-tuning seeds its
    random numbers, so these are independent repetitions, not reproducible draws."""
    epochs: int = Field(ge=1)
    """Of fine-tuning, for every arm."""
    iterations: int = Field(250, ge=1)
    """Optimiser steps an epoch. ``epochs`` x ``iterations`` is the step budget, equal for all arms."""
    test: dict[int, TestSet] | Literal["validation"] = "validation"
    """Where arms are compared: on test sets by dataset number, or on the validation cases of the folds."""
    pretraining: Pretraining | None = None
    """Needed by arms with a recipe."""
    tuning: Tuning | None = None
    """None takes the rates and schedules of the arms as they are."""
    difference: float = Field(0.02, gt=0, lt=1)
    """Mean difference of Dice (0 to 1) that the study shall be able to see: decides how many subjects it needs."""
    floor: bool = True
    """Compare with an arm that learns nothing, too."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Of training and prediction."""
    processes: int = Field(4, ge=1)
    """Of preparing and preprocessing."""
    environment: dict[str, str | int | float] = {}  # noqa: RUF012
    """Further variables for every command, such as ``nnUNet_n_proc_DA``."""
    compare: tuple[str, ...] = ()
    """Further arguments of ``nnssl-mae compare``, one word each."""
    slurm: Slurm = Slurm()
    """For ``--slurm``."""

    @property
    def unlabelled(self) -> tuple[int, ...]:
        """Numbers of the datasets on which arms learn, in order."""
        if self.pretraining is None:
            return ()
        numbers = [arm.learns_on(self.pretraining) for arm in self.arms.values() if arm.recipe is not None]
        return tuple(dict.fromkeys(numbers))

    @property
    def steps(self) -> int:
        """Optimiser steps of every fine-tuning."""
        return self.epochs * self.iterations

    @field_validator("datasets", "seeds", "labelled", "controls")
    @classmethod
    def _no_doubles(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{', '.join(map(str, value))} names something twice; name it once")
        return value
