import io

import pytest
from rich.console import Console

from nnssl_mae.bench.augment import STOCK, bench_augment, by_device, for_device, on_cpu
from nnssl_mae.bench.end_to_end import Share, bench_end_to_end
from nnssl_mae.errors import UserError
from nnssl_mae.recipes.reading import load_recipe


def test_both_places_of_augmentation_stand_beside_stock() -> None:
    pytest.importorskip("nilearn")
    console = Console(file=io.StringIO(), width=200)
    found = bench_augment(console, ("amaes",), (32, 32, 32), "cpu", repeats=1, patches=2, resolution=4)
    recipe = load_recipe("amaes")
    assert set(found) == {STOCK, on_cpu(recipe), for_device(recipe), by_device(recipe)}
    assert all(min(timing.wall) > 0 for timing in found.values())
    said = console.file.getvalue()
    assert "amaes: loader processes do" in said and "not what a GPU needs" in said


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_with_and_without_the_loader_take_turns(workers: int) -> None:
    pytest.importorskip("nilearn")
    console = Console(file=io.StringIO(), width=200)
    share = bench_end_to_end(console, "mae", 32, 1, workers, "cpu", rounds=2, steps=2, resolution=4)
    assert len(share.alone) == len(share.together) == 2
    assert "times as long as alone" in console.file.getvalue()


def test_the_ratio_is_of_medians() -> None:
    assert Share((1.0, 2.0, 9.0), (3.0, 2.0, 5.0)).ratio == pytest.approx(1.5)


def test_negative_numbers_of_processes_are_refused() -> None:
    with pytest.raises(UserError, match="--workers -1"):
        bench_end_to_end(Console(file=io.StringIO()), workers=-1, device="cpu")
