import json
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl_mae.errors import UserError
from nnssl_mae.plans import (
    CONFIGURATION,
    check_plans_name,
    check_prepared,
    data_identifier,
    network_configuration,
    read_block,
    same_topology,
)
from nnssl_mae.recipes.reading import load_recipe, override
from nnssl_mae.scans.planning import write_plans_for


def arguments(architecture: dict) -> dict:
    """Of nnU-Net's function that builds a network, for one channel in and out."""
    return {
        "arch_class_name": architecture["network_class_name"],
        "arch_kwargs": architecture["arch_kwargs"],
        "arch_kwargs_req_import": architecture["_kw_requires_import"],
        "input_channels": 1,
        "output_channels": 1,
    }


@pytest.fixture
def plans(prepared: Path) -> dict:
    return json.loads((prepared / "nnsslMAEPlans.json").read_text())


def test_the_default_recipe_gives_the_published_network(plans: dict) -> None:
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    recipe = load_recipe("mae")
    found = network_configuration(architecture, recipe.network, (1, 1, 1), recipe.masking.block_size)
    kwargs = found["architecture"]["arch_kwargs"]
    assert kwargs["features_per_stage"] == [32, 64, 128, 256, 320, 320]
    assert kwargs["n_blocks_per_stage"] == [1, 3, 4, 6, 6, 6]
    assert kwargs["strides"] == [[1, 1, 1]] + [[2, 2, 2]] * 5
    assert kwargs["n_conv_per_stage_decoder"] == [1] * 5
    assert found["patch_size"] == [160, 160, 160]
    with torch.device("meta"):
        network = get_network_from_plans(**arguments(found["architecture"]), allow_init=False)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(102.35, abs=0.01)
    assert sum(p.numel() for p in network.encoder.parameters()) / 1e6 == pytest.approx(90.30, abs=0.01)
    smaller = override(recipe, {"network.patch_size": (96, 96, 96)}).network
    assert not same_topology(found, network_configuration(architecture, smaller, (1, 1, 1), 16))


@pytest.mark.parametrize("backbone", ["plain", "amaes_unet"])
def test_other_backbones_are_planned_and_built_by_nnunet(plans: dict, backbone: str) -> None:
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    changes = {"network.backbone": backbone, "network.patch_size": (64, 64, 64), "network.blocks_per_stage": (2,)}
    recipe = override(load_recipe("smoke"), changes)
    found = network_configuration(architecture, recipe.network, (1, 1, 1), recipe.masking.block_size)
    network = get_network_from_plans(**arguments(found["architecture"]), deep_supervision=False)
    assert type(network).__name__ == {"plain": "PlainConvUNet", "amaes_unet": "AmaesUNet"}[backbone]
    assert len(network.encoder.stages[0][0].convs) == 2
    assert network(torch.zeros(1, 1, 64, 64, 64)).shape == (1, 1, 64, 64, 64)
    # And back: plans of one backbone can become those of another.
    again = network_configuration(found["architecture"], load_recipe("smoke").network, (1, 1, 1), 8)
    assert "n_conv_per_stage" not in again["architecture"]["arch_kwargs"]


def test_a_block_as_large_as_the_patch_is_refused(plans: dict) -> None:
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    with pytest.raises(UserError, match="is the whole patch of 32x32x32"):
        network_configuration(architecture, load_recipe("smoke").network, (1, 1, 1), 32)


@pytest.mark.parametrize(
    "name", ["splits_final", "dataset", "request", "dataset_fingerprint", "nnUNetPlans", "", "a/b", "ä"]
)
def test_names_of_other_files_are_no_plans_names(name: str) -> None:
    with pytest.raises(UserError, match="Plans cannot be called"):
        check_plans_name(name)


def test_plans_that_are_not_for_pretraining_are_refused(prepared: Path) -> None:
    check_prepared(prepared, "nnsslMAEPlans")
    with pytest.raises(UserError, match="not made for this trainer"):
        check_prepared(prepared, "dataset")
    with pytest.raises(UserError, match="has no plans 'x'"):
        check_prepared(prepared, "x")


def test_a_labelled_dataset_is_refused_with_what_pretraining_needs(nnunet_folders: Path) -> None:
    folder = nnunet_folders / "preprocessed" / "Dataset004_Lesions"
    folder.mkdir()
    (nnunet_folders / "raw" / folder.name / "imagesTr").mkdir(parents=True)
    with pytest.raises(UserError, match="Dataset004_Lesions has no plans 'nnsslMAEPlans'; make them"):
        check_prepared(folder, "nnsslMAEPlans")
    (nnunet_folders / "raw" / folder.name / "labelsTr").mkdir()
    sentence = "Dataset004_Lesions is a labelled dataset.*`nnssl-mae prepare SCANS -d NUMBER -n NAME`"
    with pytest.raises(UserError, match=sentence):
        check_prepared(folder, "nnsslMAEPlans")
    with pytest.raises(UserError, match=sentence):
        write_plans_for(folder, load_recipe("mae"), None)


def test_blocks_that_do_not_fill_the_patch_are_refused_with_the_nearest(plans: dict) -> None:
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    with pytest.raises(UserError, match=r"blocks of 24\^3.*size=\[192,192,192\], or --set masking.block_size=20"):
        network_configuration(architecture, load_recipe("mae").network, (1, 1, 1), 24)


@pytest.mark.parametrize(("patch", "nearest"), [((100, 100, 100), "96,96,96"), ((160, 150, 160), "160,160,160")])
def test_a_patch_that_does_not_fit_is_refused_with_the_nearest(plans: dict, patch, nearest) -> None:
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    network = override(load_recipe("mae"), {"network.patch_size": patch}).network
    with pytest.raises(UserError, match=rf"patch_size=\[{nearest}\]"):
        network_configuration(architecture, network, (1, 1, 1), 16)


def test_data_identifier_depends_on_what_changes_the_data_and_on_nothing_else(plans: dict) -> None:
    configuration = plans["configurations"][CONFIGURATION]
    first = data_identifier(plans, configuration, "volumes")
    assert data_identifier(plans, {**configuration, "batch_size": 7, "patch_size": [8] * 3}, "volumes") == first
    assert data_identifier({**plans, "plans_name": "other"}, configuration, "volumes") == first
    different = [
        data_identifier(plans, configuration, "cases"),
        data_identifier(plans, {**configuration, "spacing": [1, 1, 1]}, "volumes"),
        data_identifier(plans, {**configuration, "normalization_schemes": ["CTNormalization"]}, "volumes"),
        data_identifier(plans, {**configuration, "use_mask_for_norm": [True]}, "volumes"),
        data_identifier({**plans, "image_reader_writer": "SimpleITKIO"}, configuration, "volumes"),
        data_identifier({**plans, "transpose_forward": [2, 1, 0]}, configuration, "volumes"),
    ]
    assert len({first, *different}) == 7


def test_blocks_of_another_kind_or_of_the_future_are_refused(plans: dict) -> None:
    configuration = plans["configurations"][CONFIGURATION]
    assert read_block(configuration, "pretrain", "p")["kind"] == "pretrain"
    with pytest.raises(UserError, match="nnssl-mae adapt"):
        read_block(configuration, "finetune", "p")
    with pytest.raises(UserError, match="nnssl-mae prepare"):
        read_block({}, "pretrain", "p")
    with pytest.raises(UserError, match="newer nnssl_mae"):
        read_block({"nnssl_mae": {"kind": "pretrain", "schema": 99}}, "pretrain", "p")


def test_the_plans_file_holds_one_configuration(plans: dict) -> None:
    """nnU-Net preprocesses every configuration it finds and deletes its folder first: stock's must not be here."""
    assert list(plans["configurations"]) == [CONFIGURATION]
    assert "inherits_from" not in plans["configurations"][CONFIGURATION]
