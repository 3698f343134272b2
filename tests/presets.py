"""The shipped recipes in a form that trains two steps on a small machine: same method, small numbers."""

from __future__ import annotations

from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import load_recipe, override
from tests.conftest import TINY_RECIPE

UNETS = ("mae", "mae_paper", "mae_small", "s3d", "s3d_l", "amaes", "amaes_strong", "amaes_xl", "amaes_resenc")
TRANSFORMERS = ("nnformer", "nnformer_acdc", "nnformer_synapse", "primus_s", "primus_m")
PRESETS = (*UNETS, *TRANSFORMERS)

_TINY_UNET: dict[str, object] = {
    "network.base_features": 4,
    "network.max_features": 16,
    "network.blocks_per_stage": (1,),
    "network.convs_per_decoder_stage": 1,
    "network.max_stages": 3,
}


def tiny_changes(name: str) -> dict[str, object]:
    """Dotted keys and values that make a preset small; what defines the method stays."""
    published = load_recipe(name)
    # 32^3 patches: blocks of a quarter, or the coarsest grid of the network, or the finest.
    block = {4: 4, 8: 8, 16: 8, 32: 16}[published.masking.block_size]
    return {
        "network.patch_size": (32, 32, 32),
        "network.batch_size": 2,
        **(_tiny_transformer(published) if published.network.is_transformer else _TINY_UNET),
        "masking.block_size": block,
        "schedule.epochs": 1,
        "schedule.iterations": 2,
        "schedule.warmup_epochs": 0,
        "schedule.validation_cases": 2,
    }


def _tiny_transformer(published: Recipe) -> dict[str, object]:
    """Heads, tokens and windows stay."""
    width = 6 * published.network.transformer.heads
    sizes = {"network.base_features": width, "network.max_features": 4 * width, "network.blocks_per_stage": (2,)}
    if published.network.backbone == "primus":
        return sizes
    return sizes | {"network.transformer.strides": published.network.transformer.strides[:2]}


def tiny_preset(name: str) -> Recipe:
    """A preset made small, for the volumes of the tiny prepared dataset."""
    return override(load_recipe(name), {**tiny_changes(name), "data": TINY_RECIPE["data"]})
