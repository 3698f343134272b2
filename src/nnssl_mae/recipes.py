"""Recipes: everything that decides a pre-training run, as one frozen, validated value.

A recipe is read from YAML (``configs/*.yaml`` or a user's own file), stored inside nnU-Net's plans as part of the
block ``nnssl_mae``, and read back from there by the trainer. Unknown keys are refused with the nearest valid name.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nnssl_mae.errors import UserError

PLANS_BLOCK = "nnssl_mae"
PLANS_SCHEMA = 1

Size3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataRecipe(_Frozen):
    """How a scan becomes a preprocessed volume. Stock nnU-Net can repeat every step at prediction time."""

    spacing: Spacing3 | Literal["native", "median"] = (1.0, 1.0, 1.0)
    """Voxel edge lengths in mm in the reader's axis order (z, y, x); ``native`` keeps each scan's own grid,
    ``median`` is nnU-Net's usual choice for the dataset."""
    orientation: Literal["RAS", "as_stored"] = "RAS"
    """``RAS`` reorients NIfTI files on reading (nnU-Net's NibabelIOWithReorient, undone on export)."""
    normalisation: Literal["ZScoreNormalization", "RescaleTo01Normalization"] = "ZScoreNormalization"
    """Name of nnU-Net's normalisation class."""
    normalise_inside_mask: bool = False
    """Compute the statistics over non-zero voxels only (nnU-Net's ``use_mask_for_norm``)."""


class NetworkRecipe(_Frozen):
    """Residual Encoder U-Net: sizes. Strides and kernels come from nnU-Net's planner functions for this patch."""

    patch_size: Size3 | Literal["planner"] = (160, 160, 160)
    """Voxels. ``planner`` leaves patch, batch and network to nnU-Net's own plan."""
    batch_size: int = Field(8, ge=1)
    """Patches a step, over all GPUs together."""
    base_features: int = Field(32, ge=1)
    """Channels of the first stage, doubled at each stage."""
    max_features: int = Field(320, ge=1)
    """Upper limit of the channels of a stage."""
    blocks_per_stage: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    """Residual blocks of each encoder stage; the last number repeats if the patch allows more stages."""
    convs_per_decoder_stage: int = Field(1, ge=1)
    """Convolutions of each decoder stage."""
    max_stages: int | None = Field(None, ge=2)
    """Upper limit of the number of stages; none leaves it to the patch size."""


class MaskingRecipe(_Frozen):
    """Which part of a patch is hidden."""

    block_size: int = Field(16, ge=1)
    """Edge of the hidden cubes in voxels."""
    ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the blocks that is hidden, exactly, in every patch."""


class AugmentationRecipe(_Frozen):
    """Spatial augmentation (batchgeneratorsv2), before hiding."""

    rotation_degrees: float = Field(30.0, ge=0, le=180)
    """Largest angle about each axis."""
    rotation_probability: float = Field(0.2, ge=0, le=1)
    """Share of the patches that are rotated."""
    scale: tuple[float, float] = (0.7, 1.4)
    """Range of the zoom factor; larger numbers show smaller structures."""
    scale_probability: float = Field(0.2, ge=0, le=1)
    """Share of the patches that are zoomed."""
    mirror: bool = True
    """Flip each axis with probability one half."""


class OptimiserRecipe(_Frozen):
    """SGD with Nesterov momentum, as nnU-Net uses it."""

    learning_rate: float = Field(1e-2, gt=0)
    """Initial rate of the polynomial schedule (exponent 0.9, one step an epoch)."""
    momentum: float = Field(0.99, ge=0, lt=1)
    """Nesterov momentum."""
    weight_decay: float = Field(3e-5, ge=0)
    """L2 penalty."""
    gradient_clip: float = Field(12.0, gt=0)
    """Largest norm of the gradient of all weights together."""


class ScheduleRecipe(_Frozen):
    """How long, and what is written when."""

    epochs: int = Field(1000, ge=1)
    """An epoch is a fixed number of steps, not a pass over the data."""
    iterations: int = Field(250, ge=1)
    """Optimiser steps an epoch."""
    validation_cases: int = Field(400, ge=1)
    """At most this many held-out scans are looked at after each epoch, always the same ones."""
    checkpoint_every: int = Field(1, ge=1)
    """Epochs between two writings of ``checkpoint_latest.pth``."""
    preview_every: int = Field(50, ge=1)
    """Epochs between two preview pictures."""


class Recipe(_Frozen):
    """A complete pre-training recipe."""

    name: str
    """Name by which the recipe is chosen."""
    summary: str
    """One line for people."""
    citation: tuple[str, ...] = ()
    """What to cite when a checkpoint of this recipe is used."""
    data: DataRecipe = DataRecipe()
    network: NetworkRecipe = NetworkRecipe()
    masking: MaskingRecipe = MaskingRecipe()
    augmentation: AugmentationRecipe = AugmentationRecipe()
    optimiser: OptimiserRecipe = OptimiserRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    seed: int = Field(12345, ge=0)
    """Every draw of a run is a function of this number, the epoch, the iteration, the rank and the sample."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> Recipe:
        spacing, patch = self.data.spacing, self.network.patch_size
        if not isinstance(spacing, str) and min(spacing) <= 0:
            raise ValueError(f"data.spacing {spacing} must be positive (mm)")
        if not isinstance(patch, str) and min(patch) < 8:
            raise ValueError(f"network.patch_size {patch} is smaller than 8 voxels")
        if min(self.augmentation.scale) <= 0 or self.augmentation.scale[0] > self.augmentation.scale[1]:
            raise ValueError(f"augmentation.scale {self.augmentation.scale} must be (low, high) with 0 < low <= high")
        if not self.network.blocks_per_stage or min(self.network.blocks_per_stage) < 1:
            raise ValueError("network.blocks_per_stage needs one positive number a stage")
        return self


class FinetuneRecipe(_Frozen):
    """How a network is fine-tuned, with or without pre-trained weights (S3D paper and OpenMind, arXiv 2410.23132)."""

    schedule: Literal["warmup", "default"] = "warmup"
    """``warmup``: linear to the peak, whole network, then polynomial. ``default``: polynomial from the peak."""
    peak_learning_rate: float = Field(1e-3, gt=0)
    """1e-3 from pre-trained weights, 1e-2 from scratch."""
    epochs: int = Field(1000, ge=1)
    """All epochs, warm-up included."""
    warmup_epochs: int = Field(50, ge=0)
    """Epochs of the linear rise."""
    iterations: int = Field(250, ge=1)
    """Optimiser steps an epoch."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> FinetuneRecipe:
        if self.schedule == "warmup" and not 0 < self.warmup_epochs < self.epochs:
            raise ValueError(f"a warm-up of {self.warmup_epochs} epochs needs more than {self.epochs} epochs in all")
        return self


def finetune_recipe(from_scratch: bool, epochs: int, iterations: int) -> FinetuneRecipe:
    """The published schedule for pre-trained weights, or its matched control from scratch.

    The warm-up takes 50 of 1000 epochs and 15 of 150: a tenth, at most 50.
    """
    try:
        if from_scratch:
            return FinetuneRecipe(
                schedule="default",
                peak_learning_rate=1e-2,
                epochs=epochs,
                warmup_epochs=0,
                iterations=iterations,
            )
        return FinetuneRecipe(epochs=epochs, warmup_epochs=min(50, max(1, epochs // 10)), iterations=iterations)
    except ValidationError as error:
        problems = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise UserError(f"The fine-tuning schedule is not possible: {problems}") from error


def configs_folder() -> Path:
    """The folder of shipped recipes: inside the package when installed, beside ``src`` in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in configs_folder().glob("*.yaml"))


def load_recipe(name_or_file: str) -> Recipe:
    """Reads a shipped recipe by name, or a user's own YAML file by path.

    Raises:
        UserError: unknown name, unreadable file, unknown key or impossible value.
    """
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        path = configs_folder() / f"{name_or_file}.yaml"
        if not path.is_file():
            raise UserError(f"There is no recipe '{name_or_file}'{_nearest(name_or_file, shipped_recipes())}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The recipe file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"The recipe file {path} must hold keys and values, such as 'name: mine'.")
    return parse_recipe(content, source=str(path))


def parse_recipe(content: dict[str, Any], source: str) -> Recipe:
    """Validates a mapping; ``source`` names it in the error sentence."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        raise UserError(f"The recipe {source} is not valid: {problems}") from error


def override(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A copy with dotted keys replaced, e.g. ``{"network.batch_size": 2}``; validated again."""
    content = recipe.model_dump()
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        target = content
        for section in sections:
            target = target[section]
        target[key] = value
    return parse_recipe(content, source=recipe.name)


def _explain(problem: Any) -> str:
    """One pydantic problem as a sentence, with the nearest valid key for an unknown one."""
    location = [str(part) for part in problem["loc"]]
    where = ".".join(location) or "recipe"
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"
    model: Any = Recipe
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    return f"unknown key '{where}'{_nearest(location[-1], list(model.model_fields))}"


def _nearest(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1)
    return f", did you mean '{close[0]}'?" if close else f"; valid: {', '.join(valid)}"
