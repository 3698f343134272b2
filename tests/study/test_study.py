"""The verb, the estimate and the choice of rates."""

from __future__ import annotations

import json
import os
from pathlib import Path
from textwrap import dedent

import pytest
from typer.testing import CliRunner

from nnssl_mae.cli import study as _  # noqa: F401 (registers the verb)
from nnssl_mae.cli.app import app
from nnssl_mae.errors import UserError
from nnssl_mae.recipes.finetuning import load_finetune_recipe
from nnssl_mae.study.cost import estimate
from nnssl_mae.study.lineage import Candidate
from nnssl_mae.study.state import Record, State, Status
from nnssl_mae.study.steps import Step
from nnssl_mae.study.tuning import choose
from tests.study.datasets import set_folders, write_labelled, write_prepared
from tests.study.test_plan import TWO_ARMS


def summary(folder: Path, name: str, *dice: float) -> Path:
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"mean": {str(n): {"Dice": value} for n, value in enumerate(dice, 1)}}))
    return file


def test_best_candidate_becomes_a_recipe_that_adapt_reads(tmp_path: Path) -> None:
    tried = [
        Candidate("warmup", ("layer_decay=0.5", "peak_learning_rate=0.01")),
        Candidate("default", ("layer_decay=0.5", "peak_learning_rate=1e-05")),
    ]
    summaries = [
        [summary(tmp_path, "a", 0.9), summary(tmp_path, "b", 0.1)],
        [summary(tmp_path, "c", 0.7), summary(tmp_path, "d", 0.5)],
    ]
    assert "default" in choose(tmp_path, "mae", tried, summaries)
    recipe = load_finetune_recipe(str(tmp_path / "chosen" / "mae.yaml"), 20, 10)
    assert (recipe.schedule, recipe.peak_learning_rate, recipe.layer_decay) == ("default", 1e-5, 0.5)
    assert (recipe.epochs, recipe.iterations) == (20, 10)
    written = json.loads((tmp_path / "chosen" / "mae.json").read_text())
    assert [row["dice"] for row in written["tried"]] == [0.5, 0.6] and written["chosen"] == 1


def test_label_that_a_candidate_has_no_dice_of_counts_for_none(tmp_path: Path) -> None:
    tried = [Candidate("warmup", (f"peak_learning_rate={rate}",)) for rate in (1.0, 0.1)]
    nan = float("nan")
    # Label 2 is in no reference: NaN where nothing is predicted, 0 where something is.
    summaries = [[summary(tmp_path, "a", 0.5, nan)], [summary(tmp_path, "b", 0.9, 0.0)]]
    assert "0.1 (mean Dice 0.9000)" in choose(tmp_path, "mae", tried, summaries)
    for order in (1, -1):
        files = [[summary(tmp_path, "c", nan)], [summary(tmp_path, "d", 0.9)]]
        with pytest.raises(UserError, match=r"rate=1.0 of arm mae has no finite Dice"):
            choose(tmp_path, "mae", tried[::order], files[::order])


def test_candidate_without_a_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent"):
        choose(tmp_path, "mae", [Candidate("warmup")], [[tmp_path / "absent.json"]])


def test_cost_is_what_such_steps_took_here(tmp_path: Path) -> None:
    steps = [
        *(
            Step(f"t{n}", "train", ("x",), steps=size, clears=(Path(f"r{n}"),))
            for n, size in enumerate((100, 100, 400))
        ),
        Step("p", "preprocess", ("x",)),
    ]
    state = State(tmp_path)
    state.prepare()
    unknown = estimate(steps, {step.name: Status(False) for step in steps}, state)
    assert unknown.seconds is None and unknown.disk is None and unknown.kinds[0].training_steps == 600
    for name, seconds in (("t0", 50.0), ("p", 8.0)):
        kind = "train" if name == "t0" else "preprocess"
        state.write(name, Record("key", "x", kind, 100, started=0.0, ended=1.0, seconds=seconds, exit_code=0))
    (tmp_path / "r0").mkdir()
    (tmp_path / "r0" / "checkpoint").write_bytes(b"1" * 1000)
    done = {step.name: Status(step.name in ("t0", "p")) for step in steps}
    cost = estimate(steps, done, state)
    assert cost.seconds == pytest.approx(0.5 * 500) and cost.disk == 2000
    # A failed run has measured nothing.
    state.write("t0", Record("key", "x", "train", 100, started=0.0, ended=1.0, seconds=1.0, exit_code=1))
    assert estimate(steps, done, state).seconds is None


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_folders(tmp_path, monkeypatch)
    write_labelled(tmp_path, 4, "Tiny")
    write_prepared(tmp_path, 900, "Scans")
    path = tmp_path / "study.yaml"
    path.write_text(dedent(TWO_ARMS))
    return path


def test_dry_run_shows_commands_and_cost_and_writes_nothing(file: Path) -> None:
    before = sorted(file.parent.rglob("*"))
    result = CliRunner().invoke(app, ["study", str(file), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "nnUNet_results=results/seed_0 nnUNetv2_train 4 3d_fullres_mae 100" in result.output
    assert "--labelled '1 3'" in result.output and "unknown until the first" in result.output
    assert "5,000" in result.output  # four trainings of 1250 steps
    assert "not seeded" in result.output
    assert sorted(file.parent.rglob("*")) == before


def test_slurm_says_that_nothing_was_submitted(file: Path) -> None:
    result = CliRunner().invoke(app, ["study", str(file), "--slurm"])
    assert result.exit_code == 0 and "No scheduler was called" in result.output
    assert (file.parent / "study" / "slurm" / "submit.sh").is_file()


def test_failed_steps_are_listed_with_their_logs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Programs that only fail stand in for nnU-Net's.
    programs = file.parent / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("nnssl_mae.study.runner.resolve", lambda command: ["false"])
    result = CliRunner().invoke(app, ["study", str(file), "--run", "--out", str(file.parent / "out")])
    assert result.exit_code == 1
    assert "Failed: plan_004 (exit code 1)" in result.output and "logs/plan_004.log" in result.output
    assert "Not run" in result.output and "train_004_mae_n1r0_s0" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Say what to do"),
        (["--run", "--dry-run"], "Say what to do"),
        (["--step", "train_004_stok_n1r0_s0"], "did you mean 'train_004_stock_n1r0_s0'"),
        (["--work", "floor:005"], "no part of this study"),
    ],
)
def test_impossible_wishes(file: Path, words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["study", str(file), *words])
    assert isinstance(result.exception, UserError) and message in str(result.exception)
