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
        UserError: no encoder under nnU-Net's names, or the decoder is wanted and was trained without skip connections.
    """
    _stem(weights)
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


def _stem(weights: Mapping[str, torch.Tensor]) -> str:
    """Name of the first convolution's weight."""
    for name in _STEMS:
        if name in weights:
            return name
    first = next(iter(weights), None)
    found = "it holds no tensors" if first is None else f"its tensors have names such as {first}"
    raise UserError(
        f"The checkpoint has no {' or '.join(_STEMS)} ({found}); save the weights of the network itself, without the "
        "prefix of a wrapper such as 'module.' or '_orig_mod.'"
    )


def widen_stem(tensors: dict[str, torch.Tensor], channels: int) -> list[str]:
    """Adapts the first convolution from one input channel to several, in place: repeated and divided by their number.

    The response to equal channels stays what it was.

    Returns:
        names of the tensors that changed.
    """
    stem = _stem(tensors)
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
        UserError: see :func:`check_fit`; the network is then as it was.
    """
    check_fit(network, tensors)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            # In place: the other names of this tensor are the same memory.
            parameters[name].copy_(tensor)
    return Transfer(loaded=tuple(tensors), random=tuple(name for name in parameters if name not in tensors))


def check_fit(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuses tensors that cannot be put into a network.

    Args:
        network: not wrapped; only names and shapes are looked at, so it may be on the meta device.
        tensors: with values.

    Raises:
        UserError: a tensor has no place, another shape or values that are not finite, or one of the encoder is missing.
    """
    parameters = dict(network.named_parameters())
    problems = [f"{name} has no place in the network" for name in tensors if name not in parameters]
    problems += [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(parameters[name].shape)} in the network"
        for name, tensor in tensors.items()
        if name in parameters and tensor.shape != parameters[name].shape
    ]
    problems += [f"{name} is missing" for name in parameters if name.startswith("encoder.") and name not in tensors]
    problems += [f"{name} holds nan or infinite values" for name, tensor in tensors.items() if not _is_finite(tensor)]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"The pre-trained weights do not fit the network: {'; '.join(problems[:3])}{more}")


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
