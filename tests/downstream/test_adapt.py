import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.checkpoints.transfer import load_into, select, widen_stem
from nnssl_mae.downstream.adapt import adapt
from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION, NETWORK_CLASSES
from nnssl_mae.recipes.finetuning import finetune_recipe
from tests.labelled import write_labelled_with_plans

RECIPE = finetune_recipe(False, 4, 2)
CONTROL = finetune_recipe(True, 4, 2)
Tensors = Mapping[str, torch.Tensor]
STEM = "encoder.stem.convs.0.conv.weight"


@pytest.fixture
def labelled(prepared: Path, nnunet_folders: Path) -> Path:
    """A labelled dataset of two channels with the user's own stock plans and preprocessed data."""
    return write_labelled_with_plans(nnunet_folders, prepared)


def plans_of(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def test_treatment_and_control_differ_in_weights_and_schedule_only(pretrained: Path, labelled: Path) -> None:
    checkpoint = read_checkpoint(pretrained)
    adapt(checkpoint, 4, "Treatment", RECIPE, "encoder", batch_size=2)
    adapt(checkpoint, 4, "Control", CONTROL, None, batch_size=2)
    treatment, control = plans_of(labelled, "Treatment"), plans_of(labelled, "Control")
    blocks = [plans["configurations"][CONFIGURATION].pop("nnssl_mae") for plans in (treatment, control)]
    assert treatment | {"plans_name": ""} == control | {"plans_name": ""}
    assert blocks[0]["initialisation"]["transfer"] == "encoder"
    assert blocks[1]["initialisation"] is None
    assert blocks[0]["recipe"]["peak_learning_rate"] == 1e-3
    assert blocks[1]["recipe"]["peak_learning_rate"] == 1e-2
    assert not (labelled / "Control_init.safetensors").exists()


def test_plans_follow_the_checkpoint_where_the_image_is_concerned(pretrained: Path, labelled: Path) -> None:
    adapt(read_checkpoint(pretrained), 4, "P", RECIPE, "encoder", batch_size=3)
    plans = plans_of(labelled, "P")
    configuration = plans["configurations"][CONFIGURATION]
    assert configuration["spacing"] == [4.0, 4.0, 4.0]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"] * 2
    assert configuration["use_mask_for_norm"] == [False, False]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([32, 32, 32], 3)
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"
    assert plans["dataset_name"] == "Dataset004_Tiny"
    assert list(plans["configurations"]) == [CONFIGURATION]


def test_the_users_own_preprocessed_data_survives(pretrained: Path, labelled: Path) -> None:
    """Stock preprocessing of every configuration in our plans deletes and fills our folder only."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess

    adapt(read_checkpoint(pretrained), 4, "P", RECIPE, "encoder", batch_size=2)
    # nnU-Net's defaults for -c: the user forgot to give a configuration.
    preprocess([4], "P", ("2d", "3d_fullres", "3d_lowres", CONFIGURATION), num_processes=(2, 2, 2, 2))
    identifier = plans_of(labelled, "P")["configurations"][CONFIGURATION]["data_identifier"]
    assert len(list((labelled / identifier).glob("*.pkl"))) == 2
    assert (labelled / "nnUNetPlans_3d_fullres" / "precious.b2nd").read_text() == "a week of preprocessing"


def test_plans_hold_no_path(pretrained: Path, labelled: Path) -> None:
    adapt(read_checkpoint(pretrained), 4, "P", RECIPE, "encoder", batch_size=2)
    assert str(pretrained.parent) not in (labelled / "P.json").read_text()
    assert str(labelled.parent) not in (labelled / "P.json").read_text()


def test_the_stem_is_repeated_over_channels_and_keeps_its_response(pretrained: Path, labelled: Path) -> None:
    adapt(read_checkpoint(pretrained), 4, "P", RECIPE, "encoder+decoder", batch_size=2)
    tensors = safetensors.torch.load_file(labelled / "P_init.safetensors")
    original = read_checkpoint(pretrained).weights[STEM]
    assert tensors[STEM].shape[1] == 2
    torch.testing.assert_close(tensors[STEM].sum(dim=1, keepdim=True), original)
    block = plans_of(labelled, "P")["configurations"][CONFIGURATION]["nnssl_mae"]
    assert block["initialisation"]["adapted"] == [STEM]
    assert any(name.startswith("decoder.stages.") for name in tensors)
    assert not any("seg_layers" in name or name.startswith("decoder.encoder") for name in tensors)


def test_names_that_are_taken_or_impossible_are_refused(pretrained: Path, labelled: Path) -> None:
    checkpoint = read_checkpoint(pretrained)
    adapt(checkpoint, 4, "P", RECIPE, None, batch_size=2)
    with pytest.raises(UserError, match="--overwrite"):
        adapt(checkpoint, 4, "P", RECIPE, None, batch_size=2)
    adapt(checkpoint, 4, "P", RECIPE, None, batch_size=2, overwrite=True)
    for name in ("a__b", "nnUNetPlans", "a/b", ""):
        with pytest.raises(UserError, match="cannot be called"):
            adapt(checkpoint, 4, name, RECIPE, None, batch_size=2)
    with pytest.raises(UserError, match="no dataset 77"):
        adapt(checkpoint, 77, "P", RECIPE, None, batch_size=2)


@pytest.mark.parametrize("name", ["dataset.json", "dataset_fingerprint.json", "nnUNetResEncUNetLPlans.json"])
def test_damaged_files_of_the_dataset_are_named(pretrained: Path, labelled: Path, name: str) -> None:
    (labelled / name).write_text("{")
    with pytest.raises(UserError, match=f"{name} cannot be read .* run nnUNetv2_extract_fingerprint"):
        adapt(read_checkpoint(pretrained), 4, "P", RECIPE, "encoder", batch_size=2)
    assert not (labelled / "P.json").exists()
    assert not (labelled / "P_init.safetensors").exists()


def test_datasets_that_still_say_modality(pretrained: Path, labelled: Path) -> None:
    content = json.loads((labelled / "dataset.json").read_text())
    content["modality"] = content.pop("channel_names")
    (labelled / "dataset.json").write_text(json.dumps(content))
    result = adapt(read_checkpoint(pretrained), 4, "P", RECIPE, "encoder", batch_size=2)
    assert len(result.configuration["normalization_schemes"]) == 2


def test_dangers_are_named(pretrained: Path, labelled: Path) -> None:
    content = json.loads((labelled / "dataset.json").read_text())
    (labelled / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "CT"}, "file_ending": ".nrrd"}))
    stock = plans_of(labelled, "nnUNetResEncUNetLPlans") | {"original_median_spacing_after_transp": [3.0, 1.0, 1.0]}
    (labelled / "nnUNetResEncUNetLPlans.json").write_text(json.dumps(stock))
    warnings = " ".join(adapt(read_checkpoint(pretrained), 4, "P", RECIPE, "encoder", batch_size=2).warnings)
    for words in ("one orientation", "The dataset is CT", "voxels of 1 mm"):
        assert words in warnings


def test_loading_needs_the_whole_encoder_and_equal_shapes(pretrained: Path) -> None:
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    checkpoint = read_checkpoint(pretrained)
    architecture = checkpoint.architecture
    network = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 3
    )
    assert isinstance(network, ResidualEncoderUNet)
    tensors = select(checkpoint.weights, "encoder")
    report = load_into(network, tensors)
    assert set(report.loaded) == set(tensors)
    assert all(name.startswith("decoder.") for name in report.random)
    # Every name under which nnU-Net keeps the encoder now shows the loaded values.
    state = network.state_dict()
    for name, tensor in checkpoint.weights.items():
        if "encoder" in name:
            assert torch.equal(state[name], tensor), name

    with pytest.raises(UserError, match=f"{STEM} is missing"):
        load_into(network, {name: tensor for name, tensor in tensors.items() if name != STEM})
    wide = dict(tensors)
    widen_stem(wide, 3)
    with pytest.raises(UserError, match=r"in the file and \(4, 1, 3, 3, 3\) in the network"):
        load_into(network, wide)
    with pytest.raises(UserError, match="has no place"):
        load_into(network, tensors | {"encoder.more": torch.zeros(1)})
    with pytest.raises(UserError, match="takes 3 input channels and the dataset has 2"):
        widen_stem(wide, 2)


def test_what_stock_nnunet_cannot_repeat_is_said(labelled: Path, pretrained: Path) -> None:
    checkpoint = read_checkpoint(pretrained)
    clipped = replace(checkpoint.reconstruction, clip_percentile=99.0)
    own = {**checkpoint.architecture, "network_class_name": NETWORK_CLASSES["amaes_unet"]}
    changed = replace(checkpoint, reconstruction=clipped, architecture=own)
    warnings = " ".join(adapt(changed, 4, "P", RECIPE, None, batch_size=2).warnings)
    assert "clipped at their 99th percentile" in warnings
    assert "AmaesUNet is not one of nnU-Net's networks" in warnings
    assert "clipped" not in " ".join(adapt(checkpoint, 4, "Q", RECIPE, None, batch_size=2).warnings)


def wrapped(weights: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def without_last_block(weights: Tensors) -> Tensors:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("encoder.stages.2")}


def narrow(weights: Tensors) -> Tensors:
    name = "encoder.stages.0.blocks.0.conv1.conv.weight"
    return {**weights, name: weights[name][:, :1]}


def exploded(weights: Tensors) -> Tensors:
    return {**weights, STEM: weights[STEM] * torch.nan}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (wrapped, r"has no encoder\.stem.* names such as module\.encoder.*without the prefix"),
        (lambda _: {}, "it holds no tensors"),
        (without_last_block, r"encoder\.stages\.2\.blocks.* is missing"),
        (narrow, r"conv1\.conv\.weight is \(4, 1, 3, 3, 3\) in the file and \(4, 4, 3, 3, 3\) in the network"),
        (exploded, f"{STEM} holds nan or infinite values"),
    ],
)
def test_weights_that_do_not_fit_leave_nothing_behind(
    pretrained: Path, labelled: Path, damage: Callable[[Tensors], Tensors], sentence: str
) -> None:
    checkpoint = read_checkpoint(pretrained)
    before = sorted(labelled.iterdir())
    with pytest.raises(UserError, match=sentence):
        adapt(replace(checkpoint, weights=damage(checkpoint.weights)), 4, "P", RECIPE, "encoder", batch_size=2)
    assert sorted(labelled.iterdir()) == before


def test_a_network_that_cannot_be_built_leaves_nothing_behind(pretrained: Path, labelled: Path) -> None:
    checkpoint = read_checkpoint(pretrained)
    kwargs = {name: value for name, value in checkpoint.architecture["arch_kwargs"].items() if name != "strides"}
    before = sorted(labelled.iterdir())
    with pytest.raises(UserError, match="network that cannot be built"):
        adapt(
            replace(checkpoint, architecture={**checkpoint.architecture, "arch_kwargs": kwargs}),
            4, "P", RECIPE, "encoder", batch_size=2,
        )  # fmt: skip
    assert sorted(labelled.iterdir()) == before


def test_warnings_leave_out_what_matters_to_reconstruction_only(pretrained: Path, labelled: Path) -> None:
    checkpoint = replace(read_checkpoint(pretrained), notes=("of the weights",), reconstruction_notes=("of pictures",))
    warnings = adapt(checkpoint, 4, "P", RECIPE, None, batch_size=2).warnings
    assert "of the weights" in warnings
    assert "of pictures" not in warnings
