"""Exports of transformers: to nnssl under its names, as safetensors always, to stock nnU-Net never."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures import primus as stock_primus

from nnssl_mae.backbones import planned_architecture
from nnssl_mae.checkpoints.adaptation_plan import make_adaptation_plan
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.reconstruct import load_network
from nnssl_mae.networks.planned import planned_network
from nnssl_mae.networks.pretraining import pretraining_network
from nnssl_mae.networks.primus import PrimusSize
from tests.checkpoints.files import different_everywhere, tiny_recipe
from tests.checkpoints.test_nnssl_primus import DEPTH, HEADS, PATCH, WIDTH, ReleasedMae, plan_of, written
from tests.export.written import export, own, same_weights

PRIMUS: dict[str, Any] = {
    "backbone": "primus",
    "patch_size": list(PATCH),
    "base_features": WIDTH,
    "max_features": WIDTH,
    "blocks_per_stage": [DEPTH],
}
NNFORMER: dict[str, Any] = {
    "backbone": "nnformer",
    "patch_size": [16, 16, 16],
    "base_features": 12,
    "max_features": 24,
    "blocks_per_stage": [1],
}


def own_transformer(folder: Path, network: Mapping[str, Any], transformer: Mapping[str, Any], **parts: Any) -> Path:
    """A checkpoint of ours as the trainer leaves it."""
    recipe = tiny_recipe(network={**network, "transformer": dict(transformer)}, masking={"block_size": 8}, **parts)
    path = own(folder)
    content = torch.load(path, weights_only=True)
    architecture = planned_architecture(recipe.network, (1, 1, 1), {})
    built = pretraining_network(architecture, 1, recipe.network, recipe.masking.hidden_value)
    plan = content["nnssl_adaptation_plan"]
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    configuration |= {
        "patch_size": list(recipe.network.patch_size),
        "architecture": architecture,
        "resampling_fn_seg": configuration["resampling_fn_mask"],
        "resampling_fn_seg_kwargs": configuration["resampling_fn_mask_kwargs"],
    }
    content |= {
        "network_weights": different_everywhere(built).state_dict(),
        "nnssl_adaptation_plan": make_adaptation_plan(plan["pretrain_plan"], "3d_fullres_mae", 1),
        "nnssl_mae": content["nnssl_mae"] | {"recipe": recipe.model_dump(mode="json")},
    }
    torch.save(content, path)
    return path


def own_primus(folder: Path, hidden_tokens: str | None = "drop", heads: int = HEADS, **parts: Any) -> Path:
    transformer = {
        "heads": heads, "stem_stride": [8, 8, 8], "hidden_tokens": hidden_tokens, "decoder_blocks": 3, "drop_path": 0.1,
    }  # fmt: skip
    return own_transformer(folder, PRIMUS, transformer, **parts)


@pytest.fixture
def tiny_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published sizes are too large for a test; a name for a tiny one, called B."""
    presets = MappingProxyType({"B": PrimusSize(DEPTH, HEADS, WIDTH)})
    monkeypatch.setattr("nnssl_mae.networks.primus.PRESETS", presets)


@pytest.mark.usefixtures("tiny_has_a_name")
@pytest.mark.parametrize("hidden_tokens", ["drop", "replace", None])
def test_the_nnssl_form_holds_a_stock_primus(hidden_tokens: str | None, tmp_path: Path) -> None:
    """nnU-Net's own class takes the weights by name, and computes with them what ours does."""
    before = read_checkpoint(own_primus(tmp_path, hidden_tokens))
    export(tmp_path, tmp_path / "out", "nnssl")
    weights = torch.load(tmp_path / "out" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert any(name.startswith("decoder.") for name in weights) == (hidden_tokens == "drop")
    theirs = stock_primus.Primus(1, WIDTH, (8, 8, 8), 1, DEPTH, HEADS, PATCH, init_values=0.1, scale_attn_inner=True)
    theirs.load_state_dict({name: t for name, t in weights.items() if not name.startswith("decoder.")}, strict=True)
    ours = planned_network(before.architecture, 1, 1).eval()
    ours.load_state_dict({n: t for n, t in before.weights.items() if n.startswith(("encoder.", "decoder."))})
    volumes = torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(volumes), ours(volumes), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("tiny_has_a_name")
def test_the_nnssl_form_has_the_plan_that_its_loaders_read(tmp_path: Path) -> None:
    own_primus(tmp_path)
    export(tmp_path, tmp_path / "out", "nnssl")
    content = torch.load(tmp_path / "out" / "checkpoint_final.pth", weights_only=True)
    plan = content["nnssl_adaptation_plan"]
    assert json.loads((tmp_path / "out" / "adaptation_plan.json").read_text()) == plan
    described = plan["architecture_plans"]
    assert described == {"arch_class_name": "PrimusB", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    assert (plan["key_to_encoder"], plan["key_to_stem"]) == ("eva", "down_projection")
    assert (plan["keys_to_in_proj"], plan["key_to_lpe"]) == (["down_projection.proj"], "eva.pos_embed")
    assert plan["recommended_downstream_patchsize"] == list(PATCH)
    weights = content["network_weights"]
    assert {plan["key_to_lpe"], f"{plan['keys_to_in_proj'][0]}.weight"} <= weights.keys()
    (configuration,) = plan["pretrain_plan"]["configurations"]
    assert content["init_args"] == {"configuration_name": configuration}


@pytest.mark.usefixtures("tiny_has_a_name")
def test_the_nnssl_form_still_reconstructs(tmp_path: Path) -> None:
    path = own_primus(tmp_path)
    export(path, tmp_path / "out", "nnssl", licence="mit")
    before, after = read_checkpoint(path), read_checkpoint(tmp_path / "out")
    assert same_weights(before, after)
    assert (after.origin.format, after.origin.method, after.origin.epochs) == ("nnssl", "nnUNetTrainerMAE", 1)
    assert (after.data["spacing"], after.data["patch_size"]) == (before.data["spacing"], before.data["patch_size"])
    assert (after.notes, after.reconstruction_notes) == ((), ())
    volumes = torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(0))
    hidden = torch.rand(1, 1, 2, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    results = [load_network(each, path)(volumes, hidden) for each in (before, after)]
    assert torch.equal(*results)


@pytest.mark.usefixtures("tiny_has_a_name")
def test_an_export_of_an_export_is_the_same(tmp_path: Path) -> None:
    own_primus(tmp_path)
    export(tmp_path, tmp_path / "a", "nnssl")
    export(tmp_path / "a", tmp_path / "b", "safetensors")
    export(tmp_path / "b", tmp_path / "c", "nnssl")
    first, second = (torch.load(tmp_path / name / "checkpoint_final.pth", weights_only=True) for name in "ac")
    assert first["network_weights"].keys() == second["network_weights"].keys()
    assert all(torch.equal(second["network_weights"][n], t) for n, t in first["network_weights"].items())
    assert second["nnssl_adaptation_plan"]["architecture_plans"] == first["nnssl_adaptation_plan"]["architecture_plans"]


def test_ours_as_safetensors_is_the_same_checkpoint(tmp_path: Path) -> None:
    before = read_checkpoint(own_primus(tmp_path))
    export(tmp_path, tmp_path / "out", "safetensors")
    after = read_checkpoint(tmp_path / "out")
    assert same_weights(before, after)
    assert (after.architecture, after.data, after.plans) == (before.architecture, before.data, before.plans)
    assert after.reconstruction == before.reconstruction


def test_nnssl_survives_as_safetensors(tmp_path: Path) -> None:
    """Under our names, with what was assumed of it still said."""
    path = written(tmp_path / "checkpoint_final.pth", ReleasedMae().state_dict(), plan_of())
    export(path, tmp_path / "out", "safetensors")
    before, after = read_checkpoint(path), read_checkpoint(tmp_path / "out")
    assert same_weights(before, after)
    assert (after.architecture, after.data, after.plans) == (before.architecture, before.data, before.plans)
    assert after.reconstruction == before.reconstruction is not None
    assert (after.notes, after.reconstruction_notes) == (before.notes, before.reconstruction_notes)


# ---------------------------------------------------------------------- refusals


def test_a_size_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the sizes S, B, M and L .*--format safetensors"):
        export(own_primus(tmp_path), tmp_path / "out", "nnssl")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("tiny_has_a_name")
def test_heads_belong_to_a_size(tmp_path: Path) -> None:
    """They leave no trace in the weights: under the name of another size the network would compute something else."""
    with pytest.raises(UserError, match="none of the sizes"):
        export(own_primus(tmp_path, heads=4), tmp_path / "out", "nnssl")


@pytest.mark.usefixtures("tiny_has_a_name")
def test_clipped_scans_are_not_forgotten(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clipped or cropped scans.*--format safetensors"):
        export(own_primus(tmp_path, data={"clip_percentile": 99.0}), tmp_path / "out", "nnssl")


def test_stock_nnunet_does_not_know_a_primus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds a Primus .*nnU-Net does not know; use --format safetensors"):
        export(own_primus(tmp_path), tmp_path / "out", "nnunet")


@pytest.mark.parametrize("form", ["nnssl", "nnunet"])
def test_nobody_else_knows_an_nnformer(form: Any, tmp_path: Path) -> None:
    shape = {"heads": 2, "stem_stride": [4, 4, 4], "strides": [[2, 2, 2]], "windows": [[2, 2, 2]]}
    path = own_transformer(tmp_path, NNFORMER, shape)
    with pytest.raises(UserError, match=r"holds an nnFormer, which .* does not know; use --format safetensors"):
        export(path, tmp_path / "out", form)
    export(path, tmp_path / "out", "safetensors")
    assert same_weights(read_checkpoint(path), read_checkpoint(tmp_path / "out"))
