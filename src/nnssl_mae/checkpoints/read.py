"""Reading pre-training checkpoints, ours and nnssl's, without executing anything in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnssl_mae.checkpoints.describe import (
    Checkpoint,
    Origin,
    ReconstructionInfo,
    check_preprocessing,
    nnunet_architecture,
)
from nnssl_mae.checkpoints.nnssl import read_nnssl, side_plan
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256
from nnssl_mae.plans import PLANS_SCHEMA
from nnssl_mae.recipes.reading import parse_recipe

_USUAL_NAME = "checkpoint_final.pth"


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a pre-training checkpoint of ours or of nnssl (OpenMind); the content decides which it is.

    Args:
        path: the file, or the folder that holds ``checkpoint_final.pth``.

    Raises:
        UserError: missing, not a checkpoint, holds code, not from a pre-training, or of a network not known here.
    """
    path = _file(path)
    content = _load(path)
    _check_weights(content, path)
    if isinstance(content.get("nnssl_mae"), dict):
        return _read_own(content, path)
    plan = content.get("nnssl_adaptation_plan") or side_plan(path)
    if isinstance(plan, dict):
        return read_nnssl(content, plan, path)
    missing = "; nnssl writes it as adaptation_plan.json beside the file" if "spark_weights" in content else ""
    raise _not_a_pretraining(path, missing)


def _file(path: Path) -> Path:
    if path.is_dir():
        path = path / _USUAL_NAME
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file; give the path of a checkpoint, such as {_USUAL_NAME}")
    return path


def _load(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors; the file is untrusted and any of them can come
        # Without torch's own text, which tells people to switch the protection off.
        raise UserError(
            f"{path} is not a checkpoint that can be read safely ({type(error).__name__}): it is damaged, no "
            "checkpoint at all, or holds code beside weights, which is never run"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _check_weights(content: Mapping[str, Any], path: Path) -> None:
    weights = content.get("network_weights")
    if not isinstance(weights, dict):
        raise _not_a_pretraining(path)
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path} holds a {type(tensor).__name__} where weights should be ({name}); it is damaged")


def _not_a_pretraining(path: Path, more: str = "") -> UserError:
    return UserError(
        f"{path} is not a pre-training checkpoint of nnssl_mae or nnssl: it has no description of the pre-training"
        f"{more}. Give the {_USUAL_NAME} of a run with -tr nnUNetTrainerMAE, or of nnssl"
    )


def _read_own(content: Mapping[str, Any], path: Path) -> Checkpoint:
    block, plan = content["nnssl_mae"], content.get("nnssl_adaptation_plan")
    if not isinstance(plan, dict):
        raise _not_a_pretraining(path)
    try:
        if block.get("schema", 0) > PLANS_SCHEMA:
            raise UserError(f"{path} was written by a newer nnssl_mae; pip install -U nnssl_mae")
        pretraining, architecture = plan["pretrain_plan"], plan["architecture_plans"]
        (data,) = pretraining["configurations"].values()
        plans = {key: value for key, value in pretraining.items() if key != "configurations"}
        check_preprocessing(plans, data, path)
        return Checkpoint(
            weights=content["network_weights"],
            architecture=nnunet_architecture(
                architecture["arch_class_name"],
                architecture["arch_kwargs"],
                architecture["arch_kwargs_requiring_import"],
                path,
            ),
            channels=int(plan["pretrain_num_input_channels"]),
            plans=plans,
            data=data,
            origin=Origin(
                format="nnssl_mae",
                label=path.name,
                sha256=sha256(path),
                method=str(block["recipe"]["name"]),
                epochs=int(block["epochs_done"]),
                steps=int(block["epochs_done"]) * int(block["recipe"]["schedule"]["iterations"]),
                version=str(block["version"]),
                citations=tuple(map(str, content.get("citations", ()))),
            ),
            reconstruction=_reconstruction(block["recipe"], path),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} has a damaged description of its pre-training ({error!r})") from error


def _reconstruction(recipe_content: Mapping[str, Any], path: Path) -> ReconstructionInfo:
    recipe = parse_recipe(recipe_content, source=f"in {path}")
    return ReconstructionInfo(
        network=recipe.network,
        masking=recipe.masking,
        target_normalisation=recipe.loss.target_normalisation,
        clip_percentile=recipe.data.clip_percentile,
        clip_low_percentile=recipe.data.clip_low_percentile,
        crop=recipe.data.crop,
    )
