"""From a table of cases to means, ranks, pairs and verdicts: what counts, what is a hole, what may be said."""

from __future__ import annotations

import math
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnssl_mae.comparison.entries import Unfinished
from nnssl_mae.comparison.kinds import METRICS, Metric
from nnssl_mae.comparison.statistics import holm, interval_of_mean, wilcoxon_p
from nnssl_mae.comparison.summary import Comparison, compare
from nnssl_mae.comparison.tables import pairs_sheet
from nnssl_mae.errors import UserError
from tests.comparison.cases_table import cases_table

NAN = math.nan
FEW = 200
"""Resamples where the interval does not matter."""

COLUMN = np.linspace(0.5, 0.8, 8)[:, None]
"""Scores of 8 cases, one label."""


def _two_arms(arm: object, control: object, **options: object) -> pd.DataFrame:
    scores = {("Dataset001", "scratch", "r"): control, ("Dataset001", "MAE", "r"): arm}
    return cases_table(scores, **options)  # type: ignore[arg-type]


def _cell(comparison: Comparison, arm: str, **where: object) -> pd.Series:
    table = comparison.labels if "label" in where else comparison.cells
    return _only(table, {"arm": arm} | where)


def _pair(comparison: Comparison, **where: object) -> pd.Series:
    return _only(comparison.pairs, where)


def _only(table: pd.DataFrame, where: dict[str, object]) -> pd.Series:
    for column, value in where.items():
        table = table[table[column].isna() if value is None else table[column] == value]
    assert len(table) == 1, table
    return table.iloc[0]


# Means


def test_mean_is_over_labels_then_subjects_by_hand() -> None:
    comparison = compare(_two_arms([[0.2, 0.4], [0.6, NAN]], [[0.2, 0.4], [0.6, NAN]]), "scratch")
    assert _cell(comparison, "MAE")["mean"] == pytest.approx((0.3 + 0.6) / 2)
    assert _cell(comparison, "MAE", label="a")["mean"] == pytest.approx(0.4)
    assert _cell(comparison, "MAE", label="b")["mean"] == pytest.approx(0.4)
    assert _cell(comparison, "MAE", label="b")["n_subjects"] == 1


def test_means_of_labels_are_those_of_nnunets_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for folder in ("references", "predictions"):
        (tmp_path / folder).mkdir()
        for case in range(4):
            image = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
            image[image == 2] = 2 if case else 1  # the first case has label 2 nowhere
            sitk.WriteImage(sitk.GetImageFromArray(image), tmp_path / folder / f"case{case:02d}.nii.gz")
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(evaluate_predictions, "multiprocessing", threads)
    summary = evaluate_predictions.compute_metrics_on_folder(
        str(tmp_path / "references"), str(tmp_path / "predictions"), None, SimpleITKIO(), ".nii.gz", [1, 2], None, 1
    )
    dice = [[case["metrics"][label]["Dice"] for label in (1, 2)] for case in summary["metric_per_case"]]
    assert np.isnan(dice[0][1])
    comparison = compare(_two_arms(dice, dice), "scratch")
    for name, label in (("a", 1), ("b", 2)):
        assert _cell(comparison, "MAE", label=name)["mean"] == pytest.approx(summary["mean"][label]["Dice"])


def test_mean_over_labels_is_nnunets_foreground_mean_where_all_labels_are_defined() -> None:
    dice = np.random.default_rng(1).uniform(0, 1, (7, 3))
    assert _cell(compare(_two_arms(dice, dice), "scratch"), "MAE")["mean"] == pytest.approx(dice.mean(axis=0).mean())


def test_interval_of_a_cell_is_that_over_its_subjects() -> None:
    cell = _cell(compare(_two_arms(COLUMN, COLUMN), "scratch", seed=5, resamples=FEW), "MAE")
    assert (cell["low"], cell["high"]) == interval_of_mean([COLUMN[:, 0]], seed=5, resamples=FEW)
    assert cell["low"] < cell["mean"] < cell["high"]


def test_a_subject_with_many_cases_counts_once() -> None:
    subjects = ["p1", "p1", "p1", "p2"]
    comparison = compare(_two_arms([[0.9], [0.8], [0.7], [0.2]], [[0.5]] * 4, subjects=subjects), "scratch")
    cell = _cell(comparison, "MAE")
    assert cell["mean"] == pytest.approx((0.8 + 0.2) / 2)
    assert cell["n_subjects"] == 2 == _pair(comparison)["n_subjects"]


def test_cross_validation_has_each_subject_once() -> None:
    folds = [
        cases_table({("Dataset001", arm, "r"): COLUMN[2 * fold : 2 * fold + 2]}, fold=str(fold)).assign(
            case=lambda rows, fold=fold: rows["case"] + f"_{fold}", subject=lambda rows: rows["case"]
        )
        for arm in ("scratch", "MAE")
        for fold in range(4)
    ]
    cell = _cell(compare(pd.concat(folds), "scratch", resamples=FEW), "MAE")
    assert cell["mean"] == pytest.approx(COLUMN.mean())
    assert cell["n_subjects"] == 8 and cell["n_replicates"] == 1 and math.isnan(cell["seed_sd"])


def test_draws_of_labelled_cases_are_averaged_within_their_subjects() -> None:
    gains = {"scratch": (0.0, 0.0, 0.0), "MAE": (0.01, 0.03, 0.08)}
    draws = [
        cases_table({("Dataset001", arm, "r"): COLUMN + gain}, fold=str(100 + draw), labelled=3, repeat=draw)
        for arm, of_draws in gains.items()
        for draw, gain in enumerate(of_draws)
    ]
    comparison = compare(pd.concat(draws), "scratch", resamples=FEW)
    cell, pair = _cell(comparison, "MAE"), _pair(comparison)
    assert cell["labelled"] == 3 and cell["n_subjects"] == 8
    assert cell["mean"] == pytest.approx(COLUMN.mean() + 0.04)
    assert cell["seed_sd"] == pair["seed_sd"] == pytest.approx(np.std([0.01, 0.03, 0.08], ddof=1))
    assert pair["difference"] == pytest.approx(0.04)


def test_spread_over_seeds_that_do_not_belong_together_adds_up() -> None:
    scores = {("Dataset001", "scratch", f"s{n}"): COLUMN + gain for n, gain in enumerate((0.0, 0.02))}
    scores |= {("Dataset001", "MAE", f"m{n}"): COLUMN + gain for n, gain in enumerate((0.0, 0.04))}
    expected = math.hypot(np.std([0, 0.02], ddof=1), np.std([0, 0.04], ddof=1))
    assert _pair(compare(cases_table(scores), "scratch", resamples=FEW))["seed_sd"] == pytest.approx(expected)


def test_failures_count_and_are_listed() -> None:
    cases = _two_arms(COLUMN, COLUMN)
    failed = (cases["arm"] == "MAE") & (cases["case"] == "case07")
    cases.loc[failed, ["dice", "voxels_predicted", "failure"]] = [0.0, 0, "no prediction"]
    comparison = compare(cases, "scratch", resamples=FEW)
    assert _cell(comparison, "MAE")["n_failures"] == 1 and _cell(comparison, "scratch")["n_failures"] == 0
    assert _cell(comparison, "MAE")["mean"] == pytest.approx((COLUMN.sum() - 0.8) / 8)
    assert comparison.failures.to_dict("records") == [
        {"dataset": "Dataset001", "arm": "MAE", "replicate": "r", "fold": "0", "case": "case07"}
        | {"failure": "no prediction"}
    ]
    assert any("1 predictions failed" in note for note in comparison.notes)


# Empty references


def _with_empty_reference(cases: pd.DataFrame, arm: str, case: str, label: str, worst: float, metric: str) -> None:
    """This arm found something where there is nothing."""
    row = (cases["arm"] == arm) & (cases["case"] == case) & (cases["label"] == label)
    cases.loc[row, [metric, "voxels_reference", "voxels_predicted"]] = [worst, 0, 50]


@pytest.mark.parametrize(("metric", "worst", "loss"), [("dice", 0.0, -0.5), ("hd95", 100.0, 50.0)])
def test_finding_what_is_not_there_is_paid_for_in_the_pair(metric: str, worst: float, loss: float) -> None:
    scores = np.column_stack([COLUMN[:, 0], np.full(8, NAN)])
    scores[:4, 1] = scores[:4, 0]  # label b exists in 4 cases
    scores[7, 0] = 0.5 if metric == "dice" else 0.0
    cases = _two_arms(scores, scores, metric=metric)
    _with_empty_reference(cases, "MAE", "case07", "b", worst, metric)
    comparison = compare(cases, "scratch", resamples=FEW)
    pair = _pair(comparison)
    # The other arm's right, empty prediction is perfect; without it the pair would have lost nothing or half of it.
    assert pair["difference"] == pytest.approx(loss / 8)
    assert (pair["better"], pair["worse"], pair["equal"]) == (0, 1, 7)
    assert _only(comparison.ranks, {"arm": "scratch"})["rank"] == 1
    assert any("In 1 case x label the reference is empty" in note for note in comparison.notes)


def test_an_entry_empty_for_all_changes_nothing() -> None:
    scores, control = np.column_stack([COLUMN + 0.1, COLUMN]), np.column_stack([COLUMN, COLUMN])
    scores[3, 1] = control[3, 1] = NAN
    pair = _pair(compare(_two_arms(scores, control), "scratch", resamples=FEW))
    assert pair["difference"] == pytest.approx((7 * 0.05 + 0.1) / 8)


def test_a_further_arm_does_not_change_a_pair() -> None:
    scores = np.column_stack([COLUMN[:, 0], np.full(8, NAN)])
    cases = _two_arms(scores + 0.05, scores)
    third = cases[cases["arm"] == "MAE"].assign(arm="S3D")
    _with_empty_reference(third, "S3D", "case02", "b", 0.0, "dice")
    alone = _pair(compare(cases, "scratch", resamples=FEW), arm="MAE")
    beside = _pair(compare(pd.concat([cases, third]), "scratch", resamples=FEW), arm="MAE")
    kept = ["difference", "low", "high", "p", "better", "worse", "equal"]
    pd.testing.assert_series_equal(alone[kept], beside[kept], check_names=False)


def test_lesions_count_only_where_they_were_asked_for() -> None:
    scores = np.column_stack([np.full(8, NAN), COLUMN[:, 0]])
    cases = _two_arms(scores, scores, metric="lesion_f1").assign(dice=0.5, voxels_reference=10, voxels_predicted=10)
    comparison = compare(cases, "scratch", resamples=FEW)
    assert _cell(comparison, "MAE", metric="lesion_f1")["mean"] == pytest.approx(COLUMN.mean())
    assert set(comparison.labels.loc[comparison.labels["metric"] == "lesion_f1", "label"]) == {"b"}
    assert not (comparison.cells["metric"] == "nsd").any()


def test_arms_measured_with_other_options_are_refused() -> None:
    cases = _two_arms(COLUMN, COLUMN).assign(lesion_f1=0.5)
    cases.loc[cases["arm"] == "MAE", "lesion_f1"] = NAN
    with pytest.raises(UserError, match=r"lesion_f1 of label a is missing .* same options"):
        compare(cases, "scratch")


# Holes


def _three_datasets() -> pd.DataFrame:
    gains = {"scratch": 0.0, "MAE": 0.03, "S3D": 0.01}
    rng = np.random.default_rng(3)
    return cases_table(
        {
            (dataset, arm, f"seed{seed}"): COLUMN + gain + rng.normal(0, 0.005, COLUMN.shape)
            for dataset in ("Dataset001", "Dataset002", "Dataset003")
            for arm, gain in gains.items()
            for seed in range(2)
        }
    )


def test_whole_tables_have_no_holes() -> None:
    comparison = compare(_three_datasets(), "scratch", resamples=FEW)
    assert comparison.holes.empty and (comparison.cells["hole"] == "").all()
    assert comparison.arms == ("scratch", "MAE", "S3D") and comparison.controls == ("scratch",)


def _without(cases: pd.DataFrame, **where: str) -> pd.DataFrame:
    rows = np.logical_and.reduce([cases[column] == value for column, value in where.items()])
    return cases[~rows]


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ({"replicate": "seed1"}, "fold 0: 1 of 2 replicates"),
        ({"replicate": "seed1", "case": "case03"}, "fold 0 (seed1): 1 of 8 cases missing (case03)"),
        ({}, "fold 0: no run"),
    ],
)
def test_what_is_missing_is_a_hole_and_never_a_mean_over_fewer(missing: dict[str, str], words: str) -> None:
    cases = _without(_three_datasets(), dataset="Dataset002", arm="MAE", **missing)
    comparison = compare(cases, "scratch", resamples=FEW)
    cell = _cell(comparison, "MAE", dataset="Dataset002")
    assert cell["hole"] == words and math.isnan(cell["mean"]) and math.isnan(cell["low"])
    assert len(comparison.holes) == 1
    whole = _cell(comparison, "MAE", dataset="Dataset001")
    assert whole["hole"] == "" and whole["mean"] > 0


def test_a_fold_that_another_arm_has_is_a_hole() -> None:
    cases = pd.concat([_two_arms(COLUMN, COLUMN, fold=fold) for fold in ("0", "1")])
    cases = cases.assign(case=cases["case"] + cases["fold"], subject=cases["case"] + cases["fold"])
    comparison = compare(_without(cases, arm="MAE", fold="1"), "scratch", resamples=FEW)
    assert _cell(comparison, "MAE")["hole"] == "fold 1 (r): no run"
    assert _cell(comparison, "scratch")["hole"] == ""


def test_a_missing_label_is_a_hole() -> None:
    scores = np.column_stack([COLUMN, COLUMN])
    comparison = compare(_without(_two_arms(scores, scores), arm="MAE", label="b"), "scratch", resamples=FEW)
    assert _cell(comparison, "MAE", metric="dice")["hole"] == "fold 0 (r): label missing (b)"
    assert math.isnan(_cell(comparison, "MAE", label="a")["mean"])


def test_a_hole_takes_no_verdict_and_the_dataset_out_of_ranks_and_the_overall_pair() -> None:
    comparison = compare(_without(_three_datasets(), dataset="Dataset002", arm="MAE"), "scratch", resamples=FEW)
    pair = _pair(comparison, dataset="Dataset002", arm="MAE")
    assert math.isnan(pair["difference"]) and math.isnan(pair["p"])
    assert pair["verdict"] == "no verdict: MAE has a hole (fold 0: no run)"
    assert (comparison.ranks["n_datasets"] == 2).all()
    for arm in ("MAE", "S3D"):
        overall = _pair(comparison, dataset="all", arm=arm)
        assert overall["n_subjects"] == 16 and "16 subjects in 2 of 3 datasets" in overall["verdict"]


def test_no_rank_where_no_dataset_is_whole() -> None:
    comparison = compare(_two_arms(COLUMN, COLUMN).iloc[:-1], "scratch", resamples=FEW)
    assert comparison.ranks["rank"].isna().all() and (comparison.ranks["n_datasets"] == 0).all()


def test_replicates_may_be_uneven_if_the_user_says_so() -> None:
    cases = _without(_three_datasets(), arm="scratch", replicate="seed1")
    comparison = compare(cases, "scratch", resamples=FEW, uneven_replicates=True)
    assert comparison.holes.empty and not comparison.cells["mean"].isna().any()


def test_what_was_begun_is_a_hole_once_and_in_its_own_words() -> None:
    cases = _without(_three_datasets(), dataset="Dataset002", arm="MAE")
    begun = [
        Unfinished("Dataset002", "MAE", "seed0", "0", None, None, "training has not ended"),
        Unfinished("Dataset001", "AMAES", "", "0", None, None, "there is no such result"),
    ]
    comparison = compare(cases, "scratch", resamples=FEW, unfinished=begun)
    assert _cell(comparison, "MAE", dataset="Dataset002")["hole"] == "fold 0 (seed0): training has not ended"
    assert _cell(comparison, "AMAES", dataset="Dataset001")["hole"] == "fold 0: there is no such result"
    assert math.isnan(_cell(comparison, "AMAES", dataset="Dataset001")["mean"])
    assert "AMAES" in comparison.arms


def test_a_dataset_that_no_arm_is_whole_in_is_missed_by_the_overall_pair_and_has_cells() -> None:
    begun = [Unfinished("Dataset004", arm, "", "0", None, None, "training has not ended") for arm in ("MAE", "scratch")]
    comparison = compare(_three_datasets(), "scratch", resamples=FEW, unfinished=begun)
    assert "in 3 of 4 datasets" in _pair(comparison, dataset="all", arm="MAE")["verdict"]
    assert math.isnan(_cell(comparison, "MAE", dataset="Dataset004")["mean"])
    assert any("Where runs are missing" in note for note in comparison.notes)


def test_datasets_whose_cases_are_their_own_subjects_are_named() -> None:
    cases = _three_datasets()
    cases.loc[cases["dataset"] == "Dataset001", "subject"] = "s" + cases["case"].str[-1]
    notes = compare(cases, "scratch", resamples=FEW).notes
    assert any(note.startswith("Dataset002, Dataset003: each case is taken as a subject") for note in notes)
    notes = compare(_three_datasets(), "scratch", resamples=FEW).notes
    assert any(note.startswith("Each case is taken as a subject") for note in notes)


def test_a_difference_that_only_the_correction_hides_is_not_called_none() -> None:
    levels = {f"arm{number}": COLUMN + 0.02 + 0.001 * np.arange(len(COLUMN))[:, None] for number in range(12)}
    scores = {("Dataset001", arm, "r"): values for arm, values in {"scratch": COLUMN, **levels}.items()}
    sentence = compare(cases_table(scores), "scratch", resamples=FEW).pairs["verdict"].iloc[0]
    assert sentence.startswith("not settled: +0.02") and "cannot pass the correction" in sentence


# Ranks and pairs


def test_ranks_over_datasets_by_hand() -> None:
    levels = {"A": (0.9, 0.5, 0.3), "B": (0.8, 0.5, 0.4), "C": (0.7, 0.6, 0.2)}
    scores = {
        (f"Dataset{n}", arm, "r"): np.full((2, 1), dice) for arm, of in levels.items() for n, dice in enumerate(of)
    }
    ranks = compare(cases_table(scores), "A", resamples=FEW).ranks.set_index("arm")["rank"]
    # A: 1, 2.5, 2; B: 2, 2.5, 1; C: 3, 1, 3
    assert ranks.to_dict() == pytest.approx({"A": 5.5 / 3, "B": 5.5 / 3, "C": 7 / 3})
    distances = compare(cases_table(scores, metric="hd95"), "A", resamples=FEW).ranks.set_index("arm")["rank"]
    assert distances.to_dict() == pytest.approx({"A": 6.5 / 3, "B": 6.5 / 3, "C": 5 / 3})


def test_numbers_of_a_pair_are_those_of_its_subjects() -> None:
    gains = np.array([0.05, 0.02, -0.01, 0.04, 0.0, 0.03, 0.06, 0.01])
    pair = _pair(compare(_two_arms(COLUMN + gains[:, None], COLUMN), "scratch", seed=2, resamples=FEW))
    assert pair["difference"] == pytest.approx(gains.mean())
    assert (pair["low"], pair["high"]) == pytest.approx(interval_of_mean([gains], seed=2, resamples=FEW))
    assert pair["p"] == pair["p_holm"] == wilcoxon_p(gains)
    assert pair["effect"] == pytest.approx(gains.mean() / gains.std(ddof=1))
    assert (pair["better"], pair["worse"], pair["equal"]) == (6, 1, 1)


def test_shorter_distances_are_better() -> None:
    scores = np.arange(10, 20.0)[:, None]
    comparison = compare(_two_arms(scores - 1 - scores / 100, scores, metric="hd95"), "scratch", resamples=FEW)
    pair = _pair(comparison)
    assert pair["difference"] < 0 and pair["better"] == 10
    assert pair["verdict"].startswith("-1.15 mm HD95 [") and pair["verdict"].endswith("better than scratch")
    assert _only(comparison.ranks, {"arm": "MAE"})["rank"] == 1


def test_the_overall_pair_gives_each_dataset_the_same_weight() -> None:
    scores = {
        ("Dataset001", "scratch", "r"): np.full((20, 1), 0.5),
        ("Dataset002", "scratch", "r"): np.full((6, 1), 0.5),
    }
    scores |= {
        (dataset, "MAE", "r"): values + gain
        for ((dataset, _, _), values), gain in zip(scores.items(), (0.01, 0.05), strict=True)
    }
    pair = _pair(compare(cases_table(scores), "scratch", resamples=FEW), dataset="all")
    assert pair["difference"] == pytest.approx(0.03) and pair["n_subjects"] == 26
    assert (pair["low"], pair["high"]) == pytest.approx((0.03, 0.03))


def test_correction_is_over_all_pairs_of_a_metric() -> None:
    cases = _three_datasets()
    pairs = compare(cases.assign(hd95=1 - cases["dice"]), ["scratch"], resamples=FEW).pairs
    for metric in ("dice", "hd95"):
        of_metric = pairs[pairs["metric"] == metric]
        assert len(of_metric) == 2 * 4
        np.testing.assert_allclose(of_metric["p_holm"], holm(of_metric["p"]))


def test_each_arm_is_compared_with_each_control_and_controls_not_with_each_other() -> None:
    pairs = compare(_three_datasets(), ["scratch", "S3D"], resamples=FEW).pairs
    assert set(zip(pairs["arm"], pairs["control"], strict=True)) == {("MAE", "scratch"), ("MAE", "S3D")}


def test_a_comparison_does_not_depend_on_the_order_of_cases_and_repeats() -> None:
    cases = _three_datasets()
    one = compare(cases, "scratch", seed=1, resamples=FEW)
    shuffled = cases.sample(frac=1, random_state=0)
    two = compare(pd.concat([cases.iloc[:0], shuffled]), "scratch", seed=1, resamples=FEW)
    keys = ["dataset", "metric", "arm"]
    for name in ("cells", "pairs"):
        tables = [getattr(found, name).sort_values(keys, ignore_index=True) for found in (one, two)]
        pd.testing.assert_frame_equal(*tables)


# Verdicts


def test_a_clear_gain_is_said_with_size_interval_p_and_subjects() -> None:
    gains = np.linspace(0.02, 0.06, 8)[:, None]
    sentence = _pair(compare(_two_arms(COLUMN + gains, COLUMN), "scratch"))["verdict"]
    assert sentence.startswith("+0.040 Dice [") and ", p(Holm) = .008, 8 subjects, " in sentence
    assert sentence.endswith("better than scratch")
    sentence = _pair(compare(_two_arms(COLUMN - gains, COLUMN), "scratch"))["verdict"]
    assert sentence.startswith("-0.040 Dice [") and sentence.endswith("worse than scratch")


@pytest.mark.parametrize("metric", METRICS[:3], ids=lambda metric: metric.name)
def test_a_sentence_gives_a_difference_as_the_table_beside_it_does(metric: Metric) -> None:
    gains = np.linspace(0.003, 0.014, len(COLUMN))[:, None]
    comparison = compare(_two_arms(COLUMN - gains, COLUMN, metric=metric.name), "scratch", resamples=FEW)
    sheet = pairs_sheet(comparison, metric)
    assert sheet is not None
    difference, interval = sheet.groups[0][1][0][1].split("\n")
    number, _, low_and_high = _pair(comparison)["verdict"].partition(f" {metric.words} ")
    assert number == difference
    assert low_and_high.startswith(interval.replace("+", ""))


def test_no_difference_seen_says_what_would_have_been_seen() -> None:
    gains = np.array([0.05, -0.04, 0.02, -0.03, 0.01, -0.02, 0.03, -0.01])[:, None]
    sentence = _pair(compare(_two_arms(COLUMN + gains, COLUMN), "scratch"))["verdict"]
    assert sentence.startswith("no difference seen: +0.001 Dice [")
    assert sentence.endswith("or more would have been seen in 80 % of such studies)")


def test_few_subjects_and_many_comparisons_say_that_nothing_could_be_seen() -> None:
    arms = {("Dataset001", arm, "r"): COLUMN[:6] + gain for arm, gain in (("A", 0), ("B", 0.1), ("C", 0.2), ("D", 0.3))}
    pairs = compare(cases_table(arms), "A", resamples=FEW).pairs
    assert (pairs["p"] == 0.03125).all()
    assert pairs["verdict"].str.endswith("6 subjects alone cannot pass the correction for 3 comparisons)").all()


def test_fewer_than_six_subjects_get_spread_and_no_word_on_significance() -> None:
    cases = cases_table(
        {
            ("Dataset001", arm, f"seed{seed}"): COLUMN[:5] + gain * (1 + seed)
            for arm, gain in (("scratch", 0.0), ("MAE", 0.01))
            for seed in range(3)
        }
    )
    comparison = compare(cases, "scratch", resamples=FEW)
    pair = _pair(comparison)
    assert (
        pair["verdict"] == "+0.020 Dice, 5 subjects, spread over seeds 0.010: too few independent subjects for a test"
    )
    assert pair[["low", "high", "p", "p_holm", "effect", "rank_biserial"]].isna().all()
    assert comparison.cells[["low", "high"]].isna().all(axis=None)
    assert any("fewer than 6 independent subjects" in note for note in comparison.notes)


def test_a_gain_no_larger_than_the_spread_over_seeds_is_said_to_be_so() -> None:
    gains = {"scratch": (0.0, 0.0), "MAE": (0.08, -0.04)}
    scores = {
        ("Dataset001", arm, f"seed{seed}"): np.tile(COLUMN, (2, 1)) + gain
        for arm, of_seeds in gains.items()
        for seed, gain in enumerate(of_seeds)
    }
    sentence = _pair(compare(cases_table(scores), "scratch", resamples=FEW))["verdict"]
    assert sentence.endswith("better than scratch in these runs, but seeds differ by as much")


def test_no_gain_is_claimed_where_the_mean_and_most_subjects_disagree() -> None:
    gains = np.array([-0.011, -0.012, -0.013, -0.014, -0.015, -0.016, -0.017, -0.018, -0.019, 0.4])[:, None]
    sentence = _pair(compare(_two_arms(0.5 + gains, np.full((10, 1), 0.5)), "scratch"))["verdict"]
    assert "better" not in sentence


# Notes and errors


def test_notes_say_whether_overlap_was_checked() -> None:
    cases = _two_arms(COLUMN, COLUMN)
    unchecked = "Overlap between pre-training and test data was not checked."
    assert unchecked in compare(cases, "scratch", resamples=FEW).notes
    notes = compare(cases, "scratch", resamples=FEW, overlap={"MAE": "none of 8 found", "scratch": None}).notes
    assert unchecked not in notes
    assert "Overlap between pre-training and test data, MAE: none of 8 found" in notes
    assert "Overlap between pre-training and test data was not checked for scratch." in notes


def test_without_a_control_there_are_means_and_ranks_and_no_pairs() -> None:
    comparison = compare(_three_datasets(), (), resamples=FEW)
    assert comparison.pairs.empty and comparison.cells["mean"].notna().all() and comparison.ranks["rank"].notna().all()


@pytest.mark.parametrize("control", ["MEA", ["scratch", "MEA"]])
def test_a_control_that_is_no_arm_is_refused_with_the_arms(control: object) -> None:
    with pytest.raises(UserError, match="scratch, MAE"):
        compare(_two_arms(COLUMN, COLUMN), control)  # type: ignore[arg-type]


def test_tables_that_contradict_themselves_are_refused() -> None:
    cases = _two_arms(COLUMN, COLUMN)
    with pytest.raises(UserError, match="stands twice"):
        compare(pd.concat([cases, cases.iloc[:1]]), "scratch")
    with pytest.raises(UserError, match="different subjects"):
        compare(cases.assign(subject=cases["arm"]), "scratch")
    with pytest.raises(UserError, match="empty"):
        compare(cases.iloc[:0], "scratch")
    with pytest.raises(UserError, match="no column voxels_reference"):
        compare(cases.drop(columns="voxels_reference"), "scratch")


def test_an_arm_alone_has_means_and_no_pairs() -> None:
    comparison = compare(cases_table({("Dataset001", "scratch", "r"): COLUMN}), "scratch", resamples=FEW)
    assert _cell(comparison, "scratch")["mean"] == pytest.approx(COLUMN.mean())
    assert comparison.pairs.empty and "verdict" in comparison.pairs
