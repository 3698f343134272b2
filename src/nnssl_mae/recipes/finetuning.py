"""The fine-tuning recipe: schedule, optimiser and augmentation of a labelled training.

Read from YAML (``configs/finetuning/*.yaml`` or a user's own file), stored in the plans that ``nnssl-mae adapt``
writes, and read back from there by the trainer. The schedules are those of S3D and OpenMind (arXiv 2410.23132,
2412.17041).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.base import FrozenRecipe
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import changed, configs_folder, load_recipe, parse, read_yaml, shipped_recipes

_PHASES_BEFORE_THE_DECAY = {
    "default": (),
    "warmup": ("warmup_epochs",),
    "sawtooth": ("decoder_rise_epochs", "decoder_fall_epochs", "warmup_epochs"),
    "valley": ("decoder_fall_epochs", "warmup_epochs"),
    "frozen": (),
}


def published_lengths(schedule: str, epochs: int) -> dict[str, int]:
    """Epochs of each phase before the final decay, in the published proportion; 0 for what a schedule does not have.

    Warm-up: a tenth of all epochs, at most 50 (50 of 1000, 15 of 150). Sawtooth: rise and fall of the decoder share as
    many epochs, the odd one goes to the fall (25 + 25 of 1000, 7 + 8 of 150). The valley's fall is as long as its
    warm-up: our choice, no published length is known.
    """
    share = min(50, max(1, epochs // 10))
    tooth = max(2, share)  # each side takes at least one epoch
    lengths = {
        "decoder_rise_epochs": tooth // 2,
        "decoder_fall_epochs": share if schedule == "valley" else tooth - tooth // 2,
        "warmup_epochs": share,
    }
    return {name: length if name in _PHASES_BEFORE_THE_DECAY[schedule] else 0 for name, length in lengths.items()}


class FinetuneRecipe(FrozenRecipe):
    """How a network is fine-tuned, with or without pre-trained weights."""

    name: str = ""
    """Name by which the recipe is chosen."""
    summary: str = ""
    """One line for people."""
    citation: tuple[str, ...] = ()
    """What to cite when a model of this recipe is used."""
    schedule: Literal["warmup", "default", "sawtooth", "valley", "frozen"] = "warmup"
    """``warmup``: linear rise to the peak, then decay. ``default``: decay from the peak. ``sawtooth``: the decoder
    alone rises and decays, then as ``warmup``. ``valley``: the decoder alone decays, then as ``warmup``. ``frozen``:
    as ``default``, and the encoder never changes."""
    epochs: int = Field(1000, ge=1)
    """All epochs, every phase included."""
    iterations: int = Field(250, ge=1)
    """Optimiser steps an epoch."""
    peak_learning_rate: float = Field(1e-3, gt=0)
    """The highest rate of each phase; 1e-3 from pre-trained weights, 1e-2 from scratch."""
    decay: Literal["polynomial", "cosine"] = "polynomial"
    """How the rate falls to zero, a step an epoch; the polynomial has nnU-Net's exponent 0.9."""
    decoder_rise_epochs: int = Field(None, ge=0, validate_default=True)
    """Epochs in which the decoder alone rises to the peak; none or left out: the published share of ``epochs``."""
    decoder_fall_epochs: int = Field(None, ge=0, validate_default=True)
    """Epochs in which the decoder alone decays; none or left out: the published share of ``epochs``."""
    warmup_epochs: int = Field(None, ge=0, validate_default=True)
    """Epochs in which the whole network rises to the peak; none or left out: the published share of ``epochs``."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """The last encoder stage learns at this share of the decoder's rate, the stage before it at this share of that, and
    so on down to the stem; 1 switches it off."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """``sgd``: with Nesterov momentum, as nnU-Net. ``adamw``: betas 0.9 and 0.999."""
    momentum: float = Field(0.99, ge=0, lt=1)
    """Nesterov momentum; without effect with ``adamw``."""
    weight_decay: float = Field(3e-5, ge=0)
    """L2 penalty, decoupled with ``adamw``."""
    augmentation: Literal["full", "spatial"] = "full"
    """``full``: nnU-Net's own. ``spatial``: its rotation and scaling only; no mirroring, in prediction neither."""
    deep_supervision: bool = False
    """Whether coarser stages of the decoder learn from the labels too, as in nnU-Net. The published schedules train the
    last head only."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many epochs of the final decay without a new best of nnU-Net's moving average of the pseudo Dice;
    none never stops early."""

    @field_validator("decoder_rise_epochs", "decoder_fall_epochs", "warmup_epochs", mode="before")
    @classmethod
    def _published_share(cls, value: object, info: ValidationInfo) -> object:
        if value is not None:
            return value
        if not {"schedule", "epochs"} <= info.data.keys():
            return 0  # a schedule or an epoch number that is not valid has its own sentence
        return published_lengths(info.data["schedule"], info.data["epochs"])[str(info.field_name)]

    @model_validator(mode="after")
    def _phases_fit(self) -> FinetuneRecipe:
        used = _PHASES_BEFORE_THE_DECAY[self.schedule]
        lengths = {name: getattr(self, name) for name in _PHASES_BEFORE_THE_DECAY["sawtooth"]}
        for name, length in lengths.items():
            if name in used and length < 1:
                raise ValueError(f"{name} is {length}, but the schedule '{self.schedule}' needs it; the nearest is 1")
            if name not in used and length > 0:
                raise ValueError(f"{name} is {length}, but the schedule '{self.schedule}' has none; set it to 0")
        before = sum(lengths.values())
        if before >= self.epochs:
            described = ", ".join(f"{name} {lengths[name]}" for name in used)
            raise ValueError(
                f"the schedule '{self.schedule}' with {described} needs more than {self.epochs} epochs; "
                f"the nearest possible: {_nearest_that_fits(lengths, self.epochs)}"
            )
        return self


def _nearest_that_fits(lengths: dict[str, int], epochs: int) -> str:
    """More epochs, or a shorter longest phase where that is enough."""
    before = sum(lengths.values())
    longest = max(lengths, key=lambda name: lengths[name])
    shorter = lengths[longest] - (before - epochs + 1)
    return f"epochs {before + 1}" + (f", or {longest} {shorter}" if shorter >= 1 else "")


def finetuning_folder() -> Path:
    """The folder of the shipped fine-tuning recipes."""
    return configs_folder() / "finetuning"


def load_finetune_recipe(
    name_or_file: str,
    epochs: int | None = None,
    iterations: int | None = None,
    changes: Sequence[str] = (),
) -> FinetuneRecipe:
    """A shipped fine-tuning recipe by name, or a user's own YAML file by path, with every length in epochs.

    Args:
        name_or_file: ``warmup``, or a path that ends in ``.yaml``.
        epochs: in place of the recipe's; phases that the file leaves open shrink or grow with it.
        iterations: in place of the recipe's.
        changes: assignments such as ``layer_decay=0.75``, made last.

    Raises:
        UserError: unknown name, unreadable file, unknown key, impossible value or lengths that do not fit.
    """
    content = read_yaml(name_or_file, finetuning_folder())
    given = {key: value for key, value in (("epochs", epochs), ("iterations", iterations)) if value is not None}
    _refuse_two_values(given, changes)
    return parse(FinetuneRecipe, changed({**content, **given}, changes, FinetuneRecipe), source=name_or_file)


def _refuse_two_values(given: Mapping[str, int], changes: Sequence[str]) -> None:
    for key in given:
        if any(change.partition("=")[0].strip() == key for change in changes):
            raise UserError(f"--{key.rpartition('.')[2]} and --set {key} decide the same value; leave one out")


def default_schedule(from_scratch: bool, transformer: bool = False) -> str:
    """Name of the recipe for pre-trained weights, or for their control from scratch."""
    if transformer:
        return "transformer_scratch" if from_scratch else "transformer"
    return "scratch" if from_scratch else "warmup"


def finetune_recipe(from_scratch: bool, epochs: int, iterations: int) -> FinetuneRecipe:
    """The default of U-Nets for pre-trained weights, or its control from scratch."""
    return load_finetune_recipe(default_schedule(from_scratch), epochs, iterations)


def load_any_recipe(
    name_or_file: str, epochs: int | None = None, changes: Sequence[str] = ()
) -> Recipe | FinetuneRecipe:
    """A recipe of either kind: by name from both shipped folders, or a file, whose content decides.

    Raises:
        UserError: a name in neither folder, or what loading it raises.
    """
    if _is_for_finetuning(name_or_file):
        return load_finetune_recipe(name_or_file, epochs, changes=changes)
    length = [] if epochs is None else [f"schedule.epochs={epochs}"]
    _refuse_two_values({} if epochs is None else {"schedule.epochs": epochs}, changes)
    return load_recipe(name_or_file, [*length, *changes])


def _is_for_finetuning(name_or_file: str) -> bool:
    if Path(name_or_file).suffix in (".yaml", ".yml"):
        content = read_yaml(name_or_file, finetuning_folder(), configs_folder())
        unknown = {model: len(content.keys() - model.model_fields.keys()) for model in (Recipe, FinetuneRecipe)}
        # Both kinds have a key called schedule; only that of fine-tuning is a word.
        return isinstance(content.get("schedule"), str) or unknown[FinetuneRecipe] < unknown[Recipe]
    finetuning, pretraining = shipped_recipes(finetuning_folder()), shipped_recipes()
    if name_or_file not in (*finetuning, *pretraining):
        close = difflib.get_close_matches(name_or_file, [*finetuning, *pretraining], n=1)
        hint = f", did you mean '{close[0]}'?" if close else "."
        raise UserError(
            f"There is no recipe '{name_or_file}'{hint} Fine-tuning: {', '.join(finetuning)}; "
            f"pre-training: {', '.join(pretraining)}"
        )
    return name_or_file in finetuning
