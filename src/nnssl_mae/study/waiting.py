"""Work of other machines that one waits for: as long as it lives, and not for ever."""

from __future__ import annotations

import time

from nnssl_mae.study.state import State

_SECONDS_BETWEEN_WORDS = 300.0


class Waiting:
    """Looks at claims that others hold. A living runner renews its claims; nobody renews those of a dead machine.

    Args:
        state: of the study.
        patience: seconds after which a claim that nobody renews is given up.
    """

    def __init__(self, state: State, patience: float) -> None:
        self._state, self._patience = state, patience
        self._seen: dict[str, tuple[int, float]] = {}
        self._said: dict[str, float] = {}

    def given_up(self, name: str) -> str:
        """Who holds ``name`` on another machine and seems to be dead, in words; empty as long as there is hope."""
        holder, renewed = self._state.holder(name), self._state.renewed(name)
        if holder is None or renewed is None or not self._state.is_foreign(name):
            self._seen.pop(name, None)
            return ""
        now = time.monotonic()  # clocks of two machines may differ, so only a change of the time counts
        before, since = self._seen.get(name, (None, now))
        if before != renewed:
            since = now
        self._seen[name] = (renewed, since)
        return holder if now - since >= self._patience else ""

    def words(self, name: str) -> str:
        """What to say about a claim of another machine: at first, then every few minutes; empty otherwise."""
        holder, now = self._state.holder(name), time.monotonic()
        if holder is None or not self._state.is_foreign(name):
            return ""
        if now - self._said.get(name, -_SECONDS_BETWEEN_WORDS) < _SECONDS_BETWEEN_WORDS:
            return ""
        self._said[name] = now
        return f"{name} is held by {holder}"
