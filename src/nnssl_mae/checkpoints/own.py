"""Our own pre-training checkpoints, as ``.pth`` and as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnssl_mae.checkpoints.describe import (
    DAMAGED,
    Checkpoint,
    Origin,
    ReconstructionInfo,
    check_preprocessing,
    nnunet_architecture,
)
from nnssl_mae.checkpoints.locate import Source
from nnssl_mae.checkpoints.names import with_aliases
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256
from nnssl_mae.plans import PLANS_SCHEMA
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import parse_recipe
from nnssl_mae.scans.preprocess import BeyondStock


def is_own(content: Mapping[str, Any]) -> bool:
    """Whether this is from a pre-training of ours; fine-tuned models have a block of ours too, with their origin."""
    block = content.get("nnssl_mae")
    return isinstance(block, dict) and "initialisation" not in block


def read_own(content: Mapping[str, Any], source: Source) -> Checkpoint:
    """Describes a checkpoint of ours.

    Args:
        content: what was loaded; ``network_weights`` holds tensors, each under one of its names or under all.

    Raises:
        UserError: written by a newer version, a damaged description, or a network or preprocessing not known here.
    """
    try:
        return _described(content, source)
    except DAMAGED as error:
        raise UserError(
            f"{source} has a damaged description of its pre-training ({error!r}); download or copy it again"
        ) from error


def _described(content: Mapping[str, Any], source: Source) -> Checkpoint:
    block, plan = content["nnssl_mae"], content["nnssl_adaptation_plan"]
    if block.get("schema", 0) > PLANS_SCHEMA:
        raise UserError(f"{source} was written by a newer nnssl_mae; pip install -U nnssl_mae")
    pretraining, described = plan["pretrain_plan"], plan["architecture_plans"]
    (data,) = pretraining["configurations"].values()
    plans = {key: value for key, value in pretraining.items() if key != "configurations"}
    check_preprocessing(plans, data, source.shown)
    architecture = nnunet_architecture(
        described["arch_class_name"], described["arch_kwargs"], described["arch_kwargs_requiring_import"], source.shown
    )
    recipe = parse_recipe(block["recipe"], source=f"in {source}")
    return Checkpoint(
        weights=with_aliases(content["network_weights"], architecture),
        architecture=architecture,
        channels=int(plan["pretrain_num_input_channels"]),
        plans=plans,
        data=data,
        origin=_origin(content, block, source),
        beyond_stock=BeyondStock.of(recipe.data),
        reconstruction=_reconstruction(recipe),
    )


def _origin(content: Mapping[str, Any], block: Mapping[str, Any], source: Source) -> Origin:
    licence, epochs, excluded = content.get("licence"), int(block["epochs_done"]), block.get("excluded_datasets")
    iterations = block["recipe"]["schedule"]["iterations"]  # or 'dataset': as many as there are volumes
    return Origin(
        format="nnssl_mae",
        label=source.label,
        sha256=sha256(source.file),
        method=str(block["recipe"]["name"]),
        epochs=epochs,
        steps=epochs * iterations if isinstance(iterations, int) else None,
        version=str(block["version"]),
        citations=tuple(map(str, content.get("citations", ()))),
        licence=None if licence is None else str(licence),
        excluded_datasets=None if excluded is None else tuple(map(str, excluded)),
    )


def _reconstruction(recipe: Recipe) -> ReconstructionInfo:
    return ReconstructionInfo(
        network=recipe.network,
        masking=recipe.masking,
        target_normalisation=recipe.loss.target_normalisation,
    )
