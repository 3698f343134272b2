from pathlib import Path

import pytest

from nnssl_mae.masking import block_edges
from nnssl_mae.patches.loader import PatchSettings
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import override
from nnssl_mae.training.pretraining_data import PretrainingData


def data_of(recipe: Recipe, folder: Path, global_batch: int, rank: int, processes: int) -> PretrainingData:
    patch = recipe.network.patch_size
    assert not isinstance(patch, str)
    edges = block_edges(patch, recipe.masking.block_size)
    grid = tuple(size // edge for size, edge in zip(patch, edges, strict=True))
    settings = PatchSettings(patch, grid, recipe.masking, True, recipe.seed)
    each, rest = divmod(global_batch, processes)
    return PretrainingData(folder, recipe, settings, each + (rank < rest), global_batch, rank, processes)


@pytest.mark.parametrize(("global_batch", "processes"), [(4, 1), (4, 2), (5, 2), (8, 3)])
def test_processes_take_every_volume_once_an_epoch(prepared: Path, tiny_recipe, monkeypatch, global_batch, processes):
    recipe = override(tiny_recipe, {"schedule.iterations": "dataset"})
    (folder,) = [path for path in prepared.iterdir() if path.is_dir()]
    cases = sorted(path.stem for path in folder.glob("*.b2nd"))
    seen: list[str] = []
    for rank in range(processes):
        data = data_of(recipe, folder, global_batch, rank, processes)
        batches = data.training(cases)
        original = batches.volumes.load_case
        monkeypatch.setattr(batches.volumes, "load_case", lambda c, load=original: (seen.append(c), load(c))[1])
        assert data.iterations(len(cases)) == -(-len(cases) // global_batch)
        for iteration in range(data.iterations(len(cases))):
            batches[0, iteration]
    extra = data.iterations(len(cases)) * global_batch - len(cases)
    assert len(seen) == len(cases) + extra
    assert set(seen) == set(cases)


def test_validation_is_shared_out_without_gaps_or_doubles(prepared: Path, tiny_recipe: Recipe) -> None:
    cases = list("abcdefg")
    shares = [data_of(tiny_recipe, prepared, 4, rank, 3).share_of(cases) for rank in range(3)]
    assert sorted(case for share in shares for case in share) == cases
