"""What the doctor concludes from hand-made values: no real environment is looked at here."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from nnssl_mae.doctor import findings as doctor
from nnssl_mae.doctor import machine, report
from nnssl_mae.doctor.findings import Finding

NMS_ERROR = "RuntimeError: operator torchvision::nms does not exist"


def printed(finding: Finding, width: int = 80) -> str:
    output = io.StringIO()
    report.print_finding(Console(file=output, width=width), finding)
    return output.getvalue()


@pytest.mark.parametrize(
    ("version", "level"),
    [("3.9.18", "problem"), ("3.10.0", "ok"), ("3.11.7", "ok"), ("3.14.1", "ok")],
)
def test_python_3_10_is_the_oldest(version: str, level: str) -> None:
    assert doctor.judge_python(version).level == level


@pytest.mark.parametrize(
    ("version", "level"),
    [
        (None, "problem"),
        ("2.2.2+cu118", "problem"),
        ("2.5.1+cu124", "problem"),
        ("2.6.0", "warning"),
        ("2.8.0+cu128", "warning"),
        ("2.10.0", "ok"),
        ("2.15.0+cu132", "ok"),
    ],
)
def test_torch(version: str | None, level: str) -> None:
    assert doctor.judge_torch(version).level == level


@pytest.mark.parametrize("version", ["2.9.0", "2.9.1+cu128"])
def test_known_bad_torch_2_9_is_named(version: str) -> None:
    finding = doctor.judge_torch(version)
    assert finding.level == "warning"
    assert "slower" in finding.advice
    assert "pip install" in finding.advice


def test_torch_that_cannot_be_imported_is_reported_with_its_error() -> None:
    finding = doctor.judge_torch("2.13.0", "OSError: libcudart.so.13: cannot open shared object file")
    assert finding.level == "problem"
    assert "libcudart.so.13" in finding.advice


@pytest.mark.parametrize(
    ("torch", "torchvision", "requires"),
    [
        ("2.13.0+cpu", "0.28.0+cpu", "torch==2.13.0"),
        ("2.15.0+cu132", "0.29.2+cu132", "torch (>=2.14.0)"),
        ("2.8.0", "0.23.0", "torch==2.8.0"),  # macOS: no build label
        ("2.8.0a0+gitabc", "0.23.0", None),  # built by hand: asks nothing of torch
    ],
)
def test_matching_torchvision_is_fine(torch: str, torchvision: str, requires: str | None) -> None:
    assert doctor.judge_torchvision(torch, torchvision, requires).level == "ok"


@pytest.mark.parametrize(
    ("torch", "torchvision", "requires", "named"),
    [
        ("2.13.0+cpu", "0.28.0+cu130", "torch==2.13.0", "a CUDA build beside a CPU build"),
        ("2.13.0+cu130", "0.28.0+cpu", "torch==2.13.0", "a CPU build beside a CUDA build"),
        ("2.12.0+cu130", "0.28.0+cu130", "torch==2.13.0", "made for torch ==2.13.0"),
        ("2.13.0+cu130", "0.29.2+cu130", "torch (>=2.14.0)", "made for torch >=2.14.0"),
    ],
)
def test_known_bad_torchvision_is_named(torch: str, torchvision: str, requires: str, named: str) -> None:
    crashing = doctor.judge_torchvision(torch, torchvision, requires, NMS_ERROR)
    assert crashing.level == "problem"
    assert named in crashing.value
    assert NMS_ERROR in crashing.advice
    assert "every `-tr` other than nnUNetTrainer" in crashing.advice
    assert "pip install torch torchvision" in crashing.advice

    working = doctor.judge_torchvision(torch, torchvision, requires)
    assert working.level == "warning"
    assert named in working.value


def test_torchvision_missing_or_broken_in_another_way() -> None:
    assert doctor.judge_torchvision("2.15.0", None, None).level == "problem"
    other = doctor.judge_torchvision("2.15.0", "0.29.2", "torch>=2.14", "ImportError: libjpeg.so.8")
    assert other.level == "problem"
    assert "libjpeg.so.8" in other.advice
    assert NMS_ERROR in other.advice


def test_a_machine_without_gpu_gets_a_note_and_no_warning() -> None:
    finding = doctor.judge_cuda("13.2", [], driver_present=False)
    assert finding.level == "ok"
    assert "No GPU" in finding.advice


def test_cuda() -> None:
    gpus = doctor.judge_cuda("13.2", ["H200", "H200", "A100"], driver_present=True)
    assert gpus.level == "ok"
    assert "2 x H200, 1 x A100" in gpus.value
    cpu_build = doctor.judge_cuda(None, [], driver_present=True)
    assert cpu_build.level == "warning"
    assert "pip install torch torchvision" in cpu_build.advice
    assert doctor.judge_cuda("13.2", [], driver_present=True).level == "warning"
    failed = doctor.judge_cuda("13.2", [], driver_present=True, query_error="CUDA error: ECC")
    assert failed.level == "problem"
    assert "CUDA error: ECC" in failed.advice


@pytest.mark.parametrize(
    ("version", "shown", "level"),
    [
        (8902, "8.9.2", "ok"),
        (90701, "9.7.1", "ok"),
        (90800, "9.8.0", "warning"),
        (90900, "9.9.0", "warning"),
        (91002, "9.10.2", "warning"),
        (91100, "9.11.0", "ok"),
        (92600, "9.26.0", "ok"),
    ],
)
def test_known_bad_cudnn_is_named(version: int, shown: str, level: str) -> None:
    finding = doctor.judge_cudnn(version, gpu_available=True)
    assert (finding.level, finding.value) == (level, shown)
    assert ("bf16" in finding.advice) == (level == "warning")


def test_cudnn_does_not_matter_without_a_gpu() -> None:
    assert doctor.judge_cudnn(91002, gpu_available=False).level == "ok"
    assert doctor.judge_cudnn(None, gpu_available=False).level == "ok"
    assert doctor.judge_cudnn(None, gpu_available=True).level == "warning"


def test_cudnn_that_torch_refuses_is_reported_with_its_error() -> None:
    finding = doctor.judge_cudnn(None, gpu_available=True, query_error="cuDNN version incompatibility")
    assert finding.level == "problem"
    assert "incompatibility" in finding.advice


@pytest.mark.parametrize(
    ("version", "level"),
    [
        (None, "problem"),
        ("2.6.2", "problem"),
        ("2.8.0", "problem"),
        ("2.8.1", "ok"),
        ("2.8.2", "warning"),
        ("2.9.0", "warning"),
        ("3.0.0", "problem"),
        ("not a version", "problem"),
    ],
)
def test_nnunet(version: str | None, level: str) -> None:
    finding = doctor.judge_nnunet(version)
    assert finding.level == level
    assert level == "ok" or 'pip install "nnunetv2==2.8.1"' in finding.advice


@pytest.mark.parametrize(
    ("version", "level"), [(None, "problem"), ("0.2.1", "problem"), ("0.3.2", "ok"), ("0.3.6", "ok")]
)
def test_batchgeneratorsv2(version: str | None, level: str) -> None:
    assert doctor.judge_batchgeneratorsv2(version).level == level


def test_folder(tmp_path: Path) -> None:
    a_file = tmp_path / "a_file"
    a_file.touch()
    assert doctor.judge_folder("nnUNet_raw", str(tmp_path)).level == "ok"
    for value in (None, ""):
        finding = doctor.judge_folder("nnUNet_raw", value)
        assert (finding.level, finding.value) == ("problem", "not set")
        assert "export nnUNet_raw=" in finding.advice
    missing = doctor.judge_folder("nnUNet_raw", str(tmp_path / "not there"))
    assert missing.level == "problem"
    assert f"mkdir -p '{tmp_path / 'not there'}'" in missing.advice
    assert doctor.judge_folder("nnUNet_raw", str(a_file)).level == "problem"


def test_a_read_only_folder_is_fine_for_raw_data_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so chmod would prove nothing
    assert doctor.judge_folder("nnUNet_raw", str(tmp_path)).level == "ok"
    assert doctor.judge_folder("nnUNet_results", str(tmp_path)).level == "problem"


def test_little_disk_space_is_a_warning() -> None:
    assert doctor.judge_free_disk("nnUNet_results", 19_900_000_000).level == "warning"
    assert doctor.judge_free_disk("nnUNet_results", 20_000_000_000).level == "ok"


PLUGIN = Path("/site-packages/nnssl_mae/nnunet_plugin")
USERS_AND_OURS = os.pathsep.join(["/home/me/trainers", str(PLUGIN)])


def test_registration() -> None:
    read = doctor.judge_registration(True, {}, PLUGIN)
    assert read.level == "ok"
    exported = doctor.judge_registration(False, {"nnUNet_extTrainer": USERS_AND_OURS}, PLUGIN)
    assert exported.level == "ok"
    assert exported.value != read.value
    missing = doctor.judge_registration(False, {"nnUNet_extTrainer": "/home/me/trainers"}, PLUGIN)
    assert missing.level == "problem"
    assert f'export nnUNet_extTrainer="{USERS_AND_OURS}"' in missing.advice


def test_the_line_to_export_keeps_the_users_folders_and_adds_ours_once() -> None:
    assert doctor.export_line({}, PLUGIN) == f'export nnUNet_extTrainer="{PLUGIN}"'
    assert doctor.export_line({"nnUNet_extTrainer": ""}, PLUGIN) == f'export nnUNet_extTrainer="{PLUGIN}"'
    for value in ("/home/me/trainers", USERS_AND_OURS):
        line = doctor.export_line({"nnUNet_extTrainer": value}, PLUGIN)
        assert line == f'export nnUNet_extTrainer="{USERS_AND_OURS}"'


def test_trainer_search() -> None:
    ours = {
        "nnUNetTrainerMAE": "nnssl_mae.training.mae_trainer",
        "nnUNetTrainerMAEFinetune": "nnssl_mae.training.finetune_trainer",
    }
    assert doctor.judge_trainers(ours, None, {}, PLUGIN).level == "ok"
    shadowed = doctor.judge_trainers({**ours, "nnUNetTrainerMAE": "my_trainers"}, None, {}, PLUGIN)
    assert shadowed.level == "warning"
    assert "nnUNetTrainerMAE from my_trainers" in shadowed.advice


def test_failed_trainer_search_gives_the_fitting_advice() -> None:
    not_found = "RuntimeError: Could not find requested nnunet trainer nnUNetTrainerMAE"
    unknown = doctor.judge_trainers({}, not_found, {"nnUNet_extTrainer": "/home/me/trainers"}, PLUGIN)
    assert unknown.level == "problem"
    assert f'export nnUNet_extTrainer="{USERS_AND_OURS}"' in unknown.advice

    known = doctor.judge_trainers({}, "ImportError: no x", {"nnUNet_extTrainer": USERS_AND_OURS}, PLUGIN)
    assert known.level == "problem"
    assert "ImportError: no x" in known.advice
    assert "export" not in known.advice

    torchvision = doctor.judge_trainers({}, NMS_ERROR, {}, PLUGIN)
    assert torchvision.level == "problem"
    assert "Install torch and torchvision" in torchvision.advice
    assert "export" not in torchvision.advice


GOOD = Finding("ok", "torch", "2.15.0")
DOUBTFUL = Finding("warning", "cuDNN", "9.9.0", "Do something.")
BROKEN = Finding("problem", "nnunetv2", "not installed", "Install it.")


@pytest.mark.parametrize(
    ("findings", "exit_code", "named"),
    [
        ([GOOD], 0, "everything is in order"),
        ([GOOD, DOUBTFUL], 0, "cuDNN"),
        ([BROKEN, GOOD, DOUBTFUL], 1, "nnunetv2"),
    ],
)
def test_verdict(findings: list[Finding], exit_code: int, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "collect_findings", lambda: findings)
    output = io.StringIO()
    assert report.run_doctor(Console(file=output, width=80)) == exit_code
    lines = output.getvalue().splitlines()
    assert named in lines[-1]
    assert len([line for line in lines if line.startswith(("ok", "warning", "problem"))]) == len(findings)


def test_printing_keeps_every_word_within_80_columns_and_every_command_whole() -> None:
    command = "    export nnUNet_extTrainer=" + "/a/very/long/path" * 10
    sentence = "Some advice which is longer than one line of a terminal with eighty columns. " * 3
    text = printed(Finding("problem", "trainer search", "failed", f"{sentence}\n{command}"))
    assert command.strip() in text
    assert " ".join(sentence.split()) in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines() if "export" not in line)


def test_piped_output_has_no_colour_codes() -> None:
    assert "\x1b" not in printed(BROKEN)


def test_errors_while_looking_become_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "executable", "/not/an/interpreter")
    modules, error = machine._look_up_trainers()
    assert modules == {}
    assert error is not None
    assert "/not/an/interpreter" in error
