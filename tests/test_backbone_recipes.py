"""Recipes of transformers, and the network of one recipe under the method of another."""

from __future__ import annotations

import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.backbone import load_with_backbone
from nnssl_mae.recipes.reading import load_recipe


@pytest.mark.parametrize(
    ("recipe", "change", "sentence"),
    [
        ("mae", "network.transformer.heads=6", "network.transformer has no effect on 'resenc'"),
        ("mae", "network.backbone=plain network.transformer.heads=6", "has no effect on 'plain'"),
        ("nnformer", "network.sparse=true", "network.sparse is made for U-Nets: set it to false for 'nnformer'"),
        ("nnformer", "network.skips=false", "network.skips is made for U-Nets: set it to true"),
        ("nnformer", "network.decoder=light", "network.decoder is made for U-Nets: set it to stock for 'nnformer'"),
        ("primus_m", "network.mask_tokens=true", "network.mask_tokens is made for U-Nets: set it to false"),
        ("primus_m", "network.checkpoint_activations=true", "network.checkpoint_activations is made for U-Nets"),
        ("nnformer", "network.max_stages=4", "network.max_stages is made for U-Nets: set it to none"),
        ("nnformer", "network.transformer.hidden_tokens=drop", "hidden_tokens is for 'primus'"),
        ("primus_m", "masking.hidden_value=token", "'token' would never be seen with hidden tokens"),
        ("primus_m", "masking.block_size=12", "no whole number of tokens of [8, 8, 8] voxels; the nearest that is: 16"),
        ("primus_m", "masking.block_size=10", "the nearest that is: 8"),
        ("nnformer", "network.patch_size=planner", "give three numbers for 'nnformer'"),
    ],
)
def test_what_a_transformer_cannot_be_is_refused(recipe: str, change: str, sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        load_recipe(recipe, change.split())
    assert sentence in str(refusal.value)


def test_another_network_leaves_the_method_as_it_is() -> None:
    method, network = load_recipe("amaes"), load_recipe("nnformer")
    # AMAES pre-trains without skip connections, which nnFormer cannot.
    both = load_with_backbone("amaes", "nnformer", ["network.skips=true", "network.decoder=stock"])
    assert both.name == "amaes"
    assert both.summary.endswith("; changed: network of nnformer, network.skips, network.decoder")
    for section in ("data", "masking", "loss", "augmentation", "sampling", "seed"):
        assert getattr(both, section) == getattr(method, section), section
    assert both.optimiser == network.optimiser
    assert both.schedule == method.schedule.model_copy(update={"warmup_epochs": network.schedule.warmup_epochs})
    assert set(both.citation) == {*method.citation, *network.citation}
    kept = {"patch_size": method.network.patch_size, "batch_size": method.network.batch_size}
    assert both.network == network.network.model_copy(update=kept)


def test_the_default_recipe_with_a_transformer_is_the_recipe_of_that_transformer() -> None:
    """But for the patch and batch, which belong to the method."""
    both = load_with_backbone("mae", "primus_s", ["masking.block_size=8"])
    assert both.model_dump(exclude={"name", "summary", "citation"}) == load_recipe("primus_s").model_dump(
        exclude={"name", "summary", "citation"}
    )


def test_changes_come_after_the_network() -> None:
    both = load_with_backbone("mae", "primus_s", ["network.blocks_per_stage=[2]", "masking.block_size=8"])
    assert both.network.blocks_per_stage == (2,)
    assert "changed: network of primus_s, network.blocks_per_stage" in both.summary


def test_a_method_that_the_network_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.sparse is made for U-Nets"):
        load_with_backbone("s3d", "nnformer")


def test_without_a_backbone_it_is_the_recipe() -> None:
    assert load_with_backbone("mae", None) == load_recipe("mae")


def test_an_unknown_backbone_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="There is no recipe 'nnforme', did you mean 'nnformer'"):
        load_with_backbone("mae", "nnforme")
