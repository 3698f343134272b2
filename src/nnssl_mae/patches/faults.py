"""Counting of cases that could not be read in a run, and its end when they are too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nnssl_mae.errors import UserError

_AT_LEAST, _SHARE = 10, 0.01
_SHOWN = 3


class DamagedCases:
    """The distinct cases that vanished or were damaged while a run went on; each is logged once.

    One lost file among thousands must not end a run of days, and many lost files must not be passed over.
    """

    def __init__(self, log: Callable[[str], object]) -> None:
        """
        Args:
            log: takes a sentence.
        """
        self.problems: dict[str, str] = {}
        self._log, self._limit = log, _AT_LEAST

    def allow_for(self, training_cases: int) -> None:
        """Accepts one in a hundred of the training cases, or ten, but never more than half of them."""
        self._limit = min(max(_AT_LEAST, int(_SHARE * training_cases)), training_cases // 2)

    def add(self, replaced: Iterable[tuple[str, str]]) -> None:
        """Takes the key ``replaced`` of a batch: in training other cases stand in, in validation they do not count.

        Args:
            replaced: names and problems of cases.

        Raises:
            UserError: there are too many by now.
        """
        for case, problem in replaced:
            if case not in self.problems:
                self.problems[case] = problem
                self._log(f"WARNING: case {case} is passed over: {problem}")
        if len(self.problems) > self._limit:
            some = "; ".join(list(self.problems.values())[:_SHOWN])
            raise UserError(
                f"{len(self.problems)} cases could not be read in this run, more than the {self._limit} that are "
                f"passed over: {some}. Check the disk, run the same `nnssl-mae prepare` again to make them anew, "
                "then continue with --c"
            )
