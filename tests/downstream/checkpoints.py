"""Tiny pre-trained networks of every kind, without a file."""

from __future__ import annotations

import copy
from typing import Any

import torch

from nnssl_mae.checkpoints.describe import Checkpoint, Origin
from nnssl_mae.networks.planned import planned_network
from tests.networks import architectures as networks

_RESAMPLING: dict[str, Any] = {"order_z": 0, "force_separate_z": None}
CT_INTENSITIES = {
    "max": 3000.0, "mean": 55.0, "median": 50.0, "min": -1000.0,
    "percentile_00_5": -150.0, "percentile_99_5": 250.0, "std": 30.0,
}  # fmt: skip


def architecture(kind: str = "resenc", stages: int = 3, width: int = 4, blocks: int = 1) -> dict[str, Any]:
    """In nnU-Net's form; strides of 2 along all axes, kernels of 3."""
    return networks.architecture(kind, tuple(width * 2**stage for stage in range(stages)), blocks)


def made_checkpoint(
    network: dict[str, Any] | None = None,
    channels: int = 1,
    seed: int = 3,
    reader: str = "NibabelIOWithReorient",
    transpose: tuple[int, int, int] = (0, 1, 2),
    **data: Any,
) -> Checkpoint:
    """A checkpoint at 4 mm with a patch of 32^3; ``data`` replaces parts of its configuration."""
    network = network or architecture()
    torch.manual_seed(seed)
    weights = planned_network(network, channels, 1).state_dict()
    return Checkpoint(
        weights={name: tensor.clone() for name, tensor in weights.items()},
        architecture=copy.deepcopy(network),
        channels=channels,
        plans={
            "image_reader_writer": reader,
            "transpose_forward": list(transpose),
            "transpose_backward": [transpose.index(axis) for axis in range(3)],
        },
        data={
            "preprocessor_name": "DefaultPreprocessor",
            "spacing": [4.0, 4.0, 4.0],
            "patch_size": [32, 32, 32],
            "normalization_schemes": ["ZScoreNormalization"] * channels,
            "use_mask_for_norm": [False] * channels,
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **_RESAMPLING},
            "resampling_fn_mask": "resample_data_or_seg_to_shape",
            "resampling_fn_mask_kwargs": {"is_seg": True, "order": 1, **_RESAMPLING},
            **data,
        },
        origin=Origin(format="nnssl", label="tiny.pth", sha256="0" * 64, method="mae", epochs=5),
    )
