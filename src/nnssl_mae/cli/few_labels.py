"""``splits``: folds with few labelled cases, for nnU-Net's own commands."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from nnssl_mae.cli.app import Dataset, Workers, app
from nnssl_mae.errors import UserError

_DIGITS = 10
_SHOWN = 40


@app.command()
def splits(
    dataset: Dataset,
    labelled: Annotated[str, typer.Option(help="How many labelled cases, one or several numbers: 1 2 5 10 20.")],
    repeats: Annotated[int, typer.Option(help="How often each number of cases is drawn.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    validation_fold: Annotated[
        int | None,
        typer.Option(help="Validate on the cases of this fold of nnU-Net; default 0, so fold 0 is the run with all."),
    ] = None,
    validation_share: Annotated[
        float | None, typer.Option(help="Instead: hold out this share of the subjects, such as 0.2.")
    ] = None,
    subject_regex: Annotated[
        str | None,
        typer.Option(
            help="Expression whose first group in the case name is the subject; default sub-..., or the case."
        ),
    ] = None,
    workers: Workers = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the folds, write nothing.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace few-label folds made with other options, if none was trained.")
    ] = False,
) -> None:
    """Add few-label folds to nnU-Net's splits_final.json: nested, stratified, by subject, numbered from 100 on."""
    from nnssl_mae.few_labels.make import SplitsRequest, make_splits
    from nnssl_mae.few_labels.page import print_splits

    request = SplitsRequest(
        number=dataset,
        labelled=_counts(labelled),
        repeats=repeats,
        seed=seed,
        validation_fold=validation_fold,
        validation_share=validation_share,
        subject_regex=subject_regex,
    )
    console = Console()
    print_splits(make_splits(request, workers, console, dry_run, overwrite), console, dry_run)


def _counts(text: str) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    if not words or not all(map(_is_count, words)):
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        raise UserError(
            f"--labelled {shown} is not possible; give whole numbers of cases from 1 on: --labelled 1 2 5 10"
        )
    return tuple(int(word) for word in words)


def _is_count(word: str) -> bool:
    """Python refuses to read a number of thousands of digits, and no dataset has so many cases."""
    return word.isascii() and word.isdecimal() and len(word) < _DIGITS and int(word) > 0
