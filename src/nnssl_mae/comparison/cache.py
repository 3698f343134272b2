"""Scores that were measured before, so that a killed comparison goes on and a second one is there at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from nnssl_mae.comparison.one_case import UNREADABLE, CaseScores, Job
from nnssl_mae.errors import UserError
from nnssl_mae.journal import Journal, read_journal

_FILE = "cases.jsonl"


class ScoreCache:
    """One journal below a folder; a context manager. Without a folder nothing is kept.

    A score is found by names, sizes and times of its files, else by their content; never after a change of a
    file, of the labels, of the options or of what the metrics mean. It holds no names of cases or folders.
    """

    def __init__(self, folder: Path | None) -> None:
        self._by_stamp: dict[str, CaseScores] = {}
        self._by_content: dict[str, CaseScores] = {}
        self._journal: Journal | None = None
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for record in read_journal(folder / _FILE):
                self._take(record)
            self._journal = Journal(folder / _FILE)
        except OSError as error:
            raise UserError(f"{folder} cannot be used to keep scores: {error}; give another folder") from error

    def find(self, job: Job) -> CaseScores | None:
        """What was measured of these very files in this very way; none if nothing was."""
        if (known := self._by_stamp.get(job.stamp())) is not None:
            return known
        return self._by_content.get(job.content()) if self._by_content else None

    def keep(self, job: Job, scores: CaseScores) -> None:
        """Stores what was measured; not what could not be read, for a disk may be back tomorrow."""
        if self._journal is None or scores.failure == UNREADABLE or scores.error:
            return
        self._journal.append({"stamp": job.stamp(), "content": job.content(), **scores.as_json()})

    def _take(self, record: Mapping[str, object]) -> None:
        try:
            scores = CaseScores.from_json(dict(record))
            self._by_stamp[str(record["stamp"])] = self._by_content[str(record["content"])] = scores
        except (KeyError, TypeError, AttributeError):
            return  # of another version, or not ours: it is measured again

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.__exit__(kind, error, trace)
