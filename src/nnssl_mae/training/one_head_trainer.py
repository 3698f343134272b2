"""What both trainers change in the stock one: deep supervision is off, so a single head is trained."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnssl_mae.networks.heads import freeze_unused_heads


class OneHeadTrainer(nnUNetTrainer):
    """Stock nnU-Net training of the stock network without deep supervision; subclasses switch it off."""

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
