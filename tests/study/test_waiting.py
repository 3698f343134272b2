"""A study waits for another machine that works, and not for one that is dead."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from nnssl_mae.study.runner import Resources, run_steps
from nnssl_mae.study.state import State
from nnssl_mae.study.waiting import Waiting
from tests.study.test_runner import counts, note


def claim_elsewhere(out: Path, name: str = "a") -> Path:
    State(out).prepare()
    file = out / "state" / "claims" / f"{name}.json"
    file.write_text(json.dumps({"host": "node17", "processes": [{"pid": 1, "since": "1"}]}))
    return file


def test_claim_of_a_dead_machine_is_said_and_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnssl_mae.study.runner._SECONDS_BETWEEN_LOOKS_AT_OTHERS", 0.1)
    file = claim_elsewhere(tmp_path)
    steps = [note("a"), note("b", needs=("a",)), note("c")]
    outcome = run_steps(steps, State(tmp_path), Resources(patience=0.5), Console(width=500))
    assert list(outcome.failed) == ["a"] and outcome.left == ("b",)
    assert "node17" in outcome.failed["a"] and str(file) in outcome.failed["a"]
    assert capsys.readouterr().out.count("a is held by another machine, node17") == 1
    assert counts(tmp_path, "abc") == [0, 0, 1] and file.exists()


def test_claim_that_is_renewed_is_waited_for(tmp_path: Path) -> None:
    file = claim_elsewhere(tmp_path)
    waiting = Waiting(State(tmp_path), patience=0.05)
    for second in range(3):
        os.utime(file, (second, second))  # of a clock that is wrong: only the change counts
        assert waiting.given_up("a") == ""
        time.sleep(0.06)
    assert "node17" in waiting.given_up("a")


def test_claims_of_this_machine_are_judged_by_their_processes(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.prepare()
    state.claim("a")
    waiting = Waiting(state, patience=0.0)
    assert waiting.given_up("a") == waiting.given_up("nobody") == waiting.words("a") == ""


def test_working_runner_renews_its_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnssl_mae.study.runner._SECONDS_BETWEEN_SIGNS", 0.1)
    monkeypatch.setenv("SLOW", "1")
    renewed: list[str] = []
    monkeypatch.setattr(State, "renew", lambda self, name: renewed.append(name))
    run_steps([note("a")], State(tmp_path), Resources(), Console(quiet=True))
    assert renewed[:2] == ["a", "a"]
