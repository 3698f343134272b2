"""Small networks in the form of nnU-Net's plans, one for each backbone."""

from __future__ import annotations

from typing import Any

from nnssl_mae.backbones import BACKBONES, LAYER_CLASSES, layer_arguments


def architecture(backbone: str = "resenc", features: tuple[int, ...] = (4, 6, 8), depth: int = 1) -> dict[str, Any]:
    """Isotropic, halved at each stage but the first."""
    stages = len(features)
    depth_key = "n_blocks_per_stage" if backbone == "resenc" else "n_conv_per_stage"
    return {
        "network_class_name": BACKBONES[backbone].network_class,
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            depth_key: [depth] * stages,
            "n_conv_per_stage_decoder": [depth] * (stages - 1),
            **layer_arguments(),
        },
        "_kw_requires_import": list(LAYER_CLASSES),
    }
