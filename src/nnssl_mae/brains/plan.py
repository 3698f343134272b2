"""What semi-synthetic data of a study consists of: frozen, validated, as YAML-able as a recipe.

``nnssl_mae.recipes.reading.parse(StudyData, content, source)`` reads one from a YAML file's content.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from nnssl_mae.brains.anatomies import ANATOMIES, SAME_PEOPLE, people_of
from nnssl_mae.brains.rendering import STYLES
from nnssl_mae.recipes.base import FrozenRecipe, Probability, Size3, low_first


def _known(names: tuple[str, ...], choice: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in choice]:
        raise ValueError(f"there is no {unknown[0]}; choose from {', '.join(choice)}")
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice; give each once")
    return names


Anatomies = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(lambda names: _known(names, ANATOMIES))]
Styles = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(lambda names: _known(names, STYLES))]
Count = Annotated[int, Field(ge=0)]
# Both averages on one side, as they are of the same people. The maps of the first two donors have the most holes, so
# they are trained and tuned on: four real people, each independent of all else, are left for the test.
_TRAINING_ANATOMIES = ("icbm", "mni152", "donor1")


class Part(FrozenRecipe):
    """One set of brains."""

    anatomies: Anatomies
    """Base anatomies: `icbm`, `mni152` (which are of the same people), `donor1` to `donor6`."""
    cases: Count
    """Brains of each anatomy."""
    styles: Styles
    """Contrasts, dealt out in turn: `t1`, `t2`, `flair`, `pd`, or `random` (every tissue any brightness)."""
    lesions: Annotated[tuple[Count, Count], AfterValidator(low_first)] = (2, 7)
    """Fewest and most lesions of a brain."""
    thick_slices: Probability = 0.0
    """Probability that a scan has slices 2 or 3 voxels thick."""


class StudyData(FrozenRecipe):
    """Data of one study. People of ``tuning`` and of ``test`` are in no other part unless that is allowed."""

    seed: int = Field(default=6, ge=0)
    """Every brain is a function of this number, its part, its anatomy and its place among them."""
    resolution: int = Field(default=2, ge=1, le=6)
    """Edge length of a voxel in mm."""
    size: Size3 | None = None
    """Voxels of every volume along x, y, z; default: the smallest that holds all anatomies with some room."""
    dataset: int = Field(default=911, ge=1, le=999)
    """nnU-Net number of the labelled dataset with training and test cases."""
    tuning_dataset: int = Field(default=912, ge=1, le=999)
    """nnU-Net number of the labelled dataset on which choices are made before anyone looks at the test cases."""
    pretraining: Part = Part(
        anatomies=_TRAINING_ANATOMIES, cases=50, styles=("t1", "t2", "random"), lesions=(0, 7), thick_slices=0.25
    )
    """Unlabelled brains."""
    training: Part = Part(anatomies=_TRAINING_ANATOMIES, cases=10, styles=("t1", "t2"))
    """Labelled brains: `imagesTr`."""
    tuning: Part = Part(anatomies=("donor2",), cases=12, styles=("t1", "t2"))
    """Labelled brains of the tuning dataset."""
    test: Part = Part(anatomies=("donor3", "donor4", "donor5", "donor6"), cases=8, styles=("t1", "t2", "flair", "pd"))
    """Labelled brains that training never sees: `imagesTs`. Name contrasts that the other parts lack, too."""
    real_images: bool = False
    """Write the real average image of each test anatomy that has one (`icbm`, `mni152`), as it is, to `imagesReal`."""
    allow_shared_anatomies: bool = False
    """Let people of `tuning` or `test` be in other parts too; then the scores say nothing on new anatomies."""

    @property
    def parts(self) -> dict[str, Part]:
        """The four sets by name."""
        return {name: getattr(self, name) for name in ("pretraining", "training", "tuning", "test")}

    @property
    def anatomies(self) -> tuple[str, ...]:
        """All that are used, each once."""
        used = {name for part in self.parts.values() if part.cases for name in part.anatomies}
        return tuple(name for name in ANATOMIES if name in used)

    @model_validator(mode="after")
    def _separate(self) -> StudyData:
        if self.dataset == self.tuning_dataset:
            raise ValueError(f"dataset and tuning_dataset are both {self.dataset}; give two numbers")
        if not self.allow_shared_anatomies:
            self._refuse_shared("test", ("pretraining", "training", "tuning"))
            self._refuse_shared("tuning", ("pretraining", "training"))
            self._refuse_twice("test")
            self._refuse_twice("tuning")
        return self

    def _refuse_shared(self, held_out: str, others: tuple[str, ...]) -> None:
        for other in others:
            pairs = [
                (here, there)
                for here in self.parts[held_out].anatomies
                for there in self.parts[other].anatomies
                if people_of(here) == people_of(there)
            ]
            if pairs:
                what = _shared(pairs, held_out, other)
                raise ValueError(f"{what}; take it out of one of them, or set allow_shared_anatomies: true")

    def _refuse_twice(self, held_out: str) -> None:
        if set(SAME_PEOPLE) <= set(self.parts[held_out].anatomies):
            raise ValueError(
                f"{' and '.join(SAME_PEOPLE)} are both in {held_out}, where they would count as two people, and both "
                "are averages of the same ones; take one of them out, or set allow_shared_anatomies: true"
            )


def _shared(pairs: list[tuple[str, str]], held_out: str, other: str) -> str:
    if same := sorted(here for here, there in pairs if here == there):
        return f"{', '.join(same)} is in {held_out} and in {other}"
    here, there = pairs[0]
    return f"{here} is in {held_out} and {there}, an average of the same people, is in {other}"
