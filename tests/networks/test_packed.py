"""The encoder on visible blocks alone must be the masked dense one: output, gradients, and for less work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual import BottleneckD
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from nnssl_mae.masking import hidden_voxels, hide
from nnssl_mae.networks.packed import encode_packed, packed_stages, run_packed
from nnssl_mae.networks.packed_blocks import Packing, windows
from nnssl_mae.networks.sparse import run_masked

ALWAYS = float("inf")
LAYERS: dict[str, Any] = {
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
    "return_skips": True,
}
KINDS: dict[str, dict[str, Any]] = {
    "basic": {},
    "bottleneck": {"block": BottleneckD, "bottleneck_channels": [2, 3, 4]},
    "stochastic depth": {"stochastic_depth_p": 0.5},
    "plain": {},
    "plain without norm": {"norm_op": None},
    "plain without affine": {"norm_op_kwargs": {"affine": False}},
    "max pooled": {"pool": "max"},
    "average pooled": {"pool": "avg"},
}


@dataclass(frozen=True)
class Geometry:
    patch: tuple[int, int, int]
    grid: tuple[int, int, int]
    strides: Sequence[Any] = field(default=(1, 2, 2))
    kernels: Sequence[Any] = field(default=(3, 3, 3))
    packed: int = 4
    """Stages that can be packed, the stem included."""


USUAL = Geometry((16, 16, 16), (4, 4, 4))
GEOMETRIES = {
    "usual": USUAL,
    "not cubic": Geometry((8, 12, 20), (2, 1, 5), packed=4),
    "blocks of one voxel": Geometry((6, 6, 6), (6, 6, 6), packed=2),
    "down to one voxel": Geometry((8, 8, 8), (2, 2, 2)),
    "anisotropic": Geometry((6, 16, 16), (3, 4, 4), (1, [1, 2, 2], 2), ([1, 3, 3], [1, 3, 3], 3)),
    "thick slices, thin kernel across": Geometry((8, 8, 8), (2, 2, 2), (1, [2, 2, 1], [2, 1, 2]), ([1, 3, 3],) * 3),
    "kernels of one voxel": Geometry((8, 8, 8), (2, 2, 2), (1, 2, 2), (1, 1, 1)),
    "strides of 3": Geometry((12, 12, 12), (2, 2, 2), (1, 3, 2)),
    "kernels of 5": Geometry((16, 8, 8), (2, 1, 1), (1, 2, 2), (5, 5, 5)),
    "kernels of 7": Geometry((12, 6, 6), (2, 1, 1), (1, 2), (7, 7), packed=3),
    "strides cut across blocks": Geometry((12, 12, 12), (4, 4, 4), packed=2),
    "stride at once": Geometry((16, 16, 16), (4, 4, 4), (2, 1, 2)),
    "two stages": Geometry((8, 8, 8), (2, 2, 2), (1, 2), (3, 3), packed=3),
}
MASKS = ("equal", "unequal", "nothing hidden", "one visible", "a sample with nothing visible")


def encoder(kind: str = "basic", geometry: Geometry = USUAL) -> nn.Module:
    torch.manual_seed(0)
    count = len(geometry.strides)
    residual = kind in ("basic", "bottleneck", "stochastic depth")
    built = (ResidualEncoder if residual else PlainConvEncoder)(
        1, count, [4, 6, 8][:count], nn.Conv3d, list(geometry.kernels), list(geometry.strides), [2] * count,
        **LAYERS | KINDS[kind],
    )  # fmt: skip
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    return built.double()


def stages_of(network: nn.Module) -> list[nn.Module]:
    stem = getattr(network, "stem", None)
    return [*([] if stem is None else [stem]), *network.stages]


def mask(kind: str, grid: Sequence[int], samples: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(samples, torch.Size(grid).numel(), generator=generator).argsort(dim=1)
    last = order.shape[1]
    visible = {
        "equal": [max(last // 4, 1)] * samples,
        "unequal": [max(last // 2, 1), last // 5 + 1, 1][:samples],
        "nothing hidden": [last] * samples,
        "one visible": [1] * samples,
        "a sample with nothing visible": [0, max(last // 3, 1), last][:samples],
    }[kind]
    shown = order < torch.tensor(visible)[:, None]
    return ~shown.reshape(samples, 1, *grid)


def volumes_for(geometry: Geometry, samples: int = 2) -> torch.Tensor:
    return torch.randn(samples, 1, *geometry.patch, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def dense(stages: Sequence[nn.Module], shown: torch.Tensor, hidden: torch.Tensor) -> list[torch.Tensor]:
    features, x = [], shown
    for stage in stages:
        x = run_masked(stage, x, hidden)
        features.append(x)
    return features


def packed(stages: Sequence[nn.Module], shown: torch.Tensor, hidden: torch.Tensor, **options) -> list[torch.Tensor]:
    return encode_packed(stages, shown, hidden, **{"most_halo": ALWAYS, **options})


def everything(
    encode: Callable[..., list[torch.Tensor]], network: nn.Module, volumes: torch.Tensor, hidden: torch.Tensor
) -> list[torch.Tensor]:
    """Features of each stage, the gradient of the volumes and of each weight; features of all stages are used."""
    torch.manual_seed(3)
    network.zero_grad()
    volumes = volumes.clone().requires_grad_()
    features = encode(stages_of(network), hide(volumes, hidden), hidden)
    sum((x * torch.randn_like(x)).sum() for x in features).backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(network.parameters()))
    return [*(x.detach() for x in features), volumes.grad, *gradients]


def assert_same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float = 1e-10) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_it_equals_the_masked_dense_encoder(name: str, masks: str) -> None:
    geometry = GEOMETRIES[name]
    network, hidden = encoder(geometry=geometry), mask(masks, geometry.grid)
    assert packed_stages(stages_of(network), geometry.patch, geometry.grid, ALWAYS) == geometry.packed
    volumes = volumes_for(geometry)
    assert_same(everything(packed, network, volumes, hidden), everything(dense, network, volumes, hidden))


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_masked_dense_encoder_for_each_kind_of_block(kind: str) -> None:
    network, hidden = encoder(kind), mask("unequal", USUAL.grid, samples=3)
    stages, volumes = stages_of(network), volumes_for(USUAL, samples=3)
    assert packed_stages(stages, USUAL.patch, USUAL.grid, ALWAYS) == len(stages)
    assert_same(everything(packed, network, volumes, hidden), everything(dense, network, volumes, hidden))


@pytest.mark.parametrize("samples", [1, 3])
def test_any_batch_size_and_any_place_to_stop_packing(samples: int) -> None:
    network, hidden, volumes = encoder(), mask("unequal", USUAL.grid, samples), volumes_for(USUAL, samples)
    expected = everything(dense, network, volumes, hidden)
    for most_halo in (0.5, 4.0, 8.0, ALWAYS):
        limited: Callable[..., list[torch.Tensor]] = lambda *a, limit=most_halo: encode_packed(*a, most_halo=limit)  # noqa: E731
        assert_same(everything(limited, network, volumes, hidden), expected)


def test_room_to_spare_changes_nothing() -> None:
    """A caller may round up the number of visible blocks; even infinite voxels in spare slots have no effect."""
    network, hidden, volumes = encoder(), mask("unequal", USUAL.grid), volumes_for(USUAL)
    count = int((~hidden).sum())
    expected = everything(packed, network, volumes, hidden)
    for room in (count, count + 5, hidden.numel(), hidden.numel() + 1):
        roomy: Callable[..., list[torch.Tensor]] = lambda *a, room=room: packed(*a, visible_blocks=room)  # noqa: E731
        assert_same(everything(roomy, network, volumes, hidden), expected)
    broken = volumes.masked_fill(hidden_voxels(hidden, USUAL.patch), float("inf"))
    with torch.no_grad():
        assert_same(packed(stages_of(network), broken, hidden, visible_blocks=count + 5), expected[:4])


def test_more_visible_blocks_than_announced_are_refused() -> None:
    hidden = mask("equal", USUAL.grid)
    with pytest.raises(RuntimeError, match="more blocks are visible than visible_blocks says"):
        Packing(hidden, int((~hidden).sum()) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_visible_features_do_not_depend_on_hidden_voxels(kind: str) -> None:
    """Not even where the caller forgot to hide them: hidden blocks are never read."""
    network, hidden, volumes = encoder(kind).eval(), mask("unequal", USUAL.grid), volumes_for(USUAL)
    changed = torch.where(hidden_voxels(hidden, USUAL.patch), 9 + torch.randn_like(volumes), volumes)
    with torch.no_grad():
        one, other = (packed(stages_of(network), x, hidden) for x in (volumes, changed))
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours, theirs)
        assert (ours.masked_select(hidden_voxels(hidden, ours.shape[2:])) == 0).all()


def test_a_window_holds_the_block_and_its_visible_neighbours() -> None:
    hidden = mask("unequal", (2, 3, 2))
    volumes = torch.arange(2 * 2 * 4 * 9 * 4, dtype=torch.float64).reshape(2, 2, 4, 9, 4) + 1
    packing = Packing(hidden)
    edges, before, after = (2, 3, 2), (1, 2, 0), (0, 3, 1)
    found = windows(packing.pack(volumes), packing.window_rows(edges, before, after))
    around = F.pad(hide(volumes, hidden), (0, 1, 2, 3, 1, 0))
    for slot, (sample, *block) in enumerate(packing.blocks.T.tolist(), start=1):
        z, y, x = (place * edge for place, edge in zip(block, edges, strict=True))
        assert torch.equal(found[slot], around[sample, :, z : z + 3, y : y + 8, x : x + 3])
    assert (found[0] == 0).all()
    assert torch.equal(packing.unpack(packing.pack(volumes)), hide(volumes, hidden))


def test_only_visible_blocks_are_convolved() -> None:
    """Forward: exactly the share of slots. Backward: no more than the forward pass, twice, and the strides' rest."""
    stages, hidden = stages_of(encoder()), mask("equal", USUAL.grid)
    shown = hide(volumes_for(USUAL), hidden)
    slots = int((~hidden).sum()) + 1
    flops = {}
    for encode in (dense, packed):
        with FlopCounterMode(display=False) as counter:
            features = encode(stages, shown, hidden)
            forward = counter.get_total_flops()
            sum(x.sum() for x in features).backward()
        flops[encode] = (forward, counter.get_total_flops() - forward)
    assert flops[packed][0] * hidden.numel() == flops[dense][0] * slots
    assert flops[packed][1] < 1.1 * flops[dense][1] * slots / hidden.numel()


def test_no_windows_are_kept_for_the_backward_pass() -> None:
    """A window of a block of 4^3 is 3.4 times as large; kept are its parts once, and of visible blocks only."""
    stages, hidden = stages_of(encoder())[:2], mask("equal", USUAL.grid)
    shown = hide(volumes_for(USUAL), hidden)
    kept = {encode: saved_bytes(lambda encode=encode: encode(stages, shown, hidden)) for encode in (dense, packed)}
    assert kept[packed] < 0.3 * kept[dense]  # a quarter is visible


def saved_bytes(function: Callable[[], Any]) -> int:
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no numbers to look at, so a run that asks for one fails there."""
    network = encoder().to("meta")
    volumes = torch.empty(2, 1, *USUAL.patch, dtype=torch.float64, device="meta")
    hidden = torch.empty(2, 1, *USUAL.grid, dtype=torch.bool, device="meta")
    features = packed(stages_of(network), volumes, hidden, visible_blocks=32)
    sum(x.sum() for x in features).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        packed(stages_of(network), volumes, hidden)


def test_recomputed_activations_change_nothing() -> None:
    network, hidden, volumes = encoder(), mask("unequal", USUAL.grid), volumes_for(USUAL)

    def recomputed(*arguments: Any) -> list[torch.Tensor]:
        return packed(*arguments, run=lambda *inside: checkpoint(*inside, use_reentrant=False))

    assert_same(everything(recomputed, network, volumes, hidden), everything(packed, network, volumes, hidden))


@pytest.mark.soak  # a minute of compiling
def test_it_compiles_whole_and_not_again_for_each_number_of_visible_blocks() -> None:
    geometry = Geometry((8, 8, 8), (2, 2, 2), (2,), (3,))
    network, volumes = encoder("plain", geometry), volumes_for(geometry)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *a, count: packed(*a, visible_blocks=count), backend=counter, fullgraph=True)
    for masks in ("equal", "unequal", "nothing hidden"):
        hidden = mask(masks, geometry.grid)
        count = int((~hidden).sum())
        found = everything(lambda *a, count=count: compiled(*a, count=count), network, volumes, hidden)
        assert_same(found, everything(packed, network, volumes, hidden))
    assert counter.frame_count <= 2  # once for the first number, once for any


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_stays_near_single_precision(dtype: torch.dtype) -> None:
    network, hidden = encoder().float(), mask("unequal", USUAL.grid)
    volumes = volumes_for(USUAL).float()
    expected = everything(packed, network, volumes, hidden)
    found = everything(lambda *a: under_autocast(dtype, *a), network, volumes, hidden)
    for ours, theirs in zip(found[:4], expected[:4], strict=True):
        assert ours.dtype == dtype
        assert (ours.float() - theirs).abs().max() < 0.06 * theirs.abs().max()
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found[4:])


def under_autocast(dtype: torch.dtype, *arguments: Any) -> list[torch.Tensor]:
    with torch.autocast("cpu", dtype=dtype):
        return packed(*arguments)


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"dropout_op": nn.Dropout3d, "dropout_op_kwargs": {"p": 0.1}}, 0),  # would draw for blocks, not samples
        ({"squeeze_excitation": True}, 1),  # has no masked form at all
        ({"kernel_sizes": [3, 2, 3]}, 2),  # an even kernel moves blocks off the grid
    ],
)
def test_what_has_no_packed_form_is_left_to_the_dense_encoder(change: dict[str, Any], count: int) -> None:
    options = {"kernel_sizes": [3] * 3, "strides": [1, 2, 2], "n_blocks_per_stage": [1] * 3} | LAYERS | change
    network = ResidualEncoder(1, 3, [4, 6, 8], nn.Conv3d, **options)
    assert packed_stages(stages_of(network), (16,) * 3, (4,) * 3, ALWAYS) == count
    with pytest.raises(TypeError, match="Dropout3d has no packed form"):
        run_packed(nn.Sequential(nn.Dropout3d()), volumes_for(USUAL), Packing(mask("equal", USUAL.grid)))


def test_small_blocks_are_unpacked_before_windows_are_mostly_neighbours() -> None:
    stages = stages_of(encoder())
    assert [packed_stages(stages, (edge,) * 3, (1, 1, 1)) for edge in (1, 2, 4, 8, 16, 12, 9)] == [0, 2, 3, 4, 4, 4, 2]
    assert packed_stages(stages, (9, 8, 8), (2, 2, 2)) == 0  # the mask does not divide the patch
