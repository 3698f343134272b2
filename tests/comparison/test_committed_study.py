"""The tables of docs/study come from the raw scores beside them, and from nothing else."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from nnssl_mae.comparison.runs import Request
from nnssl_mae.comparison.whole import Wish, compare_again

STUDY = Path(__file__).parents[2] / "docs" / "study" / "small"
CONTROLS = ("stock", "scratch", "amaes-scratch")


def test_tables_of_the_small_study_are_those_of_its_scores(tmp_path: Path) -> None:
    compare_again(STUDY, Wish(Request(), CONTROLS), tmp_path / "out", Console(file=io.StringIO()))
    assert (tmp_path / "out" / "tables.md").read_text() == (STUDY / "tables.md").read_text()
