"""Which tensors go from a pre-trained network into a new one, and putting them there.

nnU-Net's networks name most tensors several times: every convolution block as ``.conv``/``.norm`` and as
``.all_modules.N``, the whole encoder again below ``decoder.encoder``. Here each tensor has one name, the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from nnssl_mae.errors import UserError

Part = Literal["encoder", "encoder+decoder"]
_STEMS = ("encoder.stem.convs.0.conv.weight", "encoder.stages.0.0.convs.0.conv.weight")  # with and without a stem
_DECODER_PREFIXES = ("decoder.stages.", "decoder.transpconvs.")


@dataclass(frozen=True)
class Transfer:
    """Names of the tensors of the new network: taken over, and left as initialised."""

    loaded: tuple[str, ...]
    random: tuple[str, ...]


def select(weights: Mapping[str, torch.Tensor], part: Part) -> dict[str, torch.Tensor]:
    """The tensors to transfer, each under its one name; the reconstruction head never goes along.

    Raises:
        UserError: the decoder is wanted and the checkpoint was trained without skip connections.
    """
    if part == "encoder+decoder" and not _has_skips(weights):
        raise UserError(
            "The checkpoint's decoder was trained without skip connections and fits no nnU-Net; use --transfer encoder"
        )
    prefixes = ("encoder.",) if part == "encoder" else ("encoder.", *_DECODER_PREFIXES)
    return {
        name: tensor.detach().clone().contiguous()
        for name, tensor in weights.items()
        if name.startswith(prefixes) and ".all_modules." not in name
    }


def _has_skips(weights: Mapping[str, torch.Tensor]) -> bool:
    """nnU-Net's decoder stages take twice the channels that they give: from below and from the skip."""
    weight = weights.get("decoder.stages.0.convs.0.conv.weight")
    return weight is not None and weight.shape[1] == 2 * weight.shape[0]


def widen_stem(tensors: dict[str, torch.Tensor], channels: int) -> list[str]:
    """Adapts the first convolution from one input channel to several, in place: repeated and divided by their number.

    The response to equal channels stays what it was.

    Returns:
        names of the tensors that changed.
    """
    stem = next(name for name in _STEMS if name in tensors)
    weight = tensors[stem]
    if weight.shape[1] == channels:
        return []
    if weight.shape[1] != 1:
        raise UserError(
            f"The checkpoint takes {weight.shape[1]} input channels and the dataset has {channels}; only checkpoints "
            "with one channel can be adapted to another number"
        )
    tensors[stem] = weight.repeat(1, channels, *[1] * (weight.ndim - 2)) / channels
    return [stem]


def load_into(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Transfer:
    """Copies tensors into a network (not wrapped).

    Raises:
        UserError: a tensor has no place or another shape, or a tensor of the encoder is missing.
    """
    parameters = dict(network.named_parameters())
    problems = [f"{name} has no place in the network" for name in tensors if name not in parameters]
    problems += [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(parameters[name].shape)} in the network"
        for name, tensor in tensors.items()
        if name in parameters and tensor.shape != parameters[name].shape
    ]
    problems += [f"{name} is missing" for name in parameters if name.startswith("encoder.") and name not in tensors]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"The pre-trained weights do not fit the network: {'; '.join(problems[:3])}{more}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            # In place: the other names of this tensor are the same memory.
            parameters[name].copy_(tensor)
    return Transfer(loaded=tuple(tensors), random=tuple(name for name in parameters if name not in tensors))
