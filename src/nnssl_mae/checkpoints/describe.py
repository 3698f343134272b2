"""What we know of a pre-trained network once its file has been read, whoever wrote the file."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from nnssl_mae.backbones import BACKBONES, LAYER_CLASSES, short_name
from nnssl_mae.errors import UserError
from nnssl_mae.recipes.pretraining import MaskingRecipe, NetworkRecipe

if TYPE_CHECKING:  # scans/ imports much, and trainers import this
    from nnssl_mae.scans.preprocess import BeyondStock

READERS = ("NibabelIOWithReorient", "NibabelIO", "SimpleITKIO")
CT_NORMALISATION = "CTNormalization"
NORMALISATIONS = (
    "ZScoreNormalization",
    "RescaleTo01Normalization",
    "NoNormalization",
    "RGBTo01Normalization",
    CT_NORMALISATION,
)
CT_INTENSITIES = "foreground_intensity_properties_per_channel"
"""Key of nnU-Net's plans: what its CT normalisation clips at and scales by, for each channel."""
RESAMPLERS = (
    "resample_data_or_seg_to_shape",
    "no_resampling_hack",
    "resample_torch_simple",
    "resample_torch_fornnunet",
)
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError, RuntimeError, ArithmeticError)
"""What looking into a description raises that is not as it should be."""
_TORCH_CLASS = re.compile(r"torch\.nn\.(modules\.\w+\.)?\w+")
_PLANS_KEYS = ("image_reader_writer", "transpose_forward", "transpose_backward")
_DATA_KEYS = (
    "preprocessor_name",
    "spacing",
    "patch_size",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_mask",
    "resampling_fn_mask_kwargs",
)
_DEPTHS = ("n_blocks_per_stage", "n_conv_per_stage", "n_conv_per_stage_decoder", "n_blocks_per_stage_decoder")
# Far above every network that fits a machine: a description must not make us build what fills its memory.
_LARGEST = {
    "n_stages": 16,
    "features_per_stage": 4096,
    "kernel_sizes": 15,
    "strides": 16,
    "num_heads": 128,
    "windows": 16,
    "input_shape": 1024,
    **dict.fromkeys(_DEPTHS, 64),
}
_MOST_WEIGHTS = 10_000_000_000


@dataclass(frozen=True)
class ReconstructionInfo:
    """What is needed besides the weights to hide and reconstruct as in pre-training."""

    network: NetworkRecipe
    masking: MaskingRecipe
    target_normalisation: Literal["none", "block"] = "none"
    released_s3d: bool = False
    """The network is S3D as nnssl builds it, see :mod:`nnssl_mae.checkpoints.nnssl_s3d`."""


@dataclass(frozen=True)
class Origin:
    """Where weights come from, without any path of a machine: it goes along into plans and models."""

    format: Literal["nnssl_mae", "nnssl", "nnU-Net", "AMAES", "weights"]
    """Whose form the file has; ``weights`` is a bare state dict."""
    label: str
    """The file's name, or ``hf://owner/name@revision``."""
    sha256: str
    """Of the file."""
    method: str | None = None
    """Recipe or trainer that pre-trained it, such as ``mae``; None is unknown."""
    epochs: int | None = None
    """Epochs done; None is unknown."""
    steps: int | None = None
    """Optimiser steps done; None is unknown."""
    version: str | None = None
    """Of the package that wrote it."""
    citations: tuple[str, ...] = ()
    """What to cite when the weights are used."""
    licence: str | None = None
    """SPDX name of the weights' licence; None is unknown."""
    excluded_datasets: tuple[str, ...] | None = None
    """Labelled datasets whose scans were kept out of pre-training; None is unknown."""

    def as_json(self) -> dict[str, Any]:
        """For plans and checkpoints: plain values only."""
        excluded = None if self.excluded_datasets is None else list(self.excluded_datasets)
        return {**asdict(self), "citations": list(self.citations), "excluded_datasets": excluded}


def _all_stock() -> BeyondStock:
    from nnssl_mae.scans.preprocess import BeyondStock

    return BeyondStock()


@dataclass(frozen=True)
class Checkpoint:
    """A pre-trained network and what is known about it.

    ``weights`` stand under the names of nnU-Net's networks; a tensor may have several. ``architecture`` has the form of
    nnU-Net's plans; its ``strides`` may be missing where the file does not tell them. ``data`` is the configuration the
    network was trained with (spacing, normalisation, patch) and ``plans`` holds reader and axis order: both are empty
    where the file says nothing of preprocessing. ``reconstruction`` is None where the file cannot reconstruct, for the
    reason ``cannot_reconstruct``. ``notes`` are sentences for the user about choices made while reading that matter to
    whatever the weights are used for, ``reconstruction_notes`` such that matter to reconstruction only.
    """

    weights: Mapping[str, torch.Tensor]
    architecture: dict[str, Any]
    channels: int
    plans: dict[str, Any]
    data: dict[str, Any]
    origin: Origin
    beyond_stock: BeyondStock = field(default_factory=_all_stock)
    """What was done to the scans before nnU-Net's own preprocessing; known also where nothing can be reconstructed."""
    reconstruction: ReconstructionInfo | None = None
    cannot_reconstruct: str = ""
    notes: tuple[str, ...] = ()
    reconstruction_notes: tuple[str, ...] = ()

    @property
    def is_preprocessing_known(self) -> bool:
        """Whether spacing, normalisation, reader, axis order and patch of the pre-training are known."""
        return bool(self.data) and bool(self.plans)


def nnunet_architecture(
    name: str, kwargs: Mapping[str, Any], imported: Iterable[str] | None, path: Path | str
) -> dict[str, Any]:
    """nnU-Net's form of an architecture; class names may only be torch's own, because nnU-Net imports them.

    Args:
        name: of the network class, without its module.
        kwargs: of the class; may be changed by nobody afterwards, so it is copied.
        imported: keys whose values name classes; None for all operators that are given.
        path: of the file, for the error.

    Raises:
        UserError: an unknown network, a class that is not of ``torch.nn``, or absurd sizes.
    """
    known = {short_name(backbone.network_class): backbone for backbone in BACKBONES.values()}
    if name not in known:
        raise UserError(f"{path} holds a network '{name}'; known are {', '.join(known)}")
    kwargs = dict(kwargs)
    keys = list(imported) if imported else [key for key in LAYER_CLASSES if kwargs.get(key) is not None]
    if not set(keys) <= set(LAYER_CLASSES):
        raise UserError(f"{path} wants {', '.join(map(str, keys))} imported; only {', '.join(LAYER_CLASSES)} can be")
    for key in LAYER_CLASSES:
        if kwargs.get(key) is not None and not _is_module_class(str(kwargs[key])):
            raise UserError(f"{path} names '{kwargs[key]}' as {key}, which is not a class of torch.nn; refused")
    if str(kwargs.get("nonlin")).endswith(".PReLU"):
        raise UserError(f"{path} holds a network with PReLU, whose weights have no fixed name; it cannot be used")
    _check_sizes(kwargs, path)
    kwargs |= _for_each_stage(kwargs)
    return {"network_class_name": known[name].network_class, "arch_kwargs": kwargs, "_kw_requires_import": keys}


def _is_module_class(name: str) -> bool:
    """Whether this is the name of a network layer in torch; its other functions would be called with any arguments."""
    if not _TORCH_CLASS.fullmatch(name):
        return False
    module, _, own_name = name.rpartition(".")
    found = getattr(sys.modules.get(module), own_name, None)  # torch has imported all of torch.nn
    return isinstance(found, type) and issubclass(found, torch.nn.Module)


def _for_each_stage(kwargs: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Lists for numbers that stand for all stages."""
    stages = kwargs.get("n_stages")
    if not isinstance(stages, int):
        return {}
    lengths = dict.fromkeys(("features_per_stage", "kernel_sizes", "strides", *_DEPTHS), stages)
    lengths |= dict.fromkeys(("n_conv_per_stage_decoder", "n_blocks_per_stage_decoder"), stages - 1)
    return {key: [kwargs[key]] * length for key, length in lengths.items() if isinstance(kwargs.get(key), int)}


def _check_sizes(kwargs: Mapping[str, Any], path: Path | str) -> None:
    for key, largest in _LARGEST.items():
        if any(not 1 <= number <= largest for number in _numbers(kwargs.get(key, 1))):
            raise UserError(
                f"{path} describes a network with {key} {str(kwargs[key])[:60]}; only numbers from 1 to {largest} are "
                "possible, so the description is damaged"
            )
    width = max(_numbers(kwargs.get("features_per_stage", 1)), default=1)
    kernel = max(_numbers(kwargs.get("kernel_sizes", 3)), default=3) ** 3
    depth = max(sum(_numbers(kwargs.get(key, 1))) for key in _DEPTHS)
    if width**2 * kernel * depth > _MOST_WEIGHTS:
        raise UserError(f"{path} describes a network too large for any machine ({width} features); it is damaged")


def _numbers(value: Any) -> list[int | float]:
    """All numbers in nested lists."""
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


def check_preprocessing(plans: Mapping[str, Any], data: Mapping[str, Any], path: Path | str) -> None:
    """Refuses what is incomplete, and what nnU-Net would look up by name without knowing it, or elsewhere than meant.

    Raises:
        UserError: something that is used later is missing or of the wrong form, or an unknown reader, normalisation or
            resampling function.
    """
    _check_complete(plans, data, path)
    _check_edges(data, path)
    _known("reader", [plans["image_reader_writer"]], READERS, path)
    _known("normalisation", data["normalization_schemes"], NORMALISATIONS, path)
    _known("resampling function", [data["resampling_fn_data"], data["resampling_fn_mask"]], RESAMPLERS, path)
    if CT_NORMALISATION in data["normalization_schemes"] and not plans.get(CT_INTENSITIES):
        raise UserError(
            f"{path} was trained with the normalisation '{CT_NORMALISATION}' but does not hold the intensities that it "
            "scales by, so it cannot be repeated; use a checkpoint that holds its plans"
        )


def _check_edges(data: Mapping[str, Any], path: Path | str) -> None:
    """Spacing and patch are three positive numbers; patches are whole."""
    for key, kinds in (("spacing", (int, float)), ("patch_size", (int,))):
        values = data[key]
        numbers = isinstance(values, list | tuple) and all(type(value) in kinds for value in values)
        if not numbers or len(values) != 3 or not all(0 < value < math.inf for value in values):
            raise UserError(f"{path} has {key} {values!r}, which must be three numbers above zero; it is damaged")


def _check_complete(plans: Mapping[str, Any], data: Mapping[str, Any], path: Path | str) -> None:
    missing = [key for key in _PLANS_KEYS if key not in plans] + [key for key in _DATA_KEYS if key not in data]
    wrong = [f"its plan has no {key}" for key in missing]
    wrong += [
        f"{key} is {plans[key]!r} and not an order of the axes 0, 1 and 2"
        for key in ("transpose_forward", "transpose_backward")
        if key in plans and not _is_axis_order(plans[key])
    ]
    if not wrong and [plans["transpose_forward"][axis] for axis in plans["transpose_backward"]] != [0, 1, 2]:
        wrong.append("transpose_backward does not undo transpose_forward")
    wrong += [
        f"{key} is {data[key]!r} and not a list with a value for each channel"
        for key in ("normalization_schemes", "use_mask_for_norm")
        if key in data and not (isinstance(data[key], list | tuple) and data[key])
    ]
    if wrong:
        raise UserError(
            f"{path} does not say how its scans were preprocessed: {'; '.join(wrong)}. Get an undamaged copy of the "
            "checkpoint, with the adaptation plan that belongs to it"
        )


def _is_axis_order(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(axis) is int for axis in value) and sorted(value) == [0, 1, 2]


def _known(kind: str, names: Iterable[Any], known: Iterable[str], path: Path | str) -> None:
    for name in names:
        if name not in known:
            raise UserError(
                f"{path} was trained with the {kind} '{name}', which cannot be repeated here; "
                f"known are {', '.join(known)}"
            )
