"""How arms and metrics are called and drawn: the same in every table and picture."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas

from nnssl_mae.comparison.kinds import METRICS, Metric

# Okabe and Ito's colours, which people with any colour vision tell apart, without the yellow that white paper swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_CONTROL_COLOURS = ("#000000", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2)))


@dataclass(frozen=True)
class Look:
    """Of one arm: colour, marker and line differ, so that a picture printed in grey still tells arms apart."""

    colour: str
    marker: str
    dash: Any


def looks(arms: Sequence[str], controls: Sequence[str]) -> dict[str, Look]:
    """A look of its own for each arm; controls are black and grey."""
    plain = [arm for arm in arms if arm not in controls]
    found = {arm: _look(index, _COLOURS, 0) for index, arm in enumerate(plain)}
    start = len(plain)
    found |= {
        arm: _look(index, _CONTROL_COLOURS, start) for index, arm in enumerate(arm for arm in arms if arm in controls)
    }
    return {arm: found[arm] for arm in arms}


def _look(index: int, colours: Sequence[str], start: int) -> Look:
    place = start + index
    return Look(
        colours[index % len(colours)], _MARKERS[place % len(_MARKERS)], cast(Any, _DASHES[place % len(_DASHES)])
    )


def shown_metrics(values: pandas.DataFrame, column: str = "mean") -> list[Metric]:
    """The metrics that have at least one number; lesion F1 is there only on request."""
    known = set(values.loc[values[column].notna(), "metric"])
    return [metric for metric in METRICS if metric.name in known]


def number(value: float, digits: int, sign: bool = False) -> str:
    """``0.873``, with ``sign`` ``+0.012``; an en dash where it is not known; never a negative zero."""
    if not math.isfinite(value):
        return "–"
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}"


def interval(mean: float, low: float, high: float, digits: int, sign: bool = False) -> str:
    """``0.873 [0.851, 0.890]``; without an interval the mean alone."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return number(mean, digits, sign)
    return f"{number(mean, digits, sign)} [{number(low, digits, sign)}, {number(high, digits, sign)}]"


def p_value(value: float) -> str:
    """``0.031``, ``<0.001``, or an en dash where no test was made."""
    if not math.isfinite(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(value: object) -> str:
    """A whole number, or an empty text where it is not known."""
    return "" if pandas.isna(cast(Any, value)) else f"{int(cast(Any, value)):,}"


def labelled_words(value: object) -> str:
    """``10 labelled``, or ``all labelled`` of a dataset that was not cut down."""
    return f"{count(value)} labelled" if count(value) else "all labelled"


def wrapped(name: str, width: int) -> str:
    """A long name in lines of at most ``width`` letters where it can be parted.

    nnU-Net's ``TRAINER__PLANS__CONFIGURATION`` is parted there if that suffices, else after ``_``, ``-`` and spaces.
    """
    for separators in (r"(?<=__)", r"(?<=[_\- ])(?=[^_\- ])"):
        lines = [""]
        for part in re.split(separators, name):
            if lines[-1] and len(lines[-1]) + len(part.rstrip(" ")) > width:
                lines.append("")
            lines[-1] += part
        if max(map(len, lines)) <= width:
            break
    return "\n".join(line.rstrip(" ") for line in lines)
