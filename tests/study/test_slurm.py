"""Scripts for Slurm: shell that parses, an array a level, each after the one before; no scheduler is called."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nnssl_mae.study.model import Arm, Slurm, StockArm, Study
from nnssl_mae.study.runner import Outcome, Resources, run_steps
from nnssl_mae.study.slurm import write_scripts
from nnssl_mae.study.state import State, statuses
from nnssl_mae.study.steps import Step, step_keys

STUDY = Study(
    name="S",
    datasets=(4,),
    arms={"stock": Arm(stock=StockArm())},
    epochs=5,
    slurm=Slurm(partition="gpu", time="4:00:00", at_once=2, lines=("--mem=32G",), setup=("source it's/bin/activate",)),
)


def steps(out: Path) -> list[Step]:
    write = ("python", "-c", "import sys, pathlib; pathlib.Path(sys.argv[1]).touch()")
    return [
        Step("first", "plan", (*write, "first"), makes=(Path("first"),)),
        *(Step(f"train_{n}", "train", (*write, n), needs=("first",), makes=(Path(n),), uses_gpu=True) for n in "ab"),
        Step("other", "plan", (*write, "other"), after=("first",), makes=(Path("other"),)),
        Step("compare", "compare", (*write, "end"), needs=("train_a", "train_b", "other"), makes=(Path("end"),)),
    ]


def scripts(out: Path, file: Path) -> dict[str, str]:
    some, state = steps(out), State(out)
    state.prepare()
    written = write_scripts(STUDY, some, statuses(some, step_keys(some), state), file, out)
    return {path.name: path.read_text() for path in written}


def test_scripts_parse_and_say_what_is_wanted(tmp_path: Path) -> None:
    out = tmp_path / "a folder's"
    found = scripts(out, tmp_path / "my study.yaml")
    assert list(found) == ["level_00.sh", "level_01_gpu.sh", "level_01.sh", "level_02.sh", "submit.sh"]
    study = STUDY.model_copy(update={"slurm": STUDY.slurm.model_copy(update={"setup": ()})})
    some, state = steps(out), State(out)
    for path in write_scripts(study, some, statuses(some, step_keys(some), state), tmp_path / "my study.yaml", out):
        subprocess.run(["bash", "-n", str(path)], check=True)
    gpu = found["level_01_gpu.sh"]
    for line in ("--array=0-1%2", "--gpus=1", "--partition=gpu", "--time=4:00:00", "--mem=32G"):
        assert f"#SBATCH {line}\n" in gpu
    assert "--gpus" not in found["level_01.sh"] and "source it's/bin/activate" in gpu


def test_submitting_chains_the_levels(tmp_path: Path) -> None:
    found = scripts(tmp_path / "out", tmp_path / "study.yaml")
    # A stand-in for sbatch notes how it is called and answers with a number.
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text('#!/bin/bash\necho "$@" >> calls\necho $(wc -l < calls)\n')
    (programs / "sbatch").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    submit = tmp_path / "out" / "slurm" / "submit.sh"
    subprocess.run(["bash", str(submit)], check=True, env=environment, cwd=tmp_path, capture_output=True)
    assert (submit.parent / "calls").read_text().splitlines() == [
        "--parsable level_00.sh",
        "--parsable --dependency=afterany:1 level_01_gpu.sh",
        "--parsable --dependency=afterany:1 level_01.sh",
        "--parsable --dependency=afterany:2:3 level_02.sh",
    ]
    assert "sbatch" not in "".join(text for name, text in found.items() if name != "submit.sh")


def test_names_of_logs_hold_no_patterns_of_slurm(tmp_path: Path) -> None:
    found = scripts(tmp_path / "50% of it", tmp_path / "study.yaml")
    (line,) = [line for line in found["level_00.sh"].splitlines() if "--output" in line]
    assert line.endswith("/50%%\\ of\\ it/logs/slurm_%A_%a.log")


def test_task_after_a_failed_one_refuses_and_its_neighbour_runs(tmp_path: Path) -> None:
    bad = ("python", "-c", "raise SystemExit(1)")
    some = [replace(step, command=bad) if step.name == "train_a" else step for step in steps(tmp_path)]

    def task(name: str) -> Outcome:
        return run_steps(some, State(tmp_path), Resources(), Console(quiet=True), only={name})

    assert task("first") == Outcome({}, ()) and list(task("train_a").failed) == ["train_a"]
    assert task("train_b") == task("other") == Outcome({}, ())
    assert task("compare") == Outcome({}, ("compare",))


def test_each_task_runs_its_own_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = STUDY.model_copy(update={"slurm": Slurm()})
    out, some = tmp_path / "out folder", steps(tmp_path)
    State(out).prepare()
    paths = write_scripts(study, some, statuses(some, step_keys(some), State(out)), tmp_path / "s.yaml", out)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "nnssl-mae").write_text('#!/bin/bash\nprintf "%s|" "$@"\n')
    (programs / "nnssl-mae").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1"}
    level = next(path for path in paths if path.name == "level_01_gpu.sh")
    said = subprocess.run(["bash", str(level)], check=True, env=environment, capture_output=True, text=True).stdout
    assert said == f"study|{tmp_path / 's.yaml'}|--out|{out}|--step|train_b|"


def test_done_steps_are_not_submitted_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_steps(steps(out), State(out), Resources(), Console(quiet=True), only={"first", "train_a", "other"})
    run_steps(steps(out), State(out), Resources(), Console(quiet=True), only={"train_a", "other"})
    found = scripts(out, tmp_path / "study.yaml")
    assert list(found) == ["level_00_gpu.sh", "level_01.sh", "submit.sh"]
    assert "train_b" in found["level_00_gpu.sh"] and "train_a" not in found["level_00_gpu.sh"]
