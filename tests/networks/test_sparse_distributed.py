"""Two processes with different masks and different numbers of visible voxels train like one with both samples."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from nnssl_mae.networks.pretraining import PretrainingNetwork, pretraining_network
from nnssl_mae.recipes.pretraining import NetworkRecipe
from tests.networks.architectures import architecture


def network(checkpointed: bool) -> PretrainingNetwork:
    torch.manual_seed(0)
    recipe = NetworkRecipe(sparse=True, mask_tokens=True, densify=True, checkpoint_activations=checkpointed)
    return pretraining_network(architecture(), 1, recipe, "zero").double()


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.ones(2, 1, 4, 4, 4, dtype=torch.bool)
    hidden[0].view(-1)[:5] = False
    hidden[1].view(-1)[10:40] = False
    return torch.randn(2, 1, 16, 16, 16, generator=generator, dtype=torch.float64), hidden


def gradients(model: nn.Module, volumes: torch.Tensor, hidden: torch.Tensor) -> list[torch.Tensor]:
    model(volumes, hidden).square().mean().backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


def work(rank: int, folder: str, checkpointed: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    volumes, hidden = samples()
    model = DistributedDataParallel(network(checkpointed))
    found = gradients(model, volumes[rank : rank + 1], hidden[rank : rank + 1])
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_processes_equal_one_with_both_samples(tmp_path: Path) -> None:
    expected = gradients(network(False), *samples())
    for checkpointed in (False, True):
        folder = tmp_path / str(checkpointed)
        folder.mkdir()
        multiprocessing.spawn(work, (str(folder), checkpointed), nprocs=2)
        for rank in (0, 1):
            for ours, theirs in zip(torch.load(folder / f"{rank}.pt"), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
