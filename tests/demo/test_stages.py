"""Stages: finished ones are kept, changed ones repeated with all that follows, failures explained."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nnssl_mae.demo.results import PRETRAINED, SCRATCH
from nnssl_mae.demo.running import OnLine, Stage, read_record, run_stages, stage_environment
from nnssl_mae.demo.size import SMALL
from nnssl_mae.demo.stages import plan_stages, run_demo
from nnssl_mae.errors import UserError

# Appends its arguments to a file, so that a test sees how often and how a stage ran.
_NOTE = "import sys, pathlib; f = pathlib.Path(sys.argv[1]); f.open('a').write(' '.join(sys.argv[2:]) + ';')"


def note(name: str, *words: str) -> Stage:
    """A stage that leaves ``name.txt``, which it starts anew, and counts its runs in ``name.count``."""
    commands = (
        ("python", "-c", _NOTE, f"{name}.count", "run"),
        ("python", "-c", _NOTE, f"{name}.txt", *words),
    )
    return Stage(name, f"Stage {name}", commands, makes=(Path(f"{name}.txt"),))


def run(stages: list[Stage], out: Path) -> None:
    run_stages(stages, out, dict(os.environ), Console(quiet=True))


def counts(out: Path, names: str) -> list[int]:
    return [(out / f"{name}.count").read_text().count("run") for name in names]


def test_second_run_repeats_nothing(tmp_path: Path) -> None:
    stages = [note("a"), note("b")]
    run(stages, tmp_path)
    run(stages, tmp_path)
    assert counts(tmp_path, "ab") == [1, 1]
    record = read_record(tmp_path, stages[0])
    assert record is not None and record.seconds is not None


def test_change_repeats_the_stage_and_everything_after(tmp_path: Path) -> None:
    run([note("a"), note("b"), note("c")], tmp_path)
    run([note("a"), note("b", "new"), note("c")], tmp_path)
    assert counts(tmp_path, "abc") == [1, 2, 2]
    assert (tmp_path / "b.txt").read_text() == "new;"


def test_changed_input_counts_as_a_change(tmp_path: Path) -> None:
    run([replace(note("a"), inputs={"seed": 1}), note("b")], tmp_path)
    run([replace(note("a"), inputs={"seed": 2}), note("b")], tmp_path)
    assert counts(tmp_path, "ab") == [2, 2]


def test_missing_result_is_made_again(tmp_path: Path) -> None:
    stages = [note("a"), note("b"), note("c")]
    run(stages, tmp_path)
    (tmp_path / "b.txt").unlink()
    run(stages, tmp_path)
    assert counts(tmp_path, "abc") == [1, 2, 2]


def test_unreadable_marker_is_no_marker(tmp_path: Path) -> None:
    run([note("a")], tmp_path)
    (tmp_path / "stages" / "a.json").write_text("[")
    run([note("a")], tmp_path)
    assert counts(tmp_path, "a") == [2]


def test_failure_names_stage_log_and_last_lines(tmp_path: Path) -> None:
    bad = Stage("bad", "Bad stage", (("python", "-c", "print('why it failed'); raise SystemExit(3)"),))
    with pytest.raises(UserError) as caught:
        run([note("a"), bad, note("b")], tmp_path)
    message = str(caught.value)
    log = tmp_path / "logs" / "bad.log"
    assert "Bad stage" in message and str(log) in message and "why it failed" in message
    assert "exit code 3" in message and "why it failed" in log.read_text()
    assert not (tmp_path / "b.count").exists()
    # Mended, it goes on where it stopped.
    run([note("a"), replace(bad, commands=(("python", "-c", "print('well')"),)), note("b")], tmp_path)
    assert counts(tmp_path, "ab") == [1, 1]


def test_success_without_a_result_is_a_failure(tmp_path: Path) -> None:
    idle = Stage("idle", "Idle stage", (("python", "-c", "pass"),), makes=(Path("nothing.txt"),))
    with pytest.raises(UserError, match=r"without writing nothing\.txt"):
        run([idle], tmp_path)


def test_interrupted_stage_is_continued_with_its_own_argument(tmp_path: Path) -> None:
    program = "import sys, pathlib; pathlib.Path('r').mkdir(exist_ok=True); pathlib.Path('r/half').touch(); "
    ending = "sys.exit(0 if '--c' in sys.argv else 1)"
    stage = Stage("r", "Resumes", (("python", "-c", program + ending),), makes=(Path("r"),), resume=("--c",))
    with pytest.raises(UserError):
        run([stage], tmp_path)
    run([stage], tmp_path)
    assert read_record(tmp_path, stage) is not None and (tmp_path / "r" / "half").exists()
    assert "--c" in (tmp_path / "logs" / "r.log").read_text()


def test_work_reports_lines_and_redrawn_lines_are_lines(tmp_path: Path) -> None:
    def work(on_line: OnLine) -> None:
        on_line("one of [2]")

    bar = Stage("bar", "Bar", (("python", "-c", "print('10%\\r20%\\r30%')"),))
    run([Stage("work", "Work", work=work), bar], tmp_path)
    assert (tmp_path / "logs" / "work.log").read_text() == "one of [2]\n"
    assert (tmp_path / "logs" / "bar.log").read_text().splitlines()[1:] == ["10%", "20%", "30%"]


def test_environment_keeps_nnunet_inside_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    environment = stage_environment(tmp_path, 2)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert environment[variable] == str(tmp_path / variable)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE" and "OMP_NUM_THREADS" not in environment


def test_plan_runs_public_commands_and_treats_both_arms_alike(tmp_path: Path) -> None:
    stages = plan_stages(tmp_path, "cpu", SMALL)
    commands = [command for stage in stages for command in stage.commands]
    assert {command[0] for command in commands} == {
        "nnssl-mae",
        "nnUNetv2_train",
        "nnUNetv2_preprocess",
        "nnUNetv2_predict",
    }
    assert not any(str(tmp_path) in word for command in commands for word in command)
    treated, control = (
        [command for command in commands if arm.plans in command and command[0] != "nnUNetv2_preprocess"]
        for arm in (PRETRAINED, SCRATCH)
    )
    renamed = {SCRATCH.plans: PRETRAINED.plans, "predictions/scratch": "predictions/pretrained"}
    alike = [tuple(renamed.get(word, word) for word in command if word != "--from-scratch") for command in control]
    assert len(treated) == 3 and alike == treated


def test_other_peoples_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "precious.nii.gz").write_bytes(b"1")
    with pytest.raises(UserError, match="holds other files"):
        run_demo(tmp_path, "cpu", False, Console(quiet=True))
    assert [p.name for p in tmp_path.iterdir()] == ["scans"]


def test_unknown_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device tpu"):
        run_demo(tmp_path / "new", "tpu", False, Console(quiet=True))
    assert not (tmp_path / "new").exists()
