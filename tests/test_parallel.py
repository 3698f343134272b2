"""Work in processes: order of nothing, backpressure, memory budget, exceptions, deaths."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nnssl_mae.errors import ResumableError
from nnssl_mae.parallel import in_processes


def double(number: int) -> int:
    return 2 * number


def fail(number: int) -> int:
    if number == 1:
        raise OSError(errno.ENOSPC, "No space left on device")
    if number == 2:
        raise MemoryError
    return number


def die_once(folder: Path, number: int) -> int:
    """Item 1 kills its process the first time, item 2 every time."""
    mark = folder / f"died-{number}"
    if number == 2 or (number == 1 and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def overlap(folder: Path, number: int) -> int:
    """How many items are worked on at this moment."""
    mark = folder / f"at-work-{number}"
    mark.touch()
    time.sleep(0.1)
    count = len(list(folder.glob("at-work-*")))
    mark.unlink()
    return count


class _DiesWhenUnpickled:
    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (3,)

    def __call__(self, number: int) -> int:
        return number


def test_every_item_comes_back_and_few_are_taken_in_advance() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(12):
            taken.append(number)
            yield number

    results = {}
    for outcome in in_processes(double, items(), workers=2):
        results[outcome.item] = outcome.result
        assert len(taken) <= len(results) + 2
    assert results == {number: 2 * number for number in range(12)}


def test_what_the_work_raises_is_a_failure_of_its_item_only() -> None:
    outcomes = {outcome.item: outcome for outcome in in_processes(fail, range(4), workers=2)}
    assert [outcomes[number].result for number in (0, 3)] == [0, 3]
    full, memory = outcomes[1].failure, outcomes[2].failure
    assert full is not None and memory is not None
    assert full.disk_is_full
    assert "in fail" in full.details
    assert "memory" in memory.summary
    assert not memory.disk_is_full


def test_a_process_that_dies_is_replaced_and_its_item_tried_again_once(tmp_path: Path) -> None:
    outcomes = {outcome.item: outcome for outcome in in_processes(partial(die_once, tmp_path), range(6), workers=2)}
    assert sorted(outcomes) == list(range(6))
    assert [outcomes[number].result for number in (0, 1, 3, 4, 5)] == [0, 1, 3, 4, 5]
    assert outcomes[2].failure is not None
    assert "each of 2 times (SIGKILL" in outcomes[2].failure.summary


def test_costs_limit_what_is_worked_on_together_but_a_large_item_still_gets_its_turn(tmp_path: Path) -> None:
    work = partial(overlap, tmp_path)
    apart = [o.result for o in in_processes(work, range(6), workers=3, cost=lambda n: 100.0 if n == 3 else 6.0,
                                            budget=10)]  # fmt: skip
    assert apart == [1] * 6
    together = [o.result for o in in_processes(work, range(9), workers=3, cost=lambda _: 1.0, budget=10)]
    assert max(together) > 1  # type: ignore[type-var]


def test_processes_that_cannot_start_end_the_work() -> None:
    with pytest.raises(ResumableError, match=r"before it could start \(exit code 3\)"):
        list(in_processes(_DiesWhenUnpickled(), range(3), workers=2))


def sleep_long(number: int) -> int:
    time.sleep(60 if number else 0)
    return number


def test_ctrl_c_does_not_wait_for_what_is_at_work() -> None:
    outcomes = in_processes(sleep_long, range(3), workers=2)
    next(outcomes)
    with pytest.raises(KeyboardInterrupt):
        outcomes.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


class _SlowToStart:
    def __reduce__(self) -> tuple[object, ...]:
        return _interrupted_while_starting, ()


def _interrupted_while_starting() -> object:
    os.kill(os.getpid(), signal.SIGINT)
    return double


def test_ctrl_c_says_nothing_in_processes_that_are_still_starting(capfd) -> None:
    work = _SlowToStart()
    results = [outcome.result for outcome in in_processes(work, range(2), workers=1)]  # type: ignore[arg-type]
    assert results == [0, 2]
    assert capfd.readouterr().err == ""


def test_leaving_early_ends_the_processes() -> None:
    outcomes = in_processes(double, range(100), workers=2)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
