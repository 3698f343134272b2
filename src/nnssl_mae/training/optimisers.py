"""The optimiser of pre-training and its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from nnssl_mae.recipes.pretraining import OptimiserRecipe


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], recipe: OptimiserRecipe, fused: bool
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; ``fused`` needs CUDA."""
    if recipe.name == "adamw":
        return torch.optim.AdamW(
            parameters, recipe.learning_rate, betas=(0.9, 0.999), weight_decay=recipe.weight_decay, fused=fused
        )
    return torch.optim.SGD(
        parameters,
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
        fused=fused,
    )


class EpochSchedule:
    """Sets the rate of every parameter group; nnU-Net calls ``step`` at the start of each epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, rate: Callable[[int], float]) -> None:
        self.optimizer, self.rate = optimizer, rate

    def step(self, current_epoch: int) -> None:
        """Sets the rate of ``current_epoch``."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(current_epoch)

    def get_last_lr(self) -> list[float]:
        """The current rates."""
        return [group["lr"] for group in self.optimizer.param_groups]
