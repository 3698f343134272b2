"""``compare``: finished nnU-Net models side by side, with intervals, tests, pictures and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from nnssl_mae.cli.app import Workers, app
from nnssl_mae.errors import UserError

if TYPE_CHECKING:
    from nnssl_mae.comparison.runs import HeldOut


@app.command()
def compare(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for tables, pictures and compare.html.")],
    earlier: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of an earlier comparison: summarise again what it measured."),
    ] = None,
    datasets: Annotated[
        list[int] | None, typer.Option("-d", "--dataset", help="nnU-Net dataset number; may be given several times.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATTERN over TRAINER__PLANS__CONFIGURATION, for instance 'mae=*Finetune__mae_seed*__*'; several "
            "models of one pattern are its replicates. Without it each model is an arm."
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Arm that the others are compared with; may be given several times."),
    ] = None,
    fold: Annotated[list[str] | None, typer.Option(help="Only these folds; may be given several times.")] = None,
    results: Annotated[
        list[str] | None,
        typer.Option(
            help="LABEL=FOLDER of results, in place of nnUNet_results; several are replicates, such as seeds or groups."
        ),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            help="ARM=FOLDER that nnUNetv2_predict wrote for a test set, compared in place of validated folds; "
            "several folders of one arm are its replicates."
        ),
    ] = None,
    references: Annotated[Path | None, typer.Option(help="Folder of the test set's labels, for --predictions.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Of the surface Dice (NSD), mm; default 1.")] = None,
    lesions: Annotated[
        list[str] | None, typer.Option(help="Label whose lesions are counted one by one; may be given several times.")
    ] = None,
    subject_regex: Annotated[
        str | None, typer.Option(help="What of a case's name is its subject: the first group, or all that matches.")
    ] = None,
    uneven_replicates: Annotated[
        bool, typer.Option("--uneven-replicates", help="Arms may have different numbers of replicates.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.", min=0)] = 0,
    workers: Workers = 2,
) -> None:
    """Compare finished models on nnU-Net's own results: means, ranks, differences, few-label curves."""
    from nnssl_mae.comparison.measure import MetricOptions
    from nnssl_mae.comparison.runs import Request
    from nnssl_mae.comparison.whole import Wish, compare_again, run_comparison

    controls = tuple(dict.fromkeys(control or ()))
    if earlier is not None:
        if datasets or arm or fold or results or predictions or references or lesions or subject_regex or tolerance:
            raise UserError("--from takes what was measured; leave out what says what to measure, or leave out --from")
        wish = Wish(Request(), controls, seed=seed, uneven_replicates=uneven_replicates)
        compare_again(earlier, wish, out, Console())
        return
    held_out = _held_out(datasets or [], _pairs("--predictions", predictions), references)
    if held_out and (arm or results):
        raise UserError("--arm and --results are of validated folds; with --predictions leave them out")
    request = Request(
        datasets=() if held_out else tuple(dict.fromkeys(datasets or ())),
        arms=_named("--arm", arm),
        folds=tuple(fold or ()),
        results={label: Path(folder) for label, folder in _named("--results", results).items()},
        held_out=held_out,
    )
    wish = Wish(
        request,
        controls=controls,
        metrics=MetricOptions(1.0 if tolerance is None else tolerance, tuple(lesions or ()), subject_regex),
        seed=seed,
        uneven_replicates=uneven_replicates,
    )
    run_comparison(wish, out, workers, Console())


def _held_out(
    numbers: Sequence[int], predictions: Sequence[tuple[str, str]], references: Path | None
) -> tuple[HeldOut, ...]:
    from nnssl_mae.comparison.runs import HeldOut

    if not predictions and references is None:
        if not numbers:
            raise UserError("There is nothing to compare; name datasets with -d, or --predictions and --references")
        return ()
    if not predictions or references is None:
        given, other = ("--references", "--predictions") if references else ("--predictions", "--references")
        raise UserError(f"{given} is given without {other}; a test set needs both")
    if len(numbers) > 1:
        raise UserError("With --predictions there can be one -d, the dataset whose labels count; run once for each")
    folders: dict[str, list[Path]] = {}
    for name, folder in predictions:
        folders.setdefault(name, []).append(Path(folder))
    dataset = numbers[0] if numbers else _test_name(references)
    return (HeldOut(dataset, references, {name: tuple(paths) for name, paths in folders.items()}),)


def _test_name(references: Path) -> str:
    """``Dataset004_Hippocampus`` of ``.../Dataset004_Hippocampus/labelsTs``, else the folder's own name."""
    folder = references.resolve()
    return folder.parent.name if folder.parent.name.startswith("Dataset") else folder.name


def _named(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, value in _pairs(option, texts):
        if name in named:
            raise UserError(f"{option} {name} is given twice; give each name once (a pattern may match several models)")
        named[name] = value
    return named


def _pairs(option: str, texts: Sequence[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not (name.strip() and sign and value.strip()):
            raise UserError(f"{option} '{text}' is not NAME=VALUE; write for instance {option} 'mae=...'")
        pairs.append((name.strip(), value.strip()))
    return pairs
