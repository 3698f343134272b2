"""Weights without a description: the network is read off their names and shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import planned_network
from tests.checkpoints.files import (
    KWARGS,
    PLAIN_KWARGS,
    adaptation_plan,
    first_names,
    stock_network,
    write_s3d,
)

ANISOTROPIC: dict[str, Any] = {
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
}
BATCH_NORM = {"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d", "conv_bias": False}
SAME_WIDTHS = {"features_per_stage": [4, 6, 6], "n_blocks_per_stage": [2, 1, 1]}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "residual": ("ResidualEncoderUNet", KWARGS),
    "plain": ("PlainConvUNet", PLAIN_KWARGS),
    "pooling": ("AmaesUNet", PLAIN_KWARGS),
    "residual, anisotropic": ("ResidualEncoderUNet", KWARGS | ANISOTROPIC),
    "plain, anisotropic": ("PlainConvUNet", PLAIN_KWARGS | ANISOTROPIC),
    "batch norm, no bias": ("PlainConvUNet", PLAIN_KWARGS | BATCH_NORM),
    "widths that stay": ("ResidualEncoderUNet", KWARGS | SAME_WIDTHS),
}


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("channels", [1, 4])
def test_the_network_is_found_and_computes_the_same(tmp_path: Path, case: str, channels: int) -> None:
    name, kwargs = NETWORKS[case]
    network = stock_network(name, kwargs, channels)
    torch.save(network.state_dict(), tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert checkpoint.channels == channels
    assert {**checkpoint.architecture["arch_kwargs"]} == kwargs
    assert checkpoint.architecture["network_class_name"].endswith(f".{name}")
    rebuilt = planned_network(checkpoint.architecture, channels, 3).eval()
    rebuilt.load_state_dict(dict(checkpoint.weights), strict=True)
    volume = torch.randn(1, channels, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(rebuilt(volume), network(volume))
    assert not checkpoint.is_preprocessing_known
    assert checkpoint.origin.format == "weights"
    assert "nonlinearity" in checkpoint.notes[0]


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "network.", "model.module."]
)
@pytest.mark.parametrize(
    "wrapper", ["", "state_dict", "model_state_dict", "model", "network_weights", "net", "model state_dict"]
)
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, prefix: str, wrapper: str) -> None:
    network = stock_network("PlainConvUNet", PLAIN_KWARGS)
    content: dict[str, Any] = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    for key in wrapper.split():
        content = {key: content, "epoch": 3, "loss": 0.5}
    torch.save(content, tmp_path / "x.pth")
    weights = read_checkpoint(tmp_path / "x.pth").weights
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())


def test_safetensors_without_metadata(tmp_path: Path) -> None:
    network = stock_network("ResidualEncoderUNet", KWARGS)
    safetensors.torch.save_file(first_names(network), tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path)
    state = network.state_dict()
    assert checkpoint.weights.keys() == state.keys()
    assert all(torch.equal(checkpoint.weights[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("case", ["residual", "plain", "pooling", "residual, anisotropic"])
def test_an_encoder_alone_does_not_tell_its_strides_and_says_so(tmp_path: Path, case: str) -> None:
    name, kwargs = NETWORKS[case]
    network = stock_network(name, kwargs)
    encoder = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("encoder.")}
    torch.save(encoder, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert "strides" not in checkpoint.architecture["arch_kwargs"]
    assert "nothing tells the strides" in checkpoint.notes[1]
    assert checkpoint.weights.keys() == encoder.keys()


def test_the_plan_beside_bare_weights_is_used(tmp_path: Path) -> None:
    """nnssl's form, with the weights as safetensors."""
    network = stock_network("ResidualEncoderUNet", KWARGS)
    safetensors.torch.save_file(first_names(network), tmp_path / "model.safetensors")
    (tmp_path / "adaptation_plan.json").write_text(json.dumps(adaptation_plan()))
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.origin.format == "nnssl"
    assert checkpoint.data["spacing"] == [1.0, 1.0, 1.0]


def test_of_copies_that_differ_the_trained_one_is_taken(tmp_path: Path) -> None:
    trained = write_s3d(tmp_path / "s3d.pth", adaptation_plan()).state_dict()
    content = torch.load(tmp_path / "s3d.pth", weights_only=True)
    bare = tmp_path / "bare"
    bare.mkdir()
    torch.save(content["network_weights"], bare / "x.pth")
    checkpoint = read_checkpoint(bare)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in checkpoint.weights.items())
    assert "the copies 'all_modules' were taken" in checkpoint.notes[0]


def _two_d() -> dict[str, torch.Tensor]:
    flat = {key: [edges[1:] for edges in PLAIN_KWARGS[key]] for key in ("kernel_sizes", "strides")}
    kwargs = PLAIN_KWARGS | flat | {"conv_op": "torch.nn.Conv2d", "norm_op": "torch.nn.InstanceNorm2d"}
    state: dict[str, torch.Tensor] = stock_network("PlainConvUNet", kwargs).state_dict()
    return state


def _without(*parts: str) -> dict[str, torch.Tensor]:
    state = stock_network("ResidualEncoderUNet", KWARGS).state_dict()
    return {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


def _two_networks() -> dict[str, torch.Tensor]:
    state = stock_network("PlainConvUNet", PLAIN_KWARGS).state_dict()
    one = {f"model.{name}": tensor for name, tensor in state.items()}
    return one | {f"network.{name}": tensor + 1 for name, tensor in state.items()}


def _with(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return _without() | {name: tensor}


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (_two_d, "a network for 2D images; only 3D"),
        (lambda: _without("encoder.stages.1."), r"does not hold a whole encoder \(stages \[0, 2\]"),
        (lambda: _without("stages.2.blocks.1.conv2"), r"conv2\.conv\.weight is missing"),
        (lambda: _without("encoder."), "holds weights of a network that is not known here"),
        (lambda: _without(".norm.", ".all_modules.1."), "the encoder of one of nnU-Net's networks"),
        (lambda: {"transformer.block.0.attention.weight": torch.zeros(3)}, "of a network that is not known here"),
        (lambda: _with("encoder.stages.0.squeeze_excitation.fc1.weight", torch.zeros(1)), "fc1.weight has no place"),
        (_two_networks, "under different prefixes, of two networks"),
        (lambda: {"state_dict": {}}, "no weights that are known here"),
        (lambda: {"epoch": 3}, r"no weights that are known here \(it has epoch\)"),
        (dict, r"no weights that are known here \(it has nothing\)"),
        (lambda: _with("encoder.stem.convs.0.conv.weight", torch.zeros(4, 1, 3, 3, 3).to_sparse()), "compressed form"),
    ],
)  # fmt: skip
def test_what_is_not_a_known_network_gets_a_sentence(tmp_path: Path, weights: Any, sentence: str) -> None:
    torch.save(weights(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth .*{sentence}"):
        read_checkpoint(tmp_path / "x.pth")
