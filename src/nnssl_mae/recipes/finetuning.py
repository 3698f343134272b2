"""The fine-tuning recipe: schedule, optimiser and augmentation of a labelled training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, model_validator

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.base import FrozenRecipe


class FinetuneRecipe(FrozenRecipe):
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
