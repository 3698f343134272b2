"""The optimiser of pre-training and its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from nnssl_mae.recipes.pretraining import OptimiserRecipe


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], recipe: OptimiserRecipe, fused: bool
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; ``fused`` is for CUDA."""
    learning = list(parameters)
    optimizer: torch.optim.Optimizer
    if recipe.name == "adamw":
        optimizer = torch.optim.AdamW(
            learning, recipe.learning_rate, betas=(0.9, 0.999), weight_decay=recipe.weight_decay, fused=fused
        )
    else:
        optimizer = torch.optim.SGD(
            learning,
            recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=fused,
        )
        if fused and recipe.momentum > 0:
            _start_from_zero_momentum(optimizer, learning)
    _keep_own_kernel(optimizer, fused)
    return optimizer


def _start_from_zero_momentum(optimizer: torch.optim.Optimizer, learning: Iterable[torch.nn.Parameter]) -> None:
    """Gives fused SGD its buffers, where torch would make them of uninitialised memory.

    Its kernel leaves them so when the first fp16 step overflows, as it often does, and the next step trains on them.
    """
    for parameter in learning:
        if parameter.requires_grad:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _keep_own_kernel(optimizer: torch.optim.Optimizer, fused: bool) -> None:
    """A run that began on another device continues here with the kernel of this one."""

    def own_kernel(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(own_kernel)


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
