"""A comparison reads what the study has planned, and nothing that an earlier version of it has left."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from nnssl_mae.comparison.runs import Request, find_runs
from nnssl_mae.errors import UserError
from nnssl_mae.study.floor import write_floor_results
from nnssl_mae.study.gather import gather
from nnssl_mae.study.place import LabelledSet
from nnssl_mae.study.plan import plan_study
from nnssl_mae.study.reading import read_study
from nnssl_mae.study.steps import Step
from tests.study.datasets import set_folders, write_labelled, write_prepared
from tests.study.test_floor import FOLDS, labelled  # noqa: F401 (a fixture)

STUDY = """
    name: S
    datasets: [4]
    arms: {mae: {recipe: smoke}}
    labelled: [1]
    repeats: 2
    seeds: [0, 1]
    epochs: 5
    pretraining: {dataset: 900, seeds: [0]}
    device: cpu
"""
MODEL = "nnUNetTrainerMAEFinetune__S_mae_p{}__3d_fullres_mae"


def test_stale_models_and_folds_are_not_compared(labelled: LabelledSet, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "study"
    roots = [out / "results" / f"seed_{seed}" for seed in range(2)]
    write_floor_results(labelled, FOLDS, roots)
    # The floor's folders serve as models: of a pre-training seed that the study has no more, and of its last one.
    for seed, models in ((0, (0,)), (1, (0, 1))):
        for number in models:
            folder = roots[seed] / labelled.name
            (folder / MODEL.format(number)).symlink_to(folder / "Floor__TrainingLabels__none")
    planned = [Path(f"results/seed_{seed}/{labelled.name}/{MODEL.format(seed)}/fold_100") for seed in range(2)]

    def found() -> list[tuple[str, str]]:
        results = {f"seed_{seed}": out / "compared" / "results" / f"seed_{seed}" for seed in range(2)}
        request = Request(datasets=(4,), arms={"mae": MODEL.format("*")}, results=results)
        return [(run.replicate, run.fold) for run in find_runs(request).runs]

    gather(out, labelled.name, planned)
    assert found() == [("seed_0", "100"), ("seed_1", "100")]
    assert (roots[1] / labelled.name / MODEL.format(0)).exists(), "nothing is removed"
    gather(out, labelled.name, [path.with_name("fold_0") for path in planned])
    assert found() == [("seed_0", "0"), ("seed_1", "0")], "earlier links are gone"
    out.rename(moved := tmp_path / "moved")
    out = moved
    with pytest.raises(UserError, match="fold_101 is missing"):
        gather(out, labelled.name, [planned[0].with_name("fold_101")])


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_folders(tmp_path, monkeypatch)
    write_labelled(tmp_path, 4, "Tiny", tests=2)
    write_prepared(tmp_path, 900, "Scans")
    return tmp_path


def steps(folders: Path, text: str) -> dict[str, Step]:
    file = folders / "study.yaml"
    file.write_text(dedent(text))
    return {step.name: step for step in plan_study(read_study(file), file).steps}


def test_all_that_is_planned_is_gathered_and_only_that_is_compared(folders: Path) -> None:
    found = steps(folders, STUDY)
    trained = {"compared" / step.makes[0].parent for step in found.values() if step.kind == "train"}
    floor = {"compared" / path for path in found["floor_004"].makes}
    assert len(trained) == 4 and set(found["gather_004"].makes) == trained | floor
    assert found["compare"].needs == ("gather_004",)
    assert {name for name in found if name.startswith("train_")} < set(found["gather_004"].needs)
    roots = [word for word in found["compare"].command if word.startswith("seed_")]
    assert roots == ["seed_0=compared/results/seed_0", "seed_1=compared/results/seed_1"]


def test_predictions_are_gathered_too_and_other_seeds_repeat_the_comparison(folders: Path) -> None:
    text = STUDY.replace("device", "test: {4: {}}\n    device")
    found = steps(folders, text)
    folder = "predictions/Dataset004_Tiny/mae/seed_0/fold_100"
    assert Path("compared", folder) in found["gather_004"].makes
    assert found["learning"].needs == found["compare"].needs == ("gather_004",)
    fewer = steps(folders, text.replace("repeats: 2", "repeats: 1"))
    assert fewer["gather_004"].inputs != found["gather_004"].inputs
    assert not any("fold_101" in path for path in fewer["gather_004"].inputs)
