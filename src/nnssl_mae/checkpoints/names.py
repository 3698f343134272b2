"""The several names that nnU-Net's networks give a tensor, and the one that we use.

Every convolution block is stored as ``.conv``/``.norm`` and again as ``.all_modules.N``; a decoder with skip
connections stores the whole encoder again below ``decoder.encoder``. The first name is the one without either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from nnssl_mae.backbones import backbone_of

_TWICE = re.compile(r"(.*)\.all_modules\.(\d+)\.(\w+)")
_LAYER = re.compile(r"(.*)\.(conv|norm)\.(\w+)")
_ENCODER_AGAIN = "decoder.encoder."


def one_name(name: str) -> str:
    """The first name of a tensor, whichever of its names is given.

    ``decoder.encoder.stem.convs.0.all_modules.1.bias`` is ``encoder.stem.convs.0.norm.bias``. Names of other parts
    (mask tokens, heads) are returned as they are.
    """
    name = "encoder." + name.removeprefix(_ENCODER_AGAIN) if name.startswith(_ENCODER_AGAIN) else name
    match = _TWICE.fullmatch(name)
    return f"{match[1]}.{'conv' if match[2] == '0' else 'norm'}.{match[3]}" if match else name


def under_one_name(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
    """Each tensor once, under its first name, and how many blocks' tensors were stored twice with different values.

    Where the copies differ ``.all_modules`` is taken: it is the one that the network computes with, and the only one
    that was trained in S3D files. Copies below ``decoder.encoder`` count only where there is no other.
    """
    copies = sorted(weights, key=_trust)  # the most trusted last: it stays
    result = {name: weights[name] for name in dict.fromkeys(map(one_name, weights)) if name in weights}
    differing = 0
    for name in copies:
        first = one_name(name)
        own_copy = name != first and not name.startswith(_ENCODER_AGAIN)
        differing += own_copy and first in weights and not same(weights[first], weights[name])
        result[first] = weights[name]
    return result, differing


def _trust(name: str) -> tuple[bool, bool]:
    return not name.startswith(_ENCODER_AGAIN), ".all_modules." in name


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same values; nan is nan."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.data_ptr() == other.data_ptr() or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def with_aliases(weights: Mapping[str, torch.Tensor], architecture: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor under all names that nnU-Net's network has for it; the copies share their memory.

    Args:
        weights: under any of their names; a first name is added where it is missing.
        architecture: in nnU-Net's form; its operators decide where in a block the normalisation stands. Transformers
            have one name a tensor.
    """
    first, _ = under_one_name(weights)
    if not backbone_of(architecture).is_convolutional:
        return first
    normalisation = _place_of_norm(architecture["arch_kwargs"])
    again = has_skips(first)
    result = dict(first)
    for name, tensor in first.items():
        match = _LAYER.fullmatch(name)
        names = [name]
        if match and name.startswith(("encoder.", "decoder.")):
            names.append(f"{match[1]}.all_modules.{0 if match[2] == 'conv' else normalisation}.{match[3]}")
        if again and name.startswith("encoder."):
            names += [f"decoder.{each}" for each in names]
        result |= dict.fromkeys(names, tensor)
    return result


def _place_of_norm(kwargs: Mapping[str, Any]) -> int:
    """nnU-Net's blocks are convolution, dropout, normalisation, nonlinearity; the last two may be exchanged."""
    return 1 + (kwargs.get("dropout_op") is not None) + bool(kwargs.get("nonlin_first"))


def has_skips(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether there is a decoder whose stages take what comes from below and as much from the skip connection."""
    weight = weights.get("decoder.stages.0.convs.0.conv.weight")
    return weight is not None and weight.ndim > 1 and weight.shape[1] == 2 * weight.shape[0]
