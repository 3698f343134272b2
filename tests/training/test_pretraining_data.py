from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.masking import block_edges
from nnssl_mae.patches import loader
from nnssl_mae.patches.dataset import open_case
from nnssl_mae.patches.loader import PatchSettings
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import override
from nnssl_mae.scans.cases import CaseRow, read_cases, write_cases
from nnssl_mae.training.pretraining_data import PretrainingData
from tests.patches.stored import data_folder


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
    folder = data_folder(prepared)
    cases = sorted(path.stem for path in folder.glob("*.b2nd"))
    seen: list[str] = []
    for rank in range(processes):
        data = data_of(recipe, folder, global_batch, rank, processes)
        batches = data.training(cases)
        monkeypatch.setattr(loader, "open_case", lambda c, n: (seen.append(c.name(n)), open_case(c, n))[1])
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


def test_the_recipe_decides_from_which_dataset_patches_come(prepared: Path, tiny_recipe: Recipe) -> None:
    folder = data_folder(prepared)
    table = read_cases(folder, [field.name for field in fields(CaseRow)]).reset_index()
    table["dataset"] = ["rare"] * 2 + ["common"] * 6
    rows = [CaseRow(**row) for row in table.to_dict("records")]
    write_cases(folder, rows)
    changed = {"sampling.by": "dataset", "sampling.dataset_weights": {"common": 0}}
    only_rare = data_of(override(tiny_recipe, changed), folder, 4, 0, 1).training(list(table["case"]))
    rare = [only_rare.cases.name(only_rare._sampling.draw(np.random.default_rng(seed))) for seed in range(30)]
    assert set(rare) == set(table["case"][:2])


def test_a_weight_for_a_dataset_that_is_not_there_is_refused_at_the_start(prepared, tiny_recipe) -> None:
    folder = data_folder(prepared)
    recipe = override(tiny_recipe, {"sampling.dataset_weights": {"elsewhere": 2}})
    with pytest.raises(UserError, match="names 'elsewhere', which is no dataset of the training cases"):
        data_of(recipe, folder, 4, 0, 1).training(["sub-00_T1w"])


def test_validation_knows_the_range_of_each_case(prepared: Path, tiny_recipe: Recipe) -> None:
    folder = data_folder(prepared)
    table = read_cases(folder)
    batch = data_of(tiny_recipe, folder, 2, 0, 1).validation(["sub-03_T1w", "sub-01_T1w"])[0]
    assert batch["cases"] == ["sub-03_T1w", "sub-01_T1w"]
    widths = (table["percentile_99_5"] - table["percentile_00_5"]).loc[batch["cases"]]
    assert batch["data_range"].tolist() == pytest.approx(widths.tolist(), rel=1e-6)
