"""Files of nnssl (OpenMind). No released file is at hand: these have the form that is described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl_mae.checkpoints.describe import nnunet_architecture
from nnssl_mae.checkpoints.nnssl import resenc_l
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.checkpoints.transfer import load_into, transfer
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.reconstruct import load_network
from nnssl_mae.masking import hide
from nnssl_mae.networks.planned import planned_network
from tests.checkpoints.files import (
    KWARGS,
    PLAIN_KWARGS,
    adaptation_plan,
    network_of,
    stock_network,
    tiny_recipe,
    with_configuration,
    write_nnssl,
)

PATCH = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
HIDDEN = torch.rand(1, 1, 2, 2, 2, generator=torch.Generator().manual_seed(4)) < 0.6


def test_a_file_of_plain_mae_reconstructs_as_its_network(tmp_path: Path) -> None:
    network = write_nnssl(tmp_path / "checkpoint_final.pth", adaptation_plan())
    checkpoint = read_checkpoint(tmp_path / "checkpoint_final.pth")
    read = load_network(checkpoint, tmp_path)
    with torch.inference_mode():
        # nnssl hides by multiplying the volume with the mask, then runs the stock network.
        expected = network.decoder(network.encoder(hide(PATCH, HIDDEN)))
        assert torch.equal(read(PATCH, HIDDEN), expected)
    assert checkpoint.reconstruction is not None
    assert (checkpoint.reconstruction.masking.block_size, checkpoint.reconstruction.masking.ratio) == (16, 0.75)
    assert checkpoint.data["spacing"] == [1.0, 1.0, 1.0]
    assert checkpoint.data["patch_size"] == [32, 32, 32]
    assert checkpoint.plans["image_reader_writer"] == "SimpleITKIO"
    assert checkpoint.origin.method == "BaseMAETrainer_BS8_1000ep"
    assert checkpoint.notes == ()


def test_a_folder_as_it_is_downloaded(tmp_path: Path) -> None:
    """Released: weights without training state, the plan beside them, and perhaps citations."""
    write_nnssl(tmp_path / "checkpoint_final.pth", None, citations=["Wald et al."], current_epoch=7)
    (tmp_path / "adaptation_plan.json").write_text(json.dumps(adaptation_plan(key_to_lpe=None)))
    checkpoint = read_checkpoint(tmp_path)
    assert load_network(checkpoint, tmp_path)
    assert (checkpoint.origin.citations, checkpoint.origin.epochs) == (("Wald et al.",), 7)
    assert str(tmp_path) not in json.dumps(checkpoint.origin.as_json())


def test_the_published_network_has_its_published_size() -> None:
    plan = {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    architecture = nnunet_architecture("ResidualEncoderUNet", plan["arch_kwargs"] or resenc_l(), None, Path("x"))
    with torch.device("meta"):
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            1,
            allow_init=False,
            deep_supervision=False,
        )
    state = network.state_dict()
    assert len(state) == 956
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == 102.35
    counts = {
        part: sum(name.startswith(part) for name in state)
        for part in ("encoder.stem", "encoder.stages", "decoder.encoder", "decoder.stages", "decoder.seg_layers")
    }
    assert list(counts.values()) == [8, 440, 448, 40, 10]
    assert state["encoder.stem.convs.0.conv.weight"].shape == (32, 1, 3, 3, 3)
    assert "encoder.stages.1.blocks.0.skip.1.conv.weight" in state
    assert "encoder.stages.1.blocks.0.skip.1.conv.bias" not in state


@pytest.mark.parametrize("name", ["ResEncL", "NoSkipResEncL"])
def test_a_name_alone_is_the_published_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Which is tested for its size above; here it is a small one."""
    monkeypatch.setattr("nnssl_mae.checkpoints.nnssl.resenc_l", lambda: dict(KWARGS))
    plan = adaptation_plan(architecture_plans={"arch_class_name": name, "arch_kwargs": None})
    write_nnssl(tmp_path / "x.pth", plan)
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert checkpoint.architecture["arch_kwargs"] == KWARGS
    assert checkpoint.architecture["network_class_name"].endswith(".ResidualEncoderUNet")


def test_weights_of_another_network_than_the_plan_describes_are_refused(tmp_path: Path) -> None:
    """A plan that lies beside the wrong file, or the weights of another width."""
    write_nnssl(tmp_path / "x.pth", adaptation_plan(architecture_plans={"arch_class_name": "ResEncL"}))
    with pytest.raises(UserError, match=r"does not hold the encoder that it describes .* is missing.*of another check"):
        read_checkpoint(tmp_path / "x.pth")
    wider = stock_network("ResidualEncoderUNet", KWARGS | {"features_per_stage": [8, 12, 16]}, heads=1)
    write_nnssl(tmp_path / "x.pth", adaptation_plan(), network_weights=wider.state_dict())
    with pytest.raises(UserError, match=r"weight is \(8, 1, 3, 3, 3\) and should be \(4, 1, 3, 3, 3\)"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_description_that_makes_no_network_names_the_file(tmp_path: Path) -> None:
    kwargs = {key: value for key, value in KWARGS.items() if key != "strides"}
    described = {"arch_class_name": "ResidualEncoderUNet", "arch_kwargs": kwargs}
    write_nnssl(tmp_path / "x.pth", adaptation_plan(architecture_plans=described))
    with pytest.raises(UserError, match=r"x\.pth: .*describes a network that cannot be built"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("junk", [torch.zeros(2), {1, 2}])
def test_a_description_holds_plain_values_only(tmp_path: Path, junk: object) -> None:
    write_nnssl(tmp_path / "x.pth", with_configuration(adaptation_plan(), use_mask_for_norm=junk))
    with pytest.raises(UserError, match=r"x\.pth has a damaged description .*where plain values should be"):
        read_checkpoint(tmp_path / "x.pth")


def test_patch_and_spacing_in_all_their_places(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    write_nnssl(file, adaptation_plan(pretrain_patch_size=[64, 32, 32]))
    assert read_checkpoint(file).data["patch_size"] == [64, 32, 32]
    write_nnssl(file, with_configuration(adaptation_plan(), spacing_style="median", spacing=[2, 0.9, 1]))
    assert read_checkpoint(file).data["spacing"] == [2.0, 0.9, 1.0]
    write_nnssl(file, with_configuration(adaptation_plan(), spacing_style="noresample", spacing=None))
    data = read_checkpoint(file).data
    assert (data["resampling_fn_data"], data["resampling_fn_mask_kwargs"]) == ("no_resampling_hack", {})


def test_a_resampling_function_that_nnunet_lacks_becomes_its_default_and_is_named(tmp_path: Path) -> None:
    write_nnssl(tmp_path / "x.pth", with_configuration(adaptation_plan(), resampling_fn_data="resample_their_way"))
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert checkpoint.data["resampling_fn_data"] == "resample_data_or_seg_to_shape"
    assert checkpoint.data["resampling_fn_data_kwargs"]["order"] == 3
    assert "no resampling function 'resample_their_way'" in " ".join(checkpoint.notes)


def test_the_configuration_that_was_trained_is_taken(tmp_path: Path) -> None:
    plan = adaptation_plan()
    one = plan["pretrain_plan"]["configurations"]["onemmiso"]
    plan["pretrain_plan"]["configurations"] = {
        "median": {**one, "spacing_style": "median", "spacing": [3, 3, 3]},
        "onemmiso": one,
    }
    write_nnssl(tmp_path / "x.pth", plan)
    assert read_checkpoint(tmp_path / "x.pth").data["spacing"] == [1.0, 1.0, 1.0]
    write_nnssl(tmp_path / "x.pth", plan, init_args={})
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert checkpoint.data["spacing"] == [3.0, 3.0, 3.0]
    assert "2 configurations; the first, 'median'" in " ".join(checkpoint.notes)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (adaptation_plan(architecture_plans={"arch_class_name": "SwinUNETR"}), "network 'SwinUNETR', which cannot be"),
        (with_configuration(adaptation_plan(), normalization_schemes=["CTNormalization"]), "'CTNormalization'"),
        (adaptation_plan(pretrain_plan={}), "damaged adaptation plan"),
        (adaptation_plan(pretrain_num_input_channels="many"), "damaged adaptation plan"),
        (with_configuration(adaptation_plan(), spacing_style="median", spacing=[1, 1]), "must be three numbers"),
        (
            with_configuration(adaptation_plan(), normalization_schemes=[]),
            r"normalization_schemes is \[\] and not a list",
        ),
        (with_configuration(adaptation_plan(), use_mask_for_norm=[]), r"use_mask_for_norm is \[\] and not a list"),
    ],
)
def test_what_cannot_be_used_gets_a_sentence(tmp_path: Path, plan: dict[str, Any], sentence: str) -> None:
    write_nnssl(tmp_path / "x.pth", plan)
    with pytest.raises(UserError, match=sentence):
        read_checkpoint(tmp_path / "x.pth")


def test_a_reader_that_is_not_known_is_refused(tmp_path: Path) -> None:
    plan = adaptation_plan()
    plan["pretrain_plan"]["image_reader_writer"] = "Tiff3DIO"
    write_nnssl(tmp_path / "x.pth", plan)
    with pytest.raises(UserError, match="reader 'Tiff3DIO'"):
        read_checkpoint(tmp_path / "x.pth")


def test_what_undoes_the_axis_order_follows_from_it(tmp_path: Path) -> None:
    plan = adaptation_plan()
    plan["pretrain_plan"]["transpose_forward"] = [1, 2, 0]
    del plan["pretrain_plan"]["transpose_backward"]
    write_nnssl(tmp_path / "x.pth", plan)
    assert read_checkpoint(tmp_path / "x.pth").plans["transpose_backward"] == [2, 0, 1]


def test_a_plan_cannot_name_foreign_classes(tmp_path: Path) -> None:
    plan = adaptation_plan()
    plan["architecture_plans"]["arch_kwargs"] = {**plan["architecture_plans"]["arch_kwargs"], "nonlin": "os.system"}
    write_nnssl(tmp_path / "x.pth", plan)
    with pytest.raises(UserError, match=r"'os\.system' as nonlin, which is not a class of torch\.nn"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_file_of_nnssl_without_any_plan_says_where_it_belongs(tmp_path: Path) -> None:
    for more in ({}, {"spark_weights": {}}):
        write_nnssl(tmp_path / "x.pth", None, **more)
        with pytest.raises(
            UserError, match=r"no description of the pre-training.*adaptation_plan\.json beside the file"
        ):
            read_checkpoint(tmp_path / "x.pth")
    (tmp_path / "adaptation_plan.json").write_text("{")
    with pytest.raises(UserError, match=r"adaptation_plan\.json cannot be read"):
        read_checkpoint(tmp_path / "x.pth")


def test_weights_of_an_encoder_alone_cannot_reconstruct_and_say_so(tmp_path: Path) -> None:
    """Contrastive methods release no decoder."""
    network = write_nnssl(tmp_path / "x.pth", adaptation_plan())
    encoder = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("encoder.")}
    write_nnssl(tmp_path / "x.pth", adaptation_plan(), network_weights=encoder, trainer_name="SimCLRTrainer")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert "SimCLRTrainer may not be a masked autoencoder" in checkpoint.reconstruction_notes[0]
    assert checkpoint.notes == ()
    with pytest.raises(UserError, match="it holds no decoder"):
        load_network(checkpoint, tmp_path / "x.pth")


def test_a_file_of_nnssl_goes_into_a_segmentation_network(tmp_path: Path) -> None:
    network = write_nnssl(tmp_path / "x.pth", adaptation_plan())
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    tensors, report = transfer(checkpoint, checkpoint.architecture, 1, "encoder")
    assert {fate.name.partition(".")[0] for fate in report.random} == {"decoder"}
    origin = network.state_dict()
    assert all(torch.equal(tensor, origin[f"decoder.{name}"]) for name, tensor in tensors.items())
    target = planned_network(checkpoint.architecture, 1, 3).eval()
    load_into(target, tensors, [fate.name for fate in report.random])
    with torch.inference_mode():
        features = zip(target.encoder(PATCH), network.encoder(PATCH), strict=True)
        assert all(torch.equal(one, other) for one, other in features)


def test_every_tensor_arrives_bit_equal_under_all_its_names(tmp_path: Path) -> None:
    origin = write_nnssl(tmp_path / "x.pth", adaptation_plan()).state_dict()
    weights = read_checkpoint(tmp_path / "x.pth").weights
    assert weights.keys() == origin.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in origin.items())


def test_a_network_without_blocks(tmp_path: Path) -> None:
    network = stock_network("PlainConvUNet", PLAIN_KWARGS, heads=1)
    described = {"arch_class_name": "PlainConvUNet", "arch_kwargs": PLAIN_KWARGS}
    write_nnssl(tmp_path / "x.pth", adaptation_plan(architecture_plans=described), network_weights=network.state_dict())
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    rebuilt = planned_network(checkpoint.architecture, 1, 1)
    rebuilt.load_state_dict(dict(checkpoint.weights), strict=True)


def test_of_a_network_trained_without_skip_connections_the_encoder_can_be_used(tmp_path: Path) -> None:
    """The encoder of NoSkipResEncL is that of ResEncL; its decoder fits nowhere."""
    network = network_of(tiny_recipe(network={"skips": False, "decoder": "stock"}))
    described = {"arch_class_name": "NoSkipResEncL", "arch_kwargs": KWARGS}
    write_nnssl(tmp_path / "x.pth", adaptation_plan(architecture_plans=described), network_weights=network.state_dict())
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert "no skip connections" in checkpoint.cannot_reconstruct
    tensors, _ = transfer(checkpoint, checkpoint.architecture, 1, "encoder")
    assert len(tensors) == sum(name.startswith("encoder.") for name, _ in network.named_parameters())
    with pytest.raises(UserError, match="without skip connections"):
        transfer(checkpoint, checkpoint.architecture, 1, "encoder+decoder")


def test_a_plan_of_another_checkpoint_is_noticed(tmp_path: Path) -> None:
    write_nnssl(tmp_path / "x.pth", adaptation_plan(pretrain_num_input_channels=4))
    with pytest.raises(UserError, match="takes 4 channels, but its first convolution takes 1; the plan is that of an"):
        read_checkpoint(tmp_path / "x.pth")


def test_the_same_file_on_a_machine_without_the_gpu_that_wrote_it(tmp_path: Path, monkeypatch: Any) -> None:
    """A released loader failed here. Every storage of the file says that it lay on a GPU."""
    write_nnssl(tmp_path / "x.pth", adaptation_plan())
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    torch.save(content, tmp_path / "gpu.pth")
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "gpu.pth", weights_only=True)
    weights = read_checkpoint(tmp_path / "gpu.pth").weights
    assert {tensor.device.type for tensor in weights.values()} == {"cpu"}
