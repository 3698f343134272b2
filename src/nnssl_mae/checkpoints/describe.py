"""What we know of a pre-trained network once its file has been read, whoever wrote the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nnssl_mae.errors import UserError
from nnssl_mae.plans import NETWORK_CLASSES
from nnssl_mae.recipes.pretraining import MaskingRecipe, NetworkRecipe

READERS = ("NibabelIOWithReorient", "NibabelIO", "SimpleITKIO")
NORMALISATIONS = ("ZScoreNormalization", "RescaleTo01Normalization", "NoNormalization")
RESAMPLERS = (
    "resample_data_or_seg_to_shape",
    "no_resampling_hack",
    "resample_torch_simple",
    "resample_torch_fornnunet",
)
_TORCH_CLASS = re.compile(r"torch\.nn\.(modules\.\w+\.)?\w+")
_OPERATORS = ("conv_op", "norm_op", "dropout_op", "nonlin")


@dataclass(frozen=True)
class ReconstructionInfo:
    """What is needed besides the weights to hide and reconstruct as in pre-training."""

    network: NetworkRecipe
    masking: MaskingRecipe
    target_normalisation: Literal["none", "block"] = "none"
    clip_percentile: float | None = None
    """Clip of each scan before nnU-Net's preprocessing, or none."""
    released_s3d: bool = False
    """The network is S3D as nnssl builds it, see :mod:`nnssl_mae.checkpoints.nnssl_s3d`."""


@dataclass(frozen=True)
class Checkpoint:
    """A pre-trained network and what is known about it.

    ``architecture`` has the form of nnU-Net's plans; ``data`` is the configuration it was trained with (spacing,
    normalisation, patch); ``plans`` holds reader and axis order; ``origin`` names it without any path.
    ``reconstruction`` is None where the file cannot reconstruct, for the reason ``cannot_reconstruct``. ``notes`` are
    sentences about choices made while reading, for the user.
    """

    weights: Mapping[str, torch.Tensor]
    architecture: dict[str, Any]
    channels: int
    plans: dict[str, Any]
    data: dict[str, Any]
    origin: dict[str, Any]
    reconstruction: ReconstructionInfo | None = None
    cannot_reconstruct: str = ""
    notes: tuple[str, ...] = ()


def nnunet_architecture(
    name: str, kwargs: Mapping[str, Any], imported: Iterable[str] | None, path: Path
) -> dict[str, Any]:
    """nnU-Net's form of an architecture; class names may only be torch's own, because nnU-Net imports them.

    Args:
        name: of the network class, without its module.
        kwargs: of the class; may be changed by nobody afterwards, so it is copied.
        imported: keys whose values name classes; None for all operators that are given.
        path: of the file, for the error.

    Raises:
        UserError: an unknown network, or a class that is not of ``torch.nn``.
    """
    known = {path.rsplit(".", 1)[-1]: path for path in NETWORK_CLASSES.values()}
    if name not in known:
        raise UserError(f"{path} holds a network '{name}'; known are {', '.join(known)}")
    kwargs = dict(kwargs)
    keys = list(imported) if imported else [key for key in _OPERATORS if kwargs.get(key) is not None]
    for key in keys:
        if kwargs[key] is not None and not _TORCH_CLASS.fullmatch(str(kwargs[key])):
            raise UserError(f"{path} names '{kwargs[key]}' as {key}, which is not a class of torch.nn; refused")
    return {"network_class_name": known[name], "arch_kwargs": kwargs, "_kw_requires_import": keys}


def check_preprocessing(plans: Mapping[str, Any], data: Mapping[str, Any], path: Path) -> None:
    """Refuses what nnU-Net would look up by name without knowing it, or in another place than meant.

    Raises:
        UserError: an unknown reader, normalisation or resampling function.
    """
    _known("reader", [plans["image_reader_writer"]], READERS, path)
    _known("normalisation", data["normalization_schemes"], NORMALISATIONS, path)
    _known("resampling function", [data["resampling_fn_data"], data["resampling_fn_mask"]], RESAMPLERS, path)


def _known(kind: str, names: Iterable[Any], known: Iterable[str], path: Path) -> None:
    for name in names:
        if name not in known:
            raise UserError(
                f"{path} was trained with the {kind} '{name}', which cannot be repeated here; "
                f"known are {', '.join(known)}"
            )
