"""The encoder stands still in decoder-only phases: alone, compiled, distributed, and both."""

from __future__ import annotations

import weakref
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnssl_mae.networks.heads import freeze_unused_heads
from nnssl_mae.recipes.finetuning import load_finetune_recipe
from nnssl_mae.training.freezing import train_part
from nnssl_mae.training.schedules import parameter_groups
from nnssl_mae.training.state import bare_network
from tests.training.test_schedules import residual_encoder_unet

SECONDS = 240


def tiny_network() -> nn.Module:
    """Without deep supervision, as both trainers build it."""
    torch.manual_seed(0)
    return freeze_unused_heads(residual_encoder_unet())


def make_optimiser(network: nn.Module, name: str) -> torch.optim.Optimizer:
    """With rates and a weight decay under which a tensor that gets any update changes visibly."""
    groups = parameter_groups(network, load_finetune_recipe("sawtooth"))
    for group in groups:
        group["lr"] = 0.01
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=0.1)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=0.1)


def take_steps(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        network(torch.randn(1, 1, 16, 16, 16, generator=generator)).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()


def part_of(network: nn.Module, encoder: bool) -> dict[str, torch.Tensor]:
    """A copy of the encoder's tensors, or of all others that are used."""
    return {
        name: tensor.detach().clone()
        for name, tensor in bare_network(network).named_parameters()
        if name.startswith("encoder.") == encoder and "seg_layers.0" not in name
    }


def buffers_of(optimizer: torch.optim.Optimizer, group: int) -> list[torch.Tensor]:
    """Copies of what the optimiser remembers of a group: momentum, or moments and steps."""
    tensors = optimizer.param_groups[group]["params"]
    return [value.clone() for tensor in tensors for value in optimizer.state.get(tensor, {}).values()]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def all_changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return not [name for name in one if torch.equal(one[name], other[name])]


@pytest.mark.parametrize(("optimiser", "compiled"), [("sgd", False), ("adamw", False), ("sgd", True)])
def test_neither_gradient_nor_weight_decay_nor_momentum_moves_a_frozen_encoder(optimiser: str, compiled: bool) -> None:
    network = tiny_network()
    if compiled:
        network = torch.compile(network, backend="aot_eager")
    optimizer = make_optimiser(network, optimiser)
    take_steps(network, optimizer, seed=0)  # the encoder has momentum now
    encoder, decoder, remembered = part_of(network, True), part_of(network, False), buffers_of(optimizer, 1)
    assert remembered

    assert train_part(network, "decoder") is network
    take_steps(network, optimizer, seed=1)
    assert all(not p.requires_grad and p.grad is None for p in bare_network(network).encoder.parameters())
    assert equal(encoder, part_of(network, True))
    assert all(map(torch.equal, remembered, buffers_of(optimizer, 1)))
    assert all_changed(decoder, part_of(network, False))

    assert train_part(network, "all") is network
    take_steps(network, optimizer, seed=2)
    assert all_changed(encoder, part_of(network, True))


def test_heads_that_are_never_used_stay_frozen() -> None:
    network = tiny_network()
    for part in ("decoder", "all", "decoder", "all"):
        train_part(network, part)
        still = {name for name, tensor in network.named_parameters() if not tensor.requires_grad}
        heads = {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}
        assert {name for name in still if not name.startswith("encoder.")} == heads
        assert any(name.startswith("encoder.") for name in still) == (part == "decoder")


def train_as_one_of_two(rank: int, folder: Path) -> None:
    """One of two processes, each with data of its own; saves the weights after each epoch."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS)
    )
    for compiled in (False, True):
        torch.save(weights_of_all_epochs(rank, compiled), folder / f"{compiled}_{rank}.pt")
    dist.destroy_process_group()


def weights_of_all_epochs(rank: int, compiled: bool) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Encoder and the rest at the start and after each epoch; two of the decoder, two of all, one of the decoder."""
    network = tiny_network()
    if compiled:
        network = torch.compile(network, backend="aot_eager")
    optimizer = make_optimiser(network, "sgd")
    network = DistributedDataParallel(network)
    weights = [(part_of(network, True), part_of(network, False))]
    for epoch, part in enumerate(("decoder", "decoder", "all", "all", "decoder")):
        before = weakref.ref(network)
        network = train_part(network, part)
        assert (before() is network) == (epoch in (1, 3)), "a new wrapper where the part changes, and the old one gone"
        assert isinstance(network, DistributedDataParallel)
        assert isinstance(network.module, OptimizedModule) == compiled
        take_steps(network, optimizer, seed=10 * epoch + rank)
        weights.append((part_of(network, True), part_of(network, False)))
    return weights


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left their weights, plain and compiled."""
    folder = tmp_path_factory.mktemp("two_processes")
    context = multiprocessing.start_processes(
        train_as_one_of_two, args=(folder,), nprocs=2, join=False, start_method="spawn"
    )
    assert context is not None
    try:
        # The first join returns when one has ended; an error of either is raised here.
        finished = context.join(timeout=SECONDS) or context.join(timeout=SECONDS)
    finally:
        for process in context.processes:
            process.kill()
    assert finished, "the processes wait for each other"
    return folder


@pytest.mark.parametrize("compiled", [False, True])
def test_two_processes_stay_equal_through_all_phases(two_processes: Path, compiled: bool) -> None:
    one, other = (torch.load(two_processes / f"{compiled}_{rank}.pt") for rank in range(2))
    for epoch, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        assert equal(mine[0], theirs[0]), epoch
        assert equal(mine[1], theirs[1]), epoch
    encoders, decoders = zip(*one, strict=True)
    assert equal(encoders[0], encoders[1])
    assert equal(encoders[1], encoders[2])
    assert all_changed(encoders[2], encoders[3])
    assert all_changed(encoders[3], encoders[4])
    assert equal(encoders[4], encoders[5])
    for epoch in range(5):
        assert all_changed(decoders[epoch], decoders[epoch + 1])
