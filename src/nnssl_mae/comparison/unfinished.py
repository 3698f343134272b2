"""Holes that the table of cases cannot show: runs that were begun or asked for and that no row tells of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas

from nnssl_mae.comparison.entries import Unfinished
from nnssl_mae.comparison.summary import Comparison
from nnssl_mae.scans.left_out import each

_NOTE = (
    "Folds that were begun or asked for and cannot be measured are missing for every arm concerned, so these cells, "
    "their pairs and the ranks at that number of labelled cases are not given; finish them, or name the folds to "
    "compare with --fold."
)
_NUMBERS = ("mean", "low", "high", "seed_sd")
_PAIR_NUMBERS = ("difference", "low", "high", "p", "p_holm", "effect", "rank_biserial", "seed_sd")
_Cell = tuple[str, int | None, str]
"""Dataset, number of labelled cases, arm."""


def with_unfinished(comparison: Comparison, unfinished: Sequence[Unfinished]) -> Comparison:
    """The comparison with the holes of runs that its table of cases has no row of.

    A fold whose training has ended in no arm, and an arm without any finished run, are found in nnU-Net's folders only.
    What would be a mean over fewer folds becomes a hole; so do its pairs, those over all datasets, and ranks.

    Args:
        comparison: of the runs that are there.
        unfinished: all runs that are not.
    """
    known = {(hole.dataset, _number(hole.labelled), str(hole.fold), hole.arm) for hole in each(comparison.holes)}
    new = [run for run in unfinished if (run.dataset, run.labelled, run.fold, run.arm) not in known]
    comparison = replace(comparison, holes=_explained(comparison.holes, unfinished))
    if not new:
        return comparison
    arms = tuple(dict.fromkeys([*comparison.arms, *(run.arm for run in new)]))
    words = _words(new)
    return replace(
        comparison,
        cells=_with_holes(comparison.cells, words),
        labels=_with_holes(comparison.labels, words),
        ranks=_without_ranks(comparison.ranks, {run.labelled for run in new}),
        pairs=_without_pairs(comparison.pairs, words),
        holes=_appended(comparison.holes, [_hole(run) for run in new]),
        arms=arms,
        notes=(*comparison.notes, _NOTE),
    )


def _explained(holes: pandas.DataFrame, unfinished: Sequence[Unfinished]) -> pandas.DataFrame:
    """Says of runs that are not there what was found in their place."""
    why = {(run.dataset, run.fold, run.arm, run.replicate): run.why for run in unfinished}
    holes = holes.copy()
    for hole in each(holes):
        found = why.get((hole.dataset, str(hole.fold), hole.arm, hole.replicate))
        if found and hole.what == "no run":
            holes.loc[hole.Index, "what"] = found
    return holes


def _words(new: Sequence[Unfinished]) -> dict[_Cell, str]:
    """What is missing in each cell of a dataset, number of labelled cases and arm."""
    words: dict[_Cell, list[str]] = {}
    for run in new:
        words.setdefault((run.dataset, run.labelled, run.arm), []).append(f"fold {run.fold}: {run.why}")
    return {key: "; ".join(dict.fromkeys(parts)) for key, parts in words.items()}


def _with_holes(values: pandas.DataFrame, words: dict[_Cell, str]) -> pandas.DataFrame:
    values = values.copy()
    there = set()
    for row in each(values):
        key = (str(row.dataset), _number(row.labelled), str(row.arm))
        if key in words:
            there.add(key)
            values.loc[row.Index, list(_NUMBERS)] = math.nan
            values.loc[row.Index, "hole"] = "; ".join(filter(None, (row.hole, words[key])))
    if "label" in values:
        return values
    metrics = list(dict.fromkeys(values["metric"]))
    empty = dict.fromkeys(_NUMBERS, math.nan) | {"n_subjects": 0, "n_replicates": 0, "n_failures": 0}
    added = [
        {"dataset": dataset, "labelled": labelled, "arm": arm, "metric": metric, "hole": hole, **empty}
        for (dataset, labelled, arm), hole in words.items()
        if (dataset, labelled, arm) not in there
        for metric in metrics
    ]
    return _appended(values, added)


def _without_ranks(ranks: pandas.DataFrame, numbers: set[int | None]) -> pandas.DataFrame:
    concerned = ranks["labelled"].map(_number).isin(list(numbers)) | (
        ranks["labelled"].isna() if None in numbers else False
    )
    return ranks.assign(rank=ranks["rank"].mask(concerned), n_datasets=ranks["n_datasets"].mask(concerned, 0))


def _without_pairs(pairs: pandas.DataFrame, words: dict[_Cell, str]) -> pandas.DataFrame:
    pairs = pairs.copy()
    for row in each(pairs):
        concerned = {
            arm
            for dataset, labelled, arm in words
            if row.dataset in (dataset, "all") and _number(row.labelled) == labelled and arm in (row.arm, row.control)
        }
        if concerned:
            pairs.loc[row.Index, list(_PAIR_NUMBERS)] = math.nan
            pairs.loc[row.Index, "verdict"] = f"no verdict: runs of {', '.join(sorted(concerned))} are missing"
    return pairs


def _hole(run: Unfinished) -> dict[str, Any]:
    place = {name: getattr(run, name) for name in ("dataset", "labelled", "fold", "repeat", "arm", "replicate")}
    return place | {"what": run.why}


def _appended(values: pandas.DataFrame, rows: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    if not rows:
        return values
    added = pandas.DataFrame(list(rows)).reindex(columns=values.columns).astype(values.dtypes.to_dict())
    return pandas.concat([values, added], ignore_index=True) if len(values) else added


def _number(value: Any) -> int | None:
    return None if pandas.isna(value) else int(value)
