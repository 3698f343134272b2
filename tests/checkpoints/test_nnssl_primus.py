"""Primus files of nnssl. No released file is at hand: these have the form that is described."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures import primus as stock_primus
from dynamic_network_architectures.building_blocks.eva import Eva
from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchDecode, PatchEmbed
from einops import rearrange
from torch import nn

from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.encoder_check import encoder_differences
from nnssl_mae.checkpoints.locate import Source
from nnssl_mae.checkpoints.nnssl_primus import read_primus, released_name
from nnssl_mae.checkpoints.primus_names import from_stock, primus_arguments
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.checkpoints.transfer import load_into, transfer
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.reconstruct import choose_hiding, load_network
from nnssl_mae.networks.planned import network_shape, planned_network
from tests.checkpoints.files import adaptation_plan, with_configuration

PATCH, GRID, WIDTH, HEADS, DEPTH = (16, 24, 32), (2, 3, 4), 24, 2, 2
TINY = {"embed_dim": WIDTH, "eva_depth": DEPTH, "eva_numheads": HEADS}
TRAINER = "BaseEvaMAETrainer_BS8"


class ReleasedMae(nn.Module):
    """nnssl's MAE network after its description: drop, transform, restore, transform again, back to voxels.

    The tokens that are kept are given here; there they are drawn inside. The order of tokens is nnU-Net's.
    """

    def __init__(self, blocks: int = 1, scales: float | None = 0.1) -> None:
        super().__init__()
        options = {"embed_dim": WIDTH, "num_heads": HEADS, "ref_feat_shape": GRID, "init_values": scales}
        self.down_projection = PatchEmbed((8, 8, 8), 1, WIDTH)
        self.eva = Eva(depth=DEPTH, scale_attn_inner=scales is not None, **options)
        self.decoder = Eva(depth=blocks, scale_attn_inner=scales is not None, **options)
        self.up_projection = PatchDecode((8, 8, 8), WIDTH, 1)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)

    def forward(self, volumes: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Volumes (B, 1, D, H, W) and, for each, the places of its visible tokens (B, n)."""
        tokens = rearrange(self.down_projection(volumes), "b c w h d -> b (w h d) c") + self.eva.pos_embed
        rows = torch.arange(len(tokens))[:, None]
        rotations = self.eva.rope.get_embed()[kept].unsqueeze(1)
        seen = tokens[rows, kept]
        for block in self.eva.blocks:
            seen = block(seen, rope=rotations)
        restored = self.mask_token.expand(len(tokens), tokens.shape[1], -1).clone()
        restored[rows, kept] = self.eva.norm(seen)
        filled, _ = self.decoder(restored)
        d, h, w = GRID
        result: torch.Tensor = self.up_projection(rearrange(filled, "b (w h d) c -> b c w h d", w=d, h=h, d=w))
        return result


def plan_of(name: str = "PrimusM", kwargs: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """nnssl's adaptation plan of a Primus, tiny unless said otherwise."""
    return with_configuration(
        adaptation_plan(
            architecture_plans={
                "arch_class_name": name,
                "arch_kwargs": TINY if kwargs is None else dict(kwargs),
                "arch_kwargs_requiring_import": None,
            },
            recommended_downstream_patchsize=PATCH,
            key_to_encoder="eva",
            key_to_stem="down_projection",
            keys_to_in_proj=("down_projection.proj",),
            key_to_lpe="eva.pos_embed",
        )
        | changes,
        patch_size=PATCH,
    )


def written(
    path: Path, weights: Mapping[str, torch.Tensor], plan: Mapping[str, Any] | None = None, **more: Any
) -> Path:
    """A file of nnssl with these weights."""
    content = {
        "network_weights": dict(weights),
        "nnssl_adaptation_plan": plan or plan_of(),
        "init_args": {"configuration_name": "onemmiso"},
        "trainer_name": TRAINER,
        "current_epoch": 1000,
    }
    torch.save(content | more, path)
    return path


def read(path: Path, weights: Mapping[str, torch.Tensor], plan: Mapping[str, Any] | None = None) -> Checkpoint:
    return read_checkpoint(written(path / "x.pth", weights, plan))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("scales", [None, 0.1])
def test_a_file_of_token_dropping_reconstructs_as_its_network(
    tmp_path: Path, blocks: int, scales: float | None
) -> None:
    theirs = ReleasedMae(blocks, scales).eval().double()
    checkpoint = read(tmp_path, theirs.state_dict())
    ours = load_network(checkpoint, tmp_path).double()
    generator = torch.Generator().manual_seed(blocks)
    volumes = torch.randn(2, 1, *PATCH, generator=generator, dtype=torch.float64)
    places = torch.stack([torch.randperm(24, generator=generator) for _ in range(2)])
    kept = places[:, :6].sort(dim=1).values
    hidden = torch.ones(2, 24, dtype=torch.bool).scatter(1, kept, False).view(2, 1, *GRID)
    with torch.inference_mode():
        torch.testing.assert_close(ours(volumes, hidden), theirs(volumes, kept), rtol=0, atol=1e-10)


def test_it_hides_single_tokens_as_in_its_training_and_says_what_was_assumed(tmp_path: Path) -> None:
    checkpoint = read(tmp_path, ReleasedMae(blocks=3).state_dict())
    assert checkpoint.reconstruction is not None
    network = checkpoint.reconstruction.network
    assert (network.backbone, network.drops_tokens, network.transformer.decoder_blocks) == ("primus", True, 3)
    hiding = choose_hiding(checkpoint, tmp_path, None, 0, None)
    assert (hiding.block_size, hiding.ratio) == (8, 0.75)
    assert ["order of its tokens" in note for note in checkpoint.notes] == [True]
    assert ["second axis first" in note for note in checkpoint.reconstruction_notes] == [True]
    assert (checkpoint.origin.method, checkpoint.origin.epochs) == (TRAINER, 1000)


def test_every_tensor_of_a_primus_arrives_bit_equal(tmp_path: Path) -> None:
    """What nnU-Net's own loader takes from the file, taken as it takes it: unchanged."""
    torch.manual_seed(0)
    theirs = stock_primus.Primus(1, WIDTH, (8, 8, 8), 1, DEPTH, HEADS, PATCH, init_values=0.1, scale_attn_inner=True)
    checkpoint = read(tmp_path, theirs.state_dict(), plan_of("PrimusS"))
    assert checkpoint.architecture["network_class_name"] == "nnssl_mae.networks.primus.PrimusNet"
    assert (checkpoint.data["patch_size"], checkpoint.channels) == (list(PATCH), 1)
    ours = planned_network(checkpoint.architecture, 1, 1).eval()
    ours.load_state_dict(dict(checkpoint.weights), strict=True)
    assert all(torch.equal(t, checkpoint.weights[n]) for n, t in from_stock(theirs.state_dict(), GRID).items())
    volumes = torch.randn(1, 1, *PATCH)
    with torch.inference_mode():
        torch.testing.assert_close(ours(volumes), theirs.eval()(volumes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("lost", ["decoder.", "mask_token"])
def test_without_the_second_transformer_or_the_token_it_can_be_fine_tuned_only(tmp_path: Path, lost: str) -> None:
    weights = {name: tensor for name, tensor in ReleasedMae().state_dict().items() if not name.startswith(lost)}
    checkpoint = read(tmp_path, weights)
    with pytest.raises(UserError, match=r"lacks the mask token or the second transformer.*nnssl-mae adapt"):
        load_network(checkpoint, tmp_path)
    assert checkpoint.reconstruction_notes == ()
    assert not [name for name in checkpoint.weights if name.startswith(("token_decoder.", "mask_tokens."))]


@pytest.mark.parametrize("lost", ["up_projection.", "decoder.blocks.0.attn.q_proj"])
def test_lost_parts_of_the_reconstruction_give_a_sentence(tmp_path: Path, lost: str) -> None:
    weights = {name: tensor for name, tensor in ReleasedMae().state_dict().items() if not name.startswith(lost)}
    with pytest.raises(UserError, match="cannot reconstruct: "):
        load_network(read(tmp_path, weights), tmp_path)


def test_a_name_alone_is_the_published_network(tmp_path: Path) -> None:
    """On the meta device: PrimusM has 147 million weights."""
    with torch.device("meta"):
        theirs = stock_primus.PrimusM(1, 1, (8, 8, 8), (160, 160, 160), init_values=0.1, scale_attn_inner=True)
    described = {"arch_class_name": "PrimusM", "arch_kwargs": None}
    file = Source(tmp_path / "x.pth", "x.pth", "x.pth")
    architecture, weights = read_primus(described, theirs.state_dict(), [(96, 96, 96), (160, 160, 160)], file)
    assert encoder_differences(architecture, 1, weights) == ()
    assert sum(tensor.numel() for tensor in weights.values()) == sum(each.numel() for each in theirs.parameters())
    assert (architecture["arch_kwargs"]["input_shape"], released_name(architecture)) == ([160] * 3, "PrimusM")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"n_blocks_per_stage": [13]}, None),
        ({"num_heads": [11]}, None),
        ({"features_per_stage": [432]}, None),
        ({"strides": [[4, 4, 4]]}, None),
        ({"num_register_tokens": 4}, None),
        ({"input_shape": [96, 96, 96], "drop_path": 0.5}, "PrimusS"),
    ],
)
def test_only_the_published_sizes_have_a_name(change: dict[str, Any], name: str | None) -> None:
    arguments = primus_arguments("PrimusS", None, (32, 32, 32)) | change
    architecture = {"network_class_name": "nnssl_mae.networks.primus.PrimusNet", "arch_kwargs": arguments}
    assert released_name(architecture) == name


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_dropped(tmp_path: Path, prefix: str) -> None:
    weights = ReleasedMae().state_dict()
    plain = read(tmp_path, weights).weights
    wrapped = read(tmp_path, {prefix + name: tensor for name, tensor in weights.items()}).weights
    assert plain.keys() == wrapped.keys()
    assert all(torch.equal(tensor, wrapped[name]) for name, tensor in plain.items())


def test_rotations_that_some_versions_save_are_no_weights(tmp_path: Path) -> None:
    theirs = ReleasedMae()
    more = {f"{part}.rope.pos_embed": getattr(theirs, part).rope.get_embed() for part in ("eva", "decoder")}
    checkpoint = read(tmp_path, {**theirs.state_dict(), **more})
    assert checkpoint.weights.keys() == read(tmp_path, theirs.state_dict()).weights.keys()


def test_the_plan_beside_the_file(tmp_path: Path) -> None:
    weights = ReleasedMae().state_dict()
    written(tmp_path / "checkpoint_final.pth", weights, nnssl_adaptation_plan=None)
    (tmp_path / "adaptation_plan.json").write_text(json.dumps(plan_of()))
    assert load_network(read_checkpoint(tmp_path), tmp_path)


# ---------------------------------------------------------------------- patches


def test_of_two_patches_that_of_the_weights_is_taken(tmp_path: Path) -> None:
    """nnssl recommends a patch for fine-tuning, which need not be that of the pre-training."""
    weights = ReleasedMae().state_dict()
    checkpoint = read(tmp_path, weights, plan_of(recommended_downstream_patchsize=(64, 64, 64)))
    assert checkpoint.data["patch_size"] == list(PATCH)
    other = plan_of() | {"pretrain_patch_size": [64, 64, 64]}
    checkpoint = read(tmp_path, weights, other)
    assert checkpoint.data["patch_size"] == list(PATCH)
    assert checkpoint.architecture["arch_kwargs"]["input_shape"] == list(PATCH)


@pytest.mark.parametrize(
    ("patch", "sentence"),
    [
        ([32, 32, 32], "x.pth: its weights have positions of 24 tokens.*32x32x32 voxels, which has 64 tokens of 8x8x8"),
        ([16, 24, 33], "16x24x33 voxels, which is no whole number of tokens of 8x8x8"),
    ],
)
def test_weights_of_another_patch_are_refused_with_both_numbers(
    tmp_path: Path, patch: list[int], sentence: str
) -> None:
    plan = plan_of(recommended_downstream_patchsize=patch, pretrain_patch_size=patch)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, ReleasedMae().state_dict(), plan)


def test_registers_have_positions_beside_those_of_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = stock_primus.Primus(1, WIDTH, (8, 8, 8), 1, DEPTH, HEADS, PATCH, num_register_tokens=3)
    checkpoint = read(tmp_path, theirs.state_dict(), plan_of(kwargs={**TINY, "num_register_tokens": 3}))
    assert checkpoint.weights["encoder.register_position"].shape == (1, 3, WIDTH)
    with pytest.raises(UserError, match=r"encoder\.register_tokens has no place"):
        read(tmp_path, theirs.state_dict())


# ---------------------------------------------------------------------- what does not fit


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in ReleasedMae().state_dict().items() if key != name}


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not hold the encoder .*encoder\.position is missing"):
        read(tmp_path, without("eva.pos_embed"))
    with pytest.raises(UserError, match=r"encoder\.stages\.1\.attn\.proj\.weight is missing"):
        read(tmp_path, without("eva.blocks.1.attn.proj.weight"))
    with pytest.raises(UserError, match=r"is \(24,.*should be \(48,"):
        read(tmp_path, ReleasedMae().state_dict(), plan_of(kwargs={**TINY, "embed_dim": 48}))
    with pytest.raises(UserError, match=r"stages\.2\..*is missing"):
        read(tmp_path, ReleasedMae().state_dict(), plan_of(kwargs={**TINY, "eva_depth": 3}))


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (plan_of("PrimusXL"), r"x\.pth: 'PrimusXL' is no Primus that is known"),
        (plan_of(kwargs={**TINY, "use_rot_pos_emb": False}), r"x\.pth: Primus with use_rot_pos_emb = False"),
        (plan_of(kwargs={**TINY, "embed_dim": 10**9}), "features_per_stage .*only numbers from 1 to 4096"),
        (plan_of(kwargs={**TINY, "eva_depth": 10**6}), "n_blocks_per_stage .*only numbers from 1 to 64"),
        (plan_of(kwargs={**TINY, "eva_numheads": 10**6}), "num_heads .*only numbers from 1 to 128"),
        (plan_of(kwargs={**TINY, "patch_embed_size": [0, 8, 8]}), "strides .*only numbers from 1 to 16"),
        (plan_of(kwargs={**TINY, "patch_embed_size": [8, 8]}), "damaged adaptation plan"),
        (plan_of(kwargs={**TINY, "embed_dim": "wide"}), "damaged adaptation plan"),
        (plan_of(recommended_downstream_patchsize=["x"]), "damaged adaptation plan"),
        (plan_of(pretrain_num_input_channels=2), r"stem\.proj\.weight is \(24, 1, 8, 8, 8\) and should be \(24, 2"),
    ],
)
def test_what_cannot_be_built_gets_a_sentence(tmp_path: Path, plan: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, ReleasedMae().state_dict(), plan)


def test_later_versions_with_convolutions_are_refused(tmp_path: Path) -> None:
    weights = {**ReleasedMae().state_dict(), "down_projection.stem.blocks.0.conv1.conv.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"x\.pth: The weights hold down_projection\.stem"):
        read(tmp_path, weights)


# ---------------------------------------------------------------------- into a network for another dataset


def test_a_file_goes_into_a_network_of_another_patch_and_of_two_channels(tmp_path: Path) -> None:
    origin = read(tmp_path, ReleasedMae().state_dict())
    larger = {**origin.architecture, "arch_kwargs": {**origin.architecture["arch_kwargs"], "input_shape": [24, 32, 32]}}
    tensors, report = transfer(origin, larger, 2, "encoder")
    assert {fate.name for fate in report.adapted} == {"encoder.position", "encoder.stem.proj.weight"}
    encoder = {name for name, _ in network_shape(larger, 2).named_parameters() if name.startswith("encoder.")}
    loaded = {fate.name for fate in report.loaded}
    assert loaded == encoder - {fate.name for fate in report.adapted}
    assert all(torch.equal(tensors[name], origin.weights[name]) for name in loaded)
    assert {fate.name.partition(".")[0] for fate in report.random} == {"decoder"}
    reasons = {ignored.why for ignored in report.ignored if ignored.name.startswith(("token_decoder.", "mask_tokens."))}
    assert len(reasons) == 2
    assert all("only pre-training needs" in reason for reason in reasons)
    target = planned_network(larger, 2, 3).eval()
    load_into(target, tensors, [fate.name for fate in report.random])
    volumes = torch.randn(1, 1, 24, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        weight, bias = (origin.weights[f"encoder.stem.proj.{part}"] for part in ("weight", "bias"))
        expected = nn.functional.conv3d(volumes, weight, bias, stride=8)
        embedded = target.encoder.embed(volumes.expand(-1, 2, -1, -1, -1))
    torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-4)
