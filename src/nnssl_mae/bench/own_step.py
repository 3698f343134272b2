"""The training step of this package, as its trainer takes it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
import torch

from nnssl_mae.bench.step_setting import StepSetting
from nnssl_mae.networks.pretraining import pretraining_network
from nnssl_mae.patches.faults import DamagedCases
from nnssl_mae.patches.loader import Batch
from nnssl_mae.patches.on_device_batching import DeviceAugmentation
from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE

_BATCHES = 4  # different masks, drawn beforehand as loader processes do


class OwnStep(nnUNetTrainerMAE):
    """As much of the trainer as its ``train_step`` looks at: network, loss, optimiser and number format are its own.

    A batch lies in memory of the host, with its mask, as loader processes hand it over. The loss is not read back.

    Args:
        setting: recipe, sizes and device.
    """

    network: Any
    grad_scaler: Any

    def __init__(self, setting: StepSetting) -> None:
        # Not the trainer's own: that opens nnU-Net's folders.
        recipe = setting.recipe
        self.recipe, self.device = recipe, setting.device
        torch.manual_seed(recipe.seed)
        network = pretraining_network(setting.architecture, 1, recipe.network, recipe.masking.hidden_value)
        self.network = network.to(setting.device).train()
        self.optimizer, _ = self.configure_optimizers()
        self.loss = self._build_loss()
        scaled = setting.device.type == "cuda" and recipe.optimiser.precision == "fp16"
        self.grad_scaler = torch.amp.GradScaler("cuda") if scaled else None
        self._damaged = DamagedCases(print)
        self._augment = DeviceAugmentation(recipe.augmentation, setting.patch)
        self._losses: list[torch.Tensor] = []
        rng, volumes = np.random.default_rng(recipe.seed), setting.volumes()
        self._batches: Iterator[dict[str, torch.Tensor]] = cycle(
            [{"data": volumes, "hidden": setting.hidden(rng)} for _ in range(_BATCHES)]
        )

    def __call__(self) -> object:
        """One step; the loss stays on the device."""
        return self.train(next(self._batches))

    def train(self, batch: Batch) -> object:
        """One step on a batch that lies in memory of the host."""
        self._losses.clear()  # no epoch ends here
        return self.train_step(batch)["loss"]

    def _should_stop(self) -> bool:
        """Nobody asks this to save itself."""
        return False

    def compile(self) -> None:
        """As nnU-Net compiles a network; the next step takes the time for it."""
        self.network = torch.compile(self.network)

    def parameters(self) -> list[torch.Tensor]:
        """Weights of the network."""
        return list(self.network.parameters())
