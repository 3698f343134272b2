"""The command line: one function a verb, thin."""

from __future__ import annotations

import io
import sys
from itertools import takewhile

from nnssl_mae.cli import (
    benching,
    brains,
    checking,
    checkpoints,
    citing,
    comparing,
    few_labels,
    preparing,
    probing,
    scanning,
    study,
    training,
)
from nnssl_mae.cli.app import app
from nnssl_mae.errors import ResumableError, UserError

__all__ = [
    "app",
    "benching",
    "brains",
    "checking",
    "checkpoints",
    "citing",
    "comparing",
    "few_labels",
    "join_numbers",
    "main",
    "preparing",
    "probing",
    "scanning",
    "study",
    "training",
]


def main() -> None:
    """Entry point: a :class:`UserError` becomes one sentence on stderr and exit code 2, or 75 if trying again helps."""
    _print_every_letter()
    try:
        app(args=join_numbers(sys.argv[1:]))
    except UserError as error:
        print(f"nnssl-mae: {error}", file=sys.stderr)
        sys.exit(_TRY_AGAIN if isinstance(error, ResumableError) else 2)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # typer catches Ctrl-C and says nothing
            goes_on = sys.argv[1:2] in (["scan"], ["prepare"], ["compare"], ["study"])
            hint = "; the same command goes on where this one stopped" if goes_on else ""
            print(f"nnssl-mae: Interrupted{hint}.", file=sys.stderr)
        raise


def _print_every_letter() -> None:
    """Windows gives files and pipes an old set of letters; others become ``?`` there, and end no command."""
    for stream in (sys.stdout, sys.stderr):
        if sys.platform == "win32" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


_TRY_AGAIN = 75  # EX_TEMPFAIL: what is done stays
_INTERRUPTED = 130


_NUMBERS_AFTER = {"--spacing": 3, "--patch": 3, "--clip-percentiles": 2, "--channel-map": 99, "--labelled": 99}


def join_numbers(arguments: list[str]) -> list[str]:
    """Makes one argument of the numbers after ``--spacing`` and the like, which take several numbers or one word."""
    joined: list[str] = []
    remaining = list(arguments)
    while remaining:
        joined.append(remaining.pop(0))
        numbers = list(takewhile(_is_number, remaining[: _NUMBERS_AFTER.get(joined[-1], 0)]))
        joined += [" ".join(numbers)] if numbers else []
        del remaining[: len(numbers)]
    return joined


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "-"  # for no channel
    return True
