"""nnFormer: published sizes, the contract that other parts rely on, and maps of any size."""

import copy
import io
import pickle

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnssl_mae.errors import UserError
from nnssl_mae.networks.heads import freeze_unused_heads
from nnssl_mae.networks.nnformer import NnFormer
from nnssl_mae.networks.window_attention import WindowAttention
from nnssl_mae.networks.windows import Shape

TINY = {
    "n_stages": 3,
    "features_per_stage": [8, 16, 32],
    "strides": [[2, 2, 2], [1, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [2, 2, 2],
    "num_heads": [1, 2, 4],
    "windows": [[2, 3, 3], [2, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage_decoder": [2, 2],
}
CUBES = [[4, 4, 4], [4, 4, 4], [8, 8, 8], [4, 4, 4]]
HALVED = [[2, 2, 2]] * 3
ACDC_WINDOWS = [[3, 5, 5], [3, 5, 5], [7, 10, 10], [3, 5, 5]]
# Channels, classes, width, heads, strides, windows, millions of weights.
PUBLISHED = {
    "Synapse": (1, 14, 192, 6, [[2, 4, 4], *HALVED], CUBES, 150.1),
    "tumour": (4, 4, 96, 3, [[4, 4, 4], *HALVED], CUBES, 37.7),
    "ACDC": (1, 4, 96, 3, [[1, 4, 4], [1, 2, 2], [2, 2, 2], [2, 2, 2]], ACDC_WINDOWS, 37.2),
}


def tiny(channels: int = 1, deep_supervision: bool = True, **changes) -> NnFormer:
    torch.manual_seed(0)
    return NnFormer(channels, 3, **{**TINY, **changes}, deep_supervision=deep_supervision)


def volumes(*shape: int, channels: int = 1, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_as_many_weights(name) -> None:
    channels, classes, width, heads, strides, windows, millions = PUBLISHED[name]
    with torch.device("meta"):
        network = NnFormer(
            channels,
            classes,
            n_stages=4,
            features_per_stage=[width * 2**stage for stage in range(4)],
            strides=strides,
            n_blocks_per_stage=[2] * 4,
            num_heads=[heads * 2**stage for stage in range(4)],
            windows=windows,
            n_blocks_per_stage_decoder=[2] * 3,
            deep_supervision=True,
        )
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == millions
    assert len(network.decoder.seg_layers) == 3


def test_nnunet_builds_it_from_plans() -> None:
    network = get_network_from_plans("nnssl_mae.networks.nnformer.NnFormer", TINY, [], 2, 3, deep_supervision=False)
    assert network(volumes(8, 16, 16, channels=2)).shape == (1, 3, 8, 16, 16)


def test_parameters_have_the_names_that_transfer_and_schedules_rely_on() -> None:
    network = tiny(channels=2)
    names = [name for name, _ in network.named_parameters()]
    assert len(names) == len(set(names)) == len(list(network.parameters())) == len(network.state_dict())
    allowed = ("encoder.stem.", "encoder.stages.", "decoder.stages.", "decoder.transpconvs.", "decoder.seg_layers.")
    assert all(name.startswith(allowed) for name in names)
    assert network.encoder.stem[0].conv.weight.shape == (4, 2, 3, 3, 3)
    # Kernels of the transposed convolutions are strides, lowest resolution first.
    assert [tuple(layer.weight.shape[2:]) for layer in network.decoder.transpconvs] == [(2, 2, 2), (1, 2, 2)]
    assert [layer.weight.shape[0] for layer in network.decoder.seg_layers] == [16, 8]


def test_the_encoder_gives_what_it_says() -> None:
    encoder = tiny().encoder
    features = encoder(volumes(16, 32, 24))
    assert [each.shape[1] for each in features] == encoder.output_channels == [8, 16, 32]
    assert encoder.strides == [(2, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert [tuple(each.shape[2:]) for each in features] == [(8, 16, 12), (8, 8, 6), (4, 4, 3)]


@pytest.mark.parametrize("shape", [(4, 8, 8), (16, 16, 16), (20, 24, 8), (12, 40, 32)])
def test_one_set_of_weights_takes_any_size(shape) -> None:
    network = tiny()
    outputs = network(volumes(*shape))
    for logits, scale in zip(outputs, [[1, 1, 1], [1, 0.5, 0.5]], strict=True):
        assert tuple(logits.shape) == (1, 3, *(round(edge * part) for edge, part in zip(shape, scale, strict=True)))


def test_deep_supervision_can_be_switched_at_any_time() -> None:
    network = tiny().eval()
    several = network(volumes(8, 16, 16))
    network.decoder.deep_supervision = False
    assert torch.equal(network(volumes(8, 16, 16)), several[0])


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    network = tiny()
    assert network.encoder.divisor == (4, 8, 8)
    with pytest.raises(UserError, match=r"10x16x3 .*4x8x8; the nearest that fits is .*x16x8"):
        network(volumes(10, 16, 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": [3, 2, 4]}, "3 heads do not divide 8 features"),
        ({"n_stages": 2}, "features_per_stage has 3 values and needs 2"),
        ({"n_stages": 1}, "at least 2"),
        ({"windows": [[2, 2], [2, 2, 2], [2, 2, 2]]}, "three positive numbers"),
        ({"strides": [[8, 2, 2], [2, 2, 2], [2, 2, 2]]}, "1, 2 or 4"),
        ({"features_per_stage": [7, 14, 28]}, "even"),
        ({"n_blocks_per_stage_decoder": [2, 0]}, "n_blocks_per_stage_decoder"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(changes, words) -> None:
    with pytest.raises(UserError, match=words):
        tiny(**changes)


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("shape", [(8, 16, 16), (20, 24, 8)])
def test_every_weight_that_can_train_gets_a_gradient(shape, deep_supervision) -> None:
    """Distributed training fails on any that does not."""
    network = tiny(deep_supervision=deep_supervision)
    if not deep_supervision:
        freeze_unused_heads(network)
    outputs = network(volumes(*shape))
    loss = sum(logits.square().mean() for logits in outputs) if deep_supervision else outputs.square().mean()
    loss.backward()
    without = [name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not without
    frozen = [name for name, weight in network.named_parameters() if not weight.requires_grad]
    assert frozen == ([] if deep_supervision else ["decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_numbers(dtype) -> None:
    network = tiny()
    with torch.autocast("cpu", dtype):
        outputs = network(volumes(20, 24, 8))
    sum(logits.float().square().mean() for logits in outputs).backward()
    assert all(logits.isfinite().all() for logits in outputs)
    assert all(weight.grad.isfinite().all() for weight in network.parameters())


def test_the_same_seed_and_volume_give_the_same_gradients() -> None:
    gradients = []
    for _ in range(2):
        network = tiny(drop_path=0.5)
        sum(logits.mean() for logits in network(volumes(8, 16, 16, batch=2))).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
    assert torch.equal(*gradients)


def test_copies_and_files_compute_the_same(tmp_path) -> None:
    network = tiny().eval()
    expected = network(volumes(8, 16, 16))[0]
    other = tiny(n_stages=3).eval()
    other.apply(other.initialize)
    assert not torch.equal(other(volumes(8, 16, 16))[0], expected)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), other):
        assert torch.equal(twin(volumes(8, 16, 16))[0], expected)


def test_weights_can_be_drawn_after_building_without_memory() -> None:
    """And do not depend on what the memory held."""
    drawn = []
    for filling in (0.0, float("nan")):
        with torch.device("meta"):
            network = NnFormer(1, 3, **TINY)
        network.to_empty(device="cpu")
        for parameter in network.parameters():
            nn.init.constant_(parameter, filling)
        torch.manual_seed(0)
        network.apply(network.initialize)
        drawn.append(torch.cat([parameter.flatten() for parameter in network.parameters()]).detach())
    assert torch.equal(*drawn)
    assert drawn[0].isfinite().all()


def test_windows_alternate_and_stochastic_depth_rises() -> None:
    network = tiny(drop_path=0.5, n_blocks_per_stage=[3, 2, 2])
    attentions = [layer for layer in network.encoder.modules() if isinstance(layer, WindowAttention)]
    assert [layer.shifted for layer in attentions] == [False, True, False, False, True, False, True]
    assert [stage.blocks[0].attention.shifted for stage in network.decoder.stages] == [True, True]
    rates = [block.drop_path.drop_prob for stage in network.encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0.5 * number / 6 for number in range(7)])
    lowest, highest = network.decoder.stages
    rates = [block.drop_path.drop_prob for stage in (lowest, highest) for block in (stage.skip_block, *stage.blocks)]
    assert rates == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5])


def test_the_stem_sees_every_voxel_and_its_tokens_overlap() -> None:
    stem = tiny(strides=[[1, 2, 4], [2, 2, 2], [2, 2, 2]]).encoder.stem
    seen = volumes(4, 8, 16).requires_grad_()
    tokens = stem(seen)
    assert tokens.shape == (1, 4, 4, 4, 8)
    weights = torch.randn(8, generator=torch.Generator().manual_seed(1))  # the sum after a norm is constant
    (tokens * weights).sum().backward()
    assert (seen.grad != 0).all()
    seen.grad = None
    (stem(seen)[0, 0, 1, 1] * weights).sum().backward()
    reached = seen.grad[0, 0].nonzero()
    assert (reached.amax(dim=0) - reached.amin(dim=0) + 1 > torch.tensor([1, 2, 4])).all()


def test_heads_of_the_decoder_can_differ_from_the_encoders() -> None:
    """As in the released code, whose decoder has twice as many."""
    network = tiny(num_heads_decoder=[4, 2], legacy_position_index=True, windows=[[2, 2, 2]] * 3)
    assert [stage.skip_block.attention.heads for stage in network.decoder.stages] == [4, 2]
    assert [stage.blocks[0].attention.heads for stage in tiny().decoder.stages] == [2, 1]
    assert network(volumes(8, 16, 16))[0].isfinite().all()


def test_the_output_depends_on_all_of_the_volume() -> None:
    """Attention is local, but the windows of the lowest resolution span a small volume."""
    shape: Shape = (4, 8, 8)
    network = tiny(deep_supervision=False).double()
    seen = volumes(*shape).double().requires_grad_()
    network(seen)[0, :, 0, 0, 0].sum().backward()
    assert (seen.grad != 0).all()
