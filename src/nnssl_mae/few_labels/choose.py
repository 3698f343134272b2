"""Which cases get to be labelled: nested, different between repeats, with every label as early as possible.

Pure functions of names, contents and seed. A repeat is an order of all cases of the pool; its first n cases are the
training set with n labels, so that smaller sets lie in larger ones, and sets asked for later fit those asked before.

The next case of an order is, among all that are left, one that

1. does not make this set equal to the set of the same size of an earlier repeat,
2. has most of the labels that the set does not have yet,
3. is of the subject with fewest cases in the set,
4. comes late in earlier repeats: first by its subject, then by itself,
5. of a few that are equal so far, drawn at random, brings the mean volumes of the labels closest to those of the pool.

Each rule decides only among those that the rules before it leave. The second is greedy set cover (Chvatal 1979).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from nnssl_mae.errors import UserError
from nnssl_mae.few_labels.contents import Content

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_DRAWN = 4  # more would choose average cases only, and repeats would no longer tell how much the draw matters
_HOLD_OUT = 1_000_003  # keeps the draw of validation cases apart from those of the repeats


def draw_order(
    pool: Sequence[str],
    subjects: Mapping[str, str],
    contents: Mapping[str, Content],
    earlier: Sequence[Sequence[str]],
    seed: int,
) -> list[str]:
    """The order of the pool for the repeat after ``earlier``.

    Args:
        pool: cases, in any order.
        subjects: the subject of each case.
        contents: voxels of each label, of each case.
        earlier: orders of the repeats before, of the same cases.
        seed: not negative.

    Returns:
        all cases of the pool.
    """
    cases = sorted(pool)
    rng = np.random.default_rng([seed, len(earlier)])
    before = [_positions(cases, order) for order in earlier]
    draw = _Draw(_volumes(cases, contents), _numbered([subjects[case] for case in cases]), before)
    for _ in cases:
        draw.take(_balanced(draw, draw.candidates(), rng))
    return [cases[index] for index in draw.chosen]


def hold_out(
    subjects: Mapping[str, str], contents: Mapping[str, Content], share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Training pool and validation cases; all cases of a subject are on one side.

    The labels of the validation cases are balanced, not covered first: a rare label is for the training pool too.

    Args:
        subjects: the subject of each case of the dataset.
        contents: of each case.
        share: of the subjects to hold out, above 0 and below 1; at least one is.
        seed: not negative.

    Raises:
        UserError: there is only one subject.
    """
    names = sorted(set(subjects.values()))
    wanted = max(1, round(share * len(names)))
    if wanted >= len(names):
        raise UserError(
            f"A validation share of {share:g} of {len(names)} subjects leaves none for training; choose less, or check "
            "the subjects with --subject-regex"
        )
    sums = {
        name: Content(_sum(contents[case] for case in sorted(subjects) if subjects[case] == name)) for name in names
    }
    rng = np.random.default_rng([seed, _HOLD_OUT])
    draw = _Draw(_volumes(names, sums), np.arange(len(names)), [])
    for _ in range(wanted):
        draw.take(_balanced(draw, draw.left(), rng))
    held = {names[index] for index in draw.chosen}
    cases = sorted(subjects)
    return [c for c in cases if subjects[c] not in held], [c for c in cases if subjects[c] in held]


def missing_classes(training: Sequence[str], contents: Mapping[str, Content], names: Sequence[str]) -> tuple[str, ...]:
    """Labels or regions that no training case contains."""
    voxels = _sum(contents[case] for case in training)
    return tuple(name for name, count in zip(names, voxels, strict=True) if not count)


class _Draw:
    """A set of cases that grows by one at a time. Cases are numbers here."""

    def __init__(self, volumes: Array, subjects: Indices, before: Sequence[Indices]) -> None:
        self.features = _standardised(volumes)
        self.chosen: list[int] = []
        self.sum = np.zeros(self.features.shape[1])
        self._present = volumes > 0
        self._needed = self._present.any(axis=0)
        self._subjects = subjects
        self._taken_of = np.zeros(int(subjects.max()) + 1, dtype=np.int64)
        self._left = np.ones(len(volumes), dtype=bool)
        self._before = before
        self._subjects_before = [_first_of_subject(order, subjects) for order in before]

    def left(self) -> Indices:
        """Cases that are not in the set."""
        return np.flatnonzero(self._left)

    def candidates(self) -> Indices:
        """Cases that rules 1 to 4 leave."""
        left = self._not_repeating(self.left())
        left = _lowest(left, -self._present[left][:, self._needed].sum(axis=1))
        left = _lowest(left, self._taken_of[self._subjects[left]])
        size, repeats = len(self.chosen) + 1, len(self._before) + 1
        # So long as each repeat has a share of the pool for itself, it stays out of the others' shares.
        share = max(len(self._taken_of) // repeats, size)
        left = _lowest(left, sum((order[left] < share for order in self._subjects_before), np.zeros(len(left))))
        share = max(len(self._left) // repeats, size)
        return _lowest(left, sum((order[left] < share for order in self._before), np.zeros(len(left))))

    def take(self, case: int) -> None:
        self.chosen.append(case)
        self.sum += self.features[case]
        self._left[case] = False
        self._taken_of[self._subjects[case]] += 1
        self._needed &= ~self._present[case]

    def _not_repeating(self, left: Indices) -> Indices:
        """Without the cases that would make the set one that an earlier repeat has, if there are others."""
        size = len(self.chosen)
        allowed = np.ones(len(left), dtype=bool)
        for order in self._before:
            if (order[self.chosen] <= size).all():
                allowed &= order[left] > size
        return left[allowed] if allowed.any() else left


def _balanced(draw: _Draw, candidates: Indices, rng: np.random.Generator) -> int:
    """Of a few random candidates the one with which the mean features of the set come closest to those of the pool."""
    few = rng.permutation(candidates)[:_DRAWN]
    distance = np.square((draw.sum + draw.features[few]) / (len(draw.chosen) + 1)).sum(axis=1)
    return int(few[int(np.argmin(distance.round(9)))])


def _lowest(cases: Indices, values: npt.NDArray[np.generic]) -> Indices:
    return cases[values == values.min()]


def _volumes(cases: Sequence[str], contents: Mapping[str, Content]) -> Array:
    """Voxels, shape (cases, labels)."""
    return np.asarray([contents[case].voxels for case in cases], dtype=np.float64)


def _standardised(volumes: Array) -> Array:
    """Log volumes with mean 0 and standard deviation 1 over the pool; 0 where all cases are equal."""
    logs = np.log1p(volumes)
    spread = logs.std(axis=0)
    # Equal volumes may differ by rounding after the logarithm.
    return (logs - logs.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)


def _numbered(names: Sequence[str]) -> Indices:
    return np.unique(np.asarray(names), return_inverse=True)[1].astype(np.int64)


def _positions(cases: Sequence[str], order: Sequence[str]) -> Indices:
    place = {case: position for position, case in enumerate(order)}
    return np.asarray([place[case] for case in cases], dtype=np.int64)


def _first_of_subject(positions: Indices, subjects: Indices) -> Indices:
    """For each case the first position of any case of its subject."""
    first = np.full(int(subjects.max()) + 1, len(positions), dtype=np.int64)
    np.minimum.at(first, subjects, positions)
    return first[subjects]


def _sum(contents: Iterable[Content]) -> tuple[int, ...]:
    return tuple(sum(voxels) for voxels in zip(*(content.voxels for content in contents), strict=True))
