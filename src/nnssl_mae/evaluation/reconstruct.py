"""From a checkpoint and a scan to a reconstruction of hidden blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from torch import nn

from nnssl_mae.backbones import divisors
from nnssl_mae.catalogue.find import Scan
from nnssl_mae.checkpoints.describe import Checkpoint, ReconstructionInfo
from nnssl_mae.checkpoints.nnssl_s3d import ReleasedS3DNetwork
from nnssl_mae.errors import UserError
from nnssl_mae.masking import as_blocks, block_edges, eligible_blocks, hidden_voxels, sample_hidden
from nnssl_mae.networks.pretraining import PretrainingNetwork, pretraining_network
from nnssl_mae.objectives import denormalise_blocks, reconstruction_metrics
from nnssl_mae.patches.augmentation import crop
from nnssl_mae.scans.foreground import foreground_mask
from nnssl_mae.scans.preprocess import Preprocessed, preprocess
from nnssl_mae.sizes import are_multiples

Volume = NDArray[np.float32]
_CONFIGURATION = "pretraining"
GIVEN_BLOCKS = "brightness and contrast of each block are the true ones: this recipe does not predict them"


@dataclass(frozen=True)
class Hiding:
    """What to hide: share of the blocks, edge of the blocks in voxels, seed of the draw; air too, or body only."""

    ratio: float
    block_size: int
    seed: int
    foreground_only: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """One patch; arrays (Z, Y, X) in the axis order of the plans, in the units of the preprocessed volume."""

    original: Volume
    hidden_input: Volume
    output: Volume
    """What the network gave, everywhere; only hidden voxels were asked for."""
    hidden: NDArray[np.bool_]
    """True = hidden."""
    excluded: NDArray[np.bool_]
    """True = padding, or an excluded region: never counts."""
    blocks: tuple[int, ...]
    """Edges of the blocks in voxels."""
    corner: tuple[int, ...]
    """First voxel of the patch in the volume; negative where the volume is smaller."""
    metrics: dict[str, float]
    """``psnr`` in dB, ``ssim``, ``r2`` over hidden voxels inside the volume that are not excluded.

    Where the true mean of each block is given (:func:`blocks_are_given`), ``r2`` is against these means.
    """

    @property
    def combined(self) -> Volume:
        """The original where it was visible, the network's output where not."""
        return np.where(self.hidden, self.output, self.original)


def reconstruction_info(checkpoint: Checkpoint, path: Path) -> ReconstructionInfo:
    """What the checkpoint says about reconstructing.

    Raises:
        UserError: the file cannot reconstruct single scans; the sentence says why.
    """
    if checkpoint.reconstruction is None:
        reason = checkpoint.cannot_reconstruct or "its recipe is not known"
        raise UserError(f"{path} cannot reconstruct: {reason}; it can still be fine-tuned with `nnssl-mae adapt`")
    if checkpoint.channels != 1:
        raise UserError(f"{path} takes {checkpoint.channels} channels; a preview is made of single scans")
    return checkpoint.reconstruction


def blocks_are_given(checkpoint: Checkpoint) -> bool:
    """Whether the network learnt normalised blocks, so that their true mean and spread are put in for people to see."""
    return checkpoint.reconstruction is not None and checkpoint.reconstruction.target_normalisation == "block"


def choose_hiding(checkpoint: Checkpoint, path: Path, ratio: float | None, seed: int, block_size: int | None) -> Hiding:
    """What to hide: as asked for, or as in pre-training where None; of a range of ratios, the middle.

    Raises:
        UserError: an impossible number.
    """
    masking, patch = reconstruction_info(checkpoint, path).masking, checkpoint.data["patch_size"]
    ratio = float(np.mean(masking.ratio)) if ratio is None else ratio
    size = masking.block_size if block_size is None else block_size
    if not 0 < ratio < 1:
        raise UserError(f"--ratio {ratio:g} is not possible; give a share between 0 and 1, such as 0.75")
    if seed < 0:
        raise UserError(f"--seed {seed} is not possible; give 0 or a positive whole number")
    if not 1 <= size <= max(patch) // 2:
        raise UserError(f"--block-size {size} is not possible in a patch of {patch}; give 1 to {max(patch) // 2}")
    return Hiding(ratio, size, seed, foreground_only=masking.region == "foreground")


def load_network(checkpoint: Checkpoint, path: Path) -> PretrainingNetwork:
    """The pre-trained network in evaluation mode, on the CPU, with every tensor of the file in its place.

    Raises:
        UserError: the file has other tensors than the network it describes.
    """
    info = reconstruction_info(checkpoint, path)
    _check_patch(checkpoint, path)
    try:
        network = pretraining_network(
            checkpoint.architecture, checkpoint.channels, info.network, info.masking.hidden_value
        )
    except (TypeError, ValueError, AssertionError, AttributeError, KeyError, IndexError) as error:
        raise UserError(f"{path} describes a network that cannot be built ({error})") from error
    if info.released_s3d:
        network = ReleasedS3DNetwork(network.encoder, network.decoder, checkpoint.channels, info.network, "zero")
    try:
        network.load_state_dict(dict(checkpoint.weights), strict=True)
    except RuntimeError as error:
        raise UserError(f"{path} cannot reconstruct: {_misfit(network, checkpoint)}") from error
    return network.eval()


def _check_patch(checkpoint: Checkpoint, path: Path) -> None:
    patch = checkpoint.data["patch_size"]
    strides = divisors(checkpoint.architecture)
    if not are_multiples(patch, strides):
        raise UserError(f"{path} describes a patch of {patch} voxels, which its network cannot divide by {strides}")


def _misfit(network: nn.Module, checkpoint: Checkpoint) -> str:
    """What does not fit, in words."""
    needed, given = network.state_dict(), checkpoint.weights
    missing = [name for name in needed if name not in given]
    extra = [name for name in given if name not in needed]
    if missing and all(name.startswith("decoder.") for name in missing):
        return f"it holds no decoder ({missing[0]} is missing), so it was not trained by reconstruction"
    if missing or extra:
        return f"{len(missing)} tensors are missing and {len(extra)} have no place, such as {(missing + extra)[0]}"
    name = next(name for name in needed if needed[name].shape != given[name].shape)
    return f"{name} is {tuple(given[name].shape)} in the file and {tuple(needed[name].shape)} in the network"


def preprocess_as_trained(scan: Scan, checkpoint: Checkpoint) -> Preprocessed:
    """What the network would have been trained on, had the scan been there."""
    return preprocess(scan, *preprocessing_plans(checkpoint), checkpoint.beyond_stock)


def preprocessing_plans(checkpoint: Checkpoint) -> tuple[PlansManager, ConfigurationManager]:
    """nnU-Net plans with what its preprocessor asks for, and their one configuration, that of the checkpoint."""
    data = checkpoint.data
    configuration = {
        **data,
        "resampling_fn_seg": data["resampling_fn_mask"],
        "resampling_fn_seg_kwargs": data["resampling_fn_mask_kwargs"],
        "architecture": checkpoint.architecture,
    }
    # Statistics of the dataset are used by CT normalisation only; a checkpoint that has it holds them.
    missing: dict[str, Any] = {"foreground_intensity_properties_per_channel": {"0": {}}}
    manager = PlansManager({**missing, **checkpoint.plans, "configurations": {_CONFIGURATION: configuration}})
    return manager, manager.get_configuration(_CONFIGURATION)


def reconstruct(
    network: PretrainingNetwork, checkpoint: Checkpoint, scan: Preprocessed, hiding: Hiding, device: torch.device
) -> Reconstruction:
    """Hides blocks of the patch at the centre of a scan and reconstructs them.

    Args:
        network: on ``device``.
        checkpoint: it comes from.
        scan: padded with zeros where it is smaller than the patch; padding does not count in the metrics.
        hiding: what to hide.
        device: where to compute.

    Raises:
        ValueError: too few blocks could be hidden.
    """
    volume, patch_size = scan.volume[0], checkpoint.data["patch_size"]
    corner = tuple((size - edge) // 2 for size, edge in zip(volume.shape, patch_size, strict=True))

    def patch_of(array: NDArray[Any]) -> torch.Tensor:
        return crop(array[None].astype(np.float32), corner, patch_size)[None]

    original = patch_of(volume)
    counted = np.ones(volume.shape, bool) if scan.excluded is None else ~scan.excluded[0]
    hidden = _sample(patch_of(foreground_mask(volume)) if hiding.foreground_only else None, patch_size, hiding)[None]
    with torch.inference_mode():
        shown = network.hide(original.to(device), hidden.to(device)).cpu()
        output = network(original.to(device), hidden.to(device)).float().cpu()
    given, excluded = blocks_are_given(checkpoint), patch_of(counted) == 0
    if given:
        output = denormalise_blocks(output, original, hidden, excluded)
    low, high = np.percentile(volume, (0.5, 99.5))
    metrics = reconstruction_metrics(
        output,
        original,
        hidden,
        torch.tensor([high - low]).float(),
        excluded=excluded,
        block_baseline=given,
    )
    return Reconstruction(
        original=original[0, 0].numpy(),
        hidden_input=shown[0, 0].numpy(),
        output=output[0, 0].numpy(),
        hidden=hidden_voxels(hidden, patch_size)[0, 0].numpy(),
        excluded=excluded[0, 0].numpy(),
        blocks=block_edges(patch_size, hiding.block_size),
        corner=corner,
        metrics={name: float(metrics[name]) for name in ("psnr", "ssim", "r2")},
    )


def _sample(body: torch.Tensor | None, patch_size: Sequence[int], hiding: Hiding) -> torch.Tensor:
    """The mask (1, d, h, w), drawn by nothing but the seed; of blocks of ``body`` (1, 1, D, H, W) only, if given."""
    edges = block_edges(patch_size, hiding.block_size)
    grid = [size // edge for size, edge in zip(patch_size, edges, strict=True)]
    eligible = None
    if body is not None:
        shares = as_blocks(body, torch.zeros((1, 1, *grid))).mean(dim=(3, 5, 7))
        eligible = eligible_blocks(shares[0, 0].numpy())
    return sample_hidden(grid, hiding.ratio, np.random.default_rng(hiding.seed), eligible)
