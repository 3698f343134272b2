"""Learning rates, one an epoch (arXiv 2410.23132; nnU-Net's polynomial decay with exponent 0.9)."""

from __future__ import annotations

from torch.optim import Optimizer

from nnssl_mae.recipes.finetuning import FinetuneRecipe

_EXPONENT = 0.9


def learning_rate(recipe: FinetuneRecipe, epoch: int) -> float:
    """The rate during ``epoch`` (from 0).

    The warm-up rises in equal steps to the peak, which its last epoch uses; its first epoch trains too, so it does
    not start at zero. The decay then starts from the peak and ends near zero.
    """
    warmup = recipe.warmup_epochs if recipe.schedule == "warmup" else 0
    if epoch < warmup:
        return recipe.peak_learning_rate * (epoch + 1) / warmup
    done = (epoch - warmup) / (recipe.epochs - warmup)
    return float(recipe.peak_learning_rate * (1 - done) ** _EXPONENT)


class FinetuneSchedule:
    """Sets the rate of every parameter group; nnU-Net calls ``step`` at the start of each epoch."""

    def __init__(self, optimizer: Optimizer, recipe: FinetuneRecipe) -> None:
        self.optimizer, self.recipe = optimizer, recipe

    def step(self, current_epoch: int) -> None:
        """Sets the rate of ``current_epoch``."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, current_epoch)

    def get_last_lr(self) -> list[float]:
        """The current rates."""
        return [group["lr"] for group in self.optimizer.param_groups]
