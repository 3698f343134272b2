"""What is transferred from a checkpoint into a network, what is said about it, and what is refused.

Values and counts for all origins and shapes: test_transfer_matrix.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnssl_mae.checkpoints.describe import Checkpoint, Origin, nnunet_architecture
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.checkpoints.transfer import Fate, Group, Ignored, load_into, transfer
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import planned_network
from tests.checkpoints.files import KWARGS, adaptation_plan, write_nnssl, write_s3d

STEM = "encoder.stem.convs.0.conv.weight"
PLAIN = {key: value for key, value in KWARGS.items() if key != "n_blocks_per_stage"} | {"n_conv_per_stage": [1, 1, 2]}
FAMILIES = {"ResidualEncoderUNet": KWARGS, "PlainConvUNet": PLAIN, "AmaesUNet": PLAIN}
BATCH_NORM = {"norm_op": "torch.nn.BatchNorm3d"}
THIN: dict[str, Any] = {
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
}


def architecture(family: str = "ResidualEncoderUNet", **changes: Any) -> dict[str, Any]:
    return nnunet_architecture(family, {**FAMILIES[family], **changes}, None, Path("test"))


def network_of(plan: Mapping[str, Any], channels: int = 1, seed: int = 0, heads: int = 2) -> Any:
    """Weights and normalisations that are all different, so that a mix-up shows; in float64, to compare responses."""
    torch.manual_seed(seed)
    network = planned_network(plan, channels, heads)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval().double()


def checkpoint_of(weights: Mapping[str, torch.Tensor], plan: Mapping[str, Any], channels: int = 1) -> Checkpoint:
    return Checkpoint(weights, dict(plan), channels, {}, {}, Origin("weights", "given.pth", "0" * 64))


def given(
    family: str = "ResidualEncoderUNet", channels: int = 1, seed: int = 0, **changes: Any
) -> tuple[Checkpoint, Any]:
    """A checkpoint and its network."""
    plan = architecture(family, **changes)
    network = network_of(plan, channels, seed)
    return checkpoint_of(network.state_dict(), plan, channels), network


def volumes(channels: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(2, channels, 16, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fates_of(report: Any) -> dict[str, Fate]:
    return {fate.name: fate for fate in report.fates}


# The response.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_encoder_computes_what_it_computed_in_its_checkpoint(family: str, channels: int) -> None:
    checkpoint, origin = given(family)
    tensors, report = transfer(checkpoint, architecture(family), channels, "encoder")
    target = network_of(architecture(family), channels, seed=1)
    load_into(target, tensors, [fate.name for fate in report.random])
    x = volumes(1)
    with torch.no_grad():
        pairs = zip(origin.encoder(x), target.encoder(x.expand(-1, channels, -1, -1, -1)), strict=True)
    assert max(float((before - after).abs().max()) for before, after in pairs) < 1e-6


@pytest.mark.parametrize("channels", [2, 3])
def test_the_whole_network_below_its_head_computes_what_it_computed(channels: int) -> None:
    checkpoint, origin = given(channels=2)
    tensors, report = transfer(checkpoint, architecture(), channels, "encoder+decoder")
    target = network_of(architecture(), channels, seed=1)
    load_into(target, tensors, [fate.name for fate in report.random])
    target.decoder.seg_layers = origin.decoder.seg_layers
    x = volumes(1)
    with torch.no_grad():
        before, after = origin(x.expand(-1, 2, -1, -1, -1)), target(x.expand(-1, channels, -1, -1, -1))
    assert float((before - after).abs().max()) < 1e-6


def test_a_channel_that_takes_nothing_has_no_influence_at_first_and_learns() -> None:
    checkpoint, origin = given()
    tensors, _ = transfer(checkpoint, architecture(), 2, "encoder", channel_map=[0, None])
    target = network_of(architecture(), 2, seed=1)
    load_into(target, tensors)
    x = volumes(2)
    features = target.encoder(x)[-1]
    features.square().sum().backward()
    assert torch.equal(features, target.encoder(torch.cat([x[:, :1], volumes(1, seed=6)], dim=1))[-1])
    assert torch.allclose(features, origin.encoder(x[:, :1])[-1], rtol=0, atol=1e-6)
    assert (target.encoder.stem.convs[0].conv.weight.grad[:, 1] != 0).any()


def test_batch_normalisation_brings_its_running_statistics_along() -> None:
    checkpoint, origin = given(**BATCH_NORM)
    origin.train()(volumes(1) + 3)
    checkpoint = replace(checkpoint, weights=origin.eval().state_dict())
    tensors, report = transfer(checkpoint, architecture(**BATCH_NORM), 4, "encoder")
    target = network_of(architecture(**BATCH_NORM), 4, seed=1)
    load_into(target, tensors, [fate.name for fate in report.random])
    norm = target.encoder.stages[1].blocks[0].skip[1].norm
    assert int(norm.num_batches_tracked) == 1
    assert torch.equal(norm.running_mean, origin.encoder.stages[1].blocks[0].skip[1].norm.running_mean)
    with torch.no_grad():
        pairs = zip(origin.encoder(volumes(1)), target.encoder(volumes(1).expand(-1, 4, -1, -1, -1)), strict=True)
        assert max(float((before - after).abs().max()) for before, after in pairs) < 1e-6


# Bugs of released loaders, by their numbers in the description of the formats.


def test_bug_1_a_stem_of_another_shape_is_not_dropped_silently() -> None:
    """Its filters stay random, with both shapes in the report; more channels alone are adapted."""
    checkpoint, _ = given()
    _, report = transfer(checkpoint, architecture(features_per_stage=[5, 6, 8]), 1, "encoder")
    fate = fates_of(report)[STEM]
    assert (fate.what, fate.source) == ("random", STEM)
    assert fate.how == "(4, 1, 3, 3, 3) in the checkpoint, (5, 1, 3, 3, 3) in the new network"
    assert Ignored(STEM, "does not fit the new network's tensor") in report.ignored
    _, report = transfer(checkpoint, architecture(), 4, "encoder")
    assert [fate.name for fate in report.adapted] == [STEM]
    assert not [fate.name for fate in report.random if fate.name.startswith("encoder.")]


def test_bug_1_every_tensor_on_both_sides_has_its_line() -> None:
    checkpoint, origin = given()
    plan = architecture(n_blocks_per_stage=[2, 1, 1], features_per_stage=[4, 7, 8])
    _, report = transfer(checkpoint, plan, 2, "encoder+decoder")
    target = network_of(plan, 2)
    assert [fate.name for fate in report.fates] == [name for name, _ in target.named_parameters()]
    used = {fate.source for fate in report.fates if fate.what != "random"}
    assert used | {each.name for each in report.ignored} == {name for name, _ in origin.named_parameters()}
    assert not used & {each.name for each in report.ignored}


def test_bug_1_nothing_of_the_encoder_is_an_error_even_if_some_biases_fit() -> None:
    checkpoint, _ = given(features_per_stage=[4, 6, 8], conv_bias=True)
    other = architecture(features_per_stage=[6, 8, 10], n_blocks_per_stage=[1, 1, 1])
    with pytest.raises(UserError, match=r"with 4, 6, 8 features, and the new network .* with 6, 8, 10 features"):
        transfer(checkpoint, other, 1, "encoder")


@pytest.mark.parametrize("channels", [1, 4])
def test_bug_2_the_stem_of_an_s3d_file_is_the_trained_one(tmp_path: Path, channels: int) -> None:
    trained = write_s3d(tmp_path / "checkpoint_final.pth", adaptation_plan(), released=True)
    checkpoint = read_checkpoint(tmp_path / "checkpoint_final.pth")
    untied = torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)["network_weights"]
    stem = trained.encoder.stem.convs[0].conv.weight.detach().clone()
    assert not torch.equal(untied[STEM], stem)
    for each in (checkpoint, replace(checkpoint, weights=untied)):
        tensors, _ = transfer(each, architecture(), channels, "encoder")
        assert torch.equal(tensors[STEM], stem.repeat(1, channels, 1, 1, 1) / channels)
        target = network_of(architecture(), channels, seed=1)
        load_into(target, tensors)
        with torch.no_grad():
            before = trained.double().encoder(volumes(1))[-1]
            after = target.encoder(volumes(1).expand(-1, channels, -1, -1, -1))[-1]
        assert torch.allclose(after, before, rtol=0, atol=1e-6)


def test_bug_3_tuples_and_lists_are_the_same(tmp_path: Path) -> None:
    write_nnssl(tmp_path / "checkpoint_final.pth", adaptation_plan())  # its plan holds tuples
    checkpoint = read_checkpoint(tmp_path / "checkpoint_final.pth")
    lists, tuples = architecture(), architecture(**{key: as_tuple(value) for key, value in KWARGS.items()})
    expected, report = transfer(checkpoint, lists, 2, "encoder+decoder", channel_map=[0, None])
    for plan in (checkpoint.architecture, {**checkpoint.architecture, **tuples}):
        for target in (lists, tuples):
            given_in_tuples = replace(checkpoint, architecture=plan)
            tensors, same = transfer(given_in_tuples, target, 2, "encoder+decoder", channel_map=(0, None))
            assert same == report
            assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def as_tuple(value: Any) -> Any:
    return tuple(as_tuple(each) for each in value) if isinstance(value, list) else value


# The report.


def test_the_report_counts_by_parts_of_the_network() -> None:
    checkpoint, _ = given()
    _, report = transfer(checkpoint, architecture(**THIN), 2, "encoder+decoder")
    groups = {group.name: group for group in report.groups()}
    assert list(groups) == [
        "encoder.stem",
        *(f"encoder.stages.{stage}" for stage in range(3)),
        *(f"decoder.stages.{stage}" for stage in range(2)),
        *(f"decoder.transpconvs.{stage}" for stage in range(2)),
        "decoder.seg_layers",
    ]
    assert groups["encoder.stem"] == Group(
        "encoder.stem",
        {"loaded": 3, "adapted": 1, "random": 0},
        {"loaded": 3 * 4, "adapted": 4 * 2 * 9, "random": 0},
        (
            "1 input channel to 2: repeated and divided by 2; kernel 3x3x3 to 1x3x3: outer taps added to the border",
            "as it is",
        ),
    )
    # Its transposed convolution from 6 to 4 channels went along two axes only.
    assert groups["decoder.transpconvs.1"].weights == {"loaded": 4, "adapted": 6 * 4 * 4, "random": 0}
    assert groups["decoder.seg_layers"].tensors == {"loaded": 0, "adapted": 0, "random": 4}
    assert groups["decoder.seg_layers"].hows == ("a new head",)


def test_another_stride_is_mentioned_where_filters_are_loaded_as_they_are() -> None:
    checkpoint, _ = given()
    _, report = transfer(checkpoint, architecture(**THIN), 1, "encoder")
    remarked = {fate.name: fate for fate in report.fates if "downsampling" in fate.how}
    assert list(remarked) == ["encoder.stages.1.blocks.0.conv1.conv.weight"]
    (fate,) = remarked.values()
    assert fate.what == "loaded"
    assert fate.how == "as it is; downsampling 2x2x2 in the checkpoint, 1x2x2 in the new network"
    unknown = {key: value for key, value in checkpoint.architecture["arch_kwargs"].items() if key != "strides"}
    silent = replace(checkpoint, architecture={**checkpoint.architecture, "arch_kwargs": unknown})
    _, report = transfer(silent, architecture(**THIN), 1, "encoder")
    assert not [fate for fate in report.fates if "downsampling" in fate.how]


def test_reasons_for_what_goes_nowhere() -> None:
    _, network = given()
    extra = {
        "mask_tokens.0": torch.zeros(1),
        "densifiers.1.weight": torch.zeros(1),
        "hidden_value": torch.zeros(1),
        "something.else": torch.zeros(1),
    }
    checkpoint = checkpoint_of({**network.state_dict(), **extra}, architecture())
    fewer = architecture(
        n_stages=2,
        features_per_stage=[4, 6],
        kernel_sizes=[[3, 3, 3]] * 2,
        strides=[[1, 1, 1], [2, 2, 2]],
        n_blocks_per_stage=[1, 1],
        n_conv_per_stage_decoder=[1],
    )
    why = {each.name: each.why for each in transfer(checkpoint, fewer, 1, "encoder+decoder")[1].ignored}
    assert "mask token" in why["mask_tokens.0"]
    assert "densification" in why["densifiers.1.weight"]
    assert "hidden voxels" in why["hidden_value"]
    assert why["something.else"] == "no part of encoder or decoder"
    assert why["decoder.seg_layers.0.weight"] == "a head, which belongs to the checkpoint's own task"
    assert why["encoder.stages.2.blocks.1.conv1.conv.weight"] == "the new network has no such stage"
    assert why["decoder.stages.0.convs.0.conv.weight"] == "the new network has no such stage"
    assert "decoder.stages.1.convs.0.conv.weight" not in why  # it gives the highest resolution, as the new 0 does
    why = {each.name: each.why for each in transfer(checkpoint, fewer, 1, "encoder")[1].ignored}
    assert why["decoder.stages.1.convs.0.conv.weight"] == "only the encoder is transferred"
    shallow = architecture(n_blocks_per_stage=[1, 1, 1])
    why = {each.name: each.why for each in transfer(checkpoint, shallow, 1, "encoder")[1].ignored}
    assert why["encoder.stages.2.blocks.1.conv1.conv.weight"] == "the new network has no such tensor"


def test_reasons_for_what_stays_random() -> None:
    checkpoint, _ = given()
    deeper = architecture(
        n_stages=4,
        features_per_stage=[4, 6, 9, 9],
        kernel_sizes=[[3, 3, 3]] * 4,
        strides=[[1, 1, 1], *[[2, 2, 2]] * 3],
        n_blocks_per_stage=[1, 2, 1, 1],
        n_conv_per_stage_decoder=[1] * 3,
    )
    how = {fate.name: fate.how for fate in transfer(checkpoint, deeper, 1, "encoder")[1].random}
    assert how["encoder.stages.3.blocks.0.conv1.conv.weight"] == "the checkpoint has no such stage"
    assert how["encoder.stages.1.blocks.1.conv1.conv.weight"] == "the checkpoint has no such tensor"
    assert how["encoder.stages.2.blocks.0.conv1.conv.weight"].startswith("(8, 6, 3, 3, 3) in the checkpoint, (9, 6,")
    assert how["encoder.stages.2.blocks.0.conv1.norm.bias"] == "belongs to a convolution that stays random"
    assert how["decoder.stages.2.convs.0.conv.weight"] == "only the encoder is transferred"
    assert how["decoder.seg_layers.0.bias"] == "a new head"


def test_a_part_of_a_block_is_reported_tensor_by_tensor() -> None:
    """Where the features of one stage differ, the next one's first convolution has no source, its second has."""
    checkpoint, _ = given()
    _, report = transfer(checkpoint, architecture(features_per_stage=[4, 7, 8]), 1, "encoder")
    what = {name.removeprefix("encoder.stages.2.blocks."): fate.what for name, fate in fates_of(report).items()}
    assert what["0.conv1.conv.weight"] == what["0.conv1.norm.weight"] == what["0.skip.1.conv.weight"] == "random"
    assert what["0.conv2.conv.weight"] == what["0.conv2.norm.bias"] == what["1.conv1.conv.weight"] == "loaded"


# The tensors.


def test_tensors_are_copies_under_first_names() -> None:
    checkpoint, origin = given()
    tensors, _ = transfer(checkpoint, architecture(), 1, "encoder+decoder")
    assert not [name for name in tensors if "all_modules" in name or name.startswith("decoder.encoder.")]
    for tensor in tensors.values():
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        tensor.zero_()
    assert bool(origin.encoder.stem.convs[0].conv.weight.any())


def test_a_checkpoint_in_half_precision_loads() -> None:
    _, network = given()
    half = {name: tensor.half() for name, tensor in network.state_dict().items()}
    tensors, report = transfer(checkpoint_of(half, architecture()), architecture(), 2, "encoder")
    target = network_of(architecture(), 2, seed=1)
    load_into(target, tensors)
    weight = target.encoder.stages[0].blocks[0].conv1.conv.weight
    assert torch.equal(weight, half["encoder.stages.0.blocks.0.conv1.conv.weight"].double())
    assert len(report.adapted) == 1


# Refused.


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({STEM: torch.full((4, 1, 3, 3, 3), torch.nan)}, f"{STEM} holds nan or infinite values"),
        ({"encoder.stages.0.blocks.0.conv1.norm.bias": torch.full((4,), torch.inf)}, "nan or infinite"),
        ({STEM: torch.ones(4, 1, 3, 3, 3, dtype=torch.int8)}, f"{STEM} holds int8 values"),
        ({STEM: torch.ones(4, 1, 3, 3, 3, dtype=torch.complex64)}, f"{STEM} holds complex64 values"),
    ],
)
def test_useless_values_are_refused(change, sentence: str) -> None:
    _, network = given()
    first = {name: tensor.detach() for name, tensor in network.named_parameters()}
    with pytest.raises(UserError, match=sentence):
        transfer(checkpoint_of({**first, **change}, architecture()), architecture(), 1, "encoder")


def test_useless_values_that_nobody_wants_are_not() -> None:
    _, network = given()
    first = {name: tensor.detach() for name, tensor in network.named_parameters()}
    first["decoder.seg_layers.1.bias"] = torch.full((2,), torch.nan)
    tensors, _ = transfer(checkpoint_of(first, architecture()), architecture(), 1, "encoder+decoder")
    assert "decoder.seg_layers.1.bias" not in tensors


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({}, "given.pth has no tensors below 'encoder.' .it holds no tensors.; save the weights of the network"),
        ({"module.encoder.x": torch.zeros(1)}, "names such as module.encoder.x"),
        ({"decoder.stages.0.convs.0.conv.weight": torch.zeros(4, 8, 3, 3, 3)}, "no tensors below 'encoder.'"),
    ],
)
def test_weights_without_an_encoder_are_refused(weights, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        transfer(checkpoint_of(weights, architecture()), architecture(), 1, "encoder")


def test_an_unknown_network_is_refused() -> None:
    checkpoint, _ = given()
    unknown = {**architecture(), "network_class_name": "some.package.PrimusS"}
    with pytest.raises(
        UserError, match="A PrimusS cannot be pre-trained or fine-tuned here; use ResidualEncoderUNet, PlainConv"
    ):
        transfer(checkpoint, unknown, 1, "encoder")
    with pytest.raises(UserError, match="A PrimusS cannot be pre-trained"):
        transfer(replace(checkpoint, architecture=unknown), architecture(), 1, "encoder")


# Into a network.


def test_all_names_of_a_tensor_get_its_values() -> None:
    """nnU-Net's state dict names the encoder again below the decoder; a copy of one name only would leave it random."""
    checkpoint, origin = given()
    tensors, _ = transfer(checkpoint, architecture(), 1, "encoder")
    target = network_of(architecture(), seed=1)
    pointers = {name: parameter.data_ptr() for name, parameter in target.named_parameters()}
    load_into(target, tensors)
    state = target.state_dict()
    for name, tensor in origin.state_dict().items():
        if name.removeprefix("decoder.").startswith("encoder."):
            assert torch.equal(state[name], tensor), name
    assert pointers == {name: parameter.data_ptr() for name, parameter in target.named_parameters()}
    assert all(parameter.requires_grad for parameter in target.parameters())


LAST_BIAS = "encoder.stages.2.blocks.1.conv2.norm.bias"
MERGE = "decoder.stages.0.convs.0.conv.weight"


@pytest.mark.parametrize(
    ("added", "removed", "sentence"),
    [
        ({}, LAST_BIAS, f"{LAST_BIAS} is missing"),
        ({}, MERGE, f"{MERGE} is missing"),
        ({}, "decoder.transpconvs.1.bias", "decoder.transpconvs.1.bias is missing"),
        ({"encoder.more": torch.zeros(1)}, None, "encoder.more has no place"),
        ({"encoder.stem.convs.0.all_modules.0.weight": torch.zeros(4, 1, 3, 3, 3)}, None, "all_modules.* has no place"),
        ({LAST_BIAS: torch.zeros(9)}, None, r"is \(9,\) in the file and \(8,\) in the network"),
        ({LAST_BIAS: torch.full((8,), torch.nan)}, None, "holds nan"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_change_nothing(added, removed, sentence: str) -> None:
    checkpoint, _ = given()
    tensors, report = transfer(checkpoint, architecture(), 1, "encoder+decoder")
    tensors = {name: tensor for name, tensor in tensors.items() if name != removed} | added
    target = network_of(architecture(), seed=1)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError, match=sentence):
        load_into(target, tensors, [fate.name for fate in report.random])
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_what_is_left_random_may_be_missing_and_nothing_else() -> None:
    checkpoint, _ = given()
    tensors, report = transfer(checkpoint, architecture(features_per_stage=[4, 6, 9]), 1, "encoder")
    left_random = [fate.name for fate in report.random if fate.name.startswith("encoder.")]
    target = network_of(architecture(features_per_stage=[4, 6, 9]), seed=1)
    load_into(target, tensors, left_random)
    with pytest.raises(UserError, match="is missing"):
        load_into(target, tensors, left_random[1:])


def test_the_decoder_may_be_missing_where_only_the_encoder_is_transferred() -> None:
    checkpoint, _ = given()
    tensors, _ = transfer(checkpoint, architecture(), 1, "encoder")
    load_into(network_of(architecture(), seed=1), tensors)


def test_a_wrapped_network_is_refused() -> None:
    checkpoint, _ = given()
    tensors, _ = transfer(checkpoint, architecture(), 1, "encoder")
    with pytest.raises(UserError, match=f"{STEM} has no place in the network"):
        load_into(nn.ModuleDict({"module": network_of(architecture())}), tensors)
