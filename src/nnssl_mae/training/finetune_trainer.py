"""Fine-tuning inside nnU-Net: ``nnUNetv2_train ... -tr nnUNetTrainerMAEFinetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnssl_mae.checkpoints.transfer import load_into
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256
from nnssl_mae.plans import read_block
from nnssl_mae.recipes.finetuning import FinetuneRecipe
from nnssl_mae.training.one_head_trainer import OneHeadTrainer
from nnssl_mae.training.schedules import FinetuneSchedule
from nnssl_mae.training.state import bare_network, training_state, write_checkpoint


class nnUNetTrainerMAEFinetune(OneHeadTrainer):
    """Stock nnU-Net training with a published fine-tuning schedule and, unless it is the control, given weights.

    The plans that ``nnssl-mae adapt`` wrote decide both. The result is a plain nnU-Net model: it predicts where this
    package is not installed.
    """

    # nnU-Net records the arguments by these names.
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        block = read_block(self.configuration_manager.configuration, "finetune", self.plans_manager.plans_name)
        self.recipe = FinetuneRecipe.model_validate(block["recipe"])
        self.initialisation: dict[str, Any] | None = block["initialisation"]
        self.initial_lr = self.recipe.peak_learning_rate
        self.num_epochs = self.recipe.epochs
        self.num_iterations_per_epoch = self.recipe.iterations
        self.num_val_iterations_per_epoch = max(1, self.recipe.iterations // 5)  # 50 of 250, as stock
        self.enable_deep_supervision = False
        self._resumed = False
        self._initial_weights = torch.empty(0)  # -> initialize

    def initialize(self) -> None:
        """As stock; remembers the initial weights to notice when something else replaces them."""
        if not Path(self.preprocessed_dataset_folder).is_dir():
            raise UserError(
                f"{self.preprocessed_dataset_folder} is missing; preprocess first: nnUNetv2_preprocess "
                f"-d {self.plans_manager.dataset_name[7:10]} -plans_name {self.plans_manager.plans_name} "
                f"-c {self.configuration_name}"
            )
        super().initialize()
        self._initial_weights = _summary(self.network)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, FinetuneSchedule]:
        """Stock's optimiser with the schedule of the plans."""
        optimizer, _ = super().configure_optimizers()
        return optimizer, FinetuneSchedule(optimizer, self.recipe)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """As stock; a resumed run keeps its weights."""
        super().load_checkpoint(filename_or_checkpoint)
        self._resumed = True

    def on_train_start(self) -> None:
        """Puts the pre-trained weights into a fresh network, in every process, before stock starts."""
        if not self.was_initialized:
            self.initialize()
        if not self._resumed:
            self._refuse_other_weights()
            self._transfer()
        super().on_train_start()

    def _refuse_other_weights(self) -> None:
        if torch.equal(_summary(self.network), self._initial_weights):
            return
        what = "the weights to start from" if self.initialisation else "that this run starts from random weights"
        raise UserError(
            f"The plans '{self.plans_manager.plans_name}' already say {what}, but other weights were loaded as "
            "well. Leave -pretrained_weights out, or use -tr nnUNetTrainer with it"
        )

    def _transfer(self) -> None:
        if self.initialisation is None:
            self.print_to_log_file("Training from scratch: no weights are transferred.")
            return
        file = Path(self.preprocessed_dataset_folder_base, self.initialisation["file"])
        report = load_into(bare_network(self.network), _read_tensors(file, self.initialisation["sha256"]))
        origin = self.initialisation["origin"]
        adapted = self.initialisation["adapted"]
        self.print_to_log_file(
            f"Pre-trained weights: {self.initialisation['transfer']} of recipe '{origin['recipe']}' after "
            f"{origin['epochs']} epochs (checkpoint {origin['sha256'][:12]})"
        )
        self.print_to_log_file(f"  loaded {len(report.loaded)} tensors: {_groups(report.loaded)}")
        self.print_to_log_file(
            f"  adapted {len(adapted)} of them to the input channels: {', '.join(adapted) or 'none'}"
        )
        self.print_to_log_file(f"  left random {len(report.random)} tensors: {_groups(report.random)}")

    def save_checkpoint(self, filename: str) -> None:
        """As stock, by rename, under the stock trainer's name: prediction needs no installation of ours."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        state = training_state(self, nnUNetTrainer.__name__)
        state["nnssl_mae"] = {
            "recipe": self.recipe.model_dump(mode="json"),
            "initialisation": self.initialisation,
        }
        write_checkpoint(Path(filename), state)


def _read_tensors(file: Path, digest: str) -> dict[str, torch.Tensor]:
    """The tensors that ``adapt`` laid beside the plans.

    Raises:
        UserError: the file is missing, was changed, or cannot be read.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; it belongs to these plans: copy it along, or run `nnssl-mae adapt` again")
    if sha256(file) != digest:
        raise UserError(f"{file} is not the file these plans were written with; run `nnssl-mae adapt` again")
    try:
        return dict(safetensors.torch.load_file(file, device="cpu"))
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} cannot be read: {error}; run `nnssl-mae adapt` again") from error


def _summary(network: nn.Module) -> torch.Tensor:
    """One number a tensor; changes when any weight is replaced."""
    return torch.stack([p.detach().double().abs().sum().cpu() for p in bare_network(network).parameters()])


def _groups(names: tuple[str, ...]) -> str:
    """``encoder.stages.0 (8), ...``: tensors counted by the module they belong to."""
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        group = ".".join(parts[:3] if parts[1] == "stages" else parts[:2])
        counts[group] = counts.get(group, 0) + 1
    return ", ".join(f"{group} ({count})" for group, count in counts.items()) or "none"
