"""The script that measures on a GPU. There is none here: the commands are stand-ins, and the script itself is real."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_report.sh"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Commands that write down what they were asked, and fail where FAILS says so."""
    body = '#!/usr/bin/env bash\necho "$(basename "$0") $*" | tee -a "$SAID"\n! [[ "$*" == *"${FAILS:-nothing}"* ]]\n'
    for name in ("nnssl-mae", "python"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(body)
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SAID": str(tmp_path / "said")}


def report(environment: dict[str, str], out: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, out, *parts], env=environment, capture_output=True, text=True, check=False)


def said(environment: dict[str, str]) -> list[str]:
    return Path(environment["SAID"]).read_text().splitlines()


def test_every_part_runs_once_and_leaves_its_file(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert report(environment, out).returncode == 0
    first = said(environment)
    assert any("bench step --device cuda --whole --patch 160 --batch 2 --amp fp16 --amp bf16" in line for line in first)
    assert any("pytest -q -m gpu" in line for line in first)
    assert report(environment, out).returncode == 0
    assert said(environment) == first, "nothing is done twice"
    assert {"tests.txt", "step.txt", "demo.txt"} <= {file.name for file in out.iterdir()}


def test_a_part_that_fails_is_shown_does_not_stop_the_others_and_is_tried_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    broken = report({**environment, "FAILS": "bench augment"}, out, "augment", "loader")
    assert broken.returncode == 1
    assert "bench augment" in broken.stderr
    assert {file.name for file in out.iterdir()} == {"augment.failed.txt", "loader.txt"}
    assert report(environment, out, "augment", "loader").returncode == 0
    assert {file.name for file in out.iterdir()} == {"augment.txt", "loader.txt"}


def test_an_unknown_part_is_told_with_those_there_are(environment: dict[str, str], tmp_path: Path) -> None:
    result = report(environment, tmp_path / "report", "stepp")
    assert result.returncode == 1
    assert "no part 'stepp'; take some of: doctor tests step" in result.stderr


def test_without_a_folder_it_says_how_to_call_it(environment: dict[str, str]) -> None:
    result = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "Usage: scripts/gpu_report.sh REPORT" in result.stderr
