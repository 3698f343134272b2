"""What we write into nnU-Net's plans: one configuration, its network, its own data folder, and our block.

Our plans files hold a single configuration. nnU-Net preprocesses every configuration that it finds, and deletes the
folder of its ``data_identifier`` first: a plans file that also held nnU-Net's own would cost users their data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnssl_mae.backbones import divisors, planned_architecture, strides_that_shrink
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json, short_hash
from nnssl_mae.folders import is_labelled
from nnssl_mae.recipes.pretraining import NetworkRecipe
from nnssl_mae.sizes import are_multiples, nearest_multiples, sizes_in_words, stages_in_words

PLANS_BLOCK = "nnssl_mae"
PLANS_SCHEMA = 3
_FIRST_WITH_ORIGIN = 3  # before, plans did not tell what of a network stays random
CONFIGURATION = "3d_fullres_mae"
PRETRAINING_PLANS = "nnsslMAEPlans"
STOCK_PLANS = ("nnUNetResEncUNetLPlans", "nnUNetResEncUNetMPlans", "nnUNetResEncUNetXLPlans", "nnUNetPlans")
_OTHER_FILES = ("dataset", "dataset_fingerprint", "splits_final", "nnssl_folds", "request", "selection")  # beside plans
_DATA_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)


def data_identifier(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], contents: str, beyond_stock: Sequence[str] = ()
) -> str:
    """Name of the preprocessed folder: equal if and only if the preprocessed data are equal.

    Args:
        plans: for reader and axis order.
        configuration: for everything else.
        contents: ``volumes`` (float16, image only) or ``cases`` (nnU-Net's own format with labels).
        beyond_stock: what was done to the volumes that no nnU-Net configuration can say.
    """
    decisive = [plans["image_reader_writer"], list(plans["transpose_forward"]), *beyond_stock]
    decisive += [configuration[key] for key in _DATA_KEYS]
    return f"nnsslMAE_{contents}_{short_hash(decisive)}"


def check_plans_name(name: str) -> None:
    """Refuses names that nnU-Net would misread or that are its own.

    Raises:
        UserError: see above.
    """
    letters = name.replace("_", "").replace("-", "")
    if "__" in name or not letters.isascii() or not letters.isalnum() or name in (*STOCK_PLANS, *_OTHER_FILES):
        raise UserError(
            f"Plans cannot be called '{name}'; use letters, digits, '-' and single '_', and no name of nnU-Net's own "
            "files or of ours"
        )


def make_block(kind: str, **content: Any) -> dict[str, Any]:
    """Our block for a configuration; ``kind`` is ``pretrain`` or ``finetune``."""
    return {"schema": PLANS_SCHEMA, "kind": kind, **content}


def check_prepared(folder: Path, plans_name: str) -> None:
    """Refuses plans that are missing or not for pre-training.

    Args:
        folder: ``nnUNet_preprocessed/DatasetXXX_Name``.
        plans_name: of the plans in it.

    Raises:
        UserError: see above.
    """
    file = existing_plans(folder, plans_name)
    configurations = read_json(file, "prepare the dataset again").get("configurations", {})
    read_block(configurations.get(CONFIGURATION, {}), "pretrain", plans_name)


def existing_plans(folder: Path, plans_name: str) -> Path:
    """The file of plans for pre-training.

    Args:
        folder: ``nnUNet_preprocessed/DatasetXXX_Name``.
        plans_name: of the plans in it.

    Raises:
        UserError: it is not there.
    """
    file = folder / f"{plans_name}.json"
    if plans_name and file.is_file():
        return file
    if is_labelled(folder.name):  # prepare would refuse its number
        raise UserError(
            f"{folder.name} is a labelled dataset without plans '{plans_name}'; pre-training needs a dataset of scans "
            "that `nnssl-mae prepare SCANS -d NUMBER -n NAME` made, with a number of its own"
        )
    raise UserError(f"{folder.name} has no plans '{plans_name}'; make them with `nnssl-mae prepare`")


def read_block(configuration: Mapping[str, Any], kind: str, plans_name: str) -> dict[str, Any]:
    """Our block of a configuration.

    Raises:
        UserError: the block is missing, of another kind, or written by a newer version.
    """
    block = configuration.get(PLANS_BLOCK)
    command = "nnssl-mae prepare" if kind == "pretrain" else "nnssl-mae adapt"
    if not isinstance(block, dict) or block.get("kind") != kind:
        raise UserError(
            f"The plans '{plans_name}' were not made for this trainer; make them with `{command}` and "
            f"pass their name with -p and the configuration {CONFIGURATION}"
        )
    if block.get("schema", 0) > PLANS_SCHEMA:
        raise UserError(f"The plans '{plans_name}' were written by a newer nnssl_mae; pip install -U nnssl_mae")
    if kind == "finetune" and block.get("schema", 0) < _FIRST_WITH_ORIGIN and block.get("initialisation"):
        raise UserError(f"The plans '{plans_name}' were written by an older nnssl_mae; run `{command}` again")
    return block


def network_configuration(
    stock: Mapping[str, Any], network: NetworkRecipe, spacing: Sequence[float], block_size: int
) -> dict[str, Any]:
    """Patch, batch and architecture for the patch of a recipe; strides and kernels from nnU-Net's planner function.

    Args:
        stock: nnU-Net's planned architecture, whose operators are kept.
        network: sizes; ``patch_size`` must be numbers.
        spacing: mm, in the axis order of the preprocessed data.
        block_size: edge of the hidden blocks.

    Raises:
        UserError: network strides or blocks do not divide the patch; the sentence gives a patch that works.
    """
    assert not isinstance(network.patch_size, str)
    architecture = planned_architecture(network, spacing, stock)
    _check_divisible(network.patch_size, divisors(architecture), block_size)
    return {
        "patch_size": list(network.patch_size),
        "batch_size": network.batch_size,
        "architecture": architecture,
    }


def _check_divisible(patch: Sequence[int], strides: Sequence[int], block_size: int) -> None:
    units = [math.lcm(stride, block_size) for stride in strides]
    if are_multiples(patch, units):
        if math.prod(size // block_size for size in patch) < 2:
            raise UserError(
                f"A block of {block_size}^3 voxels is the whole patch of {sizes_in_words(patch)}, so nothing would "
                f"stay visible; the nearest that fits is --set masking.block_size={block_size // 2}"
            )
        return
    nearest = nearest_multiples(patch, units)
    cause, remedy = f"the network divides it by {sizes_in_words(strides)}", ""
    if are_multiples(patch, strides):
        edge = math.gcd(*patch)
        blocks = [size for size in range(1, edge) if edge % size == 0]
        closest = min(blocks, key=lambda size: abs(size - block_size))
        cause, remedy = f"blocks of {block_size}^3 voxels do not fill it", f", or --set masking.block_size={closest}"
    raise UserError(
        f"A patch of {sizes_in_words(patch)} does not fit: {cause}; the nearest that fits is "
        f"--set network.patch_size=[{','.join(map(str, nearest))}]{remedy}"
    )


def describe_topology(configuration: Mapping[str, Any]) -> str:
    """Patch, stages and strides in one line for people."""
    kwargs = configuration["architecture"]["arch_kwargs"]
    strides = [sizes_in_words(stride) for stride in strides_that_shrink(kwargs["strides"])]
    return (
        f"patch {sizes_in_words(configuration['patch_size'])}, {stages_in_words(kwargs['n_stages'])}, "
        f"features {'-'.join(map(str, kwargs['features_per_stage']))}, strides {' '.join(strides)}"
    )


def same_topology(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations have the same network, so that weights of one fit the other."""
    return bool(_plain(one["architecture"]) == _plain(other["architecture"]))


def _plain(value: Any) -> Any:
    """Tuples as lists at any depth: plans come from JSON or from the planner."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
