"""Comparisons without any image: drawn scores, and a summary by hand that needs no statistics of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas

from nnssl_mae.comparison.summary import Comparison

KEY = ["dataset", "labelled", "arm"]
CURVES = ["dataset", "arm", "replicate", "fold", "labelled", "repeat", "epoch", "step", "dice"]


def made_up_cases(
    arms: Sequence[str],
    labelled: Sequence[int | None] = (None,),
    datasets: Sequence[str] = ("Dataset004_Hippocampus",),
    repeats: int = 1,
    subjects: int = 8,
    labels: Sequence[str] = ("anterior", "posterior"),
    seed: int = 0,
) -> pandas.DataFrame:
    """A table of cases as measured: later arms are a little better, more labels help, subjects and draws differ."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for dataset in datasets:
        hardness = generator.normal(0, 0.05, subjects)
        for place, arm in enumerate(arms):
            for number in labelled:
                for repeat in range(repeats):
                    level = 0.5 + 0.02 * place + 0.12 * math.log10(number or 50) + generator.normal(0, 0.012)
                    for subject in range(subjects):
                        for at, label in enumerate(labels):
                            dice = float(
                                np.clip(level + hardness[subject] - 0.05 * at + generator.normal(0, 0.02), 0, 1)
                            )
                            rows.append(_row(dataset, arm, number, repeat, f"sub-{subject:02d}", label, dice))
    return pandas.DataFrame(rows).astype({"labelled": "Int64", "repeat": "Int64"})


def _row(
    dataset: str, arm: str, labelled: int | None, repeat: int, subject: str, label: str, dice: float
) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "arm": arm,
        "replicate": arm,
        "fold": str(0 if labelled is None else 100 + 10 * labelled + repeat),
        "labelled": labelled,
        "repeat": None if labelled is None else repeat,
        "subject": subject,
        "case": f"{subject}_T1w",
        "label": label,
        "dice": dice,
        "nsd": min(1.0, dice + 0.1),
        "hd95": 20 * (1 - dice),
        "lesion_f1": math.nan,
        "voxels_reference": 100,
        "voxels_predicted": 90,
        "failure": "",
    }


def made_up_comparison(cases: pandas.DataFrame, controls: Sequence[str] = (), **changes: Any) -> Comparison:
    """Means with a normal interval, ranks and pairs; ``changes`` replace parts of it."""
    arms = tuple(dict.fromkeys(cases["arm"]))
    parts: dict[str, Any] = {
        "cells": _cells(cases, KEY),
        "labels": _cells(cases, [*KEY, "label"]),
        "ranks": _ranks(cases),
        "pairs": _pairs(cases, controls),
        "holes": pandas.DataFrame(columns=["dataset", "labelled", "fold", "repeat", "arm", "replicate", "what"]),
        "failures": pandas.DataFrame(columns=["dataset", "arm", "replicate", "fold", "case", "failure"]),
        "arms": arms,
        "controls": tuple(controls),
        "notes": ("A note.",),
    }
    return Comparison(**(parts | changes))


def _cells(cases: pandas.DataFrame, key: list[str]) -> pandas.DataFrame:
    rows = []
    for names, part in cases.groupby(key, dropna=False, sort=False):
        for metric in ("dice", "nsd", "hd95"):
            values = part.groupby("subject")[metric].mean()
            half = 1.96 * values.std() / math.sqrt(len(values))
            rows.append(
                dict(zip(key, names, strict=True))
                | {"metric": metric, "mean": values.mean(), "low": values.mean() - half, "high": values.mean() + half}
                | {"seed_sd": part.groupby("repeat")[metric].mean().std(), "n_subjects": len(values)}
                | {"n_replicates": part["fold"].nunique(), "n_failures": 0, "hole": ""}
            )
    return pandas.DataFrame(rows).astype({"labelled": "Int64"})


def _ranks(cases: pandas.DataFrame) -> pandas.DataFrame:
    means = _cells(cases, KEY)
    one = ["labelled", "metric", "dataset"]
    means["rank"] = means["mean"].where(means["metric"] == "hd95", -means["mean"])
    means["rank"] = means.groupby(one, dropna=False)["rank"].rank()
    ranks = means.groupby(["labelled", "metric", "arm"], dropna=False)["rank"].mean().reset_index()
    return ranks.assign(n_datasets=cases["dataset"].nunique())


def _pairs(cases: pandas.DataFrame, controls: Sequence[str]) -> pandas.DataFrame:
    rows = []
    for control in controls:
        for arm in dict.fromkeys(cases["arm"]):
            for (dataset, labelled), part in cases.groupby(["dataset", "labelled"], dropna=False):
                if arm != control:
                    rows.append(_pair(str(dataset), labelled, str(arm), control, part))
    columns = ["dataset", "labelled", "metric", "arm", "control", "difference", "low", "high", "n_subjects", "p"]
    columns += ["p_holm", "effect", "rank_biserial", "better", "worse", "equal", "seed_sd", "verdict"]
    return pandas.DataFrame(rows, columns=columns).astype({"labelled": "Int64"})


def _pair(dataset: str, labelled: Any, arm: str, control: str, cases: pandas.DataFrame) -> dict[str, Any]:
    means = cases.pivot_table(index="subject", columns="arm", values="dice")
    gain = means[arm] - means[control]
    half = 1.96 * gain.std() / math.sqrt(len(gain))
    return {
        "dataset": dataset,
        "labelled": labelled,
        "metric": "dice",
        "arm": arm,
        "control": control,
        "difference": gain.mean(),
        "low": gain.mean() - half,
        "high": gain.mean() + half,
        "n_subjects": len(gain),
        "p": 0.0123,
        "p_holm": 0.0246,
        "effect": gain.mean() / gain.std(),
        "rank_biserial": 0.5,
        "better": int((gain > 0).sum()),
        "worse": int((gain < 0).sum()),
        "equal": 0,
        "seed_sd": 0.004,
        "verdict": f"{arm} and {control} differ.",
    }


def made_up_curves(
    arms: Sequence[str], runs: int = 3, epochs: int = 40, labelled: int | None = None
) -> pandas.DataFrame:
    """Pseudo Dice that rises and levels off."""
    generator = np.random.default_rng(1)
    rows = []
    for place, arm in enumerate(arms):
        for run in range(runs):
            for epoch in range(epochs):
                dice = (0.7 + 0.02 * place) * (1 - math.exp(-6 * (epoch + 1) / epochs)) + generator.normal(0, 0.02)
                name = f"seed{run}"
                rows.append(("Dataset004_Hippocampus", arm, name, "0", labelled, None, epoch, 250 * (epoch + 1), dice))
    return pandas.DataFrame(rows, columns=CURVES).astype({"labelled": "Int64", "repeat": "Int64"})
