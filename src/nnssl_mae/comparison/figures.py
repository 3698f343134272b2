"""Pictures of a comparison. Each function gives None where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from nnssl_mae.comparison.kinds import METRICS
from nnssl_mae.comparison.looks import Look, labelled_words, looks, shown_metrics, wrapped
from nnssl_mae.comparison.summary import Comparison
from nnssl_mae.scans.left_out import each

_DICE = METRICS[0]
_GRID = "#e3e6ea"
_LARGE, _SMALL = 10, 8.5
_NAME, _LEGEND_NAME, _LABEL = 40, 40, 20
"""Letters in a line of an arm's name at an axis and in a legend, and of a label's name."""
_MOST_BANDS = 4
"""Above this many lines, bands hide each other and intervals are drawn as bars."""
_MOST_VECTOR_DOTS = 3000
_FEWEST_EPOCHS_TO_SMOOTH = 100
_RUNS = "n_runs"


@dataclass(frozen=True)
class Picture:
    """A figure with the stem of its files, a heading, and what is to be said below it."""

    name: str
    title: str
    caption: str
    figure: Figure


def pictures(comparison: Comparison, cases: pandas.DataFrame, curves: pandas.DataFrame) -> list[Picture]:
    """All pictures for which there are data, in the order of the page.

    Args:
        comparison: the summary.
        cases: a row for each case, label and run, as measured.
        curves: pseudo Dice of each epoch, as :func:`nnssl_mae.comparison.convergence.curves` gives it.
    """
    comparison = _with_runs(comparison, cases)
    drawn = [few_label_curves(comparison, cases)]
    drawn += [paired_differences(comparison, cases, control) for control in comparison.controls]
    drawn += [average_ranks(comparison), label_dots(comparison), convergence(comparison, curves)]
    return [picture for picture in drawn if picture is not None]


def few_label_curves(comparison: Comparison, cases: pandas.DataFrame) -> Picture | None:
    """Dice against the number of labelled training cases, where there are at least two such numbers."""
    cells = _of(comparison.cells, "dice")
    cells = cells[cells["labelled"].notna()]
    datasets = [
        str(name) for name, rows in cells.groupby("dataset") if rows.dropna(subset=["mean"])["labelled"].nunique() > 1
    ]
    if not datasets:
        return None
    style = looks(comparison.arms, comparison.controls)
    figure, panels = _panels(len(datasets), 4.2, 3.3, arms=comparison.arms)
    repeats = _run_means(cases)
    for axes, dataset in zip(panels, datasets, strict=True):
        of_dataset = cells[cells["dataset"] == dataset]
        for place, arm in enumerate(comparison.arms):
            shift = 1.0 + 0.035 * (place - (len(comparison.arms) - 1) / 2)
            rows = of_dataset[of_dataset["arm"] == arm].sort_values("labelled")
            dots = repeats[(repeats["dataset"] == dataset) & (repeats["arm"] == arm) & repeats["labelled"].notna()]
            _draw_few_label_arm(axes, rows, dots, style[arm], shift, len(comparison.arms) <= _MOST_BANDS)
        _label_count_axis(axes, sorted({int(number) for number in of_dataset["labelled"]}))
        axes.set(ylabel="Dice (mean over labels)", title=f"{dataset}\n{_numbers(of_dataset)}")
    _legend(figure, comparison.arms, style)
    band = "bands" if len(comparison.arms) <= _MOST_BANDS else "bars"
    return Picture(
        "few_labels",
        "Dice against the number of labelled cases",
        f"Large markers and lines are means, {band} 95 % bootstrap intervals over subjects, small markers single runs "
        "(a draw of the labelled cases or a seed of the training). Markers of one number of cases stand slightly apart "
        "to be seen. A gap in a line is a mean that is not given because a run is missing.",
        figure,
    )


def _draw_few_label_arm(
    axes: Axes, rows: pandas.DataFrame, dots: pandas.DataFrame, look: Look, shift: float, band: bool
) -> None:
    x = rows["labelled"].to_numpy(dtype=float) * shift
    mean, low, high = (rows[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
    axes.plot(x, mean, color=look.colour, marker=look.marker, linestyle=look.dash, markersize=6.5, linewidth=1.6)
    if band:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
    else:
        axes.errorbar(x, mean, _lengths(mean, low, high), fmt="none", ecolor=look.colour, elinewidth=1)
    axes.plot(
        dots["labelled"].to_numpy(dtype=float) * shift,
        dots["dice"],
        linestyle="none",
        marker=look.marker,
        markersize=3.5,
        markerfacecolor="none",
        markeredgecolor=look.colour,
        markeredgewidth=0.8,
        alpha=0.7,
    )


def _label_count_axis(axes: Axes, numbers: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("labelled training cases (logarithmic)")


def paired_differences(comparison: Comparison, cases: pandas.DataFrame, control: str) -> Picture | None:
    """The difference in Dice to one control, with each subject's own."""
    pairs = _of(comparison.pairs, "dice")
    pairs = pairs[(pairs["control"] == control) & pairs["difference"].notna()]
    if pairs.empty:
        return None
    style = looks(comparison.arms, comparison.controls)
    datasets = sorted(set(pairs["dataset"]), key=lambda name: (name == "all", name))
    rows = list(_forest_rows(pairs, comparison.arms))
    names = {row.arm for row in rows}
    line = 0.14 + 0.12 * max(wrapped(name, _NAME).count("\n") + 1 for name in names)
    columns = min(3, len(datasets))
    figure, panels = _panels(len(datasets), 3.6, 1.2 + line * len(rows), columns, _room(names))
    subjects = _subject_means(cases)
    for index, (axes, dataset) in enumerate(zip(panels, datasets, strict=True)):
        of_dataset = pairs[pairs["dataset"] == dataset]
        _draw_forest(axes, rows, of_dataset, subjects[subjects["dataset"] == dataset], control, style)
        if index % columns:
            axes.tick_params(axis="y", labelleft=False)
        title = "all datasets together" if dataset == "all" else dataset
        axes.set(title=f"{title}\n{_numbers(of_dataset)}", xlabel=f"difference in Dice to {wrapped(control, 30)}")
    _same_limits(panels, "x")
    return Picture(
        f"differences_to_{_file_word(control)}",
        f"Differences in Dice to {control}",
        "To the right of the line is better than the control. Large markers are mean paired differences, bars 95 % "
        "bootstrap intervals over subjects, small dots the subjects (each the mean over its runs).",
        figure,
    )


@dataclass(frozen=True)
class _Row:
    """A line of a forest plot at height ``y``; one without an arm is the heading of a number of labelled cases."""

    labelled: str
    arm: str
    y: int


def _forest_rows(pairs: pandas.DataFrame, arms: Sequence[str]) -> Iterator[_Row]:
    y = 0
    for labelled, group in _by_labelled(pairs):
        if pairs["labelled"].notna().any():
            yield _Row(labelled, "", y := y - 1)
        for arm in arms:
            if (group["arm"] == arm).any():
                yield _Row(labelled, arm, y := y - 1)


def _draw_forest(
    axes: Axes,
    rows: Sequence[_Row],
    pairs: pandas.DataFrame,
    subjects: pandas.DataFrame,
    control: str,
    style: Mapping[str, Look],
) -> None:
    axes.axvline(0, color="#444444", linewidth=1)
    rasterised = len(subjects) > _MOST_VECTOR_DOTS
    for row in rows:
        if not row.arm:
            continue
        look = style[row.arm]
        values = _differences(subjects, row.labelled, row.arm, control)
        spread = 0.16 * np.sin(2.4 * np.arange(len(values)))  # so that equal values are seen beside each other
        axes.plot(values, row.y + spread, ".", color=look.colour, alpha=0.4, markersize=4, rasterized=rasterised)
        found = pairs[(pairs["arm"] == row.arm) & (pairs["labelled"].map(labelled_words) == row.labelled)]
        for pair in each(found):
            axes.plot([pair.low, pair.high], [row.y, row.y], color=look.colour, linewidth=2)
            axes.plot(
                pair.difference,
                row.y,
                marker=look.marker,
                color=look.colour,
                markersize=8,
                markeredgecolor="white",
                markeredgewidth=0.5,
            )
    axes.set_yticks([row.y for row in rows], [wrapped(row.arm, _NAME) or row.labelled for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(fontweight="normal" if row.arm else "bold", fontsize=_SMALL)
    axes.set_ylim(min(row.y for row in rows) - 0.6, max(row.y for row in rows) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", color=_GRID)


def _differences(subjects: pandas.DataFrame, labelled: str, arm: str, control: str) -> NDArray[np.float64]:
    here = subjects[subjects["labelled"].map(labelled_words) == labelled]
    values = here.pivot_table(index="subject", columns="arm", values="dice")
    if not {arm, control} <= set(values.columns):
        return np.empty(0)
    return (values[arm] - values[control]).dropna().to_numpy(dtype=np.float64)


def average_ranks(comparison: Comparison) -> Picture | None:
    """The mean rank of each arm over datasets, where at least two arms are ranked in at least two datasets."""
    ranks = comparison.ranks[comparison.ranks["rank"].notna()]
    if ranks["arm"].nunique() < 2 or ranks["n_datasets"].max() < 2:
        return None
    metrics = shown_metrics(ranks, "rank")
    arms = list(ranks.groupby("arm")["rank"].mean().sort_values(ascending=False, kind="stable").index)
    style = looks(comparison.arms, comparison.controls)
    groups = [labelled for labelled, _ in _by_labelled(ranks)]
    height = 1.5 + 0.34 * len(arms) * max(1, len(groups) / 2.5)
    figure, panels = _panels(len(metrics), 2.6, height, len(metrics), _room(arms))
    for index, (axes, metric) in enumerate(zip(panels, metrics, strict=True)):
        of_metric = ranks[ranks["metric"] == metric.name]
        _draw_ranks(axes, of_metric, arms, groups, style)
        if index:
            axes.tick_params(axis="y", labelleft=False)
        datasets = sorted({int(number) for number in of_metric["n_datasets"]})
        plural = "" if datasets == [1] else "s"
        axes.set(title=f"{metric.title}\n{' to '.join(map(str, datasets))} dataset{plural}", xlabel="average rank")
    if len(groups) > 1:
        _grey_legend(figure, groups)
    return Picture(
        "ranks",
        "Average ranks",
        "Rank 1, at the left, is best; ranks of the arms' means within a dataset, averaged over the datasets for which "
        "every arm is complete."
        + (" The shade of a marker tells the number of labelled cases." if len(groups) > 1 else ""),
        figure,
    )


def _draw_ranks(
    axes: Axes, ranks: pandas.DataFrame, arms: Sequence[str], groups: Sequence[str], style: Mapping[str, Look]
) -> None:
    for row in each(ranks):
        group = groups.index(labelled_words(row.labelled))
        y = arms.index(str(row.arm)) + _dodge(group, len(groups))
        look = style[str(row.arm)]
        axes.plot(row.rank, y, marker=look.marker, markersize=7, color=look.colour, alpha=_strength(group, len(groups)))
    axes.set_yticks(range(len(arms)), [wrapped(arm, _NAME) for arm in arms], fontsize=_SMALL)
    axes.set_ylim(-0.6, len(arms) - 0.4)
    axes.set_xlim(0.7, len(arms) + 0.3)
    axes.set_xticks(range(1, len(arms) + 1, max(1, len(arms) // 8)))
    axes.grid(axis="x", color=_GRID)


def _dodge(place: int, of: int) -> float:
    return 0.0 if of < 2 else 0.6 * (0.5 - place / (of - 1))


def _strength(place: int, of: int) -> float:
    return 1.0 if of < 2 else 0.35 + 0.65 * place / (of - 1)


def _grey_legend(figure: Figure, groups: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color="black", alpha=_strength(place, len(groups)), marker="o", linestyle="none", label=group)
        for place, group in enumerate(groups)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(groups), frameon=False, fontsize=_SMALL)


def label_dots(comparison: Comparison) -> Picture | None:
    """Dice of each label, where a dataset has more than one."""
    labels = _of(comparison.labels, "dice")
    labels = labels[labels["mean"].notna()]
    several = [str(name) for name, rows in labels.groupby("dataset") if rows["label"].nunique() > 1]
    labels = labels[labels["dataset"].isin(several)]
    if labels.empty:
        return None
    style = looks(comparison.arms, comparison.controls)
    groups = list(_by_panel(labels))
    most = max(rows["label"].nunique() for _, _, rows in groups)
    height = 1.2 + most * (0.25 + 0.11 * len(comparison.arms))
    width = 2.9 + 0.08 * min(_LABEL, max(map(len, labels["label"])))
    figure, panels = _panels(len(groups), width, height, _columns(labels), arms=comparison.arms)
    for axes, (dataset, words, rows) in zip(panels, groups, strict=True):
        names = list(dict.fromkeys(rows["label"]))[::-1]
        for row in each(rows):
            place = comparison.arms.index(str(row.arm))
            y = names.index(str(row.label)) + 1.2 * _dodge(place, len(comparison.arms))
            look = style[str(row.arm)]
            axes.plot([row.low, row.high], [y, y], color=look.colour, linewidth=1.2)
            axes.plot(row.mean, y, marker=look.marker, color=look.colour, markersize=5.5)
        axes.set_yticks(range(len(names)), [wrapped(name, _LABEL) for name in names])
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(axis="x", color=_GRID)
        for edge in range(1, len(names)):
            axes.axhline(edge - 0.5, color=_GRID, linewidth=1)
        axes.set(title=f"{dataset}\n{words}{_numbers(rows)}", xlabel="Dice")
    for name in several:
        _same_limits([axes for axes, group in zip(panels, groups, strict=True) if group[0] == name], "x")
    _legend(figure, comparison.arms, style, lines=False)
    caption = "Means of each label or region with 95 % bootstrap intervals over subjects."
    return Picture("labels", "Dice of each label", caption, figure)


def convergence(comparison: Comparison, curves: pandas.DataFrame) -> Picture | None:
    """Pseudo Dice against optimiser steps, the mean over runs and their range."""
    curves = curves[curves["arm"].isin(comparison.arms)]
    if curves.empty:
        return None
    style = looks(comparison.arms, comparison.controls)
    groups = list(_by_panel(curves))
    figure, panels = _panels(len(groups), 4.2, 3.2, _columns(curves), arms=comparison.arms)
    windows: set[int] = set()
    for axes, (dataset, words, rows) in zip(panels, groups, strict=True):
        runs = [_draw_learning(axes, rows[rows["arm"] == arm], style[arm], windows) for arm in comparison.arms]
        numbers = sorted({n for n in runs if n})
        title = f"{dataset}\n{words}{_range(numbers[0], numbers[-1], 'training')} an arm"
        axes.set(title=title, xlabel="optimiser steps", ylabel="pseudo Dice (patches)", xlim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step >= 1000 else f"{step:g}")
        axes.grid(axis="y", color=_GRID)
    for name in {group[0] for group in groups}:
        _same_limits([axes for axes, group in zip(panels, groups, strict=True) if group[0] == name], "y")
    _legend(figure, comparison.arms, style)
    smoothed = f" Lines are running means over {max(windows)} epochs." if windows else ""
    return Picture(
        "convergence",
        "Dice against optimiser steps",
        "Pseudo Dice is nnU-Net's own estimate during training, on patches of the validation cases; it is not the Dice "
        "of whole images in the tables. Lines are means over trainings (folds, draws, seeds), bands their range; they "
        f"end where the shortest training of an arm ends.{smoothed}",
        figure,
    )


def _draw_learning(axes: Axes, rows: pandas.DataFrame, look: Look, windows: set[int]) -> int:
    """Draws an arm and returns how many trainings it has; the lines hold only steps that all of them reached."""
    table = rows.pivot_table(index="step", columns=["replicate", "fold"], values="dice")
    steps = table.dropna()
    if steps.empty:
        return 0
    if len(steps) >= _FEWEST_EPOCHS_TO_SMOOTH:
        window = len(steps) // 50
        windows.add(window)
        steps = steps.rolling(window, min_periods=1).mean()
    x = steps.index.to_numpy(dtype=float)
    every = max(1, len(steps) // 6)
    mean = steps.mean(axis=1).to_numpy()
    axes.plot(
        x,
        mean,
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markevery=every,
        markersize=5,
        linewidth=1.4,
    )
    axes.fill_between(x, steps.min(axis=1), steps.max(axis=1), color=look.colour, alpha=0.13, linewidth=0)
    return len(steps.columns)


def _of(values: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    return values[values["metric"] == metric]


def _lengths(mean: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, n) lengths of error bars to both sides, 0 where an interval is not known."""
    return np.nan_to_num(np.clip(np.stack([mean - low, high - mean]), 0, None))


def _run_means(cases: pandas.DataFrame) -> pandas.DataFrame:
    """Dice of each run: over labels within a case, cases within a subject, then subjects; folds of a draw together."""
    run = ["dataset", "labelled", "arm", "replicate", "repeat"]
    of_case = cases.groupby([*run, "subject", "case"], dropna=False)["dice"].mean()
    of_subject = of_case.groupby([*run, "subject"], dropna=False).mean()
    return of_subject.groupby(run, dropna=False).mean().reset_index()


def _subject_means(cases: pandas.DataFrame) -> pandas.DataFrame:
    """Dice of each subject and arm: over labels within a case of a run, then over cases and runs."""
    one = ["dataset", "labelled", "arm", "subject"]
    of_case = cases.groupby([*one, "replicate", "fold", "case"], dropna=False)["dice"].mean()
    return of_case.groupby(one, dropna=False).mean().reset_index()


def _with_runs(comparison: Comparison, cases: pandas.DataFrame) -> Comparison:
    """Adds the number of runs to means: seeds and draws of labelled cases; the folds of a cross-validation are one."""
    key = ["dataset", "labelled", "arm"]
    runs = cases[[*key, "replicate", "repeat"]].drop_duplicates().groupby(key, dropna=False).size()
    counts = runs.rename(_RUNS).reset_index()
    return replace(
        comparison,
        cells=comparison.cells.merge(counts, on=key, how="left"),
        labels=comparison.labels.merge(counts, on=key, how="left"),
    )


def _by_labelled(values: pandas.DataFrame) -> Iterator[tuple[str, pandas.DataFrame]]:
    """Parts of equal numbers of labelled cases, the smallest first, uncut datasets last."""
    for number, rows in values.groupby("labelled", dropna=False):
        yield labelled_words(number), rows


def _by_panel(values: pandas.DataFrame) -> list[tuple[str, str, pandas.DataFrame]]:
    """A panel for each data set and number of labelled cases: the two in words (the latter as a line), and its rows.

    Where a data set is used uncut only, there are no words for that.
    """
    parts = []
    for dataset, rows in values.groupby("dataset"):
        cut = rows["labelled"].notna().any()
        parts += [(str(dataset), f"{words}\n" if cut else "", part) for words, part in _by_labelled(rows)]
    return parts


def _columns(values: pandas.DataFrame) -> int:
    """A row of panels for each data set where that fits; 0 for as many as fit."""
    numbers = values["labelled"].nunique(dropna=False)
    return numbers if 1 < numbers <= 4 and values["dataset"].nunique() > 1 else 0


def _numbers(rows: pandas.DataFrame) -> str:
    """``n = 12 subjects, 3 runs an arm``: what means stand on, as ranges where it differs."""
    parts = []
    for column, word, of in (("n_subjects", "subject", ""), (_RUNS, "run", " an arm")):
        known = rows.loc[rows[column] > 0, column] if column in rows else pandas.Series(dtype=float)
        if len(known):
            parts.append(_range(int(known.min()), int(known.max()), word) + of)
    return f"n = {', '.join(parts)}" if parts else ""


def _range(low: int, high: int, word: str) -> str:
    return f"{low:,} {word}{'' if high == 1 else 's'}" if low == high else f"{low:,} to {high:,} {word}s"


def _room(names: Iterable[str]) -> float:
    """Inches that names at the left of an axis take."""
    return 0.07 * max(len(line) for name in names for line in wrapped(name, _NAME).split("\n"))


def _same_limits(panels: Sequence[Axes], direction: Literal["x", "y"]) -> None:
    """The same axis in each panel, so that they can be compared."""
    limits = [getattr(axes, f"get_{direction}lim")() for axes in panels]
    for axes in panels:
        axes.set(**{f"{direction}lim": (min(low for low, _ in limits), max(high for _, high in limits))})


def _panels(
    number: int, width: float, height: float, columns: int = 0, widen: float = 0, arms: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels of that size, in rows.

    Args:
        number: of panels.
        width: of a panel, inches.
        height: of a panel, inches.
        columns: in a row; 0 for at most three, so that rows are full.
        widen: room for names at the left, inches.
        arms: that the legend will name: room for it is added.
    """
    columns = min(number, columns or (2 if number == 4 else 3))
    rows = math.ceil(number / columns)
    wide = max(6.4, columns * width + widen)
    in_legend = math.ceil(len(arms) / _legend_columns(wide, arms)) if arms else 0
    lines = max((wrapped(arm, _LEGEND_NAME).count("\n") + 1 for arm in arms), default=0)
    figure = Figure(
        figsize=(wide, rows * height + 0.2 + in_legend * (0.08 + 0.16 * lines)), layout="constrained", facecolor="white"
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in grid[number:]:
        unused.set_visible(False)
    for axes in grid[:number]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=_SMALL)
        axes.title.set_fontsize(_LARGE)
        axes.xaxis.label.set_fontsize(_LARGE)
        axes.yaxis.label.set_fontsize(_LARGE)
        axes.set_axisbelow(True)
    return figure, list(grid[:number])


def _legend(figure: Figure, arms: Sequence[str], style: Mapping[str, Look], lines: bool = True) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=style[arm].colour,
            marker=style[arm].marker,
            linestyle=style[arm].dash if lines else "none",
            label=wrapped(arm, _LEGEND_NAME),
        )
        for arm in arms
    ]
    columns = _legend_columns(figure.get_figwidth(), arms)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=_SMALL, handlelength=3.2
    )


def _legend_columns(width: float, arms: Sequence[str]) -> int:
    """How many names stand beside each other in a figure of that width in inches."""
    longest = max(len(line) for arm in arms for line in wrapped(arm, _LEGEND_NAME).split("\n"))
    return max(1, min(len(arms), int(width / (0.8 + 0.075 * longest))))


def _file_word(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
