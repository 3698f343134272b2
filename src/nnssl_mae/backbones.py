"""The networks that can be pre-trained and fine-tuned here, and what another one would have to offer.

A network class takes ``input_channels``, ``num_classes``, ``deep_supervision`` and the plain values of
``arch_kwargs`` in nnU-Net's plans, among them ``n_stages``, ``features_per_stage`` and ``strides`` (the first is the
stem's). An instance has

- ``encoder``: volumes (B, C, D, H, W) to a list of features (B, C, d, h, w), the highest resolution first. All
  parameters are named ``encoder.stem.*`` or ``encoder.stages.N.*``, in the order in which they see the volume; what
  belongs to no layer may stand beside them.
- ``decoder``: that list to logits (B, classes, D, H, W); with ``decoder.deep_supervision`` a list, largest first. All
  parameters are named ``decoder.stages.N.*``, ``decoder.transpconvs.N.*`` (0 is the lowest resolution) or
  ``decoder.seg_layers.N.*``, the heads, of which the last has the resolution of the volume.
- ``initialize(module)``, a static method that draws the weights of one of its modules.

No parameter has a place outside both. Transfer, schedules, freezing, preview, probe, export and prediction need
nothing else. Which numbers of a recipe become which arguments stands below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.pretraining import TRANSFORMERS, NetworkRecipe
from nnssl_mae.sizes import per_axis

MIN_FEATURE_MAP_EDGE = 4
"""Voxels below which no axis is halved, as in nnU-Net's planners."""
_NO_LIMIT = 999999
LAYER_CLASSES = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""Arguments of nnU-Net's networks that are classes, by name in plans."""
_OF_PRIMUS = {"init_values": 0.1, "scale_attn_inner": True}  # as nnU-Net's trainers of it
Spacing = Sequence[float]
Arguments = dict[str, Any]
Each = TypeVar("Each")


@dataclass(frozen=True)
class Backbone:
    """One kind of network."""

    name: str
    """In recipes: ``network.backbone``."""
    network_class: str
    """In plans."""
    sizes: Callable[[NetworkRecipe, Spacing], Arguments]
    """Arguments of the class that follow from a recipe and the spacing (mm) of its patches."""
    first_layer: str
    """The convolution that sees the input's channels; its ``weight`` is (out, channels, kernel...)."""
    patch_is_argument: bool = False
    """Whether a network is for one size of patch, ``input_shape``."""

    @property
    def is_convolutional(self) -> bool:
        """Whether it is made of nnU-Net's convolution blocks: only then can it be sparse or lose its skip connections,
        and does it have nnU-Net's operators among its arguments."""
        return self.name not in TRANSFORMERS

    @property
    def is_stock(self) -> bool:
        """Whether models of it predict where this package is not installed."""
        return not self.network_class.startswith("nnssl_mae.")


def _convolutional(depth: str) -> Callable[[NetworkRecipe, Spacing], Arguments]:
    def sizes(network: NetworkRecipe, spacing: Spacing) -> Arguments:
        assert not isinstance(network.patch_size, str)
        planned = planned_topology(spacing, network.patch_size, network.max_stages)
        stages = len(planned.strides)
        return {
            **_stages(network, planned.strides),
            "kernel_sizes": planned.kernels,
            depth: repeated(network.blocks_per_stage, stages),
            "n_conv_per_stage_decoder": [network.convs_per_decoder_stage] * (stages - 1),
        }

    return sizes


def _nnformer(network: NetworkRecipe, _: Spacing) -> Arguments:
    transformer = network.transformer
    strides = [transformer.stem_stride, *transformer.strides]
    stages = len(strides)
    return {
        **_stages(network, strides),
        "n_blocks_per_stage": repeated(network.blocks_per_stage, stages),
        "num_heads": [transformer.heads * 2**stage for stage in range(stages)],
        "windows": [list(window) for window in repeated(transformer.windows, stages)],
        "n_blocks_per_stage_decoder": [network.convs_per_decoder_stage] * (stages - 1),
        "drop_path": transformer.drop_path,
    }


def _primus(network: NetworkRecipe, _: Spacing) -> Arguments:
    transformer = network.transformer
    assert not isinstance(network.patch_size, str)
    return {
        **_stages(network, [list(transformer.stem_stride)]),
        "n_blocks_per_stage": repeated(network.blocks_per_stage, 1),
        "num_heads": [transformer.heads],
        "input_shape": list(network.patch_size),
        "drop_path": transformer.drop_path,
        **_OF_PRIMUS,
    }


def _stages(network: NetworkRecipe, strides: Sequence[Sequence[int]]) -> Arguments:
    widths = [min(network.base_features * 2**stage, network.max_features) for stage in range(len(strides))]
    return {
        "n_stages": len(strides),
        "features_per_stage": widths,
        "strides": [list(map(int, each)) for each in strides],
    }


def repeated(values: Sequence[Each], length: int) -> list[Each]:
    """Cut to a length, or made as long by repeating the last value."""
    return [*values, *[values[-1]] * length][:length]


@dataclass(frozen=True)
class Topology:
    """How nnU-Net would go down from a patch to the lowest resolution."""

    strides: list[list[int]]
    """Of each stage."""
    kernels: list[list[int]]
    """Of each stage."""
    patch: tuple[int, ...]
    """Enlarged where the strides need it."""


def planned_topology(spacing: Spacing, patch: Sequence[int], max_stages: int | None = None) -> Topology:
    """By nnU-Net's own function; ``spacing`` in mm and ``patch`` in voxels, in the same order of axes."""
    max_pools = _NO_LIMIT if max_stages is None else max_stages - 1
    _, strides, kernels, fitting, _ = get_pool_and_conv_props(spacing, patch, MIN_FEATURE_MAP_EDGE, max_pools)
    return Topology(
        [list(each) for each in strides], [list(each) for each in kernels], tuple(int(edge) for edge in fitting)
    )


BACKBONES: Mapping[str, Backbone] = MappingProxyType(
    {
        backbone.name: backbone
        for backbone in (
            Backbone(
                "resenc",
                "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
                _convolutional("n_blocks_per_stage"),
                "encoder.stem.convs.0.conv",
            ),
            Backbone(
                "plain",
                "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                _convolutional("n_conv_per_stage"),
                "encoder.stages.0.0.convs.0.conv",
            ),
            Backbone(
                "amaes_unet",
                "nnssl_mae.networks.amaes_unet.AmaesUNet",
                _convolutional("n_conv_per_stage"),
                "encoder.stages.0.0.convs.0.conv",
            ),
            Backbone(
                "nnformer",
                "nnssl_mae.networks.nnformer.NnFormer",
                _nnformer,
                "encoder.stem.0.conv",
            ),
            Backbone(
                "primus",
                "nnssl_mae.networks.primus.PrimusNet",
                _primus,
                "encoder.stem.proj",
                patch_is_argument=True,
            ),
        )
    }
)


def backbone_of(architecture: Mapping[str, Any]) -> Backbone:
    """Of a network in nnU-Net's plans.

    Raises:
        UserError: a network that is not known here.
    """
    name = str(architecture["network_class_name"])
    for backbone in BACKBONES.values():
        if backbone.network_class == name:
            return backbone
    known = ", ".join(short_name(each.network_class) for each in BACKBONES.values())
    raise UserError(f"A {short_name(name)} cannot be pre-trained or fine-tuned here; use {known}")


def short_name(network_class: str) -> str:
    """``ResidualEncoderUNet``."""
    return network_class.rsplit(".", 1)[-1]


def planned_architecture(network: NetworkRecipe, spacing: Spacing, stock: Mapping[str, Any]) -> dict[str, Any]:
    """The network of a recipe as nnU-Net's plans describe it.

    Args:
        network: with a patch in numbers, which need not fit yet.
        spacing: mm, in the axis order of the patch; decides about strides and kernels of U-Nets.
        stock: the architecture that nnU-Net or a recipe before planned, whose operators a convolutional network keeps.
    """
    backbone = BACKBONES[network.backbone]
    sizes = backbone.sizes(network, spacing)
    if not backbone.is_convolutional:
        return {"network_class_name": backbone.network_class, "arch_kwargs": sizes, "_kw_requires_import": []}
    layers = {key: stock["arch_kwargs"].get(key, usual) for key, usual in layer_arguments().items()}
    return {
        "network_class_name": backbone.network_class,
        "arch_kwargs": {**layers, **sizes},
        "_kw_requires_import": list(LAYER_CLASSES),
    }


def layer_arguments() -> dict[str, Any]:
    """Convolution, norm and activation of nnU-Net's 3D networks, as its planner writes them."""
    return {
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def for_patch(architecture: Mapping[str, Any], patch: Sequence[int]) -> dict[str, Any]:
    """The same network for another patch; nothing changes but what a network knows of its patch."""
    if not backbone_of(architecture).patch_is_argument:
        return dict(architecture)
    return {**architecture, "arch_kwargs": {**architecture["arch_kwargs"], "input_shape": [int(e) for e in patch]}}


def strides_that_shrink(strides: Sequence[Any]) -> Sequence[Any]:
    """All strides, without the first where it keeps the resolution of the volume."""
    return strides[1:] if set(per_axis(strides[0])) == {1} else strides


def head_scales(architecture: Mapping[str, Any]) -> list[list[float]]:
    """Resolution of each head of a transformer as a share of the volume's along each axis, largest first.

    The last head makes voxels of tokens again, the others of the tokens of lower resolutions: each has the resolution
    of its tokens times the stem's stride.
    """
    steps = [[1, 1, 1], *architecture["arch_kwargs"]["strides"][1:-1]]
    return [[1 / edge for edge in sizes] for sizes in np.cumprod(steps, axis=0).tolist()]


def divisors(architecture: Mapping[str, Any]) -> tuple[int, ...]:
    """By what a network divides each axis of a patch on its way down."""
    strides = map(per_axis, architecture["arch_kwargs"]["strides"])
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))
