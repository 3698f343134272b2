"""``probe``: is a pre-training worth fine-tuning, and when to stop it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nnssl_mae.cli.app import app


@app.command()
def probe(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Checkpoints of nnssl_mae, nnssl (OpenMind), nnU-Net or AMAES, their folders, or hf://owner/name.",
        ),
    ],
    scans: Annotated[
        list[Path] | None,
        typer.Option("--scans", help="A scan, a folder of scans, or a catalogue of `scan`. Repeatable."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of label maps: case.nii.gz for case.nii.gz or case_0000.nii.gz."),
    ] = None,
    dataset: Annotated[
        int | None,
        typer.Option("-d", "--dataset", help="A labelled nnU-Net dataset, in place of --scans and --labels."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Of a folder every checkpoint_*.pth: one line each, and when to stop.")
    ] = False,
    most_scans: Annotated[
        int, typer.Option("--most-scans", help="How many scans to look at, evenly spread.", min=1)
    ] = 8,
    random_networks: Annotated[
        int, typer.Option("--random", help="Untrained networks to compare with, at least 3; more find smaller leads.")
    ] = 5,
    subject_regex: Annotated[
        str | None,
        typer.Option("--subject-regex", help="Scans with the same first group belong to one subject, as in `scan`."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of hidden blocks, places and untrained networks.")] = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for probe.json and probe.png.")] = Path("probe"),
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default a GPU where there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")] = False,
) -> None:
    """Tell whether a pre-training is worth fine-tuning, in minutes: with several checkpoints, when to stop.

    Reconstruction of hidden blocks at ratios from 0.3 to 0.9, against fillings that learnt nothing.

    Features: how many directions they use, beside untrained networks.

    With labels, a linear classifier of frozen features, tested on scans that it was not trained on, beside untrained
    networks and raw intensities.
    """
    from nnssl_mae.probe.run import Wishes, print_document
    from nnssl_mae.probe.run import probe as run

    wishes = Wishes(
        scans=tuple(scans or ()),
        labels=labels,
        dataset=dataset,
        random_networks=random_networks,
        most_scans=most_scans,
        seed=seed,
        every=every,
        subject_regex=subject_regex,
    )
    found = run(checkpoints, wishes, Console(stderr=as_json), out, device, show=not as_json)
    if as_json:
        print_document(found, wishes)
