"""What a probe looks at: features of a patch from a pre-trained encoder, from untrained ones, and from no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude
from torch import nn

from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import planned_network

FeatureMaps = list[torch.Tensor]
"""(C, d, h, w) of each stage on the CPU, 32 bit, highest resolution first; each covers the whole patch."""
Extractor = Callable[[torch.Tensor], FeatureMaps]
"""Takes a patch (D, H, W)."""

RAW_FEATURES = "intensity; its mean by a Gaussian of 1, 2 and 4 voxels; gradient magnitude at 1 and 2 voxels"
_MEANS, _GRADIENTS = (1, 2, 4), (1, 2)
_NORMS = (nn.InstanceNorm3d, nn.BatchNorm3d, nn.GroupNorm)


def pretrained_encoder(checkpoint: Checkpoint, path: object) -> nn.Module:
    """The encoder of a checkpoint in evaluation mode, with every tensor in its place.

    Raises:
        UserError: tensors are missing, do not fit, or hold values that are not finite.
    """
    encoder: Any = planned_network(checkpoint.architecture, checkpoint.channels, 2, initialise=False).encoder
    tensors = {
        name.removeprefix("encoder."): tensor
        for name, tensor in checkpoint.weights.items()
        if name.startswith("encoder.")
    }
    try:
        encoder.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the encoder that it describes ({_one_line(error)})") from error
    broken = next((name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()), None)
    if broken is not None:
        raise UserError(
            f"{path} holds values in encoder.{broken} that are not finite: its training diverged; take an earlier "
            "checkpoint, and train with a lower learning rate"
        )
    result: nn.Module = encoder.eval()
    return result


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def random_encoder(architecture: Mapping[str, Any], channels: int, seed: int) -> nn.Module:
    """An untrained encoder, drawn as nnU-Net draws it by nothing but the seed, but with all its filters at work.

    nnU-Net starts residual blocks with a gain of zero in their last normalisation, so that nothing of their filters is
    seen. Here the gains are one: random filters are the harder thing to beat.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder: Any = planned_network(architecture, channels, 2).encoder
    for module in encoder.modules():
        if isinstance(module, _NORMS) and module.weight is not None:
            nn.init.ones_(module.weight)
    result: nn.Module = encoder.eval()
    return result


def features_of(encoder: nn.Module, device: torch.device) -> Extractor:
    """All stages of an encoder for a patch of which nothing is hidden. ``encoder`` is moved to the device."""
    encoder.to(device)

    def extract(patch: torch.Tensor) -> FeatureMaps:
        with torch.inference_mode():
            stages: Sequence[torch.Tensor] = encoder(patch[None, None].to(device))
            return [stage[0].float().cpu() for stage in stages]

    return extract


def raw_features(patch: torch.Tensor) -> FeatureMaps:
    """What needs no network (:data:`RAW_FEATURES`), as one stage at full resolution."""
    volume = patch.numpy()
    means = [gaussian_filter(volume, width, mode="nearest") for width in _MEANS]
    edges = [gaussian_gradient_magnitude(volume, width, mode="nearest") for width in _GRADIENTS]
    return [torch.from_numpy(np.stack([volume, *means, *edges]).astype(np.float32))]
