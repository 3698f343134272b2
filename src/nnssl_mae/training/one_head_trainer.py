"""What both trainers change in the stock one: a single head (no deep supervision), and runs that can end early."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnssl_mae.networks.heads import freeze_unused_heads


class _StoppedEarly(Exception):
    """Leaves nnU-Net's training loop, which has no other way out."""


class OneHeadTrainer(nnUNetTrainer):
    """Stock nnU-Net training of the stock network without deep supervision; subclasses switch it off."""

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
        """The stock network, of whose heads only the last gets gradients."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return freeze_unused_heads(network)

    def plot_network_architecture(self) -> None:
        """Nothing: stock needs a package that no longer works and prints an error instead."""
