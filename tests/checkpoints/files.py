"""Checkpoint files of every form that we read, with a tiny network and random weights.

No released file of nnssl or AMAES can be had in a test: these are written after the description of the format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from nnssl_mae.checkpoints.adaptation_plan import make_adaptation_plan
from nnssl_mae.checkpoints.describe import nnunet_architecture
from nnssl_mae.networks.planned import planned_network
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


# ---------------------------------------------------------------------- other origins, each after its description

PLAIN_KWARGS: dict[str, Any] = {
    **{key: value for key, value in KWARGS.items() if key != "n_blocks_per_stage"},
    "n_conv_per_stage": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
}


def different_everywhere(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network in evaluation mode with weights and statistics that are all different, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * 0.1
                tensor.copy_(noise.abs() + 0.5 if "running_var" in name else tensor + noise)
    return network.eval()


def stock_network(name: str, kwargs: Mapping[str, Any], channels: int = 1, heads: int = 3) -> Any:
    """One of nnU-Net's own networks, by the name of its class."""
    architecture = nnunet_architecture(name, kwargs, None, Path("test"))
    torch.manual_seed(0)
    return different_everywhere(planned_network(architecture, channels, heads))


def nnunet_plans(name: str, kwargs: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Plans of nnU-Net with ``3d_fullres``, a 2D configuration and a cascade; ``changes`` are of ``3d_fullres``."""
    resampling = "resample_data_or_seg_to_shape"
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [32, 32, 16],
        "median_image_size_in_voxels": [40.0, 40.0, 20.0],
        "spacing": [3.0, 0.7, 0.7],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": RESAMPLING,
        "resampling_fn_seg": resampling,
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
            "arch_kwargs": dict(kwargs),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset123_Liver",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 0.7, 0.7],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 99.0, "std": 40.0, "percentile_00_5": -20.0, "percentile_99_5": 230.0}
        },
        "configurations": {
            "2d": {**full, "patch_size": [64, 64], "spacing": [0.7, 0.7]},
            "3d_fullres": full | changes,
            "3d_child": {"inherits_from": "3d_fullres", "spacing": [1.5, 1.5, 1.5]},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def write_nnunet(path: Path, network: torch.nn.Module, plans: Mapping[str, Any], **more: Any) -> None:
    """What nnU-Net's trainer saves: numbers of numpy in the log, a device, everything that it was started with."""
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]},
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.5), np.float32(0.25)],
            "dice_per_class_or_region": [[np.float32(0.1), np.float64(np.nan)]],
            "lrs": [0.01],
        },
        "_best_ema": np.float64(0.625),
        "current_epoch": 1000,
        "init_args": {
            "plans": dict(plans),
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}},
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content | more, path)


class AmaesBlock(torch.nn.Module):
    """Two times convolution, instance normalisation, LeakyReLU, under AMAES's names."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = self._layer(channels, width), self._layer(width, width)

    @staticmethod
    def _layer(channels: int, width: int) -> torch.nn.ModuleDict:
        convolution = torch.nn.Conv3d(channels, width, 3, padding=1)
        return torch.nn.ModuleDict({"conv": convolution, "norm": torch.nn.InstanceNorm3d(width, affine=True)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.conv1, self.conv2):
            x = torch.nn.functional.leaky_relu(layer["norm"](layer["conv"](x)), 0.01)
        return x


class AmaesReference(torch.nn.Module):
    """AMAES's pre-training network after its description, written without nnU-Net's modules: features of each level."""

    def __init__(self, widths: tuple[int, ...] = (4, 6, 8, 10, 12), channels: int = 1) -> None:
        super().__init__()
        blocks = {"in_conv": AmaesBlock(channels, widths[0])}
        for level in range(1, len(widths)):
            blocks[f"encoder_conv{level}"] = AmaesBlock(widths[level - 1], widths[level])
        self.encoder = torch.nn.ModuleDict(blocks)
        self.rec_head = torch.nn.ModuleDict({"out_conv": torch.nn.Conv3d(widths[0], channels, 1)})

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for name, block in self.encoder.items():
            x = block(x if name == "in_conv" else torch.nn.functional.max_pool3d(x, 2))
            features.append(x)
        return features


def amaes_weights(network: torch.nn.Module, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """The state dict of AMAES with the prefix that Lightning, and compiling, put before its names."""
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


def lightning(weights: Mapping[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    """A checkpoint of PyTorch Lightning around a state dict."""
    content = {
        "epoch": 99,
        "global_step": 12345,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": dict(weights),
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hyper_parameters": {"config": {"patch_size": [128, 128, 128]}},
    }
    return content | more


def first_names(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Each tensor of a network once, under its first name, as its module tree has them."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def write_own_safetensors(folder: Path, pth: Path, **metadata: str) -> Path:
    """The sharing form of one of our checkpoints: each tensor once, everything else as JSON in the metadata."""
    content = torch.load(pth, weights_only=True)
    weights = {
        name: tensor.contiguous()
        for name, tensor in content["network_weights"].items()
        if ".all_modules." not in name and not name.startswith("decoder.encoder.")
    }
    plan = json.dumps(content["nnssl_adaptation_plan"])
    described = {
        "format": "pt",
        "nnssl_adaptation_plan": plan,
        "nnssl_mae": json.dumps(content["nnssl_mae"]),
        "citations": json.dumps(content["citations"]),
    }
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata=described | metadata)
    (folder / "adaptation_plan.json").write_text(plan)
    return folder / "model.safetensors"
