"""What both trainers change in the stock one: one head unless told otherwise, runs that can end early, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnssl_mae.doctor.findings import TESTED_NNUNET, judge_nnunet
from nnssl_mae.errors import UserError
from nnssl_mae.networks.heads import freeze_unused_heads
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.training.sentences import show_user_errors_as_sentences


def resolved_configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration of plans with what it inherits from others."""
    return dict(PlansManager(dict(plans)).get_configuration(name).configuration)


def untried_nnunet() -> str | None:
    """What ``nnssl-mae doctor`` says against the installed nnU-Net, in one line; None if nothing."""
    try:
        version = metadata.version("nnunetv2")
    except metadata.PackageNotFoundError:  # its sources on the path, not installed
        return f"nnunetv2 does not say its version (tested: {', '.join(TESTED_NNUNET)})"
    finding = judge_nnunet(version)
    return None if finding.level == "ok" else f"nnunetv2 {version}: {' '.join(finding.advice.split())}"


class _StoppedEarly(Exception):
    """Leaves nnU-Net's training loop, which has no other way out."""


class OneHeadTrainer(nnUNetTrainer):
    """Stock nnU-Net training of the stock network; subclasses say whether with deep supervision."""

    way_out = ""
    """What else a user can do whose configuration is refused, for the end of the sentence."""

    # nnU-Net records the arguments by these names.
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        show_user_errors_as_sentences()
        self.check_plans(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        # At the start, so that it stands in the log before anything can break.
        if (warning := untried_nnunet()) is not None:
            self.print_to_log_file(f"WARNING: {warning}")

    def check_plans(self, plans: Mapping[str, Any], configuration: str) -> None:
        """Refuses what this trainer cannot train, before anything is written.

        Raises:
            UserError: the configuration is 2D or the second stage of a cascade, or the plans have none of this name.
        """
        known = plans["configurations"]
        planned = configuration in known
        wanted = resolved_configuration(plans, configuration) if planned else {}
        # Our plans hold neither nnU-Net's 2D configuration nor its cascade, so their names are looked at too.
        is_2d = len(wanted["patch_size"]) == 2 if planned else configuration == "2d"
        is_cascade = wanted.get("previous_stage") is not None if planned else "cascade" in configuration
        if is_2d:
            problem = f"{configuration} is a 2D configuration, and the pre-trained networks are 3D"
        elif is_cascade:
            problem = f"{configuration} is a stage of a cascade, which takes labels as input; pre-training had none"
        elif not planned:
            problem = (
                f"The plans '{plans['plans_name']}' hold no configuration {configuration}, only {', '.join(known)}"
            )
        else:
            return
        instead = CONFIGURATION if CONFIGURATION in known else f"{CONFIGURATION} and plans that nnssl-mae wrote"
        raise UserError(f"{problem}; use {instead}{self.way_out}")

    def stop_early(self) -> bool:
        """Whether the run should end now; asked before every epoch but the first, in every process.

        Answer from the logged values of finished epochs alone: they are equal in all processes and survive a resume,
        so no process goes on alone, and a continued run stops where it stopped before.
        """
        return False

    def run_training(self) -> None:
        """As stock, with a way to end early; the final checkpoint is written then too."""
        try:
            super().run_training()
        except _StoppedEarly:
            self.print_to_log_file(
                f"Stopped early after {self.current_epoch} of {self.num_epochs} epochs: no new best for as many "
                "epochs as the recipe's 'patience' allows."
            )
            self.on_train_end()

    def on_epoch_start(self) -> None:
        """As stock, unless the run should end. Asked here, not at an epoch's end: a continued run must ask first."""
        if self.current_epoch > 0 and self.stop_early():
            raise _StoppedEarly
        super().on_epoch_start()

    @staticmethod
    def build_network_architecture(  # stock looks at the names of these arguments
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """The stock network; without deep supervision only the last of its heads gets gradients."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return network if enable_deep_supervision else freeze_unused_heads(network)

    def plot_network_architecture(self) -> None:
        """Nothing: stock needs a package that no longer works and prints an error instead."""
