"""Descriptions that do not belong to their weights, or ask for what no network needs: a sentence, never a guess."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl_mae.checkpoints.describe import nnunet_architecture
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from tests.checkpoints.files import KWARGS, adaptation_plan, tiny_recipe, write_nnssl, write_own, write_s3d


def with_kwargs(**changes: Any) -> dict[str, Any]:
    plan = adaptation_plan()
    described = plan["architecture_plans"]
    return {**plan, "architecture_plans": {**described, "arch_kwargs": {**described["arch_kwargs"], **changes}}}


@pytest.mark.parametrize(
    "changes",
    [
        {"n_blocks_per_stage": [1, 1, 1]},
        {"n_blocks_per_stage": [1, 2, 2]},
        {"conv_bias": False},
        {"features_per_stage": [4, 6, 10]},
        {"kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]},
        {"norm_op_kwargs": {"eps": 1e-5, "affine": False}},
        {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"},
        {"strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]]},
    ],
)
def test_weights_of_another_network_than_described_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_nnssl(tmp_path / "x.pth", with_kwargs(**changes))
    with pytest.raises(UserError, match="does not hold the encoder that it describes"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_file_of_ours_that_lost_most_of_its_encoder_is_refused(tmp_path: Path) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    content["network_weights"] = {k: v for k, v in content["network_weights"].items() if "encoder.stages" not in k}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not hold the encoder that it describes"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.modules.module.register_module_forward_hook",
        "torch.nn.Parameter",
        "torch.nn.modules.conv.NoSuchLayer",
        "torch.nn.functional.relu",
        "subprocess.run",
    ],
)
@pytest.mark.parametrize("imported", [None, ["conv_op"]])
def test_only_layers_of_torch_can_be_named(name: str, imported: list[str] | None) -> None:
    with pytest.raises(UserError, match=r"not a class of torch\.nn"):
        nnunet_architecture("ResidualEncoderUNet", {**KWARGS, "nonlin": name}, imported, "x.pth")


def test_nothing_but_operators_is_imported() -> None:
    with pytest.raises(UserError, match="n_stages imported"):
        nnunet_architecture("ResidualEncoderUNet", KWARGS, ["conv_op", "n_stages"], "x.pth")


def test_one_number_stands_for_all_stages() -> None:
    short = {**KWARGS, "features_per_stage": 8, "strides": 2, "kernel_sizes": 3, "n_conv_per_stage_decoder": 1}
    kwargs = nnunet_architecture("ResidualEncoderUNet", short, None, "x.pth")["arch_kwargs"]
    assert (kwargs["features_per_stage"], kwargs["strides"], kwargs["kernel_sizes"]) == ([8] * 3, [2] * 3, [3] * 3)
    assert kwargs["n_conv_per_stage_decoder"] == [1, 1]


def test_a_small_file_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    bomb: list[Any] = ["x"]
    for _ in range(40):
        bomb = [bomb, bomb]
    write_nnssl(tmp_path / "x.pth", adaptation_plan(), citations=bomb)
    with pytest.raises(UserError, match="damaged description"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("value", [float("inf"), 10**400])
def test_numbers_that_are_no_sizes_are_refused(tmp_path: Path, value: float) -> None:
    write_nnssl(tmp_path / "x.pth", adaptation_plan(pretrain_num_input_channels=value))
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "x.pth")


def test_dicts_whose_methods_were_replaced_are_read_as_dicts(tmp_path: Path) -> None:
    write_nnssl(tmp_path / "x.pth", adaptation_plan())
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    torch.save({**content, "network_weights": Poisoned(content["network_weights"])}, tmp_path / "x.pth")
    assert torch.load(tmp_path / "x.pth", weights_only=True)["network_weights"].items == 3
    assert len(read_checkpoint(tmp_path / "x.pth").weights) >= len(content["network_weights"])


class Poisoned:
    """Unpickled as an OrderedDict whose method ``items`` is a number."""

    def __init__(self, content: dict[str, torch.Tensor]) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"items": 3}, None, iter(self.content.items())


def test_a_tensor_with_more_values_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    write_nnssl(tmp_path / "x.pth", adaptation_plan())
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    content["network_weights"]["decoder.seg_layers.9.weight"] = torch.zeros(1).expand(100_000, 1_000_000)
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="more values than are stored"):
        read_checkpoint(tmp_path / "x.pth")


def test_an_axis_order_that_is_not_undone_is_refused(tmp_path: Path) -> None:
    plan = adaptation_plan()
    plan["pretrain_plan"] |= {"transpose_forward": [2, 0, 1], "transpose_backward": [2, 0, 1]}
    write_nnssl(tmp_path / "x.pth", plan)
    with pytest.raises(UserError, match="transpose_backward does not undo"):
        read_checkpoint(tmp_path / "x.pth")


def test_an_s3d_file_without_tokens_is_known_by_its_trainer(tmp_path: Path) -> None:
    write_s3d(tmp_path / "x.pth", adaptation_plan(), released=True)
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    weights = content["network_weights"]
    content["network_weights"] = {  # as an export writes it: copies are tied
        name: weights[name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")]
        if name.startswith("encoder.") and name.replace(".conv.", ".all_modules.0.") in weights
        else tensor
        for name, tensor in weights.items()
    }
    torch.save(content, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").reconstruction is None
