import io

import pytest
from rich.console import Console

from nnssl_mae.bench.loader import OURS_MIRROR, STOCK_MIRROR, STOCK_TRAINING, bench_loader


def test_four_loaders_over_the_same_volumes_and_honest_words(tmp_path) -> None:
    pytest.importorskip("nilearn")
    console = Console(file=io.StringIO(), width=200, record=True)
    results = bench_loader(console, tmp_path, patch=(32, 32, 32), repeats=1, batches=1, resolution=4)
    text = console.export_text()
    assert len(results) == 4
    assert all(result.per_second > 0 and result.samples == 2 for result in results.values())
    assert results[OURS_MIRROR].megabytes < results[STOCK_MIRROR].megabytes == results[STOCK_TRAINING].megabytes
    assert "Same work (crop + mirror" in text
    assert "Not the same work" in text
    assert len(list((tmp_path / "ours").glob("*.b2nd"))) == len(list((tmp_path / "stock").glob("*.pkl"))) == 4
