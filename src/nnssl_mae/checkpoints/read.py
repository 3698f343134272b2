"""Reading pre-training checkpoints without executing anything in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256
from nnssl_mae.plans import PLANS_SCHEMA

_NETWORKS = {"ResidualEncoderUNet": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"}
_TORCH_CLASS = re.compile(r"torch\.nn\.(modules\.\w+\.)?\w+")


@dataclass(frozen=True)
class Checkpoint:
    """A pre-trained network and what is known about it.

    ``architecture`` has the form of nnU-Net's plans; ``data`` is the configuration it was trained with (spacing,
    normalisation, patch); ``plans`` holds reader and axis order; ``origin`` names it without any path.
    """

    weights: Mapping[str, torch.Tensor]
    architecture: dict[str, Any]
    channels: int
    plans: dict[str, Any]
    data: dict[str, Any]
    origin: dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads one of our own pre-training checkpoints.

    Raises:
        UserError: missing, not a checkpoint, holds code, or not from a pre-training.
    """
    content = _load(path)
    block, plan = content.get("nnssl_mae"), content.get("nnssl_adaptation_plan")
    if (
        not isinstance(block, dict)
        or not isinstance(plan, dict)
        or not isinstance(content.get("network_weights"), dict)
    ):
        raise UserError(
            f"{path} is not a pre-training checkpoint of nnssl_mae: it has no description of the pre-training. "
            "Give the checkpoint_final.pth of a run with -tr nnUNetTrainerMAE"
        )
    if block.get("schema", 0) > PLANS_SCHEMA:
        raise UserError(f"{path} was written by a newer nnssl_mae; pip install -U nnssl_mae")
    try:
        pretraining = plan["pretrain_plan"]
        (data,) = pretraining["configurations"].values()
        return Checkpoint(
            weights=content["network_weights"],
            architecture=_architecture(plan["architecture_plans"], path),
            channels=int(plan["pretrain_num_input_channels"]),
            plans={key: value for key, value in pretraining.items() if key != "configurations"},
            data=data,
            origin={
                "recipe": block["recipe"]["name"],
                "epochs": block["epochs_done"],
                "version": block["version"],
                "sha256": sha256(path),
                "citations": list(content.get("citations", ())),
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has a damaged description of its pre-training ({error!r})") from error


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist or is not a file; give the path of a checkpoint, such as checkpoint_final.pth"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors; the file is untrusted and any of them can come
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} is not a checkpoint that can be read safely ({reason}). Files that hold code instead of weights "
            "are refused"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _architecture(description: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """nnU-Net's form of the architecture; class names may only be torch's own, because nnU-Net imports them."""
    name = description["arch_class_name"]
    if name not in _NETWORKS:
        raise UserError(f"{path} holds a network '{name}'; known are {', '.join(_NETWORKS)}")
    kwargs, imported = dict(description["arch_kwargs"]), list(description["arch_kwargs_requiring_import"])
    for key in imported:
        if kwargs[key] is not None and not _TORCH_CLASS.fullmatch(str(kwargs[key])):
            raise UserError(f"{path} names '{kwargs[key]}' as {key}, which is not a class of torch.nn; refused")
    return {"network_class_name": _NETWORKS[name], "arch_kwargs": kwargs, "_kw_requires_import": imported}
