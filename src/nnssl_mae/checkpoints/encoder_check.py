"""Whether the tensors of an encoder are those of the network that a file describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nnssl_mae.checkpoints.names import under_one_name
from nnssl_mae.networks.planned import network_shape
from nnssl_mae.sizes import per_axis


def encoder_differences(
    architecture: Mapping[str, Any], channels: int, weights: Mapping[str, torch.Tensor]
) -> tuple[str, ...]:
    """What is missing, of another shape or has no place in the encoder, in words; nothing if all fits.

    Args:
        architecture: in nnU-Net's form, with ``strides``.
        channels: of the input.
        weights: each under its first name at least.

    Raises:
        UserError: the description does not make a network.
    """
    needed, _ = under_one_name(network_shape(architecture, channels).state_dict())
    needed = {name: tensor for name, tensor in needed.items() if name.startswith("encoder.")}
    given, _ = under_one_name(weights)
    missing = (f"{name} is missing" for name in needed if name not in given)
    other = (
        f"{name} is {tuple(given[name].shape)} and should be {tuple(tensor.shape)}"
        for name, tensor in needed.items()
        if name in given and given[name].shape != tensor.shape
    )
    unknown = (f"{name} has no place" for name in given if name.startswith("encoder.") and name not in needed)
    return (*missing, *other, *unknown)


def stride_differences(architecture: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Where the decoder's transposed convolutions, whose kernels are the strides, tell of others; in words."""
    strides = [per_axis(stride) for stride in _strides(architecture)]
    first, _ = under_one_name(weights)
    found = {
        level: tuple(first[name].shape[2:])
        for level in range(1, len(strides))
        if (name := f"decoder.transpconvs.{len(strides) - 1 - level}.weight") in first
    }
    return tuple(
        f"{kernel} is the stride of stage {level} by its decoder and {strides[level]} by its description"
        for level, kernel in found.items()
        if kernel != strides[level]
    )


def _strides(architecture: Mapping[str, Any]) -> list[Any]:
    return list(architecture["arch_kwargs"].get("strides") or ())


def some(differences: tuple[str, ...]) -> str:
    """The first of them, for a sentence."""
    return "; ".join(differences[:3]) + (f", and {len(differences) - 3} more" if len(differences) > 3 else "")
