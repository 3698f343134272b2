from pathlib import Path

import pytest
import torch

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from tests.checkpoints.files import tiny_recipe, write_own


def test_own_checkpoint(pretrained: Path) -> None:
    checkpoint = read_checkpoint(pretrained)
    assert checkpoint.channels == 1
    assert checkpoint.data["spacing"] == [4.0, 4.0, 4.0]
    assert checkpoint.origin.method == "tiny"
    assert len(checkpoint.origin.sha256) == 64


def test_our_own_checkpoints_hold_no_numpy(pretrained: Path) -> None:
    """torch's own safe loading reads them, with nothing let in."""
    content = torch.load(pretrained, weights_only=True)
    assert isinstance(content["nnssl_mae"]["validation_loss"], float)
    assert content["logging"]


def test_all_tensors_of_our_own_arrive_bit_equal_under_all_their_names(tmp_path: Path) -> None:
    origin = write_own(tmp_path / "x.pth", tiny_recipe()).state_dict()
    weights = read_checkpoint(tmp_path / "x.pth").weights
    assert weights.keys() == origin.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in origin.items())


@pytest.mark.parametrize(
    ("network", "hidden_value", "part"),
    [
        ({"sparse": True, "mask_tokens": True, "densify": True}, "zero", "mask_tokens.0"),
        ({"skips": False, "decoder": "light"}, "token", "hidden_value"),
    ],
)
def test_parts_that_only_pretraining_has_are_kept(tmp_path: Path, network: dict, hidden_value: str, part: str) -> None:
    recipe = tiny_recipe(network=network, masking={"hidden_value": hidden_value})
    origin = write_own(tmp_path / "x.pth", recipe).state_dict()
    weights = read_checkpoint(tmp_path / "x.pth").weights
    assert weights.keys() == origin.keys()
    assert part in weights


def test_a_recipe_that_counts_in_volumes_has_no_known_number_of_steps(tmp_path: Path) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe(schedule={"iterations": "dataset"}))
    origin = read_checkpoint(tmp_path / "x.pth").origin
    assert (origin.epochs, origin.steps) == (1, None)
    write_own(tmp_path / "x.pth", tiny_recipe(schedule={"iterations": 40}))
    assert read_checkpoint(tmp_path / "x.pth").origin.steps == 40


@pytest.mark.parametrize("excluded", [None, [], ["Dataset004_Hippocampus"]])
def test_what_was_kept_out_of_pretraining_comes_along(tmp_path: Path, excluded: list[str] | None) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    content["nnssl_mae"]["excluded_datasets"] = excluded
    torch.save(content, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").origin.as_json()["excluded_datasets"] == excluded


def test_what_stock_nnunet_cannot_repeat_is_described(tmp_path: Path) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe(data={"clip_percentile": 99.0, "crop": "foreground"}))
    beyond = read_checkpoint(tmp_path / "x.pth").beyond_stock
    assert (beyond.clip_low, beyond.clip_high, beyond.crop) == (None, 99.0, "foreground")


def test_files_that_are_no_checkpoint(tmp_path) -> None:
    text = tmp_path / "text.pth"
    text.write_text("hello")
    with pytest.raises(UserError, match="not a checkpoint"):
        read_checkpoint(text)
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "nowhere.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"network_weights": {}}, tmp_path / "plain.pth")
    with pytest.raises(UserError, match="no description of the pre-training"):
        read_checkpoint(tmp_path / "plain.pth")
    torch.save({"nnssl_mae": {}, "network_weights": {"x": torch.zeros(1)}}, tmp_path / "ours.pth")
    with pytest.raises(UserError, match="damaged description of its pre-training"):
        read_checkpoint(tmp_path / "ours.pth")


@pytest.mark.parametrize("name", ["os.system", "torch.nn.modules.conv.Conv3d.__init__", "torch.hub.load"])
def test_a_description_cannot_name_foreign_classes(pretrained, tmp_path, name: str) -> None:
    """nnU-Net imports the classes that plans name, so a description could call anything."""
    content = torch.load(pretrained, weights_only=True)
    content["nnssl_adaptation_plan"]["architecture_plans"]["arch_kwargs"]["norm_op"] = name
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"not a class of torch\.nn"):
        read_checkpoint(tmp_path / "evil.pth")


def test_damaged_descriptions_and_newer_schemas(pretrained, tmp_path) -> None:
    content = torch.load(pretrained, weights_only=True)
    content["nnssl_mae"]["schema"] = 99
    torch.save(content, tmp_path / "new.pth")
    with pytest.raises(UserError, match="newer nnssl_mae"):
        read_checkpoint(tmp_path / "new.pth")
    content["nnssl_mae"]["schema"] = 1
    del content["nnssl_adaptation_plan"]["pretrain_plan"]
    torch.save(content, tmp_path / "damaged.pth")
    with pytest.raises(UserError, match="damaged description"):
        read_checkpoint(tmp_path / "damaged.pth")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("image_reader_writer", None, "has no image_reader_writer"),
        ("transpose_forward", None, "has no transpose_forward"),
        ("transpose_backward", None, "has no transpose_backward"),
        ("transpose_forward", [0, 1], r"transpose_forward is \[0, 1\] and not an order of the axes"),
        ("transpose_backward", [0, 0, 2], r"transpose_backward is \[0, 0, 2\] and not an order of the axes"),
        ("transpose_forward", "012", "transpose_forward is '012' and not an order of the axes"),
    ],
)
def test_an_incomplete_preprocessing_is_named(tmp_path: Path, key: str, value: object, sentence: str) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    plan = content["nnssl_adaptation_plan"]["pretrain_plan"]
    del plan[key]
    if value is not None:
        plan[key] = value
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth does not say .*{sentence}.*Get an undamaged copy"):
        read_checkpoint(tmp_path / "x.pth")
