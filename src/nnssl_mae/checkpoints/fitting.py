"""One tensor of a pre-trained network brought to the shape that it has in a new one.

Every rule keeps a response: to equal input channels, to what does not vary along an axis, or to everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from nnssl_mae.errors import UserError
from nnssl_mae.sizes import sizes_in_words

Kind = Literal["first convolution", "convolution", "transposed convolution", "position", "vector"]
ChannelMap = Sequence[int | None]


@dataclass(frozen=True)
class Fitted:
    """A tensor of the wanted shape, and in words what was done to it; nothing was where ``how`` is empty."""

    tensor: torch.Tensor
    how: str


def fit(tensor: torch.Tensor, shape: Sequence[int], kind: Kind, channel_map: ChannelMap | None = None) -> Fitted | None:
    """The tensor in another shape, or None where no rule leads there.

    Args:
        tensor: of the checkpoint. Convolutions are (out, in, kernel...), transposed ones (in, out, kernel...), position
            embeddings (1, C, tokens...).
        shape: in the new network.
        kind: what the tensor is; only the first convolution's input channels can be changed.
        channel_map: see :func:`fit_channels`; it counts for the first convolution only.

    Returns:
        a tensor of its own with the data type of ``tensor``.
    """
    if len(shape) != tensor.ndim:
        return None
    widened = Fitted(tensor.detach(), "")
    if kind == "position":
        widened = fit_position(widened.tensor, shape[2:])
    if kind == "first convolution":
        widened = fit_channels(widened.tensor, shape[1], channel_map)
    resized: Fitted | None = Fitted(widened.tensor, "")
    if kind not in ("vector", "position"):
        resize = fit_transposed_kernel if kind == "transposed convolution" else fit_kernel
        resized = resize(widened.tensor, shape[2:])
    if resized is None or tuple(resized.tensor.shape) != tuple(shape):
        return None
    how = "; ".join(filter(None, [widened.how, resized.how]))
    return Fitted(resized.tensor.clone(memory_format=torch.contiguous_format), how)


def fit_channels(weight: torch.Tensor, channels: int, channel_map: ChannelMap | None = None) -> Fitted:
    """Another number of input channels for a convolution (out, in, kernel...).

    Without a map, each new channel gets the sum over the old ones divided by the new number, so the response to equal
    channels stays. With a map, new channel i takes old channel ``channel_map[i]``, divided by how many take it; None
    starts at zero: it changes nothing at first, and learns.
    """
    old = weight.shape[1]
    if channel_map is None:
        if old == channels:
            return Fitted(weight, "")
        mean = weight.double().sum(dim=1, keepdim=True) / channels
        parts = mean.expand(-1, channels, *weight.shape[2:])
        return Fitted(parts.to(weight.dtype), _channels_in_words(old, channels))
    if list(channel_map) == list(range(old)):
        return Fitted(weight, "")
    taken = list(channel_map)
    new = torch.zeros(weight.shape[0], channels, *weight.shape[2:], dtype=torch.float64)
    for channel, source in enumerate(taken):
        if source is not None:
            new[:, channel] = weight[:, source].double() / taken.count(source)
    return Fitted(new.to(weight.dtype), f"input channels by the map {map_in_words(taken)}")


def fit_position(embedding: torch.Tensor, tokens: Sequence[int]) -> Fitted:
    """A learned position embedding (1, C, d, h, w) for another grid of tokens, by trilinear interpolation."""
    old = embedding.shape[2:]
    if tuple(old) == tuple(tokens):
        return Fitted(embedding, "")
    new = F.interpolate(embedding.double(), tuple(tokens), mode="trilinear", align_corners=False)
    how = f"positions of {sizes_in_words(old)} tokens interpolated to {sizes_in_words(tokens)}"
    return Fitted(new.to(embedding.dtype), how)


def _channels_in_words(old: int, new: int) -> str:
    steps = ["summed"] if old > 1 else []
    steps += ["repeated"] if new > 1 else []
    steps = [", ".join(steps)] + ([f"divided by {new}"] if new > 1 else [])
    return f"{old} input channel{'s' if old > 1 else ''} to {new}: {' and '.join(steps)}"


def map_in_words(channel_map: ChannelMap) -> str:
    """As a person types it: ``0 0 1 -``."""
    return " ".join("-" if source is None else str(source) for source in channel_map)


def check_channel_map(channel_map: ChannelMap, old: int, new: int) -> None:
    """Refuses a map that does not say for each of ``new`` channels which of ``old`` ones it takes.

    Raises:
        UserError: another number of entries, a channel that is not there, or no channel taken at all.
    """
    words = map_in_words(channel_map)
    if len(channel_map) != new:
        raise UserError(
            f"The channel map '{words}' has {len(channel_map)} entries and the dataset {new} channels; give one entry "
            "for each channel of the dataset"
        )
    wrong = [source for source in channel_map if source is not None and not 0 <= source < old]
    if wrong:
        raise UserError(
            f"The channel map '{words}' takes channel {wrong[0]}, and the checkpoint has {old} channel"
            f"{'s' if old > 1 else ''}; its channels are counted from 0 to {old - 1}"
        )
    if all(source is None for source in channel_map):
        raise UserError(f"The channel map '{words}' takes no channel of the checkpoint; name at least one")


def fit_kernel(weight: torch.Tensor, kernel: Sequence[int]) -> Fitted | None:
    """Another kernel for a convolution (out, in, kernel...), axis by axis; None where even sizes differ.

    A smaller odd kernel gets the outer taps folded onto its border (to size 1: the sum of all taps), so the response to
    what does not vary along the axis stays. A larger odd kernel has the old one in its centre and zeros around: the
    response stays.
    """
    old = weight.shape[2:]
    if any(size != wanted and (size % 2 == 0 or wanted % 2 == 0) for size, wanted in zip(old, kernel, strict=True)):
        return None
    if tuple(old) == tuple(kernel):
        return Fitted(weight, "")
    new = weight.double()
    for axis, (size, wanted) in enumerate(zip(old, kernel, strict=True), start=2):
        # Where each old tap goes: the same distance from the centre, at most to the border.
        places = torch.arange(size) + (wanted - size) // 2
        empty = torch.zeros(*new.shape[:axis], wanted, *new.shape[axis + 1 :], dtype=new.dtype)
        new = empty.index_add(axis, places.clamp(0, wanted - 1), new)
    folded = any(wanted < size for size, wanted in zip(old, kernel, strict=True))
    grown = any(wanted > size for size, wanted in zip(old, kernel, strict=True))
    steps = ["outer taps added to the border"] if folded else []
    steps += ["zeros around"] if grown else []
    return Fitted(new.to(weight.dtype), f"kernel {sizes_in_words(old)} to {sizes_in_words(kernel)}: {', '.join(steps)}")


def fit_transposed_kernel(weight: torch.Tensor, kernel: Sequence[int]) -> Fitted | None:
    """Another kernel for a transposed convolution (in, out, kernel...) whose stride is its kernel; None without a rule.

    Towards size 1 the taps are averaged: the new feature map is the old one averaged over what it no longer tells
    apart. From size 1 they are repeated: the new feature map is the old one, each value several times.
    """
    old = weight.shape[2:]
    if any(size != wanted and 1 not in (size, wanted) for size, wanted in zip(old, kernel, strict=True)):
        return None
    if tuple(old) == tuple(kernel):
        return Fitted(weight, "")
    averaged = [axis for axis, wanted in enumerate(kernel, start=2) if wanted == 1]
    new = weight.double().mean(dim=averaged, keepdim=True) if averaged else weight.double()
    new = new.expand(*weight.shape[:2], *kernel).to(weight.dtype)
    steps = ["taps averaged"] if any(wanted < size for size, wanted in zip(old, kernel, strict=True)) else []
    steps += ["taps repeated"] if any(wanted > size for size, wanted in zip(old, kernel, strict=True)) else []
    return Fitted(new, f"upsampling {sizes_in_words(old)} to {sizes_in_words(kernel)}: {', '.join(steps)}")
