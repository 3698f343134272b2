import json
from pathlib import Path

import pytest
import safetensors
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnssl_mae.checkpoints.names import one_name
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.evaluation.reconstruct import load_network
from nnssl_mae.files import sha256
from nnssl_mae.networks.planned import planned_network
from tests.checkpoints.files import adaptation_plan, write_nnssl, write_s3d
from tests.export.written import OPENMIND, RECIPES, export, own, own_amaes_unet, recipe, same_weights


@pytest.mark.parametrize("kind", RECIPES)
def test_ours_as_safetensors_is_the_same_checkpoint(kind: str, tmp_path: Path) -> None:
    before = read_checkpoint(own(tmp_path, kind))
    export(tmp_path, tmp_path / "out", "safetensors", licence="cc-by-4.0")
    after = read_checkpoint(tmp_path / "out")
    assert same_weights(before, after)
    assert (after.architecture, after.channels, after.data) == (before.architecture, before.channels, before.data)
    assert after.plans == before.plans
    assert after.reconstruction == before.reconstruction
    assert after.beyond_stock == before.beyond_stock
    assert (after.origin.format, after.origin.method, after.origin.epochs) == ("nnssl_mae", "tiny", 1)
    assert after.origin.citations == (OPENMIND,)
    assert after.origin.licence == "cc-by-4.0"


@pytest.mark.parametrize("kind", RECIPES)
def test_ours_as_safetensors_still_reconstructs(kind: str, tmp_path: Path) -> None:
    path = own(tmp_path, kind)
    export(path, tmp_path / "out", "safetensors")
    volume = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    hidden = torch.rand(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    results = [load_network(read_checkpoint(place), place)(volume, hidden) for place in (path, tmp_path / "out")]
    assert torch.equal(*results)


def test_amaes_own_network_survives_as_safetensors(tmp_path: Path) -> None:
    path = own_amaes_unet(tmp_path)
    export(path, tmp_path / "out", "safetensors")
    before, after = read_checkpoint(path), read_checkpoint(tmp_path / "out")
    assert same_weights(before, after)
    assert after.architecture == before.architecture
    assert "predict only where nnssl_mae is installed" in (tmp_path / "out" / "README.md").read_text()


def test_safetensors_hold_each_tensor_once_under_its_first_name(tmp_path: Path) -> None:
    path = own(tmp_path, "s3d")
    export(path, tmp_path / "out", "safetensors")
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.metadata()["format"] == "pt"
    assert names == {one_name(name) for name in torch.load(path, weights_only=True)["network_weights"]}
    assert {"mask_tokens.0", "encoder.stem.convs.0.conv.weight"} <= names


@pytest.mark.parametrize("kind", ["plain", "s3d", "token"])
def test_ours_in_nnssl_form_is_what_nnssl_releases(kind: str, tmp_path: Path) -> None:
    path = own(tmp_path, kind)
    export(path, tmp_path / "out", "nnssl")
    content = torch.load(tmp_path / "out" / "checkpoint_final.pth", weights_only=True)
    assert {"network_weights", "init_args", "trainer_name", "nnssl_adaptation_plan", "citations"} <= content.keys()
    assert not content.keys() & {"optimizer_state", "grad_scaler_state", "logging", "_best_ema"}
    weights, before = content["network_weights"], torch.load(path, weights_only=True)["network_weights"]
    stock = planned_network(read_checkpoint(path).architecture, 1, 1).state_dict()
    assert {name for name in weights if ".seg_layers." not in name} == {n for n in stock if ".seg_layers." not in n}
    for name, tensor in weights.items():
        assert torch.equal(tensor, before[name])
        assert tensor.data_ptr() == weights[one_name(name)].data_ptr(), "the names of a tensor share its memory"
    plan = content["nnssl_adaptation_plan"]
    assert isinstance(plan["recommended_downstream_patchsize"], list)
    assert plan["pretrain_num_input_channels"] == 1


def test_ours_in_nnssl_form_is_still_ours(tmp_path: Path) -> None:
    before = read_checkpoint(own(tmp_path))
    export(tmp_path, tmp_path / "out", "nnssl")
    after = read_checkpoint(tmp_path / "out")
    assert same_weights(before, after)
    assert (after.architecture, after.data, after.plans) == (before.architecture, before.data, before.plans)
    assert after.reconstruction == before.reconstruction


@pytest.mark.parametrize("kind", ["plain", "s3d", "token"])
def test_stock_nnunet_takes_the_nnunet_form(kind: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(own(tmp_path, kind))
    export(tmp_path, tmp_path / "out", "nnunet")
    network = planned_network(checkpoint.architecture, 1, heads=3)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_pretrained_weights(network, str(tmp_path / "out" / "checkpoint_final.pth"))
    for name, tensor in network.state_dict().items():
        expected = fresh[name] if ".seg_layers." in name else checkpoint.weights[name]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("form", ["safetensors", "nnssl", "nnunet"])
def test_nnssl_survives_every_form(form, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    write_nnssl(path, adaptation_plan(), citations=["@article{x,\n  title = {X}\n}"])
    before = read_checkpoint(path)
    export(path, tmp_path / "out", form)
    after = read_checkpoint(tmp_path / "out")
    assert same_weights(before, after)
    assert (after.architecture, after.channels) == (before.architecture, before.channels)
    assert (after.data["spacing"], after.data["patch_size"]) == ([1.0, 1.0, 1.0], [32, 32, 32])
    assert after.plans == before.plans
    assert {key: after.data[key] for key in before.data if key in after.data} == before.data
    assert after.origin.format == "nnssl"
    assert after.origin.citations == before.origin.citations
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`checkpoint_final.pth` (nnssl)" in card
    assert "BaseMAETrainer_BS8_1000ep" in card
    assert "@article{x," in card


def test_the_trained_copy_of_s3d_goes_out_under_all_names(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    trained = write_s3d(path, adaptation_plan()).state_dict()
    export(path, tmp_path / "out", "nnssl")
    weights = torch.load(tmp_path / "out" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert all(torch.equal(tensor, trained[name]) for name, tensor in weights.items())
    assert not [name for name in weights if "mask_tokens" in name or "densif" in name]


@pytest.mark.parametrize("form", ["safetensors", "nnssl", "nnunet"])
def test_an_export_of_an_export_is_the_export_but_for_its_source(form, tmp_path: Path) -> None:
    own(tmp_path)
    export(tmp_path, tmp_path / "one" / "name", form, data="Brains.", licence="mit", name="Title")
    export(tmp_path / "one" / "name", tmp_path / "two" / "name", form)
    for file in (tmp_path / "one" / "name").iterdir():
        again = tmp_path / "two" / "name" / file.name
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, "pt") as first, safetensors.safe_open(again, "pt") as second:
                assert without_source(first.metadata()) == without_source(second.metadata())
        elif file.suffix == ".pth":
            first, second = (torch.load(each, weights_only=True) for each in (file, again))
            assert all(torch.equal(first["network_weights"][n], t) for n, t in second.pop("network_weights").items())
            assert without_source(first) == without_source(second)
        elif file.suffix == ".md":
            lines, more = (each.read_text().splitlines() for each in (file, again))
            (exported,) = set(lines) - set(more)
            assert exported.startswith("Exported by nnssl_mae from `checkpoint_final.pth`")
            assert len(lines) == len(more)
        else:
            assert file.read_bytes() == again.read_bytes(), file.name


def without_source(content: dict) -> dict:
    """What stands beside the weights, without where they were read from."""
    card = content["model_card"]
    about = json.loads(card) if isinstance(card, str) else card
    about = {key: value for key, value in about.items() if key not in ("source", "exported_from")}
    return {key: value for key, value in content.items() if key != "network_weights"} | {"model_card": about}


def test_every_export_names_the_file_it_was_made_of_and_the_first_one(tmp_path: Path) -> None:
    first = own(tmp_path)
    export(first, tmp_path / "a", "safetensors")
    export(tmp_path / "a", tmp_path / "b", "safetensors")
    export(tmp_path / "b", tmp_path / "c", "nnssl")
    for made_of, folder in ((tmp_path / "a", "b"), (tmp_path / "b", "c")):
        card = (tmp_path / folder / "README.md").read_text()
        assert f"from `model.safetensors` (nnssl_mae), SHA-256 `{sha256(made_of / 'model.safetensors')}`" in card
        assert f"itself exported from `checkpoint_final.pth` (nnssl_mae), SHA-256 `{sha256(first)}`" in card
    assert "itself exported" not in (tmp_path / "a" / "README.md").read_text()


def test_from_form_to_form(tmp_path: Path) -> None:
    before = read_checkpoint(own(tmp_path))
    export(tmp_path, tmp_path / "a", "nnssl")
    export(tmp_path / "a", tmp_path / "b", "safetensors")
    export(tmp_path / "b", tmp_path / "c", "nnunet")
    assert same_weights(before, read_checkpoint(tmp_path / "c"))
    assert recipe("plain").masking == read_checkpoint(tmp_path / "c").reconstruction.masking
