"""Released AMAES files. None is at hand: these have the form that is described, of a network written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import planned_network
from tests.checkpoints.files import AmaesReference, amaes_weights, different_everywhere, lightning

VOLUME = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return different_everywhere(AmaesReference())


FORMS: dict[str, Any] = {
    "flat": lambda network: amaes_weights(network),
    "compiled": lambda network: amaes_weights(network, "model._orig_mod."),
    "without prefix": lambda network: amaes_weights(network, ""),
    "lightning": lambda network: lightning(amaes_weights(network)),
    "lightning, compiled": lambda network: lightning(amaes_weights(network, "model._orig_mod.")),
    "on several GPUs": lambda network: {"state_dict": amaes_weights(network, "module.model.")},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_encoder_computes_what_the_origin_computes(tmp_path: Path, network: Any, form: str) -> None:
    torch.save(FORMS[form](network), tmp_path / "amaes.ckpt")
    checkpoint = read_checkpoint(tmp_path / "amaes.ckpt")
    ours = planned_network(checkpoint.architecture, checkpoint.channels, 2).eval()
    missing, unexpected = ours.load_state_dict(dict(checkpoint.weights), strict=False)
    assert not unexpected
    assert missing
    assert all(name.startswith("decoder.") for name in missing)
    with torch.inference_mode():
        for level, (expected, features) in enumerate(zip(network(VOLUME), ours.encoder(VOLUME), strict=True)):
            torch.testing.assert_close(features, expected, rtol=1e-6, atol=1e-6, msg=f"level {level}")
    assert checkpoint.architecture["network_class_name"] == "nnssl_mae.networks.amaes_unet.AmaesUNet"
    assert checkpoint.architecture["arch_kwargs"]["features_per_stage"] == [4, 6, 8, 10, 12]


def test_every_tensor_of_the_encoder_arrives_bit_equal_under_both_of_its_names(tmp_path: Path, network: Any) -> None:
    torch.save(amaes_weights(network), tmp_path / "x.pth")
    weights = read_checkpoint(tmp_path / "x.pth").weights
    encoder = network.encoder.state_dict()
    assert len(weights) == 2 * len(encoder) == 80
    for level, block in enumerate(network.encoder.values()):
        place = f"encoder.stages.{level}.{min(level, 1)}.convs"
        for layer in (1, 2):
            for index, part in enumerate(("conv", "norm")):
                for kind in ("weight", "bias"):
                    tensor = block.state_dict()[f"conv{layer}.{part}.{kind}"]
                    assert torch.equal(weights[f"{place}.{layer - 1}.{part}.{kind}"], tensor)
                    assert torch.equal(weights[f"{place}.{layer - 1}.all_modules.{index}.{kind}"], tensor)


def test_the_published_sizes() -> None:
    """U-Net B has 14.1 million parameters in its encoder, XL 56.5: on the meta device."""
    for width, millions in ((32, 14.1), (64, 56.5)):
        with torch.device("meta"):
            network = AmaesReference(tuple(width * 2**level for level in range(5)))
        assert round(sum(p.numel() for p in network.encoder.parameters()) / 1e6, 1) == millions


def test_the_preprocessing_is_that_of_the_paper(tmp_path: Path, network: Any) -> None:
    torch.save(lightning(amaes_weights(network)), tmp_path / "x.ckpt")
    checkpoint = read_checkpoint(tmp_path / "x.ckpt")
    assert checkpoint.is_preprocessing_known
    assert checkpoint.plans["image_reader_writer"] == "NibabelIOWithReorient"
    assert checkpoint.data["spacing"] == [1.0, 1.0, 1.0]
    assert checkpoint.data["patch_size"] == [128, 128, 128]
    assert checkpoint.data["normalization_schemes"] == ["RescaleTo01Normalization"]
    assert checkpoint.beyond_stock.clip_high == 99.0
    assert checkpoint.reconstruction is None
    assert "thrown away" in checkpoint.cannot_reconstruct
    assert "99th percentile" in checkpoint.notes[0]
    origin = checkpoint.origin
    assert (origin.format, origin.epochs, origin.steps) == ("AMAES", 100, 12345)
    assert "arXiv:2408.00640" in origin.citations[0]


def test_a_medneXt_is_refused(tmp_path: Path) -> None:
    weights = {"model.encoder.enc_block_0.0.conv1.weight": torch.zeros(4, 1, 3, 3, 3)}
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(UserError, match="AMAES's MedNeXt, which is not supported"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "lost", ["encoder.in_conv.conv1.conv.weight", "encoder.encoder_conv2.conv1.conv.weight",
             "encoder.encoder_conv3.conv2.norm.bias", "encoder.encoder_conv1.conv2.conv.weight"]
)  # fmt: skip
def test_an_encoder_that_is_not_whole_is_refused(tmp_path: Path, network: Any, lost: str) -> None:
    weights = amaes_weights(network)
    del weights[f"model.{lost}"]
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth (does not hold|holds no)"):
        read_checkpoint(tmp_path / "x.pth")


class Config:
    """What projects put into Lightning's ``hyper_parameters``."""


def test_a_lightning_file_with_foreign_objects_is_refused_with_their_class(tmp_path: Path, network: Any) -> None:
    torch.save(lightning(amaes_weights(network), hyper_parameters={"config": Config()}), tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"it names tests\.checkpoints\.test_amaes\.Config\); ask whoever") as caught:
        read_checkpoint(tmp_path / "x.ckpt")
    assert "weights_only" not in str(caught.value)
