"""Which case the next patch comes from."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnssl_mae.errors import UserError
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.recipes.pretraining import SamplingRecipe


@dataclass(frozen=True)
class UniformSampling:
    """Every case has the same chance."""

    cases: int

    def draw(self, rng: np.random.Generator) -> int:
        """A position, 0 ... cases - 1."""
        return int(rng.integers(self.cases))


@dataclass(frozen=True)
class GroupSampling:
    """First a group by its chance, then one of its cases, all alike.

    ``members`` (int32) holds the positions of all cases group by group, ``starts`` where each group begins and the
    last ends, and ``reach`` the sum of the chances up to and with each group.
    """

    members: NDArray[np.int32]
    starts: NDArray[np.int32]
    reach: NDArray[np.float64]

    def draw(self, rng: np.random.Generator) -> int:
        """A position, in a time that grows with the logarithm of the number of groups."""
        group = int(np.searchsorted(self.reach, rng.random() * self.reach[-1], side="right"))
        return int(self.members[rng.integers(self.starts[group], self.starts[group + 1])])


Sampling = UniformSampling | GroupSampling


def make_sampling(recipe: SamplingRecipe, cases: CaseIndex) -> Sampling:
    """How a recipe wants cases to be drawn. Subjects of one name in two datasets are two subjects here.

    Raises:
        UserError: a weight names no dataset of the cases, or all weights are zero.
    """
    if recipe.by == "scan" and not recipe.dataset_weights:
        return UniformSampling(len(cases))
    subjects, datasets = cases.texts("subject"), cases.texts("dataset")
    weights = _weights_of(recipe, sorted(set(datasets)))
    if recipe.by == "scan":
        groups: Sequence[object] = range(len(datasets))
    else:
        groups = datasets if recipe.by == "dataset" else list(zip(datasets, subjects, strict=True))
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_of = np.array([numbers[group] for group in groups], dtype=np.int32)
    members = np.argsort(group_of, kind="stable").astype(np.int32)
    starts = np.searchsorted(group_of[members], np.arange(len(numbers) + 1)).astype(np.int32)
    chances = np.array([weights.get(datasets[members[start]], 1.0) for start in starts[:-1]])
    return _without_zeros(members, starts, chances)


def _without_zeros(
    members: NDArray[np.int32], starts: NDArray[np.int32], chances: NDArray[np.float64]
) -> GroupSampling:
    """Leaves out groups that are never drawn, so that no rounding draws them."""
    kept = np.flatnonzero(chances)
    parts = [members[starts[group] : starts[group + 1]] for group in kept]
    ends = np.cumsum([len(part) for part in parts])
    return GroupSampling(
        np.concatenate(parts), np.concatenate([[0], ends]).astype(np.int32), np.cumsum(chances[kept], dtype=np.float64)
    )


def _weights_of(recipe: SamplingRecipe, known: Sequence[str]) -> dict[str, float]:
    for name in recipe.dataset_weights:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise UserError(
                f"sampling.dataset_weights names '{name}', which is no dataset of the training cases{hint}; "
                f"they are from {_listed(known)}"
            )
    if not any(recipe.dataset_weights.get(name, 1.0) for name in known):
        raise UserError(
            f"sampling.dataset_weights leaves out all datasets ({_listed(known)}); give one of them a positive weight"
        )
    return dict(recipe.dataset_weights)


def _listed(names: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(f"'{name}'" for name in names[:shown]) + more
