"""The pre-training recipe: data, network, masking, loss, augmentation, optimiser, schedule.

Read from YAML (``configs/*.yaml`` or a user's own file), stored inside nnU-Net's plans as part of the block
``nnssl_mae``, and read back from there by the trainer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nnssl_mae.recipes.base import FrozenRecipe, Interval, Probability, Size3, Spacing3, Spread
from nnssl_mae.recipes.intensity import IntensityRecipe

Ratio = Annotated[float, Field(ge=0.05, le=0.95)]
TRANSFORMERS = ("nnformer", "primus")
"""Backbones for which ``network.transformer`` counts."""


class DataRecipe(FrozenRecipe):
    """How a scan becomes a preprocessed volume. Stock nnU-Net can repeat every step at prediction time but a clip or
    a crop to the foreground."""

    spacing: Spacing3 | Literal["native", "median"] = (1.0, 1.0, 1.0)
    """Voxel edge lengths in mm in the reader's axis order (z, y, x); ``native`` keeps each scan's own grid,
    ``median`` is nnU-Net's usual choice for the dataset."""
    orientation: Literal["RAS", "as_stored"] = "RAS"
    """``RAS`` reorients NIfTI files on reading (nnU-Net's NibabelIOWithReorient, undone on export)."""
    normalisation: Literal["ZScoreNormalization", "RescaleTo01Normalization"] = "ZScoreNormalization"
    """Name of nnU-Net's normalisation class."""
    normalise_inside_mask: bool = False
    """Compute the statistics over non-zero voxels only (nnU-Net's ``use_mask_for_norm``)."""
    clip_percentile: float | None = Field(None, gt=50, le=100)
    """Clip each scan from above at this percentile of all its voxels before anything else. Stock nnU-Net cannot
    repeat it when it fine-tunes and predicts, so it is off except where a paper did it."""
    clip_low_percentile: float | None = Field(None, ge=0, lt=50)
    """Clip each scan from below too, in the same way; off for the same reason."""
    crop: Literal["nonzero", "foreground"] = "nonzero"
    """``nonzero``: the box of voxels that are not zero, as nnU-Net crops. ``foreground``: the box of the head or body,
    found by brightness; smaller where air is noisy, but stock nnU-Net cannot repeat it when it predicts."""


class TransformerRecipe(FrozenRecipe):
    """What transformers need besides the sizes of all networks; without effect on U-Nets."""

    heads: int = Field(3, ge=1, le=128)
    """Attention heads of the first stage; they double with the stages, as the channels do."""
    stem_stride: Size3 = (4, 4, 4)
    """Voxels of a token along each axis."""
    strides: tuple[Size3, ...] = ((2, 2, 2), (2, 2, 2), (2, 2, 2))
    """Of each stage after the first, in tokens (``nnformer``)."""
    windows: Annotated[tuple[Size3, ...], Field(min_length=1)] = ((4, 4, 4),)
    """Tokens of an attention window in each stage (``nnformer``); the last repeats if there are more stages."""
    hidden_tokens: Literal["drop", "replace"] | None = None
    """``drop``: the encoder never sees tokens of hidden blocks, and is faster by them. ``replace``: a learned token
    takes their place (SimMIM). Both are for ``primus``; none hides voxels only."""
    decoder_blocks: int = Field(2, ge=1, le=64)
    """Transformer blocks that fill in dropped tokens, for pre-training only."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Share of the samples for which the last block is left out in a step; earlier blocks in proportion."""


class NetworkRecipe(FrozenRecipe):
    """The network and its sizes. Strides and kernels come from nnU-Net's planner functions for this patch."""

    backbone: Literal["resenc", "plain", "amaes_unet", "nnformer", "primus"] = "resenc"
    """``resenc``: nnU-Net's Residual Encoder U-Net. ``plain``: nnU-Net's U-Net with strided convolutions.
    ``amaes_unet``: the U-Net with max pooling of AMAES. ``nnformer``: the window transformer of Zhou et al. 2023.
    ``primus``: the plain vision transformer of Wald et al. 2025. Models with the last three need this package to
    predict."""
    patch_size: Size3 | Literal["planner"] = (160, 160, 160)
    """Voxels. ``planner`` leaves patch, batch and network to nnU-Net's own plan."""
    batch_size: int = Field(8, ge=1)
    """Patches a step, over all GPUs together."""
    base_features: int = Field(32, ge=1, le=4096)
    """Channels of the first stage, doubled at each stage."""
    max_features: int = Field(320, ge=1, le=4096)
    """Upper limit of the channels of a stage."""
    blocks_per_stage: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 3, 4, 6, 6, 6)
    """Residual blocks (``resenc``), convolutions or transformer blocks of each encoder stage; the last number repeats
    if the patch allows more stages."""
    convs_per_decoder_stage: int = Field(1, ge=1)
    """Convolutions, or transformer blocks, of each decoder stage."""
    max_stages: int | None = Field(None, ge=2)
    """Upper limit of the number of stages; none leaves it to the patch size."""
    transformer: TransformerRecipe = TransformerRecipe()
    """What transformers need besides."""
    decoder: Literal["stock", "light"] = "stock"
    """``stock``: nnU-Net's decoder. ``light``: per level one transposed convolution and one convolution, without
    skip connections, thrown away after pre-training."""
    skips: bool = True
    """Whether the decoder sees the encoder's skip connections during pre-training; a light decoder never does."""
    sparse: Literal["packed"] | bool = False
    """Masked convolutions and norms in the encoder: features of hidden positions stay zero and out of the statistics
    (S3D, after SparK). ``packed``: the same numbers, with high resolutions computed in visible blocks only."""
    mask_tokens: bool = False
    """Before the decoder, hidden positions of each resolution are filled with a learned vector. Needs ``sparse``."""
    densify: bool = False
    """After that, a 3x3x3 convolution at each resolution but the highest. Needs ``sparse``."""
    checkpoint_activations: bool = False
    """Recompute the activations of each encoder and decoder stage in the backward pass: about a third more time, much
    less memory, the same result."""

    @property
    def is_transformer(self) -> bool:
        """Whether ``transformer`` counts."""
        return self.backbone in TRANSFORMERS

    @property
    def drops_tokens(self) -> bool:
        """Whether the encoder sees the tokens of visible blocks only."""
        return self.is_transformer and self.transformer.hidden_tokens == "drop"


class SamplingRecipe(FrozenRecipe):
    """Which scan the next patch comes from."""

    by: Literal["scan", "subject", "dataset"] = "scan"
    """``scan``: every scan has the same chance. ``subject``: every subject has, then each of its scans. ``dataset``:
    every dataset has (a folder that was searched), then each of its scans."""
    dataset_weights: dict[str, Annotated[float, Field(ge=0)]] = {}  # noqa: RUF012 (pydantic copies it)
    """Multiplies the chances of what comes from a dataset, by the dataset's name; 1 for those not named, 0 leaves a
    dataset out."""


class MaskingRecipe(FrozenRecipe):
    """Which part of a patch is hidden, and what the network sees instead."""

    block_size: int = Field(16, ge=1)
    """Edge of the hidden cubes in voxels."""
    ratio: Ratio | tuple[Ratio, Ratio] = 0.75
    """Share of the blocks that is hidden, exactly; or (low, high), from which the share is drawn uniformly."""
    ratio_drawn_per: Literal["batch", "sample"] = "batch"
    """Whether all patches of a step share a drawn ratio. A single number needs no draw."""
    region: Literal["uniform", "foreground"] = "uniform"
    """``uniform``: all blocks are alike. ``foreground``: the ratio applies to blocks with more than 10 % head or
    body; air stays visible and out of the loss."""
    hidden_value: Literal["zero", "token"] = "zero"
    """What stands in hidden voxels of the input: zero, or one learned number a channel."""


class LossRecipe(FrozenRecipe):
    """Squared error: where, and against what. Padding and excluded regions never count."""

    region: Literal["hidden", "all", "weighted"] = "hidden"
    """``hidden``: hidden voxels only. ``all``: every voxel alike. ``weighted``: visible voxels count less."""
    visible_weight: float = Field(0.1, ge=0)
    """Weight of a visible voxel relative to a hidden one, with ``weighted``."""
    target_normalisation: Literal["none", "block"] = "none"
    """``block``: each block of the target has zero mean and unit variance (He et al. 2022, arXiv 2111.06377). The
    network then does not predict brightness: metrics and pictures are made with the true mean and spread of each block,
    and R2 is against these means."""
    respect_exclusion: bool = True
    """Leave out the voxels of exclusion masks (defaced, anonymised) found beside the scans. Off costs Dice in
    published work; it is here to measure that."""


class AugmentationRecipe(FrozenRecipe):
    """Augmentation of the patch (batchgeneratorsv2): spatial first, then intensity, then hiding."""

    rotation_degrees: float = Field(30.0, ge=0, le=180)
    """Largest angle about each axis."""
    rotation_probability: Probability = 0.2
    """Share of the patches that are rotated."""
    rotation_probability_axis: Probability = 1.0
    """Share of the axes about which a rotated patch is turned."""
    scale: Interval = (0.7, 1.4)
    """Range of the zoom factor; larger numbers show smaller structures."""
    scale_probability: Probability = 0.2
    """Share of the patches that are zoomed."""
    elastic_probability: Probability = 0.0
    """Share of the patches that are deformed."""
    elastic_scale: Spread = (0.15, 0.25)
    """Smoothness of the deformation: standard deviation of the smoothing, as a share of the patch edge."""
    elastic_magnitude: Spread = (0.3, 2.0)
    """Largest displacement in voxels."""
    mirror: bool = True
    """Flip each axis with probability one half."""
    intensity: IntensityRecipe = IntensityRecipe()
    """Changes of the input's intensities."""
    device: Literal["auto", "cpu", "gpu"] = "cpu"
    """Where it happens. ``cpu``: in the processes that load patches. ``gpu``: where the network is trained (tested on a
    CPU only so far). ``auto``: on the GPU if there is one. All are equal but for the values of noise and deformations,
    which have the same distribution."""
    reversal: bool = False
    """The target is the patch before the intensity changes, so the network learns to undo them (AMAES); otherwise the
    target is what the network is shown."""


class OptimiserRecipe(FrozenRecipe):
    """Optimiser, clipping and number format."""

    name: Literal["sgd", "adamw"] = "sgd"
    """``sgd``: with Nesterov momentum, as nnU-Net. ``adamw``: betas 0.9 and 0.999."""
    learning_rate: float = Field(1e-2, gt=0)
    """Peak of the schedule."""
    batch_rule: Literal["none", "linear", "sqrt"] = "none"
    """How the peak follows the batch (``network.batch_size``, over all GPUs together): multiplied by the batch over
    ``rule_batch`` (``linear``, Goyal et al. 2017, arXiv 1706.02677) or by the root of that (``sqrt``)."""
    rule_batch: int = Field(8, ge=1)
    """The batch that ``learning_rate`` is meant for; without effect if the rule is ``none``."""
    momentum: float = Field(0.99, ge=0, lt=1)
    """Nesterov momentum; without effect with ``adamw``."""
    weight_decay: float = Field(3e-5, ge=0)
    """L2 penalty, decoupled with ``adamw``."""
    gradient_clip: float | None = Field(12.0, gt=0)
    """Largest norm of the gradient of all weights together."""
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Number format of the forward pass on a GPU; on a CPU always fp32. Losses and norm statistics are fp32."""


class ScheduleRecipe(FrozenRecipe):
    """How long, at which learning rate, and what is written when."""

    epochs: int = Field(1000, ge=1)
    """All epochs, warm-up included."""
    iterations: int | Literal["dataset"] = 250
    """Optimiser steps an epoch; ``dataset``: one crop of every volume."""
    warmup_epochs: int = Field(0, ge=0)
    """Epochs in which the rate rises linearly to its peak."""
    decay: Literal["polynomial", "cosine"] = "polynomial"
    """How the rate falls to zero afterwards, a step an epoch; the polynomial has nnU-Net's exponent 0.9."""
    patience: int | None = Field(None, ge=1)
    """Stop when the validation loss has not improved for this many epochs; none never stops early."""
    validation_cases: int = Field(400, ge=1)
    """At most this many held-out scans are looked at after each epoch, always the same ones."""
    checkpoint_every: int = Field(1, ge=1)
    """Epochs between two writings of ``checkpoint_latest.pth``."""
    preview_every: int = Field(50, ge=1)
    """Epochs between two preview pictures."""


class Recipe(FrozenRecipe):
    """A complete pre-training recipe."""

    name: str
    """Name by which the recipe is chosen."""
    summary: str
    """One line for people."""
    citation: tuple[str, ...] = ()
    """What to cite when a checkpoint of this recipe is used."""
    data: DataRecipe = DataRecipe()
    """From scan to volume."""
    network: NetworkRecipe = NetworkRecipe()
    """The network and its sizes."""
    sampling: SamplingRecipe = SamplingRecipe()
    """Which scans are seen how often."""
    masking: MaskingRecipe = MaskingRecipe()
    """What is hidden."""
    loss: LossRecipe = LossRecipe()
    """What is compared."""
    augmentation: AugmentationRecipe = AugmentationRecipe()
    """How patches are varied."""
    optimiser: OptimiserRecipe = OptimiserRecipe()
    """How weights change."""
    schedule: ScheduleRecipe = ScheduleRecipe()
    """How long."""
    seed: int = Field(12345, ge=0, le=2**63 - 1)
    """Every draw of a run is a function of this number, the epoch, the iteration, the rank and the sample."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        _check_sizes(self)
        _check_network(self.network, self.masking)
        if not isinstance(self.schedule.iterations, str) and self.schedule.iterations < 1:
            raise ValueError("schedule.iterations must be at least 1, or 'dataset'")
        if self.loss.target_normalisation == "block" and self.masking.block_size < 2:
            raise ValueError(
                "loss.target_normalisation 'block' leaves nothing of blocks of one voxel: set it to 'none'"
            )
        if self.schedule.warmup_epochs >= self.schedule.epochs:
            raise ValueError(
                f"schedule.warmup_epochs {self.schedule.warmup_epochs} leaves nothing of {self.schedule.epochs} "
                f"epochs; the nearest possible is {self.schedule.epochs - 1}"
            )
        if self.schedule.iterations == "dataset" and self.sampling != SamplingRecipe():
            raise ValueError(
                "schedule.iterations 'dataset' takes every volume once an epoch, so nothing can be sampled more often: "
                "give a number of iterations, or leave sampling out"
            )
        if self.augmentation.reversal and not self.augmentation.intensity.active:
            raise ValueError(
                "augmentation.reversal has nothing to undo: switch on an intensity augmentation, or it off"
            )
        return self


def _check_sizes(recipe: Recipe) -> None:
    spacing, patch, ratio = recipe.data.spacing, recipe.network.patch_size, recipe.masking.ratio
    if not isinstance(spacing, str) and min(spacing) <= 0:
        raise ValueError(f"data.spacing {list(spacing)} must be positive (mm)")
    if not isinstance(spacing, str) and not 0.02 <= min(spacing) <= max(spacing) <= 50:
        raise ValueError(f"data.spacing {list(spacing)} is in mm, from 0.02 to 50")
    if not isinstance(patch, str) and max(patch) > 1024:
        raise ValueError(f"network.patch_size {list(patch)} is larger than 1024 voxels; the nearest possible is 1024")
    if not isinstance(patch, str) and min(patch) < 8:
        raise ValueError(f"network.patch_size {list(patch)} is smaller than 8 voxels; the nearest possible edge is 8")
    if recipe.augmentation.scale[0] <= 0:
        raise ValueError(f"augmentation.scale {list(recipe.augmentation.scale)} must be positive")
    if isinstance(ratio, tuple) and ratio[0] > ratio[1]:
        raise ValueError(f"masking.ratio {list(ratio)} must be [low, high]; did you mean [{ratio[1]}, {ratio[0]}]?")


_FOR_U_NETS = {
    "sparse": False,
    "skips": True,
    "decoder": "stock",
    "mask_tokens": False,
    "densify": False,
    "checkpoint_activations": False,
    "max_stages": None,
}
"""Keys that transformers leave as they are here."""


def _check_transformer(network: NetworkRecipe, masking: MaskingRecipe) -> None:
    transformer, backbone = network.transformer, network.backbone
    if not network.is_transformer:
        if transformer != TransformerRecipe():
            raise ValueError(
                f"network.transformer has no effect on '{backbone}': leave it out, or set network.backbone to nnformer "
                "or primus"
            )
        return
    for key, only in _FOR_U_NETS.items():
        if getattr(network, key) != only:
            raise ValueError(f"network.{key} is made for U-Nets: set it to {str(only).lower()} for '{backbone}'")
    if backbone == "nnformer" and transformer.hidden_tokens is not None:
        raise ValueError("network.transformer.hidden_tokens is for 'primus': nnFormer's stem mixes neighbouring tokens")
    if transformer.hidden_tokens is None:
        return
    if masking.hidden_value == "token":
        raise ValueError("masking.hidden_value 'token' would never be seen with hidden tokens: set it to 'zero'")
    if any(masking.block_size % edge for edge in transformer.stem_stride):
        nearest = max(1, round(masking.block_size / max(transformer.stem_stride))) * max(transformer.stem_stride)
        raise ValueError(
            f"masking.block_size {masking.block_size} is no whole number of tokens of "
            f"{list(transformer.stem_stride)} voxels; the nearest that is: {nearest}"
        )


def _check_network(network: NetworkRecipe, masking: MaskingRecipe) -> None:
    _check_transformer(network, masking)
    if network.patch_size == "planner" and network.backbone != "resenc":
        raise ValueError(
            f"network.patch_size 'planner' is nnU-Net's plan of a Residual Encoder U-Net: give three numbers for "
            f"'{network.backbone}'"
        )
    if network.decoder == "light" and network.skips:
        raise ValueError("network.decoder 'light' has no skip connections: set network.skips to false")
    if (network.mask_tokens or network.densify) and not network.sparse:
        raise ValueError(
            "network.mask_tokens and network.densify belong to a sparse encoder: set network.sparse to true"
        )
    if network.sparse and masking.hidden_value == "token":
        raise ValueError(
            "masking.hidden_value 'token' would never be seen by a sparse encoder: set it to 'zero' "
            "(network.mask_tokens are the learned vectors of a sparse network)"
        )
