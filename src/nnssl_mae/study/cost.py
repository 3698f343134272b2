"""What a study will take: steps still to run times the seconds that steps like them took here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from nnssl_mae.study.state import Record, State, Status
from nnssl_mae.study.steps import Step

_ENDED_WITHIN = ("pretrain", "train")  # kinds whose time goes with the number of optimiser steps


@dataclass(frozen=True)
class KindCost:
    """All steps of one kind."""

    kind: str
    steps: int
    done: int
    training_steps: int
    """Optimiser steps of those still to run."""
    seconds: float | None
    """Of those still to run; None until one of the kind has been timed."""


@dataclass(frozen=True)
class Cost:
    """Of what is still to run."""

    kinds: tuple[KindCost, ...]
    seconds: float | None
    """All together, one after the other; None while a kind has never been timed."""
    disk: int | None
    """Bytes that trainings still to run will leave; None until one has ended."""


def estimate(steps: Sequence[Step], statuses: Mapping[str, Status], state: State) -> Cost:
    """Of a study.

    Args:
        steps: all.
        statuses: of each.
        state: for what was measured.
    """
    measured = _measured(state.records())
    by_kind: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        by_kind[step.kind].append(step)
    kinds = tuple(_cost_of(kind, some, statuses, measured) for kind, some in by_kind.items())
    known = [kind.seconds for kind in kinds]
    total = None if None in known else sum(seconds for seconds in known if seconds is not None)
    return Cost(kinds, total, _disk(steps, statuses, state))


def _measured(records: Mapping[str, Record]) -> dict[str, float]:
    """Seconds of a step of each kind, or of an optimiser step of trainings: the median, which one slow run leaves."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in records.values():
        if record.is_whole and record.seconds is not None:
            parts = record.steps if record.kind in _ENDED_WITHIN else 0
            found[record.kind].append(record.seconds / (parts or 1))
    return {kind: median(values) for kind, values in found.items()}


def _cost_of(
    kind: str, steps: Sequence[Step], statuses: Mapping[str, Status], measured: Mapping[str, float]
) -> KindCost:
    left = [step for step in steps if not statuses[step.name].is_done]
    seconds: float | None = 0.0
    if left:
        each = measured.get(kind)
        parts = [step.steps or 1 if kind in _ENDED_WITHIN else 1 for step in left]
        seconds = None if each is None else each * sum(parts)
    return KindCost(kind, len(steps), len(steps) - len(left), sum(step.steps for step in left), seconds)


def _disk(steps: Sequence[Step], statuses: Mapping[str, Status], state: State) -> int | None:
    trainings = [step for step in steps if step.kind in _ENDED_WITHIN]
    left = [step for step in trainings if not statuses[step.name].is_done]
    ended = [_bytes(step, state) for step in trainings if statuses[step.name].is_done]
    if not left:
        return 0
    return int(median(ended) * len(left)) if ended else None


def _bytes(step: Step, state: State) -> int:
    folders = [state.out / folder for folder in step.clears]
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
