"""Histograms and bars as inline SVG: accepted scans at the bottom, rejected ones on top of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnssl_mae.catalogue.report.page import plain

_WIDTH, _HEIGHT = 280, 130
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 14, 8, 20
_BINS = 28
_ROW, _LABEL, _MOST_ROWS = 16, 104, 14
_LONGEST_LABEL = 18
_LARGEST = 1e18  # numbers beyond are nonsense from a damaged header; on an axis they would overflow

Values = NDArray[np.float64]
Pair = tuple[Values, Values]


def charts(blocks: Sequence[str]) -> str:
    """Charts beside each other, with the key of their colours."""
    key = (
        '<p class="soft"><span class="key" style="margin-left:0;background:var(--good)"></span>accepted'
        '<span class="key" style="background:var(--bad)"></span>rejected. Heights are numbers of scans, or of subjects '
        "where it says so; a chart spans the middle 99 % of its values.</p>\n"
    )
    return f'{key}<div class="charts">\n{"".join(blocks)}</div>\n'


def histogram(title: str, unit: str, values: Pair, ratio: bool = False, noun: str = "scans") -> str:
    """How often which value occurs.

    The axis spans the middle 99 % of all values, so that one absurd number does not flatten the rest; what lies
    outside is counted in the end bars, and said.

    Args:
        title: of what.
        unit: of the values, ``mm`` for instance; may be empty.
        values: (n,) of accepted scans and (m,) of rejected ones; what is not finite counts as unknown.
        ratio: logarithmic axis; values of 0 and below count as unknown.
        noun: what is counted.
    """
    both = [_scaled(part, ratio) for part in values]
    known = np.concatenate(both)
    label = ", ".join(part for part in (title, unit, "logarithmic" if ratio else "") if part)
    if not known.size:
        return _chart(label, "", "No scan has a known value.")
    axis = _axis(known, ratio)
    counts = [np.histogram(np.clip(part, axis.low, axis.high), axis.bins, (axis.low, axis.high))[0] for part in both]
    outside = int(((known < axis.low) | (known > axis.high)).sum())
    unknown = sum(map(len, values)) - known.size
    remarks = [f"{outside:,} outside the axis, counted in the end bars"] if outside else []
    remarks += [f"{unknown:,} unknown"] if unknown else []
    return _chart(label, _bars(counts, axis, unit, noun), "; ".join(remarks))


def ranking(title: str, accepted: Sequence[str], rejected: Sequence[str]) -> str:
    """How often which name occurs, the most frequent first; empty names count as unknown."""
    counts: dict[str, list[int]] = {}
    for place, names in enumerate((accepted, rejected)):
        for name in names:
            counts.setdefault(name or "unknown", [0, 0])[place] += 1
    ordered = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))
    if len(ordered) > _MOST_ROWS:
        rest = ordered[_MOST_ROWS - 1 :]
        sums = [sum(pair[place] for _, pair in rest) for place in (0, 1)]
        ordered = [*ordered[: _MOST_ROWS - 1], (f"{len(rest):,} others", sums)]
    largest = max((sum(pair) for _, pair in ordered), default=1)
    rows = "".join(_row(place, name, pair, largest) for place, (name, pair) in enumerate(ordered))
    drawing = (
        f'<svg viewBox="0 0 {_WIDTH} {_ROW * len(ordered) + 4}" role="img" aria-label="{plain(title)}">{rows}</svg>'
    )
    return _chart(title, drawing if ordered else "", "" if ordered else "No scans.")


def _chart(title: str, drawing: str, remark: str) -> str:
    said = f"<p>{plain(remark)}</p>" if remark else ""
    return f"<figure><figcaption>{plain(title)}</figcaption>{drawing}{said}</figure>\n"


def _row(place: int, name: str, pair: Sequence[int], largest: int) -> str:
    y, room = _ROW * place + 2, _WIDTH - _LABEL - 42
    good, bad = (room * count / largest for count in pair)
    short = name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"
    return (
        f"<g><title>{plain(name)}: {pair[0]:,} accepted, {pair[1]:,} rejected</title>"
        f'<text x="{_LABEL - 6}" y="{y + 9}" text-anchor="end">{plain(short)}</text>'
        + _rectangle("good", _LABEL, y, good, 11)
        + _rectangle("bad", _LABEL + good, y, bad, 11)
        + f'<text x="{_LABEL + good + bad + 4:.1f}" y="{y + 9}">{sum(pair):,}</text></g>'
    )


def _scaled(values: Values, ratio: bool) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log10(values) if ratio else np.asarray(values, dtype=np.float64)
    return scaled[np.isfinite(scaled)]


@dataclass(frozen=True)
class _Axis:
    """From ``low`` to ``high``, which are decimal logarithms where ``ratio``; with marks at ``ticks``."""

    low: float
    high: float
    bins: int
    ticks: Sequence[float]
    ratio: bool

    def shown(self, value: float) -> str:
        return _short(10.0**value if self.ratio else value)


def _axis(known: Values, ratio: bool) -> _Axis:
    largest = math.log10(_LARGEST) if ratio else _LARGEST
    low, high = (float(edge) for edge in np.percentile(np.clip(known, -largest, largest), (0.5, 99.5)))
    if not ratio and high - low <= _BINS and (known == np.round(known)).all():  # a bar for each whole number
        low, high = math.floor(low) - 0.5, math.ceil(high) + 0.5
        return _Axis(low, high, round(high - low), _round_numbers(low, high, least=1), ratio)
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-6):  # equal values: a bar in the middle
        half = 0.5 * abs(low) if abs(low) > 1e-6 and not ratio else 0.5
        low, high = low - half, low + half
    return _Axis(low, high, _BINS, _powers(low, high) if ratio else _round_numbers(low, high), ratio)


def _round_numbers(low: float, high: float, least: float = 0) -> list[float]:
    """Some three to six round numbers between two."""
    rough = max((high - low) / 6, least)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = magnitude * min((factor for factor in (1, 2, 5, 10) if factor * magnitude >= rough), default=10)
    return [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Logarithms of round numbers between two logarithms: 1, 2 and 5 of each power of ten, or powers only."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    fine = [power + math.log10(factor) for power in powers for factor in (1, 2, 5)]
    every = max(1, round((high - low) / 5))
    ticks = fine if high - low < 2 else list(powers)[::every]
    return [tick for tick in ticks if low <= tick <= high]


def _bars(counts: Sequence[NDArray[np.int64]], axis: _Axis, unit: str, noun: str) -> str:
    width, height = (_WIDTH - _LEFT - _RIGHT) / axis.bins, _HEIGHT - _TOP - _BOTTOM
    tallest = max(int((counts[0] + counts[1]).max()), 1)
    edges = np.linspace(axis.low, axis.high, axis.bins + 1)
    parts = [_frame(tallest, axis)]
    for place, (good, bad) in enumerate(zip(*(count.tolist() for count in counts), strict=True)):
        if not good + bad:
            continue
        ends = " to ".join(axis.shown(edge) for edge in edges[place : place + 2])
        x, base = _LEFT + width * place, _TOP + height
        up = height * good / tallest, height * (good + bad) / tallest
        parts.append(
            f"<g><title>{ends} {plain(unit)}: {good:,} accepted, {bad:,} rejected {plain(noun)}</title>"
            + _rectangle("good", x, base - up[0], width - 1, up[0])
            + _rectangle("bad", x, base - up[1], width - 1, up[1] - up[0])
            + "</g>"
        )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _rectangle(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _frame(tallest: int, axis: _Axis) -> str:
    width, base = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM
    parts = [
        f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{_WIDTH - _RIGHT}" y2="{base}"/>',
        f'<text x="{_LEFT - 4}" y="{_TOP + 6}" text-anchor="end">{_short(tallest)}</text>',
        f'<text x="{_LEFT - 4}" y="{base}" text-anchor="end">0</text>',
    ]
    for tick in axis.ticks:
        x = _LEFT + width * (tick - axis.low) / (axis.high - axis.low)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{base}" x2="{x:.1f}" y2="{base + 3}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 14}" text-anchor="middle">{axis.shown(tick)}</text>')
    return "".join(parts)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
