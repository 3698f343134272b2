"""Fine-tuning inside nnU-Net: ``nnUNetv2_train ... -tr nnUNetTrainerMAEFinetune``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnssl_mae.backbones import backbone_of, head_scales
from nnssl_mae.checkpoints.transfer import load_into
from nnssl_mae.downstream.preprocessed import FINGERPRINT, missing_cases
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json
from nnssl_mae.plans import read_block
from nnssl_mae.recipes.finetuning import FinetuneRecipe
from nnssl_mae.recipes.reading import parse
from nnssl_mae.training.freezing import train_part
from nnssl_mae.training.initialisation import describe_initialisation, read_tensors
from nnssl_mae.training.one_head_trainer import OneHeadTrainer, resolved_configuration
from nnssl_mae.training.schedules import (
    FinetuneSchedule,
    Phase,
    keep_stock_layout,
    parameter_groups,
    phase_at,
    phases,
)
from nnssl_mae.training.state import bare_network, refuse_changed_plans, training_state, write_checkpoint

_LEAST_STAGES = 3  # nnU-Net gives the coarsest head no weight; with two stages it would divide by zero


class nnUNetTrainerMAEFinetune(OneHeadTrainer):
    """Stock nnU-Net training with a published fine-tuning schedule and, unless it is the control, given weights.

    The plans that ``nnssl-mae adapt`` wrote decide both. Where the network is nnU-Net's own, so is the resulting model:
    it predicts where this package is not installed.
    """

    network: nn.Module
    way_out = ", or -tr nnUNetTrainer"

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
        self.recipe, self.initialisation = _read_plans(self.configuration_manager.configuration, plans["plans_name"])
        self.initial_lr = self.recipe.peak_learning_rate
        self.weight_decay = self.recipe.weight_decay
        self.num_epochs = self.recipe.epochs
        self.num_iterations_per_epoch = self.recipe.iterations
        self.num_val_iterations_per_epoch = max(1, self.recipe.iterations // 5)  # 50 of 250, as stock
        self.enable_deep_supervision = self.recipe.deep_supervision
        self._announced: Phase | None = None
        self._resumed = False
        self._initial_weights = torch.empty(0)  # -> initialize

    def check_plans(self, plans: Mapping[str, Any], configuration: str) -> None:
        """As the base class does, and refuses plans that are not for fine-tuning.

        Raises:
            UserError: see above, or deep supervision of a network with a single head that it could train.
        """
        super().check_plans(plans, configuration)
        wanted = resolved_configuration(plans, configuration)
        recipe, _ = _read_plans(wanted, plans["plans_name"])
        stages = len(wanted["architecture"]["arch_kwargs"]["strides"])
        if recipe.deep_supervision and stages < _LEAST_STAGES:
            raise UserError(
                f"Deep supervision needs a network of {_LEAST_STAGES} stages or more, and that of the plans "
                f"'{plans['plans_name']}' has {stages}; write them again with --set deep_supervision=false"
            )

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """As stock; of a transformer the resolutions that its heads have."""
        architecture = self.configuration_manager.configuration["architecture"]
        if not self.enable_deep_supervision or backbone_of(architecture).is_convolutional:
            scales: list[list[float]] | None = super()._get_deep_supervision_scales()
            return scales
        return head_scales(architecture)

    def initialize(self) -> None:
        """As stock; remembers the initial weights to notice when something else replaces them."""
        self._check_preprocessed()
        super().initialize()
        self._initial_weights = _summary(self.network)

    def _check_preprocessed(self) -> None:
        """Refuses cases that are missing: nnU-Net would train on those that are there, and split these only."""
        folder = Path(self.preprocessed_dataset_folder)
        fingerprint = Path(self.preprocessed_dataset_folder_base, FINGERPRINT)
        problem = "" if folder.is_dir() else "is missing"
        if folder.is_dir() and fingerprint.is_file():
            missing, cases = missing_cases(folder, read_json(fingerprint, "extract the fingerprint again"))
            if missing:
                problem = f"lacks {missing} of {cases} cases: preprocessing was cut off, or the dataset has grown since"
        if problem:
            raise UserError(
                f"{folder} {problem}; preprocess first: nnUNetv2_preprocess "
                f"-d {self.plans_manager.dataset_name[7:10]} -plans_name {self.plans_manager.plans_name} "
                f"-c {self.configuration_name}"
            )

    # ------------------------------------------------------------------ optimiser, phases, end

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, FinetuneSchedule]:
        """One optimiser for all phases of the recipe, and the schedule of its rates."""
        groups, recipe = parameter_groups(self.network, self.recipe), self.recipe
        optimizer: torch.optim.Optimizer
        if recipe.optimiser == "adamw":
            optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=recipe.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.momentum > 0
            )
        keep_stock_layout(optimizer, self.network)
        return optimizer, FinetuneSchedule(optimizer, recipe)

    def on_train_epoch_start(self) -> None:
        """As stock, with the part of the network that learns in this epoch; depends on the number of the epoch only."""
        phase = phase_at(phases(self.recipe), self.current_epoch)
        self.network = train_part(self.network, phase.trains)
        super().on_train_epoch_start()
        if phase != self._announced:
            self._announce(phase)

    def _announce(self, phase: Phase) -> None:
        order, peak = phases(self.recipe), self.recipe.peak_learning_rate
        what = "the whole network" if phase.trains == "all" else "the decoder only, the encoder stands still"
        first, last = (phase.rate(epoch, peak) for epoch in (phase.first_epoch, phase.last_epoch))
        self.print_to_log_file(
            f"Phase {order.index(phase) + 1} of {len(order)}, {phase.name}, epochs {phase.first_epoch} to "
            f"{phase.last_epoch}: trains {what}; learning rate {first:.3g} to {last:.3g}"
        )
        rates = ", ".join(f"{group['name']} {group['lr']:.3g}" for group in self.optimizer.param_groups)
        self.print_to_log_file(f"Learning rates of epoch {self.current_epoch}: {rates}")
        self._announced = phase

    def stop_early(self) -> bool:
        """Whether the final decay has gone on for ``patience`` epochs without a new best EMA pseudo Dice.

        Earlier phases never end a run: a Dice that stands still there says nothing about what comes.
        """
        if self.recipe.patience is None:
            return False
        dice = np.nan_to_num(self.logger.get_value("ema_fg_dice", step=None), nan=-np.inf)
        since_best = len(dice) - 1 - int(np.argmax(dice))
        in_last_phase = self.current_epoch - phases(self.recipe)[-1].first_epoch
        return min(since_best, in_last_phase) >= self.recipe.patience

    # ------------------------------------------------------------------ augmentation

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """As stock; without mirroring, in prediction neither, where the recipe says ``spatial``."""
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.recipe.augmentation == "spatial":
            self.inference_allowed_mirroring_axes = mirror_axes = None
        return rotation, dummy_2d, initial_patch_size, mirror_axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """As stock (where it is static), without the intensity changes where the recipe says ``spatial``."""
        transforms = super().get_training_transforms(*args, **kwargs)
        return without_intensity(transforms) if self.recipe.augmentation == "spatial" else transforms

    # ------------------------------------------------------------------ weights, checkpoints

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """As stock; a resumed run keeps its weights, and is refused where the plans have become those of another."""
        now = {"recipe": self.recipe.model_dump(mode="json"), "initialisation": self.initialisation}
        refuse_changed_plans(Path(filename_or_checkpoint), now)
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
        tensors, network = read_tensors(file, self.initialisation["sha256"]), bare_network(self.network)
        load_into(network, tensors, self.initialisation["left_random"])
        names = [name for name, _ in network.named_parameters()]
        for line in describe_initialisation(self.initialisation, tensors, names):
            self.print_to_log_file(line)

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


def _read_plans(configuration: Mapping[str, Any], plans_name: str) -> tuple[FinetuneRecipe, dict[str, Any] | None]:
    """Recipe and initialisation from our block of a configuration; no initialisation is the control."""
    block = read_block(configuration, "finetune", plans_name)
    recipe = parse(FinetuneRecipe, block["recipe"], source=f"in the plans {plans_name}")
    return recipe, block["initialisation"]


def without_intensity(transforms: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's training transforms but those that change the intensities of the image."""
    return ComposeTransforms([each for each in transforms.transforms if not _changes_intensity(each)])


def _changes_intensity(transform: BasicTransform) -> bool:
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    # batchgeneratorsv2 calls nnU-Net's own for cascades image transforms too: they change labels laid into the image.
    return isinstance(inner, ImageOnlyTransform) and ".transforms.nnunet." not in type(inner).__module__


def _summary(network: nn.Module) -> torch.Tensor:
    """One number a tensor; changes when any weight is replaced."""
    return torch.stack([p.detach().double().abs().sum().cpu() for p in bare_network(network).parameters()])
