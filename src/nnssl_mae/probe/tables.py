"""What a probe found out, as tables in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnssl_mae.console import say
from nnssl_mae.probe.baselines import BASELINES
from nnssl_mae.probe.reconstruction import NETWORK, Reconstructions
from nnssl_mae.probe.result import Collapse, LinearProbe, Probed
from nnssl_mae.probe.verdict import trend, verdict


def print_probe(found: Sequence[Probed], console: Console) -> None:
    """One checkpoint in full, or one line for each of several, and the verdict."""
    if len(found) == 1:
        _print_one(found[0], console)
    else:
        _print_many(found, console)


def _print_one(found: Probed, console: Console) -> None:
    if found.reconstructions is not None:
        console.print(_reconstruction_table(found.reconstructions))
    console.print(_feature_table(found.collapse))
    if found.linear is not None:
        console.print(_linear_table(found.linear))
    for note in found.notes:
        say(console, f"Note: {note}", style="yellow")
    answer = verdict(found)
    for reason in answer.reasons:
        say(console, reason)
    say(console, answer.headline, style="bold")


def _print_many(found: Sequence[Probed], console: Console) -> None:
    table = Table("checkpoint", "epoch", "R2", "best baseline", "rank", "Dice", "untrained", "worth it", title="Probe")
    for each in found:
        table.add_row(Text(each.label), str(each.epochs or "?"), *_line(each), verdict(each).worth)
    console.print(table)
    for note in dict.fromkeys(note for each in found for note in each.notes):
        say(console, f"Note: {note}", style="yellow")
    if sentence := trend(found):
        say(console, sentence, style="bold")


def _line(found: Probed) -> list[str]:
    """R2 at the ratio of the pre-training, that of the best baseline, rank of the last stage, Dice, Dice untrained."""
    at = None if found.reconstructions is None else found.reconstructions.as_trained
    deepest, linear = found.collapse.trained[-1], found.linear
    return [
        "-" if at is None else number(at.mean_r2(NETWORK)),
        "-" if at is None else number(at.mean_r2(at.best_baseline)),
        f"{deepest.effective_rank:.1f}/{deepest.channels}",
        "-" if linear is None else number(linear.trained.mean_dice),
        "-" if linear is None else f"{number(linear.random_mean)} ± {linear.random_sd:.3f}",
    ]


def _reconstruction_table(found: Reconstructions) -> Table:
    against = "the true mean of each block, which all are told" if found.blocks_are_given else "the mean of the visible"
    table = Table(title=f"Hidden voxels: R2 against {against}; mean over scans")
    for column in ("hidden", "network", *BASELINES[1:], "PSNR", "wins"):
        table.add_column(column, justify="right")
    for at in found.at:
        marked = "*" if at is found.as_trained else ""
        table.add_row(
            f"{marked}{at.ratio:.0%}",
            *(number(at.mean_r2(name)) for name in (NETWORK, *BASELINES[1:])),
            f"{at.mean_psnr(NETWORK):.1f} dB",
            f"{at.wins:.0%}" if math.isfinite(at.wins) else "-",
        )
    table.caption = "* as in pre-training; last column: share of the scans with a better network than every baseline"
    return table


def _feature_table(found: Collapse) -> Table:
    table = Table(title="Features of visible patches, beside untrained networks")
    for column in ("stage", "channels", "effective rank", "untrained", "dead", "cosine", "untrained"):
        table.add_column(column, justify="right")
    for stage, use in enumerate(found.trained):
        others = [uses[stage] for uses in found.random]
        table.add_row(
            str(stage),
            str(use.channels),
            f"{use.effective_rank:.1f}",
            " ".join(f"{other.effective_rank:.1f}" for other in others),
            f"{use.dead:.0%}",
            f"{use.cosine:.2f}",
            " ".join(f"{other.cosine:.2f}" for other in others),
        )
    return table


def _linear_table(found: LinearProbe) -> Table:
    table = Table(title=f"Linear probe: Dice on {found.scans} scans, each tested by what others trained")
    for column in ("label", "checkpoint", "untrained", "raw intensities"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label, value in found.trained.dice.items():
        untrained = " ".join(number(marks.dice[label]) for marks in found.random)
        table.add_row(Text(label), number(value), untrained, number(found.raw.dice[label]))
    table.add_section()
    untrained = " ".join(number(marks.mean_dice) for marks in found.random)
    table.add_row("mean Dice", number(found.trained.mean_dice), untrained, number(found.raw.mean_dice))
    untrained = " ".join(number(marks.balanced_accuracy) for marks in found.random)
    table.add_row(
        "balanced accuracy",
        number(found.trained.balanced_accuracy),
        untrained,
        number(found.raw.balanced_accuracy),
    )
    return table


def number(value: float) -> str:
    """With three digits; a dash for one that does not exist."""
    return f"{value:.3f}" if math.isfinite(value) else "-"
