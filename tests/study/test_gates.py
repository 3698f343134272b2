"""Gates say beside the numbers what keeps them from counting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.study.gates import Gate, in_words, judge, read_cases, write_gates
from nnssl_mae.study.model import Study
from nnssl_mae.study.reading import parse_study
from tests.study.datasets import set_folders, write_labelled, write_prepared

ARMS = {"mae": {"recipe": "smoke"}, "scratch": {"scratch": "mae"}}


def study(**changes: Any) -> Study:
    content = {"name": "S", "datasets": [4], "arms": ARMS, "epochs": 5, "pretraining": {"dataset": 900}, **changes}
    return parse_study(content, "study.yaml")


def cases(
    subjects: int = 12, floor: float = 0.3, spread: float = 0.01, arms: tuple[str, ...] = ("mae", "scratch")
) -> pandas.DataFrame:
    """Dice .6 for every arm but the floor; ``spread`` between subjects, in ``mae`` only."""
    rng = np.random.default_rng(0)
    rows = []
    for subject in range(subjects):
        for arm in (*arms, "floor"):
            dice = floor if arm == "floor" else 0.6 + (spread * rng.standard_normal() if arm == "mae" else 0)
            for replicate in ("seed_0", "seed_1"):
                rows.append(
                    {"dataset": "Dataset004_T", "labelled": 1, "arm": arm, "replicate": replicate, "fold": "100",
                     "subject": f"s{subject}", "case": f"c{subject}", "label": "one", "dice": dice}
                )  # fmt: skip
    return pandas.DataFrame(rows)


def gates(wanted: Study, table: pandas.DataFrame, word: str) -> list[Gate]:
    return [gate for gate in judge(wanted, table) if word in gate.name]


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_folders(tmp_path, monkeypatch)


def test_control_must_stand_above_the_floor() -> None:
    assert [gate.is_met for gate in gates(study(), cases(), "floor")] == [True]
    (below,) = gates(study(), cases(floor=0.65), "floor")
    assert below.is_met is False and "-0.050 Dice" in below.sentence
    (few,) = gates(study(), cases(subjects=3), "floor")
    assert few.is_met is None and "too few" in few.sentence
    assert gates(study(floor=False), cases(), "floor")[0].is_met is None


def test_spread_decides_how_many_subjects_are_needed() -> None:
    (narrow,) = gates(study(), cases(spread=0.005), "enough subjects")
    assert narrow.is_met is True
    (wide,) = gates(study(), cases(spread=0.05), "enough subjects")
    assert wide.is_met is False and "there are 12" in wide.sentence and "mae - scratch" in wide.sentence
    assert gates(study(difference=0.1), cases(spread=0.05), "enough subjects")[0].is_met is True


def test_seeds_and_tuning() -> None:
    assert gates(study(), cases(), "pre-training seeds")[0].is_met is True
    one = study(pretraining={"dataset": 900, "seeds": [0]}, seeds=[0])
    assert gates(one, cases(), "pre-training seeds")[0].is_met is False
    assert gates(one, cases(), "repetitions")[0].is_met is False
    checkpoint = study(arms={"given": {"checkpoint": "hf://owner/name"}, "scratch": {"scratch": "given"}})
    assert [gate.is_met for gate in gates(checkpoint, cases(), "pre-training seeds")] == [False]
    assert gates(study(), cases(), "rates chosen")[0].is_met is False
    assert gates(study(tuning={"dataset": 5}), cases(), "rates chosen")[0].is_met is True


def test_overlap_counts_as_checked_only_where_prepare_did_it(tmp_path: Path) -> None:
    (unknown,) = gates(study(), cases(), "overlap")
    assert unknown.is_met is False and "dataset 4" in unknown.sentence
    write_prepared(tmp_path, 900, "Scans", left_out=(4,))
    assert gates(study(), cases(), "overlap")[0].is_met is True
    assert gates(study(datasets=[4, 5]), cases(), "overlap")[0].is_met is False


def test_one_candidate_is_no_choice() -> None:
    one = {"dataset": 5, "learning_rates": [0.01]}
    assert gates(study(tuning=one), cases(), "rates chosen")[0].is_met is False
    two = {**one, "schedules": ["warmup", "default"]}
    assert gates(study(tuning=two), cases(), "rates chosen")[0].is_met is True


def test_overlap_with_tuning_and_other_folders_is_not_passed_over(tmp_path: Path) -> None:
    write_prepared(tmp_path, 900, "Scans", left_out=(4,))
    tuned = gates(study(tuning={"dataset": 5}), cases(), "overlap")
    assert [gate.is_met for gate in tuned] == [False] and "dataset 5" in tuned[0].sentence
    write_labelled(tmp_path, 4, "Tiny", tests=1)
    assert [gate.is_met for gate in gates(study(test={4: {}}), cases(), "overlap")] == [True]
    for folder in (str(tmp_path), "elsewhere", "../../elsewhere"):
        found = gates(study(test={4: {"images": folder}}), cases(), "overlap")
        assert [gate.is_met for gate in found] == [True, None] and folder in found[1].sentence


def test_tables_of_earlier_comparisons_are_not_judged(tmp_path: Path) -> None:
    stale, now = tmp_path / "comparison", tmp_path / "comparison" / "Dataset004_T"
    now.mkdir(parents=True)
    cases(floor=0.3).to_csv(stale / "cases.csv", index=False)
    cases(floor=0.9).to_csv(now / "cases.csv", index=False)
    write_gates(study(), [Path("comparison/Dataset004_T")], tmp_path)
    judged = json.loads((stale / "gates.json").read_text())
    assert [gate["is_met"] for gate in judged if "floor" in gate["name"]] == [False]


def test_gates_are_written_from_the_tables_of_the_comparison(tmp_path: Path) -> None:
    folder = Path("comparison")
    with pytest.raises(UserError, match=r"no cases\.csv"):
        read_cases([tmp_path / folder])
    (tmp_path / folder).mkdir()
    table = cases()
    table.loc[table["labelled"] == 1, "labelled"] = pandas.NA
    table.to_csv(tmp_path / "comparison" / "cases.csv", index=False)
    said = write_gates(study(), [folder], tmp_path)
    assert "all labels" in said and "NOT MET" in said and (tmp_path / "comparison" / "gates.json").is_file()
    assert in_words([Gate("a", None, "b")]) == "not known  a: b"
