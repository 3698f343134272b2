"""The shipped recipes in a form that trains two steps on a small machine: same method, small numbers."""

from __future__ import annotations

from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import load_recipe, override
from tests.conftest import TINY_RECIPE

PRESETS = ("mae", "mae_paper", "mae_small", "s3d", "s3d_l", "amaes", "amaes_strong", "amaes_xl", "amaes_resenc")


def tiny_changes(name: str) -> dict[str, object]:
    """Dotted keys and values that make a preset small; what defines the method stays."""
    published = load_recipe(name)
    # 32^3 patches: blocks of a quarter, or the coarsest grid of the network, or the finest.
    block = {4: 4, 16: 8, 32: 16}[published.masking.block_size]
    return {
        "network.patch_size": (32, 32, 32),
        "network.batch_size": 2,
        "network.base_features": 4,
        "network.max_features": 16,
        "network.blocks_per_stage": (1,),
        "network.convs_per_decoder_stage": 1,
        "network.max_stages": 3,
        "masking.block_size": block,
        "schedule.epochs": 1,
        "schedule.iterations": 2,
        "schedule.warmup_epochs": 0,
        "schedule.validation_cases": 2,
    }


def tiny_preset(name: str) -> Recipe:
    """A preset made small, for the volumes of the tiny prepared dataset."""
    return override(load_recipe(name), {**tiny_changes(name), "data": TINY_RECIPE["data"]})
