"""Checkpoint files of every form that we read, with a tiny network and random weights.

No released nnssl file can be had in a test: these are written after the description of the format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnssl_mae.checkpoints.adaptation_plan import make_adaptation_plan
from nnssl_mae.checkpoints.describe import nnunet_architecture
from nnssl_mae.networks.pretraining import pretraining_network
from nnssl_mae.plans import PLANS_SCHEMA
from nnssl_mae.recipes.pretraining import NetworkRecipe, Recipe
from nnssl_mae.recipes.reading import parse_recipe

WIDTHS = (4, 6, 8)
KWARGS: dict[str, Any] = {
    "n_stages": 3,
    "features_per_stage": list(WIDTHS),
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 1, 2],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def tiny_recipe(**parts: Any) -> Recipe:
    """Patches of 16^3 voxels in blocks of 4^3; sections of the recipe can be given."""
    content: dict[str, Any] = {
        "name": "tiny",
        "summary": "for tests",
        "network": {"patch_size": [16, 16, 16]},
        "masking": {"block_size": 4, "ratio": [0.5, 0.7]},
    }
    for section, values in parts.items():
        content[section] = {**content.get(section, {}), **values}
    return parse_recipe(content, "for tests")


def network_of(recipe: Recipe, seed: int = 0) -> torch.nn.Module:
    """The network of a recipe with weights that are all different, so that a mix-up shows."""
    architecture = nnunet_architecture("ResidualEncoderUNet", KWARGS, None, Path("test"))
    torch.manual_seed(seed)
    network = pretraining_network(architecture, 1, recipe.network, recipe.masking.hidden_value)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def write_own(
    path: Path,
    recipe: Recipe,
    reader: str = "NibabelIOWithReorient",
    transpose: tuple[int, int, int] = (0, 1, 2),
    spacing: tuple[float, float, float] = (5.0, 4.0, 6.0),
) -> torch.nn.Module:
    """One of our own checkpoints; returns its network."""
    network = network_of(recipe)
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "normalization_schemes": [recipe.data.normalisation],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
        "spacing": list(spacing),
        "patch_size": [16, 16, 16],
        "architecture": nnunet_architecture("ResidualEncoderUNet", KWARGS, None, path),
    }
    plans = _plans(reader, list(transpose)) | {"configurations": {"3d_fullres_mae": configuration}}
    content = {
        "network_weights": network.state_dict(),
        "nnssl_adaptation_plan": make_adaptation_plan(plans, "3d_fullres_mae", 1),
        "citations": [],
        "nnssl_mae": {
            "schema": PLANS_SCHEMA,
            "version": "0",
            "recipe": recipe.model_dump(mode="json"),
            "epochs_done": 1,
        },
    }
    torch.save(content, path)
    return network


def _plans(reader: str, transpose: list[int]) -> dict[str, Any]:
    return {
        "dataset_name": "Dataset745_OpenMind",
        "plans_name": "nnsslPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "image_reader_writer": reader,
        "transpose_forward": transpose,
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "experiment_planner_used": "FixedResEncUNetPlanner",
    }


def adaptation_plan(**changes: Any) -> dict[str, Any]:
    """A plan of nnssl with tuples for lists, whole numbers for floats and no ``key_to_lpe``; top keys can be given."""
    configuration = {
        "data_identifier": "nnsslPlans_onemmiso",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "onemmiso",
        "normalization_schemes": ("ZScoreNormalization",),
        "use_mask_for_norm": (False,),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING,
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
        "spacing": (1, 1, 1),
        "patch_size": (32, 32, 32),
    }
    return {
        "architecture_plans": {
            "arch_class_name": "ResidualEncoderUNet",
            "arch_kwargs": {**KWARGS, "features_per_stage": WIDTHS},
            "arch_kwargs_requiring_import": ("conv_op", "norm_op", "nonlin"),
        },
        "pretrain_plan": _plans("SimpleITKIO", [0, 1, 2]) | {"configurations": {"onemmiso": configuration}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": (32, 32, 32),
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"),
    } | changes


def with_configuration(plan: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The plan with changes in its one configuration."""
    pretraining = plan["pretrain_plan"]
    ((name, configuration),) = pretraining["configurations"].items()
    return {**plan, "pretrain_plan": {**pretraining, "configurations": {name: {**configuration, **changes}}}}


def write_nnssl(path: Path, plan: Mapping[str, Any] | None, **more: Any) -> torch.nn.Module:
    """A plain MAE file of nnssl; returns the network that its weights are of. ``plan`` None leaves the plan out."""
    network = network_of(tiny_recipe())
    content: dict[str, Any] = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration_name": "onemmiso", "fold": "all"},
        "trainer_name": "BaseMAETrainer_BS8_1000ep",
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 1000,
    }
    torch.save(content | ({} if plan is None else {"nnssl_adaptation_plan": plan}) | more, path)
    return network


def write_s3d(path: Path, plan: Mapping[str, Any], released: bool = False, tokens_reversed: bool = False) -> Any:
    """An S3D file: encoder stored twice with different values, tokens aside, the plan beside it.

    Returns:
        the network whose encoder and decoder are the trained ones, under our names.
    """
    sparse = NetworkRecipe(sparse=True, mask_tokens=True, densify=True, patch_size=(16, 16, 16))
    network = network_of(tiny_recipe(network=sparse.model_dump()))
    trained = network.state_dict()
    untouched = network_of(tiny_recipe(), seed=1).state_dict()
    names = [name for name in trained if name.startswith(("encoder.", "decoder."))]
    weights = {
        name: (
            untouched
            if name.startswith("decoder.encoder.") or (name.startswith("encoder.") and ".all_modules." not in name)
            else trained
        )[name]
        for name in names
    }
    levels = range(len(WIDTHS))
    order = list(reversed(levels)) if tokens_reversed else list(levels)
    spark = {f"architecture.{name}": tensor for name, tensor in weights.items()}
    spark |= {f"mask_tokens.{index}": trained[f"mask_tokens.{level}"] for index, level in enumerate(order)}
    for level in levels[1:]:
        for part in ("weight", "bias"):
            spark[f"densify_projs.{level}.{part}"] = trained[f"densifiers.{level}.{part}"]
    content: dict[str, Any] = {
        "network_weights": weights,
        "init_args": {},
        "trainer_name": "SparkMAETrainer_BS8",
        "current_epoch": 10,
    }
    if released:
        content["nnssl_adaptation_plan"] = plan
    else:
        content["spark_weights"] = spark
        (path.parent / "adaptation_plan.json").write_text(json.dumps(plan))
    torch.save(content, path)
    return network
