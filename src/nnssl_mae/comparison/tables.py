"""The tables of a comparison, for a terminal, for LaTeX and as CSV files. The page uses the same sheets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnssl_mae.comparison.kinds import METRICS, Metric
from nnssl_mae.comparison.looks import count, interval, labelled_words, number, p_value, shown_metrics
from nnssl_mae.comparison.names import CASES, CURVES
from nnssl_mae.comparison.summary import Comparison
from nnssl_mae.console import say
from nnssl_mae.scans.left_out import each

MISSING = "missing: "
NO_CONTROL = (
    "No control was named, so this shows means and ranks only. For differences with intervals and tests, name the arm "
    "that the others are to be compared with: --control ARM, for instance the one trained from scratch."
)
NO_HOLES = "No run is missing."
NAMES = ("arm", "control", "label")
"""Columns of texts; all others are of numbers."""
_LEAST_NAME, _MOST_FOLDS, _LONGEST_HOLE = 12, 3, 20
_SEEDS = "sd over\nseeds"
_MOST_SENTENCES = 16
_LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "\n": " ",
}


@dataclass(frozen=True)
class Sheet:
    """A table of texts: a header, and groups of rows with a heading each (empty for none).

    A line break in a cell parts a number from its interval. A cell that starts with :data:`MISSING` is a hole.
    """

    title: str
    header: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]


def means_sheet(comparison: Comparison) -> Sheet:
    """Means over subjects of every metric; a cell of which a run is missing says so in place of a number."""
    metrics = shown_metrics(comparison.cells) or [METRICS[0]]
    few = _known(comparison.cells, "seed_sd")
    failed = bool((comparison.cells["n_failures"] > 0).any())
    header = ["arm", *(metric.axis for metric in metrics), "subjects", "replicates"]
    header += (["sd over\nseeds, Dice"] if few else []) + (["failures"] if failed else [])
    groups = []
    for dataset, labelled, cells in _blocks(comparison.cells):
        rows = []
        for arm in comparison.arms:
            of_arm = {str(cell.metric): cell for cell in each(cells[cells["arm"] == arm])}
            if of_arm:
                hole = _hole_words(comparison.holes, next(iter(of_arm.values())))
                rows.append(tuple(_mean_cells(arm, of_arm, hole, metrics, few, failed)))
        groups.append((_heading(dataset, labelled, comparison.cells), tuple(rows)))
    return Sheet(f"Means over subjects{_with_intervals(comparison.cells)}", tuple(header), tuple(groups))


def _mean_cells(
    arm: str, cells: Mapping[str, Any], hole: str, metrics: Sequence[Metric], few: bool, failed: bool
) -> Iterator[str]:
    yield arm
    any_cell = next(iter(cells.values()))
    for place, metric in enumerate(metrics):
        cell = cells.get(metric.name)
        if hole:
            yield MISSING + hole if place == 0 else "–"
        else:
            yield "–" if cell is None else _two_lines(cell.mean, cell.low, cell.high, metric.digits)
    yield count(any_cell.n_subjects)
    yield count(any_cell.n_replicates)
    if few:
        yield number(cells["dice"].seed_sd, 3) if "dice" in cells else "–"
    if failed:
        yield count(any_cell.n_failures)


def _hole_words(holes: pandas.DataFrame, cell: Any) -> str:
    """``fold 2`` or ``folds 2, 3`` in a cell that has no mean; the reasons stand in the list of missing runs."""
    if not cell.hole:
        return ""
    here = holes[(holes["dataset"] == cell.dataset) & (holes["arm"] == cell.arm)]
    folds = list(dict.fromkeys(str(hole.fold) for hole in each(here) if count(hole.labelled) == count(cell.labelled)))
    if not folds:
        return str(cell.hole)
    shown = ", ".join(folds[:_MOST_FOLDS]) + (", ..." if len(folds) > _MOST_FOLDS else "")
    return f"fold{'s' if len(folds) > 1 else ''} {shown}"


def ranks_sheet(comparison: Comparison) -> Sheet | None:
    """Average ranks over datasets; None where nothing is ranked."""
    ranks = comparison.ranks[comparison.ranks["rank"].notna()]
    if ranks["arm"].nunique() < 2:
        return None
    metrics = shown_metrics(ranks, "rank")
    groups = []
    for labelled, part in ranks.groupby("labelled", dropna=False):
        datasets = sorted({int(n) for n in part["n_datasets"]})
        of = "1 dataset" if datasets == [1] else f"{' to '.join(map(str, datasets))} datasets"
        cut = ranks["labelled"].notna().any()
        table = part.pivot(index="arm", columns="metric", values="rank").reindex(columns=[m.name for m in metrics])
        order = sorted(table.index, key=lambda arm: (table.loc[arm].mean(), comparison.arms.index(str(arm))))
        rows = tuple((str(arm), *(number(value, 2) for value in table.loc[arm])) for arm in order)
        groups.append((f"{labelled_words(labelled)}, {of}" if cut else of, rows))
    return Sheet("Average rank over datasets, 1 is best", ("arm", *(m.title for m in metrics)), tuple(groups))


def pairs_sheet(comparison: Comparison, metric: Metric = METRICS[0]) -> Sheet | None:
    """Paired differences to the controls in one metric; None where there are none."""
    pairs = comparison.pairs[comparison.pairs["metric"] == metric.name]
    pairs = pairs[pairs["difference"].notna()]
    if pairs.empty:
        return None
    tested = _known(pairs, "p_holm")
    spread = _known(pairs, "seed_sd")
    header = ["arm", *(["control"] if len(comparison.controls) > 1 else []), f"difference in {metric.axis}"]
    header += ["p (Holm)", "effect d_z"] if tested else []
    header += ["better / worse / equal", "subjects"] + ([_SEEDS] if spread else [])
    groups = []
    for dataset, labelled, part in _blocks(pairs):
        rows = tuple(tuple(_pair_cells(pair, metric, header)) for pair in each(part))
        groups.append((_heading(dataset, labelled, pairs), rows))
    better = "above" if metric.higher_is_better else "below"
    title = f"Difference to {_and(comparison.controls)}: {better} 0 is better than the control"
    return Sheet(title, tuple(header), tuple(groups))


def _pair_cells(pair: Any, metric: Metric, header: Sequence[str]) -> Iterator[str]:
    yield str(pair.arm)
    if "control" in header:
        yield str(pair.control)
    yield _two_lines(pair.difference, pair.low, pair.high, metric.digits, sign=True)
    if "p (Holm)" in header:
        yield p_value(pair.p_holm)
        yield number(pair.effect, 2, sign=True)
    yield f"{count(pair.better)} / {count(pair.worse)} / {count(pair.equal)}"
    yield count(pair.n_subjects)
    if _SEEDS in header:
        yield number(pair.seed_sd, metric.digits)


def labels_sheet(comparison: Comparison) -> Sheet | None:
    """Means of each label; None where no dataset has several."""
    labels = comparison.labels
    if labels.empty or labels.groupby("dataset")["label"].nunique().max() < 2:
        return None
    metrics = shown_metrics(labels)
    groups = []
    for dataset, labelled, part in _blocks(labels):
        rows = []
        for (label, arm), cells in part.groupby(["label", "arm"], sort=False):
            values = {str(cell.metric): cell for cell in each(cells)}
            texts = [
                _two_lines(values[m.name].mean, values[m.name].low, values[m.name].high, m.digits)
                if m.name in values
                else "–"
                for m in metrics
            ]
            rows.append((str(label), str(arm), *texts))
        groups.append((_heading(dataset, labelled, labels), tuple(rows)))
    header = ("label", "arm", *(metric.axis for metric in metrics))
    return Sheet(f"Means of each label{_with_intervals(labels)}", header, tuple(groups))


def hole_sentences(comparison: Comparison) -> list[str]:
    """What is missing, a sentence each."""
    return [_hole_sentence(hole) for hole in each(comparison.holes)]


def _hole_sentence(hole: Any) -> str:
    where = [str(hole.dataset)]
    where += [labelled_words(hole.labelled)] if count(hole.labelled) else []
    where += [f"fold {hole.fold}"] if str(hole.fold) else []
    where += [f"draw {count(hole.repeat)}"] if count(hole.repeat) else []
    who = str(hole.arm) + (f" ({hole.replicate})" if hole.replicate and hole.replicate != hole.arm else "")
    return f"{who}, {', '.join(where)}: {hole.what}"


def failure_sentences(comparison: Comparison) -> list[str]:
    """What failed, a sentence each; failures are counted with the worst score."""
    return [
        f"{failed.arm}{f' ({failed.replicate})' if failed.replicate != failed.arm else ''}, {failed.dataset}, "
        f"fold {failed.fold}, case {failed.case}: {failed.failure}"
        for failed in each(comparison.failures)
    ]


def verdicts(comparison: Comparison, metric: Metric = METRICS[0]) -> list[str]:
    """A sentence on each pair in one metric, those over all datasets first."""
    pairs = comparison.pairs[comparison.pairs["metric"] == metric.name]
    pairs = pairs.sort_values("dataset", key=lambda names: names != "all", kind="stable")
    return [
        f"{pair.arm} against {pair.control}, {_heading(pair.dataset, pair.labelled, pairs)}: {pair.verdict}"
        for pair in each(pairs)
        if pair.verdict
    ]


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints tables and sentences; long lists are cut, and say so: the page has all of them."""
    for sheet in (means_sheet(comparison), ranks_sheet(comparison), pairs_sheet(comparison)):
        if sheet is not None:
            _print_sheet(sheet, console)
    if comparison.controls:
        _print_sentences(console, "In words", verdicts(comparison))
    else:
        say(console, NO_CONTROL)
    holes = hole_sentences(comparison)
    _print_sentences(console, "Missing runs, whose cells have no mean", holes, style="yellow")
    if not holes:
        say(console, NO_HOLES)
    failed = failure_sentences(comparison)
    _print_sentences(console, "Failures, counted with the worst score", failed, style="yellow")
    _print_sentences(console, "Notes", comparison.notes)


def _print_sheet(sheet: Sheet, console: Console) -> None:
    """A table for each group, all with the same columns, so that headings are not squeezed into the first one."""
    say(console, f"\n{sheet.title}", style="bold")
    widths = _widths(sheet, console.width)
    for place, (heading, rows) in enumerate(sheet.groups):
        table = Table(
            title=Text(heading) if heading else None,
            title_justify="left",
            title_style="italic",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_header=place == 0,
        )
        for name, width in zip(sheet.header, widths, strict=True):
            justify: Literal["left", "right"] = "left" if name in NAMES else "right"
            table.add_column(name.replace("\n", " "), justify=justify, overflow="fold", width=width)
        for row in rows:
            table.add_row(*(Text(cell, style="yellow" if cell.startswith(MISSING) else "") for cell in row))
        console.print(table)


def _widths(sheet: Sheet, window: int) -> list[int]:
    """Letters of each column: what its cells and the words of its heading need; names share what is left."""
    rows = [row for _, rows in sheet.groups for row in rows]
    widths = []
    for place, name in enumerate(sheet.header):
        cells = [part for row in rows for part in row[place].split("\n")]
        lengths = [min(len(part), _LONGEST_HOLE) if part.startswith(MISSING) else len(part) for part in cells]
        widths.append(max([*lengths, *map(len, name.split())]))
    named = [place for place, name in enumerate(sheet.header) if name in NAMES]
    rest = window - 3 * len(widths) - sum(width for place, width in enumerate(widths) if place not in named)
    for place in named:
        widths[place] = min(widths[place], max(_LEAST_NAME, rest // len(named)))
    return widths


def _print_sentences(console: Console, title: str, sentences: Sequence[str], style: str | None = None) -> None:
    if not sentences:
        return
    say(console, f"{title}:", style="bold")
    for sentence in sentences[:_MOST_SENTENCES]:
        say(console, f"  {sentence}", style=style)
    if len(sentences) > _MOST_SENTENCES:
        say(console, f"  ... and {len(sentences) - _MOST_SENTENCES} more: see compare.html")


def latex(comparison: Comparison) -> str:
    """Tables for a paper: needs the package booktabs, and ``\\input`` of this file."""
    sheets = (means_sheet(comparison), ranks_sheet(comparison), pairs_sheet(comparison))
    parts = ["% Written by nnssl-mae compare. In the preamble: \\usepackage{booktabs}\n"]
    names = ("means", "ranks", "differences")
    parts += [_latex_table(sheet, name) for name, sheet in zip(names, sheets, strict=True) if sheet is not None]
    notes = [*hole_sentences(comparison), *comparison.notes]
    parts += [f"% {_one_line(note)}\n" for note in notes]
    return "\n".join(parts)


def _latex_table(sheet: Sheet, name: str) -> str:
    columns = len(sheet.header)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(sheet.title)}.}}"]
    lines += [rf"\label{{tab:compare-{name}}}", rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}", r"\toprule"]
    lines.append(" & ".join(escape_latex(cell) for cell in sheet.header) + r" \\")
    for heading, rows in sheet.groups:
        lines.append(r"\midrule")
        if heading:
            lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\textit{{{escape_latex(heading)}}}}} \\")
        lines += [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _latex_cell(cell: str) -> str:
    mean, _, rest = cell.partition("\n")
    signed = re.fullmatch(r"[+-][\d.]+", mean)
    shown = f"${mean}$" if signed else escape_latex(mean)
    return rf"{shown} {{\footnotesize {escape_latex(rest)}}}" if rest else shown


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands; signs without a meaning in LaTeX's default fonts become question marks."""
    escaped = "".join(_LATEX_SIGNS.get(letter, letter) for letter in text)
    return "".join(letter if letter.isprintable() and ord(letter) < 0x250 else "?" for letter in escaped)


def markdown(comparison: Comparison) -> str:
    """The same tables as Markdown, for a repository's pages; written from the numbers alone."""
    sheets = [means_sheet(comparison), ranks_sheet(comparison)]
    sheets += [pairs_sheet(comparison, metric) for metric in METRICS] if comparison.controls else []
    parts = [_markdown_table(sheet) for sheet in sheets if sheet is not None]
    named = {
        "In words": verdicts(comparison),
        "Missing runs": hole_sentences(comparison) or [NO_HOLES],
        "Failures, counted with the worst score": failure_sentences(comparison),
        "Notes": comparison.notes,
    }
    parts += [
        "\n".join([f"**{title}**", "", *(f"- {_one_line(line)}" for line in lines), ""])
        for title, lines in named.items()
        if lines
    ]
    return "\n".join(parts)


def _markdown_table(sheet: Sheet) -> str:
    lines = [f"### {sheet.title}", ""]
    for heading, rows in sheet.groups:
        lines += [f"*{heading}*", ""] if heading else []
        lines += [
            _markdown_row(sheet.header),
            "|" + "|".join("---" if name in NAMES else "---:" for name in sheet.header) + "|",
        ]
        lines += [*map(_markdown_row, rows), ""]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def csv_files(comparison: Comparison, cases: pandas.DataFrame, curves: pandas.DataFrame) -> dict[str, pandas.DataFrame]:
    """Every table by the name of its CSV file; one without rows still has its header."""
    return {
        CASES: cases,
        "means.csv": comparison.cells,
        "labels.csv": comparison.labels,
        "ranks.csv": comparison.ranks,
        "pairs.csv": comparison.pairs,
        "holes.csv": comparison.holes,
        "failures.csv": comparison.failures,
        CURVES: curves,
    }


def _blocks(values: pandas.DataFrame) -> Iterator[tuple[str, Any, pandas.DataFrame]]:
    """Parts of one dataset and number of labelled cases: datasets by name, ``all`` last; small numbers first."""
    groups = [(str(dataset), labelled, rows) for (dataset, labelled), rows in _groups(values)]
    yield from sorted(groups, key=lambda group: (group[0] == "all", group[0], _order(group[1])))


def _groups(values: pandas.DataFrame) -> Iterator[tuple[tuple[Any, Any], pandas.DataFrame]]:
    for key, rows in values.groupby(["dataset", "labelled"], dropna=False, sort=False):
        yield tuple(key), rows  # type: ignore[misc]


def _order(labelled: Any) -> float:
    return float("inf") if pandas.isna(labelled) else float(labelled)


def _heading(dataset: str, labelled: Any, values: pandas.DataFrame) -> str:
    name = "all datasets together" if dataset == "all" else dataset
    return f"{name}, {labelled_words(labelled)}" if values["labelled"].notna().any() else name


def _two_lines(mean: float, low: float, high: float, digits: int, sign: bool = False) -> str:
    return interval(mean, low, high, digits, sign).replace(" [", "\n[")


def _with_intervals(means: pandas.DataFrame) -> str:
    """What a title says of intervals: there are none of few subjects."""
    given = means.loc[means["mean"].notna(), "low"].notna()
    if not given.any():
        return ""
    return " with 95 % intervals" if given.all() else " with 95 % intervals where there are enough subjects"


def _known(values: pandas.DataFrame, column: str) -> bool:
    return bool(values[column].notna().any())


def _and(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
