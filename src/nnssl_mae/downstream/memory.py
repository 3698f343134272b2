"""GPU memory of a fine-tuning by nnU-Net's own estimate, and sizes that fit it.

nnU-Net's planners count the values of all convolutions' feature maps for one patch and compare with the count of a
network whose memory is known. Nothing is run: networks are built on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nnssl_mae.backbones import BACKBONES, short_name
from nnssl_mae.downstream.network import SizedNetwork
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import network_shape
from nnssl_mae.sizes import sizes_in_words

SMALLEST_EDGE = 8
"""Voxels; patches are not shrunk below, or below two voxels at the lowest resolution."""
DEFAULT_BATCH = 2
_REFERENCE_BATCH = 2
# A batch shows at most so much of all voxels of the dataset: nnU-Net's ResEnc planners, and its default one.
_SHARE_OF_DATASET = {"resenc": 1.0, "plain": 0.05}
# From nnU-Net's planners ResEnc M, L and XL, and default: feature map values, and the GB they need with a batch of two.
_REFERENCES = {
    "resenc": ((680e6, 8.0), (2.1e9, 24.0), (3.6e9, 40.0)),
    "plain": ((560e6, 8.0),),
}


def _name(architecture: Mapping[str, Any]) -> str:
    """Of the backbone; empty for a network of somebody else."""
    found = (each.name for each in BACKBONES.values() if each.network_class == architecture["network_class_name"])
    return next(found, "")


def feature_map_values(architecture: Mapping[str, Any], channels: int, heads: int, patch: Sequence[int]) -> int | None:
    """Values of all convolutions' feature maps for one patch, as nnU-Net counts them; None for unknown networks.

    A network that pools by maximum is counted as the strided one with the same sizes: nnU-Net's count takes its
    feature maps for as large as before the pooling.
    """
    if _name(architecture) == "amaes_unet":
        architecture = {**architecture, "network_class_name": BACKBONES["plain"].network_class}
    if _name(architecture) not in _REFERENCES:
        return None
    return int(network_shape(architecture, channels, heads).compute_conv_feature_map_size(tuple(patch)))  # type: ignore[operator]


def gpu_memory(
    architecture: Mapping[str, Any], channels: int, heads: int, patch: Sequence[int], batch: int
) -> float | None:
    """GB that training needs by nnU-Net's estimate; None for networks that it does not know.

    Args:
        architecture: as in nnU-Net's plans.
        channels: of the input.
        heads: channels of the output.
        patch: voxels.
        batch: patches a step on this GPU.
    """
    values = feature_map_values(architecture, channels, heads, patch)
    if values is None:
        return None
    known = _REFERENCES.get(_name(architecture), _REFERENCES["plain"])
    return _gigabytes(values * batch / _REFERENCE_BATCH, known)


def _gigabytes(values: float, known: Sequence[tuple[float, float]]) -> float:
    """Between two planners' references along the line that joins them, outside in proportion to the nearest."""
    first, last = known[0], known[-1]
    if values <= first[0]:
        return values / first[0] * first[1]
    if values >= last[0]:
        return values / last[0] * last[1]
    counts, gigabytes = zip(*known, strict=True)
    return float(np.interp(values, counts, gigabytes))


@dataclass(frozen=True)
class Size:
    """What one training step holds."""

    network: SizedNetwork
    batch: int


@dataclass(frozen=True)
class Fitting:
    """Everything that decides about patch and batch.

    ``network_for`` gives the network for a patch, and a patch that it takes; ``median_shape`` is that of the
    preprocessed cases in voxels, ``cases`` their number.
    """

    network_for: Callable[[Sequence[int]], SizedNetwork]
    channels: int
    heads: int
    median_shape: Sequence[float]
    cases: int
    gigabytes: float

    def size(self, start: SizedNetwork, patch_is_fixed: bool, batch: int | None) -> Size:
        """The largest that fits: first a batch of two, then smaller patches as nnU-Net's planner makes them.

        Where the whole patch fits, the batch grows, to no more voxels than nnU-Net's planner of such networks allows.

        Args:
            start: the patch to begin with.
            patch_is_fixed: the user asked for it.
            batch: what the user asked for, or None.

        Raises:
            UserError: nothing fits, or the network's memory is not known; with what is needed.
        """
        size = Size(start, DEFAULT_BATCH if batch is None else batch)
        while not self._fits(size):
            smaller = None if patch_is_fixed else self._smaller(size.network)
            if smaller is None:
                raise self._too_little(size, patch_is_fixed, batch)
            size = replace(size, network=smaller)
        return size if batch is not None else self._with_more_patches(size)

    def _needs(self, size: Size) -> float:
        network = size.network
        needed = gpu_memory(network.architecture, self.channels, self.heads, network.patch, size.batch)
        if needed is None:
            name = short_name(network.architecture["network_class_name"])
            raise UserError(f"nnU-Net cannot tell the memory of a {name}; leave --gpu-memory out and give --patch")
        return needed

    def _fits(self, size: Size) -> bool:
        return self._needs(size) <= self.gigabytes

    def _with_more_patches(self, size: Size) -> Size:
        voxels = math.prod(self.median_shape) * self.cases
        share = _SHARE_OF_DATASET.get(_name(size.network.architecture), 0.05)
        most = max(DEFAULT_BATCH, round(voxels * share / math.prod(size.network.patch)))
        while size.batch < most and self._fits(larger := replace(size, batch=size.batch + 1)):
            size = larger
        return size

    def _smaller(self, network: SizedNetwork) -> SizedNetwork | None:
        """The next smaller patch: shorter along the axis that is largest for the dataset; None at the end."""
        relative = [edge / median for edge, median in zip(network.patch, self.median_shape, strict=True)]
        # Of equals the last, as nnU-Net's planner: its thick slices lie along the first axis.
        for axis in sorted(range(len(relative)), key=lambda axis: (-relative[axis], -axis)):
            smaller = self._shorter(network, axis)
            if smaller is not None:
                return smaller
        return None

    def _shorter(self, network: SizedNetwork, axis: int) -> SizedNetwork | None:
        shorter = list(network.patch)
        shorter[axis] -= network.divisors[axis]
        if shorter[axis] < SMALLEST_EDGE or math.prod(shorter) <= math.prod(network.divisors):
            return None
        # With fewer stages for the shorter patch a smaller step may do: 224 follows 256, not 192.
        step = self.network_for(shorter).divisors[axis]
        shorter[axis] = network.patch[axis] - step
        found = self.network_for(shorter)
        if found.patch[axis] >= network.patch[axis] or found.patch[axis] < 2 * found.divisors[axis]:
            return None
        return found

    def _too_little(self, size: Size, patch_is_fixed: bool, batch: int | None) -> UserError:
        patch = sizes_in_words(size.network.patch)
        asked = "" if patch_is_fixed else "the smallest, "
        remedy = "" if batch == 1 else f"; with --batch 1, {self._needs(replace(size, batch=1)):.2g} GB"
        remedy += "; or a smaller --patch" if patch_is_fixed else ""
        return UserError(
            f"{self.gigabytes:g} GB of GPU memory are too little: a patch of {asked}{patch} voxels with a batch of "
            f"{size.batch} needs at least {self._needs(size):.2g} GB by nnU-Net's estimate{remedy}"
        )
