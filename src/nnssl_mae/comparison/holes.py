"""What is missing so that arms can be compared: runs, replicates, cases and labels that another arm has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from nnssl_mae.comparison.entries import Unfinished

HOLE_COLUMNS = ["dataset", "labelled", "fold", "repeat", "arm", "replicate", "what"]
_NAMED = 3


def find_holes(cases: pd.DataFrame, arms: Sequence[str], uneven_replicates: bool) -> pd.DataFrame:
    """Every run, case or label that one arm lacks and another has.

    Expected in a dataset at a number of labelled cases: each (fold, repeat) that any arm has, in each replicate, with
    the cases and labels that any run of that fold has; and as many replicates as the arm with most.

    Args:
        cases: checked table of cases.
        arms: all arms.
        uneven_replicates: True if arms may have different numbers of replicates; each still needs all its folds.

    Returns:
        Columns `HOLE_COLUMNS`; no rows if everything is there.
    """
    holes = [
        hole
        for _, group in cases.groupby(["dataset", "labelled"], dropna=False, sort=True)
        for hole in _holes_of_group(group, arms, uneven_replicates)
    ]
    return _typed(holes)


def with_unfinished(holes: pd.DataFrame, unfinished: Sequence[Unfinished]) -> pd.DataFrame:
    """The holes and the unfinished runs, each once, in the words of the unfinished run where both know of it."""
    known: dict[tuple[object, ...], set[str]] = {}
    for run in unfinished:
        place = (run.dataset, run.labelled, run.fold, run.repeat, run.arm)
        known.setdefault(place, set()).add(run.replicate)
    fresh = [not _is_known(known.get(_place(hole), set()), hole["replicate"]) for _, hole in holes.iterrows()]
    begun = [[run.dataset, run.labelled, run.fold, run.repeat, run.arm, run.replicate, run.why] for run in unfinished]
    table = pd.concat([holes[fresh], _typed(begun)]) if begun else holes
    return table.sort_values(HOLE_COLUMNS[:-1], ignore_index=True)


def _place(hole: pd.Series) -> tuple[object, ...]:
    return tuple(None if pd.isna(hole[column]) else hole[column] for column in HOLE_COLUMNS[:5])


def _is_known(replicates: set[str], replicate: str) -> bool:
    """Whether a hole is among those of its place; one without a name may be any of them."""
    return bool(replicates) and (replicate in replicates or not replicate or "" in replicates)


def _typed(holes: Sequence[object]) -> pd.DataFrame:
    return pd.DataFrame(holes, columns=HOLE_COLUMNS).astype({"labelled": "Int64", "repeat": "Int64"})


def words(holes: pd.DataFrame) -> str:
    """The holes of one cell in a few words; "" if there are none."""
    named = [_one(hole) for _, hole in holes.head(_NAMED).iterrows()]
    more = len(holes) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def _holes_of_group(group: pd.DataFrame, arms: Sequence[str], uneven_replicates: bool) -> Iterator[dict[str, object]]:
    replicates = {arm: sorted(set(group.loc[group["arm"] == arm, "replicate"])) for arm in arms}
    most = max(len(names) for names in replicates.values())
    for _, rows in group.groupby(["fold", "repeat"], dropna=False, sort=True):
        place = {column: rows[column].iloc[0] for column in ("dataset", "labelled", "fold", "repeat")}
        runs = _entries(rows)
        expected = set().union(*runs.values())
        for arm in arms:
            for replicate in replicates[arm]:
                what = _missing(expected, runs.get((arm, replicate), set()))
                if what:
                    yield place | {"arm": arm, "replicate": replicate, "what": what}
            if not replicates[arm]:
                yield place | {"arm": arm, "replicate": "", "what": "no run"}
            elif len(replicates[arm]) < most and not uneven_replicates:
                yield place | {"arm": arm, "replicate": "", "what": f"{len(replicates[arm])} of {most} replicates"}


def _entries(rows: pd.DataFrame) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """The (case, label) of each (arm, replicate)."""
    entries: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for arm, replicate, case, label in zip(rows["arm"], rows["replicate"], rows["case"], rows["label"], strict=True):
        entries.setdefault((arm, replicate), set()).add((case, label))
    return entries


def _missing(expected: set[tuple[str, str]], there: set[tuple[str, str]]) -> str:
    """What a run lacks, "" if nothing."""
    if not there:
        return "no run"
    all_cases = {case for case, _ in expected}
    lacking = sorted(all_cases - {case for case, _ in there})
    if lacking:
        return f"{len(lacking)} of {len(all_cases)} cases missing ({_some(lacking)})"
    labels = sorted({label for _, label in expected - there})
    return f"label missing ({_some(labels)})" if labels else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _one(hole: pd.Series) -> str:
    repeat = "" if pd.isna(hole["repeat"]) else f", repeat {hole['repeat']}"
    replicate = f" ({hole['replicate']})" if hole["replicate"] else ""
    return f"fold {hole['fold']}{repeat}{replicate}: {hole['what']}"
