"""``doctor`` and ``demo``: is this machine ready, and does the whole path work on it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nnssl_mae.cli.app import Device, app


@app.command()
def doctor() -> None:
    """Check this machine: versions, known-bad pairs, nnU-Net's folders, trainer discovery, disk."""
    from nnssl_mae.doctor.report import run_doctor

    raise typer.Exit(run_doctor(Console()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demonstration writes.")] = Path("demo_output"),
    device: Device = "cpu",
    full: Annotated[bool, typer.Option("--full", help="Larger network and volumes, for a GPU.")] = False,
) -> None:
    """Show the whole path on real brain anatomy; ends with report.html and pictures."""
    from nnssl_mae.demo.stages import run_demo

    console = Console()
    report = run_demo(out, device, full, console)
    console.print(f"Open {report}", soft_wrap=True, highlight=False, markup=False)
