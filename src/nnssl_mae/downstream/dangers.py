"""What may silently cost the benefit of the pre-training, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nnunetv2.configuration import ANISO_THRESHOLD

from nnssl_mae.backbones import backbone_of, short_name
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.downstream.axes import Geometry
from nnssl_mae.downstream.network import is_isotropic
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.scans.preprocess import BeyondStock

NO_RESAMPLING = "no_resampling_hack"
"""nnU-Net's function that leaves volumes as they are."""
MUCH_FINER = 0.7
"""Of the pre-training spacing: pre-training scales its patches by 0.7 to 1.4, so it has not seen finer voxels."""
MUCH_COARSER = 1.4
_SPREAD = 1.5  # between nearly the finest and nearly the coarsest scan


def dangers(checkpoint: Checkpoint, configuration: Mapping[str, Any], cases: Geometry, wish: Wish) -> list[str]:
    """Warnings about voxel sizes and the network.

    Args:
        checkpoint: what is transferred.
        configuration: of the new plans.
        cases: of the dataset, in the axis order of the new plans.
        wish: what the user asked for.
    """
    found = []
    resampled = configuration["resampling_fn_data"] != NO_RESAMPLING
    if checkpoint.is_preprocessing_known:
        trained = [float(edge) for edge in checkpoint.data["spacing"]]
        if wish.mode == "like-pretrained" and resampled:
            found += _too_fine(cases.median_spacing, trained)
        elif checkpoint.data["resampling_fn_data"] != NO_RESAMPLING:
            found += _other_scale(configuration["spacing"], trained)
    found += _thick_slices(configuration, cases.median_spacing, wish)
    if not resampled:
        found += _varied(cases)
    return found + _own_network(checkpoint)


def _too_fine(median: Sequence[float], trained: Sequence[float]) -> list[str]:
    if all(own >= MUCH_FINER * edge for own, edge in zip(median, trained, strict=True)):
        return []
    return [
        f"The dataset's voxels ({_mm(median)}) are much finer than those of pre-training ({_mm(trained)}), to which "
        "its scans will be resampled: small structures may be lost. On angiographies of 0.5 mm the S3D paper reports a "
        "Dice of 28.72 with pre-training at 1 mm and 42.61 from scratch at nnU-Net's own spacing. --mode dataset keeps "
        "the dataset's own voxels"
    ]


def _other_scale(spacing: Sequence[float], trained: Sequence[float]) -> list[str]:
    ratios = [own / edge for own, edge in zip(spacing, trained, strict=True)]
    if all(MUCH_FINER <= ratio <= MUCH_COARSER for ratio in ratios):
        return []
    return [
        f"The network will see voxels of {_mm(spacing)} and was pre-trained with {_mm(trained)}: its features were "
        "learnt at another scale, so less of them may carry over; compare with the control from --from-scratch"
    ]


def _thick_slices(configuration: Mapping[str, Any], median: Sequence[float], wish: Wish) -> list[str]:
    if wish.mode == "dataset":
        return _thick_slices_not_first(configuration)
    if max(median) <= ANISO_THRESHOLD * min(median) or not is_isotropic(configuration["architecture"]):
        return []
    what = "the network treats all axes alike"
    if max(configuration["spacing"]) < MUCH_FINER * max(median):
        what = f"voxels between them will be interpolated, as {what}"
    return [
        f"The dataset's slices are thick ({_mm(median)}) and {what}: --mode dataset plans strides and kernels for them"
    ]


def _thick_slices_not_first(configuration: Mapping[str, Any]) -> list[str]:
    patch, spacing = configuration["patch_size"], configuration["spacing"]
    if max(spacing) <= ANISO_THRESHOLD * min(spacing):
        return []
    # nnU-Net looks at the first axis only, because its own plans put thick slices there.
    if max(patch) <= ANISO_THRESHOLD * min(patch) or patch[0] == min(patch):
        return []
    return [
        "The axis order of pre-training is kept, so the thick slices do not lie along the first axis and nnU-Net "
        "rotates patches in 3D, not within slices as it does in its own plans"
    ]


def _varied(cases: Geometry) -> list[str]:
    low, high = np.percentile(cases.spacings, (5, 95), axis=0)
    if bool((high <= _SPREAD * low).all()):
        return []
    return [
        f"Scans are not resampled and their voxels differ a lot (from {_mm(low)} to {_mm(high)}): the network sees the "
        "same anatomy at different sizes; --mode dataset or like-pretrained brings them to one spacing"
    ]


def _own_network(checkpoint: Checkpoint) -> list[str]:
    backbone = backbone_of(checkpoint.architecture)
    if backbone.is_stock:
        return []
    return [
        f"{short_name(backbone.network_class)} is not one of nnU-Net's networks: the fine-tuned model predicts only "
        "where nnssl_mae is installed"
    ]


def beyond_stock(checkpoint: Checkpoint) -> list[str]:
    """What was done to the checkpoint's scans that stock nnU-Net cannot, and what will be different without it."""
    return [
        f"{what}, which nnU-Net does not repeat when it fine-tunes and predicts: {effect}"
        for what, effect in _steps(checkpoint.beyond_stock)
    ]


def _steps(done: BeyondStock) -> list[tuple[str, str]]:
    found = []
    for percentile, voxels in ((done.clip_high, "brightest"), (done.clip_low, "darkest")):
        if percentile is not None:
            what = f"The checkpoint's scans were clipped at their {percentile:g}th percentile"
            found.append((what, f"the {voxels} voxels will look unfamiliar"))
    if done.crop != "nonzero":
        what = "The checkpoint's scans were cropped to the head or body"
        found.append((what, "there will be more air around it, which shifts what z-scoring calls zero"))
    return found


def _mm(edges: Sequence[float] | Any) -> str:
    return " x ".join(f"{float(edge):.3g}" for edge in edges) + " mm"
