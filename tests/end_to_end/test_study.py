"""Second tier: a whole study through the real commands, killed in the middle; a stock arm among its arms."""

from __future__ import annotations

import json
import os
import signal
import time

import pandas
import pytest
import yaml

from tests.end_to_end.shell import Shell
from tests.tiny_scans import write_labelled, write_unlabelled

pytestmark = [pytest.mark.end_to_end, pytest.mark.soak]
DATASET = "Dataset004_Tiny"
SMALL = {
    "data.spacing": [4.0, 4.0, 4.0], "network.patch_size": [32, 32, 32], "network.batch_size": 2,
    "network.base_features": 4, "network.max_features": 16, "network.blocks_per_stage": [1, 1, 1],
    "network.max_stages": 3, "masking.block_size": 8, "schedule.epochs": 2, "schedule.iterations": 2,
    "schedule.validation_cases": 5, "schedule.preview_every": 2,
}  # fmt: skip
STUDY = {
    "name": "tiny",
    "datasets": [4],
    "pretraining": {"dataset": 900, "scans": ["scans"], "seeds": [0, 1], "set": SMALL},
    "arms": {
        "stock": {"stock": {"planner": "nnUNetPlannerResEncM", "gpu_memory": 0.01}},
        "scratch": {"scratch": "mae"},
        "mae": {"recipe": "mae"},
    },
    "controls": ["stock", "scratch"],
    "labelled": [1],
    "seeds": [0, 1],
    "epochs": 5,
    "iterations": 50,
    "test": {4: {"images": "imagesTs", "references": "labelsTs"}},
    "tuning": {"dataset": 5, "learning_rates": [1e-2, 1e-3]},
    "device": "cpu",
    "processes": 2,
    "environment": {"nnUNet_n_proc_DA": 1, "nnUNet_def_n_proc": 2, "OMP_WAIT_POLICY": "PASSIVE"},
}


def records(shell: Shell) -> dict[str, dict[str, object]]:
    """Of each step that has ended well."""
    found = {path.stem: json.loads(path.read_text()) for path in (shell.folder / "study" / "state").glob("*.json")}
    return {name: record for name, record in found.items() if record["exit_code"] == 0}


def test_a_study_is_killed_goes_on_and_compares_with_stock(tmp_path_factory: pytest.TempPathFactory) -> None:
    shell = Shell(tmp_path_factory.mktemp("study"))
    write_unlabelled(shell.folder / "scans", count=8)
    write_labelled(shell.folder / "raw", 4, "Tiny", count=6, tests=2)
    write_labelled(shell.folder / "raw", 5, "Tuning", count=5)
    (shell.folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    process = shell.start("nnssl-mae", "study", "study.yaml", "--run")
    while process.poll() is None and not any(name.startswith("train_") for name in records(shell)):
        time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = records(shell)
    assert before, "it ended before it was killed"

    said = shell("nnssl-mae", "study", "study.yaml", "--run")
    after = records(shell)
    assert all(after[name] == record for name, record in before.items()), "what was done is not done again"
    comparison = shell.folder / "study" / "comparison" / DATASET
    cases = pandas.read_csv(comparison / "cases.csv")
    assert set(cases["arm"]) == {"stock", "scratch", "mae", "floor"}
    runs = cases.groupby("arm")[["replicate", "labelled"]].apply(lambda rows: len(rows.drop_duplicates()))
    assert runs.to_dict() == dict.fromkeys(runs.index, 2), "two seeds of every arm"
    assert pandas.read_csv(comparison / "holes.csv").empty
    assert "NOT MET" in said and "floor" in said
    learning = pandas.read_csv(shell.folder / "study" / "learning" / "convergence.csv")
    assert learning.groupby("arm")["step"].max().to_dict() == {"stock": 250, "scratch": 250, "mae": 250}
    overlap = json.loads((comparison / "measured.json").read_text())["overlap"]
    assert "kept out" in overlap["mae"] and "from scratch" in overlap["scratch"] and overlap["stock"] is None

    again = shell("nnssl-mae", "study", "study.yaml", "--run")
    assert records(shell) == after and "compare" in again
