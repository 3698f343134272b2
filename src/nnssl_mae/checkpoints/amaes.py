"""Released weights of AMAES (Munk et al. 2024, arXiv 2408.00640): the encoder of a U-Net with max pooling.

Their file is a flat state dict, or one inside a checkpoint of PyTorch Lightning, and says nothing of the preprocessing:
that is the paper's. No released file was at hand when this was written: it follows the description of the format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from nnssl_mae.checkpoints.describe import Checkpoint, Origin
from nnssl_mae.checkpoints.locate import Source
from nnssl_mae.checkpoints.names import with_aliases
from nnssl_mae.checkpoints.state_dict import infer_architecture, trained_for
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256
from nnssl_mae.scans.preprocess import BeyondStock

_LEVEL = re.compile(r"encoder\.(?:in_conv|encoder_conv(\d+))\.conv(\d)\.(conv|norm)\.(\w+)")
_MEDNEXT = re.compile(r"(?:.*\.)?(?:enc_block_\d+|mednext|down_\d+)\.")
_RESAMPLING: dict[str, Any] = {"order_z": 0, "force_separate_z": None}
_CITATION = (
    "Munk et al. 2024, AMAES: augmented masked autoencoder pretraining on public brain MRI data for 3D-native "
    "segmentation, arXiv:2408.00640"
)


def is_amaes(weights: Mapping[str, Any]) -> bool:
    """Whether these are the names of AMAES's networks."""
    return any(name.startswith("encoder.in_conv.") or _MEDNEXT.match(name) for name in weights)


def read_amaes(weights: Mapping[str, torch.Tensor], content: Mapping[str, Any], source: Source) -> Checkpoint:
    """Describes AMAES's U-Net (B, XL, or of another width) in our terms; its decoder is thrown away.

    Args:
        weights: under AMAES's names, without prefixes.
        content: of the file, for what Lightning may have put beside them.

    Raises:
        UserError: AMAES's MedNeXt, or not a whole encoder.
    """
    if not any(name.startswith("encoder.in_conv.") for name in weights):
        raise UserError(f"{source} holds AMAES's MedNeXt, which is not supported; take its U-Net B or XL")
    unknown = [name for name in weights if name.startswith("encoder.") and not _LEVEL.fullmatch(name)]
    if unknown:
        raise UserError(
            f"{source} holds {unknown[0]}, which is no part of AMAES's U-Net; its networks B and XL are known"
        )
    encoder = {_our_name(name): tensor for name, tensor in weights.items() if _LEVEL.fullmatch(name)}
    stem = encoder.get("encoder.stages.0.0.convs.0.conv.weight")
    if stem is None or stem.ndim != 5:
        raise UserError(f"{source} holds no 3D convolution encoder.in_conv.conv1; save all weights of AMAES's network")
    architecture, _ = infer_architecture(encoder, source)
    stages = architecture["arch_kwargs"]["n_stages"]
    if stages < 2:
        raise UserError(f"{source} holds the first level of AMAES's U-Net only; save all weights of AMAES's network")
    architecture["arch_kwargs"]["strides"] = [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)]
    plans, data = _preprocessing()
    epochs, steps = trained_for(content)
    return Checkpoint(
        weights=with_aliases(encoder, architecture),
        architecture=architecture,
        channels=stem.shape[1],
        plans=plans,
        data=data,
        origin=Origin(
            "AMAES", source.label, sha256(source.file), "AMAES", citations=(_CITATION,), epochs=epochs, steps=steps
        ),
        beyond_stock=BeyondStock(clip_high=99.0),
        cannot_reconstruct="AMAES's decoder is not read, it is thrown away after pre-training",
        notes=(
            "The file says nothing of its scans: 1 mm, RAS, clipped at the 99th percentile and scaled to [0, 1], as "
            "in AMAES's paper; and its arrays are taken to be x, y, z, as nibabel reads them.",
        ),
    )


def _our_name(name: str) -> str:
    """``encoder.encoder_conv2.conv1.norm.weight`` is ``encoder.stages.2.1.convs.0.norm.weight``, after the pooling."""
    match = _LEVEL.fullmatch(name)
    assert match is not None
    stage = f"{match[1]}.1" if match[1] else "0.0"
    return f"encoder.stages.{stage}.convs.{int(match[2]) - 1}.{match[3]}.{match[4]}"


def _preprocessing() -> tuple[dict[str, Any], dict[str, Any]]:
    """Reader and axis order, and the configuration, as ``configs/amaes.yaml`` has them of paper and code.

    nnU-Net's reader gives z, y, x; AMAES trains on nibabel's x, y, z.
    """
    plans = {
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
    }
    data = {
        "data_identifier": "amaes",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "onemmiso",
        "spacing": [1.0, 1.0, 1.0],
        "patch_size": [128, 128, 128],
        "normalization_schemes": ["RescaleTo01Normalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **_RESAMPLING},
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": {"is_seg": True, "order": 1, **_RESAMPLING},
    }
    return plans, data
