"""Step budgets: every arm trains the same number of steps, and stock nnU-Net has trainers for some numbers only."""

from __future__ import annotations

import importlib
import re

from nnssl_mae.comparison.convergence import STOCK_ITERATIONS
from nnssl_mae.errors import UserError

_PACKAGE = "nnunetv2.training.nnUNetTrainer"
_USUAL_EPOCHS = 1000


def stock_trainers() -> dict[int, str]:
    """The installed nnU-Net's own trainers that differ in length only, by epochs."""
    variants = importlib.import_module(f"{_PACKAGE}.variants.training_length.nnUNetTrainer_Xepochs")
    found = {_USUAL_EPOCHS: "nnUNetTrainer"}
    for name in vars(variants):
        if match := re.fullmatch(r"nnUNetTrainer_(\d+)epochs?", name):
            found[int(match[1])] = name
    return dict(sorted(found.items()))


def stock_trainer(epochs: int, iterations: int) -> str:
    """The stock trainer with a budget of ``epochs`` x ``iterations`` steps.

    Raises:
        UserError: there is none; lists the possible budgets.
    """
    steps, trainers = epochs * iterations, stock_trainers()
    whole, rest = divmod(steps, STOCK_ITERATIONS)
    if not rest and whole in trainers:
        return trainers[whole]
    nearest = min(trainers, key=lambda length: (abs(length * STOCK_ITERATIONS - steps), length))
    possible = ", ".join(str(length * STOCK_ITERATIONS) for length in trainers)
    raise UserError(
        f"epochs {epochs} x iterations {iterations} are {steps} steps, and stock nnU-Net has no trainer for as many: "
        f"it takes {STOCK_ITERATIONS} steps an epoch, so the budgets possible with a stock arm are {possible} steps. "
        f"The nearest is epochs: {nearest}, iterations: {STOCK_ITERATIONS}"
    )
