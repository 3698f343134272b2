"""The runner: killed studies go on, changes repeat what depends on them, failures stay where they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nnssl_mae.study.runner import Outcome, Resources, run_steps
from nnssl_mae.study.state import State, statuses
from nnssl_mae.study.steps import Step, step_keys

# Leaves NAME.txt with its further arguments and notes in NAME.count that it ran.
_NOTE = (
    "import sys, os, pathlib, time; name = sys.argv[1]; "
    "pathlib.Path(name + '.count').open('a').write('run '); time.sleep(float(os.environ.get('SLOW', 0))); "
    "pathlib.Path(name + '.txt').write_text(' '.join(sys.argv[2:]))"
)


def note(name: str, *words: str, needs: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Step:
    command = ("python", "-c", _NOTE, name, *words)
    return Step(name, "note", command, needs=needs, after=after, makes=(Path(f"{name}.txt"),))


def run(steps: list[Step], out: Path, resources: Resources = Resources(), only: set[str] | None = None) -> Outcome:
    return run_steps(steps, State(out), resources, Console(quiet=True), only)


def counts(out: Path, names: str) -> list[int]:
    files = [out / f"{name}.count" for name in names]
    return [file.read_text().count("run") if file.exists() else 0 for file in files]


def test_second_run_repeats_nothing(tmp_path: Path) -> None:
    steps = [note("a"), note("b", needs=("a",))]
    assert run(steps, tmp_path) == Outcome({}, ())
    run(steps, tmp_path)
    assert counts(tmp_path, "ab") == [1, 1]


def test_change_repeats_only_what_depends_on_it(tmp_path: Path) -> None:
    run([note("a"), note("b"), note("c", needs=("a",)), note("d", needs=("b",)), note("e", after=("a",))], tmp_path)
    changed = [note("a", "new"), note("b"), note("c", needs=("a",)), note("d", needs=("b",)), note("e", after=("a",))]
    run(changed, tmp_path)
    assert counts(tmp_path, "abcde") == [2, 1, 2, 1, 1]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_changed_input_counts_as_a_change_but_words_aside_do_not(tmp_path: Path) -> None:
    run([replace(note("a"), inputs={"labels": 1}, aside=("-np", "2"))], tmp_path)
    run([replace(note("a"), inputs={"labels": 1}, aside=("-np", "4"))], tmp_path)
    assert counts(tmp_path, "a") == [1]
    run([replace(note("a"), inputs={"labels": 3}, aside=("-np", "4"))], tmp_path)
    assert counts(tmp_path, "a") == [2]


def test_lost_output_is_made_again_and_what_needs_it_too(tmp_path: Path) -> None:
    steps = [note("a"), note("b", needs=("a",)), note("c", after=("a",))]
    run(steps, tmp_path)
    (tmp_path / "a.txt").unlink()
    run(steps, tmp_path)
    assert counts(tmp_path, "abc") == [2, 2, 1]
    run(steps, tmp_path)
    assert counts(tmp_path, "abc") == [2, 2, 1]


def test_lost_files_that_only_serve_finished_steps_are_not_missed(tmp_path: Path) -> None:
    passing = replace(note("a"), is_passing=True)
    run([passing, note("b", needs=("a",))], tmp_path)
    (tmp_path / "a.txt").unlink()
    run([passing, note("b", needs=("a",))], tmp_path)
    assert counts(tmp_path, "ab") == [1, 1]
    # A new step needs them: they are made again, and the finished step stays.
    run([passing, note("b", needs=("a",)), note("c", needs=("a",))], tmp_path)
    run([passing, note("b", needs=("a",)), note("c", needs=("a",))], tmp_path)
    assert counts(tmp_path, "abc") == [2, 1, 1]


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_broken_remake_of_lost_files_repeats_no_finished_step(tmp_path: Path, how: str) -> None:
    passing, finished = replace(note("a"), is_passing=True), note("b", needs=("a",))
    run([passing, finished], tmp_path)
    (tmp_path / "a.txt").unlink()
    state = State(tmp_path)
    record = state.record("a")
    assert record is not None
    ended = {"ended": None, "exit_code": None} if how == "killed" else {"exit_code": 1}
    state.write("a", replace(record, started=time.time(), **ended))
    steps = [passing, finished, note("c", needs=("a",))]
    assert statuses(steps, step_keys(steps), state)["b"].is_done
    run(steps, tmp_path)
    run(steps, tmp_path)
    assert counts(tmp_path, "abc") == [2, 1, 1]


def test_failed_remake_keeps_the_time_of_the_first_files(tmp_path: Path) -> None:
    program = "import sys, pathlib; pathlib.Path('bad').exists() and sys.exit(1); pathlib.Path('a.txt').touch()"
    passing = Step("a", "note", ("python", "-c", program), makes=(Path("a.txt"),), is_passing=True)
    finished = note("b", needs=("a",))
    run([passing, finished], tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "bad").touch()
    steps = [passing, finished, note("c", needs=("a",))]
    assert run(steps, tmp_path).failed == {"a": "exit code 1"}
    (tmp_path / "bad").unlink()
    assert run(steps, tmp_path) == Outcome({}, ())
    assert counts(tmp_path, "bc") == [1, 1]


def test_file_that_another_study_has_changed_is_not_used_or_replaced(tmp_path: Path) -> None:
    plans = tmp_path / "a.txt"
    passing = replace(note("a", "mine"), is_passing=True, shared=(plans,))
    steps = [passing, note("b", needs=("a",))]
    run(steps, tmp_path)
    plans.write_text("of another study")
    assert run(steps, tmp_path) == Outcome({}, ()), "what is finished does not need it"
    for first in (passing, replace(passing, command=(*passing.command, "changed"))):
        outcome = run([first, *steps[1:], note("c", needs=("a",))], tmp_path)
        assert "changed by somebody else" in outcome.failed["a"] and str(plans) in outcome.failed["a"]
        assert "c" in outcome.left and plans.read_text() == "of another study"
    plans.unlink()
    assert run([*steps, note("c", needs=("a",))], tmp_path) == Outcome({}, ())
    assert plans.read_text() == "mine"


def test_result_is_sealed_before_it_is_looked_at_and_unsealed_before_it_is_made(tmp_path: Path) -> None:
    seal = tmp_path / "seal"
    step = replace(
        note("a"), unseal=lambda: seal.unlink(missing_ok=True), seal=seal.touch,
        proof=lambda: "" if seal.exists() else "the seal",
    )  # fmt: skip
    assert run([step], tmp_path) == Outcome({}, ())
    bad = replace(step, command=("python", "-c", "raise SystemExit(2)"))
    assert run([bad], tmp_path).failed == {"a": "exit code 2"} and not seal.exists()


def test_resumed_step_is_mended_first(tmp_path: Path) -> None:
    def mend(out: Path) -> None:
        (out / "mended").touch()

    step = replace(note("a"), mend=mend)
    run([step], tmp_path)
    assert not (tmp_path / "mended").exists()
    state = State(tmp_path)
    record = state.record("a")
    assert record is not None
    state.write("a", replace(record, ended=None, exit_code=None))
    run([step], tmp_path)
    assert (tmp_path / "mended").exists()


def test_failure_stops_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    bad = Step("bad", "note", ("python", "-c", "print('why it failed'); raise SystemExit(3)"))
    steps = [bad, note("b", needs=("bad",)), note("c", needs=("b",)), note("d"), note("e", after=("bad",))]
    outcome = run(steps, tmp_path)
    assert outcome.failed == {"bad": "exit code 3"} and outcome.left == ("b", "c", "e")
    assert counts(tmp_path, "bcde") == [0, 0, 1, 0]
    assert "why it failed" in (tmp_path / "logs" / "bad.log").read_text()
    # Mended, the study goes on.
    mended = [replace(bad, command=("python", "-c", "print('well')")), *steps[1:]]
    assert run(mended, tmp_path) == Outcome({}, ())
    assert counts(tmp_path, "bcde") == [1, 1, 1, 1]


def test_success_without_a_result_is_a_failure(tmp_path: Path) -> None:
    idle = Step("idle", "note", ("python", "-c", "pass"), makes=(Path("nothing.txt"),))
    assert "nothing.txt" in run([idle], tmp_path).failed["idle"]


def test_unknown_program_is_a_failed_step(tmp_path: Path) -> None:
    outcome = run([Step("x", "note", ("no-such-program",)), note("b")], tmp_path)
    assert "no-such-program" in outcome.failed["x"] and counts(tmp_path, "b") == [1]


def test_arguments_for_going_on_and_for_another_run(tmp_path: Path) -> None:
    step = replace(note("a", "one"), resume=("--c",), again=("--overwrite",), clears=(Path("kept"),))
    failing = {"command": ("python", "-c", "raise SystemExit(1)"), "inputs": "x"}
    run([replace(step, **failing)], tmp_path)  # type: ignore[arg-type]
    log = tmp_path / "logs" / "a.log"
    assert "--c" not in log.read_text() and "--overwrite" not in log.read_text()
    (tmp_path / "kept").mkdir()
    run([replace(step, **failing)], tmp_path)  # type: ignore[arg-type]
    assert "--overwrite --c" in log.read_text() and (tmp_path / "kept").exists()
    # Another plan starts afresh: nothing of the old one is taken for its own.
    run([step], tmp_path)
    assert (tmp_path / "a.txt").read_text() == "one --overwrite" and not (tmp_path / "kept").exists()


def test_step_that_is_not_needed_is_done_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("by somebody else")
    given = replace(note("a"), unneeded=lambda: "the cases are there")
    assert run([given, note("b", needs=("a",))], tmp_path) == Outcome({}, ())
    record = State(tmp_path).record("a")
    assert counts(tmp_path, "ab") == [0, 1] and record is not None and record.note == "the cases are there"
    assert record.seconds is None


def test_steps_that_undo_each_other_end_in_a_sentence(tmp_path: Path) -> None:
    """Each takes the other's file away; without a limit the study would go on for ever."""
    program = _NOTE + "; pathlib.Path(sys.argv[2] + '.txt').unlink(missing_ok=True)"
    steps = [Step(n, "note", ("python", "-c", program, n, m), makes=(Path(f"{n}.txt"),)) for n, m in ("ab", "ba")]
    failed = run(steps, tmp_path, Resources(jobs=1)).failed
    assert "a.txt is gone, although this run has made it 3 times: another step takes it away" in failed["a"]


def test_single_step_runs_alone_and_waits_for_nothing_that_is_missing(tmp_path: Path) -> None:
    steps = [note("a"), note("b", needs=("a",)), note("c")]
    assert run(steps, tmp_path, only={"b"}).left == ("b",)
    run(steps, tmp_path, only={"a"})
    assert run(steps, tmp_path, only={"b"}) == Outcome({}, ())
    assert counts(tmp_path, "abc") == [1, 1, 0]


def test_jobs_run_side_by_side_on_their_devices(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib, time; me, other = sys.argv[1:]; pathlib.Path(me).write_text("
        "os.environ['CUDA_VISIBLE_DEVICES']); limit = time.time() + 20\n"
        "while not pathlib.Path(other).exists(): time.sleep(0.05); assert time.time() < limit"
    )
    steps = [
        Step(me, "note", ("python", "-c", program, me, other), makes=(Path(me),), uses_gpu=True)
        for me, other in (("x", "y"), ("y", "x"))
    ]
    assert run(steps, tmp_path, Resources(jobs=2, devices=("3", "5"))) == Outcome({}, ())
    assert {(tmp_path / name).read_text() for name in "xy"} == {"3", "5"}


def test_steps_that_want_to_be_alone_do_not_overlap(tmp_path: Path) -> None:
    program = "import pathlib, time; lock = pathlib.Path('busy'); lock.mkdir(); time.sleep(0.3); lock.rmdir()"
    steps = [Step(name, "note", ("python", "-c", program), alone="folder") for name in "xyz"]
    assert run(steps, tmp_path, Resources(jobs=3)) == Outcome({}, ())


def test_results_root_reaches_the_program(tmp_path: Path) -> None:
    program = "import os, pathlib; pathlib.Path('r').write_text(os.environ['nnUNet_results'] + os.environ['MORE'])"
    step = Step("r", "note", ("python", "-c", program), makes=(Path("r"),), results=Path("results/seed_1"))
    run([step], tmp_path, Resources(environment={"MORE": "!"}))
    assert (tmp_path / "r").read_text() == f"{tmp_path / 'results' / 'seed_1'}!"


# ---------------------------------------------------------------------- processes

_RUNNER = """
import signal, sys
from pathlib import Path
from rich.console import Console
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in its background without it
from nnssl_mae.study.runner import Resources, run_steps
from nnssl_mae.study.state import State
from tests.study.test_runner import chain
outcome = run_steps(chain(), State(Path(sys.argv[1])), Resources(), Console(quiet=True))
sys.exit(len(outcome.failed) + len(outcome.left))
"""


def chain() -> list[Step]:
    first, last = note("a"), note("c", needs=("b",))
    return [first, replace(note("b", needs=("a",)), resume=("--c",)), last]


def begin(out: Path, slow: float = 0.0) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "SLOW": str(slow)}
    return subprocess.Popen([sys.executable, "-c", _RUNNER, str(out)], env=environment, cwd=Path(__file__).parents[2])


def wait_for(path: Path) -> None:
    limit = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < limit, path
        time.sleep(0.02)


def test_killed_runner_whose_program_lives_on_is_not_doubled(tmp_path: Path) -> None:
    runner = begin(tmp_path, slow=1.5)
    wait_for(tmp_path / "b.count")
    time.sleep(0.2)
    runner.kill()
    runner.wait()
    # The program of step b goes on by itself; the next runner waits for its end, then lets it go on with --c.
    state = State(tmp_path)
    assert state.holder("b") is not None
    assert run(chain(), tmp_path) == Outcome({}, ())
    assert counts(tmp_path, "abc") == [1, 2, 1]
    assert (tmp_path / "b.txt").read_text() == "--c"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_runner_ends_its_programs_and_the_study_goes_on(tmp_path: Path, number: int) -> None:
    runner = begin(tmp_path, slow=30)
    wait_for(tmp_path / "a.count")
    time.sleep(0.2)
    claim = json.loads((tmp_path / "state" / "claims" / "a.json").read_text())
    runner.send_signal(number)
    assert runner.wait(30) != 0
    program = claim["processes"][1]["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(program, 0)
    assert State(tmp_path).holder("a") is None
    assert run(chain(), tmp_path) == Outcome({}, ())
    assert counts(tmp_path, "abc") == [2, 1, 1]


def test_two_runners_share_the_steps(tmp_path: Path) -> None:
    runners = [begin(tmp_path, slow=0.3) for _ in range(2)]
    assert [runner.wait(60) for runner in runners] == [0, 0]
    assert counts(tmp_path, "abc") == [1, 1, 1]


def test_claims_of_the_dead_are_taken_over_and_those_of_other_machines_are_not(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.prepare()
    assert state.claim("a") and not state.claim("a")
    file = tmp_path / "state" / "claims" / "a.json"
    claim = json.loads(file.read_text())
    # The number of a dead process that another one has now: it did not start then.
    claim["processes"][0]["since"] = "1"
    file.write_text(json.dumps(claim))
    assert state.claim("a")
    file.write_text(json.dumps({**claim, "host": "elsewhere"}))
    assert not state.claim("a")
    holder = state.holder("a")
    assert holder is not None and "elsewhere" in holder and str(file) in holder


def test_damaged_record_is_no_record(tmp_path: Path) -> None:
    run([note("a")], tmp_path)
    (tmp_path / "state" / "a.json").write_text("[")
    steps = [note("a")]
    assert not statuses(steps, step_keys(steps), State(tmp_path))["a"].is_done
    run(steps, tmp_path)
    assert counts(tmp_path, "a") == [2]
