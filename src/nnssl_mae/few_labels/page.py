"""What ``nnssl-mae splits`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnssl_mae.console import say
from nnssl_mae.few_labels.commands import training_commands
from nnssl_mae.few_labels.make import Splits
from nnssl_mae.few_labels.splits_file import MAP, SPLITS

_SHOWN_CASES = 4
_SHOWN_LABELS = 6


def print_splits(splits: Splits, console: Console, dry_run: bool) -> None:
    """A line for each few-label fold, what to know about them, and the command that trains one."""
    console.print(_table(splits))
    named = splits.named
    say(
        console,
        f"All validate on the same {len(named.validation)} cases ({_origin(splits)}); the smaller sets of a repeat lie "
        f"in its larger ones.",
    )
    for note in splits.notes:
        say(console, f"Note: {note}")
    if any(fold.missing for fold in named.folds.values()):
        say(
            console,
            "Warning: a network cannot learn labels that its training cases lack; its Dice of them is 0.",
            style="yellow",
        )
    _say_written(splits, console, dry_run)
    _say_next(splits, console)


def _table(splits: Splits) -> Table:
    lacking = any(fold.missing for fold in splits.named.folds.values())
    columns = ("fold", "labelled", "repeat", "training cases", *(["labels in none of them"] if lacking else []))
    title = f"Few-label folds of {splits.dataset.name}"
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, fold in splits.named.folds.items():
        cases = splits.named.orders[fold.repeat][: fold.labelled]
        table.add_row(
            str(number),
            str(fold.labelled),
            str(fold.repeat),
            Text(_some(cases, _SHOWN_CASES)),
            *([Text(_some(fold.missing, _SHOWN_LABELS), style="yellow")] if lacking else []),
        )
    return table


def _some(names: Sequence[str], shown: int) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _origin(splits: Splits) -> str:
    source = splits.named.validation_from
    return f"those of fold {source['fold']:g}" if "fold" in source else f"{source['share']:.0%} of the subjects"


def _say_next(splits: Splits, console: Console) -> None:
    example = next(iter(splits.new or splits.named.folds))
    commands = training_commands(splits.dataset, example)
    if commands:
        say(console, f"Next, fold by fold, such as fold {example} (add -device cpu without a GPU):")
    else:
        say(console, "Next, for one fold, with the -tr and -p that you want:")
        commands = [f"nnUNetv2_train {splits.dataset.number} CONFIGURATION {example}"]
    for command in commands:
        say(console, f"  {command}")


def _say_written(splits: Splits, console: Console, dry_run: bool) -> None:
    file = splits.dataset.folder / SPLITS
    if dry_run:
        say(console, f"Nothing was written (--dry-run): {len(splits.new)} of these folds are not in {file} yet.")
    elif not splits.new:
        say(console, f"All were in {file} before; nothing changed.")
    else:
        say(console, f"Wrote {len(splits.new)} folds to {file}; what each is stands in {MAP} beside it.")
