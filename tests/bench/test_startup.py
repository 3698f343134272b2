import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from nnssl_mae.bench.startup import OURS, STOCK, bench_startup, start_in_new_process, write_ours

LINUX = Path("/proc/self/status").exists()


def test_both_loaders_start_over_as_many_cases(tmp_path) -> None:
    console = Console(file=io.StringIO(), width=200, record=True)
    starts = bench_startup(console, cases=30, folder=tmp_path, workers=[2])
    assert set(starts) == {(name, workers) for name in (OURS, STOCK) for workers in [2]}
    for (name, _), start in starts.items():
        assert start.batch > 0
        assert math.isnan(start.request) == (name == STOCK)
        if LINUX:
            assert start.worker > start.worker_own > 0
            assert start.peak >= start.before > 0
            assert start.peak > start.own > 0
    assert len(list((tmp_path / "ours" / "data").iterdir())) == 30
    assert "Start of the loaders with 30 cases" in console.export_text()


@pytest.mark.skipif(not LINUX, reason="reads Linux's account of memory")
def test_forty_thousand_cases_need_little_memory(tmp_path) -> None:
    write_ours(tmp_path / "data", 40_000)
    start = start_in_new_process(OURS, tmp_path / "data", workers=0)
    assert start.peak - start.before < 128  # MiB, beyond what importing torch and nnU-Net takes
    assert start.own < 1024
