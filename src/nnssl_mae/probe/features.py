"""How the stages of an encoder use their channels, at sampled places of head or body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nnssl_mae.patches.augmentation import crop
from nnssl_mae.probe.collapse import Use, use_of
from nnssl_mae.probe.encoders import Extractor
from nnssl_mae.probe.tiles import Corner, corners, inside
from nnssl_mae.probe.volumes import ProbeScan

PATCHES_A_SCAN = 2
POSITIONS_A_PATCH = 512


@dataclass(frozen=True)
class Patch:
    """A patch and where in it places are looked at."""

    voxels: torch.Tensor
    """(D, H, W), zero outside of the volume."""
    body: torch.Tensor
    """bool (D, H, W), True = head or body."""
    seed: tuple[int, ...]
    """Of the places that are sampled, for every encoder the same."""


def patches_of(scan: ProbeScan, patch: Sequence[int], seed: tuple[int, ...]) -> list[Patch]:
    """The patches of a scan that are nearest to its centre."""
    found = corners(scan.volume.shape, patch, PATCHES_A_SCAN)
    return [_patch(scan, patch, corner, (*seed, number)) for number, corner in enumerate(found)]


def _patch(scan: ProbeScan, patch: Sequence[int], corner: Corner, seed: tuple[int, ...]) -> Patch:
    body = np.zeros(tuple(patch), bool)
    of_volume, of_patch = inside(scan.volume.shape, patch, corner)
    body[of_patch] = scan.body[of_volume]
    return Patch(voxels_of(scan, patch, corner), torch.from_numpy(body), seed)


def voxels_of(scan: ProbeScan, patch: Sequence[int], corner: Corner) -> torch.Tensor:
    """A patch (D, H, W) of a scan as the network is given it: zero where the volume ends."""
    return crop(scan.volume[None], corner, patch)[0]


def use_of_stages(extract: Extractor, patches: Sequence[Patch]) -> list[Use]:
    """One :class:`Use` for each stage, highest resolution first, over all patches together."""
    sampled: list[list[NDArray[np.float32]]] = []
    for patch in patches:
        for stage, features in enumerate(extract(patch.voxels)):
            if stage == len(sampled):
                sampled.append([])
            sampled[stage].append(_at_places(features, patch))
    return [use_of(np.concatenate(stage)) for stage in sampled]


def _at_places(features: torch.Tensor, patch: Patch) -> NDArray[np.float32]:
    """Features (positions, channels) of a stage (channels, d, h, w) at places that are mostly head or body."""
    depth, height, width = features.shape[1:]
    share = torch.nn.functional.adaptive_avg_pool3d(patch.body[None].float(), (depth, height, width))
    places = np.flatnonzero(share.numpy().ravel() >= 0.5)
    if len(places) < 2:
        places = np.arange(share.numel())
    rng = np.random.default_rng(np.random.SeedSequence([*patch.seed, share.numel()]))
    chosen = np.sort(rng.permutation(places)[:POSITIONS_A_PATCH])
    return np.asarray(features.flatten(1)[:, torch.from_numpy(chosen)].T.numpy())
