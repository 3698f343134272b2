"""``brains``: semi-synthetic scans with labels, for a study that anybody can run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nnssl_mae.cli.app import Workers, app
from nnssl_mae.console import say


@app.command()
def brains(
    file: Annotated[Path, typer.Argument(help="What to write (.yaml), see docs/study.md.", metavar="PLAN")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for scans and nnUNet_raw.")],
    workers: Workers = 2,
) -> None:
    """Write semi-synthetic brains of several anatomies: unlabelled scans and two labelled nnU-Net datasets."""
    from nnssl_mae.brains.dataset import read_study_data, write_study_data

    console = Console()
    write_study_data(out, read_study_data(file), lambda line: say(console, line), workers)
