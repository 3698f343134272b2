"""Reconstruction against the share that is hidden, beside fillings that learnt nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.reconstruct import (
    Hiding,
    Reconstruction,
    blocks_are_given,
    choose_hiding,
    load_network,
    reconstruct,
)
from nnssl_mae.networks.pretraining import PretrainingNetwork
from nnssl_mae.probe.baselines import BASELINES, MEAN, at_voxels, fillings, with_given_blocks
from nnssl_mae.probe.tiles import inside
from nnssl_mae.probe.volumes import ProbeScan

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NETWORK = "network"
_SMALLEST_ERROR = 1e-12

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class AtRatio:
    """How well hidden blocks were filled at one ratio: for the network and each baseline, one number a scan.

    ``r2`` is against the mean of the visible voxels, or, where blocks are given, against the true mean of each block.
    NaN where a scan shows nothing, because its hidden blocks lie outside or do not vary.
    """

    ratio: float
    r2: Mapping[str, Numbers]
    psnr: Mapping[str, Numbers]
    """dB, against the 0.5 to 99.5 percentile range of the whole volume."""

    def mean_r2(self, name: str) -> float:
        """Over scans; NaN if none counts."""
        return _mean(self.r2[name])

    def mean_psnr(self, name: str) -> float:
        """Over scans; NaN if none counts."""
        return _mean(self.psnr[name])

    @property
    def best_baseline(self) -> str:
        """The one with the largest mean R2."""
        return max(BASELINES, key=lambda name: np.nan_to_num(self.mean_r2(name), nan=-np.inf))

    @property
    def wins(self) -> float:
        """Share of the scans on which the network is better than the best baseline of that scan; NaN without any."""
        best = np.max([self.r2[name] for name in BASELINES], axis=0)
        there = np.isfinite(best) & np.isfinite(self.r2[NETWORK])
        return float((self.r2[NETWORK] > best)[there].mean()) if there.any() else float("nan")


@dataclass(frozen=True)
class Reconstructions:
    """Part one of a probe."""

    at: tuple[AtRatio, ...]
    trained_ratio: float
    block_edge: int
    blocks_are_given: bool
    """The network was told brightness and contrast of each hidden block, and so were the baselines."""

    @property
    def as_trained(self) -> AtRatio:
        """The ratio of the pre-training; of a range, its middle."""
        return min(self.at, key=lambda each: abs(each.ratio - self.trained_ratio))


def reconstructing(checkpoint: Checkpoint) -> PretrainingNetwork | str:
    """The network that reconstructs, on the CPU, or the reason why there is none."""
    if checkpoint.reconstruction is None:
        return checkpoint.cannot_reconstruct or "its recipe is not known"
    try:
        return load_network(checkpoint, Path(checkpoint.origin.label))
    except UserError as error:
        return str(error)


def reconstructions(
    network: PretrainingNetwork,
    checkpoint: Checkpoint,
    scans: Sequence[ProbeScan],
    ratios: Sequence[float],
    seed: int,
    device: torch.device,
) -> Iterator[Reconstructions | None]:
    """Fills hidden blocks of the centre patch of each scan. Yields None after each scan, and the result at the end.

    A scan's draw depends on the seed and its place only; what is hidden at a ratio stays hidden at all larger ones.

    Args:
        network: from :func:`reconstructing`.
        checkpoint: it comes from.
        scans: at least one.
        ratios: shares of the blocks to hide, beside that of the pre-training.
        seed: of the draws.
        device: where to compute; the network is moved there.

    Raises:
        UserError: too little of a scan can be hidden.
    """
    network = network.to(device)
    usual = choose_hiding(checkpoint, Path(checkpoint.origin.label), None, seed, None)
    given = blocks_are_given(checkpoint)
    ratios = sorted({*ratios, usual.ratio})
    errors = []
    for place, scan in enumerate(scans):
        draw = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
        hidings = [replace(usual, ratio=ratio, seed=draw) for ratio in ratios]
        errors.append([_scores(_reconstructed(network, checkpoint, scan, h, device), scan, given) for h in hidings])
        yield None
    at = tuple(_at_ratio(ratio, [of_scan[n] for of_scan in errors]) for n, ratio in enumerate(ratios))
    yield Reconstructions(at, usual.ratio, usual.block_size, given)


def _reconstructed(
    network: PretrainingNetwork, checkpoint: Checkpoint, scan: ProbeScan, hiding: Hiding, device: torch.device
) -> Reconstruction:
    try:
        return reconstruct(network, checkpoint, scan.scan, hiding, device)
    except ValueError as error:
        raise UserError(f"{scan.name} cannot be reconstructed: {error}; leave it out") from error


Scores = dict[str, tuple[float, float]]
"""R2 and PSNR by name."""


def _scores(result: Reconstruction, scan: ProbeScan, given: bool) -> Scores:
    """Of the network and of each baseline, over hidden voxels that count."""
    patch = result.original.shape
    of_volume, of_patch = inside(scan.volume.shape, patch, result.corner)
    counted = np.zeros(patch, bool)
    counted[of_patch] = scan.counted[of_volume]
    hidden = result.hidden[tuple(slice(None, None, edge) for edge in result.blocks)]
    looked_at = at_voxels(hidden, patch) & counted
    try:
        filled = fillings(result.original, hidden, counted)
    except ValueError:  # the visible blocks all lie in padding or in what is excluded
        return dict.fromkeys((NETWORK, *BASELINES), (np.nan, np.nan))
    if given:
        filled = {name: with_given_blocks(each, result.original, hidden, counted) for name, each in filled.items()}
    low, high = np.percentile(scan.volume, (0.5, 99.5))
    errors = {name: _error(each, result.original, looked_at) for name, each in filled.items()}
    errors[NETWORK] = _error(result.output, result.original, looked_at)
    reference = errors[MEAN]
    return {name: (_r2(error, reference), _psnr(error, high - low)) for name, error in errors.items()}


def _error(filled: NDArray[np.float32], truth: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
    difference = filled[where].astype(np.float64) - truth[where]
    return float(np.square(difference).mean()) if where.any() else float("nan")


def _r2(error: float, reference: float) -> float:
    """NaN where nothing varies: there is nothing to explain."""
    return 1 - error / reference if reference > _SMALLEST_ERROR else float("nan")


def _psnr(error: float, data_range: float) -> float:
    return float(10 * np.log10(max(data_range**2, _SMALLEST_ERROR) / max(error, _SMALLEST_ERROR)))


def _at_ratio(ratio: float, scores: Sequence[Scores]) -> AtRatio:
    names = (NETWORK, *BASELINES)
    r2, psnr = ({name: np.array([each[name][which] for each in scores]) for name in names} for which in (0, 1))
    return AtRatio(ratio, r2, psnr)


def _mean(values: Numbers) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")
