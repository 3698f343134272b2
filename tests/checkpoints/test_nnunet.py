"""Checkpoints of nnU-Net's own training, as its trainer saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl_mae.checkpoints.load import load_content
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import planned_network
from tests.checkpoints.files import KWARGS, PLAIN_KWARGS, nnunet_plans, stock_network, write_nnunet

NETWORKS = {"ResidualEncoderUNet": KWARGS, "PlainConvUNet": PLAIN_KWARGS}
ANISOTROPIC = {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_network_and_preprocessing_of_the_plans(tmp_path: Path, name: str, channels: int, anisotropic: bool) -> None:
    kwargs = NETWORKS[name] | (ANISOTROPIC if anisotropic else {})
    network = stock_network(name, kwargs, channels)
    write_nnunet(tmp_path / "checkpoint_final.pth", network, nnunet_plans(name, kwargs))
    checkpoint = read_checkpoint(tmp_path)
    state = network.state_dict()
    assert checkpoint.weights.keys() == state.keys()
    assert all(torch.equal(checkpoint.weights[name], tensor) for name, tensor in state.items())
    rebuilt = planned_network(checkpoint.architecture, checkpoint.channels, 3).eval()
    rebuilt.load_state_dict(dict(checkpoint.weights), strict=True)
    volume = torch.randn(1, channels, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(rebuilt(volume), network(volume))
    assert checkpoint.data["spacing"] == [3.0, 0.7, 0.7]
    assert checkpoint.data["patch_size"] == [32, 32, 16]
    assert checkpoint.data["normalization_schemes"] == ["CTNormalization"]
    assert checkpoint.data["resampling_fn_mask_kwargs"]["is_seg"] is True
    assert checkpoint.plans["transpose_forward"] == [1, 0, 2]
    assert checkpoint.plans["image_reader_writer"] == "SimpleITKIO"
    assert checkpoint.plans["foreground_intensity_properties_per_channel"]["0"]["mean"] == 99.0
    origin = checkpoint.origin
    assert (origin.format, origin.method, origin.epochs) == ("nnU-Net", "nnUNetTrainer", 1000)
    assert checkpoint.reconstruction is None
    assert checkpoint.cannot_reconstruct == "it is a segmentation model"


def test_numbers_of_numpy_become_numbers_of_python(tmp_path: Path) -> None:
    """Of every kind that numpy has, whatever torch and numpy pickle for them."""
    kinds = (np.float16, np.float32, np.float64, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64,
             np.uint64, np.bool_)  # fmt: skip
    numbers = [kind(1) for kind in kinds] + [np.float64(-0.1), np.int64(-(2**40)), np.dtype(">f4").type(0.5)]
    torch.save({"network_weights": {}, "log": numbers}, tmp_path / "x.pth")
    read = load_content(tmp_path / "x.pth", "x.pth")["log"]
    assert read == [number.item() for number in numbers]
    assert {type(number) for number in read} == {int, float, bool}


def test_letting_numpys_numbers_in_ends_with_the_reading(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "x.pth", stock_network("PlainConvUNet", PLAIN_KWARGS), nnunet_plans("PlainConvUNet", {}))
    before = set(torch.serialization.get_safe_globals())
    load_content(tmp_path / "x.pth", "x.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(tmp_path / "x.pth", weights_only=True)


def test_what_a_configuration_inherits(tmp_path: Path) -> None:
    plans = nnunet_plans("PlainConvUNet", PLAIN_KWARGS)
    write_nnunet(
        tmp_path / "x.pth",
        stock_network("PlainConvUNet", PLAIN_KWARGS),
        plans,
        init_args={"plans": plans, "configuration": "3d_child", "fold": "all"},
    )
    assert read_checkpoint(tmp_path / "x.pth").data["spacing"] == [1.5, 1.5, 1.5]


def old_plans(kwargs: dict[str, Any]) -> dict[str, Any]:
    """As nnU-Net v2 wrote them before they held an architecture."""
    residual = "n_blocks_per_stage" in kwargs
    plans = nnunet_plans("", {})
    full = plans["configurations"]["3d_fullres"]
    del full["architecture"]
    full |= {
        "UNet_class_name": "ResidualEncoderUNet" if residual else "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": kwargs["n_blocks_per_stage" if residual else "n_conv_per_stage"],
        "n_conv_per_stage_decoder": kwargs["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": kwargs["strides"],
        "conv_kernel_sizes": kwargs["kernel_sizes"],
    }
    return plans


@pytest.mark.parametrize("name", NETWORKS)
def test_plans_from_before_they_held_an_architecture(tmp_path: Path, name: str) -> None:
    kwargs = NETWORKS[name] | {"features_per_stage": [4, 8, 8]}
    network = stock_network(name, kwargs)
    write_nnunet(tmp_path / "x.pth", network, old_plans(kwargs))
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    rebuilt = planned_network(checkpoint.architecture, 1, 3)
    rebuilt.load_state_dict(dict(checkpoint.weights), strict=True)
    assert checkpoint.architecture["arch_kwargs"]["features_per_stage"] == [4, 8, 8]


def test_a_model_that_we_fine_tuned_is_a_model_of_nnunet_and_names_its_origin(tmp_path: Path) -> None:
    """Our block does not make it a pre-training checkpoint."""
    block = {"recipe": {"name": "warmup"}, "initialisation": {"origin": {"label": "hf://AnonRes/X@abc"}}}
    network = stock_network("ResidualEncoderUNet", KWARGS)
    write_nnunet(tmp_path / "x.pth", network, nnunet_plans("ResidualEncoderUNet", KWARGS), nnssl_mae=block)
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert checkpoint.origin.format == "nnU-Net"
    assert checkpoint.notes == ("The model was itself fine-tuned from hf://AnonRes/X@abc with nnssl_mae.",)
    block["initialisation"] = None  # the control from scratch
    write_nnunet(tmp_path / "x.pth", network, nnunet_plans("ResidualEncoderUNet", KWARGS), nnssl_mae=block)
    assert read_checkpoint(tmp_path / "x.pth").notes == ()


def _started_with(configuration: str) -> dict[str, Any]:
    plans = nnunet_plans("PlainConvUNet", PLAIN_KWARGS)
    return {"init_args": {"plans": plans, "configuration": configuration}}


def _with_plans(**changes: Any) -> dict[str, Any]:
    return {
        "init_args": {"plans": nnunet_plans("PlainConvUNet", PLAIN_KWARGS) | changes, "configuration": "3d_fullres"}
    }


def _with_full(**changes: Any) -> dict[str, Any]:
    plans = nnunet_plans("PlainConvUNet", PLAIN_KWARGS, **changes)
    return {"init_args": {"plans": plans, "configuration": "3d_fullres"}}


def _architecture(name: str, **changes: Any) -> dict[str, Any]:
    kwargs = PLAIN_KWARGS | changes
    imported = ["norm_op", "conv_op", "nonlin"]
    described = {"network_class_name": name, "arch_kwargs": kwargs, "_kw_requires_import": imported}
    return _with_full(architecture=described)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (_started_with("2d"), r"holds a 2D network \('2d'\); only nnU-Net's 3D"),
        (_started_with("3d_cascade_fullres"), "second network of a cascade"),
        (_started_with("3d_lowres"), "damaged plans of nnU-Net"),
        (_with_full(inherits_from="3d_child"), "damaged plans of nnU-Net"),
        (_with_plans(image_reader_writer="MyReader"), "reader 'MyReader'"),
        (_with_plans(foreground_intensity_properties_per_channel=None), "does not hold the intensities"),
        (_with_plans(transpose_forward=[0, 0, 1]), "not an order of the axes"),
        (_with_full(normalization_schemes=["os.system"]), r"normalisation 'os\.system'"),
        (_with_full(resampling_fn_data="eval"), "resampling function 'eval'"),
        (_with_full(spacing=[1.0, float("nan"), 1.0]), "spacing .* must be three numbers above zero"),
        (_with_full(patch_size=[0, 16, 16]), "patch_size .* must be three numbers above zero"),
        (_with_full(spacing="111"), "spacing '111', which must be three numbers"),
        (_architecture("torch.hub.load"), "holds a network 'load'; known are"),
        (_architecture("my.PlainConvUNet", norm_op="os.system"), r"'os\.system' as norm_op"),
        (_architecture("my.PlainConvUNet", nonlin="torch.nn.PReLU"), "PReLU"),
        (_architecture("my.PlainConvUNet", features_per_stage=[10**9] * 3), "features_per_stage .* is damaged"),
        (_architecture("my.PlainConvUNet", n_conv_per_stage=[10**6] * 3), "n_conv_per_stage"),
        (_architecture("my.PlainConvUNet", features_per_stage=[4096] * 3, kernel_sizes=[[15] * 3] * 3), "any machine"),
        (_architecture("my.PlainConvUNet", n_stages=10**9), "n_stages 1000000000"),
        ({"network_weights": {"x": torch.zeros(1)}}, "no weights of the network that its plans describe"),
        ({"network_weights": {"x": 1}}, r"holds a int where weights should be \(x\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_gets_a_sentence(tmp_path: Path, more: dict[str, Any], sentence: str) -> None:
    network = stock_network("PlainConvUNet", PLAIN_KWARGS)
    write_nnunet(tmp_path / "x.pth", network, nnunet_plans("PlainConvUNet", PLAIN_KWARGS), **more)
    with pytest.raises(UserError, match=rf"x\.pth .*{sentence}"):
        read_checkpoint(tmp_path / "x.pth")
