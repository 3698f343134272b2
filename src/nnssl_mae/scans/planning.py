"""nnU-Net plans for unlabelled scans: the stock planner, then the sizes of the recipe."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.resampling.planners_no_resampling import (
    nnUNetPlannerResEncL_noResampling,
)
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
)

from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json, write_json
from nnssl_mae.folders import planner_environment
from nnssl_mae.masking import block_edges
from nnssl_mae.plans import (
    CONFIGURATION,
    PLANS_BLOCK,
    PRETRAINING_PLANS,
    check_plans_name,
    data_identifier,
    existing_plans,
    make_block,
    network_configuration,
    read_block,
    same_topology,
)
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import override, parse_recipe
from nnssl_mae.recipes.words import shown
from nnssl_mae.scans.preprocess import BeyondStock

READERS = {"RAS": "NibabelIOWithReorient", "as_stored": "SimpleITKIO"}


def dataset_json(n_scans: int) -> dict[str, Any]:
    """The ``dataset.json`` of an unlabelled one-channel dataset. It lists no files: it is copied into checkpoints."""
    return {
        "channel_names": {"0": "zscore"},
        "labels": {"background": 0},
        "numTraining": n_scans,
        "file_ending": ".nii.gz",
    }


def plan_unlabelled(
    name: str, recipe: Recipe, fingerprint: Mapping[str, Any], example: Path, n_scans: int
) -> dict[str, Any]:
    """Plans named ``nnsslMAEPlans`` with the configuration ``3d_fullres_mae`` and the recipe inside.

    Args:
        name: ``Dataset900_Brains``.
        recipe: decides spacing, normalisation and network; strides and kernels follow from nnU-Net's functions.
        fingerprint: of the scans, in nnU-Net's form.
        example: a readable scan, for nnU-Net's choice of reader.
        n_scans: number of scans.
    """
    plans = _stock_plans(name, recipe, fingerprint, example, n_scans)
    configuration = plans["configurations"]["3d_fullres"]
    configuration["normalization_schemes"] = [recipe.data.normalisation]
    configuration["use_mask_for_norm"] = [recipe.data.normalise_inside_mask]
    if recipe.network.patch_size != "planner":
        configuration |= network_configuration(
            configuration["architecture"], recipe.network, configuration["spacing"], recipe.masking.block_size
        )
    configuration["data_identifier"] = data_identifier(
        plans, configuration, contents="volumes", beyond_stock=BeyondStock.of(recipe.data).words
    )
    configuration[PLANS_BLOCK] = _block(recipe, configuration)
    plans["configurations"] = {CONFIGURATION: configuration}
    return plans


def _with_planned_sizes(recipe: Recipe, configuration: Mapping[str, Any]) -> Recipe:
    """The recipe with the sizes that nnU-Net planned, so that it tells what was trained."""
    kwargs = configuration["architecture"]["arch_kwargs"]
    planned = {
        "batch_size": configuration["batch_size"],
        "base_features": kwargs["features_per_stage"][0],
        "max_features": max(kwargs["features_per_stage"]),
        "blocks_per_stage": list(kwargs["n_blocks_per_stage"]),
        "convs_per_decoder_stage": max(kwargs["n_conv_per_stage_decoder"]),
        "max_stages": kwargs["n_stages"],
    }
    return override(recipe, {f"network.{key}": value for key, value in planned.items()})


def replan(plans: Mapping[str, Any], recipe: Recipe, plans_name: str) -> dict[str, Any]:
    """Plans for another recipe on volumes that are preprocessed already.

    Args:
        plans: of the prepared dataset, with its recipe inside.
        recipe: the new one; its ``data`` section must be that of the old one.
        plans_name: of the new plans.

    Raises:
        UserError: the recipe needs other preprocessing, or its network does not fit its patch.
    """
    configuration = dict(plans["configurations"][CONFIGURATION])
    before = parse_recipe(read_block(configuration, "pretrain", plans["plans_name"])["recipe"], source="in the plans")
    if before.data != recipe.data:
        differences = data_differences(recipe, before)
        raise UserError(
            f"The recipe '{recipe.name}' needs other volumes than the dataset holds ({differences}). Prepare "
            "them under another dataset number, or take the dataset's values with --set"
        )
    if recipe.network.patch_size == "planner":
        if before.network.patch_size != "planner":
            raise UserError("network.patch_size 'planner' is decided when a dataset is prepared; give three numbers")
    else:
        configuration |= network_configuration(
            configuration["architecture"], recipe.network, configuration["spacing"], recipe.masking.block_size
        )
    configuration[PLANS_BLOCK] = _block(recipe, configuration)
    return {**plans, "plans_name": plans_name, "configurations": {CONFIGURATION: configuration}}


def write_plans_for(folder: Path, recipe: Recipe, plans_name: str | None) -> str:
    """Writes plans for another recipe beside those of a prepared dataset.

    Args:
        folder: ``nnUNet_preprocessed/DatasetXXX_Name``.
        recipe: the new one.
        plans_name: of the new plans; none names them after the recipe.

    Returns:
        the name. Plans of this name that hold the same recipe are left as they are.

    Raises:
        UserError: the dataset was not prepared, the name is taken, or the recipe does not fit the volumes.
    """
    name = f"{PRETRAINING_PLANS}_{recipe.name}" if plans_name is None else plans_name
    check_plans_name(name)
    prepared, file = existing_plans(folder, PRETRAINING_PLANS), folder / f"{name}.json"
    plans = replan(read_json(prepared, "prepare the dataset again"), recipe, name)
    if not file.is_file():
        write_json(file, plans)
    elif read_json(file, "remove it").get("configurations") != json.loads(json.dumps(plans["configurations"])):
        raise UserError(f"{file} exists and holds another recipe; choose another name with -p")
    return name


def data_differences(recipe: Recipe, before: Recipe) -> str:
    """What the volumes of one recipe have that those of another, ``before``, have not; for a sentence."""
    wanted, held = recipe.data.model_dump(), before.data.model_dump()
    return ", ".join(
        f"data.{key} {shown(wanted[key])} instead of {shown(held[key])}" for key in wanted if wanted[key] != held[key]
    )


def check_fits(recipe: Recipe) -> None:
    """Refuses at once, where that can be known without scans, a patch that will not fit the network or its blocks.

    Raises:
        UserError: with a patch that fits.
    """
    spacing = recipe.data.spacing
    if isinstance(spacing, str) or len(set(spacing)) > 1 or recipe.network.patch_size == "planner":
        return  # the order of axes, or all, is decided by the scans
    network_configuration({"arch_kwargs": {}}, recipe.network, spacing, recipe.masking.block_size)


def _block(recipe: Recipe, configuration: Mapping[str, Any]) -> dict[str, Any]:
    if recipe.network.patch_size == "planner":
        recipe = _with_planned_sizes(recipe, configuration)
    edges = block_edges(configuration["patch_size"], recipe.masking.block_size)
    return make_block("pretrain", recipe=recipe.model_dump(mode="json"), block_edges=list(edges))


def topology_note(plans: Mapping[str, Any], published: Recipe) -> str | None:
    """A sentence if the planned network is not the one of the recipe as published; its checkpoints then differ."""
    configuration = plans["configurations"][CONFIGURATION]
    if isinstance(published.network.patch_size, str) or isinstance(published.data.spacing, str):
        return None
    try:
        expected = network_configuration(
            configuration["architecture"], published.network, published.data.spacing, published.masking.block_size
        )
    except UserError:
        return None  # only the user's changes made the recipe fit its patch
    if same_topology(configuration, expected):
        return None
    return (
        f"This spacing and patch give another network than the recipe '{published.name}' as published: weights of "
        "published checkpoints will not fit it, and neither will ours fit theirs."
    )


def _stock_plans(
    name: str, recipe: Recipe, fingerprint: Mapping[str, Any], example: Path, n_scans: int
) -> dict[str, Any]:
    """Runs nnU-Net's ResEnc L planner, unchanged, on folders that exist only for that."""
    spacing = recipe.data.spacing
    planner = nnUNetPlannerResEncL_noResampling if spacing == "native" else nnUNetPlannerResEncL
    with tempfile.TemporaryDirectory() as temporary:
        raw, preprocessed = Path(temporary, "raw"), Path(temporary, "preprocessed")
        for folder in (raw / name, preprocessed / name):
            folder.mkdir(parents=True)
        # The planner lists images only to try a reader on the first: one entry spares it 40,000.
        listing = {"example": {"images": [str(example)], "label": str(example)}}
        content = {
            **dataset_json(n_scans),
            "dataset": listing,
            "overwrite_image_reader_writer": READERS[recipe.data.orientation],
        }
        (raw / name / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
        (preprocessed / name / "dataset_fingerprint.json").write_text(json.dumps(fingerprint), encoding="utf-8")
        # It builds the network to estimate memory, from shapes alone: on "meta" that takes no memory and no time.
        with torch.device("meta"), planner_environment(nnUNet_raw=str(raw), nnUNet_preprocessed=str(preprocessed)):
            planner(
                name,
                plans_name=PRETRAINING_PLANS,
                overwrite_target_spacing=None if isinstance(spacing, str) else list(spacing),
            ).plan_experiment()
        plans: dict[str, Any] = json.loads((preprocessed / name / f"{PRETRAINING_PLANS}.json").read_text("utf-8"))
    if "3d_fullres" not in plans["configurations"]:
        raise UserError("nnU-Net planned no 3D configuration: the scans are single slices")
    return plans
