"""Networks from their description in nnU-Net's plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnssl_mae.errors import UserError

_CANNOT_BUILD = (TypeError, ValueError, AssertionError, AttributeError, KeyError, IndexError, RuntimeError)


def planned_network(
    architecture: Mapping[str, Any], channels: int, heads: int, initialise: bool = True, deep_supervision: bool = False
) -> nn.Module:
    """The network of plans, on the default device.

    Args:
        architecture: ``network_class_name``, ``arch_kwargs`` and ``_kw_requires_import`` as in nnU-Net's plans.
        channels: of the input.
        heads: channels of the output.
        initialise: draw the weights as nnU-Net does.
        deep_supervision: whether it returns a list, largest first.
    """
    network: nn.Module = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        channels,
        heads,
        allow_init=initialise,
        deep_supervision=deep_supervision,
    )
    return network


def network_shape(architecture: Mapping[str, Any], channels: int, heads: int = 2) -> nn.Module:
    """The network of plans on the meta device: names and shapes without memory for weights.

    Raises:
        UserError: the description does not make a network.
    """
    try:
        with torch.device("meta"):
            return planned_network(architecture, channels, heads, initialise=False)
    except _CANNOT_BUILD as error:
        raise UserError(
            f"The checkpoint describes a network that cannot be built ({error}); use one whose description is whole"
        ) from error
